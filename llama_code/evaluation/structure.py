"""Quality and structure of model-written Python, below pass@k. Nothing is executed."""

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from radon.complexity import add_inner_blocks
from radon.visitors import Class, ComplexityVisitor

# Shortest run of characters that counts as copied from the prompt, and from a corpus.
COPY_LENGTH = 30
CORPUS_LENGTH = 60
# Windows of a corpus with fewer distinct characters are rules of dashes, tables of digits, repeated words: 0.3% of
# the windows of Python's standard library, where the median has 24.
MIN_DISTINCT = 15
# compile() recurses at each further `for` of a comprehension without a guard, and overflows the C stack (CPython 3.11
# and 3.12, at some 30,000 clauses with 8 MiB of stack).
MAX_FURTHER_CLAUSES = 1000

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
STRUCTURAL_KEYS = (
    "cyclomatic_complexity",
    "functions",
    "recursion",
    "comprehensions",
    "type_hints",
    "docstrings",
    "prompt_names_used",
)
VERDICTS_OF_TESTS = ("passed", "wrong answer")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _parse(program: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(program)
        except NOT_PYTHON:
            return None


def _compiles(program: str, tree: ast.Module) -> bool:
    if (
        sum(len(node.generators) - 1 for node in ast.walk(tree) if isinstance(node, COMPREHENSIONS))
        > MAX_FURTHER_CLAUSES
    ):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(program, "<program>", "exec", dont_inherit=True)
        except NOT_PYTHON:
            return False
    return True


def complexity(program: str) -> int | None:
    """Sum the cyclomatic complexity of a program's blocks (McCabe 1976), as radon counts it.

    Blocks are functions, methods, closures and classes (whose own is that of their bodies without methods). Code
    outside them is one more block where it branches or where there is no other. radon skips classes in functions.

    Args:
        program: Python source, or anything.

    Returns:
        At least 1; None where it does not parse or nests too deep for radon, which recurses.
    """
    tree = _parse(program)
    return None if tree is None else _tree_complexity(tree)


def _tree_complexity(tree: ast.Module) -> int | None:
    try:
        visitor = ComplexityVisitor.from_ast(tree)
    except RecursionError:
        return None
    total = 0 if visitor.blocks and visitor.complexity == 1 else visitor.complexity
    for block in add_inner_blocks(visitor.blocks):
        # a class's complexity is radon's average over its methods, which are blocks of their own
        methods = sum(method.complexity for method in block.methods) if isinstance(block, Class) else 0
        total += (block.real_complexity if isinstance(block, Class) else block.complexity) - methods
    return int(total)


def describe(program: str, completion: str, prompt: str) -> dict[str, Any]:
    """Describe one completion.

    Args:
        program: the whole program that the completion is part of. It may be anything; so may the other two.
        completion: what the model wrote.
        prompt: what it was asked to continue.

    Returns:
        A flat record. Of the program: `parses` and `compiles`. Of the completion: `characters`; `lines`, those that
        are not blank; `repetition`, the share of these lines that repeat an earlier one but for white space at their
        ends; `copied_from_prompt`, the share of its characters in runs of at least `COPY_LENGTH` that stand in the
        prompt. Of the program where it parses, else None: `cyclomatic_complexity`, by `complexity`; `functions`, defs
        and lambdas; `recursion`, whether a def calls its own name, a method through its `self` or `cls`;
        `comprehensions`, generator expressions included; `type_hints`, the share of the parameters (but `self` and
        `cls`) and returns of defs that are annotated, None without defs; `docstrings`, the share of defs and classes
        that have one, None without these; `prompt_names_used`, the share of the parameters of the prompt's last
        function that the completion loads, None where the prompt is no code, its functions have no parameters or the
        completion does not stand in the program.
    """
    tree = _parse(program)
    lines = [line.strip() for line in completion.split("\n") if line.strip()]
    record: dict[str, Any] = {
        "parses": tree is not None,
        "compiles": tree is not None and _compiles(program, tree),
        "characters": len(completion),
        "lines": len(lines),
        "repetition": 1 - len(set(lines)) / len(lines) if lines else 0.0,
        "copied_from_prompt": _copied_from_prompt(completion, prompt),
    }
    if tree is None:
        return record | dict.fromkeys(STRUCTURAL_KEYS)
    return record | _describe_tree(tree) | {"prompt_names_used": _prompt_names_used(tree, program, completion, prompt)}


def _describe_tree(tree: ast.Module) -> dict[str, Any]:
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    documented = [
        ast.get_docstring(n, clean=False) is not None for n in nodes if isinstance(n, (*FUNCTIONS, ast.ClassDef))
    ]
    hints = [hint is not None for function in functions for hint in _hints(function)]
    return {
        "cyclomatic_complexity": _tree_complexity(tree),
        "functions": len(functions) + sum(isinstance(node, ast.Lambda) for node in nodes),
        "recursion": _recurses(tree),
        "comprehensions": sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        "type_hints": float(np.mean(hints)) if hints else None,
        "docstrings": float(np.mean(documented)) if documented else None,
    }


def _receiver(function: Function) -> str | None:
    """Return `self` or `cls`, where it is a function's first parameter, which makes the function a method."""
    positional = function.args.posonlyargs + function.args.args
    return positional[0].arg if positional and positional[0].arg in ("self", "cls") else None


def _parameters(function: Function) -> list[ast.arg]:
    """Return a function's parameters but for `self` and `cls`, which nobody annotates."""
    given = function.args
    positional = given.posonlyargs + given.args
    stars = [star for star in (given.vararg, given.kwarg) if star is not None]
    return positional[_receiver(function) is not None :] + given.kwonlyargs + stars


def _hints(function: Function) -> list[ast.expr | None]:
    return [parameter.annotation for parameter in _parameters(function)] + [function.returns]


def _recurses(tree: ast.Module) -> bool:
    """Whether a call names a function around it; without recursion of our own and in one pass."""
    todo: list[tuple[ast.AST, frozenset[tuple[str | None, str]]]] = [(tree, frozenset())]
    while todo:
        node, around = todo.pop()
        if isinstance(node, FUNCTIONS):
            around |= {(_receiver(node), node.name)}
        if isinstance(node, ast.Call) and _called(node.func) in around:
            return True
        todo += [(child, around) for child in ast.iter_child_nodes(node)]
    return False


def _called(function: ast.expr) -> tuple[str | None, str] | None:
    if isinstance(function, ast.Name):
        return None, function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id, function.attr
    return None


def _prompt_names_used(tree: ast.Module, program: str, completion: str, prompt: str) -> float | None:
    asked = _parse(prompt) or _parse(prompt.rstrip() + " pass")  # a prompt may end at the header of its function
    functions = [node for node in ast.walk(asked) if isinstance(node, FUNCTIONS)] if asked else []
    if not functions:
        return None
    names = {parameter.arg for parameter in _parameters(max(functions, key=lambda node: node.lineno))}
    start = program.find(completion, len(prompt) if program.startswith(prompt) else 0)
    if not names or start < 0:
        return None
    first, last = _position(program, start), _position(program, start + len(completion))
    loaded = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        if first <= (node.lineno, node.col_offset) < last
    }
    return len(names & loaded) / len(names)


def _position(program: str, index: int) -> tuple[int, int]:
    """Return the line, from 1, and the column, from 0 and in bytes of UTF-8, as ast counts them."""
    before = program[:index].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, len(before[before.rfind("\n") + 1 :].encode())


def _copied_from_prompt(completion: str, prompt: str) -> float:
    known = {prompt[start : start + COPY_LENGTH] for start in range(len(prompt) - COPY_LENGTH + 1)}
    starts = range(len(completion) - COPY_LENGTH + 1)
    found = (start for start in starts if completion[start : start + COPY_LENGTH] in known)
    return _covered(found, COPY_LENGTH) / len(completion) if completion else 0.0


def _covered(starts: Iterable[int], length: int) -> int:
    """Count the positions that windows of a length cover, given their starts in order."""
    covered = end = 0
    for start in starts:
        covered += start + length - max(start, end)
        end = start + length
    return covered


def _normalize(text: str) -> str:
    """Return text with its runs of white space as one space, and no indentation and no blank lines."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _hash_windows(text: str) -> NDArray[np.int64]:
    """Hash the windows of `CORPUS_LENGTH` at every position by Python's hash of strings, 64 bits of SipHash."""
    starts = range(max(0, len(text) - CORPUS_LENGTH + 1))
    return np.fromiter((hash(text[i : i + CORPUS_LENGTH]) for i in starts), dtype=np.int64, count=len(starts))


class Corpus:
    """The texts that a model was trained on, or a part of them, to tell what a completion copies.

    It keeps 8 bytes a character: a sorted array of the hashes of all windows of `CORPUS_LENGTH` characters, so that a
    run of that length is found at any position and a shorter one nowhere. Hashes are Python's, salted anew in each
    process; of 20 million, one in 10^12 windows that is not there is taken for one that is.

    Attributes:
        num_characters: how many characters of the texts were read.
    """

    def __init__(self, texts: Iterable[str], max_characters: int = 20_000_000) -> None:
        """Read texts.

        Args:
            texts: in order; no more are asked for once enough are read.
            max_characters: of the texts together; the last one is cut there.
        """
        self.num_characters = 0
        # filled in place: putting parts together would take their memory twice; pages not written take none
        windows = np.empty(max_characters, dtype=np.int64)
        used = 0
        for text in texts:
            text = text[: max_characters - self.num_characters]
            self.num_characters += len(text)
            hashes = _hash_windows(_normalize(text))
            windows[used : used + len(hashes)] = hashes
            used += len(hashes)
            if self.num_characters == max_characters:
                break
        self._windows = windows[:used]
        self._windows.sort()

    def copied(self, completion: str) -> float:
        """Return the share of a completion's characters in runs of `CORPUS_LENGTH` or more that stand in one text.

        White space is normalised first in both: a run of it is one space, indentation and blank lines do not count.
        Windows of fewer than `MIN_DISTINCT` distinct characters do not count as copied.
        """
        text = _normalize(completion)
        return _covered(self._found(text), CORPUS_LENGTH) / len(text) if text else 0.0

    def _found(self, text: str) -> Iterator[int]:
        hashes = _hash_windows(text)
        first, last = (np.searchsorted(self._windows, hashes, side) for side in ("left", "right"))
        for start in np.flatnonzero(first < last).tolist():
            if len(set(text[start : start + CORPUS_LENGTH])) >= MIN_DISTINCT:
                yield start


def summarize_structure(records: Sequence[Mapping[str, Any]], reasons: Sequence[str]) -> dict[str, Any]:
    """Summarise a benchmark's completions.

    Args:
        records: by `describe`, of at least one completion; other numbers may stand beside its own.
        reasons: of each completion's verdict, of `llama_code.judge.task.REASONS`.

    Returns:
        `num_completions` and `num_parsed`; the shares that `parse`, `compile`, `run` (to the tests' yes or no, without
        an exception) and `pass`; and `means`, of each numeric key over the completions where it is not None.

    Raises:
        ValueError: there are no records, or not a reason for each.
    """
    if not records or len(records) != len(reasons):
        raise ValueError(
            f"there are {len(records)} records and {len(reasons)} reasons, and each completion needs one of both; "
            "give lists of the same length with an item a completion"
        )
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            if isinstance(value, (int, float)):
                values.setdefault(key, []).append(value)
    return {
        "num_completions": len(records),
        "num_parsed": sum(record["parses"] for record in records),
        "parse": float(np.mean([record["parses"] for record in records])),
        "compile": float(np.mean([record["compiles"] for record in records])),
        "run": float(np.mean([reason in VERDICTS_OF_TESTS for reason in reasons])),
        "pass": float(np.mean([reason == "passed" for reason in reasons])),
        "means": {key: float(np.mean(numbers)) for key, numbers in values.items()},
    }
