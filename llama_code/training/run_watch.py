"""What a run looks at after each step: signals, steps that were skipped, loss spikes, and whether it hangs."""

import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llama_code.training.events import Events
from llama_code.training.loss_spikes import LossSpikes
from llama_code.training.run_requests import RunRequests

STACKS_FILE = "stacks.txt"
# After so many seconds without a step, an evaluation or a save the stacks of all threads are written.
HANG_SECONDS = 1_800
logger = logging.getLogger(__name__)


class RunWatch(TrainerCallback):
    """Ends a run in order after a signal, and writes the stacks of one that hangs.

    Args:
        trainer: a CodeTrainer.
        requests: to stop or to save.
        events: the run's.
        stacks_path: for the stacks of a run that hangs.
    """

    def __init__(self, trainer: Any, requests: RunRequests, events: Events, stacks_path: Path) -> None:
        self.trainer, self.requests, self.events = trainer, requests, events
        self.stacks_path = stacks_path
        self.spikes = LossSpikes()
        self._last_beat = time.monotonic()
        self._is_told = False
        self._is_over = threading.Event()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        self._is_over.clear()
        self._beat()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Watch no longer."""
        self._is_over.set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save when it is time, save and stop after a signal, stop where the run should go back."""
        self._beat()
        self.trainer.read_skipped()
        guard = self.trainer.guard
        # Several processes must do it at the same step: they agree through the guard's flags, a step later.
        is_alone = args.world_size == 1
        if self.requests.save() if is_alone else guard.must_save:
            control.should_save = True
        if self.requests.stop() if is_alone else guard.must_stop:
            control.should_save = control.should_training_stop = True
        if guard.first_of_many is not None:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A signal may have come amid an evaluation."""
        self._beat()
        if self.requests.stop() and args.world_size == 1:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A signal may have come amid a save."""
        self._beat()
        if self.requests.stop() and args.world_size == 1:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of a spike, and write what events are still due."""
        self.events.flush()
        logs = kwargs["logs"]
        score = self.spikes.z_score(logs["loss"]) if "loss" in logs else None
        if score is not None:
            self.events.add("loss_spike", step=state.global_step, loss=logs["loss"], z_score=round(score, 1))
            logger.warning(f"the loss at step {state.global_step:,} is {logs['loss']:.4f}, {score:.1f} deviations up")

    def _beat(self) -> None:
        now = time.monotonic()
        if self._is_told:
            self.events.add("hang", seconds=round(now - self._last_beat), stacks=self.stacks_path.name)
            logger.warning(f"nothing happened for {now - self._last_beat:.0f} s; stacks are in {self.stacks_path}")
            self._is_told = False
        self._last_beat = now

    def _watch(self) -> None:
        # Python's own faulthandler needs no lock of Python's, but may crash a process whose threads are running.
        while not self._is_over.wait(HANG_SECONDS / 10):
            if time.monotonic() - self._last_beat > HANG_SECONDS and not self._is_told:
                names = {thread.ident: thread.name for thread in threading.enumerate()}
                stacks = [
                    f"{names.get(number)}:\n{''.join(traceback.format_stack(frame))}"
                    for number, frame in sys._current_frames().items()
                ]
                with self.stacks_path.open("a") as file:
                    file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}\n" + "\n".join(stacks) + "\n")
                self._is_told = True
