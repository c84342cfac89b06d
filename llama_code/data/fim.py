"""Fill-in-the-middle: some documents are cut in three and their middle goes last, so that a model learns to infill.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle" (arXiv 2207.14255), section 3 and
appendix D, with half of the documents in each order:

    PSM            <prefix> Enc(prefix) <suffix> Enc(suffix) <middle> Enc(middle)
    SPM variant 2  <prefix> <suffix> Enc(suffix) <middle> Enc(prefix) Enc(middle)

The end-of-text token before the next document ends the middle, and all of it counts in the loss. Cuts are at two
uniform positions between characters, and each piece is encoded by itself: a model learns to go on from a prefix that
ends within a word. StarCoder's data was made so too (bigcode-project/Megatron-LM, megatron/data/gpt_dataset.py).
Here whole documents are cut, before they are packed into rows; a row may hold a part of one.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import unpack
from typing import NamedTuple

from tokenizers import Tokenizer

from llama_code.data.fast_encoding import EncodeBatch
from llama_code.errors import UserError

NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


class FimTokens(NamedTuple):
    """The ids of the tokens that announce the pieces of a document."""

    prefix: int
    suffix: int
    middle: int


def fim_tokens(tokenizer: Tokenizer) -> FimTokens:
    """Return the ids of the fill-in-the-middle tokens.

    Raises:
        UserError: the vocabulary lacks one, or has it as a token that a document's text can contain.
    """
    special = {added.content: i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    missing = [name for name in NAMES if name not in special]
    if missing:
        raise UserError(
            f"the tokenizer's {len(special):,} special tokens lack {', '.join(missing)}, which fim_rate needs; "
            "choose a tokenizer that has them, such as the project's own, or set fim_rate to 0"
        )
    return FimTokens(*(special[name] for name in NAMES))


def check_rate(rate: float) -> None:
    """Raise a UserError where `rate` is not a share of documents."""
    if not 0 <= rate <= 1:
        raise UserError(
            f"fim_rate is {rate}, but it is the share of documents to cut for infilling, from 0 to 1; "
            "give 0 for none, or 0.5 for every second document"
        )


def fim_pieces(text: str, digest: bytes, rate: float, seed: int, tokens: FimTokens) -> list[str | int]:
    """Return what a document is encoded from: `[text]`, or its pieces with the ids of special tokens between them.

    Args:
        text: the document.
        digest: the document's own digest. With `seed` it decides everything, so that neither the order of documents
            nor the worker matters.
        rate: the share of documents to cut, from 0 to 1. What is cut at one rate is cut alike at every higher one.
        seed: another one cuts other documents, at other places.
        tokens: the ids.
    """
    chosen, order, *cuts = unpack("<4Q", blake2b(b"fim %d " % seed + digest, digest_size=32).digest())
    if chosen >= rate * 2**64:
        return [text]
    start, end = sorted(cut * (len(text) + 1) >> 64 for cut in cuts)
    prefix, middle, suffix = text[:start], text[start:end], text[end:]
    if order < 2**63:
        return [tokens.prefix, prefix, tokens.suffix, suffix, tokens.middle, middle]
    return [tokens.prefix, tokens.suffix, suffix, tokens.middle, prefix, middle]


def encode_documents(
    encode_batch: EncodeBatch,
    texts: Sequence[str],
    digests: Iterable[bytes],
    end_of_text: int,
    rate: float = 0.0,
    seed: int = 0,
    tokens: FimTokens | None = None,
) -> list[int]:
    """Return the token ids of documents in a row, with an end-of-text token before each.

    Args:
        encode_batch: see `batch_encoder`.
        texts: the documents.
        digests: their digests.
        end_of_text: the id.
        rate: the share of documents to cut for infilling, from 0 to 1.
        seed: decides which, and where.
        tokens: the ids that `fim_tokens` found; needed where `rate` is not 0.

    Raises:
        UserError: `rate` is out of its range.
    """
    check_rate(rate)
    pieces: list[str | int] = []
    for text, digest in zip(texts, digests, strict=True):
        pieces.append(end_of_text)
        if rate:
            assert tokens is not None
            pieces += fim_pieces(text, digest, rate, seed, tokens)
        else:
            pieces.append(text)
    batch = [piece for piece in pieces if isinstance(piece, str)]
    encoded = iter(encode_batch(batch))
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            ids.extend(next(encoded))
    return ids


def undo(tokenizer: Tokenizer, ids: list[int], tokens: FimTokens) -> str:
    """Return the text of one document from its token ids without the end-of-text token, whether it was cut or not."""
    if tokens.prefix not in ids:
        return tokenizer.decode(ids)
    suffix, middle = ids.index(tokens.suffix), ids.index(tokens.middle)
    # In SPM nothing stands between the first two tokens: the prefix is at the head of the last piece.
    pieces = ids[1:suffix], ids[middle + 1 :], ids[suffix + 1 : middle]
    return "".join(tokenizer.decode(piece) for piece in pieces)
