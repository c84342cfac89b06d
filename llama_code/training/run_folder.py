"""A run's folder before it trains: whose it is, what it can go on from, and whether there is room."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from llama_code.errors import UserError
from llama_code.training.checkpoints import (
    ASIDE_FOLDER,
    checkpoint_step,
    clean_up,
    list_checkpoints,
    newest_whole,
    set_aside,
)
from llama_code.training.events import EVENTS_FILE, Events
from llama_code.training.manifest import damage
from llama_code.training.run_lock import LOCK_FILE

GIB = 2**30
logger = logging.getLogger(__name__)


def start_over(output_dir: Path, events: Events) -> None:
    """Set everything of a folder aside but its events."""
    paths = [path for path in output_dir.iterdir() if path.name not in (LOCK_FILE, EVENTS_FILE, ASIDE_FOLDER)]
    moved = [str(set_aside(path).relative_to(output_dir)) for path in sorted(paths)]
    if moved:
        events.add("restart", set_aside=moved)
        logger.info(f"--restart: what {output_dir} held is in {output_dir / ASIDE_FOLDER}")


def find_checkpoint(output_dir: Path, events: Events) -> Path | None:
    """Find what a run goes on from: the newest whole checkpoint; newer ones, which are damaged, are set aside.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    clean_up(output_dir)
    checkpoint, refused = newest_whole(output_dir)
    if checkpoint is None and refused:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in refused.items())
        raise UserError(
            f"--output_dir {str(output_dir)!r} holds checkpoints of which none is as it was written ({reasons}); "
            "begin anew with --restart, which sets them aside, or name another folder"
        )
    for folder, reason in refused.items():
        moved = set_aside(folder).relative_to(output_dir)
        events.add("refused_checkpoint", checkpoint=folder.name, reason=reason, set_aside=str(moved))
        logger.warning(f"{folder.name} is not used, since {reason}; it is set aside in {moved}")
    return checkpoint


def take_named(checkpoint: str, output_dir: Path, events: Events) -> Path:
    """Check the checkpoint that --resume_from_checkpoint names; newer ones in the run's folder are set aside.

    Raises:
        UserError: it is none, or damaged.
    """
    clean_up(output_dir)
    folder = Path(checkpoint)
    step = checkpoint_step(Path(os.path.abspath(folder)))
    if step is None or not folder.is_dir():
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} is no folder named checkpoint-N; name one of an earlier run, or "
            "leave it out to go on from the newest in --output_dir"
        )
    reason = damage(folder, step)
    if reason is not None:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} cannot be used, since {reason}; take another checkpoint, or "
            "leave it out to go on from the newest that is whole"
        )
    for other_step, other in list_checkpoints(output_dir):
        if other_step > step or (other_step == step and not other.samefile(folder)):
            moved = set_aside(other).relative_to(output_dir)
            events.add("set_aside", checkpoint=other.name, set_aside=str(moved))
            logger.warning(f"{other.name} is newer than {checkpoint} and is set aside in {moved}")
    return folder


def check_free_space(output_dir: Path, checkpoint_bytes: float, model_bytes: float, limit: int | None) -> None:
    """Check that a checkpoint and the model fit on the disk, and say so where not all the checkpoints would.

    Raises:
        UserError: they do not.
    """
    held = sum(path.stat().st_size for _, folder in list_checkpoints(output_dir) for path in folder.rglob("*"))
    free = shutil.disk_usage(output_dir).free
    if free + held < checkpoint_bytes + model_bytes:
        raise UserError(
            f"--output_dir {str(output_dir)!r} is on a disk with {free / GIB:.2f} GiB free, and a checkpoint has "
            f"{checkpoint_bytes / GIB:.2f} and the model {model_bytes / GIB:.2f}; free some, or name another folder"
        )
    # While one is written those before it are still there.
    count = (limit or 0) + 1
    if free + held < count * checkpoint_bytes + model_bytes:
        logger.warning(
            f"  the disk has {free / GIB:.2f} GiB free, and {count} checkpoints of {checkpoint_bytes / GIB:.2f} GiB "
            "and the model are more: saves that find no room are left out; --save_total_limit 1 needs the least"
        )


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of two runs that are not the same, each with theirs and ours."""
    names = [*theirs, *(name for name in ours if name not in theirs)]
    return {name: (theirs.get(name), ours.get(name)) for name in names if theirs.get(name) != ours.get(name)}
