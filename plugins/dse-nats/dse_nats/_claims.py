"""Large ANYCAST frames: the parts of one frame must all reach the same listener.

NATS picks a member of a queue group anew for each message. So the sender publishes a *claim* to the group; the one that
gets it answers with a subject of its own, a *grant*, and the parts go there.

Rules:

1. While an address waits for a grant, what is sent there later waits behind: order.
2. Nothing of the frame is sent before the grant; so a claim that nobody takes, or that is not granted in time (its
   taker died), is a frame that nobody got, and is reported as undelivered.
3. A grant that comes too late is no grant.
4. What waits is bounded; beyond, sending is refused.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dse.core.transport import Address

__all__ = ["CLAIM", "Claims"]

CLAIM = b"\x03"
"""What a claim's message is."""

_MOST_BYTES = 1 << 26  # that wait for grants


@dataclass
class _Waiting:
    claim: int  # its number
    deadline: float
    frames: deque[bytes] = field(default_factory=deque)  # the first is the one that the claim is for


class Claims:
    """The claims of one connection. patience: seconds until a claim counts as not granted.

    Lock: ``_lock`` protects every field. Nothing is called with it held.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: dict[Address, _Waiting] = {}
        self._addresses: dict[int, Address] = {}  # by number of the claim
        self._last = 0
        self._bytes = 0
        self.any = False  # whether anything waits; may be read without the lock

    def begin(self, address: Address, data: bytes, now: float, *, large: bool) -> int | None:
        """Send data to an address: 0 means at once, a number means make this claim, None means that it waits.

        Raises `OverflowError` when too much waits already.
        """
        with self._lock:
            waiting = self._waiting.get(address)
            if waiting is None and not large:
                return 0
            if self._bytes + len(data) > _MOST_BYTES:
                raise OverflowError(f"{self._bytes:,} bytes wait for listeners to take large frames")
            self._bytes += len(data)
            if waiting is not None:
                waiting.frames.append(data)
                return None
            return self._claim(address, deque([data]), now)

    def granted(self, claim: int) -> tuple[Address, bytes] | None:
        """Return the frame that a grant is for, or None when it comes too late."""
        with self._lock:
            address = self._addresses.pop(claim, None)
            if address is None:
                return None
            data = self._waiting[address].frames.popleft()
            self._bytes -= len(data)
            return address, data

    # One that nobody took leaves in the same way.
    untaken = granted

    def next(self, address: Address, now: float, *, room: int) -> tuple[bytes | None, int]:
        """After `granted`: return what comes next for the address, and the claim that it needs if it is large.

        (None, 0) says that nothing waits any more. room: the largest data that is not large.
        """
        with self._lock:
            frames = self._waiting.pop(address).frames
            if not frames:
                self.any = bool(self._waiting)
                return None, 0
            if len(frames[0]) > room:
                return frames[0], self._claim(address, frames, now)
            data = frames.popleft()
            self._bytes -= len(data)
            self._waiting[address] = _Waiting(0, 0.0, frames)
            return data, 0

    def overdue(self, now: float) -> Sequence[int]:
        """Return the claims that were not granted in time."""
        with self._lock:
            return [w.claim for w in self._waiting.values() if w.claim in self._addresses and w.deadline <= now]

    def _claim(self, address: Address, frames: deque[bytes], now: float) -> int:
        self._last += 1
        self._waiting[address] = _Waiting(self._last, now + self._patience, frames)
        self._addresses[self._last] = address
        self.any = True
        return self._last
