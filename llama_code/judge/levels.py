"""How well programs can be isolated on this machine: found out by doing it."""

import functools
import sys

from llama_code.errors import UserError
from llama_code.judge.task import Assertions, Task
from llama_code.judge.workers import JudgeFailed, Worker

# Best first.
DESCRIPTIONS = {
    "full": "programs run in namespaces of their own, with Landlock, seccomp and resource limits",
    "landlock": "programs run with Landlock, seccomp and resource limits, without namespaces",
    "rlimits": "programs run with resource limits alone: they are NOT isolated and have your rights",
}
LEVELS = tuple(DESCRIPTIONS)
ISOLATED = ("full", "landlock")

# What must fail for a program whose level isolates it, and what must not.
PROBE = Task(
    """
import os, socket, sys, threading

def attempt(action):
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return "done"

def read(path):
    with open(path) as file:
        return file.read(1)

def probe(module_path):
    results = []
    thread = threading.Thread(target=lambda: results.append("ran"))
    thread.start()
    thread.join()
    return {
        "fork": attempt(os.fork),
        "socket": attempt(socket.socket),
        "kill": attempt(lambda: os.kill(os.getppid() or -1, 0)),
        "write": attempt(lambda: open("/llama-code-probe", "w")),
        "read": attempt(lambda: read(module_path)),
        "thread": results,
        "environment": sorted(set(os.environ) - {"PATH", "LANG", "HOME", "TMPDIR"}),
    }
""",
    Assertions(
        """
found = probe("/etc/passwd")
assert found.pop("read") in ("PermissionError", "FileNotFoundError"), "files can be read"
assert found.pop("write") in ("PermissionError", "OSError"), "files can be written"
assert found.pop("fork") == "PermissionError", "processes can be started"
assert found.pop("socket") == "PermissionError", "sockets can be opened"
assert found.pop("kill") == "PermissionError", "processes can be signalled"
assert found == {"thread": ["ran"], "environment": []}, "threads do not run, or the environment is there"
"""
    ),
)
PROBE_SECONDS = 20.0


@functools.cache
def refusal(level: str) -> str | None:
    """Return why a level does not work on this machine, None if it does.

    A program is run that tries what the level has to deny.
    """
    try:
        worker = Worker(level)
    except JudgeFailed as error:
        return str(error)
    try:
        task = PROBE if level in ISOLATED else Task("def f():\n    return 1", Assertions("assert f() == 1"))
        verdict = worker.judge(task, PROBE_SECONDS)
    finally:
        worker.close()
    if isinstance(verdict, str):
        return f"level {level!r} does not work here: {verdict}"
    return None if verdict.passed else f"level {level!r} does not hold here: {verdict.reason}, {verdict.detail}"


def works(level: str) -> bool:
    """Whether a level works on this machine."""
    return refusal(level) is None


def choose_level(allow_unsafe: bool = False) -> str:
    """Return the best level that works on this machine.

    Args:
        allow_unsafe: take resource limits alone, where nothing better works.

    Raises:
        UserError: nothing works that isolates programs.
    """
    check_platform()
    for level in LEVELS if allow_unsafe else ISOLATED:
        if works(level):
            return level
    reasons = "; ".join(str(refusal(level)) for level in ISOLATED)
    raise UserError(
        f"programs written by a model cannot be isolated on this machine ({reasons}); run on Linux 5.13 or newer in a "
        "container of a recent Docker, or accept with --allow_unsafe_judge that they run with your rights"
    )


def check_level(level: str) -> None:
    """Refuse a level that does not work on this machine.

    Raises:
        UserError: it does not.
    """
    check_platform()
    if level not in LEVELS:
        raise UserError(f"the judge's level is {level!r} and must be one of {', '.join(LEVELS)}; name one of them")
    if (reason := refusal(level)) is not None:
        raise UserError(f"{reason}; leave the level out to get the best that works")


def check_platform() -> None:
    """Refuse platforms on which programs cannot be isolated.

    Raises:
        UserError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UserError(
            f"programs written by a model are judged on Linux only and this platform is {sys.platform!r}; "
            "run the evaluation in a Linux Docker container, or ask for --tasks perplexity"
        )
