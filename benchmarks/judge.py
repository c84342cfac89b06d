"""The judge: hostile programs, canonical solutions, mutants against plain runs, speed against a process a sample.

    python benchmarks/judge.py --data FOLDER [--parts hostile canonical mutants speed memory] [--mutants 1000]

FOLDER holds `adversarial/` and `benchmarks/` (HumanEval, MBPP, samples of APPS) in their originals' formats. The
hostile programs run inside the judge only; what they leave outside is looked at by tests/judge/test_hostile.py.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from judge_data import TIMEOUT, Pair, all_mutants, humaneval_pairs, mbpp_pairs, plain_run, read_lines
from results import record

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.judge.hostile

from llama_code.evaluation.apps import problem_tests, runnable
from llama_code.judge.levels import ISOLATED
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, Task
from tests.judge.hostile import HOSTILE, PROBLEM_TESTS

# MBPP 123's canonical solution alone takes about 2.5 s
CANONICAL_TIMEOUT = 10.0
STAND_IN = Path(__file__).with_name("judge_stand_in.py")


def as_tasks(pairs: list[Pair]) -> list[Task]:
    """Make tasks of programs and test texts."""
    return [Task(program, Assertions(tests)) for program, tests in pairs]


def hostile(data: Path) -> None:
    """Judge hostile programs at both levels."""
    theirs = read_lines(data / "adversarial/adversarial.jsonl")
    pairs = [
        (
            row["problem"]["prompt"] + row["completion"],
            f"{row['problem']['test']}\ncheck({row['problem']['entry_point']})",
        )
        for row in theirs
    ]
    ours = [(hostile.program, PROBLEM_TESTS) for hostile in HOSTILE.values()]
    for level in ISOLATED:
        for name, programs in (("adversarial.jsonl", pairs), ("tests/judge/hostile.py", ours)):
            verdicts = judge(as_tasks(programs), TIMEOUT, 2, level)
            caught = sum(not verdict.passed for verdict in verdicts)
            overrun = max(verdict.seconds for verdict in verdicts) - TIMEOUT
            print(f"{level}: {caught} of {len(programs)} of {name} fail, overrun {overrun:.3f} s", flush=True)
            record("judge", level, name, f"judged fail, of {len(programs)}", caught, "programs")
            record("judge", level, name, "longest overrun of the limit", overrun, "s")


def canonical(data: Path) -> None:
    """Judge canonical solutions at both levels."""
    mbpp = mbpp_pairs(data)
    for level in ISOLATED:
        verdicts = judge(as_tasks(humaneval_pairs()), CANONICAL_TIMEOUT, 2, level)
        report(level, "HumanEval", verdicts)
        verdicts = judge(as_tasks([pair for _, pair in mbpp]), CANONICAL_TIMEOUT, 2, level)
        report(level, "MBPP", verdicts)
        for (task_id, _), verdict in zip(mbpp, verdicts, strict=True):
            if not verdict.passed:
                print("  MBPP", task_id, verdict)
        for folder in sorted((data / "benchmarks/apps-samples/train").iterdir()):
            tests = problem_tests(json.loads((folder / "input_output.json").read_text()))
            solutions = json.loads((folder / "solutions.json").read_text())
            verdicts = judge([Task(runnable(text), tests) for text in solutions], CANONICAL_TIMEOUT, 2, level)
            report(level, f"APPS train {folder.name}", verdicts)


def report(level: str, name: str, verdicts: list) -> None:
    """Print and record how many of some canonical programs pass."""
    passed = sum(verdict.passed for verdict in verdicts)
    print(f"{level}: {passed} of {len(verdicts)} of {name} pass", flush=True)
    for verdict in verdicts:
        if not verdict.passed:
            print("  ", verdict)
    record("judge", level, name, f"canonical solutions passed, of {len(verdicts)}", passed, "programs")


def compare_mutants(data: Path, count: int) -> None:
    """Compare verdicts on mutants of canonical solutions with those of plain runs."""
    pool = all_mutants(data)
    chosen = random.Random(0).sample(pool, min(count, len(pool)))
    print(f"{len(chosen)} of {len(pool)} mutants", flush=True)
    plain = [plain_run(mutant.program, mutant.plain_tests) for mutant in chosen]
    print("plain runs:", Counter(plain), flush=True)
    # A second run tells which are nondeterministic or too near the limit for two runs to agree.
    again = [plain_run(mutant.program, mutant.plain_tests) for mutant in chosen]
    steady = [first == second for first, second in zip(plain, again, strict=True)]
    for level in ISOLATED:
        verdicts = judge(as_tasks([mutant[:2] for mutant in chosen]), TIMEOUT, 2, level)
        differing = []
        for mutant, verdict, expected, agrees in zip(chosen, verdicts, plain, steady, strict=True):
            if agrees and verdict.passed != (expected == "passed"):
                differing.append((mutant, verdict, expected))
        print(f"{level}: {sum(steady) - len(differing)} of {sum(steady)} verdicts agree", flush=True)
        for mutant, verdict, expected in differing:
            print("----", expected, verdict, mutant.program, mutant.plain_tests, sep="\n")
        record(
            "judge",
            level,
            f"{sum(steady)} mutants",
            "verdicts that equal a plain run's",
            sum(steady) - len(differing),
            "programs",
        )
    for mutant, first, second in zip(chosen, plain, again, strict=True):
        if first != second:
            print("---- excluded:", first, second, mutant.program, mutant.plain_tests, sep="\n")
    record(
        "judge",
        "plain run",
        f"{len(chosen)} mutants",
        "two plain runs differ, excluded",
        len(chosen) - sum(steady),
        "programs",
    )


# What the caller has imported when it judges: nothing but the metric, and what an evaluation of a model has.
CALLERS = {"evaluate": "evaluate", "evaluate, torch and a model": "evaluate,transformers,torch"}


def speed(data: Path) -> None:
    """Compare HumanEval's canonical solutions, five times each, with a process a sample; both arms in turn."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder, "pairs.json")
        pairs.write_text(json.dumps(humaneval_pairs() * 5))
        for caller, modules in CALLERS.items():
            rates: dict[str, list[float]] = {}
            for _ in range(3):
                for arm in ("stand-in", *ISOLATED):
                    command = [sys.executable, str(STAND_IN), arm, modules, str(pairs)]
                    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    rates.setdefault(arm, []).append(json.loads(output)["per_second"])
            for arm, values in rates.items():
                rate = statistics.median(values)
                ratio = rate / statistics.median(rates["stand-in"])
                print(f"caller with {caller}: {arm} {rate:.1f} executions/s, {ratio:.2f} times", flush=True)
                record("judge", arm, f"820 programs, 2 workers, caller with {caller}", "executions", rate, "1/s")
                if arm != "stand-in":
                    record(
                        "judge", arm, f"820 programs, 2 workers, caller with {caller}", "ratio to stand-in", ratio, ""
                    )


def memory(data: Path) -> None:
    """Record the caller's memory while programs print and return as much as they can."""
    loud = [
        ("def f():\n    return 'x' * 7_900_000", "assert len(f()) == 7_900_000"),
        ("def f():\n    return list(range(1_000_000))", "assert f() == 1"),
        ("def f():\n    print('x' * 10**9)", "f()"),
        ("def f():\n    return [[] for _ in range(10**6)]", "assert f() == 1"),
        ("import os\ndef f():\n    while True:\n        os.write(1, b'x' * 2**20)", "f()"),
        ("def f():\n    raise ValueError('x' * 10**8)", "f()"),
    ]
    for level in ISOLATED:
        before = peak_megabytes()
        judge(as_tasks(loud * 5), TIMEOUT, 2, level)
        peak = peak_megabytes()
        print(f"{level}: caller {before:.0f} MB before, {peak:.0f} MB at its peak", flush=True)
        record("judge", level, f"{len(loud) * 5} loud programs", "caller's peak memory", peak, "MB")


def peak_megabytes() -> float:
    """The most memory that this process has had resident."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"hostile": hostile, "canonical": canonical, "mutants": None, "memory": memory, "speed": speed}
    parser.add_argument("--data", type=Path, required=True, help="folder with adversarial/ and benchmarks/")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--mutants", type=int, default=1000, help="how many mutants to compare")
    arguments = parser.parse_args()
    for name in arguments.parts:
        part = parts[name]
        if part is None:
            compare_mutants(arguments.data, arguments.mutants)
        else:
            part(arguments.data)


if __name__ == "__main__":
    main()
