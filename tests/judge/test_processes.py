import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_code.errors import UserError
from llama_code.judge import processes
from llama_code.judge.processes import run_program, run_programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("print('x' * 10**7)", "passed"),
        ("import sys; assert sys.stdin.read() == ''", "passed"),
        ("import os; assert os.listdir() == []", "passed"),
        ("assert __name__ == '__main__'", "passed"),
        ("assert 1 + 1 == 3", "AssertionError"),
        ("1 / 0", "ZeroDivisionError"),
        ("class passed(Exception): pass\nraise passed", "exited"),
        ("class Odd(Exception): pass\nraise Odd('passed')", "Odd"),
        ("def f(:", "syntax error"),
        ("x = 'a\0b'", "syntax error"),
        ("x = '\ud800'", "syntax error"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "exited"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise type('', (Exception,), {})", "exited"),  # the name of a class is the program's to choose
        ("class E(AssertionError): pass\nE.__name__ = 'not a name'\nraise E", "exited"),
        (
            "import builtins\nclass M(type): __name__ = ''\nclass T(metaclass=M): pass\n"
            "builtins.type = lambda e: T\nassert False",
            "exited",
        ),
        ("import os\nos.fork()", "passed"),
        ("import os\nos.write = lambda *a: 1 / 0", "passed"),
        ("import os\nassert os.environ['PYTHONHASHSEED'] == '0'", "passed"),
        ("import resource\nassert resource.getrlimit(resource.RLIMIT_CPU)[1] < 10", "passed"),
        ("import os\nassert os.path.samefile('/proc/self/fd/0', '/dev/null')", "passed"),
        ("import atexit, time\natexit.register(time.sleep, 60)", "passed"),
        ("import os; os.kill(os.getpid(), 9)", "exited"),
        ("import ctypes; ctypes.string_at(0)", "exited"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("x = bytearray(5 * 2**30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(2**25))", "OSError"),
        ("files = [open('/dev/null') for _ in range(100)]", "OSError"),
    ],
)
def test_verdict(program, reason):
    verdict = run_program(program)
    assert (verdict.passed, verdict.reason) == (reason == "passed", reason)
    assert 0 < verdict.seconds < 3


def test_environment_is_not_the_callers(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert run_program("import os; assert 'SECRET' not in os.environ and os.environ['HOME'] == os.getcwd()").passed


def test_deadline_ends_the_program_and_its_children(tmp_path):
    marker = tmp_path / "pid"
    program = f"""
import os, time
child = os.fork()
if child:
    open({str(marker)!r}, "w").write(str(child))
time.sleep(60)
"""
    started = time.monotonic()
    verdict = run_program(program, timeout=1.0)
    assert (verdict.passed, verdict.reason) == (False, "timeout")
    assert time.monotonic() - started < 2
    child = Path("/proc", marker.read_text(), "status")
    for _ in range(100):  # its new parent may take a moment to bury it
        if not child.exists() or "State:\tZ" in child.read_text():
            return
        time.sleep(0.02)
    pytest.fail("the child outlived the deadline")


def test_busy_loop_ends_at_the_deadline():
    verdict = run_program("while True: pass", timeout=0.5)
    assert verdict.reason == "timeout" and verdict.seconds < 1


def test_order_is_kept_and_progress_told():
    seen = []
    verdicts = run_programs(
        [f"import time; time.sleep({delay}); assert {delay} < 0.25" for delay in (0.3, 0.0, 0.2)],
        num_workers=3,
        on_verdict=lambda: seen.append(1),
    )
    assert [verdict.passed for verdict in verdicts] == [False, True, True]
    assert len(seen) == 3


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    run_program("open('left', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


def test_folders_inside_each_other_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    assert run_program("import os\nfor i in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n").passed
    assert list(tmp_path.iterdir()) == []


def test_no_descriptors_leak():
    before = len(os.listdir("/proc/self/fd"))
    run_programs(["pass", "1 / 0", "import os; os._exit(0)"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_other_platforms_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="judged on Linux only and this platform is 'darwin'; .* Docker .* perplexity"):
        run_programs(["pass"])


def test_judge_starts_without_torch_or_transformers():
    program = (
        "import sys, llama_code.judge.processes; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
