"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing, over runs of five words.

Threshold and shingles are those of The Stack v2 and StarCoder2 (Lozhkov et al. 2024): Jaccard similarity 0.7. Of two
similar documents the earlier one stays. What a document is compared with has stayed itself, so no chain of small
differences removes what is unlike all that stays, as the connected components of other tools can.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

from llama_code.data.shingles import run_hashes

RUN_LENGTH = 5
NUM_PERMUTATIONS = 256
# A pair of similarity s shares a band with probability 1 - (1 - s**8)**32: 0.85 at 0.7, 0.997 at 0.8, 0.12 at 0.5.
NUM_BANDS = 32
THRESHOLD = 0.7
# The estimate of a short document's similarity is coarse, and boilerplate is all that it has.
MIN_RUNS = 10
# Boilerplate puts many unlike documents in one bucket; each is compared with the first ones of each of its 32 buckets.
MAX_BUCKET = 64
_SEED = 1


def signatures(words: Sequence[np.ndarray]) -> np.ndarray:
    """Return the MinHash signatures of documents.

    Args:
        words: `word_hashes` of each document.

    Returns:
        `(num_documents, NUM_PERMUTATIONS)`, uint32. Documents with fewer than `MIN_RUNS` runs of words have rows of
        the largest value; they are like no other document.
    """
    runs = [run_hashes(of_one, RUN_LENGTH) for of_one in words]
    found = np.full((len(runs), NUM_PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    long = [i for i, of_one in enumerate(runs) if len(of_one) >= MIN_RUNS]
    if long:
        offsets = np.cumsum([0] + [len(runs[i]) for i in long]).astype(np.uint64)
        flat = np.concatenate([runs[i] for i in long])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, NUM_PERMUTATIONS, _SEED)
        found[long] = np.array(matrix.to_rows(), np.uint32)
    return found


def similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimate the Jaccard similarity of one document to others from `(NUM_PERMUTATIONS,)` and `(n, ...)` values."""
    return np.asarray((others == one).mean(axis=1))


def near_duplicates(table: np.ndarray, kept: np.ndarray) -> dict[int, int]:
    """Return which documents are near-duplicates, each with the earlier one that it is like.

    Args:
        table: signatures in the order in which documents take precedence, `(num_documents, NUM_PERMUTATIONS)`, uint32;
            may be memory-mapped.
        kept: documents that stay whatever they are like, `(num_documents,)`, bool. They take precedence as the others.

    Returns:
        By the index of each document that goes the index of one that stays.
    """
    buckets_of = _shared_buckets(table)
    members: defaultdict[int, list[int]] = defaultdict(list)
    duplicates: dict[int, int] = {}
    for document in sorted(buckets_of, key=lambda i: (not kept[i], i)):
        buckets = buckets_of[document]
        if not kept[document]:
            candidates = sorted({other for bucket in buckets for other in members[bucket]})
            if candidates:
                estimates = similarity(table[document], table[candidates])
                best = int(estimates.argmax())
                if estimates[best] >= THRESHOLD:
                    duplicates[document] = candidates[best]
                    continue
        for bucket in buckets:
            if len(members[bucket]) < MAX_BUCKET:
                members[bucket].append(document)
    return duplicates


def _shared_buckets(table: np.ndarray) -> dict[int, list[int]]:
    """Return the buckets of each document that shares one; one band after the other, so that memory stays small."""
    width = NUM_PERMUTATIONS // NUM_BANDS
    long = np.flatnonzero(table[:, 0] != np.iinfo(np.uint32).max)
    shared: defaultdict[int, list[int]] = defaultdict(list)
    num_buckets = 0
    for band in range(NUM_BANDS):
        keys = _row_hashes(table[long, band * width : (band + 1) * width])
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0]) if len(keys) else np.zeros(0, int)
        ends = np.r_[starts[1:], len(keys)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            for i in order[start:end]:
                shared[int(long[i])].append(num_buckets)
            num_buckets += 1
    return dict(shared)


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """Return a hash of each row: `(num_rows,)`, uint64."""
    # the runs of a row's length that begin where a row begins
    return run_hashes(rows.reshape(-1).astype(np.uint64), rows.shape[1])[:: rows.shape[1]]
