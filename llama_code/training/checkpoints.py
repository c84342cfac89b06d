"""The checkpoints of a run's folder: none is seen before it is whole, none is trusted before it is read.

A checkpoint is made in `.saving/`, on the disk with its manifest before its folder gets its name. What is in the way
or damaged is moved to `set-aside/`, never removed; the oldest whole ones go when there are more than are asked for.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llama_code.training.manifest import MANIFEST_FILE, damage, sync_folder, write_manifest

STAGING_FOLDER = ".saving"
REMOVED_FOLDER = ".removing"
ASIDE_FOLDER = "set-aside"


def checkpoint_name(step: int) -> str:
    """The name of a step's folder."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_step(folder: Path) -> int | None:
    """The step that a folder's name tells, None where it is no checkpoint's name."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first, whole or not."""
    found = ((checkpoint_step(path), path) for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir())
    return sorted(((step, path) for step, path in found if step is not None), reverse=True)


def newest_whole(output_dir: Path) -> tuple[Path | None, dict[Path, str]]:
    """Find the newest checkpoint whose every file is as it was written.

    Returns:
        Its folder, None where there is none, and those that are newer with what is wrong with them.
    """
    refused: dict[Path, str] = {}
    for step, folder in list_checkpoints(output_dir):
        reason = damage(folder, step)
        if reason is None:
            return folder, refused
        refused[folder] = reason
    return None, refused


def set_aside(path: Path) -> Path:
    """Move a file or folder out of the way without losing it; returns where it is now."""
    folder = path.parent / ASIDE_FOLDER
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    path.rename(target)
    return target


def clean_up(output_dir: Path) -> None:
    """Remove what a process that was killed has left: unfinished checkpoints and half-removed ones."""
    for name in (STAGING_FOLDER, REMOVED_FOLDER):
        if (output_dir / name).exists():
            shutil.rmtree(output_dir / name)


def commit(output_dir: Path, step: int) -> tuple[Path, dict[str, Any]]:
    """Give a staged checkpoint its manifest and its name.

    Returns:
        Its folder and its manifest.
    """
    name = checkpoint_name(step)
    staged, folder = output_dir / STAGING_FOLDER / name, output_dir / name
    manifest = write_manifest(staged, step)
    if folder.exists():
        set_aside(folder)
    os.rename(staged, folder)
    staged.parent.rmdir()
    sync_folder(output_dir)
    return folder, manifest


def remove_oldest(output_dir: Path, limit: int | None, keep: str | None) -> list[str]:
    """Remove the oldest checkpoints until `limit` with a manifest are left; those without one are not counted.

    Args:
        output_dir: the run's.
        limit: how many stay, None or less than 1 for all.
        keep: folder that stays besides.

    Returns:
        Names of those removed.
    """
    whole = [path for _, path in list_checkpoints(output_dir) if (path / MANIFEST_FILE).is_file()]
    gone = whole[limit:] if limit is not None and limit > 0 else []
    gone = [path for path in gone if keep is None or path.name != Path(keep).name]
    for path in gone:
        # Renamed first, so that a kill amid the removal leaves nothing that looks like a checkpoint.
        removed = output_dir / REMOVED_FOLDER / path.name
        removed.parent.mkdir(exist_ok=True)
        path.rename(removed)
        shutil.rmtree(removed.parent)
    return [path.name for path in gone]
