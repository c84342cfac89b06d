"""A problem of a benchmark, and the files that benchmarks come in."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llama_code.errors import UserError
from llama_code.judge.task import Tests


class Problem(NamedTuple):
    """One problem of a benchmark.

    Attributes:
        task_id: its name in samples.jsonl.
        prompt: the text that the model continues.
        tests: what a right program passes; they run apart from it.
        solution: a right completion of the prompt; None where the data set has none.
        before: the program's text before the completion.
        after: the program's text after it.
        suffix: the text that the model is told to come before, in infilling; None elsewhere.
    """

    task_id: str
    prompt: str
    tests: Tests
    solution: str | None
    before: str = ""
    after: str = ""
    suffix: str | None = None


Problems = dict[str, Problem]


def problems_hash(problems: Mapping[str, Problem]) -> str:
    """SHA-256 over what is asked and how it is judged, in order."""
    digest = hashlib.sha256()
    for problem in problems.values():
        digest.update(json.dumps(problem).encode("ascii"))
    return digest.hexdigest()


def read_rows(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl or .jsonl.gz file.

    Args:
        path: the file.
        keys: what each object must have.

    Raises:
        UserError: the file is missing, is no JSON lines, or an object lacks a key.
    """
    if not path.is_file():
        raise UserError(
            f"--benchmark_dir lacks the file {str(path)!r}; give the folder that holds the benchmark's data"
        )
    opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        try:
            for number, line in enumerate(file, start=1):
                row = json.loads(line)
                missing = [key for key in keys if not isinstance(row, dict) or key not in row]
                if missing:
                    raise UserError(
                        f"{str(path)!r}, line {number}, has no {missing[0]!r}, which the benchmark's rows have; give "
                        "its file as published"
                    )
                yield row
        except (ValueError, EOFError, OSError) as error:  # no JSON, no UTF-8, a cut or foreign .gz
            if isinstance(error, UserError):
                raise
            raise UserError(f"{str(path)!r} is no file of JSON lines ({error}); give it as published") from error
