"""Namespaces, and the view of files in them: of the server's (one for all programs) and of each program's own."""

import os
from collections.abc import Mapping, Sequence

from llama_code.judge import files, linux
from llama_code.judge.linux import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_OUTER = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
# A program stays in its server's network namespace, which is empty: a new one takes as long as the rest of the start.
PROGRAM_FLAGS = linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC
_MS_REMOUNT = 32
# Mounted over while the view is built: the one folder that is sure to be there, and that nothing is taken from.
_SCRATCH = "/proc"
TMP = "/tmp"
PACKAGES = "/packages"


def leave() -> None:
    """Leave the namespaces that this process shares with the rest of the machine; children get a PID namespace.

    Raises:
        OSError: this machine does not let this user.
    """
    user, group = os.getuid(), os.getgid()
    linux.unshare(_OUTER | (linux.CLONE_NEWUSER if user else 0))
    if user:
        map_user(user, group)


def map_user(user: int, group: int) -> None:
    """Give this process, the first of a user namespace, the ids there that it has outside."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text.encode())
        os.close(file)


def build_view(packages: Sequence[str]) -> list[str]:
    """Replace all that can be seen of the file system by a read-only root with what programs may read.

    The standard library without installed packages, shared libraries, time zones, a few devices, packages; a new
    /proc, which shows this PID namespace alone; and an empty /tmp.

    Args:
        packages: folders of packages to show.

    Returns:
        Where the packages are now: not where they were, which may be below /tmp, where each program has its own.

    Raises:
        OSError: a mount was refused.
    """
    linux.mount("none", "/", None, MS_REC | MS_PRIVATE)
    linux.mount("tmpfs", _SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    standard = files.standard_library()
    for path in [*files.libraries(), *files.zones(), *standard]:
        _show(path, path)
    hidden = [os.path.join(path, name) for path in standard for name in files.INSTALLED]
    hidden = [_SCRATCH + path for path in hidden if os.path.isdir(path)]
    for target in hidden:
        linux.mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=0755")
    shown = [os.path.join(PACKAGES, os.path.basename(path)) for path in packages]
    for path, place in zip(packages, shown, strict=True):
        _show(path, place)
    for path in files.DEVICES:
        _show(path, path, devices=True)
    for path in ("/proc", TMP):
        os.makedirs(_SCRATCH + path, exist_ok=True)
    # before the old root goes: the kernel wants to see a /proc that is whole
    linux.mount("proc", _SCRATCH + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for target in [*hidden, _SCRATCH]:
        linux.mount("none", target, None, _MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    linux.pivot_root(_SCRATCH)
    return shown


def _show(path: str, place: str, devices: bool = False) -> None:
    target = _SCRATCH + place
    if os.path.lexists(target):
        return
    if os.path.isdir(path):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    linux.mount(path, target, None, MS_BIND | MS_REC)
    linux.make_read_only(target, devices)


def enter_own(limits: Mapping[str, int], user: int, group: int) -> None:
    """Arrange the namespaces of a program in its first process: no rights outside, an own /tmp and /proc.

    Args:
        limits: `tmp_bytes` and `tmp_inodes`.
        user: that the server has: this process cannot ask for its own, which has no name here yet.
        group: likewise.
    """
    map_user(user, group)
    linux.mount("none", "/", None, MS_REC | MS_PRIVATE)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    linux.mount("tmpfs", TMP, "tmpfs", flags, f"size={limits['tmp_bytes']},nr_inodes={limits['tmp_inodes']},mode=0700")
    linux.mount("proc", "/proc", "proc", flags)
    os.chdir(TMP)
