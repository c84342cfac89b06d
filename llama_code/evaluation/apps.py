"""APPS (Hendrycks et al. 2021): how its programs run and what they have to answer.

The rules are those of the data set's own test script: names that solutions use without importing them, a program that
is left by `return`, a result that may come wrapped in a list.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_code.errors import UserError
from llama_code.evaluation.problem import (
    REMEDY,
    TEXT,
    Kind,
    Placed,
    Problem,
    Problems,
    check_row,
    collect,
    is_texts,
    parse_json,
    read_rows,
)
from llama_code.judge.task import CallCases, StdinCases, Tests

HUB_ID, HUB_FILE = "codeparrot/apps", "test.jsonl"


def is_digits(value: Any) -> bool:
    """Whether a value is the text of a number, as names of problems' folders are."""
    return isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) is not None


TEXT_OR_NULL = Kind("a text or null", lambda value: value is None or isinstance(value, str))
KINDS = {
    "id": Kind("a whole number", lambda value: type(value) is int or is_digits(value)),
    "question": TEXT,
    "solutions": TEXT_OR_NULL,
    "input_output": TEXT,
    "starter_code": TEXT_OR_NULL,
}
# What the JSON texts in a row hold.
SOLUTIONS = {"solutions": Kind("a list of texts", is_texts)}
RUNS = Kind(
    "a list of texts or lists of texts",
    lambda value: isinstance(value, list) and all(isinstance(run, str) or is_texts(run) for run in value),
)
STDIN_KINDS = {"inputs": RUNS, "outputs": RUNS}
CALL_KINDS = {
    "fn_name": Kind("a function's name", lambda value: isinstance(value, str) and value.isidentifier()),
    "inputs": Kind(
        "a list of lists", lambda value: isinstance(value, list) and all(isinstance(call, list) for call in value)
    ),
    "outputs": Kind("a list", lambda value: isinstance(value, list)),
}
INTRODUCTORY_IDS = range(4000, 5000)
# What follows an answer where a model goes on: another question, in the form of the prompt.
STOP_STRINGS = ("\nQUESTION:", "\nANSWER:", "\n```")

# What the data set's solutions, written for sites that import it, use as given.
PREAMBLE = """\
import collections, copy, fractions, functools, heapq, itertools, math, operator, random, re, string, sys, time
from bisect import bisect_left, bisect_right
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from math import ceil, cos, exp, fabs, floor, gcd, log, log2, sin, sqrt, tan
from typing import Dict, List, Optional, Set, Tuple
"""


def runnable(program: str) -> str:
    """Return a program with what it takes for given; one that is left by `return` becomes the body of a function.

    Args:
        program: as the data set or a model wrote it. One that does not parse is returned with the preamble alone.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return PREAMBLE + program
    if not _returns(tree):
        return PREAMBLE + program
    function = ast.parse("def main():\n    pass\nmain()")
    assert isinstance(function.body[0], ast.FunctionDef)
    function.body[0].body = tree.body
    return PREAMBLE + ast.unparse(function)


def _returns(tree: ast.AST) -> bool:
    """Whether there is a `return` outside all functions."""
    todo = [tree]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            if isinstance(child, ast.Return):
                return True
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                todo.append(child)
    return False


def problem_tests(input_output: dict[str, Any]) -> Tests:
    """Return the tests of a problem's `input_output`: calls of the function `fn_name`, or runs with standard input."""
    if "fn_name" not in input_output:
        inputs, outputs = input_output["inputs"], input_output["outputs"]
        return StdinCases(tuple(map(_text, inputs)), tuple(map(_text, outputs)))
    accepted = [[output, *output[:1]] if isinstance(output, list) else [output] for output in input_output["outputs"]]
    return CallCases(input_output["fn_name"], tuple(input_output["inputs"]), tuple(accepted))


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "\n".join(lines)


def apps_introductory(folder: Path | None) -> Problems:
    """The test split's introductory problems (ids 4000 to 4999) by task id.

    Args:
        folder: holds test.jsonl (the Hub's form), or test/4000/question.txt and so on (the original's), or a folder
            apps with either; None takes the file from the Hub.

    Raises:
        UserError: the data cannot be had or is not as published.
    """
    problems = collect(
        (place, _problem(place, row)) for place, row in _rows(folder) if int(row["id"]) in INTRODUCTORY_IDS
    )
    if not problems:
        raise UserError(
            f"APPS' data has no problem with an id from {INTRODUCTORY_IDS[0]} to {INTRODUCTORY_IDS[-1]}, which are "
            "the introductory ones of its test split; give the test split"
        )
    return problems


def _problem(place: str, row: dict[str, Any]) -> Problem:
    input_output = parse_json(f"{place} under 'input_output'", row["input_output"])
    calls = isinstance(input_output, dict) and "fn_name" in input_output
    check_row(f"{place} under 'input_output'", input_output, CALL_KINDS if calls else STDIN_KINDS)
    solutions = parse_json(f"{place} under 'solutions'", row["solutions"] or "[]")
    check_row(place, {"solutions": solutions}, SOLUTIONS)
    prompt = _prompt(row["question"], row["starter_code"], calls)
    solution = solutions[0] if solutions else None
    return Problem(f"apps/{int(row['id'])}", prompt, problem_tests(input_output), solution)


def _prompt(question: str, starter_code: str | None, calls: bool) -> str:
    """Word a question as the data set's paper does (Hendrycks et al. 2021, appendix)."""
    starter = f"\n{starter_code}" if starter_code else ""
    form = "Use Call-Based format" if calls else "Use Standard Input format"
    return f"\nQUESTION:\n{question}{starter}\n{form}\nANSWER:\n"


def _rows(folder: Path | None) -> Iterator[Placed]:
    if folder is None:
        return read_rows(_hub_file(), KINDS)
    folder = folder / "apps" if (folder / "apps").is_dir() else folder
    if not (folder / "test").is_dir():
        return read_rows(folder / HUB_FILE, KINDS)
    return map(_original_row, sorted(path for path in (folder / "test").iterdir() if is_digits(path.name)))


def _original_row(folder: Path) -> Placed:
    place = repr(str(folder))
    parts = {key: folder / name for key, name in _ORIGINAL_FILES.items()}
    if not parts["question"].is_file() or not parts["input_output"].is_file():
        raise UserError(f"{place} lacks question.txt or input_output.json; {REMEDY}")
    return place, {"id": folder.name} | {
        key: _read_text(path) if path.is_file() else "" for key, path in parts.items()
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); {REMEDY}") from error


_ORIGINAL_FILES = {
    "question": "question.txt",
    "solutions": "solutions.json",
    "input_output": "input_output.json",
    "starter_code": "starter_code.py",
}


def _hub_file() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_ID, HUB_FILE, repo_type="dataset"))
    except (OSError, ValueError) as error:  # what huggingface_hub raises where it reaches no Hub and has no copy
        reason = str(error).splitlines()[0]
        raise UserError(
            f"APPS cannot be had from the Hub's {HUB_ID!r} ({reason}); give --benchmark_dir with its {HUB_FILE}"
        ) from error
