"""System calls that Python's standard library has no function for, by ctypes.

Numbers are those of x86_64 and aarch64, from the kernel's asm/unistd.h; calls above 423 have one number everywhere.
"""

import ctypes
import os
import platform
import signal

MACHINE = platform.machine()
_CLONE = {"x86_64": 56, "aarch64": 220}.get(MACHINE, -1)
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(MACHINE, -1)
_CAPSET = {"x86_64": 126, "aarch64": 91}.get(MACHINE, -1)
_MOUNT_SETATTR = 442

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

CAP_DAC_READ_SEARCH = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)
# Keeps the interpreter's lock, which a fork must not leave to nobody.
_libc_locked = ctypes.PyDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None, what: str) -> int:
    """Make a system call by its number.

    Raises:
        OSError: it failed; the message begins with `what`.
    """
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *converted), what)


def prctl(option: int, argument: int, third: int, what: str) -> None:
    """Change something about this process or thread.

    Raises:
        OSError: it was refused.
    """
    _checked(_libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(third), 0, 0), what)


def unshare(flags: int) -> None:
    """Leave the namespaces that the `CLONE_NEW` flags name, for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def clone(flags: int) -> int:
    """Fork into the new namespaces that the flags name; returns 0 in the child, like `os.fork`."""
    _libc_locked.PyOS_BeforeFork()
    process = _libc_locked.syscall(
        ctypes.c_long(_CLONE), ctypes.c_long(flags | signal.SIGCHLD), None, None, None, None
    )
    if process == 0:
        _libc_locked.PyOS_AfterFork_Child()
    else:
        _libc_locked.PyOS_AfterFork_Parent()
    return _checked(process, "clone")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or bind a path to another."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _checked(result, f"mount {kind or source} on {target}")


def make_read_only(path: str, devices: bool) -> None:
    """Make the mount at `path` and those below it read-only, without set-user-id programs.

    Flags are added only: those that an outer user namespace has locked stay. Linux 5.12.

    Args:
        path: a mount point.
        devices: leave device files there usable.
    """
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | (0 if devices else _MOUNT_ATTR_NODEV)
    structure = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    size = ctypes.sizeof(structure)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        os.fsencode(path),
        ctypes.c_long(_AT_RECURSIVE),
        ctypes.byref(structure),
        ctypes.c_long(size),
    )
    _checked(result, f"mount_setattr {path}")


def pivot_root(path: str) -> None:
    """Make `path` the root and let go of the old one."""
    os.chdir(path)
    # old and new root at the same place, as pivot_root(2) describes: no folder is needed for the old one
    syscall(_PIVOT_ROOT, b".", b".", what="pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, its parent, ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, "prctl PDEATHSIG")
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, "prctl CHILD_SUBREAPER")


def allow_own_proc_files() -> None:
    """Let this process write its own files in /proc again, which a change of user id has forbidden."""
    prctl(_PR_SET_DUMPABLE, 1, 0, "prctl DUMPABLE")


def forbid_new_privileges() -> None:
    """Have set-user-id programs and file capabilities give nothing; seccomp and Landlock ask for it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, "prctl NO_NEW_PRIVS")


def set_capabilities(mask: int) -> None:
    """Set the permitted and effective capabilities to the bits of `mask`, the inheritable ones to none."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: first their low, then their high 32 bits
    data = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
    _checked(_libc.syscall(ctypes.c_long(_CAPSET), ctypes.byref(header), ctypes.byref(data)), "capset")


def drop_user(user: int, keep: int = 0) -> None:
    """Become an unprivileged user for good.

    Args:
        user: user and group id.
        keep: bits of capabilities to keep.
    """
    if keep:
        prctl(_PR_SET_KEEPCAPS, 1, 0, "prctl KEEPCAPS")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if keep:
        set_capabilities(keep)
    allow_own_proc_files()
