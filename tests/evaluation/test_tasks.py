"""Benchmarks in their originals' formats: prompts, tests, canonical solutions, and files that are not as published."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from benchmark_files import APPS_ROWS, INFILLING_ROW, MBPP_ROWS, write_all, write_rows

from llama_code.errors import UserError
from llama_code.evaluation.judging import run_programs
from llama_code.evaluation.mbpp import SHOT_IDS
from llama_code.evaluation.partial import each_alone
from llama_code.evaluation.problem import problems_hash
from llama_code.evaluation.tasks import BENCHMARKS, load_benchmark
from llama_code.judge.levels import choose_level
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, CallCases, StdinCases, Task

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")


@pytest.fixture
def files(tmp_path):
    return write_all(tmp_path)


def solved(benchmark, answers):
    """Judge an answer to each problem; returns the task ids whose answer passes."""
    names = list(benchmark.problems)
    programs = [benchmark.program(benchmark.problems[name], answers(benchmark.problems[name])) for name in names]
    results = run_programs(benchmark, names, programs, choose_level())
    return [name for name, result in zip(names, results, strict=True) if result["passed"]]


@on_linux
@pytest.mark.parametrize("name", ["humaneval", "mbpp-full", "apps-intro", "infilling-single-line"])
def test_solutions_pass_and_nothing_else_does(name, files):
    benchmark = load_benchmark(name, files, "docstring")
    assert solved(benchmark, lambda problem: problem.solution) == list(benchmark.problems)
    # what surrounds a line to fill in may do without it
    assert solved(benchmark, lambda problem: "") == []


@on_linux
@pytest.mark.parametrize(
    "name", ["mbpp-full", "infilling-single-line", "infilling-multi-line", "infilling-random-span"]
)
def test_solutions_of_the_published_files_pass(name):
    folder = os.environ.get("LLAMA_CODE_TEST_DATA")
    if folder is None:
        pytest.skip("LLAMA_CODE_TEST_DATA names no folder with the benchmarks")
    benchmark = load_benchmark(name, Path(folder, "benchmarks"), "docstring")
    assert len(benchmark.problems) == {"mbpp-full": 974, "infilling-single-line": 1033}.get(
        name, {"infilling-multi-line": 5815, "infilling-random-span": 1640}.get(name)
    )
    # every 20th: benchmarks/judge.py runs all of MBPP
    benchmark = benchmark._replace(problems=dict(list(benchmark.problems.items())[::20]), timeout=15.0)
    assert solved(benchmark, lambda problem: problem.solution) == list(benchmark.problems)


def test_mbpp_in_both_forms(files):
    full, test = load_benchmark("mbpp-full", files, "docstring"), load_benchmark("mbpp", files, "docstring")
    assert list(full.problems) == [f"mbpp/{row['task_id']}" for row in MBPP_ROWS]
    assert list(test.problems) == ["mbpp/11", "mbpp/12", "mbpp/510"]
    problem = test.problems["mbpp/11"]
    assert problem.prompt == ('"""\nWrite a function to add 11.\nassert add(1) == 12\nassert add(2) == 13\n"""\n')
    assert problem.solution == "def add(x):\n    return x + 11\n"
    shots = load_benchmark("mbpp", files, "3-shot")
    prompt = shots.problems["mbpp/11"].prompt
    assert prompt.count("You are an expert Python programmer") == prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3 and prompt.endswith("assert add(2) == 13\n[BEGIN]\n")
    assert [f"add {number}." in prompt for number in SHOT_IDS] == [True] * 3
    assert shots.stop_strings == ("[DONE]",) and shots.prompt_form != test.prompt_form
    assert problems_hash(shots.problems) != problems_hash(test.problems)


def test_apps_in_both_formats(files, tmp_path):
    benchmark = load_benchmark("apps-intro", files, "docstring")
    assert list(benchmark.problems) == ["apps/4000", "apps/4001"]
    stdin, calls = benchmark.problems.values()
    assert stdin.prompt == "\nQUESTION:\nAdd two numbers.\nUse Standard Input format\nANSWER:\n"
    assert calls.prompt.endswith("def most(self, xs: List[int]) -> int:\n\nUse Call-Based format\nANSWER:\n")
    original = tmp_path / "original"
    for row in APPS_ROWS[:2]:
        folder = original / "test" / str(row["id"])
        folder.mkdir(parents=True)
        (folder / "question.txt").write_text(row["question"])
        (folder / "input_output.json").write_text(row["input_output"])
        (folder / "solutions.json").write_text(row["solutions"])
        if row["starter_code"]:
            (folder / "starter_code.py").write_text(row["starter_code"])
    assert load_benchmark("apps-intro", original, "docstring").problems == benchmark.problems
    (original / "test" / "4001" / "question.txt").unlink()
    with pytest.raises(UserError, match="4001' lacks question.txt or input_output.json; give APPS' data as published"):
        load_benchmark("apps-intro", original, "docstring")


def test_infilling(files):
    problem = load_benchmark("infilling-single-line", files, "docstring").problems[INFILLING_ROW["task_id"]]
    assert (problem.before, problem.after, problem.suffix) == (problem.prompt, problem.suffix, INFILLING_ROW["suffix"])


def write_original(folder, name, rows):
    shutil.rmtree(folder / name.split("/")[0], ignore_errors=True)
    write_rows(folder / name, rows)


@pytest.mark.parametrize(
    ("task", "file", "rows", "message"),
    [
        ("mbpp", "mbpp/mbpp.jsonl", [{"task_id": 1}], "line 1, has no 'text', which the benchmark's rows have"),
        ("mbpp", "mbpp/mbpp.jsonl", [[1]], "line 1, has no 'task_id'"),
        ("mbpp", "mbpp/mbpp.jsonl", MBPP_ROWS[:4], "no problem with an id from 11 to 510"),
        ("apps-intro", "apps/test.jsonl", APPS_ROWS[2:], "no problem with an id from 4000 to 4999"),
        (
            "apps-intro",
            "apps/test.jsonl",
            [APPS_ROWS[0] | {"input_output": "{}"}],
            r"apps/4000 has tests or solutions in another form \(KeyError",
        ),
        (
            "infilling-single-line",
            "humaneval-infilling/HumanEval-SingleLineInfilling.jsonl.gz",
            [INFILLING_ROW | {"entry_point": "sub"}],
            "the benchmark asks for 'sub', which its prompt does not define; give it as published",
        ),
        ("infilling-multi-line", "humaneval-infilling/x.jsonl", [], "lacks the file .*MultiLineInfilling.jsonl.gz"),
    ],
)
def test_files_that_are_not_as_published(task, file, rows, message, files):
    write_original(files, file, rows)
    with pytest.raises(UserError, match=message):
        load_benchmark(task, files, "docstring")


def test_files_that_are_broken(files):
    (files / "mbpp" / "mbpp.jsonl").write_text("{")
    with pytest.raises(UserError, match="is no file of JSON lines .*; give it as published"):
        load_benchmark("mbpp", files, "docstring")
    path = files / "humaneval-infilling" / "HumanEval-SingleLineInfilling.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match="is no file of JSON lines"):
        load_benchmark("infilling-single-line", files, "docstring")


def test_three_shots_need_their_examples(files):
    write_rows(files / "mbpp" / "mbpp.jsonl", MBPP_ROWS[2:])
    with pytest.raises(UserError, match="no problem 2, which --mbpp_form 3-shot shows as an example"):
        load_benchmark("mbpp", files, "3-shot")


@pytest.mark.parametrize("task", ["mbpp", "apps-intro"])
def test_the_hub_is_asked_where_no_folder_is_given(task):
    """Offline, as tests are: the message names the folder that would do."""
    with pytest.raises(UserError, match=r"cannot be had from the Hub's .*; give --benchmark_dir with"):
        load_benchmark(task, None, "docstring")


def test_infilling_has_no_hub():
    with pytest.raises(UserError, match="infilling-single-line needs data that comes in no package; give --benchmark"):
        load_benchmark("infilling-single-line", None, "docstring")


def test_names():
    assert BENCHMARKS[:4] == ("humaneval", "mbpp", "mbpp-full", "apps-intro")


HALF = "def f(x):\n    if x > 1:\n        raise ValueError\n    return x"


@on_linux
@pytest.mark.parametrize(
    ("program", "tests", "passes"),
    [
        (HALF, Assertions("assert f(2) == 2\nassert f(1) == 1"), True),
        (HALF, Assertions("def check(g):\n    assert g(3) == 3\n    assert g(0) == 0\ncheck(f)"), True),
        (HALF, Assertions("def check(g):\n    for i in (3, 2, 1):\n        assert g(i) == 1\ncheck(f)"), True),
        (HALF, Assertions("assert f(0) == 0\nraise KeyError"), True),
        (HALF, Assertions("assert f(3) == 3\nassert f(0) == 1"), False),
        (HALF, Assertions("pass"), False),
        (HALF, Assertions("assert True, 'good for debugging!'\nassert f(3) == 3"), False),
        ("import os\ndef f(x):\n    os._exit(0)", Assertions("assert f(0) == 0"), False),
        (HALF, CallCases("f", ([5], [1]), ([5], [1])), True),
        (HALF, CallCases("f", ([5], [1]), ([5], [2])), False),
        ("print(input())", StdinCases(("a", "b"), ("c", "b")), True),
        ("print(input())", StdinCases(("a", "b"), ("c", "d")), False),
    ],
)
def test_programs_that_pass_at_least_one_test(program, tests, passes):
    verdicts = judge([Task(program, alone) for alone in each_alone(tests)])
    assert any(verdict.passed for verdict in verdicts) == passes


def test_the_hash_tells_any_change(files):
    problems = load_benchmark("apps-intro", files, "docstring").problems
    changed = json.loads(json.dumps(APPS_ROWS))
    changed[0]["input_output"] = json.dumps({"inputs": ["1\n2\n", "3\n4\n"], "outputs": ["3\n", "8\n"]})
    write_rows(files / "apps" / "test.jsonl", changed)
    assert problems_hash(problems) != problems_hash(load_benchmark("apps-intro", files, "docstring").problems)
