"""Benchmarks in their originals' formats: prompts, tests, canonical solutions, and files that are not as published."""

import json
import os
import shutil
from pathlib import Path

import pytest
from benchmark_files import APPS_ROWS, INFILLING_ROW, MBPP_ROWS, write_all, write_rows
from eval_tiny import on_linux

from llama_code.errors import UserError
from llama_code.evaluation.judging import run_programs
from llama_code.evaluation.mbpp import SHOT_IDS
from llama_code.evaluation.partial import each_alone
from llama_code.evaluation.problem import problems_hash
from llama_code.evaluation.tasks import BENCHMARKS, load_benchmark
from llama_code.judge.levels import choose_level
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, CallCases, StdinCases, Task


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


def write_original_apps(folder):
    """Write two problems of APPS in the form of its first publication; returns the folder."""
    for row in APPS_ROWS[:2]:
        problem = folder / "test" / str(row["id"])
        problem.mkdir(parents=True)
        (problem / "question.txt").write_text(row["question"])
        (problem / "input_output.json").write_text(row["input_output"])
        (problem / "solutions.json").write_text(row["solutions"])
        if row["starter_code"]:
            (problem / "starter_code.py").write_text(row["starter_code"])
    return folder


def test_apps_in_both_formats(files, tmp_path):
    benchmark = load_benchmark("apps-intro", files, "docstring")
    assert list(benchmark.problems) == ["apps/4000", "apps/4001"]
    stdin, calls = benchmark.problems.values()
    assert stdin.prompt == "\nQUESTION:\nAdd two numbers.\nUse Standard Input format\nANSWER:\n"
    assert calls.prompt.endswith("def most(self, xs: List[int]) -> int:\n\nUse Call-Based format\nANSWER:\n")
    original = write_original_apps(tmp_path / "original")
    assert load_benchmark("apps-intro", original, "docstring").problems == benchmark.problems
    (original / "test" / "4001" / "question.txt").unlink()
    with pytest.raises(UserError, match="4001' lacks question.txt or input_output.json; give the benchmark's data"):
        load_benchmark("apps-intro", original, "docstring")


def test_infilling(files):
    problem = load_benchmark("infilling-single-line", files, "docstring").problems[INFILLING_ROW["task_id"]]
    assert (problem.before, problem.after, problem.suffix) == (problem.prompt, problem.suffix, INFILLING_ROW["suffix"])


def write_original(folder, name, rows):
    shutil.rmtree(folder / name.split("/")[0], ignore_errors=True)
    write_rows(folder / name, rows)


INFILLING = "humaneval-infilling/HumanEval-SingleLineInfilling.jsonl.gz"
FILES = {"mbpp": "mbpp/mbpp.jsonl", "apps-intro": "apps/test.jsonl", "infilling-single-line": INFILLING}


def refused(task, folder, rows, message):
    """Write the rows in a benchmark's place and expect the message."""
    write_original(folder, FILES[task], rows)
    with pytest.raises(UserError, match=message) as caught:
        load_benchmark(task, folder, "docstring")
    return str(caught.value)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "mbpp",
            [{"task_id": 1}],
            "line 1, has no 'text', which must be a text; give the benchmark's data as published",
        ),
        ("mbpp", [[1]], "line 1, has no 'task_id'"),
        ("mbpp", MBPP_ROWS[:4], "no problem with an id from 11 to 510"),
        ("mbpp", [*MBPP_ROWS, MBPP_ROWS[4]], "line 10, is a second problem 'mbpp/11', and ids differ; give"),
        ("apps-intro", APPS_ROWS[2:], "no problem with an id from 4000 to 4999"),
        ("apps-intro", [*APPS_ROWS, APPS_ROWS[0] | {"id": "4000"}], "line 4, is a second problem 'apps/4000'"),
        ("infilling-single-line", [INFILLING_ROW] * 2, "line 2, is a second problem 'SingleLine.*/53/L0'"),
    ],
)
def test_rows_that_are_not_as_published(task, rows, message, files):
    refused(task, files, rows, message)


def test_files_that_are_missing(files):
    with pytest.raises(UserError, match="lacks the file .*MultiLineInfilling.jsonl.gz'; give the folder that holds"):
        load_benchmark("infilling-multi-line", files, "docstring")


@pytest.mark.parametrize("task", FILES)
def test_files_without_rows(task, files):
    assert FILES[task] in refused(task, files, [], "is empty and must hold a line for each problem; give")


@pytest.mark.parametrize("value", [None, 3, ["text"]])
@pytest.mark.parametrize(
    ("task", "key"),
    [
        *(("infilling-single-line", key) for key in INFILLING_ROW),
        *(("mbpp", key) for key in ("text", "code", "test_setup_code")),
        *(("apps-intro", key) for key in ("question", "input_output")),
    ],
)
def test_values_that_must_be_texts(task, key, value, files):
    first = {"mbpp": MBPP_ROWS, "apps-intro": APPS_ROWS}.get(task, [INFILLING_ROW])[0]
    message = refused(task, files, [first | {key: value}], f"line 1, has .* under '{key}', which must be a text; give")
    assert FILES[task] in message and repr(value) in message


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("mbpp", {"task_id": "11"}, "'11' under 'task_id', which must be a whole number"),
        ("mbpp", {"task_id": [11]}, r"\[11\] under 'task_id', which must be a whole number"),
        ("mbpp", {"task_id": True}, "True under 'task_id', which must be a whole number"),
        ("mbpp", {"test_list": None}, "None under 'test_list', which must be a list of at least one text"),
        ("mbpp", {"test_list": ["assert f()", 1]}, "1] under 'test_list', which must be a list of at least one text"),
        ("mbpp", {"test_list": "assert f()"}, "'assert f\\(\\)' under 'test_list', which must be a list"),
        ("mbpp", {"test_list": []}, r"\[\] under 'test_list', which must be a list of at least one text"),
        ("mbpp", {"test_list": ["assert ("]}, r"has tests of 'mbpp/11' that cannot run \(SyntaxError.*; give"),
        ("mbpp", {"test_setup_code": "\0"}, r"has tests of 'mbpp/11' that cannot run \("),
        ("infilling-single-line", {"test": "def ("}, "has tests of 'SingleLine.*L0' that cannot run .SyntaxError"),
        ("infilling-single-line", {"entry_point": "sub"}, "asks for 'sub', which its prompt does not define; give"),
        (
            "infilling-single-line",
            {"task_id": "another", "prompt": "def f("},
            r"has a prompt that is no Python \(.*\); give",
        ),
        ("apps-intro", {"id": None}, "None under 'id', which must be a whole number"),
        ("apps-intro", {"id": "x"}, "'x' under 'id', which must be a whole number"),
        ("apps-intro", {"solutions": "{"}, "under 'solutions' is no JSON that can be read .*; give"),
        ("apps-intro", {"solutions": '{"a":1}'}, "'a': 1} under 'solutions', which must be a list of texts; give"),
        ("apps-intro", {"solutions": "[1]"}, r"\[1\] under 'solutions', which must be a list of texts; give"),
        ("apps-intro", {"solutions": 1}, "1 under 'solutions', which must be a text or null; give"),
        ("apps-intro", {"input_output": ""}, "under 'input_output' is no JSON that can be read .*; give"),
        ("apps-intro", {"input_output": "[" * 10**5}, "under 'input_output' is no JSON that can be read .*; give"),
        ("apps-intro", {"input_output": "[]"}, "under 'input_output' has no 'inputs', which must be a list of"),
    ],
)
def test_values_that_are_not_as_published(task, changed, message, files):
    row = {"mbpp": MBPP_ROWS[4], "apps-intro": APPS_ROWS[0]}.get(task, INFILLING_ROW)
    assert FILES[task] in refused(task, files, [row | changed], f"line 1, .*{message}")


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ({"inputs": ["1"]}, "has no 'outputs', which must be"),
        ({"inputs": [], "outputs": []}, "tests of 'apps/4000' that cannot run .0 inputs and 0 results, .*; give"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "'apps/4000' that cannot run .1 inputs and 2 results"),
        ({"fn_name": "f", "inputs": [], "outputs": []}, "'apps/4000' that cannot run .0 inputs and 0 results"),
        (
            {"inputs": "1", "outputs": ["1"]},
            "'1' under 'inputs', which must be a list of texts or lists of texts; give",
        ),
        ({"inputs": ["1"], "outputs": [[1]]}, r"\[\[1\]\] under 'outputs', which must be a list of texts or lists"),
        ({"fn_name": 3, "inputs": [[1]], "outputs": [1]}, "3 under 'fn_name', which must be a function's name; give"),
        ({"fn_name": "f", "inputs": ["a"], "outputs": [1]}, "under 'inputs', which must be a list of lists; give"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": "a"}, "'a' under 'outputs', which must be a list; give"),
    ],
)
def test_cases_that_are_not_as_published(cases, message, files):
    row = APPS_ROWS[0] | {"input_output": json.dumps(cases)}
    assert FILES["apps-intro"] in refused("apps-intro", files, [row], f"line 1, .*{message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("input_output.json", b"{", "4001' under 'input_output' is no JSON that can be read .*; give"),
        ("question.txt", b"\xff", "4001/question.txt' cannot be read .*utf-8.*; give"),
    ],
)
def test_original_apps_files_that_are_broken(name, content, message, tmp_path):
    write_original_apps(tmp_path)
    (tmp_path / "test" / "4001" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_benchmark("apps-intro", tmp_path, "docstring")


def flipped(content):
    return content[:30] + bytes(255 - byte for byte in content[30:])


@pytest.mark.parametrize(
    ("task", "broken", "message"),
    [
        (
            "mbpp",
            lambda content: b"{",
            "line 1, is no JSON that can be read .*; give the benchmark's data as published",
        ),
        ("mbpp", lambda content: content + b"\xff", "line 10, is no JSON that can be read .*utf-8"),
        ("mbpp", lambda content: b"[" * 10**5, "line 1, is no JSON that can be read .*recursion"),
        ("infilling-single-line", lambda content: content[:-12], r"\.gz' cannot be read \(.*; give"),
        ("infilling-single-line", lambda content: b"text", r"\.gz' cannot be read \(Not a gzipped file"),
        ("infilling-single-line", flipped, r"\.gz' cannot be read \(Error -3 while decompressing"),
    ],
)
def test_files_that_are_broken(task, broken, message, files):
    path = files / FILES[task]
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        load_benchmark(task, files, "docstring")


def test_mbpp_is_judged_by_its_test_list_alone(files):
    write_original(files, FILES["mbpp"], [MBPP_ROWS[4] | {"challenge_test_list": ["assert add(3) == 0"]}])
    (problem,) = load_benchmark("mbpp", files, "docstring").problems.values()
    assert problem.tests == Assertions("\nassert add(1) == 12\nassert add(2) == 13\n")


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
