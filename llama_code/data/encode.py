"""The third stage: the documents of a shard that stay, as tokens; and the last one, all shards as one corpus."""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from llama_code.data.fast_encoding import EncodeBatch
from llama_code.data.fim import FimTokens, encode_documents
from llama_code.errors import UserError

SPLITS = ("train", "held_out")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NUM_PROJECTS = 20


@dataclass
class Totals:
    """What a split holds.

    Attributes:
        documents, bytes, tokens: bytes of UTF-8; tokens with one that begins each document.
        digests: of the documents' texts in order, 16 bytes each, as hexadecimal digits.
        projects: tokens by project.
        licenses: documents by licence.
    """

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    digests: str = ""
    projects: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"tokenizer {str(path.parent)!r} has no {path.name}; give a folder saved by transformers")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no JSON ({error}); give a folder saved by transformers") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} is a JSON {type(value).__name__}; give a folder saved by transformers")
    return value


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every token id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def load_tokenizer(tokenizer_dir: Path) -> tuple[Tokenizer, int]:
    """Return the tokenizer in `tokenizer_dir`, set to treat special tokens in a text as text, and its end-of-text id.

    Raises:
        UserError: the folder holds no such tokenizer.
    """
    parts, config = (_read_json(tokenizer_dir / name) for name in TOKENIZER_FILES)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end_of_text = config.get("eos_token")
    if isinstance(end_of_text, dict):
        end_of_text = end_of_text["content"]
    special = {token["content"]: token["id"] for token in parts.get("added_tokens", ()) if token["special"]}
    if end_of_text not in special:
        raise UserError(
            f"tokenizer {str(tokenizer_dir)!r} has the end-of-text token {end_of_text!r}, which is no special "
            "token of its vocabulary; set eos_token in its tokenizer_config.json"
        )
    return tokenizer, special[end_of_text]


def encode(
    screened: Path,
    kept: np.ndarray,
    target: Path,
    encode_batch: EncodeBatch,
    dtype: np.dtype,
    end_of_text: int,
    fim_rate: float,
    fim_tokens: FimTokens | None,
) -> None:
    """Write the tokens of a shard's documents that stay, a folder with a file a split.

    Args:
        screened: what the first stage wrote for the shard.
        kept: which of its documents stay, `(num_documents,)`, bool.
        target: the folder; it is there when it is whole.
        encode_batch: see `batch_encoder`.
        dtype: of token ids in files.
        end_of_text: the token that begins each document.
        fim_rate: share of the training documents that are cut to be filled in the middle.
        fim_tokens: that mark their parts; None for a rate of 0.
    """
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    unfinished.mkdir()
    totals = {name: Totals() for name in SPLITS}
    files = {name: open(unfinished / f"{name}.bin", "wb") for name in SPLITS}
    document = 0
    columns = ["project", "license", "text", "digest", "is_held_out"]
    file_of_texts = pq.ParquetFile(screened)
    for number in range(file_of_texts.num_row_groups):  # each a few megabytes
        group = file_of_texts.read_row_group(number, columns)
        rows = [
            row for row, stays in zip(group.to_pylist(), kept[document : document + len(group)], strict=True) if stays
        ]
        document += len(group)
        for name in SPLITS:
            own = [row for row in rows if row["is_held_out"] == (name == "held_out")]
            digests = [row["digest"] for row in own]
            rate = fim_rate if name == "train" else 0.0
            texts = [row["text"] for row in own]
            ids = np.array(encode_documents(encode_batch, texts, digests, end_of_text, rate, tokens=fim_tokens), dtype)
            files[name].write(ids.tobytes())
            # the text of a special token is text: the token itself begins documents, and nothing else
            num_tokens = np.diff(np.flatnonzero(ids == end_of_text), append=len(ids))
            _add(totals[name], own, digests, num_tokens.tolist())
    for file in files.values():
        file.close()
    (unfinished / "totals.json").write_text(json.dumps({name: vars(total) for name, total in totals.items()}))
    try:
        os.replace(unfinished, target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(unfinished)  # another process was faster, and has made the same


def _add(total: Totals, rows: Sequence[dict], digests: Sequence[bytes], num_tokens: Sequence[int]) -> None:
    total.documents += len(rows)
    total.bytes += sum(len(row["text"].encode()) for row in rows)
    total.tokens += sum(num_tokens)
    total.digests += b"".join(digests).hex()
    projects, licenses = Counter(total.projects), Counter(total.licenses)
    for row, number in zip(rows, num_tokens, strict=True):
        projects[row["project"]] += number
        licenses[row["license"]] += 1
    total.projects, total.licenses = dict(projects), dict(licenses)


def join(encoded: Sequence[Path], folder: Path) -> dict[str, dict]:
    """Write train.bin and held_out.bin from shards' folders, in order; returns the `Totals` of each split as dicts.

    Of the digests only their hash is left, and of the projects the largest ones.
    """
    totals = [json.loads((part / "totals.json").read_text()) for part in encoded]
    joined = {}
    for name in SPLITS:
        with open(folder / f"{name}.bin", "wb") as file:
            for part in encoded:
                with open(part / f"{name}.bin", "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
        own = [total[name] for total in totals]
        hashed = blake2b(digest_size=16)
        for total in own:
            hashed.update(bytes.fromhex(total["digests"]))
        joined[name] = {
            **{key: sum(total[key] for total in own) for key in ("documents", "bytes", "tokens")},
            "digest": hashed.hexdigest(),
            "projects": dict(sum((Counter(total["projects"]) for total in own), Counter()).most_common(NUM_PROJECTS)),
            "licenses": dict(sum((Counter(total["licenses"]) for total in own), Counter()).most_common()),
        }
    return joined
