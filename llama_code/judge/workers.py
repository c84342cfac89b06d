"""Worker processes as their caller sees them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

from llama_code.judge.packing import pack_task, read_packed, unpack
from llama_code.judge.task import Task, Verdict

# The same for every program on every machine: they decide verdicts.
LIMITS = {
    "address_space_bytes": 2**30,
    "file_bytes": 16 * 2**20,
    "tmp_bytes": 64 * 2**20,
    "tmp_inodes": 1000,
    "open_files": 64,
    "threads": 256,
    "tests_address_space_bytes": 2**29,
}
# Programs may import these besides the standard library, where they are installed.
PACKAGES = ("numpy",)
# What a worker, its tests' process and its program can take together.
WORKER_BYTES = LIMITS["address_space_bytes"] + LIMITS["tmp_bytes"] + LIMITS["tests_address_space_bytes"]
END_SECONDS = 5


class JudgeFailed(RuntimeError):
    """The judge itself cannot go on; says nothing about a program."""


class Worker:
    """One worker process.

    Args:
        level: how programs are isolated: "full", "landlock", "rlimits".
        packages: those of `PACKAGES` that programs may import.
        processor: the processor that all of it runs on, for a program's threads to take nothing from other programs;
            None for any.

    Raises:
        JudgeFailed: the level does not work on this machine.
    """

    def __init__(self, level: str, packages: tuple[str, ...] = (), processor: int | None = None) -> None:
        root = Path(__file__).resolve().parents[2]
        # A fixed hash seed: the order of a set must not decide a verdict. -P and -s keep the current folder and the
        # user's packages off sys.path; -I would too, but ignores the seed.
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(root),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        limits = json.dumps(LIMITS | {"packages": packages, "processor": processor})
        # not a pipe: a socket can be shut down while another thread writes to it
        self._tasks, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "llama_code.judge.worker", level, limits],
                cwd="/",
                env=environment,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                # Ctrl-C is the caller's to handle: it closes the worker's input.
                start_new_session=True,
            )
        packed = read_packed(self._output)
        greeting = {"lost": "its process ended while starting"} if packed is None else unpack(packed[0])
        if "lost" in greeting:
            self.close()
            raise JudgeFailed(f"level {level!r} does not work here: {greeting['lost']}")

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def judge(self, task: Task, timeout: float) -> Verdict | str:
        """Judge one task; returns why, when the worker died of it and has to be replaced."""
        try:
            self._tasks.sendall(pack_task(task, timeout))
        except (BrokenPipeError, ConnectionResetError):
            return "its process had ended"
        packed = read_packed(self._output)
        if packed is None:
            return "its process ended"
        answer = unpack(packed[0])
        return answer["lost"] if "lost" in answer else Verdict(**answer)

    def hurry(self) -> None:
        """Have the process end what it does at once; another thread may be waiting for its verdict."""
        try:
            self._tasks.shutdown(socket.SHUT_WR)
        except OSError:  # that thread has just closed it
            pass

    def close(self) -> None:
        """End the process and all that it started."""
        self._tasks.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
