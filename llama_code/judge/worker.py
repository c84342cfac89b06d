"""A trusted process that judges one task after another: `python -m llama_code.judge.worker LEVEL LIMITS`.

It is started as a fresh interpreter, holds a server that starts programs (`server`) and forks a process that runs the
tests of one task (`trial`), so that no test text changes the world of another, and keeps the deadlines. Tasks come on
standard input and verdicts go to standard output. When the input ends, whatever the reason, the worker kills what it
started and leaves.
"""

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time

from llama_code.judge import trial
from llama_code.judge.linux import die_with_parent
from llama_code.judge.packing import Message, pack, read_packed, unpack, unpack_task
from llama_code.judge.proxy import Connection, ServerLost
from llama_code.judge.task import Verdict

# Long enough to learn how a process ended that has closed its connection; one that lives on has closed it on purpose.
END_SECONDS = 0.2
CONTROL_BYTES = 2**16


def start_server(level: str, limits: Message) -> tuple[int, socket.socket]:
    """Start the server of programs and wait until it can start one; returns its process and the socket to it.

    By posix_spawn: what subprocess imports (threading) would make every fork of this process take longer.

    Raises:
        ServerLost: the level does not work here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-s", "-m", "llama_code.judge.server", level]
    with theirs:
        theirs.set_inheritable(True)
        process = os.posix_spawn(
            sys.executable,
            [*command, str(theirs.fileno()), json.dumps(limits)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
        )
    word = ours.recv(CONTROL_BYTES).decode("utf-8", "replace")
    if word != "ready":
        raise ServerLost(word.removeprefix("refused ") or "its server ended while starting")
    return process, ours


class Programs:
    """Starts a program's processes through the server, for one task.

    Args:
        control: the socket to the server.
        timeout: the time that the task has, in seconds.
    """

    def __init__(self, control: socket.socket, timeout: float) -> None:
        self._control = control
        self._id = 0
        self._connection: Connection | None = None
        # several threads may use up several seconds of processor time a second
        self._cpu_seconds = 2 * int(timeout + 1)

    def start(self) -> Connection:
        """Start a process in place of the one before.

        Raises:
            ServerLost: the server is gone.
        """
        self._close()
        if self._id:
            end_program(self._control)
        # unlike every other, for what the server says of an earlier task's may still be on its way
        self._id = time.monotonic_ns()
        ours, theirs = socket.socketpair()
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = os.pipe()
        try:
            handed = [stdin_read, stdout_write, theirs.fileno()]
            socket.send_fds(self._control, [f"spawn {self._id} {self._cpu_seconds}".encode()], handed)
        except OSError as error:
            raise ServerLost("its server does not listen any more") from error
        finally:
            theirs.close()
            os.close(stdin_read)
            os.close(stdout_write)
        self._connection = Connection(ours, stdout_read, stdin_write, self._end)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _end(self) -> trial.Outcome:
        """Tell how the process ended that has closed its connection."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while poll.poll(END_SECONDS * 1000):
            word, _, rest = self._control.recv(CONTROL_BYTES).decode("utf-8", "replace").partition(" ")
            identity, _, what = rest.partition(" ")
            if not word:
                raise ServerLost("its server ended while a program ran")
            if word == "failed":
                raise ServerLost(f"its server could not start a program: {what}")
            if int(identity) == self._id:
                return trial.status_outcome(int(what))
        return "crashed", "its process closed the connection"


def run_trial(control: socket.socket, channel: socket.socket, parent: int, address_space_bytes: int) -> None:
    """Run one task's tests in this process, which `parent` forked for it."""
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    packed = read_packed(channel.makefile("rb"))
    if packed is None:
        return
    programs = Programs(control, packed[1])
    try:
        reason, detail = trial.run(unpack_task(packed[0]), programs.start)
        message = {"reason": reason, "detail": trial.printable(detail)}
    except ServerLost as error:
        message = {"lost": str(error)}
    except MemoryError:
        message = {"reason": "too large", "detail": "what the tests hold of its results"}
    channel.sendall(pack(message))


class Trial:
    """The process that runs one task's tests, as its worker sees it.

    Args:
        control: the socket to the server.
        address_space_bytes: what the tests may take: they hold what a program returns, which is at most one message at
            a time, and what they compute from it.
    """

    def __init__(self, control: socket.socket, address_space_bytes: int) -> None:
        self.channel, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            self._process = os.fork()
            if self._process == 0:
                try:
                    self.channel.close()
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                    run_trial(control, theirs, parent, address_space_bytes)
                finally:
                    os._exit(0)
        self._file = self.channel.makefile("rb")

    def answer(self) -> Message | None:
        """Return what the process says of its task; None when it ended without a word."""
        packed = read_packed(self._file)
        return None if packed is None else unpack(packed[0])

    def end(self) -> None:
        """End the process."""
        os.kill(self._process, signal.SIGKILL)
        self._file.close()
        self.channel.close()
        os.waitpid(self._process, 0)


def judge_packed(tests: Trial, packed: bytes, timeout: float) -> trial.Outcome | None:
    """Judge one task; returns the outcome, None when the caller is gone.

    Raises:
        ServerLost: the server of programs is.
    """
    poll = select.poll()
    poll.register(tests.channel, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    tests.channel.sendall(packed)
    ready = [descriptor for descriptor, _ in poll.poll(timeout * 1000)]
    if ready == [sys.stdin.fileno()]:
        return None
    if not ready:
        return "timeout", f"no verdict within {timeout:g} s"
    answer = tests.answer()
    if answer is None:
        return "crashed", "the process of the tests, where its results are kept"
    if "lost" in answer:
        raise ServerLost(answer["lost"])
    return answer["reason"], answer["detail"]


def judge_all(control: socket.socket, verdicts: int, address_space_bytes: int) -> None:
    """Judge tasks until standard input ends.

    Raises:
        ServerLost: the server of programs is.
    """
    while (task := read_packed(sys.stdin.buffer)) is not None:
        start = time.monotonic()
        tests = Trial(control, address_space_bytes)
        try:
            outcome = judge_packed(tests, *task)
        finally:
            tests.end()
        seconds = time.monotonic() - start
        if outcome is None:
            return
        end_program(control)
        os.write(verdicts, pack(Verdict(outcome == trial.PASSED, *outcome, seconds)._asdict()))


def end_program(control: socket.socket) -> None:
    """Have the server kill the current program, and forget what it has said of earlier ones.

    Raises:
        ServerLost: the server is gone.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    try:
        while poll.poll(0):
            if not control.recv(CONTROL_BYTES):
                raise ServerLost("its server ended")
        control.send(b"kill")
    except OSError as error:
        raise ServerLost("its server does not listen any more") from error


def main() -> None:
    """Judge tasks until standard input ends."""
    level, limits = sys.argv[1], json.loads(sys.argv[2])
    # What tests print must not get among the verdicts.
    verdicts = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if limits["processor"] is not None:
        # for good: the filter of system calls does not let a program change it
        os.sched_setaffinity(0, {limits["processor"]})
    try:
        server, control = start_server(level, limits)
    except ServerLost as error:
        os.write(verdicts, pack({"lost": str(error)}))
        return
    gc.freeze()
    try:
        os.write(verdicts, pack({"ready": level}))
        judge_all(control, verdicts, limits["tests_address_space_bytes"])
    except ServerLost as error:
        os.write(verdicts, pack({"lost": str(error)}))
    except BrokenPipeError:  # the caller is gone
        pass
    finally:
        control.close()
        os.waitpid(server, 0)


if __name__ == "__main__":
    main()
