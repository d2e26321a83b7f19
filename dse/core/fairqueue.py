"""Requests that wait, by who sent them: each sender's turn comes, and who has most waiting gives way when it is full.

Plain state, no clock, no lock.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of at most `most` items and `most_bytes` bytes, from which senders are served in turn.

    A sender alone may fill it. When it is full, the latest item of whoever takes up most room gives way to one of a
    sender that takes up less; one of the greatest itself is refused.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._unit = max(1, most_bytes // most)  # an item counts as that many bytes at least
        self._capacity = self._unit * most
        self._total = 0
        self._count = 0
        self._weights: dict[str, int] = {}
        self._queues: dict[str, deque[tuple[int, T]]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return self._count

    def put(self, sender: str, item: T, size: int) -> list[T]:
        """Add an item of so many bytes; return those that gave way, or the item itself when it is refused."""
        weight = self._unit if size < self._unit else size
        gave_way: list[T] = []
        while self._total + weight > self._capacity:
            greatest = max(self._weights, key=self._weights.__getitem__, default=sender)
            if self._weights.get(greatest, 0) <= self._weights.get(sender, 0) + weight:
                return [*gave_way, item]
            gave_way.append(self._pop(greatest, latest=True))
        queue = self._queues.get(sender)
        if queue is None:
            queue = self._queues[sender] = deque()
        queue.append((weight, item))
        self._weights[sender] = self._weights.get(sender, 0) + weight
        self._total += weight
        self._count += 1
        return gave_way

    def take(self) -> T | None:
        """Return the first item of the sender whose turn it is, or None where nothing waits."""
        for sender in self._queues:
            item = self._pop(sender, latest=False)
            if sender in self._queues:
                self._queues[sender] = self._queues.pop(sender)  # behind the others
            return item
        return None

    def _pop(self, sender: str, *, latest: bool) -> T:
        queue = self._queues[sender]
        weight, item = queue.pop() if latest else queue.popleft()
        self._total -= weight
        self._count -= 1
        self._weights[sender] -= weight
        if not queue:
            del self._queues[sender], self._weights[sender]
        return item
