"""Signals that end a run after the step and its checkpoint."""

import os
import signal
from types import FrameType

# 128 and the signal's number, as shells tell of it; a process that died of the signal itself has no exit code.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """While it is entered, remembers the first stop signal instead of dying of it; a second SIGINT does end at once.

    Attributes:
        caught: the first signal, None before there was one.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """Of a run that a signal ended, to this process or, of several, to another."""
        return 128 + (self.caught or signal.SIGTERM)

    def _catch(self, number: int, _: FrameType | None) -> None:
        if self.caught is not None and number == signal.SIGINT:
            # What is half written has no name yet, so that nothing is harmed.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if self.caught is None:
            self.caught = signal.Signals(number)
            # Not print(): the signal may have come amid another write to the same buffer.
            text = f"\n{self.caught.name}: the run ends after this step and its checkpoint; Ctrl-C ends it at once\n"
            os.write(2, text.encode())
