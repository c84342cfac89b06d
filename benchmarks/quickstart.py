"""Seconds that `make quickstart` takes in a fresh clone without a virtual environment, by its parts.

`python3 benchmarks/quickstart.py`; packages come from pip's cache if they are in it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import record

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Clone the repository, run the two halves of `make quickstart`, and record how long each took."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder + "/clone"], check=True)
        for arm, target in (("install", "install"), ("train, evaluate, report", "quickstart")):
            started = time.monotonic()
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder}
            subprocess.run(
                ["make", "-C", folder + "/clone", f"PYTHON={sys.executable}", target], check=True, env=environment
            )
            seconds = time.monotonic() - started
            print(f"{arm}: {seconds:.0f} s", flush=True)
            record("quickstart", arm, "m1", "wall time", seconds, "s")


if __name__ == "__main__":
    main()
