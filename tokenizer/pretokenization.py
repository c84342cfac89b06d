"""How text is cut into pieces; byte-pair merges then happen inside a piece, never across two.

The pattern is made for the way that a language model meets source code:

* A piece never reaches past the end of a line: line breaks only ever end a piece, and the indent of a line belongs to
  the line's first word or symbols (`"    return"`, `"        self"`). Text that is cut after a line therefore has the
  same tokens as it has inside a longer text, and a prompt that ends in a line break, as those of code benchmarks do,
  looks to the model like its training data. Where punctuation takes the line break and the next line's indent
  (`":\\n    "`) sequences are 1.6% shorter, but such a prompt ends in a token that in training announced a line
  without indent.
* Words and identifiers take one symbol before them (`".append"`, `"(self"`, `"_name"`), as in GPT-4's cl100k;
  snake_case is cut at its underscores, so that the parts of a name share their tokens with all other names.
* Runs of symbols stay whole over single spaces (`") ->"`, `' = ["'`): an idiom of punctuation is a token, while no
  piece joins two words and none can swallow a statement.
* Numbers are cut from the left into pieces of at most three digits, so that the tokens for numbers are bounded.

White space is matched possessively (`*+`): a run of it is tried once by each alternative and never given back, so that
the time is linear in the length of the text, whatever the text. With a plain `*` the regex engine that tokenizers uses
stops at 10 million steps back, and a text with that many spaces in a row ends the process's encoding with a panic.
"""

from tokenizers import Regex, pre_tokenizers

# White space other than line breaks: the indent, or what separates words; also tabs, form feeds and Unicode's spaces.
SPACE = r"[^\S\r\n]"
# Combining marks belong to the letter before them: without them words of many scripts fall apart.
LETTER = r"[\p{L}\p{M}]"
# All that is left: ASCII punctuation with the underscore, operators, emoji, control and unassigned characters.
SYMBOL = r"[^\s\p{L}\p{M}\p{N}]"

PATTERN = "|".join(
    [
        rf"{SPACE}*+{SYMBOL}?{LETTER}+",
        rf"{SPACE}*+\p{{N}}{{1,3}}",
        rf"{SPACE}*+{SYMBOL}+(?: {SYMBOL}+)*[\r\n]*",
        rf"{SPACE}*+[\r\n]+",
        # Only at the end of a text: anywhere else one of the above takes the white space.
        rf"{SPACE}++",
    ]
)


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer: PATTERN, then each byte as a printable character (Radford et al. 2019)."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
