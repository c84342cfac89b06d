"""Hostile programs are judged as failed at every level that isolates, as any user, and change nothing outside.

Our own are in hostile.py. The shared adversarial set is read where LLAMA_CODE_TEST_DATA names its parent folder.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from llama_code.judge.levels import ISOLATED
from tests.judge.conftest import SECRET
from tests.judge.hostile import HOSTILE, PROBLEM_TESTS

TIMEOUT = 2.0
OVERRUN = 0.5
PARENT_BYTES = 300 * 10**6
GOOD = "def sum_even(xs):\n    return sum(x for x in xs if x % 2 == 0)"


def shared(name):
    folder = os.environ.get("LLAMA_CODE_TEST_DATA")
    if folder is None:
        pytest.skip("LLAMA_CODE_TEST_DATA names no folder with the adversarial set")
    lines = Path(folder, "adversarial", name).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        row["name"]: (
            row["problem"]["prompt"] + row["completion"],
            f"{row['problem']['test']}\ncheck({row['problem']['entry_point']})\n",
        )
        for row in rows
    }


def check(outside, level, hostile, good):
    """Judge programs and compare the world before and after; returns the verdicts on the hostile ones."""
    before = outside.state()
    answer = outside.judge(level, [*hostile.values(), *good.values()], TIMEOUT)
    assert outside.state() == before
    verdicts = dict(zip([*hostile, *good], answer["verdicts"], strict=True))
    assert {name: verdict for name, verdict in verdicts.items() if verdict["passed"]}.keys() == good.keys()
    assert {name for name, verdict in verdicts.items() if verdict["seconds"] > TIMEOUT + OVERRUN} == set()
    assert SECRET not in json.dumps(verdicts)
    assert answer["max_rss_bytes"] < PARENT_BYTES
    return {name: verdicts[name] for name in hostile}


@pytest.mark.parametrize("level", ISOLATED)
def test_the_shared_adversarial_set(outside, level):
    verdicts = check(outside, level, shared("adversarial.jsonl"), shared("good.jsonl"))
    assert len(verdicts) == 28


@pytest.mark.parametrize("level", ISOLATED)
def test_our_own_hostile_programs(outside, level):
    programs = {name: (hostile.program, PROBLEM_TESTS) for name, hostile in HOSTILE.items()}
    verdicts = check(outside, level, programs, {"good": (GOOD, PROBLEM_TESTS)})
    wrong = {
        name: verdict
        for name, verdict in verdicts.items()
        if HOSTILE[name].reasons and verdict["reason"] not in HOSTILE[name].reasons
    }
    assert wrong == {}


@pytest.mark.parametrize("level", ISOLATED)
def test_packages_may_be_below_tmp(outside, level):
    """Where a program has a folder of its own in their place; parts of them that it imports later are there too."""
    source = Path(np.__file__).parent
    copies = [outside.folder / name for name in ("numpy", "numpy.libs") if source.with_name(name).exists()]
    for copy in copies:
        shutil.copytree(source.with_name(copy.name), copy, ignore=shutil.ignore_patterns("tests"))
    try:
        assert str(outside.folder).startswith("/tmp/")
        program = "import numpy as np\nimport numpy.polynomial\ndef f():\n    return np.arange(3).sum(), np.__file__"
        answer = outside.judge(level, [(program, "assert f()[0] == 3, f()")], 20.0)
        assert answer["verdicts"][0]["passed"], answer
    finally:
        for copy in copies:
            shutil.rmtree(copy)


# (program, reason) at the level that limits programs and isolates nothing, which has to be asked for by name
LIMITED = {
    "good": (GOOD, "passed"),
    "wrong": ("def sum_even(xs):\n    return 0", "wrong answer"),
    "exit": ("import os\ndef sum_even(xs):\n    os._exit(0)", "exited"),
    "memory": ("def sum_even(xs):\n    return bytearray(2**40)", "memory"),
    "time": ("def sum_even(xs):\n    while True:\n        pass", "timeout"),
    "orphans": ("import os, time\ndef sum_even(xs):\n    os.fork() or os.setsid() or time.sleep(60)", "wrong answer"),
    "files": ("def sum_even(xs):\n    open('left', 'w').write('x')", "wrong answer"),
    "folders": (
        "import os\ndef sum_even(xs):\n    for _ in range(3000):\n        os.mkdir('d')\n        os.chdir('d')",
        "wrong answer",
    ),
}


def test_limits_alone(outside):
    before = outside.state()
    answer = outside.judge("rlimits", [(program, PROBLEM_TESTS) for program, _ in LIMITED.values()], TIMEOUT)
    assert outside.state() == before
    reasons = {name: verdict["reason"] for name, verdict in zip(LIMITED, answer["verdicts"], strict=True)}
    assert reasons == {name: reason for name, (_, reason) in LIMITED.items()}
