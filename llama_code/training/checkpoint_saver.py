"""Writes checkpoints beside training, one at a time; one that cannot be written is no reason to stop."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from llama_code.errors import first_line
from llama_code.training.checkpoints import STAGING_FOLDER, checkpoint_name, commit, remove_oldest
from llama_code.training.events import Events

# What a disk that is full, read-only or gone makes of writing: Python, safetensors and torch.save, whose errors have
# no class of their own.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
TORCH_SAVE = ("PytorchStreamWriter", "inline_container", "Parent directory")
logger = logging.getLogger(__name__)


def write_error(error: Exception) -> str:
    """Say in words why something could not be written; raises what is not of the disk."""
    if isinstance(error, RuntimeError) and not any(part in str(error) for part in TORCH_SAVE):
        raise error
    return getattr(error, "strerror", None) or first_line(error)


class Staged(NamedTuple):
    """A checkpoint that is begun.

    Attributes:
        step: of it.
        parts: each writes a part of what is missing in its folder.
        blocked_seconds: for which training waited, told with the rest.
        limit: how many checkpoints stay, None for all.
        best: folder of the best checkpoint, which stays besides.
    """

    step: int
    parts: Sequence[Callable[[], object]]
    blocked_seconds: float
    limit: int | None
    best: str | None


class CheckpointSaver:
    """Writes one checkpoint at a time in a thread.

    Args:
        output_dir: the run's folder.
        events: the run's.
        on_saved: called with the folder of each checkpoint, in the thread.

    Attributes:
        saved_step: step of the last checkpoint that was written, None before there was one.
    """

    def __init__(self, output_dir: Path, events: Events, on_saved: Callable[[Path], None]) -> None:
        self.output_dir, self.events, self.on_saved = output_dir, events, on_saved
        self.saved_step: int | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def staged(self, step: int) -> Path:
        """Wait for the checkpoint before, and return the path of an empty folder's to be: that of a step."""
        self.wait()
        folder = self.staged_path(step)
        if folder.parent.exists():
            shutil.rmtree(folder.parent)
        return folder

    def staged_path(self, step: int) -> Path:
        """Where a step's checkpoint is made."""
        return self.output_dir / STAGING_FOLDER / checkpoint_name(step)

    def write(self, staged: Staged) -> None:
        """Write what is missing of a staged checkpoint, and give it its name, in the thread."""
        self._writing = self._pool.submit(self._write, staged)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def fail(self, step: int, error: Exception) -> None:
        """Remove what there is of a checkpoint, and say that there will be none; raises what is not of the disk."""
        reason = write_error(error)
        shutil.rmtree(self.output_dir / STAGING_FOLDER, ignore_errors=True)
        self.events.add("save_failed", step=step, reason=reason)
        logger.warning(
            f"the checkpoint of step {step:,} could not be written ({reason}); those before it are as they were, "
            "and training goes on and tries again at the next save"
        )

    def _write(self, staged: Staged) -> None:
        started = time.perf_counter()
        try:
            for part in staged.parts:
                part()
            folder, manifest = commit(self.output_dir, staged.step)
        except WRITE_ERRORS as error:
            self.fail(staged.step, error)
            return
        self.saved_step = staged.step
        seconds = time.perf_counter() - started
        num_bytes = sum(facts["size"] for facts in manifest["files"].values())
        times = {"seconds": round(seconds, 3), "blocked_seconds": round(staged.blocked_seconds, 3)}
        facts = {**times, "bytes": num_bytes, "sha256": manifest["sha256"]}
        self.events.add("save", step=staged.step, checkpoint=folder.name, **facts)
        try:
            self.on_saved(folder)
        except OSError as error:
            logger.warning(f"{folder.name} is saved, and what should follow could not be done ({error.strerror})")
        try:
            removed = remove_oldest(self.output_dir, staged.limit, staged.best)
        except OSError as error:
            logger.warning(f"an old checkpoint could not be removed ({error.strerror}); remove it by hand")
            return
        if removed:
            self.events.add("remove", checkpoints=removed)
