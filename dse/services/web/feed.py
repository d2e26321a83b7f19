"""One table as the gateway's clients see it: the rows, and a journal of the latest changes that all clients share.

Rules:

1. Rows and the place in the journal are read together (`snapshot`), so whoever shows these rows and then follows from
   that place misses nothing and sees nothing twice.
2. A client is a place in the journal, and costs no more than that: a change is encoded once, when the first client
   wants it. A client that falls out of the journal, or comes with a place of an earlier life, is told to read the rows
   again (``reset``). So a slow client holds up nobody and keeps nothing alive.
3. The journal is bounded in changes and in bytes, and so is what of it is kept encoded; a change that is larger than
   that empties it.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dse.core.messages import Row
from dse.core.replica import ReplicaState
from dse.core.table import Change
from dse.services.web.cells import json_bytes, json_rows

__all__ = ["Batch", "Feed"]

MOST_CHANGES = 2_000
MOST_BYTES = 1 << 20  # of a journal, as JSON, about; and again of what is kept encoded
_MOST_AT_ONCE = 500  # changes that go to a client in one write


@dataclass(slots=True)
class _Entry:
    number: int
    event: str
    change: Change | None
    state: str = ""
    size: int = 100
    encoded: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a client gets next: encoded events, and the place after them."""

    data: bytes
    place: int
    more: bool


class Feed:
    """See the rules at the top. Written to by the table's callbacks, read by any thread.

    Lock: ``_lock`` protects all fields. `woken` is called after a change, without the lock, from the writing thread.
    """

    def __init__(self, woken: Callable[[], None]) -> None:
        self.life = uuid.uuid4().hex[:12]
        self._woken = woken
        self._lock = threading.Lock()
        self._rows: set[Row] = set()
        self._state = ReplicaState.SYNCING
        self._journal: deque[_Entry] = deque()
        self._size = 0  # of the journal
        self._encoded: deque[_Entry] = deque()  # those that are kept encoded, the oldest first
        self._encoded_size = 0
        self._next = 0  # the place after the newest entry
        self._known = False  # the table was complete at least once

    # The table's side

    def changed(self, change: Change) -> None:
        """Take a change of the table."""
        with self._lock:
            self._rows -= change.removed
            self._rows |= change.added
            self._append(_Entry(self._next, "change", change, size=_size(change)))
        self._woken()

    def state_changed(self, state: ReplicaState) -> None:
        """Take a state of the replica, in order with the changes."""
        with self._lock:
            self._state = state
            self._known = self._known or state is ReplicaState.LIVE
            self._append(_Entry(self._next, "state", None, state.value))
        self._woken()

    def _append(self, entry: _Entry) -> None:
        self._next += 1
        self._journal.append(entry)
        self._size += entry.size
        while self._journal and (self._size > MOST_BYTES or len(self._journal) > MOST_CHANGES):
            self._size -= self._journal.popleft().size
        while self._encoded and self._encoded[0].number < self._next - len(self._journal):
            self._forget_encoded()

    def _forget_encoded(self) -> None:
        entry = self._encoded.popleft()
        self._encoded_size -= len(entry.encoded)
        entry.encoded = b""

    # The clients' side

    @property
    def known(self) -> bool:
        """Whether the table was complete at least once: what came before is a part of it."""
        return self._known

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def snapshot(self) -> tuple[list[Row], str, ReplicaState]:
        """Return the rows, the cursor to follow from, and the state."""
        with self._lock:
            return list(self._rows), self._cursor(self._next), self._state

    def place_of(self, cursor: str | None) -> int | None:
        """Return the place that a cursor means; None for one that the journal does not reach: read the rows again."""
        with self._lock:
            first = self._next - len(self._journal)
            if cursor is None:
                return self._next
            life, _, number = cursor.partition("-")
            if life != self.life or not (number.isascii() and number.isdigit() and len(number) < 20):
                return None
            return int(number) if first <= int(number) <= self._next else None

    def batch(self, place: int) -> Batch | None:
        """Return what came after a place; None when that is not in the journal any more."""
        with self._lock:
            first = self._next - len(self._journal)
            if not first <= place <= self._next:
                return None
            count = min(self._next - place, _MOST_AT_ONCE)
            if count == len(self._journal):
                entries = list(self._journal)
            else:
                entries = [self._journal[place - first + index] for index in range(count)]
            more = place + count < self._next
        # Encoded without the lock; two threads at worst do it twice.
        parts = [entry.encoded or self._encode(entry) for entry in entries]
        with self._lock:
            first = self._next - len(self._journal)
            for entry, part in zip(entries, parts, strict=True):
                if not entry.encoded and entry.number >= first:
                    entry.encoded = part
                    self._encoded.append(entry)
                    self._encoded_size += len(part)
            while self._encoded_size > MOST_BYTES:
                self._forget_encoded()
        return Batch(b"".join(parts), place + count, more)

    def reset(self) -> tuple[bytes, int]:
        """Return the event that tells a client to read the rows again, and its place from then on."""
        with self._lock:
            place, state = self._next, self._state
        return self._event(place, "reset", {"state": state.value}), place

    def hello(self) -> bytes:
        """Return the event that opens a stream: how the table stands."""
        with self._lock:
            state, place, rows = self._state, self._next, len(self._rows)
        return b"retry: 1000\n" + self._event(place, "state", {"state": state.value, "rows": rows}, with_id=False)

    def _encode(self, entry: _Entry) -> bytes:
        if entry.change is None:
            data: dict[str, object] = {"state": entry.state}
        else:
            change = entry.change
            data = {
                "version": list(change.version),
                "added": json_rows(change.added),
                "removed": json_rows(change.removed),
            }
        return self._event(entry.number + 1, entry.event, data)

    def _event(self, place: int, event: str, data: dict[str, object], *, with_id: bool = True) -> bytes:
        lines = [f"id: {self._cursor(place)}"] if with_id else []
        head = "\n".join([*lines, f"event: {event}", "data: "]).encode("ascii")
        return head + json_bytes(data) + b"\n\n"

    def _cursor(self, place: int) -> str:
        return f"{self.life}-{place}"


def _size(change: Change) -> int:
    """Return about how many bytes a change is as JSON."""
    rows = len(change.added) + len(change.removed)
    if rows > 10_000:
        return 100 * rows  # enough to know that it is too large
    cells = [cell for row in (*change.added, *change.removed) for cell in row]
    return 100 + 2 * rows + sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in cells)
