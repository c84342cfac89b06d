"""The metric in Hugging Face's interface: its own examples, the closed form, and arguments that cannot be used."""

import itertools
import sys

import evaluate
import numpy as np
import pytest

from llama_code.evaluation.code_eval import code_eval

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")

RIGHT, WRONG, LOOP = "def add(a,b): return a+b", "def add(a, b): return a*b", "def add(a,b):\n while True: pass"


@pytest.fixture(scope="module")
def metric():
    return evaluate.load("metrics/code_eval")


def test_the_example_of_hugging_faces_card(metric):
    """Two candidates of which one is right: pass@1 0.5, pass@2 1.0."""
    pass_at_k, results = metric.compute(references=["assert add(2,3)==5"], predictions=[[WRONG, RIGHT]], k=[1, 2])
    assert pass_at_k == {"pass@1": 0.5, "pass@2": 1.0}
    assert results[0][0][0] == 0 and results[0][1][0] == 1
    wrong, right = results[0][0][1], results[0][1][1]
    assert right["result"] == "passed" and right["passed"] is True
    assert (wrong["task_id"], wrong["completion_id"], wrong["passed"]) == (0, 0, False)
    assert wrong["result"] == "failed: assert add(2,3)==5" and wrong["reason"] == "wrong answer"
    assert 0 < right["seconds"] < 3


def test_options_are_passed_on(metric):
    pass_at_k, results = metric.compute(
        references=["assert add(2,3)==5"], predictions=[[LOOP]], k=1, num_workers=1, timeout=0.5
    )
    assert pass_at_k == {"pass@1": 0.0}
    assert results[0][0][1]["result"] == "timed out" and results[0][0][1]["seconds"] < 1


def test_batches_that_were_added_count(metric):
    metric.add_batch(predictions=[[RIGHT]], references=["assert add(2, 3) == 5"])
    metric.add(prediction=[WRONG], reference="assert add(2, 3) == 5")
    pass_at_k, results = metric.compute()
    assert pass_at_k == {"pass@1": 0.5} and len(results) == 2


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    """Chen et al. 2021, eq. 1 against the enumeration of all subsets."""
    passed = [True, False, False, True, False]
    programs = [RIGHT if right else WRONG for right in passed]
    pass_at_k, _ = code_eval([programs, [WRONG] * 5], ["assert add(2, 3) == 5"] * 2, k=[1, 2, 3, 5])
    for k in (1, 2, 3, 5):
        share = np.mean([any(draw) for draw in itertools.combinations(passed, k)])
        assert pass_at_k[f"pass@{k}"] == pytest.approx(share / 2)


def test_default_k_are_those_that_every_problem_has_samples_for():
    pass_at_k, _ = code_eval([[RIGHT] * 10, [RIGHT] * 12], ["assert add(2, 3) == 5"] * 2)
    assert pass_at_k == {"pass@1": 1.0, "pass@10": 1.0}


@pytest.mark.parametrize("k", [range(1, 3), np.array([1, 2]), (1, np.int64(2))], ids=str)
def test_k_may_be_any_whole_numbers(k):
    pass_at_k, _ = code_eval([[RIGHT] * 2], ["assert add(2, 3) == 5"], k=k)
    assert pass_at_k == {"pass@1": 1.0, "pass@2": 1.0}


def test_odd_programs_lose_nothing(metric):
    odd = ["", "x = '\ud800'", "\0", "1" * 10**6 + "x", "(" * 10**5, RIGHT]
    _, results = metric.compute(references=["assert add(2,3)==5"], predictions=[odd], k=1)
    assert [result["passed"] for _, result in results[0]] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": []}, "predictions is empty"),
        ({"predictions": RIGHT}, "predictions is a str and must be a list"),
        ({"predictions": [RIGHT]}, r"predictions\[0\] must be a list of programs, each a string; wrap"),
        ({"predictions": [[1]]}, r"predictions\[0\] must be a list of programs"),
        ({"predictions": [[]]}, r"predictions\[0\] is empty, and every problem needs a sample"),
        ({"references": ["pass", "pass"]}, "1 predictions and 2 references"),
        ({"references": [5]}, r"references\[0\] is a int and must be test text"),
        ({"references": ["assert ("]}, r"references\[0\] is no Python \(SyntaxError"),
        ({"references": ["x = '\ud800'"]}, r"references\[0\] is no Python \(UnicodeEncodeError"),
        ({"k": []}, "k is empty"),
        ({"k": 0}, "k is 0 and must be a whole number of at least 1"),
        ({"k": [1, -2]}, "k is -2"),
        ({"k": 1.5}, "k is 1.5 and must be a whole number"),
        ({"k": [True]}, "k is True"),
        ({"k": [1, 2]}, r"k is 2 and predictions\[0\] has 1 samples"),
        ({"predictions": [None]}, r"predictions\[0\] must be a list of programs"),
        ({"num_workers": 0}, "num_workers is 0 and must be a whole number of at least 1"),
        ({"num_workers": "4"}, "num_workers is '4' and must be a whole number"),
        ({"timeout": "3"}, "timeout is '3' and must be above 0 seconds"),
        ({"timeout": 0}, "timeout is 0 and must be above 0 seconds and at most 86400;"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
    ],
)
def test_arguments_that_cannot_be_used(changes, message):
    arguments = {"predictions": [[RIGHT]], "references": ["assert add(2, 3) == 5"]}
    with pytest.raises(ValueError, match=message):
        code_eval(**arguments | changes)


def test_the_metric_refuses_in_the_same_words(metric):
    with pytest.raises(ValueError, match=r"k is 2 and predictions\[0\] has 1 samples"):
        metric.compute(predictions=[[RIGHT]], references=["pass"], k=[2])
