"""What several threads send over one connection at once goes out together.

A write costs a system call, a switch of threads and the broker's attention, whatever its size. So whoever finds another
thread writing leaves its item for that thread, and a thread that is handing on messages, with more of them to come,
keeps back what its handlers send until it has handed on the last or `_LONGEST` has passed. A single sender writes at
once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Outbox"]

_MOST_BYTES = 1 << 20  # that wait for another thread to write them
_MOST_KEPT = 64  # items kept back
_LONGEST = 0.0005  # seconds that an item is kept back for the next ones

T = TypeVar("T")


class Outbox(Generic[T]):
    """Items on their way to one connection, in order.

    lock: the connection's, held while `write` is called with the items; `write` raises when the connection is lost.
    Whoever holds it for anything else, were it to read, calls `flush` afterwards: a sender that found it taken has
    left.
    patience: seconds that a thread waits for its turn to write when too much waits already.

    Lock: none of its own. ``_items`` is appended to by anybody, and taken from with `lock` held.
    """

    __slots__ = ("_bytes", "_items", "_kept_since", "_lock", "_patience", "_write", "waiting")

    def __init__(self, lock: threading.Lock, write: Callable[[list[T]], None], patience: float) -> None:
        self._lock = lock
        self._write = write
        self._patience = patience
        self._items: deque[T] = deque()
        self.waiting = self._items.__len__
        """Returns how many items wait to be written; `flush` then does something."""
        self._bytes = 0  # about: two threads may count at once
        self._kept_since = 0.0

    def send(self, item: T, size: int) -> None:
        """Write the item now, or let the thread do so that is writing."""
        if not self._items and self._lock.acquire(blocking=False):
            try:
                self.drain()  # of another thread, since the look
                self._write([item])
            finally:
                self._lock.release()
            if self._items:
                self.flush()
            return
        self._items.append(item)
        self._bytes += size
        if self._bytes > _MOST_BYTES:
            if not self._lock.acquire(timeout=self._patience):
                raise TimeoutError(f"{self._bytes:,} bytes wait to be sent, and none went out in {self._patience:g} s")
            try:
                self.drain()
            finally:
                self._lock.release()
        self.flush()

    def keep(self, item: T, size: int) -> None:
        """Write the item with those that follow; the calling thread calls `flush` before it waits for anything."""
        now = time.monotonic()
        if not self._items:
            self._kept_since = now
        self._items.append(item)
        self._bytes += size
        if len(self._items) >= _MOST_KEPT or now - self._kept_since > _LONGEST or self._bytes > _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """See to it that everything is written: by this thread, or by the one that writes now."""
        # Looked at again after the lock is free: an item may have come after the writer looked for the last time.
        while self._items and self._lock.acquire(blocking=False):
            try:
                self.drain()
            finally:
                self._lock.release()

    def drain(self) -> None:
        """Write everything; `lock` is held. Whoever writes something else to the connection calls this first."""
        items = self._items
        while items:
            batch = []
            while items:
                batch.append(items.popleft())
            self._bytes = 0
            self._write(batch)
