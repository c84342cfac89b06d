"""Append measured figures to benchmarks/results.csv, each with what it was measured on."""

import csv
import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

RESULTS_FILE = Path(__file__).with_name("results.csv")
HEADER = ["date", "commit", "benchmark", "arm", "size", "metric", "value", "unit", "device", "versions"]
PACKAGES = ("torch", "transformers", "tokenizers")


def record(
    benchmark: str, arm: str, size: str, metric: str, value: float, unit: str, device: str | None = None
) -> None:
    """Append one figure.

    Args:
        benchmark: name of the script.
        arm: what was measured: a tokenizer, an implementation.
        size: of the model or the input, as the benchmark names it; "" where there is none.
        metric: name of the figure.
        value: the figure, kept to 6 significant digits.
        unit: of the value.
        device: what it was measured on; None for this machine's processor.
    """
    new = not RESULTS_FILE.exists()
    with open(RESULTS_FILE, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(HEADER)
        writer.writerow(
            [
                datetime.date.today().isoformat(),
                git_commit(),
                benchmark,
                arm,
                size,
                metric,
                f"{value:.6g}",
                unit,
                device or processor(),
                versions(),
            ]
        )


def git_commit() -> str:
    """The short id of the commit that is checked out, with "+" where tracked files differ from it; "" without one."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, cwd=RESULTS_FILE.parent, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def processor() -> str:
    """The number of usable cores and the processor's name, such as "2-core AMD EPYC 7B13"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{cores}-core {name}"


def versions() -> str:
    """The versions that can move a figure, such as "python 3.11.7, torch 2.13.0, ..."."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])
