"""run.json: what a run was made of and what came out of it."""

import json
import math
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
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {str(output_dir)!r} is no folder; name one, or a name that is free")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise UserError(
            f"--output_dir {str(output_dir)!r} cannot be written ({error.strerror}); name a folder that can be"
        ) from error


def finished_run(output_dir: Path) -> dict[str, Any] | None:
    """The run.json of a folder's finished run; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = output_dir / RUN_FILE
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        record["settings"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--output_dir {str(output_dir)!r} already holds a finished run, whose {RUN_FILE} was written by another "
            "version or changed; name another folder, or set it aside with --restart"
        ) from error
    return record


def resumed_step(checkpoint: Path | None, num_steps: int) -> int:
    """Return the step at which a run is taken up; 0 for a new one.

    Raises:
        UserError: the checkpoint is past the end of the run.
    """
    if checkpoint is None:
        return 0
    step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    if step > num_steps:
        raise UserError(
            f"checkpoint {str(checkpoint)!r} is at step {step} and the run has {num_steps}; ask for more "
            "--train_tokens or take an earlier checkpoint"
        )
    return step


def mean_logged_loss(log_history: list[dict[str, float]], start_step: int) -> float | None:
    """Return the mean loss in nats a token of the logged steps after `start_step`; None where none were logged.

    The Trainer's own mean divides a resumed run's sum by all of its steps in some versions, by the new ones in others.
    """
    total, last_step = 0.0, start_step
    for entry in log_history:
        if "loss" in entry and entry["step"] > start_step and math.isfinite(entry["loss"]):
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
