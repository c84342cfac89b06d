"""A logged loss far above those before it."""

import math
import statistics
from collections import deque

WINDOW, FEWEST, Z_SCORE = 50, 20, 6.0


class LossSpikes:
    """Compares each logged loss with the last 50 by its z-score."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def z_score(self, loss: float) -> float | None:
        """Return the z-score of a loss that is a spike, None of one that is not."""
        if not math.isfinite(loss):
            return None
        score = 0.0
        if len(self._losses) >= FEWEST:
            deviation = statistics.stdev(self._losses)
            score = (loss - statistics.fmean(self._losses)) / deviation if deviation else 0.0
        self._losses.append(loss)
        return score if score > Z_SCORE else None
