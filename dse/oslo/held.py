"""Messages that found nobody, kept by their sender until somebody listens. Plain state, no I/O, no clock, no lock.

Rules:

1. A message is held from the report that it found nobody until it is sent again, or its deadline (which is looked at
   every `SETTLE` seconds). A report says that nobody got the message: to send it again is no second delivery.
2. Messages to one address leave in the order in which they were first sent.
3. When somebody says that he listens (`heard`), all that is held for him leaves at once.
4. Word of that can be lost. So the oldest message is tried by itself every `RETRY` seconds; when it does not come back
   within `SETTLE` seconds, a listener is there, and the rest follows.
5. An address holds `messages` at most, and all of them `size` bytes. Beyond that the newest is refused; where the
   newest matters most (`lossy`, for notifications) the oldest is dropped instead.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["RETRY", "SETTLE", "Held", "Parcel"]

RETRY = 1.0
SETTLE = 1.2  # a report comes within a second
_HEARD = 1000  # addresses remembered, for reports that are late
_FIRST = 0.2  # until the oldest is tried for the first time: the listener may have come while the report was under way


@dataclass(slots=True, eq=False)
class Parcel:
    """One message: `deadline` is when it is given up, `number` its place among those of its sender."""

    address: str
    frame: bytes
    deadline: float
    number: int
    sent_at: float = 0.0


@dataclass(slots=True)
class _Shelf:
    """What is held for one address."""

    due: float
    waiting: list[Parcel] = field(default_factory=list)  # by number
    out: dict[bytes, Parcel] = field(default_factory=dict)  # sent again, and perhaps coming back
    probe: Parcel | None = None  # the oldest, sent by itself
    listened: bool = False  # somebody said so


class Held:
    """See the rules at the top of this file."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self._held = 0  # bytes
        self._shelves: dict[str, _Shelf] = {}
        self._heard: dict[str, float] = {}  # when who was heard of, for reports that are late

    def __len__(self) -> int:
        return sum(len(shelf.waiting) for shelf in self._shelves.values())

    def holds_for(self, address: str) -> bool:
        """Whether a new message to this address has to wait for older ones."""
        shelf = self._shelves.get(address)
        return shelf is not None and bool(shelf.waiting)

    def has_room(self, address: str, size: int) -> bool:
        """Whether one more message of that size may be held."""
        shelf = self._shelves.get(address)
        count = len(shelf.waiting) if shelf is not None else 0
        return count < self._messages and self._held + size <= self._size

    def hold(self, now: float, parcel: Parcel, *, lossy: bool) -> list[Parcel]:
        """Keep a message that came back, or follows one that did; return those that are lost by it."""
        shelf = self._shelves.get(parcel.address)
        if shelf is None:
            shelf = self._shelves[parcel.address] = _Shelf(now + _FIRST)
            if self._heard.get(parcel.address, -math.inf) > now - SETTLE:
                shelf.listened, shelf.due = True, now
        known = shelf.out.pop(parcel.frame, None)
        if known is not None:
            if known is shelf.probe:
                shelf.probe, shelf.due = None, max(shelf.due, now + RETRY)
            self._put(shelf, known)
            return []
        lost: list[Parcel] = []
        while not self.has_room(parcel.address, len(parcel.frame)):
            if not lossy or not shelf.waiting:
                return [*lost, parcel]
            lost.append(self._take(shelf, 0))
        self._put(shelf, parcel)
        return lost

    def heard(self, now: float, addresses: Iterable[str]) -> None:
        """Somebody listens on these addresses."""
        if len(self._heard) > _HEARD:
            self._heard.clear()
        for address in addresses:
            self._heard[address] = now
            shelf = self._shelves.get(address)
            if shelf is not None:
                shelf.listened, shelf.due = True, now

    def heard_all(self, now: float) -> None:
        """Anybody may be listening: the connection was away."""
        self.heard(now, list(self._shelves))

    def withdraw(self, address: str, frame: bytes) -> None:
        """Nobody wants this message any more."""
        shelf = self._shelves.get(address)
        if shelf is None:
            return
        shelf.out.pop(frame, None)
        for index, parcel in enumerate(shelf.waiting):
            if parcel.frame == frame:
                self._take(shelf, index)
                break

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        return min((shelf.due for shelf in self._shelves.values()), default=math.inf)

    def tick(self, now: float, *, may_send: bool = True) -> tuple[list[Parcel], list[Parcel]]:
        """Return the messages to send now, in order, and those whose deadline has passed.

        may_send: False while there is no connection; nothing is sent then.
        """
        send: list[Parcel] = []
        expired: list[Parcel] = []
        for address, shelf in list(self._shelves.items()):
            for index in reversed(range(len(shelf.waiting))):
                if shelf.waiting[index].deadline <= now:
                    expired.append(self._take(shelf, index))
            for frame in [frame for frame, parcel in shelf.out.items() if parcel.sent_at <= now - SETTLE]:
                del shelf.out[frame]
            if shelf.due <= now:
                if may_send:
                    send += self._due(now, shelf)
                else:
                    shelf.due, shelf.probe = now + RETRY, None
            if not shelf.waiting and not shelf.out:
                del self._shelves[address]
        for address in [address for address, at in self._heard.items() if at <= now - SETTLE]:
            del self._heard[address]
        return send, expired

    def _due(self, now: float, shelf: _Shelf) -> list[Parcel]:
        count = len(shelf.waiting)
        if not shelf.listened and shelf.probe is None:
            count = min(count, 1)
        parcels = [self._take(shelf, 0) for _ in range(count)]
        shelf.probe = parcels[0] if parcels and not shelf.listened and shelf.probe is None else None
        shelf.listened = False
        shelf.due = now + SETTLE
        for parcel in parcels:
            parcel.sent_at = now
            shelf.out[parcel.frame] = parcel
        return parcels

    def _put(self, shelf: _Shelf, parcel: Parcel) -> None:
        bisect.insort(shelf.waiting, parcel, key=lambda other: other.number)
        self._held += len(parcel.frame)

    def _take(self, shelf: _Shelf, index: int) -> Parcel:
        parcel = shelf.waiting.pop(index)
        self._held -= len(parcel.frame)
        return parcel
