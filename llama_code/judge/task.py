"""What is judged, and what is said of it."""

from typing import Any, NamedTuple

Value = Any


class Assertions(NamedTuple):
    """Test text that calls the program's functions and asserts what they return.

    Attributes:
        source: Python statements. Names that they load and that are neither theirs nor builtins are the program's.
    """

    source: str


class StdinCases(NamedTuple):
    """Runs of a program that reads standard input and writes standard output.

    Attributes:
        inputs: what each run reads.
        outputs: what each run has to write, but for white space at the ends of lines and of the text.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class CallCases(NamedTuple):
    """Calls of one function, or of a method of that name of the program's class `Solution`.

    Attributes:
        name: the function's name.
        arguments: the positional arguments of each call: None, booleans, numbers, strings, lists, dictionaries.
        results: for each call a list of the results that are right; a tuple that is returned equals a list.
    """

    name: str
    arguments: tuple[list[Value], ...]
    results: tuple[list[Value], ...]


Tests = Assertions | StdinCases | CallCases


class Task(NamedTuple):
    """A program and the tests that it has to pass.

    Attributes:
        program: Python source, written by a model: nothing about it is trusted.
        tests: written by the data set's authors: trusted, run outside the program's process.
    """

    program: str
    tests: Tests


# Every reason that a verdict can give, and how metrics/code_eval words it.
REASONS = (
    "passed",
    "wrong answer",
    "exception",
    "syntax error",
    "timeout",
    "memory",
    "forbidden",
    "too large",
    "exited",
    "crashed",
)


class Verdict(NamedTuple):
    """What became of one program.

    Attributes:
        passed: all of its tests succeeded within the limits.
        reason: one of `REASONS`: a test said no ("wrong answer"), an exception ended it ("exception"), compile()
            refused it ("syntax error"), time ran out ("timeout"), memory did ("memory"), it asked for what the judge
            denies ("forbidden"), a result could not be carried ("too large"), it left before the tests' end
            ("exited"), it died of a signal or spoke nonsense ("crashed").
        detail: the assertion that failed or the exception, at most `DETAIL_LENGTH` printable characters; parts of it
            are the program's own words.
        seconds: wall-clock time from the start of its process to the verdict.
    """

    passed: bool
    reason: str
    detail: str
    seconds: float


DETAIL_LENGTH = 300
