"""Right programs pass and wrong ones fail, as in a plain run: canonical solutions and mutants of them."""

import json
import os
import random
import sys
from pathlib import Path

import pytest

from benchmarks.judge_data import TIMEOUT, all_mutants, humaneval_pairs, mbpp_pairs, plain_run
from llama_code.evaluation.apps import problem_tests, runnable
from llama_code.judge.levels import ISOLATED
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")

# MBPP 123's canonical solution alone takes more than 2 s
LONG = 15.0
NUM_MUTANTS = 60


@pytest.fixture
def data():
    folder = os.environ.get("LLAMA_CODE_TEST_DATA")
    if folder is None:
        pytest.skip("LLAMA_CODE_TEST_DATA names no folder with the benchmarks")
    return Path(folder)


@pytest.mark.parametrize("level", ISOLATED)
def test_humaneval(outside, level):
    answer = outside.judge(level, humaneval_pairs(), LONG)
    assert [verdict for verdict in answer["verdicts"] if not verdict["passed"]] == []
    assert len(answer["verdicts"]) == 164


@pytest.mark.parametrize("level", ISOLATED)
def test_mbpp(outside, level, data):
    pairs = mbpp_pairs(data)
    answer = outside.judge(level, [pair for _, pair in pairs], LONG)
    failed = {task_id: verdict for (task_id, _), verdict in zip(pairs, answer["verdicts"], strict=True)}
    assert {task_id: verdict for task_id, verdict in failed.items() if not verdict["passed"]} == {}
    assert len(pairs) == 974


def test_apps(data):
    folders = sorted((data / "benchmarks/apps-samples/train").iterdir())
    assert len(folders) == 5
    for folder in folders:
        tests = problem_tests(json.loads((folder / "input_output.json").read_text()))
        solutions = json.loads((folder / "solutions.json").read_text())
        verdicts = judge([Task(runnable(text), tests) for text in solutions], LONG)
        assert [verdict for verdict in verdicts if not verdict.passed] == [], folder.name


def test_nothing_passes_empty():
    verdicts = judge([Task("", Assertions(tests)) for _, tests in humaneval_pairs()])
    assert {verdict.reason for verdict in verdicts} == {"exception"}


def test_mutants_fare_as_in_a_plain_run():
    """A short form of benchmarks/judge.py's, of programs that take no time: none is near the limit."""
    chosen = random.Random(1).sample(all_mutants(None), NUM_MUTANTS)
    plain = [plain_run(mutant.program, mutant.plain_tests) for mutant in chosen]
    assert {"passed", "failed"} <= set(plain)
    verdicts = judge([Task(program, Assertions(tests)) for program, tests, _ in chosen], TIMEOUT)
    differing = [
        (mutant, expected, verdict)
        for mutant, expected, verdict in zip(chosen, plain, verdicts, strict=True)
        if verdict.passed != (expected == "passed")
    ]
    assert differing == []
