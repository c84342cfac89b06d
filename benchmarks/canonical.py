"""Benchmarks' own solutions, which must all pass, and empty ones, which must all fail, as eval_code.py judges them.

    python benchmarks/canonical.py --data FOLDER [--tasks humaneval mbpp-full ...]

FOLDER holds the benchmarks' files as published. Where code around an empty span is a right program by itself, an empty
one passes too; these are counted.
"""

import argparse
from pathlib import Path

from results import record

from llama_code.evaluation.judging import run_programs
from llama_code.evaluation.tasks import BENCHMARKS, load_benchmark
from llama_code.judge.levels import choose_level


def main() -> None:
    """Judge, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", choices=BENCHMARKS, default=["humaneval", "mbpp", "mbpp-full"])
    arguments = parser.parse_args()
    level = choose_level()
    for name in arguments.tasks:
        benchmark = load_benchmark(name, arguments.data, "docstring")
        solved = {task_id: problem for task_id, problem in benchmark.problems.items() if problem.solution is not None}
        for what in ("canonical solutions", "empty solutions"):
            programs = [
                benchmark.program(problem, str(problem.solution) if what == "canonical solutions" else "")
                for problem in solved.values()
            ]
            verdicts = run_programs(benchmark, list(solved), programs, level)
            passed = [task_id for task_id, verdict in zip(solved, verdicts, strict=True) if verdict["passed"]]
            slowest = max(verdict["seconds"] for verdict in verdicts)
            print(
                f"{name}: {len(passed)} of {len(solved)} {what} pass, the slowest within {slowest:.2f} s", flush=True
            )
            if len(passed) not in (0, len(solved)):
                wrong = (
                    passed if what == "empty solutions" else [task_id for task_id in solved if task_id not in passed]
                )
                print(f"  {', '.join(wrong[:20])}", flush=True)
            record("canonical", level, name, f"{what} passed, of {len(solved)}", len(passed), "programs")


if __name__ == "__main__":
    main()
