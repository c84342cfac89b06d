"""The second stage, over all shards at once: which documents stay when copies and near-duplicates go."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llama_code.data.near_dedup import NUM_PERMUTATIONS, near_duplicates
from llama_code.data.screen import DUPLICATE, Counts, stack_signatures, write_counts

NEAR_DUPLICATE = "near-duplicate"
PAIRS_FILE = "near_duplicates.jsonl"


def select(screened: Sequence[Path], num_lent: int, near_dedup: bool, folder: Path) -> None:
    """Write which documents stay: `kept.npy`, one bool a document in the order of the shards, and `kept.json`.

    Of equal documents the first one stays, in the order of the shards; of nearly equal ones too, but what is held out
    stays whatever it is like, and takes precedence: nothing like it is trained on.

    Args:
        screened: what the first stage wrote for each shard.
        num_lent: so many shards at the beginning are no part of the source: they hold text that must not be trained
            on, and are not counted.
        near_dedup: drop near-duplicates as well as copies.
        folder: for the results.
    """
    counts = Counts()
    sizes = [pq.read_metadata(path).num_rows for path in screened]
    kept = np.zeros(sum(sizes), bool)
    kept[_first_of_each(screened)] = True
    twins: dict[int, int] = {}
    if near_dedup and len(kept):
        candidates = np.flatnonzero(kept)
        held_out = np.concatenate([pq.read_table(path, columns=["is_held_out"])[0].to_numpy() for path in screened])
        table = _signature_table(screened, kept, folder / f"signatures.{os.getpid()}.npy")
        found = near_duplicates(table, held_out[candidates].astype(bool))
        twins = {int(candidates[i]): int(candidates[other]) for i, other in found.items()}
    _count(screened, sizes, kept, twins, sum(sizes[:num_lent]), counts, folder / PAIRS_FILE)
    kept[list(twins)] = False
    unfinished = folder / f"kept.{os.getpid()}.tmp"
    with open(unfinished, "wb") as file:
        np.save(file, kept)
    write_counts(counts, folder / "kept.json")
    os.replace(unfinished, folder / "kept.npy")


def _first_of_each(screened: Sequence[Path]) -> np.ndarray:
    """Return the indices of the documents whose digest no earlier one has."""
    digests = b"".join(b"".join(pq.read_table(path, columns=["digest"])[0].to_pylist()) for path in screened)
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal digests stay in the order of documents
    ordered = halves[order]
    is_first = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)][: len(order)]
    return np.asarray(order[is_first])


def _signature_table(screened: Sequence[Path], kept: np.ndarray, path: Path) -> np.ndarray:
    """Return the signatures of the kept documents, memory-mapped from a file that has no name any more."""
    shape = (int(kept.sum()), NUM_PERMUTATIONS)
    table = np.lib.format.open_memmap(path, "w+", np.uint32, shape)
    path.unlink()
    start = document = 0
    for shard in screened:
        for group in pq.ParquetFile(shard).iter_batches(columns=["signature"]):
            rows = stack_signatures(group[0])[kept[document : document + len(group)]]
            table[start : start + len(rows)] = rows
            start += len(rows)
            document += len(group)
    return table


def _count(
    screened: Sequence[Path],
    sizes: Sequence[int],
    kept: np.ndarray,
    twins: dict[int, int],
    num_lent: int,
    counts: Counts,
    pairs_file: Path,
) -> None:
    names: dict[int, str] = {}
    wanted = {*twins, *twins.values()}
    first = 0
    for path, size in zip(screened, sizes, strict=True):
        table = pq.read_table(path, columns=["project", "path", "bytes"])
        for i, row in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), first):
            project, name, num_bytes = row
            if i in wanted:
                names[i] = f"{project}: {name}" if project else name
            if i >= num_lent and (i in twins or not kept[i]):
                counts.drop(NEAR_DUPLICATE if i in twins else DUPLICATE, name, num_bytes)
        first += size
    with open(pairs_file, "w", encoding="utf-8") as file:
        for i, other in sorted(twins.items()):
            file.write(json.dumps({"dropped": names[i], "like": names[other]}) + "\n")
