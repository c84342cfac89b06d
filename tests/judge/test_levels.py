"""What isolates programs is found out by trying, and what does not work is refused in one sentence."""

import os
import subprocess
import sys

import pytest

from llama_code.errors import UserError
from llama_code.judge import levels
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, Task
from llama_code.judge.workers import LIMITS, JudgeFailed

TASK = Task("def f():\n    return 1", Assertions("assert f() == 1"))


@pytest.fixture
def refuse(monkeypatch):
    """Make levels refuse to work."""

    def use(*names):
        monkeypatch.setattr(levels, "refusal", lambda level: f"no {level} here" if level in names else None)

    return use


def test_the_best_level_that_works_is_chosen(refuse):
    refuse()
    assert levels.choose_level() == "full"
    refuse("full")
    assert levels.choose_level() == levels.choose_level(allow_unsafe=True) == "landlock"
    refuse("full", "landlock")
    assert levels.choose_level(allow_unsafe=True) == "rlimits"


def test_limits_alone_are_never_chosen_unasked(refuse):
    refuse("full", "landlock")
    with pytest.raises(UserError, match=r"cannot be isolated .*no full here; no landlock here.* --allow_unsafe_judge"):
        levels.choose_level()


def test_levels_that_are_none_or_do_not_work_are_refused(refuse):
    refuse("landlock")
    with pytest.raises(UserError, match="level is 'best' and must be one of full, landlock, rlimits; name one"):
        judge([TASK], level="best")
    with pytest.raises(UserError, match="no landlock here; leave the level out"):
        judge([TASK], level="landlock")


def test_a_level_that_cannot_be_set_up_says_why(monkeypatch):
    def fail(level):
        raise JudgeFailed("level 'full' does not work here: unshare: Operation not permitted")

    monkeypatch.setattr(levels, "Worker", fail)
    assert levels.refusal.__wrapped__("full") == "level 'full' does not work here: unshare: Operation not permitted"


@pytest.mark.parametrize("level", levels.LEVELS)
def test_programs_have_their_limits(level):
    if (reason := levels.refusal(level)) is not None:
        pytest.skip(reason)
    program = """
import os, resource, sys
def limit(name):
    return resource.getrlimit(getattr(resource, name))[1]
def environment():
    return dict(os.environ)
def descriptors():
    found = []
    for number in range(100):
        try:
            os.fstat(number)
            found.append(number)
        except OSError:
            pass
    return found
def processors():
    return len(os.sched_getaffinity(0))
"""
    tests = f"""
assert limit("RLIMIT_AS") == {LIMITS["address_space_bytes"]}
assert limit("RLIMIT_FSIZE") == {LIMITS["file_bytes"]}
assert limit("RLIMIT_NOFILE") == {LIMITS["open_files"]}
assert limit("RLIMIT_NPROC") >= {LIMITS["threads"]}
assert limit("RLIMIT_CORE") == 0
assert set(environment()) == {{"PATH", "LANG", "HOME", "TMPDIR"}}
assert descriptors() == [0, 1, 2, 3]
assert processors() == 1
"""
    (verdict,) = judge([Task(program, Assertions(tests))], level=level)
    assert verdict.passed, verdict


def test_other_platforms_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="judged on Linux only and this platform is 'darwin'; .* Docker .* perplexity"):
        judge([TASK])


# What Python lacks on Windows; where one of these is imported before the platform is looked at, the refusal is lost.
NOT_ON_WINDOWS = ("resource", "fcntl", "pwd", "grp", "termios")


def test_windows_is_refused_before_anything_fails():
    program = f"""
import sys
import scipy.stats  # which looks at the real platform
for name in {NOT_ON_WINDOWS}:
    sys.modules[name] = None
import os, select, socket
del os.sched_getaffinity, os.sysconf, select.poll, socket.send_fds
sys.platform = "win32"
from llama_code.errors import UserError
from llama_code.judge.levels import choose_level
from llama_code.judge.pool import judge
import llama_code.evaluation.code_eval
try:
    choose_level()
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "this platform is 'win32'" in result.stdout, result.stderr


def test_the_judge_starts_without_what_it_does_not_need():
    program = (
        "import sys, llama_code.judge.pool; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "."}).returncode == 0


@pytest.mark.parametrize("level", levels.ISOLATED)
@pytest.mark.parametrize("limit", ["umask 077", "ulimit -t 100", "ulimit -n 40", "ulimit -c 0; ulimit -s 1024"])
def test_what_the_caller_is_limited_to_does_not_matter(level, limit):
    program = (
        "from llama_code.judge.levels import refusal\nfrom llama_code.judge.pool import judge\n"
        "from llama_code.judge.task import Assertions, Task\n"
        f"assert refusal({level!r}) is None, refusal({level!r})\n"
        "task = Task('import bisect\\ndef f(): return 1', Assertions('assert f() == 1'))\n"
        f"verdict = judge([task], 60.0, level={level!r})[0]\n"
        "assert verdict.passed, verdict"
    )
    command = ["bash", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, program]
    result = subprocess.run(command, capture_output=True, text=True)
    if "does not work here" in result.stderr and levels.refusal(level):
        pytest.skip(levels.refusal(level))
    assert result.returncode == 0 and result.stderr == "", result.stderr
