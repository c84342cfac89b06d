"""Bits per byte of source files under a causal language model.

Each file stands alone, after an end-of-text token, and is read through overlapping windows: of every window but a
file's first only the second half is scored, so that each token is scored once, with at least half a window before it.
"""

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from llama_code.errors import UserError
from llama_code.evaluation.sampling import context_length
from llama_code.evaluation.vocabulary import Vocabulary

MAX_WINDOW = 2048
BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
LOSS_CHUNK = 1024


class Window(NamedTuple):
    """A stretch of one file that the model reads at once.

    Attributes:
        ids: its tokens.
        first_scored: the position in `ids` from which on tokens are scored, each given those before it.
    """

    ids: list[int]
    first_scored: int


def windows(ids: Sequence[int], size: int) -> Iterator[Window]:
    """Cut a file into windows of at most `size` tokens, each half a window after the one before.

    Args:
        ids: the token that begins a document, which is not scored, then the file's tokens.
        size: an even number of tokens.
    """
    end = 1
    for start in range(0, len(ids), size // 2):
        if end >= len(ids):
            return
        yield Window(list(ids[start : start + size]), end - start)
        end = start + size


def select_documents(documents: Iterable[tuple[str, str]], limit: int | None) -> list[tuple[str, str]]:
    """Return all `(path, text)`, or the `limit` whose paths have the smallest BLAKE2b hash, whatever their order."""

    def path_hash(document: tuple[str, str]) -> bytes:
        return hashlib.blake2b(document[0].encode("utf-8", "surrogateescape")).digest()

    return list(documents) if limit is None else heapq.nsmallest(limit, documents, key=path_hash)


def documents_hash(documents: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the sorted SHA-256 hashes of the texts: the same for the same texts in any order and place."""
    hashes = sorted(hashlib.sha256(text.encode()).digest() for _, text in documents)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


@torch.inference_mode()
def perplexity(model: PreTrainedModel, vocabulary: Vocabulary, documents: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Score files.

    Args:
        model: a causal language model in eval mode.
        vocabulary: of the model's tokenizer.
        documents: `(path, text)` of each file.

    Returns:
        `bits_per_byte` (summed bits over UTF-8 bytes), `bytes_per_token`, `num_files`, `num_bytes`, `num_tokens`
        (those scored), `window` and `stride` in tokens, and `data_hash`.

    Raises:
        UserError: there is nothing to score.
    """
    num_bytes = sum(len(text.encode()) for _, text in documents)
    if num_bytes == 0:
        raise UserError(
            f"perplexity has {len(documents)} held-out files with 0 bytes and needs at least one that is not empty; "
            "give another --dataset"
        )
    size = min(context_length(model) or MAX_WINDOW, MAX_WINDOW) // 2 * 2
    encoded = vocabulary.encode([text for _, text in documents])
    for (path, text), ids in zip(documents, encoded, strict=True):
        vocabulary.check_spelling(text, ids, path)
    cut = [window for ids in encoded for window in windows([vocabulary.start_id, *ids], size)]
    bits = 0.0
    num_read = sum(len(window.ids) for window in cut)
    with tqdm(total=num_read, desc="perplexity", unit="token", unit_scale=True) as progress:
        for batch in batches(cut, BATCH_TOKENS.get(model.device.type, MAX_WINDOW)):
            bits += batch_bits(model, batch)
            progress.update(sum(len(window.ids) for window in batch))
    if not math.isfinite(bits):
        raise UserError(
            f"perplexity came out as {bits} bits: the model's weights are not finite; give another checkpoint"
        )
    num_tokens = sum(len(ids) for ids in encoded)
    return {
        "bits_per_byte": bits / num_bytes,
        "bytes_per_token": num_bytes / num_tokens,
        "num_files": len(documents),
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "window": size,
        "stride": size // 2,
        "data_hash": documents_hash(documents),
    }


def batches(cut: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Group windows of like length, longest first, so that a padded batch has at most `batch_tokens` (or one row)."""
    batch: list[Window] = []
    for window in sorted(cut, key=lambda window: len(window.ids), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def batch_bits(model: PreTrainedModel, batch: Sequence[Window]) -> float:
    """Return the summed bits of the scored tokens of a batch of windows, longest first."""
    width = len(batch[0].ids)
    # Padding stands on the right, where causal attention keeps it out of sight: no mask is needed.
    ids = torch.tensor([window.ids + [0] * (width - len(window.ids)) for window in batch], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    nats = 0.0
    for row, window in enumerate(batch):
        targets = ids[row, window.first_scored : len(window.ids)]
        predictions = logits[row, window.first_scored - 1 : len(window.ids) - 1]
        for chunk, chunk_targets in zip(predictions.split(LOSS_CHUNK), targets.split(LOSS_CHUNK), strict=True):
            losses = F.cross_entropy(chunk.float(), chunk_targets, reduction="none")
            nats += losses.cpu().double().sum().item()  # not every device has fp64
    return nats / math.log(2)
