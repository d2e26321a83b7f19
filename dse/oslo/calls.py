"""Calls that wait for their answers."""

from __future__ import annotations

import math
import threading
import time

from dse.oslo.messages import Reply

__all__ = ["Call"]


class Call:
    """What one thread waits for: the answer to its call, or word that its cast has arrived.

    deadline, monitor: when it gives up, on the monotonic clock; and for how many seconds at most it wants to hear
    nothing. It is answered from any thread, and waited for by one: what `dse.core.receiving.Awaited` says.
    """

    done = False
    reply: Reply | None = None
    error: Exception | None = None
    found_nobody = False
    """It was reported undeliverable, and is held."""

    _ready: threading.Lock | None = None

    def __init__(self, number: int, deadline: float, monitor: float | None, *, mandatory: bool) -> None:
        self.number = number
        self.deadline = deadline
        self.mandatory = mandatory
        self._monitor = monitor
        self._heard = time.monotonic()

    def left(self) -> float:
        """Return the seconds that are left, by the deadline and by what was heard."""
        limit = self.deadline if self._monitor is None else min(self.deadline, self._heard + self._monitor)
        return limit - time.monotonic()

    def heard(self) -> None:
        """The method still runs."""
        self._heard = time.monotonic()

    def answer(self, reply: Reply | None) -> None:
        """End the wait."""
        self.reply = reply
        self._end()

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        self.error = error
        self._end()

    def wait(self, timeout: float) -> bool:
        """Wait so many seconds; return whether it has ended."""
        # The lock is there before `done` is looked at, and `done` is set before that is: nobody waits in vain.
        ready = self._ready
        if ready is None:
            ready = threading.Lock()
            ready.acquire()
            self._ready = ready
        return self.done or (ready.acquire(timeout=timeout) if timeout < math.inf else ready.acquire())

    def _end(self) -> None:
        if self.done:
            return
        self.done = True
        ready = self._ready
        if ready is not None:
            try:
                ready.release()
            except RuntimeError:  # two ended it at once, and one is enough
                pass
