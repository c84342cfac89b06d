"""A problem of a benchmark, and the files that benchmarks come in."""

import gzip
import hashlib
import json
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llama_code.errors import UserError
from llama_code.judge.task import Assertions, Tests
from llama_code.judge.trial import NoTests, check_cases, check_tests

REMEDY = "give the benchmark's data as published"


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


def collect(problems: Iterable[tuple[str, Problem]]) -> Problems:
    """Return problems by task id.

    Args:
        problems: each with the place that it was read from, for messages.

    Raises:
        UserError: two problems have one id, or the tests of one cannot run.
    """
    collected: Problems = {}
    for place, problem in problems:
        if problem.task_id in collected:
            raise UserError(f"{place} is a second problem {problem.task_id!r}, and ids differ; {REMEDY}")
        try:
            if isinstance(problem.tests, Assertions):
                check_tests(problem.tests.source)
            else:
                check_cases(problem.tests)
        except NoTests as error:
            raise UserError(f"{place} has tests of {problem.task_id!r} that cannot run ({error}); {REMEDY}") from error
        collected[problem.task_id] = problem
    return collected


class Kind(NamedTuple):
    """What a key of a benchmark's rows holds.

    Attributes:
        name: for messages.
        holds: whether a value is of this kind.
    """

    name: str
    holds: Callable[[Any], bool]


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
WHOLE_NUMBER = Kind("a whole number", lambda value: type(value) is int)
TEXTS = Kind("a list of at least one text", lambda value: is_texts(value) and value != [])
Kinds = Mapping[str, Kind]
# A row and the place that it was read from, as messages begin with it.
Placed = tuple[str, dict[str, Any]]


def check_row(place: str, row: Any, kinds: Kinds) -> None:
    """Refuse what is no object with keys of these kinds.

    Raises:
        UserError: a key is missing, or holds a value of another kind.
    """
    for key, kind in kinds.items():
        if not isinstance(row, dict) or key not in row:
            raise UserError(f"{place} has no {key!r}, which must be {kind.name}; {REMEDY}")
        if not kind.holds(row[key]):
            raise UserError(f"{place} has {reprlib.repr(row[key])} under {key!r}, which must be {kind.name}; {REMEDY}")


def read_rows(path: Path, kinds: Kinds) -> Iterator[Placed]:
    """Yield the objects of a .jsonl or .jsonl.gz file, each with its place.

    Args:
        path: the file.
        kinds: what each object has under which key; it may have others.

    Raises:
        UserError: the file is missing, empty or no JSON lines, or an object is not of these kinds.
    """
    if not path.is_file():
        raise UserError(
            f"--benchmark_dir lacks the file {str(path)!r}; give the folder that holds the benchmark's data"
        )
    place = ""
    for number, line in enumerate(_lines(path), start=1):
        place = f"{str(path)!r}, line {number},"
        row = parse_json(place, line)
        check_row(place, row, kinds)
        yield place, row
    if not place:
        raise UserError(f"{str(path)!r} is empty and must hold a line for each problem; {REMEDY}")


def parse_json(place: str, text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        UserError: the text is no JSON, no UTF-8, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is no JSON that can be read ({error}); {REMEDY}") from error


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:  # no access; a foreign, cut or damaged .gz
        raise UserError(f"{str(path)!r} cannot be read ({error}); {REMEDY}") from error
