"""Rows of a run's order that are left out, and where the others move."""

from collections.abc import Sequence

import numpy as np


class SkippedRows:
    """Maps the rows of a run, counted as they are trained on, to their places in an order of which some are left out.

    Args:
        ranges: first place and the one after the last, of each piece that is left out.

    Attributes:
        ranges: sorted, none touching another.
    """

    def __init__(self, ranges: Sequence[Sequence[int]] = ()) -> None:
        self.ranges: list[tuple[int, int]] = sorted((first, end) for first, end in ranges)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """The places in the order of rows of the run, both int64."""
        places = rows.copy()
        for first, end in self.ranges:
            places[places >= first] += end - first
        return places

    def place(self, row: int) -> int:
        """The place of one row."""
        return int(self.places(np.array([row]))[0])

    def is_skipped(self, place: int) -> bool:
        """Whether a place is left out."""
        return any(first <= place < end for first, end in self.ranges)

    def add(self, first_row: int, end_row: int) -> None:
        """Leave out the rows of the run from one up to another, and all places between them."""
        first, end = self.place(first_row), self.place(end_row - 1) + 1
        apart = [piece for piece in self.ranges if piece[1] < first or piece[0] > end]
        touching = [piece for piece in self.ranges if piece not in apart]
        self.ranges = sorted(
            [*apart, (min([first, *(a for a, _ in touching)]), max([end, *(b for _, b in touching)]))]
        )
