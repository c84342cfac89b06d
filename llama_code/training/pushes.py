"""Pushes to the Hub that training does not wait for, tried again until they are through.

`hf upload` does it in a process of its own, which makes the repository where there is none and can be ended when the
Hub does not answer.
"""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from llama_code.training.checkpoints import ASIDE_FOLDER, REMOVED_FOLDER, STAGING_FOLDER
from llama_code.training.events import Events
from llama_code.training.run_lock import LOCK_FILE

PUSH_FOLDER = ".pushing"
# What of a checkpoint is there for going on with the run, and what of a run's folder is for its machine alone.
STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin")
PRIVATE = tuple(f"{name}/*" for name in ("checkpoint-*", STAGING_FOLDER, REMOVED_FOLDER, ASIDE_FOLDER, PUSH_FOLDER))
PRIVATE += (LOCK_FILE, "events.jsonl", "stacks.txt", "training_args.bin")
# An upload that takes longer is ended and tried again; it goes on with the files that are through.
FEWEST_UPLOAD_SECONDS, LEAST_BYTES_A_SECOND = 300.0, 1_000_000
FIRST_DELAY, LONGEST_DELAY = 10.0, 300.0
# How long the end of a run waits for what is due.
LAST_SECONDS = 600.0
logger = logging.getLogger(__name__)


class Pushes:
    """Pushes the newest of what was asked for, in a thread.

    Args:
        arguments: with `hub_model_id` (default: the run's folder's name), `hub_token`, `hub_private_repo`,
            `hub_revision` and `hub_strategy`.
        events: the run's.
    """

    def __init__(self, arguments: TrainingArguments, events: Events) -> None:
        self.arguments, self.events = arguments, events
        assert arguments.output_dir is not None
        self.output_dir = Path(arguments.output_dir)
        self.repo = arguments.hub_model_id or self.output_dir.absolute().name
        self._due: tuple[Path, str] | None = None
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._is_ended = False
        self._uploading: Path | None = None
        self._thread = threading.Thread(target=self._run, name="pushes", daemon=True)
        self._thread.start()

    def push_checkpoint(self, folder: Path) -> None:
        """Ask for a checkpoint's model to be pushed; it may be removed meanwhile."""
        if self.arguments.hub_strategy == HubStrategy.END:
            return
        target = self.output_dir / PUSH_FOLDER / folder.name
        for older in target.parent.glob("*"):
            if older not in (target, self._uploading):
                shutil.rmtree(older)
        for path in folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in STATES):
                target.mkdir(parents=True, exist_ok=True)
                _link(path, target / path.name)
        self._ask(target, f"Training in progress, {folder.name}")

    def push_run(self) -> None:
        """Ask for the run's folder to be pushed."""
        self._ask(self.output_dir, "End of training")

    def finish(self) -> bool:
        """Wait for what is due, but not for ever; returns whether all is pushed, and says how to push the rest."""
        deadline = time.monotonic() + LAST_SECONDS
        with self._changed:
            while self._due is not None and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            is_done, self._is_ended = self._due is None, True
            self._changed.notify_all()
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()
        if not is_done:
            command = shlex.join(["hf", *self._upload(self.output_dir, "End of training")])
            self.events.add("not_pushed", command=command)
            logger.warning(f"not everything is on the Hub; push it with: {command}")
        elif (self.output_dir / PUSH_FOLDER).exists():
            shutil.rmtree(self.output_dir / PUSH_FOLDER)
        return is_done

    def _ask(self, folder: Path, message: str) -> None:
        with self._changed:
            self._due = (folder, message)
            self._changed.notify_all()

    def _run(self) -> None:
        delay = FIRST_DELAY
        while True:
            with self._changed:
                while self._due is None and not self._is_ended:
                    self._changed.wait()
                if self._is_ended or self._due is None:
                    return
                folder, message = due = self._due
                self._uploading = folder
            reason = self._push(folder, message)
            with self._changed:
                if reason is None:
                    self.events.add("push", repo=self.repo, folder=folder.name, message=message)
                    delay = FIRST_DELAY
                    if self._due is due:
                        self._due = None
                        self._changed.notify_all()
                elif not self._is_ended:
                    if delay == FIRST_DELAY:
                        self.events.add("push_failed", repo=self.repo, folder=folder.name, reason=reason)
                        logger.warning(f"pushing to {self.repo} failed ({reason}); it is tried again")
                    if self._due is due:
                        self._changed.wait(delay)
                    delay = min(2 * delay, LONGEST_DELAY)

    def _push(self, folder: Path, message: str) -> str | None:
        """Upload a folder; returns why that failed."""
        token = {"HF_TOKEN": self.arguments.hub_token} if self.arguments.hub_token else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "huggingface_hub.cli.hf", *self._upload(folder, message)],
            env={**os.environ, **token, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which decides what becomes of this
        )
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        seconds = FEWEST_UPLOAD_SECONDS + size / LEAST_BYTES_A_SECOND
        try:
            _, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            return f"no end in {seconds:.0f} s"
        if self._process.returncode == 0:
            return None
        lines = [line for line in errors.splitlines() if "Error" in line or "error" in line]
        return (lines or errors.splitlines() or [f"exit code {self._process.returncode}"])[-1].strip()

    def _upload(self, folder: Path, message: str) -> list[str]:
        """The arguments of `hf`."""
        options = ["--commit-message", message]
        for pattern in PRIVATE:
            options += ["--exclude", pattern]
        if self.arguments.hub_private_repo:
            options += ["--private"]
        if self.arguments.hub_revision:
            options += ["--revision", self.arguments.hub_revision]
        return ["upload", self.repo, str(folder), ".", *options]


def _link(path: Path, target: Path) -> None:
    """Have a file under another name too, as a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
