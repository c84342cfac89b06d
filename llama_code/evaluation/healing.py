"""Prompt boundary healing: a prompt is continued as if its text had never been cut off.

Tokens of code span newline and indent (`:\\n    ` may be one token), so the tokens of a prompt alone can end in ones
that the model never saw followed by what comes next. The prompt is cut back to tokens that any continuation keeps, and
the first new tokens are constrained to the text that was cut.
"""

import string
from collections.abc import Sequence
from typing import NamedTuple

from llama_code.evaluation.vocabulary import Vocabulary

# One continuation for each way in which a pre-tokenizer may draw a boundary differently.
PROBES = [
    *string.punctuation,
    *[" " * n for n in (1, 2, 3, 4, 7, 8, 12, 16)],
    *[" " * n + "x" for n in (1, 2, 3, 4, 7, 8, 12, 16)],
    *[" " * n + "(" for n in (1, 4, 8)],
    *["\n" * n + " " * indent + "x" for n in (1, 2, 3) for indent in (0, 1, 3, 4, 8, 12)],
    *["\t", "\t\t", "\tx", "\n\tx", "\r\n", "\r\nx", "\n", "\n\n"],
    *["a", "e", "s", "ing", "A", "_x", "__", "0", "12", "123", "'s", "'''", '"""', "()", "):\n    x", ":\n        x"],
    *["é", "ß", "中", "我们", "я", "😀", "\u0301", "\u00a0", "–", "“"],
]
MAX_VOCABULARY_PROBES = 16


class HealedPrompt(NamedTuple):
    """A prompt cut back to its safe tokens.

    Attributes:
        ids: the token that begins a document, then the safe tokens.
        cut: the bytes of the prompt that `ids` do not spell; the first new tokens must begin with them.
    """

    ids: list[int]
    cut: bytes


def heal(vocabulary: Vocabulary, prompt: str) -> HealedPrompt:
    """Cut a prompt back to the longest run of tokens that is the same whatever follows the prompt.

    What may follow is represented by `PROBES` and by the tokens of the vocabulary that begin with the prompt's last
    bytes and go beyond them.

    Raises:
        UserError: the tokenizer does not keep the prompt's text.
    """
    ids = vocabulary.encode_exactly(prompt)
    num_safe = len(ids)
    for others in vocabulary.encode([prompt + probe for probe in [*PROBES, *_vocabulary_probes(vocabulary, ids)]]):
        num_common = 0
        while num_common < min(num_safe, len(others)) and ids[num_common] == others[num_common]:
            num_common += 1
        num_safe = num_common
    safe = ids[:num_safe]
    cut = (vocabulary.text_prefix + prompt.encode())[len(vocabulary.decode(safe)) :]
    return HealedPrompt([vocabulary.start_id, *safe], cut)


def _vocabulary_probes(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """What tokens that begin with the prompt's last bytes add to it; the earliest ids, which are the commonest."""
    probes = []
    for num_tokens in range(1, min(4, len(ids)) + 1):
        ending = vocabulary.decode(ids[-num_tokens:])
        for i in vocabulary.extensions(ending)[:MAX_VOCABULARY_PROBES]:
            added = vocabulary.token_bytes[i][len(ending) :].decode(errors="ignore")
            if added:
                probes.append(added)
    return probes
