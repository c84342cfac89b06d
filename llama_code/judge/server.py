"""Starts programs, one at a time, each in a process of its own: `python -m llama_code.judge.server LEVEL FD LIMITS`.

Started by a worker as a fresh interpreter, so that programs inherit nothing of whoever evaluates them; warm, so that
they start in milliseconds. The worker sends over descriptor FD, a SOCK_SEQPACKET socket:

    spawn ID CPU_SECONDS    with three descriptors: standard input, standard output, the connection to the tests
    kill                    ends the current program, if one runs; so does the next spawn

and receives `ready` or `refused WHY` once, then for each program, when it is dead and nothing of it is left,
`exit ID STATUS`, or `failed ID WHY` if it could not be started. When the worker closes the socket the server ends.
"""

import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from llama_code.judge import agent, files, landlock, limits, linux, namespaces, seccomp

Limits = dict[str, Any]

# What generated programs import most, and what costs little to have; without threading, and random (which statistics
# and tempfile import), whose work after a fork costs every program more than importing them costs those that do.
WARM = (
    "array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools "
    "hashlib heapq io itertools json math numbers operator re string struct textwrap time traceback types typing"
).split()
# The user that programs run as when the server is started by root: "nobody". Without user namespaces it is one of
# those from `FIRST_USER` on, by the worker's processor, so that programs of different workers are not one user's.
UNPRIVILEGED_USER = 65534
FIRST_USER, NUM_USERS = 64000, 1000
CONTROL_BYTES = 2**12
SETUP_FAILED = 97
FIRST_FREE = 4
# Without a user namespace the limit on threads counts all that its user runs, which may grow by so many times as many
# as one program may have.
SPARE_TASKS = 4


Enter = Callable[[int], None]


def main() -> None:
    """Serve a worker until it closes its end."""
    level, control, bounds = sys.argv[1], socket.socket(fileno=int(sys.argv[2])), json.loads(sys.argv[3])
    linux.die_with_parent(os.getppid())
    os.umask(0o022)  # folders that are made for programs are for another user to enter
    try:
        if level == "full":
            namespaces.leave()
            # the first process of a PID namespace: with it goes all that is in it
            process = os.fork()
            if process:
                control.close()
                os.waitpid(process, 0)
                return
            linux.die_with_parent(os.getppid())
        enter = LEVELS[level](bounds)
        Server(control, level, enter).run()
    except OSError as error:
        control.send(f"refused {error}".encode()[:CONTROL_BYTES])


def confine_in_namespaces(bounds: Limits) -> Enter:
    """Build the view that programs have of the machine; level "full".

    Raises:
        OSError: a step of it was refused.
    """
    packages = namespaces.build_view(files.package_paths(bounds["packages"]))
    if os.getuid() == 0:
        linux.drop_user(UNPRIVILEGED_USER)
        linux.die_with_parent(os.getppid())
    warm(packages)
    user, group = os.getuid(), os.getgid()

    def enter(cpu_seconds: int) -> None:
        namespaces.enter_own(bounds, user, group)
        limits.set_limits(bounds, cpu_seconds, bounds["threads"])
        # none comes back: the filter lets nothing be executed
        linux.set_capabilities(0)
        linux.forbid_new_privileges()
        if landlock.version():
            own = [("/", landlock.READ), (namespaces.TMP, landlock.WRITE), ("/dev/null", landlock.WRITE)]
            landlock.restrict(landlock.make_ruleset(own))
        seccomp.install()

    return enter


def confine_by_landlock(bounds: Limits) -> Enter:
    """Name the files that programs may read; level "landlock".

    Raises:
        OSError: a step of it was refused.
    """
    packages = files.package_paths(bounds["packages"])
    # Where only root can reach Python, programs need root's right to read; Landlock decides what.
    reachable = all(map(files.readable_by_all, files.standard_library()))
    keep = linux.CAP_DAC_READ_SEARCH if os.getuid() == 0 and not reachable else 0
    if os.getuid() == 0:
        linux.drop_user(FIRST_USER + (bounds["processor"] or 0) % NUM_USERS, keep)
        linux.die_with_parent(os.getppid())
    linux.adopt_orphans()
    os.chdir("/")
    tasks = limits.num_tasks_of_user() + SPARE_TASKS * bounds["threads"]
    warm(packages)
    entries = [entry for folder in files.standard_library() for entry in files.readable_entries(folder)]
    readable = [*entries, *files.libraries(), *files.zones(), *packages, *files.DEVICES]
    rules = [(path, landlock.READ) for path in readable] + [("/dev/null", landlock.WRITE)]
    ruleset = landlock.make_ruleset(rules)

    def enter(cpu_seconds: int) -> None:
        limits.set_limits(bounds, cpu_seconds, tasks)
        linux.forbid_new_privileges()
        landlock.restrict(ruleset)
        linux.set_capabilities(keep)
        seccomp.install()

    return enter


def confine_by_limits(bounds: Limits) -> Enter:
    """Level "rlimits": a program has the rights of the user that it runs as.

    Raises:
        OSError: that user cannot read Python.
    """
    packages = files.package_paths(bounds["packages"])
    if os.getuid() == 0:
        for folder in files.standard_library():
            if not files.readable_by_all(folder):
                raise PermissionError(f"user {UNPRIVILEGED_USER}, as which root's programs run, cannot read {folder}")
        linux.drop_user(UNPRIVILEGED_USER)
        linux.die_with_parent(os.getppid())
    linux.adopt_orphans()
    os.chdir("/")
    tasks = limits.num_tasks_of_user() + SPARE_TASKS * bounds["threads"]
    warm(packages)

    def enter(cpu_seconds: int) -> None:
        limits.set_limits(bounds, cpu_seconds, tasks)
        linux.forbid_new_privileges()

    return enter


LEVELS: dict[str, Callable[[Limits], Enter]] = {
    "full": confine_in_namespaces,
    "landlock": confine_by_landlock,
    "rlimits": confine_by_limits,
}


def warm(packages: list[str]) -> None:
    """Make this process what programs start from: their environment, imports from where they may import."""
    os.environ.clear()
    os.environ.update(PATH=os.defpath, LANG="C.UTF-8", HOME=namespaces.TMP, TMPDIR=namespaces.TMP)
    library = files.standard_library()
    extensions = [os.path.join(folder, "lib-dynload") for folder in library]
    sys.path[:] = [*library, *extensions, *dict.fromkeys(map(os.path.dirname, packages))]
    for name in WARM:
        importlib.import_module(name)
    for path in packages:
        if not path.endswith(".libs"):
            importlib.import_module(os.path.basename(path))
    # fills the cache of the folder listings that imports use
    importlib.util.find_spec("this")
    seccomp.prepare()
    gc.collect()
    gc.freeze()


class Server:
    """The loop that starts and ends programs.

    Args:
        control: the socket to the worker.
        level: decides into which namespaces and which folder programs start.
        enter: confines a program's process, for so many seconds of processor time.
    """

    def __init__(self, control: socket.socket, level: str, enter: Enter) -> None:
        self._control = control
        self._level = level
        self._enter = enter
        self._null = os.open(os.devnull, os.O_RDWR)
        # why a program could not be started; closed in every program that could
        self._trouble_read, self._trouble_write = os.pipe()
        os.set_blocking(self._trouble_read, False)
        self._process = 0
        self._id = ""
        self._folder = ""

    def run(self) -> None:
        """Serve until the worker closes the socket."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        self._control.send(b"ready")
        watched = -1
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if watched in ready:
                poll.unregister(watched)
                os.close(watched)
                watched = -1
                self._end()
            if self._control.fileno() not in ready:
                continue
            try:
                message, descriptors, _, _ = socket.recv_fds(self._control, CONTROL_BYTES, 3)
            except ConnectionResetError:  # the worker closed it before it had read all that was sent
                message, descriptors = b"", []
            if watched >= 0:
                poll.unregister(watched)
                os.close(watched)
                watched = -1
                os.kill(self._process, signal.SIGKILL)
                self._end()
            if not message:
                return
            if message.startswith(b"spawn "):
                _, self._id, cpu_seconds = message.decode().split()
                watched = self._start(descriptors, int(cpu_seconds))
                poll.register(watched, select.POLLIN)
                for descriptor in descriptors:
                    os.close(descriptor)

    def _start(self, descriptors: list[int], cpu_seconds: int) -> int:
        """Start a program's process; returns a descriptor that is readable when it has ended."""
        if self._level == "rlimits":
            self._folder = files.make_folder()
        parent = os.getpid()
        self._process = linux.clone(namespaces.PROGRAM_FLAGS) if self._level == "full" else os.fork()
        if self._process == 0:
            self._become_program(descriptors, cpu_seconds, parent)
        return os.pidfd_open(self._process)

    def _become_program(self, descriptors: list[int], cpu_seconds: int, parent: int) -> NoReturn:
        try:
            # the parent of the first process of a PID namespace is 0 there
            linux.die_with_parent(0 if self._level == "full" else parent)
            os.setsid()
            if self._folder:
                os.environ.update(HOME=self._folder, TMPDIR=self._folder)
                os.chdir(self._folder)
            self._enter(cpu_seconds)
            stdin, stdout, channel = (os.dup(descriptor) for descriptor in descriptors)
            for number, descriptor in enumerate((stdin, stdout, self._null, channel)):
                os.dup2(descriptor, number)
            os.closerange(FIRST_FREE, os.sysconf("SC_OPEN_MAX"))
        except BaseException as error:
            os.write(self._trouble_write, f"{type(error).__name__}: {error}".encode()[:CONTROL_BYTES])
            os._exit(SETUP_FAILED)
        agent.serve(3)

    def _end(self) -> None:
        """Reap the program's process, sweep what it has left, and tell the worker."""
        _, status = os.waitpid(self._process, 0)
        if self._level != "full":
            sweep()
        if self._folder:
            files.remove_folder(self._folder)
            self._folder = ""
        word = f"exit {self._id} {status}"
        if status == SETUP_FAILED << 8:
            word = self._trouble() or word
        try:
            self._control.send(word.encode())
        except BrokenPipeError:  # the worker is gone, which the loop is about to see
            pass

    def _trouble(self) -> str:
        try:
            return f"failed {self._id} " + os.read(self._trouble_read, CONTROL_BYTES).decode("utf-8", "replace")
        except BlockingIOError:  # the program itself left with that status
            return ""


def sweep() -> None:
    """Kill and reap all processes that have become this one's children, until there are none."""
    path = f"/proc/self/task/{os.getpid()}/children"
    while True:
        with open(path) as file:
            children = [int(word) for word in file.read().split()]
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
