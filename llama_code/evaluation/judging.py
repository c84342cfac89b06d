"""Judging a benchmark's samples, and what is told of them beside pass@k."""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_code.errors import UserError
from llama_code.evaluation.code_eval import code_eval
from llama_code.evaluation.metrics import proportion, score_problems, summarize
from llama_code.evaluation.partial import each_alone
from llama_code.evaluation.records import append_records
from llama_code.evaluation.samples import Samples, completion_hash
from llama_code.evaluation.structure import Corpus, complexity, describe, summarize_structure
from llama_code.evaluation.tasks import Benchmark
from llama_code.judge.task import Verdict

Record = dict[str, Any]
# Programs that ran to their tests' verdict without passing may yet pass one of the tests.
RAN = ("wrong answer", "exception")
TERCILES = ("simplest", "middle", "most complex")


def judge_samples(
    benchmark: Benchmark, samples: Samples, level: str, path: Path, judged: Iterable[Record]
) -> list[Record]:
    """Judge every sample that has no verdict yet, and append each verdict to a file as it comes.

    Args:
        benchmark: that the samples belong to.
        samples: completions by task id.
        level: how programs are isolated.
        path: of verdicts.jsonl.
        judged: the records that the file has.

    Returns:
        A record of each verdict in the order of the benchmark: `task_id`, `sample` (its number among those of its
        problem), `completion_hash`, `passed`, `reason`, `detail`, `seconds`.

    Raises:
        UserError: the file has a verdict on a sample that there is not, or that is another one now.
    """
    order = [(name, i) for name in benchmark.problems if name in samples for i in range(len(samples[name]))]
    known = {(record["task_id"], record["sample"]): record for record in judged}
    drawn = set(order)
    if alien := [key for key in known if key[0] in benchmark.problems and key not in drawn]:
        raise UserError(
            f"{str(path)!r} has a verdict on sample {alien[0][1]} of {alien[0][0]}, which samples.jsonl lacks; move "
            "the folder away or name another --output_dir"
        )
    for name, number in order:
        record = known.get((name, number))
        if record is not None and record["completion_hash"] != completion_hash(samples[name][number]):
            raise UserError(
                f"{str(path)!r} has a verdict on another sample {number} of {name} than samples.jsonl holds; move the "
                "folder away or name another --output_dir"
            )
    todo = [key for key in order if key not in known]
    with tqdm(total=len(order), initial=len(order) - len(todo), desc="judging", unit="sample") as progress:

        def keep(index: int, verdict: Verdict) -> None:
            name, number = todo[index]
            seconds = round(verdict.seconds, 4)
            known[todo[index]] = {
                "task_id": name,
                "sample": number,
                "completion_hash": completion_hash(samples[name][number]),
                **verdict._asdict(),
                "seconds": seconds,
            }
            append_records(path, [known[todo[index]]])
            progress.update()

        programs = [benchmark.program(benchmark.problems[name], samples[name][i]) for name, i in todo]
        run_programs(benchmark, [name for name, _ in todo], programs, level, keep)
    return [known[key] for key in order]


def run_programs(
    benchmark: Benchmark, names: Sequence[str], programs: Sequence[str], level: str, on_verdict: Any = lambda *_: None
) -> list[dict[str, Any]]:
    """Judge programs against the tests of the problems of these names; returns code_eval's results in order."""
    if not programs:
        return []
    _, results = code_eval(
        [[program] for program in programs],
        [benchmark.problems[name].tests for name in names],
        k=1,
        timeout=benchmark.timeout,
        level=level,
        on_verdict=on_verdict,
    )
    return [samples[0][1] for samples in results.values()]


def summarize_records(records: Sequence[Record], ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Return a benchmark's scores: pass@k with intervals, the share of passing samples with its bound, the reasons."""
    passed: dict[str, list[bool]] = {}
    for record in records:
        passed.setdefault(record["task_id"], []).append(record["passed"])
    num_passed = sum(map(sum, passed.values()))
    return summarize(score_problems(passed, ks), seed) | {
        "task_ids": list(passed),
        "num_problems": len(passed),
        "num_samples": min(map(len, passed.values())),
        "num_completions": len(records),
        "num_passed": num_passed,
        "sample_pass_rate": proportion(num_passed, len(records)),
        "reasons": dict(Counter(record["reason"] for record in records).most_common()),
        "errors": dict(Counter(filter(None, map(error_class, records))).most_common()),
    }


def error_class(record: Record) -> str | None:
    """The name of the exception that ended a program, None where none did."""
    if record["reason"] not in ("exception", "syntax error", "forbidden", "memory"):
        return None
    match = re.match(r"(?:case \d+: )?(\w+)", record["detail"])
    return match.group(1) if match else None


def quality(
    benchmark: Benchmark, samples: Samples, records: Sequence[Record], level: str, corpus: Corpus | None
) -> dict[str, Any]:
    """Describe what was written, whether or not it passes.

    Args:
        benchmark: that the samples belong to.
        samples: completions by task id.
        records: verdicts, one a sample.
        level: how programs are isolated.
        corpus: text that the model may have been trained on; None where there is none to compare with.

    Returns:
        `structure` (see `summarize_structure`); `pass_any`: the share that passes at least one test;
        `copied_from_corpus`: the mean share of characters in long runs that the corpus has; `reference`: how many of
        the benchmark's own solutions pass, and the median ratio of a passing sample's time to its solution's.
    """
    described = []
    copied = []
    for record in records:
        problem = benchmark.problems[record["task_id"]]
        completion = samples[record["task_id"]][record["sample"]]
        described.append(describe(benchmark.program(problem, completion), completion, problem.prompt))
        if corpus is not None:
            copied.append(corpus.copied(completion))
    result = {
        "structure": summarize_structure(described, [record["reason"] for record in records]),
        "pass_any": pass_any(benchmark, samples, records, level),
        "reference": compare_with_solutions(benchmark, records, level),
    }
    return result | ({"copied_from_corpus": statistics.fmean(copied)} if copied else {})


def pass_any(benchmark: Benchmark, samples: Samples, records: Sequence[Record], level: str) -> float:
    """Return the share of samples that pass at least one test."""
    failing = [record for record in records if record["reason"] in RAN]
    programs, tests, owners = [], [], []
    for owner, record in enumerate(failing):
        problem = benchmark.problems[record["task_id"]]
        program = benchmark.program(problem, samples[record["task_id"]][record["sample"]])
        for test in each_alone(problem.tests):
            programs.append([program])
            tests.append(test)
            owners.append(owner)
    partly = set()
    if programs:
        with tqdm(total=len(programs), desc="single tests", unit="run") as progress:
            _, results = code_eval(
                programs, tests, k=1, timeout=benchmark.timeout, level=level, on_verdict=lambda *_: progress.update()
            )
        partly = {owner for owner, runs in zip(owners, results.values(), strict=True) if runs[0][1]["passed"]}
    return (sum(record["passed"] for record in records) + len(partly)) / len(records)


def compare_with_solutions(benchmark: Benchmark, records: Sequence[Record], level: str) -> dict[str, Any]:
    """Judge the benchmark's own solutions and compare the time of passing samples with theirs."""
    names = list(dict.fromkeys(record["task_id"] for record in records))
    solved = {name: solution for name in names if (solution := benchmark.problems[name].solution) is not None}
    programs = [benchmark.program(benchmark.problems[name], solution) for name, solution in solved.items()]
    results = dict(zip(solved, run_programs(benchmark, list(solved), programs, level), strict=True))
    ratios = [
        record["seconds"] / results[record["task_id"]]["seconds"]
        for record in records
        if record["passed"] and record["task_id"] in results
    ]
    return {
        "solutions": len(results),
        "passed": sum(result["passed"] for result in results.values()),
        "seconds_ratio": statistics.median(ratios) if ratios else None,
    }


def by_complexity(benchmark: Benchmark, records: Sequence[Record], ks: Sequence[int]) -> dict[str, Any] | None:
    """Return pass@k over thirds of the problems by the cyclomatic complexity of their solutions.

    Problems of equal complexity stay in the order of the benchmark. None where solutions are unknown, or fewer than
    three.
    """
    passed: dict[str, list[bool]] = {}
    for record in records:
        passed.setdefault(record["task_id"], []).append(record["passed"])
    rated = []
    for name in passed:
        problem = benchmark.problems[name]
        value = None if problem.solution is None else complexity(benchmark.program(problem, problem.solution))
        if value is not None:
            rated.append((value, name))
    if len(rated) < len(TERCILES):
        return None
    rated.sort(key=lambda pair: pair[0])
    thirds = {}
    for label, part in zip(TERCILES, np.array_split(np.arange(len(rated)), len(TERCILES)), strict=True):
        chosen = [rated[i] for i in part]
        scores = score_problems({name: passed[name] for _, name in chosen}, ks)
        means: Mapping[str, float] = {key: float(np.mean(values)) for key, values in scores.items()}
        thirds[label] = {"complexity": [chosen[0][0], chosen[-1][0]], "num_problems": len(chosen), **means}
    return thirds
