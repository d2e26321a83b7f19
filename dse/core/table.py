"""Tables as a service sees them: declared as `Table`, published as `PublishedTable`, followed as `Replica`."""

from __future__ import annotations

import inspect
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, overload

from dse.core import limits, tracing
from dse.core.effects import Send
from dse.core.info import identifier
from dse.core.messages import ChangeMessage, Row, SyncRequest, encode_changes
from dse.core.replica import Delta, ReplicaState
from dse.core.rows import RowsView, found_types
from dse.core.tablelog import Sizes, TableLog
from dse.core.transport import Delivery
from dse.errors import ConfigError, TableError, Untrusted

if TYPE_CHECKING:
    from dse.core.service import DataService

__all__ = ["Change", "PublishedTable", "Replica", "Table"]

_log = logging.getLogger("dse.table")

_OUTBOX = 10_000  # sends that wait behind a slow one; beyond, they are dropped and the replicas ask for what they miss
_FAST = 0.0005  # seconds after the one before, in which a change comes fast
_BURST = 4  # changes that come fast before the next are held back
_PAUSE = 0.01  # seconds in which a thread that publishes may just have been kept from going on: no end of a burst yet
_CALM = 4  # what a pause divides the length of a burst by
_TOGETHER = 64  # changes at most that go out in one frame
_LONG = 1 << 16  # bytes of changes that go out in one frame; one by itself may be longer
_CALLBACK_QUEUE = 1_000  # changes that wait for a slow callback; beyond, they are merged


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a table: the rows that came and the rows that went, and the (epoch, seq) it led to."""

    service_id: str
    table: str
    added: frozenset[Row]
    removed: frozenset[Row]
    version: tuple[str, int]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class Table:
    """Declares a published table in the body of a `DataService`; its columns are named.

    pending: what its rows are is not known when the service starts. Replicas are SYNCING, with the rows they had, until
    it is written to for the first time; without it they would be LIVE with none. On the service's instances the name is
    a `PublishedTable`.
    """

    def __init__(self, *columns: str, pending: bool = False) -> None:
        if not columns:
            raise ConfigError("a table has at least one column")
        for column in columns:
            identifier("column name", column)
        if len(columns) > limits.COLUMNS:
            raise ConfigError(f"a table has at most {limits.COLUMNS:,} columns, not {len(columns):,}")
        if len(set(columns)) != len(columns):
            raise ConfigError(f"a table's columns have different names, not {', '.join(columns)}")
        self.columns = columns
        self.pending = pending
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = identifier("table name", name)

    @overload
    def __get__(self, instance: None, owner: type) -> Table: ...
    @overload
    def __get__(self, instance: DataService, owner: type) -> PublishedTable: ...
    def __get__(self, instance: DataService | None, owner: type) -> Table | PublishedTable:
        if instance is None:
            return self
        published: PublishedTable = instance.published_tables[self.name]
        return published

    def __set__(self, instance: DataService, value: object) -> None:
        raise TableError(f"{self.name} is a table: publish rows with {self.name}.replace(rows)")


class Outlet(Protocol):
    """What a published table needs of the node it is on."""

    instance: str
    sizes: Sizes

    def now(self) -> float:
        """Return the time of the monotonic clock."""

    def new_epoch(self) -> str:
        """Return a name for a new life of a table."""

    def transmit(self, send: Send, *, remote: bool, local: bool) -> None:
        """Send to subscribers on other nodes, on this one, or both; never raises."""

    def hold(self, table: PublishedTable) -> None:
        """Call `table.flush` soon, or before anything else is sent."""

    def watch(self, table: PublishedTable, wakeup: float) -> None:
        """Call `table.tick` at a time of that clock."""

    def subscribers_changed(self, table: PublishedTable, first: bool) -> None:
        """The first subscriber came, or the last one went."""


class PublishedTable:
    """A table that its service publishes. Every change is atomic; may be used from any thread.

    Lock: ``_lock`` protects ``_log``, ``_outlet``, ``_outbox``, ``_sending``, ``_burst`` and ``_changed_at``. Sends
    leave through the outbox: whoever finds nobody sending sends for all, in order, with the lock released. Changes that
    wait there go out in one frame. So do changes that come fast: from the `_BURST`th on they are held back until they
    are many, or no more come. `held_since` is when the oldest of those was held back; read without the lock.
    """

    def __init__(self, service_id: str, name: str, columns: tuple[str, ...], pending: bool = False) -> None:
        self.service_id = service_id
        self.name = name
        self.columns = columns
        self._pending = pending  # whether each life begins so
        self._lock = threading.Lock()
        self._log = TableLog(service_id, name, columns, "", uuid.uuid4().hex[:16])
        self._outlet: Outlet | None = None
        self._outbox: deque[tuple[Send, bool, bool]] = deque()
        self._sending = False
        self._burst = 0  # changes that came fast one after the other
        self._changed_at = -math.inf
        self.held_since = math.inf

    def __repr__(self) -> str:
        return f"<PublishedTable {self.service_id}.{self.name} {len(self)} rows, seq {self._log.seq}>"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> RowsView:
        """A frozen view of the rows as they are now."""
        with self._lock:
            return self._log.view()

    @property
    def version(self) -> tuple[str, int]:
        """(epoch, seq) of the rows."""
        with self._lock:
            return (self._log.epoch, self._log.seq)

    @property
    def subscribers(self) -> int:
        """How many nodes subscribe."""
        with self._lock:
            return len(self._log.subscribers)

    def figures(self) -> dict[str, int]:
        """Return rows, changes since the epoch began, and followers; without the lock, which a change may hold long."""
        log = self._log
        return {"rows": log.count, "changes": log.seq, "followers": len(log.subscribers)}

    def types(self, most: int) -> list[list[str]]:
        """Return the types found in each column of at most so many rows: names of Python's, ``None`` for no value."""
        with self._lock:
            rows = self._log.sample(most)
        return found_types(rows, len(self.columns))

    def sample(self, most: int, size: int) -> tuple[list[Row], int]:
        """Return at most so many of the rows, of about `size` bytes at most, and how many there are."""
        with self._lock:
            rows, count = self._log.sample(most), self._log.count
        taken, kept = 0, []
        for row in rows:
            taken += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
            if taken > size:
                break
            kept.append(row)
        return kept, count

    def replace(self, rows: Iterable[Any]) -> Change:
        """Make the table hold exactly these rows; publish and return the difference.

        Raises `RowError` for a row that does not fit; nothing is published then. The same holds for the methods below.
        """
        return self._commit(lambda log, now: log.replace(now, rows))

    def insert(self, rows: Iterable[Any]) -> Change:
        """Add rows; those that are there already are no change."""
        return self._commit(lambda log, now: log.apply(now, rows, ()))

    def delete(self, rows: Iterable[Any]) -> Change:
        """Remove rows; those that are not there are no change."""
        return self._commit(lambda log, now: log.apply(now, (), rows))

    def apply(self, added: Iterable[Any] = (), removed: Iterable[Any] = ()) -> Change:
        """Remove `removed` and add `added` as one change; a row in both is there afterwards."""
        return self._commit(lambda log, now: log.apply(now, added, removed))

    def suspend(self) -> None:
        """Make the table pending: it is not known any more what the rows are.

        Who subscribes from now on is answered when it is written to again; who has the rows keeps them.
        """
        with self._lock:
            self._log.pending = True

    # The node's side

    def attach(self, outlet: Outlet, subscribers: Iterable[str]) -> None:
        """The service starts on a node: a new life of the table. `subscribers` followed the one before it there."""
        with self._lock:
            old = self._log
            self._log = TableLog(
                self.service_id, self.name, self.columns, outlet.instance, outlet.new_epoch(), outlet.sizes
            )
            self._log.pending = self._pending
            self._outlet = outlet
            self._outbox.clear()
        self._serve(lambda log, now: log.adopt(now, old, subscribers))

    def detach(self) -> list[str]:
        """The service stops: nobody is told of changes any more. Return who subscribed."""
        with self._lock:
            self._outlet = None
            subscribers = list(self._log.subscribers)
            self._log.subscribers.clear()
            self._outbox.clear()
            return subscribers

    def sync(self, request: SyncRequest) -> None:
        """A replica asks to be brought up to date."""
        self._serve(lambda log, now: log.sync(now, request))

    def credit(self, instance: str, request: int, received: int) -> None:
        """A replica has so many chunks of its snapshot."""
        self._serve(lambda log, now: log.credit(now, instance, request, received))

    def knows(self, instance: str) -> bool:
        """Whether a node subscribes, or did before it was taken for dead; read without the lock: most nodes do not."""
        log = self._log
        return instance in log.subscribers or log.lapsed(instance)

    def renew(self, instance: str, held: tuple[str, int] | None) -> None:
        """A node says whether it subscribes, and where its replica stands."""
        self._serve(lambda log, now: log.renew(now, instance, held))

    def known_subscribers(self) -> list[str]:
        """Return who subscribes, or would again if its node were heard."""
        with self._lock:
            return self._log.known_subscribers()

    def invite(self, instance: str) -> None:
        """A node that was refused may subscribe after all."""
        self._serve(lambda log, now: log.invite(instance))

    def drop(self, instance: str) -> None:
        """A subscriber said goodbye, or its node did."""

        def step(log: TableLog, now: float) -> list[Send]:
            log.drop(instance)
            return []

        self._serve(step)

    def lapse(self, instance: str) -> None:
        """A subscriber's node is taken for dead."""

        def step(log: TableLog, now: float) -> list[Send]:
            log.lapse(now, instance)
            return []

        self._serve(step)

    def revive(self, instance: str) -> None:
        """A node that was taken for dead is heard."""
        self._serve(lambda log, now: log.revive(now, instance))

    def connected(self) -> None:
        """The node's connection is back."""
        self._serve(lambda log, now: log.connected(now))

    def disconnected(self) -> None:
        """The node's connection broke."""

        def step(log: TableLog, now: float) -> list[Send]:
            log.disconnected()
            return []

        self._serve(step)

    def tick(self) -> None:
        """Time has come that `Outlet.watch` was told."""
        self._serve(lambda log, now: log.tick(now))

    # Inside

    def _commit(self, step: Callable[[TableLog, float], tuple[ChangeMessage | None, list[Send]]]) -> Change:
        spans = tracing.active
        if spans is None or (sent := spans.sending(self.service_id, self.name)) is None:
            return self._make(step, None)
        change = self._make(step, sent.carrier)
        if change:
            sent.end(message_id=f"{change.version[0]}/{change.version[1]}")
        return change

    def _make(
        self,
        step: Callable[[TableLog, float], tuple[ChangeMessage | None, list[Send]]],
        trace: dict[str, str] | None,
    ) -> Change:
        with self._lock:
            outlet = self._outlet
            now = outlet.now() if outlet is not None else 0.0
            self._log.trace = trace
            change, sends = step(self._log, now)
            version = (self._log.epoch, self._log.seq)
            wakeup, ours = self._log.wakeup, self._post(sends)
            held = ours and change is not None and self._hold(now)
        if outlet is not None:
            outlet.watch(self, wakeup)
            if held:
                outlet.hold(self)
            elif ours:
                self._flush(outlet)
        if change is None:
            return Change(self.service_id, self.name, frozenset(), frozenset(), version)
        return Change(self.service_id, self.name, change.added, change.removed, version)

    def _hold(self, now: float) -> bool:
        """Whether a change that is to be sent is held back for the next ones (the lock is held)."""
        pause = now - self._changed_at
        self._changed_at = now
        if pause < _FAST:
            self._burst = min(self._burst + 1, _TOGETHER)
        else:
            self._burst = self._burst // _CALM if pause < _PAUSE else 0
        outbox = self._outbox
        if self._burst < _BURST or len(outbox) >= _TOGETHER:
            return False
        message = outbox[-1][0].message
        if not isinstance(message, bytes) or len(message) > _LONG:
            return False
        if len(outbox) == 1:
            self.held_since = now
        self._sending = False
        return True

    def flush(self) -> None:
        """Send what was held back."""
        with self._lock:
            outlet = self._outlet
            if outlet is None or self._sending or not self._outbox:
                return
            self._sending = True
        self._flush(outlet)

    def _serve(self, step: Callable[[TableLog, float], list[Send]]) -> None:
        with self._lock:
            outlet = self._outlet
            if outlet is None:
                return
            before = bool(self._log.subscribers)
            sends = step(self._log, outlet.now())
            after = bool(self._log.subscribers)
            wakeup, ours = self._log.wakeup, self._post(sends)
        outlet.watch(self, wakeup)
        if ours:
            self._flush(outlet)
        if before != after:
            outlet.subscribers_changed(self, after)

    def _post(self, sends: list[Send]) -> bool:
        """Put sends into the outbox (the lock is held); say whether the caller is to flush it."""
        if self._outlet is None or not sends:
            return False
        own = self._outlet.instance in self._log.subscribers
        remote = len(self._log.subscribers) > own
        if len(self._outbox) >= _OUTBOX:
            _log.warning("%s.%s: the transport is slow; %d changes left out, replicas ask for them",
                         self.service_id, self.name, len(self._outbox))  # fmt: skip
            self._outbox.clear()
        self._outbox.extend((send, remote, own) for send in sends)
        if self._sending:
            return False
        self._sending = True
        return True

    def _flush(self, outlet: Outlet) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    self._sending = False
                    return
                send, remote, local = self._next()
            outlet.transmit(send, remote=remote, local=local)

    def _next(self) -> tuple[Send, bool, bool]:
        """Take the next send out of the outbox, and with a change those that follow it (the lock is held)."""
        outbox = self._outbox
        send, remote, local = outbox.popleft()
        body = _change_in(send)
        if body is None or not outbox:
            return send, remote, local
        bodies, size = [body], len(body)
        while outbox and len(bodies) < _TOGETHER:
            following, *ways = outbox[0]
            body = _change_in(following)
            if body is None or ways != [remote, local] or size + len(body) > _LONG:
                break
            size += len(body)
            bodies.append(body)
            outbox.popleft()
        if len(bodies) > 1:
            send = Send(send.address, encode_changes(bodies))
        return send, remote, local


def _change_in(send: Send) -> bytes | None:
    """Return the encoded change that is sent, if it is one."""
    return send.message if isinstance(send.message, bytes) and send.address.delivery is Delivery.FANOUT else None


class Shared(Protocol):
    """What a `Replica` needs of the copy it shares with others on its node."""

    changed: threading.Condition

    @property
    def state(self) -> ReplicaState: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def version(self) -> tuple[str, int]: ...
    @property
    def resyncs(self) -> int: ...
    @property
    def loading(self) -> tuple[int, int] | None: ...
    @property
    def untrusted(self) -> str: ...
    def view(self) -> RowsView: ...
    def contains(self, row: object) -> bool: ...
    def count(self) -> int: ...


class Replica:
    """A live copy of another service's table: always a state that its publisher was really in.

    Subscribers on one node share one copy of the rows. Lock: ``_lock`` protects ``_waiting`` and ``_waiting_rows``.
    """

    def __init__(
        self,
        service_id: str,
        table: str,
        shared: Shared,
        callback: Callable[[Change], Any] | None,
        on_state: Callable[[ReplicaState], Any] | None,
        schedule: Callable[[Callable[[], None]], None],
        run: Callable[..., None],
    ) -> None:
        self.service_id = service_id
        self.table = table
        self._shared = shared
        self._callback = callback
        self._on_state = on_state
        self._schedule = schedule
        self._run = run
        self._lock = threading.Lock()
        self._waiting: deque[Delta | ReplicaState] = deque()
        self._waiting_rows = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Replica {self.service_id}.{self.table} {self.state.value} {len(self)} rows>"

    def __len__(self) -> int:
        return self._shared.count()

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __contains__(self, row: object) -> bool:
        return self._shared.contains(row)

    @property
    def rows(self) -> RowsView:
        """A frozen view of the rows as they are now."""
        return self._shared.view()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns; empty until the table was first received."""
        return self._shared.columns

    @property
    def state(self) -> ReplicaState:
        """SYNCING, LIVE or STALE."""
        return self._shared.state

    @property
    def version(self) -> tuple[str, int]:
        """(epoch, seq) of the rows; ('', 0) until the table was first received."""
        return self._shared.version

    @property
    def loading(self) -> tuple[int, int] | None:
        """While the whole table is on its way: how many of its rows have come, and how many there are; else None."""
        return self._shared.loading

    @property
    def error(self) -> Untrusted | None:
        """Why no publisher lets this node follow the table; None where that is not so.

        The replica keeps the rows that it had, STALE. It asks again every half minute, and at once when a publisher's
        permissions have changed.
        """
        why = self._shared.untrusted
        return Untrusted(why) if why else None

    def wait(self, until: ReplicaState | Callable[[Replica], object], timeout: float = 10.0) -> bool:
        """Wait for a state, or until a predicate of this replica is true; return True.

        Raises `Untrusted` as soon as every publisher has refused, and `TimeoutError` after `timeout` seconds, saying
        how the replica stands.
        """
        deadline = time.monotonic() + timeout
        condition = self._shared.changed
        while True:
            # The predicate runs without a lock: what it reads twice may differ, and it is asked again after every
            # change.
            with condition:
                generation = self._generation()
            if (self.state is until) if isinstance(until, ReplicaState) else until(self):
                return True
            if (error := self.error) is not None:
                raise error
            with condition:
                left = deadline - time.monotonic()
                if left <= 0 or not condition.wait_for(partial(self._moved_on, generation), left):
                    wanted = until.value if isinstance(until, ReplicaState) else "what was waited for"
                    raise TimeoutError(
                        f"{self.service_id}.{self.table} was not {wanted} within {timeout:g} s: "
                        f"it is {self.state.value} with {len(self)} rows"
                    )

    def _moved_on(self, since: object) -> bool:
        return self._generation() != since

    def _generation(self) -> object:
        # A replica that was brought up to date anew may have other rows at the same version, as many as before.
        shared = self._shared
        return (shared.state, shared.version, shared.count(), shared.untrusted, shared.resyncs)

    # The node's side

    def deliver(self, delta: Delta) -> None:
        """Queue a difference for the callback; merge it into the last one when the callback is far behind."""
        if self._callback is None or not (delta.added or delta.removed):
            return
        with self._lock:
            waiting = self._waiting
            self._waiting_rows += len(delta.added) + len(delta.removed)
            full = len(waiting) >= _CALLBACK_QUEUE or self._waiting_rows > limits.WAITING_ROWS
            if full and waiting and isinstance(last := waiting[-1], Delta):
                waiting[-1] = merged = Delta(
                    (last.added - delta.removed) | (delta.added - last.removed),
                    (last.removed - delta.added) | (delta.removed - last.added),
                    delta.version,
                    last.trace or delta.trace,  # the first that has one: a callback has one parent
                )
                self._waiting_rows += len(merged.added) + len(merged.removed)
                self._waiting_rows -= sum(map(len, (last.added, last.removed, delta.added, delta.removed)))
                return
            waiting.append(delta)
        self._schedule(self._call_back)

    def turned(self, state: ReplicaState) -> None:
        """Queue a new state for `on_state`, behind the differences that led to it."""
        if self._on_state is None:
            return
        with self._lock:
            waiting = self._waiting
            if len(waiting) >= 2 * _CALLBACK_QUEUE:  # far behind: of the states, the last one counts
                for place in reversed(range(len(waiting))):
                    if isinstance(waiting[place], ReplicaState):
                        waiting[place] = state
                        return
            waiting.append(state)
        self._schedule(self._call_back)

    def close(self) -> None:
        """Call back no more."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._waiting_rows = 0

    def _call_back(self) -> None:
        with self._lock:
            if self._closed or not self._waiting:
                return
            item = self._waiting.popleft()
            if isinstance(item, Delta):
                self._waiting_rows -= len(item.added) + len(item.removed)
        if isinstance(item, ReplicaState):
            assert self._on_state is not None
            self._run(self._on_state, item)
        elif item.added or item.removed:
            assert self._callback is not None
            change = Change(self.service_id, self.table, item.added, item.removed, item.version)
            spans = tracing.active
            if spans is None or item.trace is None:
                self._run(self._callback, change)
            else:
                with spans.processing(self.service_id, self.table, item.trace):
                    self._run(self._callback, change)


def is_async(callback: Callable[..., Any]) -> bool:
    """Whether a callback is a coroutine function."""
    return inspect.iscoroutinefunction(callback)
