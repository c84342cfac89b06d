"""Pass rates that a fixed number of samples is too coarse for: sampling until a problem is solved.

Hu et al. 2024, "Predicting Emergent Abilities with Infinite Resolution Evaluation": a problem that one sample in 500
solves counts 0 after 20 samples nearly always; the number of samples up to the r-th success tells its rate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_code.evaluation.judging import Record, judge_samples
from llama_code.evaluation.metrics import confidence_interval
from llama_code.evaluation.records import SAMPLE, VERDICT, append_records, take_up
from llama_code.evaluation.samples import Samples, numbered, sample_record
from llama_code.evaluation.sampling import Sample
from llama_code.evaluation.tasks import Benchmark

# Yields samples of problems with these numbers.
Draw = Callable[[Mapping[str, Iterable[int]]], Iterator[Sample]]


def success_rate(passed: Sequence[bool], successes: int) -> float:
    """Estimate the rate at which samples pass, from verdicts in the order of drawing.

    Where the r-th success is the n-th sample, (r - 1) / (n - 1), which is unbiased (Haldane 1945), and 1 / n for
    r = 1, which is too high in the mean; where there were fewer, their share of all.
    """
    if sum(passed) < successes:
        return sum(passed) / len(passed)
    places = [n for n, is_passed in enumerate(passed, start=1) if is_passed]
    n = places[successes - 1]
    return 1 / n if successes == 1 else (successes - 1) / (n - 1)


def pass_until(
    benchmark: Benchmark,
    samples: Samples,
    judged: Sequence[Record],
    draw: Draw,
    level: str,
    folder: Path,
    *,
    successes: int,
    max_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Draw more samples of unsolved problems, twice as many each time, and estimate pass rates.

    The samples go to samples_until.jsonl, their verdicts to verdicts_until.jsonl: a cut-off run goes on there.

    Args:
        benchmark: that the samples belong to.
        samples: completions by task id, which are judged.
        judged: the verdicts on them.
        draw: draws samples by number.
        level: how programs are isolated.
        folder: for the files.
        successes: how many end a problem.
        max_samples: how many samples end it at the latest.
        seed: of the bootstrap.

    Returns:
        `rate` (the mean of the problems' estimates), `ci95` (by bootstrap over problems), `rates` by task id,
        `num_samples` drawn by task id, `num_reached` (problems with enough successes), `successes`, `max_samples`.
    """
    samples_path, verdicts_path = folder / "samples_until.jsonl", folder / "verdicts_until.jsonl"
    drawn = numbered(take_up(samples_path, SAMPLE))
    known = {(record["task_id"], record["sample"]): record for record in take_up(verdicts_path, VERDICT)}
    completions = {name: list(samples[name]) for name in dict.fromkeys(record["task_id"] for record in judged)}
    known |= {(record["task_id"], record["sample"]): record for record in judged}
    while True:
        passed = {
            name: [known[name, number]["passed"] for number in range(len(own))] for name, own in completions.items()
        }
        wanted = {
            name: range(len(verdicts), min(2 * len(verdicts), max_samples))
            for name, verdicts in passed.items()
            if sum(verdicts) < successes and len(verdicts) < max_samples
        }
        if not wanted:
            break
        missing = {name: [n for n in numbers if (name, n) not in drawn] for name, numbers in wanted.items()}
        for sample in draw(missing):
            record = sample_record(sample)
            append_records(samples_path, [record])
            drawn[sample.name, sample.number] = record
        for name, numbers in wanted.items():
            completions[name] += [drawn[name, n]["completion"] for n in numbers]
        open_ones = {name: completions[name] for name in wanted}
        earlier = [record for key, record in known.items() if key[0] in wanted and key[1] < len(completions[key[0]])]
        for record in judge_samples(benchmark, open_ones, level, verdicts_path, earlier):
            known[record["task_id"], record["sample"]] = record
    rates = {name: success_rate(verdicts, successes) for name, verdicts in passed.items()}
    return {
        "rate": sum(rates.values()) / len(rates),
        "ci95": confidence_interval(list(rates.values()), seed),
        "rates": rates,
        "num_samples": {name: len(verdicts) for name, verdicts in passed.items()},
        "num_reached": sum(sum(verdicts) >= successes for verdicts in passed.values()),
        "successes": successes,
        "max_samples": max_samples,
    }
