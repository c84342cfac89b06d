"""Seconds that m1's paper run of 32,000 tokens takes on this machine's CPU, apart from preparing the data.

Run alone on the machine: `python benchmarks/train_cpu.py [REPEATS]`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import record

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train REPEATS times (3 by default), check that the numbers are the same, and record the median time."""
    runs = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "train_clm.py"), "--config", "m1", "--use_cpu", "true"]
            subprocess.run([*command, "--output_dir", folder + "/run"], check=True)
            runs.append(json.loads(Path(folder, "run", "run.json").read_text()))
    assert len({(run["initial"]["bits_per_byte"], run["final"]["bits_per_byte"]) for run in runs}) == 1
    seconds = statistics.median(run["seconds"] for run in runs)
    print(f"{runs[0]['tokens']:,} tokens in {seconds:.1f} s, the median of {len(runs)}")
    record("train_cpu", "train_clm.py", "m1", "32,000 tokens", seconds, "s")
    record("train_cpu", "train_clm.py", "m1", "throughput", runs[0]["tokens"] / seconds, "tokens/s")
    for name in ("initial", "final"):
        record("train_cpu", "train_clm.py", "m1", f"{name} bits per byte", runs[0][name]["bits_per_byte"], "bits/byte")


if __name__ == "__main__":
    main()
