"""What a candidate's own process executes: limits first, then the program, then one report.

Started as a script by `llama_code.judge.processes` (`python runner.py REQUEST REPORT_FD`), never imported.
"""

import json
import os
import resource
import sys
from os import write as write_report  # bound now: the program may replace os.write

EXCEPTION_NAME_LENGTH = 100


def set_limits(limits: dict[str, int]) -> None:
    """Lower this process's resource limits; `limits` maps a `resource` name to a soft and hard limit."""
    for name, value in limits.items():
        which = getattr(resource, name)
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def run(program: str) -> str | None:
    """Execute `program` as a main module; returns None when it ran to its last statement, else why it did not."""
    try:
        code = compile(program, "<candidate>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        # compile() itself refuses these: bad syntax, NUL bytes or lone surrogates, nesting that is too deep
        return "syntax error" if isinstance(error, (SyntaxError, ValueError)) else type(error).__name__
    try:
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: a program that leaves early has not passed
        return type(error).__name__
    return None


if __name__ == "__main__":
    request_path, report_fd = sys.argv[1], int(sys.argv[2])
    with open(request_path, encoding="utf-8") as request_file:
        request = json.load(request_file)
    os.unlink(request_path)  # it holds the nonce
    sys.argv = ["candidate.py"]
    process_id = os.getpid()
    set_limits(request["limits"])
    reason = run(request["program"])
    # The name of an exception's class is the program's to choose, so an empty one must not look like success.
    report = request["nonce"] if reason is None else reason[:EXCEPTION_NAME_LENGTH]
    # A copy of this process that the program has forked reports nothing.
    if os.getpid() == process_id:
        write_report(report_fd, report.encode("utf-8", "replace"))
    os._exit(0)  # atexit handlers and threads of the program get no time after the verdict
