"""Seconds that `make quickstart` takes in a fresh clone without a virtual environment, by its parts.

Packages come from pip's cache where they are in it; nothing else is prepared.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import record

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Clone the repository, run the two halves of `make quickstart`, and record how long each took."""
    own_bin = str(Path(sys.executable).parent)
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own_bin]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder + "/clone"], check=True)
        environment = {**os.environ, "PATH": os.pathsep.join(path), "LLAMA_CODE_CACHE": folder + "/cache"}
        environment.pop("VIRTUAL_ENV", None)
        for arm, target in (("install", "install"), ("prepare, train, evaluate, report", "quickstart")):
            started = time.monotonic()
            subprocess.run(["make", "-C", folder + "/clone", target], check=True, env=environment)
            seconds = time.monotonic() - started
            print(f"{arm}: {seconds:.0f} s", flush=True)
            record("quickstart", arm, "m1", "wall time", seconds, "s")


if __name__ == "__main__":
    main()
