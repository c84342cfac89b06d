"""run.json: what a run was made of and what came out of it."""

import json
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from llama_code.atomic import unfinished
from llama_code.errors import UserError

RUN_FILE = "run.json"
RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


def make_output_dir(output_dir: Path) -> None:
    """Make a folder for results, before the work that they take.

    Raises:
        UserError: it cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise UserError(
            f"--output_dir {str(output_dir)!r} cannot be written ({error.strerror}); name a folder that can be"
        ) from error


def check_output_dir(output_dir: Path, resumed: bool) -> None:
    """Make the folder, and refuse one that already holds a run, so that none is overwritten or mixed with another.

    Raises:
        UserError: it holds one, or cannot be written.
    """
    make_output_dir(output_dir)
    if (output_dir / RUN_FILE).exists():
        raise UserError(f"--output_dir {str(output_dir)!r} already holds a finished run; name another folder")
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if checkpoints and not resumed:
        raise UserError(
            f"--output_dir {str(output_dir)!r} already holds checkpoints of an unfinished run; go on from the last "
            f"with --resume_from_checkpoint {checkpoints[-1]} or name another folder"
        )


def resumed_step(checkpoint: str | None, num_steps: int) -> int:
    """Return the step at which a run is taken up; 0 for a new one.

    Raises:
        UserError: the checkpoint is at the end of the run or past it.
    """
    if checkpoint is None:
        return 0
    step = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    if step >= num_steps:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} is at step {step} and the run has {num_steps}; ask for more "
            "--train_tokens or take an earlier checkpoint"
        )
    return step


def mean_logged_loss(log_history: list[dict[str, float]], start_step: int) -> float | None:
    """Return the mean loss in nats a token of the logged steps after `start_step`; None where none were logged.

    The Trainer's own mean divides a resumed run's sum by all of its steps in some versions, by the new ones in others.
    """
    total, last_step = 0.0, start_step
    for entry in log_history:
        if "loss" in entry and entry["step"] > start_step:
            total += entry["loss"] * (entry["step"] - last_step)
            last_step = int(entry["step"])
    return total / (last_step - start_step) if last_step > start_step else None


def versions(packages: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def git_commit(repository: Path) -> str | None:
    """The commit of `repository`, with `-dirty` if files differ from it; None where there is no git checkout."""
    command = ["git", "-C", str(repository), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` at once: a reader sees the old file or the whole new one."""
    with unfinished(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
