"""Which bytes each token of a tokenizer stands for, and which tokens can stand where some bytes are due."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from llama_code.data.token_bytes import token_bytes
from llama_code.errors import UserError

END_OF_TEXT = "<|endoftext|>"
ROUND_TRIP = (
    'class A:\n    def f(x, y=[1, 20]):\n        """é, 中, 😀"""\n\treturn {\'a\': x != y}  # @$%^&*~`|;<>?\\ \n\n'
)


class Vocabulary:
    """A tokenizer seen as a map between bytes and token ids.

    Attributes:
        token_bytes: the bytes of each id; b"" for special tokens.
        text_prefix: what the tokenizer puts before every text: b" " where sentencepiece adds a space, else b"".
        start_id: the token that begins a document: `<|endoftext|>` where the vocabulary has it (chat models rename
            their bos and eos to turn markers, and keep this as the end of a document), else bos, else eos.
        end_ids: every special token: in the completion of raw text each one means that the text has ended.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the tokenizer's vocabulary and check it against the tokenizer.

        Raises:
            UserError: the tokenizer's kind is not known, it has no token that begins a document, or its tokens do not
                spell the text that they encode.
        """
        self.tokenizer = tokenizer
        self.token_bytes = token_bytes(tokenizer)
        self.start_id = _start_id(tokenizer)
        special_added = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.end_ids = sorted({*tokenizer.all_special_ids, *special_added})
        ordered = sorted((text, i) for i, text in enumerate(self.token_bytes) if text)
        self._sorted_texts = [text for text, _ in ordered]
        self._sorted_ids = [i for _, i in ordered]
        self._allowed: dict[bytes, torch.Tensor] = {}
        self.text_prefix = b""
        self.text_prefix = b" " if self.decode(self.encode(["a"])[0]) == b" a" else b""
        self.encode_exactly(ROUND_TRIP)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing added; the text of a special token is text like any other."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        return self.tokenizer(list(texts), verbose=False, **options)["input_ids"]

    def encode_exactly(self, text: str) -> list[int]:
        """Token ids of a text whose bytes spell that text.

        Raises:
            UserError: they do not, as with a tokenizer that normalizes its input.
        """
        ids = self.encode([text])[0]
        self.check_spelling(text, ids, repr(text[:80]))
        return ids

    def check_spelling(self, text: str, ids: Sequence[int], name: str) -> None:
        """Refuse token ids whose bytes do not spell their text; `name` stands for the text in the message.

        Raises:
            UserError: they do not, as with a tokenizer that normalizes its input.
        """
        spelled = self.decode(ids)
        if spelled != (self.text_prefix if ids else b"") + text.encode():
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path!r} does not keep the text of {name}: its tokens spell "
                f"{spelled[:80]!r}; evaluate a model with a lossless tokenizer"
            )

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes that token ids stand for; ids beyond the tokenizer's (padding of the embedding) stand for none."""
        return b"".join(self.token_bytes[i] for i in ids if i < len(self.token_bytes))

    def extensions(self, text: bytes) -> list[int]:
        """Ids of the tokens that begin with `text` and go on beyond it, in order of id."""
        first = bisect_right(self._sorted_texts, text)
        last = bisect_right(self._sorted_texts, text, lo=first, key=lambda token: token[: len(text)])
        return sorted(self._sorted_ids[first:last])

    def allowed_ids(self, due: bytes) -> torch.Tensor:
        """Ids of the tokens that agree with the bytes `due`: a part of their beginning, all of them, or more.

        Returns:
            `(num_allowed,)`, int64, on the CPU.
        """
        if due not in self._allowed:
            ids = self.extensions(due)
            for length in range(1, len(due) + 1):
                first = bisect_left(self._sorted_texts, due[:length])
                last = bisect_right(self._sorted_texts, due[:length])
                ids += self._sorted_ids[first:last]
            self._allowed[due] = torch.tensor(ids, dtype=torch.int64)
        return self._allowed[due]


def _start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if END_OF_TEXT in tokenizer.get_vocab():
        return tokenizer.get_vocab()[END_OF_TEXT]
    for i in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if i is not None:
            return i
    raise UserError(
        f"tokenizer {tokenizer.name_or_path!r} has neither {END_OF_TEXT!r} nor a bos nor an eos token, so no token "
        "begins a document; set its eos_token"
    )
