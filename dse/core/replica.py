"""The subscriber's side of a table: one live copy of another node's table. Plain state, no I/O, no clock, no lock.

Rules:

1. The rows are at any time a state that one publisher was really in, at `version` (epoch, seq); empty before the first.
2. It follows one publisher at a time, the one on its own node if there is one, and keeps to it while that lives.
3. It listens to the publisher's table address first, and asks for what it misses then; what is sent in between waits in
   the buffer. It asks again, with growing patience, until it is answered.
4. Changes are applied in the order of their seq. A gap, an unknown epoch, a tip ahead of it or a digest that differs
   starts rule 3 again; a wrong digest asks for everything.
5. What changed is reported as differences in the order of the states: their sum is always the rows.
6. A publisher that never gets it right is asked with patience: `ASKS` times at once, `ASKS_PER_SECOND` then. What waits
   meanwhile, and what a snapshot may hold, is bounded (`dse.core.limits`); a chunk brings new rows, or is none.
7. SYNCING: no complete copy of the present publisher's table; LIVE: follows it; STALE: has rows, but no publisher, or
   no connection to hear one.
8. A publisher may refuse: its permissions do not let this node follow the table. Then it goes to another publisher, one
   after the other. When all refuse it is `untrusted`: it keeps what it has, listens to nobody, and begins anew after
   `REFUSED` seconds, with a publisher that is new, or when one says by a tip of its own that it may.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from dse.core import limits
from dse.core import rows as row_rules
from dse.core.effects import Effect, Listen, Send, Unlisten
from dse.core.messages import (
    BadFrame,
    CatchUp,
    ChangeMessage,
    NoTable,
    PlainChange,
    PlainChunk,
    Row,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    Unsubscribe,
    decode_change,
    instance_address,
    table_address,
)
from dse.core.pace import Pace
from dse.core.rows import DIGEST_MASK, RowsView
from dse.core.transport import Address
from dse.errors import RowError

__all__ = ["Delta", "ReplicaMachine", "ReplicaState"]

ASK_FIRST = 1.0  # seconds until a sync request that nobody answers is repeated
ASK_LAST = 5.0
REFUSED = 30.0  # seconds until publishers that refused are asked again
ASKS = 8
ASKS_PER_SECOND = 1.0
BUFFER = 10_000  # changes that wait while a snapshot comes; beyond, the log is asked for them afterwards


class ReplicaState(StrEnum):
    """How a replica stands to its publisher."""

    SYNCING = "SYNCING"
    LIVE = "LIVE"
    STALE = "STALE"


class Delta(Struct, frozen=True, gc=False):
    """What one step did to the rows, and the version it led to; `trace` is that of a change heard as it was made."""

    added: frozenset[Row]
    removed: frozenset[Row]
    version: tuple[str, int]
    trace: dict[str, str] | None = None


@dataclass(slots=True)
class _Loading:
    begin: SnapshotBegin
    rows: set[Row] = field(default_factory=set)
    chunks: int = 0
    digest: int = 0


@dataclass(slots=True)
class ReplicaMachine:
    """See the rules at the top of this file. `instance` is the subscriber's node; `request` numbers what it asks."""

    service: str
    table: str
    instance: str
    request: int = 0
    state: ReplicaState = ReplicaState.SYNCING
    columns: tuple[str, ...] = ()
    publisher: str | None = None
    epoch: str = ""
    seq: int = 0
    digest: int = 0
    resyncs: int = 0
    unanswered_table: bool = False  # the publisher said that it has no such table
    untrusted: str = ""  # why no publisher lets this node follow the table, in the words of the last one that refused
    _known: Sequence[str] = ()  # who publishes the table
    _refused: set[str] = field(default_factory=set)  # of these, who refused
    _rows: set[Row] = field(default_factory=set)
    _view: weakref.ref[RowsView] | None = None
    _connected: bool = True
    _listening: bool = False
    _asking: bool = False
    _from_scratch: bool = False
    _loading: _Loading | None = None
    _buffer: dict[tuple[str, int], ChangeMessage] = field(default_factory=dict)
    _buffered: int = 0  # bytes in it, about
    _pace: Pace = field(default_factory=lambda: Pace(ASKS, ASKS_PER_SECOND))
    _ask_at: float = math.inf
    _patience: float = ASK_FIRST

    @property
    def version(self) -> tuple[str, int]:
        """(epoch, seq) of the rows."""
        return (self.epoch, self.seq)

    @property
    def loading(self) -> tuple[int, int] | None:
        """While a snapshot comes: how many of its rows are here, and how many there are."""
        loading = self._loading
        return (len(loading.rows), loading.begin.count) if loading is not None else None

    def awaits(self, request: int) -> bool:
        """Whether an answer to this request would be taken; may be asked without a lock."""
        return request == self.request and (self._asking or self._loading is not None)

    def view(self) -> RowsView:
        """Return the rows as they are now; later changes do not show in it."""
        view = self._view() if self._view is not None else None
        if view is None:
            view = RowsView(self._rows)
            self._view = weakref.ref(view)
        return view

    def hears(self, publisher: str) -> bool:
        """Whether what this instance says concerns the replica: it follows it, or was refused by it."""
        return publisher == self.publisher or (bool(self.untrusted) and publisher in self._refused)

    # Who publishes, and the way there

    def publishers(self, now: float, live: Sequence[str]) -> list[Effect]:
        """The instances that publish the table now, best first."""
        self._known = live
        self._refused.intersection_update(live)
        willing = [publisher for publisher in live if publisher not in self._refused]
        if self.publisher in live and not (self.publisher in self._refused and willing):
            return []
        self.untrusted = ""
        return self._follow((willing or live)[0] if live else None)

    def _follow(self, publisher: str | None) -> list[Effect]:
        effects = self._leave()
        if publisher is not None:
            self.publisher = publisher
            if not self.untrusted:
                self.state = ReplicaState.SYNCING
            self.unanswered_table = False
            if self._connected:
                effects.append(Listen(self._address(publisher)))
        elif self.epoch:
            self.state = ReplicaState.STALE
        return effects

    def _refused_by(self, now: float, publisher: str, why: str) -> list[Effect]:
        self._refused.add(publisher)
        willing = [other for other in self._known if other not in self._refused]
        if willing:
            return self._follow(willing[0])
        self.untrusted = why
        self._listening = False
        self._reset()
        self._ask_at = now + REFUSED
        self.state = ReplicaState.STALE if self.epoch else ReplicaState.SYNCING
        return [Unlisten(self._address(publisher))]

    def _try_again(self) -> list[Effect]:
        """Ask those who refused: their permissions may have changed."""
        self._refused.clear()
        return self._follow(self._known[0] if self._known else None)

    def _is_trusted(self) -> None:
        """The publisher answers."""
        if self.untrusted:
            self.untrusted = ""
            self.state = ReplicaState.SYNCING

    def _leave(self) -> list[Effect]:
        if self.publisher is None:
            return []
        address = self._address(self.publisher)
        self.publisher = None
        self._listening = False
        self._reset()
        return [Unlisten(address)]

    def listening(self, now: float, publisher: str) -> list[Effect]:
        """The runtime listens on the publisher's table address now: ask."""
        if publisher != self.publisher or not self._connected:
            return []
        self._listening = True
        return self._ask(now)

    def disconnected(self) -> None:
        """This node's own connection broke: what is held may be out of date."""
        self._connected = False
        self._reset()
        if self.epoch:
            self.state = ReplicaState.STALE

    def connected(self, now: float) -> list[Effect]:
        """This node's connection is back, with all that it listens to."""
        self._connected = True
        if self.publisher is None:
            return []
        if not self.untrusted:
            self.state = ReplicaState.SYNCING
        if not self._listening:
            return [Listen(self._address(self.publisher))]
        return self._ask(now)

    def close(self) -> list[Effect]:
        """Nobody needs the replica any more."""
        publisher = self.publisher
        if publisher is None:
            return []
        goodbye = Unsubscribe(self.service, self.table, self.instance)
        return [*self._leave(), Send(instance_address(publisher), goodbye)]

    # What the publisher says

    def change(self, now: float, change: ChangeMessage) -> tuple[list[Delta], list[Effect]]:
        """A change heard on the publisher's table address."""
        if self.publisher is None or not self._listening:
            return [], []
        if self._asking or self._loading is not None:
            self._keep(change)
            return [], []
        if change.epoch == self.epoch and change.seq <= self.seq:
            return [], []
        if change.epoch != self.epoch or change.seq != self.seq + 1:
            self._keep(change)
            return [], self._ask(now)
        delta = self._apply(change)
        return ([delta], []) if delta else ([], self._ask(now, from_scratch=True))

    def _keep(self, change: ChangeMessage) -> None:
        """Let a change wait, as long as there is room: what is left out is asked for afterwards."""
        size = _size_of(change)
        if len(self._buffer) < BUFFER and self._buffered + size <= limits.WAITING_BYTES:
            self._buffer[change.epoch, change.seq] = change
            self._buffered += size

    def changes(self, now: float, changes: Sequence[ChangeMessage]) -> tuple[list[Delta], list[Effect]]:
        """Changes heard on the publisher's table address, in their order."""
        deltas: list[Delta] = []
        effects: list[Effect] = []
        if self._follows and self._continued_by(changes):
            # As nearly always: what can be is done once for all.
            rows = list(chain.from_iterable([c.added for c in changes]))
            rows += chain.from_iterable([c.removed for c in changes if c.removed])
            plain = set(map(type, changes)) == {PlainChange}
            if row_rules.check_received(rows, len(self.columns), plain=plain):
                return self._apply_checked(changes), []
        for change in changes:
            more, asks = self.change(now, change)
            deltas += more
            effects += asks
        return deltas, effects

    def _continued_by(self, changes: Sequence[ChangeMessage]) -> bool:
        if {change.epoch for change in changes} != {self.epoch}:
            return False
        return [change.seq for change in changes] == list(range(self.seq + 1, self.seq + 1 + len(changes)))

    @property
    def _follows(self) -> bool:
        return self.publisher is not None and self._listening and not self._asking and self._loading is None

    def tip(self, now: float, tip: Tip) -> list[Effect]:
        """Where the publisher stands."""
        if self.untrusted and not self._listening and self._connected and self._ask_at < math.inf:
            self._ask_at = math.inf
            return self._try_again()  # heard although nobody is listened to: it was sent to this node alone
        if not self._follows:
            return []
        if tip.epoch != self.epoch or tip.seq > self.seq:
            return self._ask(now)
        if tip.seq == self.seq and tip.digest != self.digest:
            return self._ask(now, from_scratch=True)
        return []

    def catch_up(self, now: float, message: CatchUp) -> tuple[list[Delta], list[Effect]]:
        """The changes that were missing."""
        if not self._asking or message.request != self.request or message.epoch != self.epoch or not self.epoch:
            return [], []
        self._is_trusted()
        if message.columns != self.columns:
            return [], self._ask(now, from_scratch=True)
        deltas: list[Delta] = []
        for body in message.changes:
            try:
                change = decode_change(body)
            except BadFrame:
                return deltas, self._ask(now, from_scratch=True)
            if change.epoch != self.epoch or change.seq != self.seq + 1:
                continue
            delta = self._apply(change)
            if delta is None:
                return deltas, self._ask(now, from_scratch=True)
            deltas.append(delta if delta.trace is None else replace(delta, trace=None))
        if self.seq != message.seq or self.digest != message.digest:
            return deltas, self._ask(now, from_scratch=True)
        return self._live(now, deltas)

    def snapshot_begin(self, now: float, message: SnapshotBegin) -> tuple[list[Delta], list[Effect]]:
        """The whole table follows."""
        if not self._asking or message.request != self.request:
            return [], []
        self._is_trusted()
        if not message.epoch or not 0 <= message.count <= limits.ROWS:  # "" stands for no epoch yet
            return [], self._ask(now, from_scratch=True)
        self._loading = _Loading(message)  # first: `awaits` is asked without a lock
        self._asking = False
        self._ask_at = now + ASK_LAST
        return self._loaded(now) if message.count == 0 else ([], [])

    def snapshot_chunk(self, now: float, message: SnapshotChunk) -> tuple[list[Delta], list[Effect]]:
        """A part of the whole table."""
        loading = self._loading
        if loading is None or message.request != self.request:
            return [], []
        plain = type(message) is PlainChunk
        fits = row_rules.check_received(message.rows, len(loading.begin.columns), plain=plain)
        if message.index != loading.chunks or not fits:
            return [], self._ask(now)
        before = len(loading.rows)
        loading.rows |= message.rows
        if not message.rows or len(loading.rows) != before + len(message.rows):
            return [], self._ask(now, from_scratch=True)  # rows that came before, or none: it could go on for ever
        loading.chunks += 1
        loading.digest += self._digest_of(message.rows, loading.begin.columns)
        self._ask_at = now + ASK_LAST
        if len(loading.rows) >= loading.begin.count:
            return self._loaded(now)
        assert self.publisher is not None
        credit = SnapshotCredit(self.service, self.table, self.instance, self.request, loading.chunks)
        return [], [Send(instance_address(self.publisher), credit)]

    def no_table(self, now: float, message: NoTable) -> list[Effect]:
        """The publisher does not know the table: wait until somebody says otherwise. Or it refuses it to this node."""
        if message.untrusted and self.publisher is not None:
            if message.request == 0 or (self._asking and message.request == self.request):
                # The text is the peer's, and turns up in logs.
                why = message.untrusted if message.untrusted.isprintable() else ascii(message.untrusted)
                return self._refused_by(now, self.publisher, why)
        elif self._asking and message.request == self.request:
            self.unanswered_table = True
            self._patience = ASK_LAST
        return []

    # Time

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        return self._ask_at

    def tick(self, now: float) -> list[Effect]:
        """Ask again where no answer came."""
        if now < self._ask_at or not self._connected:
            return []
        if self.untrusted and not self._listening:
            self._ask_at = math.inf
            return self._try_again()
        return self._ask(now) if self._listening else []

    # Inside

    def _address(self, publisher: str) -> Address:
        return table_address(publisher, self.service, self.table)

    def _reset(self) -> None:
        self._asking = False
        self._loading = None
        self._buffer.clear()
        self._buffered = 0
        self._ask_at = math.inf
        self._patience = ASK_FIRST

    def _ask(self, now: float, *, from_scratch: bool = False) -> list[Effect]:
        assert self.publisher is not None
        self._from_scratch = from_scratch or (self._from_scratch and (self._asking or self._loading is not None))
        self._asking = True
        self._loading = None
        if not self.untrusted:
            self.state = ReplicaState.SYNCING
        self.request += 1
        self.resyncs += 1
        self._ask_at = now + self._patience
        self._patience = min(ASK_LAST, self._patience * 2)
        if not self._pace.take(now):
            self._ask_at = self._pace.next_at()  # what is still to come in answer to the last request is nobody's
            return []
        have = ("", 0) if self._from_scratch else self.version
        request = SyncRequest(self.service, self.table, self.instance, self.request, *have)
        return [Send(instance_address(self.publisher), request)]

    def _apply(self, change: ChangeMessage) -> Delta | None:
        """Apply the next change; None when it cannot be one of a table like this."""
        plain = type(change) is PlainChange
        if not row_rules.check_received([*change.added, *change.removed], len(self.columns), plain=plain):
            return None
        if len(self._rows) + len(change.added) > limits.ROWS + len(change.removed):
            return None
        return self._apply_checked([change])[0]

    def _apply_checked(self, changes: Sequence[ChangeMessage]) -> list[Delta]:
        if self._view is not None:
            self._replace_view()
        rows, epoch, digest = self._rows, self.epoch, self.digest
        deltas = []
        for change in changes:
            added, removed, plus, minus = change.added, change.removed, change.plus, change.minus
            # Where all that came is new and all that went was there, as it should be, the digests are those it comes
            # with.
            if not rows.isdisjoint(added):
                added, plus = added - rows, None
            if removed:
                if not rows >= removed:
                    removed, minus = removed & rows, None
                rows -= removed
            rows |= added
            plus = self._digest_of(added) if plus is None else plus
            minus = self._digest_of(removed) if minus is None else minus
            digest += plus - minus
            deltas.append(Delta(added, removed, (epoch, change.seq), change.trace))
        self.seq, self.digest = changes[-1].seq, digest & DIGEST_MASK
        return deltas

    def _digest_of(self, rows: frozenset[Row], columns: tuple[str, ...] | None = None) -> int:
        try:
            return row_rules.digest(self.table, self.columns if columns is None else columns, rows)
        except RowError:
            return -1  # not a digest: the next tip shows that something is wrong

    def _loaded(self, now: float) -> tuple[list[Delta], list[Effect]]:
        loading = self._loading
        assert loading is not None
        if len(loading.rows) != loading.begin.count or loading.digest & DIGEST_MASK != loading.begin.digest:
            return [], self._ask(now, from_scratch=True)
        self._from_scratch = False
        new, old = loading.rows, self._rows
        added = frozenset(new - old) if old else frozenset(new)
        removed = frozenset(old - new) if old else frozenset()
        self._view = None
        self._rows = new
        self.columns = loading.begin.columns
        self.epoch, self.seq, self.digest = loading.begin.epoch, loading.begin.seq, loading.begin.digest
        return self._live(now, [Delta(added, removed, self.version)] if added or removed else [])

    def _live(self, now: float, deltas: list[Delta]) -> tuple[list[Delta], list[Effect]]:
        """In step with the publisher but for what waited in the buffer."""
        self._loading = None
        self._asking = False
        self._from_scratch = False
        buffer, self._buffer, self._buffered = self._buffer, {}, 0
        while (change := buffer.pop((self.epoch, self.seq + 1), None)) is not None:
            delta = self._apply(change)
            if delta is None:
                return deltas, self._ask(now, from_scratch=True)
            deltas.append(delta)
        ahead = [key for key in buffer if key[0] == self.epoch and key[1] > self.seq]
        if ahead:
            for key in ahead:
                self._keep(buffer[key])
            return deltas, self._ask(now)
        self.state = ReplicaState.LIVE
        self._ask_at = math.inf
        self._patience = ASK_FIRST
        return deltas, []

    def _replace_view(self) -> None:
        if self._view is not None and self._view() is not None:
            self._rows = set(self._rows)  # somebody looks at the old rows
        self._view = None


def _size_of(change: ChangeMessage) -> int:
    """Return about how many bytes a change takes."""
    rows = (*change.added, *change.removed)
    cells = sum(map(len, rows))
    return 200 + 100 * len(rows) + 30 * cells + sum(len(c) for c in chain.from_iterable(rows) if type(c) in _SIZED)


_SIZED = (str, bytes)
