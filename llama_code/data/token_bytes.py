"""Which bytes each token of a tokenizer stands for."""

from typing import TYPE_CHECKING

from llama_code.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_SPACE = "\u2581"
BYTE_LEVEL_SPACE = "\u0120"


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's one-to-one map from printable characters to the 256 bytes (Radford et al. 2019, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(tokenizer: "PreTrainedTokenizerBase") -> list[bytes]:
    """Return the bytes that each token id stands for; b"" for special tokens and for ids without a token.

    Args:
        tokenizer: byte-level BPE, or of sentencepiece's kind (a mark for the space, `<0x0A>` for single bytes).

    Raises:
        UserError: the tokenizer is of another kind.
    """
    vocabulary = tokenizer.get_vocab()
    if SENTENCEPIECE_SPACE in vocabulary:
        alphabet = None
    elif BYTE_LEVEL_SPACE in vocabulary:
        alphabet = byte_level_alphabet()
    else:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} is neither byte-level BPE nor of sentencepiece's kind, so the "
            "text of its tokens is not known; choose a tokenizer of one of these kinds"
        )
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i in special or (i in added and added[i].special):
            continue
        if i in added:  # an added token that is not special stands for its own text
            table[i] = token.encode()
        elif alphabet is not None:
            table[i] = bytes(alphabet[character] for character in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            table[i] = bytes([int(token[3:5], 16)])
        else:
            table[i] = token.replace(SENTENCEPIECE_SPACE, " ").encode()
    return table
