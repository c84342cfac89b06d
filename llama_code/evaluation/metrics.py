"""pass@k, its uncertainty, and its mean over benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

NUM_RESAMPLES = 10_000


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct (Chen et al. 2021, eq. 1).

    Equals 1 - C(n - c, k) / C(n, k), as a product that neither overflows nor cancels.

    Args:
        num_samples: n, samples of the problem.
        num_correct: c, how many of them are correct.
        k: at most n.

    Raises:
        ValueError: k is above n, where there is no unbiased estimate.
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem and one has {num_samples}; lower k")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))


def score_problems(passed: Mapping[str, Sequence[bool]], ks: Sequence[int]) -> dict[str, list[float]]:
    """Return pass@k of every problem, by `pass@k`; `passed` holds the verdicts of a problem's samples by task id."""
    return {f"pass@{k}": [pass_at_k(len(verdicts), sum(verdicts), k) for verdicts in passed.values()] for k in ks}


def confidence_interval(scores: Sequence[float], seed: int) -> list[float]:
    """95% percentile bootstrap interval `[low, high]` of the mean, by resampling problems."""
    values = np.asarray(scores)
    chosen = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[chosen].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def proportion(num_passed: int, num_samples: int) -> dict[str, Any]:
    """Return the share of samples that pass, `rate`, and its 95% interval `ci95` (Clopper and Pearson 1934).

    For none or all it is the one-sided bound: "0 of 3,280" says that the rate is below 0.09%. Samples of one problem
    count as independent, which they are given the problem.
    """
    test = binomtest(num_passed, num_samples)
    one_sided = num_passed in (0, num_samples)
    interval = test.proportion_ci(0.90 if one_sided else 0.95, method="exact")
    return {"rate": num_passed / num_samples, "ci95": [float(interval.low), float(interval.high)]}


def summarize(scores: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    """Return the mean of each score over the problems and, under `ci95`, its interval."""
    means: dict[str, Any] = {name: float(np.mean(values)) for name, values in scores.items()}
    return means | {"ci95": {name: confidence_interval(values, seed) for name, values in scores.items()}}


def aggregate(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Average pass@k over benchmarks: each benchmark alike, and each problem alike.

    Args:
        tasks: results by task; those without pass@k (perplexity) do not count, nor mbpp-full beside its part mbpp.
    """
    judged = {name: result for name, result in tasks.items() if "ci95" in result}
    if "mbpp" in judged:
        judged.pop("mbpp-full", None)
    names = sorted({name for result in judged.values() for name in result["ci95"]}, key=lambda name: int(name[5:]))
    over_tasks, over_problems = {}, {}
    for name in names:
        values = [result[name] for result in judged.values()]
        sizes = [result["num_problems"] for result in judged.values()]
        over_tasks[name] = float(np.mean(values))
        over_problems[name] = float(np.average(values, weights=sizes))
    return {"tasks": list(judged), "mean_over_tasks": over_tasks, "mean_over_problems": over_problems}
