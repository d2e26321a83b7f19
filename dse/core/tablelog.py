"""The publisher's side of a table: rows, change log, snapshots, subscribers. Plain state, no I/O, no clock, no lock.

Rules:

1. `epoch` names this life of the table; `seq` counts its changes from 0 (no change yet). A change that changes nothing
   is none: it has no number and is not sent.
2. A change is sent once, to the table's own address, and only while somebody subscribes. One too large for a frame is
   replaced by a tip: replicas see the gap and ask for a snapshot.
3. The log holds the latest changes, encoded, within `LOG_BYTES`. Who asks from a (epoch, seq) that the log reaches back
   to gets the changes since, in one message; anybody else gets a snapshot.
4. A snapshot is the table at one seq, sent in chunks of about `CHUNK_BYTES`, at most `WINDOW` ahead of what the replica
   says it has. It stays what it was while the table changes; the changes travel beside it.
5. A quiet table announces its tip with growing intervals, `TIP_FIRST` to `TIP_LAST` seconds, while somebody subscribes.
6. A subscriber is one until it says otherwise, its node is gone, or its lease of `LEASE` seconds was not renewed. While
   this node is disconnected no lease ends, nor when the node itself did not run (its tick came `LATE`): it cannot
   tell.
7. A subscriber whose node was taken for dead and is heard again within `LEASE` seconds is one again, and is told the
   tip: it does not know that changes passed it by. After an outage of this node all subscribers are told the tip.
8. Subscribers are at most `limits.SUBSCRIBERS`; more are not answered. A replica that asks again and again for much
   (a table of `MANY` rows, say) is answered `SYNCS` times at once, and then `SYNCS_PER_SECOND`. Snapshots under way are
   of `COPIES` states of the table at most: who asks for another one gets the latest of these, and then what changed.
9. While the table is `pending` it is not known what the rows are. Who asks is a subscriber, and is answered when the
   next change is made, also one that changes nothing.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from msgspec import Raw

from dse.core import limits
from dse.core import rows as row_rules
from dse.core.effects import Send
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    Row,
    SnapshotBegin,
    SnapshotChunk,
    SyncRequest,
    Tip,
    encode_body,
    encode_change,
    instance_address,
    table_address,
)
from dse.core.pace import Pace
from dse.core.rows import DIGEST_MASK, RowsView
from dse.errors import RowError

__all__ = ["LEASE", "Sizes", "TableLog"]

LOG_BYTES = 1 << 18
CHUNK_BYTES = 1 << 18
WINDOW = 4
TIP_FIRST = 0.5
TIP_LAST = 30.0
LEASE = 75.0
LATE = 5.0
SNAPSHOT_PATIENCE = 30.0
SYNCS = 16
SYNCS_PER_SECOND = 2.0
MANY = 1000
COPIES = 16


@dataclass(slots=True, frozen=True)
class Sizes:
    """How much a table keeps and sends, in bytes.

    largest: the longest encoded change that fits a frame. log: of encoded changes that are kept. chunk: of a snapshot.
    window: chunks that are sent ahead.
    """

    largest: int = 1 << 22
    log: int = field(default_factory=lambda: LOG_BYTES)
    chunk: int = field(default_factory=lambda: CHUNK_BYTES)
    window: int = field(default_factory=lambda: WINDOW)


@dataclass(slots=True, frozen=True)
class _State:
    """The table as it was at `seq`."""

    seq: int
    digest: int
    rows: list[Row]


@dataclass(slots=True)
class _Snapshot:
    """One replica's snapshot under way."""

    request: int
    state: _State
    expires: float
    sent_rows: int = 0
    sent_chunks: int = 0
    chunk_rows: int = 16


@dataclass(slots=True)
class TableLog:
    """See the rules at the top of this file. `instance` is the publishing node's."""

    service: str
    table: str
    columns: tuple[str, ...]
    instance: str
    epoch: str
    sizes: Sizes = field(default_factory=lambda: Sizes())
    seq: int = 0
    digest: int = 0
    subscribers: dict[str, float] = field(default_factory=dict)  # instance -> when its lease ends
    pending: bool = False
    trace: dict[str, str] | None = None  # the context that the next change is made in
    _asked: dict[str, SyncRequest] = field(default_factory=dict)  # instance -> what it asked last while pending
    _rows: set[Row] = field(default_factory=set)
    _view: weakref.ref[RowsView] | None = None
    _log: deque[bytes] = field(default_factory=deque)
    _log_bytes: int = 0
    _snapshots: dict[str, _Snapshot] = field(default_factory=dict)
    _frozen: _State | None = None  # the latest that a snapshot under way is of
    _paces: dict[str, Pace] = field(default_factory=dict)  # of those that ask
    _tip_at: float = math.inf
    _tip_delay: float = TIP_FIRST
    _connected: bool = True
    _lapsed: dict[str, float] = field(default_factory=dict)  # instance taken for dead -> when it is forgotten

    @property
    def name(self) -> str:
        """How errors call the table."""
        return f"{self.service}.{self.table}"

    def view(self) -> RowsView:
        """Return the rows as they are now; later changes do not show in it."""
        view = self._view() if self._view is not None else None
        if view is None:
            view = RowsView(self._rows)
            self._view = weakref.ref(view)
        return view

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def sample(self, most: int) -> list[Row]:
        """Return some of the rows; unlike a view it makes no later change dearer."""
        return list(islice(self._rows, most))

    def adopt(self, now: float, old: TableLog, subscribers: Iterable[str]) -> list[Send]:
        """Begin this life with the rows of an earlier one, and tell those who subscribed to it."""
        self._rows = set(old._rows)
        self.digest = old.digest
        self.subscribers = dict.fromkeys(subscribers, now + LEASE)
        self._lapsed = dict(old._lapsed) if old.instance == self.instance else {}
        return self._announce(now)

    # Changes

    def replace(self, now: float, rows: Iterable[Any]) -> tuple[ChangeMessage | None, list[Send]]:
        """Make the table hold exactly these rows."""
        new = row_rules.read_rows(self.name, self.columns, rows)
        # One pass over a large table instead of two differences; what is left is small when little has changed.
        changed = new ^ self._rows
        added = changed - self._rows
        removed = changed - added
        # Only what is new is checked: what equals a row of the table is one.
        return self._change(now, row_rules.check_shape(self.name, self.columns, added), removed)

    def apply(
        self, now: float, added: Iterable[Any], removed: Iterable[Any]
    ) -> tuple[ChangeMessage | None, list[Send]]:
        """Remove `removed`, then add `added`; what is not there is not removed, what is there is not added."""
        give, take, rows = self._read(added), self._read(removed), self._rows
        if take:
            take = (take & rows) - give
        if not rows.isdisjoint(give):
            give = give - rows
        return self._change(now, give, take)

    def _read(self, rows: Iterable[Any]) -> set[Row]:
        if isinstance(rows, tuple) and not rows:
            return set()
        name = self.name
        return row_rules.check_shape(name, self.columns, row_rules.read_rows(name, self.columns, rows))

    def _change(self, now: float, added: set[Row], removed: set[Row]) -> tuple[ChangeMessage | None, list[Send]]:
        if self.pending:
            change, sends = self._make(now, added, removed)
            self.pending = False
            asked, self._asked = self._asked, {}
            return change, sends + [send for request in asked.values() for send in self.sync(now, request)]
        return self._make(now, added, removed)

    def _make(self, now: float, added: set[Row], removed: set[Row]) -> tuple[ChangeMessage | None, list[Send]]:
        if not added and not removed:
            return None, []
        # Everything that can refuse comes before anything is altered.
        if len(self._rows) + len(added) - len(removed) > limits.ROWS:
            raise RowError(f"{self.name}: a table has at most {limits.ROWS:,} rows")
        plus = row_rules.digest(self.name, self.columns, added) if added else 0
        minus = row_rules.digest(self.name, self.columns, removed) if removed else 0
        change = ChangeMessage(self.epoch, self.seq + 1, frozenset(added), frozenset(removed), plus, minus, self.trace)
        body = encode_change(change)
        if self._view is not None and self._view() is not None:
            self._rows = set(self._rows)  # somebody looks at the old rows
        self._view = None
        self._rows -= removed
        self._rows |= added
        self.seq += 1
        self.digest = (self.digest + plus - minus) & DIGEST_MASK
        self._remember(body)
        self._tip_delay = TIP_FIRST
        self._tip_at = now + TIP_FIRST
        if not self.subscribers:
            return change, []
        if len(body) > self.sizes.largest:
            return change, [self._send_tip()]
        return change, [Send(table_address(self.instance, self.service, self.table), body)]

    def _remember(self, body: bytes) -> None:
        self._log.append(body)
        self._log_bytes += len(body)
        while self._log_bytes > self.sizes.log:
            self._log_bytes -= len(self._log.popleft())

    # Replicas

    def sync(self, now: float, request: SyncRequest) -> list[Send]:
        """Bring a replica up to date, and count it as a subscriber."""
        missing = self.seq - request.seq
        logged = request.epoch == self.epoch and 0 <= missing <= len(self._log)
        effort = (missing if logged else len(self._rows)) / MANY
        if not self._may_ask(now, request.instance, min(1.0, effort)):
            return []
        self._lapsed.pop(request.instance, None)
        self.subscribers[request.instance] = now + LEASE
        self._snapshots.pop(request.instance, None)
        self._tip_delay = TIP_FIRST
        self._tip_at = min(self._tip_at, now + TIP_FIRST)
        if self.pending:
            self._asked[request.instance] = request
            return []
        if logged:
            return [self._catch_up(request, missing)]
        state = self._frozen
        if state is None or (state.seq != self.seq and self._copies < COPIES):
            state = self._frozen = _State(self.seq, self.digest, list(self._rows))
        snapshot = _Snapshot(request.request, state, now + SNAPSHOT_PATIENCE)
        begin = SnapshotBegin(request.request, self.epoch, self.columns, state.seq, len(state.rows), state.digest)
        sends = [Send(instance_address(request.instance), begin)]
        self._snapshots[request.instance] = snapshot
        sends += self._next_chunks(request.instance, snapshot, self.sizes.window)
        return sends

    @property
    def _copies(self) -> int:
        return len({snapshot.state.seq for snapshot in self._snapshots.values()})

    def _may_ask(self, now: float, instance: str, effort: float) -> bool:
        if instance not in self.subscribers and len(self.subscribers) >= limits.SUBSCRIBERS:
            return False
        pace = self._paces.pop(instance, None) or Pace(SYNCS, SYNCS_PER_SECOND)
        while len(self._paces) >= limits.SUBSCRIBERS:
            del self._paces[next(iter(self._paces))]
        self._paces[instance] = pace  # the last to ask comes last
        return pace.take(now, effort)

    def _catch_up(self, request: SyncRequest, missing: int) -> Send:
        changes = [Raw(self._log[index]) for index in range(len(self._log) - missing, len(self._log))]
        message = CatchUp(request.request, self.epoch, self.columns, changes, self.seq, self.digest)
        return Send(instance_address(request.instance), message)

    def credit(self, now: float, instance: str, request: int, received: int) -> list[Send]:
        """A replica has `received` chunks of its snapshot: send on."""
        snapshot = self._snapshots.get(instance)
        if snapshot is None or snapshot.request != request or not 0 <= received <= snapshot.sent_chunks:
            return []
        snapshot.expires = now + SNAPSHOT_PATIENCE
        self.subscribers[instance] = now + LEASE
        return self._next_chunks(instance, snapshot, received + self.sizes.window - snapshot.sent_chunks)

    def _next_chunks(self, instance: str, snapshot: _Snapshot, count: int) -> list[Send]:
        sends = []
        for _ in range(count):
            if snapshot.sent_rows >= len(snapshot.state.rows):
                break
            body, rows = self._chunk(snapshot)
            sends.append(Send(instance_address(instance), body))
            snapshot.sent_rows += rows
            snapshot.sent_chunks += 1
            snapshot.chunk_rows = max(1, min(rows * 8, rows * self.sizes.chunk // len(body)))
        if snapshot.sent_rows >= len(snapshot.state.rows):
            self._snapshots.pop(instance, None)
        if not self._snapshots:
            self._frozen = None
        return sends

    def _chunk(self, snapshot: _Snapshot) -> tuple[bytes, int]:
        rows = snapshot.chunk_rows
        while True:
            chunk = frozenset(snapshot.state.rows[snapshot.sent_rows : snapshot.sent_rows + rows])
            body = encode_body(SnapshotChunk(snapshot.request, snapshot.sent_chunks, chunk))
            if len(body) <= 2 * self.sizes.chunk or rows == 1:
                return body, len(chunk)
            rows = max(1, rows // 4)

    def renew(self, now: float, instance: str, held: tuple[str, int] | None) -> list[Send]:
        """A node says that it subscribes and where its replica stands, or (None) that it does not subscribe."""
        if held is None:
            self.drop(instance)
            return []
        if instance not in self.subscribers and len(self.subscribers) >= limits.SUBSCRIBERS:
            return []
        self._lapsed.pop(instance, None)
        self.subscribers[instance] = now + LEASE
        self._tip_at = min(self._tip_at, now + TIP_LAST)
        if held == (self.epoch, self.seq) or instance in self._snapshots:
            return []
        return [self._send_tip_to(instance)]

    def lapse(self, now: float, instance: str) -> None:
        """A subscriber's node is taken for dead."""
        self._lapsed = {i: until for i, until in self._lapsed.items() if until > now}
        if instance in self.subscribers and len(self._lapsed) < limits.SUBSCRIBERS:
            self._lapsed[instance] = now + LEASE
        self._remove(instance)

    def lapsed(self, instance: str) -> bool:
        """Whether a node subscribed that was taken for dead."""
        return instance in self._lapsed

    def revive(self, now: float, instance: str) -> list[Send]:
        """A node that was taken for dead is heard."""
        if self._lapsed.pop(instance, -math.inf) <= now:
            return []
        if len(self.subscribers) >= limits.SUBSCRIBERS:
            return []
        self.subscribers[instance] = now + LEASE
        self._tip_at = min(self._tip_at, now + TIP_FIRST)
        return [self._send_tip_to(instance)]

    def known_subscribers(self) -> list[str]:
        """Who subscribes, or would again if its node were heard."""
        return [*self.subscribers, *self._lapsed]

    def invite(self, instance: str) -> list[Send]:
        """One that was refused may subscribe after all: it asks when it hears the tip."""
        return [self._send_tip_to(instance)]

    def drop(self, instance: str) -> None:
        """A subscriber said goodbye, or its node did."""
        self._lapsed.pop(instance, None)
        self._remove(instance)

    def _remove(self, instance: str) -> None:
        self.subscribers.pop(instance, None)
        self._asked.pop(instance, None)
        self._snapshots.pop(instance, None)
        if not self._snapshots:
            self._frozen = None

    # The connection of this node

    def disconnected(self) -> None:
        """It broke: nobody can renew anything."""
        self._connected = False

    def connected(self, now: float) -> list[Send]:
        """It is back: what was published meanwhile has not been heard."""
        self._connected = True
        self._renew_all(now)
        return self._announce(now)

    # Time

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        if not self.subscribers or not self._connected:
            return math.inf
        return min(self._tip_at, min(self.subscribers.values()))

    def tick(self, now: float) -> list[Send]:
        """Announce the tip when it is time; forget subscribers and snapshots that nobody renews."""
        if not self._connected:
            return []
        if now - self.wakeup > LATE:
            self._renew_all(now)
        for instance in [i for i, ends in self.subscribers.items() if ends <= now]:
            self._remove(instance)
        for instance in [i for i, snapshot in self._snapshots.items() if snapshot.expires <= now]:
            del self._snapshots[instance]
        if not self._snapshots:
            self._frozen = None
        if not self.subscribers or now < self._tip_at:
            return []
        self._tip_at = now + self._tip_delay
        self._tip_delay = min(TIP_LAST, self._tip_delay * 2)
        return [self._send_tip()]

    def _renew_all(self, now: float) -> None:
        self.subscribers = dict.fromkeys(self.subscribers, now + LEASE)

    def _announce(self, now: float) -> list[Send]:
        """Tell the tip now, and begin anew with short intervals."""
        self._tip_delay = TIP_FIRST
        self._tip_at = now + TIP_FIRST
        return [self._send_tip()] if self.subscribers else []

    def _send_tip(self) -> Send:
        return Send(table_address(self.instance, self.service, self.table), Tip(self.epoch, self.seq, self.digest))

    def _send_tip_to(self, instance: str) -> Send:
        return Send(instance_address(instance), Tip(self.epoch, self.seq, self.digest, self.service, self.table))
