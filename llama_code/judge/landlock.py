"""File rules of Landlock (landlock(7), Linux 5.13): a process may use the paths it names and no others."""

import ctypes
import os
from collections.abc import Iterable

from llama_code.judge import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
# What each version of the interface can deny: file access, network, scopes. A later version denies no less.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NEWEST_FILE_VERSION = 5
_NETWORK_VERSION, _NETWORK_RIGHTS = 4, 3  # bind and connect TCP
_SCOPE_VERSION, _SCOPES = 6, 3  # abstract unix sockets and signals to processes outside

READ = READ_FILE | READ_DIR
WRITE = (1 << 15) - 1 & ~EXECUTE


def version() -> int:
    """Return the version of the kernel's Landlock interface; 0 without Landlock."""
    try:
        return linux.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION, what="landlock")
    except OSError:
        return 0


def make_ruleset(rules: Iterable[tuple[str, int]]) -> int:
    """Return the descriptor of a set of rules that denies all file access but that to some paths.

    Args:
        rules: existing paths and the rights below each, of `READ`, `READ_FILE`, `READ_DIR`, `WRITE`.

    Raises:
        OSError: this kernel has no Landlock.
    """
    number = version()
    if number < 1:
        raise OSError("Landlock is not enabled in this kernel")
    handled = _FILE_RIGHTS[min(number, _NEWEST_FILE_VERSION)]
    attributes = (ctypes.c_uint64 * 3)(
        handled,
        _NETWORK_RIGHTS if number >= _NETWORK_VERSION else 0,
        _SCOPES if number >= _SCOPE_VERSION else 0,
    )
    size = 8 if number < _NETWORK_VERSION else 16 if number < _SCOPE_VERSION else 24
    ruleset = linux.syscall(_CREATE_RULESET, ctypes.addressof(attributes), size, 0, what="landlock_create_ruleset")
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= READ_FILE | WRITE_FILE | _TRUNCATE
        rule = _PathBeneath(rights & handled, descriptor)
        linux.syscall(
            _ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.addressof(rule), 0, what=f"landlock_add_rule {path}"
        )
        os.close(descriptor)
    return ruleset


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def restrict(ruleset: int) -> None:
    """Put this process under a set of rules for good; it must have forbidden itself new privileges."""
    linux.syscall(_RESTRICT_SELF, ruleset, 0, what="landlock_restrict_self")
