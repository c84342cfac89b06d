"""APPS' own rules: what programs take for given, how results may be wrapped, programs that are left by `return`."""

import sys

import pytest

from llama_code.evaluation.apps import PREAMBLE, problem_tests, runnable
from llama_code.judge.pool import judge
from llama_code.judge.task import CallCases, StdinCases, Task


def test_tests_of_both_kinds():
    calls = problem_tests({"fn_name": "f", "inputs": [[1, [2]], [3, []]], "outputs": [[5], 7]})
    assert calls == CallCases("f", ([1, [2]], [3, []]), ([[5], 5], [7]))
    lines = problem_tests({"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["a\n", ["b", "c"]]})
    assert lines == StdinCases(("1\n2\n", "3\n4"), ("a\n", "b\nc"))


def test_a_program_keeps_its_text_unless_it_returns():
    assert runnable("print(1)  # one") == PREAMBLE + "print(1)  # one"
    assert runnable("def f():\n    return 1\nclass A:\n    g = lambda: 2").endswith("g = lambda: 2")
    assert runnable("def f(:") == PREAMBLE + "def f(:"
    assert runnable("x = '\0'") == PREAMBLE + "x = '\0'"


@pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")
def test_programs_run():
    tests = problem_tests({"inputs": ["3\n", "0\n"], "outputs": ["3", "none"]})
    left = "n = int(input())\nif n == 0:\n    print('none')\n    return\nprint(n)"
    given = "print(Counter([int(input())]).most_common(1)[0][0] or 'none')"
    wrapped = problem_tests({"fn_name": "f", "inputs": [[[1, 2]]], "outputs": [[2]]})
    verdicts = judge(
        [
            Task(runnable(left), tests),
            Task(runnable(given), tests),
            Task(runnable("def f(xs: List[int]):\n    return max(xs)"), wrapped),
            Task(runnable("class Solution:\n    def f(self, xs):\n        return (2,)"), wrapped),
            Task(runnable("def f(xs):\n    return 1"), wrapped),
        ]
    )
    assert [verdict.reason for verdict in verdicts] == ["passed"] * 4 + ["wrong answer"]
