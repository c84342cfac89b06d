"""The second stage, over all shards at once: which documents stay when copies and near-duplicates go."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llama_code.atomic import unfinished
from llama_code.data.near_dedup import NUM_PERMUTATIONS, near_duplicates
from llama_code.data.screen import DUPLICATE, Counts, stack_signatures, write_counts

NEAR_DUPLICATE = "near-duplicate"
PAIRS_FILE = "near_duplicates.jsonl"


def select(screened: Sequence[Path], num_lent: int, near_dedup: bool, folder: Path) -> None:
    """Write which documents stay: `kept.npy`, one bool a document in the order of the shards, and `kept.json`; in
    `offsets.npy` the number of the first document of each shard, and of all.

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
    held_out = np.concatenate([column(path, "is_held_out").to_numpy(zero_copy_only=False) for path in screened])
    kept[_first_of_each(screened, held_out)] = True
    twins: dict[int, int] = {}
    if near_dedup and len(kept):
        candidates = np.flatnonzero(kept)
        table = _signature_table(screened, kept, folder / f"signatures.{uuid.uuid4().hex}")
        found = near_duplicates(table, held_out[candidates])
        twins = {int(candidates[i]): int(candidates[other]) for i, other in found.items()}
    _count(screened, sizes, kept, twins, sum(sizes[:num_lent]), counts, folder / PAIRS_FILE)
    kept[list(twins)] = False
    write_array(np.cumsum([0, *sizes]), folder / "offsets.npy")
    write_counts(counts, folder / "kept.json")
    write_array(kept, folder / "kept.npy")


def write_array(array: np.ndarray, path: Path) -> None:
    """Write an array at once: it is whole or not there."""
    with unfinished(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def column(screened: Path, name: str) -> Any:
    """A column of what the first stage wrote for a shard, as an array of pyarrow's."""
    return pq.read_table(screened, columns=[name])[0].combine_chunks()


def _first_of_each(screened: Sequence[Path], held_out: np.ndarray) -> np.ndarray:
    """Return the indices of the documents whose digest none before them has; held-out ones come before all others."""
    digests = b"".join(b"".join(column(path, "digest").to_pylist()) for path in screened)
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    # stable: where digest and split are equal, the order of documents decides
    order = np.lexsort((~held_out, halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    is_first = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)][: len(order)]
    return np.asarray(order[is_first])


def _signature_table(screened: Sequence[Path], kept: np.ndarray, path: Path) -> np.ndarray:
    """Return the signatures of the kept documents, memory-mapped from a file that has no name any more."""
    document = 0
    with open(path, "wb") as file:  # written and not mapped: a full disk is an error then, and no signal
        for shard in screened:
            for group in pq.ParquetFile(shard).iter_batches(columns=["signature"]):
                stack_signatures(group[0])[kept[document : document + len(group)]].tofile(file)
                document += len(group)
    table = np.memmap(path, np.uint32, "r", shape=(int(kept.sum()), NUM_PERMUTATIONS))
    path.unlink()
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
