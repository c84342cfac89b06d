"""Many programs side by side: their order, their memory, and what becomes of them when the judge itself is hit."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from llama_code.judge import pool
from llama_code.judge.levels import choose_level
from llama_code.judge.packing import pack, read_packed, unpack
from llama_code.judge.pool import WORKER_BYTES, judge, memory_bytes, settle_num_workers
from llama_code.judge.task import Assertions, CallCases, Task
from llama_code.judge.trial import NoTests
from llama_code.judge.wire import CannotCarry

PASSING = Task("def f():\n    return 1", Assertions("assert f() == 1"))
FAILING = Task("def f():\n    return 2", Assertions("assert f() == 1"))


def waiting(seconds):
    return Task(f"import time\ndef f():\n    time.sleep({seconds})\n    return 1", Assertions("assert f() == 1"))


def children(process):
    """Found by their parent's number: the kernel's own list, by thread, misses some while threads of ours end."""
    try:
        return [child.pid for child in psutil.Process(process).children()]
    except psutil.NoSuchProcess:  # it has just ended
        return []


def descendants(process):
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def wait_until(condition):
    """Poll a condition that another process makes true."""
    for _ in range(2000):
        if result := condition():
            return result
        threading.Event().wait(0.005)
    raise AssertionError("it did not come true within 10 s")


def test_order_is_kept_and_progress_told():
    seen = []
    tasks = [waiting(0.3), FAILING, waiting(0.1)]
    verdicts = judge(tasks, num_workers=3, on_verdict=lambda index, verdict: seen.append((index, verdict)))
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert len(seen) == 3 and dict(seen) == dict(enumerate(verdicts))


def test_nothing_to_judge():
    assert judge([]) == []


def test_tests_that_are_no_python_are_refused_before_any_program_runs():
    with pytest.raises(NoTests, match="SyntaxError"):
        judge([PASSING, Task("", Assertions("assert ("))], on_verdict=lambda *_: pytest.fail("a program has run"))


def test_cases_that_are_no_data_are_refused():
    with pytest.raises(CannotCarry, match="a case holds an object of class object"):
        judge([Task("def f(x):\n    return x", CallCases("f", ([object()],), ([1],)))])


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_processes_of_the_judge_that_are_killed_are_replaced(depth):
    """A worker, its server or the tests' process, or what is below, is killed; every verdict is still right."""
    before = set(children(os.getpid()))

    def victims():
        found = [child for child in children(os.getpid()) if child not in before]
        for _ in range(depth):
            found = [below for child in found for below in children(child)]
        return found

    killed = []

    def kill():
        killed.append(wait_until(victims)[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    verdicts = judge([waiting(0.2), FAILING] * 6, num_workers=2, level=choose_level())
    killer.join()
    assert len(killed) == 1
    # what is killed may be the program itself
    assert [verdict.passed for verdict in verdicts].count(False) in ((6,) if depth < 2 else (6, 7)), verdicts
    assert not any(verdict.passed for verdict in verdicts[1::2])
    assert set(children(os.getpid())) <= before


def test_a_program_under_which_workers_die_gets_a_verdict(monkeypatch):
    monkeypatch.setattr(pool.Worker, "judge", lambda self, task, timeout: "its process ended")
    (verdict,) = judge([PASSING])
    assert verdict.reason == "crashed"
    assert verdict.detail == "the judge's own process died under it 3 times: its process ended"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_when_the_caller_is_interrupted(how):
    program = (
        "from llama_code.judge.pool import judge\nfrom llama_code.judge.task import Assertions, Task\n"
        "judge([Task('import time\\ntime.sleep(60)', Assertions('pass'))] * 4, timeout=50.0, num_workers=2)"
    )
    mounts = Path("/proc/self/mounts").read_text()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    # worker, server, tests: of two workers, and the programs below them
    started = wait_until(lambda: found if len(found := descendants(process.pid)) >= 8 else None)
    process.send_signal(how)
    _, printed = process.communicate(timeout=10)
    assert process.returncode == -how
    assert printed.count("Traceback") <= 1 and ("KeyboardInterrupt" in printed or how == signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in started))
    assert Path("/proc/self/mounts").read_text() == mounts


def test_no_descriptors_leak():
    judge([PASSING])
    before = len(os.listdir("/proc/self/fd"))
    judge([PASSING, FAILING, PASSING], num_workers=2)
    assert len(os.listdir("/proc/self/fd")) == before


def test_programs_of_one_run_take_no_more_than_half_of_the_memory(monkeypatch, tmp_path):
    assert settle_num_workers(None) <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(pool, "memory_bytes", lambda: 7 * WORKER_BYTES)
    assert settle_num_workers(100) == 3
    monkeypatch.setattr(pool, "memory_bytes", lambda: WORKER_BYTES)
    assert settle_num_workers(100) == 1


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    whole = memory_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(pool, "CONTAINER_LIMITS", (limit, tmp_path / "absent"))
    for text, expected in (("max\n", whole), ("123456\n", 123456), (f"{2**62}\n", whole)):
        limit.write_text(text)
        assert memory_bytes() == min(expected, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def test_messages_between_trusted_processes(tmp_path):
    path = tmp_path / "messages"
    path.write_bytes(pack({"a": "\ud800"}, 1.5) + pack({}) + pack({"cut": 1})[:-1])
    with open(path, "rb") as file:
        packed, timeout = read_packed(file)
        assert (unpack(packed), timeout) == ({"a": "\ud800"}, 1.5)
        assert unpack(read_packed(file)[0]) == {}
        assert read_packed(file) is None


def test_programs_of_different_workers_do_not_wait_for_each_other():
    """Eight threads that spin take one processor, and the honest program beside them has the other."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    spin = Task(
        "import threading, time\ndef spin():\n    end = time.monotonic() + 1\n    while time.monotonic() < end: pass\n"
        "def f():\n    for _ in range(8):\n        threading.Thread(target=spin).start()\n    time.sleep(1)\n"
        "    return sorted(__import__('os').sched_getaffinity(0))",
        Assertions("assert f() == []"),
    )
    verdicts = judge([spin, spin], num_workers=2)
    used = {re.sub(r"\D", "", verdict.detail) for verdict in verdicts}
    assert all(verdict.reason == "wrong answer" for verdict in verdicts), (verdicts, used)
