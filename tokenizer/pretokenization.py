"""How text is cut into pieces; byte-pair merges then happen inside a piece, never across two.

The pattern is made for the way that a language model meets source code:

* Symbols take the line break that follows them and the next line's indent (`":\\n        "`, `",\\n    "`): the layout
  between two statements is a token, and the words after it are the same tokens at every depth of indentation. A model
  trained so needs fewer bits for the same text than one whose indent goes with the line's first word
  (docs/tokenizer.md). The price is that a prompt cut after a line break ends in a token that in training announced a
  line without indent; llama_code.evaluation.healing takes such a prompt back to its last safe token.
* Words and identifiers take one symbol or space before them (`".append"`, `"(self"`, `" name"`), as in GPT-4's cl100k;
  snake_case is cut at its underscores, so that the parts of a name share their tokens with all other names.
* Runs of symbols stay whole over single spaces (`") -> "` up to the arrow, `' = ["'`): an idiom of punctuation is a
  token, while no piece joins two words and none can swallow a statement.
* Runs of spaces are whole. Numbers are cut from the left into pieces of at most three digits.

Repeats are possessive (`++`) where they can be: tried once and never given back, so that the time is linear in the
length of the text, whatever the text, and the regex engine's limit of 10 million steps back is never met.
"""

from tokenizers import Regex, pre_tokenizers

# Combining marks belong to the letter before them: without them words of many scripts fall apart.
LETTER = r"[\p{L}\p{M}]"
# All that is left: ASCII punctuation with the underscore, operators, emoji, control and unassigned characters.
SYMBOL = r"[^\s\p{L}\p{M}\p{N}]"
# White space other than line breaks: also tabs, form feeds and Unicode's spaces.
SPACE = r"[^\S\r\n]"
LINE_BREAKS_AND_INDENT = r"[\r\n]++[ \t]*+"

PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?+{LETTER}++",
        r" ?\p{N}{1,3}",
        rf" ?{SYMBOL}++(?: {SYMBOL}++)*+(?:{LINE_BREAKS_AND_INDENT})?+",
        LINE_BREAKS_AND_INDENT,
        # The last space before a word is left to the word.
        rf"{SPACE}+(?!\S)",
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
