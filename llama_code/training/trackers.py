"""TensorBoard and other trackers, without whom training goes on."""

import logging
from functools import partial
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llama_code.errors import first_line
from llama_code.training.events import Events

logger = logging.getLogger(__name__)


class Tracker(TrainerCallback):
    """Passes all that happens to a tracker; after an error a new one takes its place, as one that was just begun.

    Args:
        tracker: transformers' callback.
        events: the run's.
    """

    def __init__(self, tracker: TrainerCallback, events: Events) -> None:
        self.tracker, self.events = tracker, events
        self.num_errors = 0

    @property
    def name(self) -> str:
        """As --report_to has it."""
        return next(name for name, kind in INTEGRATION_TO_CALLBACK.items() if kind is type(self.tracker))

    def tell(self) -> None:
        """Say at the end what is missing in the tracker."""
        if self.num_errors:
            logger.warning(
                f"{self.name} failed {self.num_errors} times, and lacks what it was given then; checkpoints' "
                "trainer_state.json has every figure that was logged"
            )

    def __getattribute__(self, name: str) -> Any:
        """Every `on_...` is the tracker's own, guarded."""
        if name.startswith("on_"):
            return partial(self._call, name)
        return super().__getattribute__(name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.tracker, name)(*args, **kwargs)
        # Each tracker has errors of its own, which have nothing in common, and none is a reason to stop.
        except Exception as error:
            self.num_errors += 1
            if self.num_errors == 1:
                reason = first_line(error)
                self.events.add("tracker_failed", tracker=self.name, reason=reason)
                logger.warning(f"{self.name} failed ({reason}); training goes on without it and it is tried again")
            self.tracker = type(self.tracker)()
        return None


def guard_trackers(trainer: Trainer, events: Events) -> list[Tracker]:
    """Put a `Tracker` around each of a trainer's trackers; returns them."""
    found = [x for x in trainer.callback_handler.callbacks if type(x) in INTEGRATION_TO_CALLBACK.values()]
    guarded = []
    for callback in found:
        trainer.remove_callback(callback)
        guarded.append(Tracker(callback, events))
        trainer.add_callback(guarded[-1])
    return guarded
