"""Resource limits of a program's process."""

import os
import resource
from collections.abc import Mapping


def set_limits(limits: Mapping[str, int], cpu_seconds: int, tasks: int) -> None:
    """Limit this process and what it starts, for good.

    Args:
        limits: `address_space_bytes`, `file_bytes` (of one file), `open_files`.
        cpu_seconds: processor time after which SIGKILL comes.
        tasks: threads and processes of this user, in this user namespace, after which no more can be started.
    """
    values = {
        resource.RLIMIT_AS: limits["address_space_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_CPU: cpu_seconds,
    }
    for which, value in values.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def num_tasks_of_user() -> int:
    """Return how many threads and processes this user has."""
    count = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{process}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{process}/task"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return count
