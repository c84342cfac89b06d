"""One program's tests, run in a process of their own that is trusted and shares nothing with the program.

How names of test text are resolved, in this order:

1. what the text itself defines or imports;
2. builtins: the judge's own. One exception: text that loads no name but builtins, and a single function of them
   (MBPP 126 tests a function that is called `sum`), means the program's function of that name;
3. modules of the standard library, numpy as `np`, and what `PURE` modules hold (`Counter`, `datetime`, `isclose`): the
   judge's own, if the program has bound the name to it (HumanEval's tests use the `math` that the prompt imports);
4. the program's own names: data by value, functions, classes and instances as `proxy.Remote`, exception classes as
   exception classes of the same name and nearest builtin base.
"""

import ast
import builtins
import contextlib
import copy
import importlib
import io
import signal
import sys
from collections.abc import Callable
from typing import Any

from llama_code.judge.proxy import Connection, FromProgram, Remote, ServerLost, Stop
from llama_code.judge.task import DETAIL_LENGTH, Assertions, CallCases, StdinCases, Task

Value = Any
Outcome = tuple[str, str]
# Starts a process for the program.
Start = Callable[[], Connection]

TEST_FILE = "<tests>"
PASSED: Outcome = ("passed", "")
MODULE_ALIASES = {"np": "numpy"}
# Standard modules whose classes and functions tests get as their own: none of them reaches beyond its arguments.
PURE = (
    "array bisect calendar cmath collections copy datetime decimal fractions functools heapq itertools json math "
    "operator re statistics string"
).split()


class NoTests(ValueError):
    """Test text that is no Python."""


def check_tests(source: str) -> None:
    """Refuse test text that does not compile.

    Raises:
        NoTests: it does not.
    """
    try:
        compile(source, TEST_FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise NoTests(f"{type(error).__name__}: {error}") from error


def check_cases(tests: StdinCases | CallCases) -> None:
    """Refuse cases without an input, or with another number of results than of inputs.

    Raises:
        NoTests: there is none, or they do not match.
    """
    inputs, results = tests[-2:]
    if not inputs or len(inputs) != len(results):
        raise NoTests(f"{len(inputs)} inputs and {len(results)} results, where each of at least one input needs one")


def run(task: Task, start: Start) -> Outcome:
    """Run a task's tests; returns the reason of the verdict and its detail."""
    if isinstance(task.tests, Assertions):
        return run_assertions(task.program, task.tests.source, start())
    if isinstance(task.tests, CallCases):
        return run_calls(task.program, task.tests, start())
    return run_stdin(task.program, task.tests, start)


def run_assertions(program: str, source: str, connection: Connection) -> Outcome:
    """Execute test text against a program; it passes when the text's last statement is reached."""
    connection.feed("")
    connection.stop_expected = any(
        getattr(node, "id", None) == "StopIteration" or getattr(node, "attr", None) == "__next__"
        for node in ast.walk(ast.parse(source))
    )
    names = Names(connection, shadowed_builtin(source))
    code = compile(source, TEST_FILE, "exec", dont_inherit=True)

    def execute() -> Outcome:
        connection.ask("load", program, "candidate")
        for name in names_in_classes(source):
            names.find(name)
        exec(code, names)
        return PASSED

    return _outcome(execute, connection, source)


def run_calls(program: str, cases: CallCases, connection: Connection) -> Outcome:
    """Call a function of a program once a case and compare what it returns."""
    connection.feed("")

    def execute() -> Outcome:
        connection.ask("load", program, "candidate")
        names = Names(connection, cases.name)
        function = names.get_or_none(cases.name)
        if function is None:
            solution = names.get_or_none("Solution")
            if solution is None:
                raise NameError(f"name {cases.name!r} is not defined")
            function = getattr(solution(), cases.name)
        for number, (arguments, accepted) in enumerate(zip(cases.arguments, cases.results, strict=True), start=1):
            # a copy: what the program changes must not be what its result is compared with
            result = function(*copy.deepcopy(arguments))
            if not _is_one_of(result, accepted):
                connection.muted = True
                wanted = " or ".join(map(_short, accepted))
                return "wrong answer", f"call {number} returned {_short(result)}, not {wanted}"
        return PASSED

    return _outcome(execute, connection, "")


def run_stdin(program: str, cases: StdinCases, start: Start) -> Outcome:
    """Run a program once a case, each time in a new process, and compare what it writes."""
    for number, (given, expected) in enumerate(zip(cases.inputs, cases.outputs, strict=True), start=1):
        connection = start()
        connection.feed(given)
        written = io.StringIO()

        def execute(connection: Connection = connection, written: io.StringIO = written) -> Outcome:
            with contextlib.redirect_stdout(written):
                connection.ask("load", program, "__main__")
            return PASSED

        outcome = _outcome(execute, connection, "")
        left_well = outcome[0] == "exited" and outcome[1] == exit_detail(0)
        if outcome != PASSED and not left_well:
            return outcome[0], f"case {number}: {outcome[1]}"[:DETAIL_LENGTH]
        connection.drain()
        text = written.getvalue() + connection.output.decode("utf-8", "replace")
        if _lines(text) != _lines(expected):
            return "wrong answer", f"case {number} wrote {_short(text)}, not {_short(expected)}"
    return PASSED


class Names(dict[str, Value]):
    """The global names of test text.

    Args:
        connection: to the program.
        shadowed: a builtin that means the program's function here; None if there is none.
    """

    def __init__(self, connection: Connection, shadowed: str | None) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self._connection = connection
        self._shadowed = shadowed

    def find(self, name: str) -> None:
        """Bind a name for good, if the program has it and the text does not bind it itself before."""
        value = self.get_or_none(name)
        if value is not None and not hasattr(builtins, name):
            self[name] = value

    def get_or_none(self, name: str) -> Value:
        """Return what a name stands for, None if nothing."""
        try:
            return self[name]
        except KeyError:
            return None

    def __missing__(self, name: str) -> Value:
        if hasattr(builtins, name) and name != self._shadowed:
            raise KeyError(name)
        found = self._connection.ask("name", name)
        if type(found) is not list or len(found) != 2:
            raise KeyError(name)
        value, origin = found
        own = _of_the_judge(name, origin)
        if own is None and not isinstance(value, (Remote, type)):
            return value  # a variable: it may change before it is read again
        self[name] = value = value if own is None else own
        return value


def _of_the_judge(name: str, origin: Value) -> Value:
    """Return the judge's own object for what a program says that it has bound a name to; None where it has none.

    Args:
        name: in the test text.
        origin: what the program says: a module and a name in it, "" for the module itself.
    """
    if type(origin) is not tuple or len(origin) != 2:
        return None
    module, inner = origin
    if inner == "":
        known = module == MODULE_ALIASES.get(name, name) and (
            module in sys.stdlib_module_names or name in MODULE_ALIASES
        )
        return importlib.import_module(module) if known else None
    return getattr(importlib.import_module(module), inner, None) if module in PURE and type(inner) is str else None


def names_in_classes(source: str) -> list[str]:
    """Return the names that bodies of classes load: Python looks them up past `Names.__missing__`."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    loaded = [node for one in classes for node in ast.walk(one) if isinstance(node, ast.Name)]
    return sorted({node.id for node in loaded if isinstance(node.ctx, ast.Load)})


def shadowed_builtin(source: str) -> str | None:
    """Return the builtin function that test text must mean as the program's, None if there is none such."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    stored = {node.id for node in nodes if not isinstance(node.ctx, ast.Load)}
    loaded = {node.id for node in nodes} - stored
    functions = [name for name in loaded if not isinstance(getattr(builtins, name, None), type)]
    alone = len(functions) == 1 and hasattr(builtins, functions[0])
    return functions[0] if alone else None


def _outcome(execute: Callable[[], Outcome], connection: Connection, source: str) -> Outcome:
    """Run tests to their end and name what ended them."""
    try:
        outcome = execute()
    except Stop:
        outcome = PASSED
    except ServerLost:
        raise
    # whatever ends the tests before their end is a failure, SystemExit included
    except BaseException as error:
        connection.muted = True
        outcome = _reason(error, source)
    # What ended the conversation stands, even if the tests caught it.
    return connection.failure or outcome


def _reason(error: BaseException, source: str) -> Outcome:
    from_program: FromProgram | None = getattr(error, "from_program", None)
    name = type(error).__name__
    text = from_program.text if from_program else _text(error)
    detail = f"{name}: {text}" if text else name
    if isinstance(error, AssertionError) and not from_program:
        return "wrong answer", _failing_assertion(error, source) + (f", {text}" if text else "")
    if isinstance(error, MemoryError):
        return "memory" if from_program else "too large", detail
    if from_program and from_program.while_compiling:
        return "syntax error", detail
    if from_program and isinstance(error, PermissionError):
        return "forbidden", detail
    if from_program and isinstance(error, SystemExit):
        return "exited", exit_detail(0 if error.code is None else error.code)
    return "exception", detail


def exit_detail(status: object) -> str:
    """Word the end of a program that left by itself."""
    return f"it left with exit status {_short(status)}"


def status_outcome(status: int) -> Outcome:
    """Name the end of a program's process by its status, as `os.waitpid` gives it."""
    if status & 0x7F == 0:
        return "exited", exit_detail(status >> 8)
    number = status & 0x7F
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    reason = {"SIGXCPU": "timeout", "SIGSYS": "forbidden"}.get(name, "crashed")
    return reason, f"its process died of {name}"


def _failing_assertion(error: AssertionError, source: str) -> str:
    """Return the text of the assertion that failed: the innermost one at the last line of the tests that ran."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEST_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return ast.get_source_segment(source, node) or "assert"
    return type(error).__name__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except (RecursionError, MemoryError, ValueError) as second:  # its arguments are too deep or too long to be shown
        return f"({type(second).__name__} in the message)"


def _short(value: Value) -> str:
    try:
        text = repr(value)
    except (RecursionError, MemoryError, ValueError):  # ValueError: an integer of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:97] + "..."


def printable(detail: str) -> str:
    """Return at most `DETAIL_LENGTH` characters of a detail, those that do not print replaced."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in detail[:DETAIL_LENGTH]
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _is_one_of(result: Value, accepted: list[Value]) -> bool:
    """Whether a result equals one of those that are right, which are JSON and have lists where Python has tuples."""
    try:
        return any(_lists(result) == right for right in accepted)
    except RecursionError:  # deeper than any of them
        return False


def _lists(value: Value) -> Value:
    if type(value) in (list, tuple):
        return [_lists(part) for part in value]
    return value
