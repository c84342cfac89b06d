"""The filter of system calls, against the kernel's own headers and in a model of the kernel's interpreter."""

import re
from pathlib import Path

import pytest

from llama_code.judge import linux, seccomp

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
TABLES = seccomp._FILES + seccomp._MEMORY + seccomp._ITSELF + seccomp._WAITING + seccomp._CONDITIONAL
# asm-generic names these by their 32-bit variants' macros
GENERIC = {"newfstatat": "fstatat"}
ALLOW, KILL, PERMISSION, NO_CALL = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def numbers_of(machine):
    text = HEADERS[machine].read_text()
    names = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    return {name: int(number) for name, number in names.items()}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_the_kernels(machine, monkeypatch):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    monkeypatch.setattr(linux, "MACHINE", machine)
    theirs = numbers_of(machine)
    for name, number in seccomp._numbers(TABLES).items():
        known = theirs.get(name, theirs.get(GENERIC.get(name, "")))
        assert known == number, name


def run(program, number, arguments=(), machine="x86_64"):
    """Interpret a filter as the kernel does; returns its decision."""
    data = {0: number, 4: ARCHITECTURE[machine]}
    data |= {16 + 8 * i: argument & 0xFFFFFFFF for i, argument in enumerate(arguments)}
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            accumulator = data.get(operand, 0)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        elif code == 0x35:
            at += if_true if accumulator >= operand else if_false
        else:
            assert code == 0x06
            return operand


@pytest.mark.parametrize("machine", HEADERS)
def test_exactly_the_listed_calls_are_allowed(machine, monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", machine)
    program = seccomp.build_filter(77)
    allowed = set(seccomp._numbers(seccomp._FILES + seccomp._MEMORY + seccomp._ITSELF + seccomp._WAITING).values())
    conditional = seccomp._numbers(seccomp._CONDITIONAL)
    for number in set(range(1000)) - set(conditional.values()):
        assert run(program, number, machine=machine) == (ALLOW if number in allowed else PERMISSION), number
    assert run(program, conditional["clone3"], machine=machine) == NO_CALL
    assert all(if_true < 256 and if_false < 256 for _, if_true, if_false, _ in program)
    assert len(program) < 4096


@pytest.mark.parametrize(
    ("name", "arguments", "decision"),
    [
        ("kill", (77, 9), ALLOW),
        ("kill", (1, 9), PERMISSION),
        ("kill", (-1, 9), PERMISSION),
        ("kill", (0, 9), PERMISSION),
        ("tgkill", (77, 78, 9), ALLOW),
        ("tgkill", (78, 78, 9), PERMISSION),
        ("clone", (0x003D0F00,), ALLOW),  # a thread, as glibc starts it
        ("clone", (17,), PERMISSION),  # fork
        ("clone", (0x10000 | 0x10000000,), PERMISSION),  # a thread in a new user namespace
        ("prctl", (15,), ALLOW),
        ("prctl", (1, 0), PERMISSION),  # PDEATHSIG
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (5, 7), PERMISSION),
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (1, 2), PERMISSION),
        ("ioctl", (0, 0x5412), PERMISSION),  # TIOCSTI
        ("fcntl", (0, 8), PERMISSION),  # F_SETOWN
    ],
)
def test_conditions(name, arguments, decision, monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", "x86_64")
    program = seccomp.build_filter(77)
    assert run(program, seccomp._numbers(seccomp._CONDITIONAL)[name], arguments) == decision


def test_other_architectures_are_killed(monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", "x86_64")
    program = seccomp.build_filter(77)
    assert run(program, 0, machine="aarch64") == KILL
    assert run(program, 0x40000000) == KILL  # x32


def test_unknown_processors_are_refused(monkeypatch):
    monkeypatch.setattr(linux, "MACHINE", "riscv64")
    with pytest.raises(OSError, match="made for x86_64 and aarch64, not for riscv64"):
        seccomp.prepare()
