"""Judging in separate processes with limits: what stands until candidates can be isolated.

Each program gets a fresh interpreter in its own session and temporary folder, a minimal environment, no input, its
output discarded, resource limits and a deadline, after which its process group is killed.

Kept from fooling the verdict: leaving early with exit status 0 (`sys.exit(0)`, `os._exit(0)`), printing, looping,
allocating, recursing. Not kept from anything: a program has this user's rights, can read and write files elsewhere,
use the network, start processes that outlive it (a new session escapes the group), and search its own memory for the
nonce that means "passed".
"""

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from llama_code.errors import UserError

JUDGE_LEVEL = "process-limits"
WARNING = "candidates run in a separate process with time and memory limits; this is NOT a sandbox"

ADDRESS_SPACE_BYTES = 4 * 2**30
FILE_SIZE_BYTES = 16 * 2**20
NUM_OPEN_FILES = 64
RUNNER = Path(__file__).with_name("runner.py")


class Verdict(NamedTuple):
    """What became of one program.

    Attributes:
        passed: the program ran to its last statement within the limits.
        reason: "passed", "timeout", "syntax error", "exited" (it ended without a report: killed, crashed or left
            through os._exit), or the name of the exception that ended it.
        seconds: wall-clock time from the start of the process to its verdict.
    """

    passed: bool
    reason: str
    seconds: float


def check_platform() -> None:
    """Refuse platforms on which the limits do not hold.

    Raises:
        UserError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UserError(
            f"programs written by a model are judged on Linux only and this platform is {sys.platform!r}; "
            "run the evaluation in a Linux Docker container, or ask for --tasks perplexity"
        )


def run_program(program: str, timeout: float = 3.0) -> Verdict:
    """Run one program in a process of its own.

    Args:
        program: Python source, tests included; it passes when its last statement is reached.
        timeout: wall-clock limit in seconds, Python's start included.
    """
    nonce = secrets.token_hex(16)
    limits = {
        "RLIMIT_CPU": math.ceil(timeout) + 1,
        "RLIMIT_AS": ADDRESS_SPACE_BYTES,
        "RLIMIT_FSIZE": FILE_SIZE_BYTES,
        "RLIMIT_NOFILE": NUM_OPEN_FILES,
        "RLIMIT_CORE": 0,
        # no RLIMIT_NPROC: root is exempt from it, and for others it counts every process of the user
    }
    folder = tempfile.mkdtemp(prefix="judge-")
    try:
        request = Path(folder, "request.json")
        request.write_text(json.dumps({"program": program, "nonce": nonce, "limits": limits}), encoding="utf-8")
        start = time.monotonic()
        report = _run_request(request, folder, start + timeout)
        seconds = time.monotonic() - start
    finally:
        # Not shutil.rmtree, which recurses: a program may leave thousands of folders inside each other.
        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)
    if report is None:
        return Verdict(False, "timeout", seconds)
    if report == nonce:
        return Verdict(True, "passed", seconds)
    # The rest of what it wrote is the program's own doing and gets no place in the results.
    is_reason = report == "syntax error" or (report.isidentifier() and report != "passed")
    return Verdict(False, report if is_reason else "exited", seconds)


def _run_request(request: Path, folder: str, deadline: float) -> str | None:
    """Start the runner and wait for its report; None when the deadline passes first, "" when it ends without one."""
    report_read, report_write = os.pipe()
    # A fixed hash seed: the order of a set must not decide a verdict. -P and -s keep the runner's own folder and the
    # user's packages off sys.path; -I would too, but ignores the seed.
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", str(RUNNER), str(request), str(report_write)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[report_write],
            start_new_session=True,
        )
        os.close(report_write)
        report_write = -1
        try:
            # The pipe tells the end, not the exit status: it is readable on a report or when the process is gone.
            poller = select.poll()
            poller.register(report_read, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            return os.read(report_read, 4096).decode("utf-8", "replace")
        finally:
            # Not yet waited for, so the process id cannot have been given to another process.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        os.close(report_read)
        if report_write >= 0:
            os.close(report_write)


def run_programs(
    programs: Sequence[str],
    timeout: float = 3.0,
    num_workers: int = 2,
    on_verdict: Callable[[], object] = lambda: None,
) -> list[Verdict]:
    """Run programs side by side and return their verdicts in the same order.

    Args:
        programs: Python sources, tests included.
        timeout: wall-clock limit of each, in seconds.
        num_workers: how many run at once.
        on_verdict: called after each verdict, for a progress bar.

    Raises:
        UserError: this is not Linux.
    """
    check_platform()
    pool = ThreadPoolExecutor(max_workers=num_workers)
    try:
        verdicts = []
        for verdict in pool.map(lambda program: run_program(program, timeout), programs):
            verdicts.append(verdict)
            on_verdict()
        return verdicts
    finally:
        pool.shutdown(cancel_futures=True)
