"""What was sent and may still prove to have reached nobody.

Rules:

1. The server takes what a connection sends in order, and answers in order. So when it says of a frame that nobody is
   subscribed, all that were sent before it have reached somebody or were said so; and a PONG proves the same for all
   that were sent before its PING.
2. What is not proved is bounded: a PING is due after so many frames or bytes. Not after each, for a PONG wakes up who
   reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dse.core.transport import Address

__all__ = ["Awaited", "Pending"]

_MOST_BYTES = 1 << 18
_MOST_FRAMES = 256


class Awaited:
    """A PONG that somebody waits for."""

    __slots__ = ("_event", "done", "failure")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.failure: BaseException | None = None
        self.done = False

    def resolve(self, failure: BaseException | None = None) -> None:
        """It has come, or will not come; the first word counts."""
        if self.done:
            return
        self.failure = failure
        self.done = True
        self._event.set()

    def wait(self, timeout: float) -> None:
        """Wait so many seconds for it."""
        self._event.wait(timeout)


class Pending:
    """Frames and PINGs under way on one connection.

    Lock: none of its own. What says *writing* is called with the lock of the connection's writing side held, the rest
    by whoever has the turn to receive; the two meet in deques.
    """

    def __init__(self) -> None:
        self._last = 0
        self._frames: deque[tuple[int, Address, bytes]] = deque()
        self._pings: deque[tuple[Awaited | None, int]] = deque()
        self._messages = self._bytes = 0  # since the last PING

    def sent(self, address: Address, data: bytes) -> int:
        """Writing: remember a frame; return the number by which the server may name it."""
        self._last += 1
        self._frames.append((self._last, address, data))
        return self._last

    def ping_due(self, messages: int, size: int) -> bool:
        """Writing: so many messages are being sent; is it time for a PING?"""
        self._messages += messages
        self._bytes += size
        return self._messages >= _MOST_FRAMES or self._bytes >= _MOST_BYTES

    def pinged(self, awaited: Awaited | None) -> None:
        """Writing: a PING is being sent; somebody may wait for its PONG."""
        self._pings.append((awaited, self._last))
        self._messages = self._bytes = 0

    def ponged(self) -> None:
        """A PONG has come."""
        if not self._pings:
            return
        awaited, proved = self._pings.popleft()
        frames = self._frames
        while frames and frames[0][0] <= proved:
            frames.popleft()
        if awaited is not None:
            awaited.resolve()

    def reached_nobody(self, number: int) -> tuple[Address, bytes] | None:
        """The server says that nobody is subscribed; return the frame, if it is not known already."""
        frames = self._frames
        while frames and frames[0][0] < number:
            frames.popleft()
        if not frames or frames[0][0] != number:
            return None
        _, address, data = frames.popleft()
        return address, data

    def take(self, matches: Callable[[Address], bool]) -> tuple[Address, bytes] | None:
        """Return the oldest frame to such an address, and forget it."""
        for index, (_, address, data) in enumerate(self._frames):
            if matches(address):
                del self._frames[index]
                return address, data
        return None

    @property
    def awaited(self) -> list[Awaited]:
        """PONGs that somebody waits for, in order."""
        return [awaited for awaited, _ in list(self._pings) if awaited is not None]
