"""The short form of benchmarks/faults.py: runs of train_clm.py in processes that are really killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_faults_are_survived(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "faults.py"),
        "--short",
        "--output_dir",
        str(tmp_path / "runs"),
    ]
    command += ["--parts", "kills", "three", "damages", "signals", "nonfinite"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not survived" not in result.stdout
