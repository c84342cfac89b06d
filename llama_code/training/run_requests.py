"""What is asked of a run from outside its steps: to save, by the clock, and to stop, by a signal."""

import time

from llama_code.training.stop_signals import StopSignals


class RunRequests:
    """Asked at every step.

    Args:
        signals: that were caught.
        save_minutes: between two checkpoints, 0 for none by the clock.
    """

    def __init__(self, signals: StopSignals, save_minutes: float) -> None:
        self.signals, self.save_seconds = signals, 60 * save_minutes
        self.has_saved()

    def stop(self) -> bool:
        """Whether the run should end."""
        return self.signals.caught is not None

    def save(self) -> bool:
        """Whether a checkpoint is due."""
        return self.save_seconds > 0 and time.monotonic() - self._saved >= self.save_seconds

    def has_saved(self) -> None:
        """Begin to count anew."""
        self._saved = time.monotonic()
