"""Items of a stream in groups whose size is bounded, whatever the stream's."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def groups(
    items: Iterable[Item], size: Callable[[Item], int], max_size: int, max_items: int | None = None
) -> Iterator[list[Item]]:
    """Yield items in order, in groups that end with the item by which they reach `max_size` or `max_items`."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= max_size or len(group) == max_items:
            yield group
            group, total = [], 0
    if group:
        yield group
