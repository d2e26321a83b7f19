"""What waits for one session of the in-process driver, and how its receiving thread sleeps until something does.

It sleeps in a system call, on a pipe, and is woken by another one. A lock, or a queue made of locks, costs three times
the wake-ups: its waiter is woken by a thread that holds the interpreter's lock, waits for that one too, and is woken
again for each of the two steps in which it is let go. A write lets go of the interpreter's lock first.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Inbox"]

_LONGEST = 3600.0  # seconds: the system counts them in milliseconds, up to 2**31
_READ = 512  # bytes: wake-ups that came too late to be needed are read with the next

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items put by any thread and taken by one at a time, in order.

    To `put` wakes nobody: `wake` does, and may be called later, with no lock held that the woken thread could need.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._pipe: _Pipe | None = _Pipe()
        self.put = self._items.append
        # Set before a look at the items, which are appended to before a look at this: one of the two sees the other.
        self.waits = False
        """A thread sleeps, or is about to, until `wake` is called."""

    def __len__(self) -> int:
        return len(self._items)

    def wake(self) -> None:
        """Wake up the thread that sleeps in `get`, if one does."""
        pipe = self._pipe
        if self.waits and pipe is not None:
            self.waits = False
            pipe.write()

    def get(self, timeout: float) -> T | None:
        """Return the oldest item, waiting for one as long as `timeout` seconds at most; None when there is none.

        It may be None sooner: who was to wake it up was late, and what it was about had been taken.
        """
        items = self._items
        if items:
            return items.popleft()
        pipe = self._pipe
        if pipe is None:
            return None
        pipe.drain()  # before others can see that they are to write
        self.waits = True
        if not items:
            pipe.wait(timeout)
        self.waits = False
        return items.popleft() if items else None

    def close(self) -> None:
        """Give the pipe back, once nobody uses it any more: `wake` first."""
        self._pipe = None

    def abandon(self) -> None:
        """Give the pipe back in a forked child, where those who used it do not exist."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


class _Pipe:
    """Closed with the last reference to it: nobody writes to, or reads from, what may be another file by then."""

    __slots__ = ("_ends", "_full", "_poll")

    def __init__(self) -> None:
        self._full = False  # there is something to read
        self._ends: tuple[int, ...] = ()
        self._ends = os.pipe()
        os.set_blocking(self._ends[1], False)
        self._poll = select.poll()
        self._poll.register(self._ends[0], select.POLLIN)

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError):  # so full of wake-ups that one more is not needed
            os.write(self._ends[1], b"\0")

    def wait(self, timeout: float) -> None:
        """Wait for a write; what was written is left for `drain`, which has time."""
        self._full = bool(self._poll.poll(min(timeout, _LONGEST) * 1000))

    def drain(self) -> None:
        if self._full:
            self._full = False
            os.read(self._ends[0], _READ)

    def close(self) -> None:
        ends, self._ends = self._ends, ()
        for end in ends:
            os.close(end)

    __del__ = close
