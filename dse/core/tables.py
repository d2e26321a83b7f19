"""Tables at run time: the tables this node publishes, and the copies it holds of other nodes' tables."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dse.core import limits
from dse.core.effects import Effect, Listen, Send, Unlisten
from dse.core.guard import Guard
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    Changes,
    NoTable,
    Renew,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    Unsubscribe,
    answers_request,
    encode,
    frame_of,
    instance_address,
    is_change,
    table_address,
)
from dse.core.replica import Delta, ReplicaMachine, ReplicaState
from dse.core.rows import RowsView
from dse.core.sender import Sender
from dse.core.table import Change, PublishedTable, Replica
from dse.core.tablelog import LEASE, Sizes
from dse.core.threads import SerialQueue, Timer, Timers
from dse.core.transport import Address
from dse.core.wire import Wire
from dse.errors import TableError

if TYPE_CHECKING:
    from dse.core.listeners import Listeners

__all__ = ["Publisher", "ReplicaHub"]

_log = logging.getLogger("dse.node")

HOLD = 0.001  # seconds that changes which come fast are held back at most, so that they go out together
RENEW = 20.0  # seconds between two renewals of all subscriptions
MAX_ORPHANS = 10_000
MAX_DENIED = 1000  # nodes per table that are told when they may follow it after all
_HALF = (1 << 30) - 1  # of the bits of a request's number: the rest is room to count in


class Publisher:
    """The tables this node publishes, by (service, table).

    Who asks is let in by the node's permissions; where there are no keys it is None, and let in.

    Lock: ``_lock`` protects its dicts, ``_held``, ``_release_set`` and ``_connected``.
    """

    def __init__(
        self,
        wire: Wire,
        timers: Timers,
        control: SerialQueue,
        sizes: Sizes,
        unique: Callable[[], str],
        on_subscribers: Callable[[PublishedTable, bool], None],
        guard: Guard,
    ) -> None:
        self.instance = wire.instance
        self._guard = guard
        self._asked_by: dict[str, Sender] = {}  # instance -> whose it is, of those that follow or followed a table
        self._denied: dict[tuple[str, str], dict[str, Sender]] = {}  # who may not follow it, the latest last
        self.sizes = sizes
        self._unique = unique
        self._wire = wire
        self._timers = timers
        self._control = control
        self._on_subscribers = on_subscribers
        self._lock = threading.Lock()
        self._tables: dict[tuple[str, str], PublishedTable] = {}
        self._timers_of: dict[PublishedTable, Timer] = {}
        # Who subscribed to a table that was removed, and until when that counts; the earliest removed first.
        self._orphans: dict[tuple[str, str], tuple[float, list[str]]] = {}
        self._held: set[PublishedTable] = set()  # with changes that wait for more
        self._release_timer = timers.timer(self._release_due)
        self._release_set = False
        wire.before_send = self.release
        self._dead: dict[str, float] = {}  # nodes taken for dead -> when they are forgotten
        self._connected = True

    def tables(self) -> list[PublishedTable]:
        """Return the tables that are published now."""
        return list(self._tables.values())

    def add(self, table: PublishedTable) -> None:
        """Publish a table from now on; idempotent."""
        with self._lock:
            if table in self._timers_of:
                return
            self._tables[table.service_id, table.name] = table
            self._timers_of[table] = self._timers.timer(lambda: self._control.put(table.tick))
            until, orphans = self._orphans.pop((table.service_id, table.name), (0.0, []))
            connected = self._connected
            if self._guard.rules is not None:
                orphans = [each for each in orphans if self._still_subscribes(each, table)]
        table.attach(self, orphans if self.now() < until else [])
        if not connected:
            table.disconnected()

    def remove(self, table: PublishedTable) -> None:
        """Publish a table no more; idempotent. Another one of its name stays."""
        with self._lock:
            timer = self._timers_of.pop(table, None)
            if timer is None:
                return
            if self._tables.get((table.service_id, table.name)) is table:
                del self._tables[table.service_id, table.name]
                self._denied.pop((table.service_id, table.name), None)
        self._timers.cancel(timer)
        table.flush()
        subscribers = table.detach()
        now, key = self.now(), (table.service_id, table.name)
        with self._lock:
            self._orphans.pop(key, None)
            for old, (until, _) in list(self._orphans.items()):
                if now < until and len(self._orphans) < MAX_ORPHANS:
                    break
                del self._orphans[old]
            if subscribers:
                self._orphans[key] = (now + LEASE, subscribers)

    # What tables ask (`dse.core.table.Outlet`)

    def now(self) -> float:
        return self._timers.now()

    def new_epoch(self) -> str:
        return self._unique()[:16]

    def transmit(self, send: Send, *, remote: bool, local: bool) -> None:
        if isinstance(send.message, ChangeMessage | bytes | Tip) and send.address.delivery.value == "fanout":
            if local:
                frame = frame_of(send.message) if isinstance(send.message, bytes) else encode(send.message)
                self._wire.loop_back(send.address, frame)
            if not remote:
                return
        self._wire.carry_out([send])

    def hold(self, table: PublishedTable) -> None:
        if table in self._held:
            return  # whoever takes it from there sends what came before this look, too
        with self._lock:
            self._held.add(table)
            first, self._release_set = not self._release_set, True
        if first:
            self._timers.set(self._release_timer, self._timers.now() + HOLD)

    def release(self) -> None:
        """Send what is held back: something else is about to be sent, and would overtake it."""
        if self._held:
            with self._lock:
                held, self._held = self._held, set()
            for table in held:
                table.flush()

    def _release_due(self) -> None:
        with self._lock:
            due = min((table.held_since for table in self._held), default=0.0) + HOLD
        if due > self._timers.now():
            self._timers.set(self._release_timer, due)  # what was held back then went out when it was much
        else:
            self._control.put(self._release)

    def _release(self) -> None:
        with self._lock:
            self._release_set = False
        self.release()

    def watch(self, table: PublishedTable, wakeup: float) -> None:
        timer = self._timers_of.get(table)
        if timer is not None and timer.at > wakeup:  # one that is due earlier calls `tick`, which watches anew
            self._timers.set(timer, wakeup)

    def subscribers_changed(self, table: PublishedTable, first: bool) -> None:
        self._on_subscribers(table, first)

    # What replicas say

    def sync_requested(self, message: SyncRequest, sender: Sender | None = None) -> None:
        """A replica asks to be brought up to date."""
        key = (message.service, message.table)
        if not self._lets_in(sender, *key):
            self._refuse(message.instance, NoTable(message.request, self._refusal(sender, *key)))
            return
        table = self._tables.get(key)
        if table is None:
            self._wire.carry_out([Send(instance_address(message.instance), NoTable(message.request))])
            return
        table.sync(message)
        self._look_again(sender, table)

    def credited(self, message: SnapshotCredit, sender: Sender | None = None) -> None:
        """A replica has so many chunks: of a snapshot that it was let have."""
        table = self._tables.get((message.service, message.table))
        if table is not None:
            table.credit(message.instance, message.request, message.received)

    def unsubscribed(self, message: Unsubscribe, sender: Sender | None = None) -> None:
        """A node subscribes no more."""
        table = self._tables.get((message.service, message.table))
        if table is not None:
            table.drop(message.instance)

    def renewed(self, message: Renew, sender: Sender | None = None) -> None:
        """All that a node subscribes to here."""
        held = {(service, table): (epoch, seq) for service, table, epoch, seq in message.subscriptions}
        with self._lock:
            tables = list(self._tables.items())
        for key, table in tables:
            if key not in held and not table.knows(message.instance):
                continue
            stands = held.get(key)
            if stands is not None and not self._lets_in(sender, *key):
                self._refuse(message.instance, NoTable(0, self._refusal(sender, *key), *key))
                stands = None
            table.renew(message.instance, stands)
            if stands is not None:
                self._look_again(sender, table)

    # Who may

    def _look_again(self, sender: Sender | None, table: PublishedTable) -> None:
        """Let go of one that was let in by rules which were replaced meanwhile."""
        key = (table.service_id, table.name)
        if sender is not None and not self._guard.may_subscribe(sender, *key):
            table.drop(sender.instance)
            self._lets_in(sender, *key)  # counts, and remembers it
            self._refuse(sender.instance, NoTable(0, self._refusal(sender, *key), *key))

    def _lets_in(self, sender: Sender | None, service: str, table: str) -> bool:
        allowed = self._guard.subscribes(sender, service, table)
        if sender is None:
            return allowed
        if allowed:
            with self._lock:
                if len(self._asked_by) >= MAX_ORPHANS and sender.instance not in self._asked_by:
                    self._asked_by.pop(next(iter(self._asked_by)))
                self._asked_by[sender.instance] = sender
            return True
        with self._lock:
            if (service, table) in self._tables:
                denied = self._denied.setdefault((service, table), {})
                denied.pop(sender.instance, None)
                denied[sender.instance] = sender
                if len(denied) > MAX_DENIED:
                    del denied[next(iter(denied))]
        return False

    def _refusal(self, sender: Sender | None, service: str, table: str) -> str:
        return self._guard.refusal("subscribe", sender, service, table)

    def _refuse(self, instance: str, answer: NoTable) -> None:
        self._wire.carry_out([Send(instance_address(instance), answer)])

    def _still_subscribes(self, instance: str, table: PublishedTable) -> bool:
        """Whether a subscriber may go on (the lock is held); one of whom nobody knows whose it is asks again."""
        sender = self._asked_by.get(instance)
        return sender is not None and self._guard.may_subscribe(sender, table.service_id, table.name)

    def permissions_changed(self) -> None:
        """Other rules apply: who may not follow a table any more is told so, and who may after all."""
        for table in self._all():
            key = (table.service_id, table.name)
            subscribers = table.known_subscribers()
            with self._lock:
                gone = [each for each in subscribers if not self._still_subscribes(each, table)]
                whose = {each: self._asked_by.get(each) for each in gone}
                denied = self._denied.pop(key, {})
                invited = [each for each in denied.values() if self._guard.may_subscribe(each, *key)]
                still = {each.instance: each for each in denied.values() if each not in invited}
                if still and key in self._tables:
                    self._denied[key] = still
            for instance, sender in whose.items():
                table.drop(instance)
                self._look_again(sender, table)
            for sender in invited:
                table.invite(sender.instance)

    def nodes_left(self, instances: Sequence[str]) -> None:
        """Nodes said goodbye, and their subscriptions ended."""
        with self._lock:
            self._forget(instances)
        for table in self._all():
            for instance in filter(table.knows, instances):
                table.drop(instance)

    def nodes_died(self, instances: Sequence[str]) -> None:
        """Nodes are taken for dead; they may be heard again."""
        now = self._timers.now()
        with self._lock:
            for instance in instances:
                self._dead.pop(instance, None)
                self._dead[instance] = now + LEASE  # the earliest stand first
            for instance, until in list(itertools.islice(self._dead.items(), 2 * len(instances))):
                if until <= now or len(self._dead) > limits.PEERS:
                    del self._dead[instance]
                    self._forget([instance])
        for table in self._all():
            for instance in filter(table.knows, instances):
                table.lapse(instance)

    def _forget(self, instances: Sequence[str]) -> None:
        """Forget whose instances these were (the lock is held)."""
        for instance in instances:
            self._asked_by.pop(instance, None)
            for denied in self._denied.values():
                denied.pop(instance, None)

    def nodes_heard(self, instances: Sequence[str]) -> None:
        """Nodes live: those that were taken for dead subscribe to what they subscribed to before."""
        with self._lock:
            back = [instance for instance in instances if self._dead.pop(instance, None) is not None]
        for table in self._all() if back else ():
            for instance in filter(table.knows, back):
                table.revive(instance)

    # The node's connection

    def connected(self) -> None:
        """It is back: tell subscribers where the tables stand."""
        with self._lock:
            self._connected = True
        for table in self._all():
            table.connected()

    def disconnected(self) -> None:
        """It broke."""
        with self._lock:
            self._connected = False
        for table in self._all():
            table.disconnected()

    def _all(self) -> list[PublishedTable]:
        with self._lock:
            return list(self._tables.values())


class _SharedReplica:
    """One copy of a table, shared by all that subscribe to it on this node.

    Lock: ``changed`` protects ``machine``, ``handles`` and ``wakeup``.
    """

    def __init__(self, machine: ReplicaMachine, timer: Timer) -> None:
        self.machine = machine
        self.timer = timer
        self.changed = threading.Condition()
        self.wakeup = math.inf  # what the timer was set to last
        self.handles: list[Replica] = []
        self.closed = False

    @property
    def state(self) -> ReplicaState:
        return self.machine.state

    @property
    def columns(self) -> tuple[str, ...]:
        return self.machine.columns

    @property
    def version(self) -> tuple[str, int]:
        with self.changed:
            return self.machine.version

    @property
    def untrusted(self) -> str:
        return self.machine.untrusted

    @property
    def resyncs(self) -> int:
        return self.machine.resyncs

    @property
    def loading(self) -> tuple[int, int] | None:
        with self.changed:
            return self.machine.loading

    def view(self) -> RowsView:
        with self.changed:
            return self.machine.view()

    def contains(self, row: object) -> bool:
        with self.changed:
            return row in self.machine._rows

    def count(self) -> int:
        with self.changed:
            return len(self.machine._rows)


class ReplicaHub:
    """The copies this node holds of tables. Lock: ``_lock`` protects its dicts."""

    def __init__(
        self,
        wire: Wire,
        listeners: Listeners,
        timers: Timers,
        control: SerialQueue,
        publishers_of: Callable[[str, str], list[str]],
        guard: Guard,
        numbers: Iterator[int],
    ) -> None:
        self._wire = wire
        self._guard = guard
        self._listeners = listeners
        self._timers = timers
        self._control = control
        self._publishers_of = publishers_of
        self._numbers = numbers
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, str], _SharedReplica] = {}
        self._by_number: dict[int, _SharedReplica] = {}  # the upper half of its requests' numbers
        self._syncs = 0  # of copies that are no more
        self._by_address: dict[Address, _SharedReplica] = {}
        self._connected = True
        self._renew_timer = timers.timer(lambda: control.put(self.renew))
        timers.set(self._renew_timer, timers.now() + RENEW)

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None,
        on_state: Callable[[ReplicaState], Any] | None,
        schedule: Callable[[Callable[[], None]], None],
        run: Callable[..., None],
    ) -> Replica:
        """Return a replica; the copy behind it is made if this is the first on the node."""
        key = (service_id, table)
        while True:
            with self._lock:
                shared = self._shared.get(key)
                if shared is None:
                    if len(self._shared) >= limits.REPLICAS:
                        raise TableError(f"a node follows at most {limits.REPLICAS:,} tables")
                    # An answer to an earlier life is nobody's, and only who was asked knows the number to answer to.
                    number = next(self._numbers) & _HALF
                    while number in self._by_number:
                        number = next(self._numbers) & _HALF
                    first = next(self._numbers) & _HALF
                    machine = ReplicaMachine(service_id, table, self._wire.instance, (number << 32) + first)
                    if not self._connected:
                        machine.disconnected()
                    shared = _SharedReplica(machine, self._timers.timer(lambda: None))
                    shared.timer.callback = self._ticker(shared)
                    self._shared[key] = self._by_number[number] = shared
            replica = Replica(service_id, table, shared, callback, on_state, schedule, run)
            with shared.changed:
                if shared.closed:
                    continue  # the last subscriber left at this moment
                shared.handles.append(replica)
                machine = shared.machine
                if len(machine._rows):
                    replica.deliver(Delta(frozenset(machine._rows), frozenset(), machine.version))
                replica.turned(machine.state)
            self._update(shared)
            return replica

    def unsubscribe(self, replica: Replica) -> None:
        """Give up a replica; the copy goes with the last one."""
        replica.close()
        with self._lock:
            shared = self._shared.get((replica.service_id, replica.table))
        if shared is None:
            return
        with shared.changed:
            if replica not in shared.handles:
                return
            shared.handles.remove(replica)
            if shared.handles:
                return
            shared.closed = True
            effects = shared.machine.close()
        with self._lock:
            if self._shared.pop((replica.service_id, replica.table), None) is shared:
                self._syncs += shared.machine.resyncs  # of those that are no more
            self._by_number.pop(shared.machine.request >> 32, None)
        self._timers.cancel(shared.timer)
        self._carry_out(shared, effects)

    def syncs(self) -> int:
        """Return how often copies asked for what they had not: once when they began, and again after each gap."""
        with self._lock:
            return self._syncs + sum(shared.machine.resyncs for shared in self._shared.values())

    def subscriptions(self) -> list[tuple[str, str]]:
        """Return the (service_id, table) pairs that this node holds copies of."""
        with self._lock:
            return sorted(self._shared)

    def stop(self) -> None:
        """Renew no more."""
        self._timers.cancel(self._renew_timer)

    # What the bus says

    def published(self, services: Collection[str] | None = None) -> None:
        """Who publishes tables of these services, or of any, has changed."""
        for shared in self._all():
            if services is None or shared.machine.service in services:
                self._update(shared)

    def connected(self) -> None:
        """The connection is back, and everything that was listened to."""
        with self._lock:
            self._connected = True
        for shared in self._all():
            self._step(shared, lambda m, now: ([], m.connected(now)))
        self.renew()

    def disconnected(self) -> None:
        """The connection broke."""
        with self._lock:
            self._connected = False

        def step(machine: ReplicaMachine, now: float) -> tuple[list[Delta], list[Effect]]:
            if machine.publisher != self._wire.instance:
                machine.disconnected()
            return [], []

        for shared in self._all():
            self._step(shared, step)

    def expects(self, address: Address, frame: bytes) -> bool:
        """Whether a large frame is worth decoding: rows only where they are followed, or were asked for."""
        if is_change(frame):
            return address in self._by_address
        request = answers_request(frame)
        if request is None:
            return True
        shared = self._by_number.get(request >> 32)
        return shared is not None and shared.machine.awaits(request)

    def heard(self, address: Address, message: ChangeMessage | Changes | Tip, sender: Sender | None = None) -> None:
        """A change, several or a tip, at a table's address."""
        shared = self._by_address.get(address)
        if shared is None or not self._publishes(sender, shared):
            return
        if isinstance(message, ChangeMessage):
            self._step(shared, lambda m, now: m.change(now, message))
        elif isinstance(message, Changes):
            self._step(shared, lambda m, now: m.changes(now, message.changes))
        else:
            self._step(shared, lambda m, now: ([], m.tip(now, message)))

    def answered(
        self, message: CatchUp | SnapshotBegin | SnapshotChunk | NoTable, sender: Sender | None = None
    ) -> None:
        """An answer to a sync request; or, of one that names the table, the end of a subscription."""
        if isinstance(message, NoTable) and not message.request:
            shared = self._shared.get((message.service, message.table))
        else:
            shared = self._by_number.get(message.request >> 32)
        if shared is not None and self._publishes(sender, shared):
            self._step(shared, lambda m, now: _answer(m, now, message))

    def tipped(self, _: Address, message: Tip, sender: Sender | None = None) -> None:
        """A tip for this node alone, in answer to a renewal."""
        shared = self._shared.get((message.service, message.table))
        if shared is not None and self._publishes(sender, shared, alone=True):
            self._step(shared, lambda m, now: ([], m.tip(now, message)))

    def _publishes(self, sender: Sender | None, shared: _SharedReplica, *, alone: bool = False) -> bool:
        """Whether it is the publisher that this replica follows, and may publish the table.

        alone: it may be another one that refused it, for that is how it tells that it does no more.
        """
        if sender is None and self._guard.rules is None:
            return True
        machine = shared.machine
        heard = sender is None or sender.instance == machine.publisher or (alone and machine.hears(sender.instance))
        return heard and self._guard.publishes(sender, machine.service, machine.table)

    def untrusted(self) -> dict[str, str]:
        """Return the tables that this node may not follow, as ``service.table``, and what the publisher said."""
        held = [shared.machine for shared in self._all()]
        return {f"{m.service}.{m.table}": m.untrusted for m in held if m.untrusted}

    # Inside

    def _all(self) -> list[_SharedReplica]:
        with self._lock:
            return list(self._shared.values())

    def _update(self, shared: _SharedReplica) -> None:
        machine = shared.machine
        live = self._publishers_of(machine.service, machine.table)
        self._step(shared, lambda m, now: ([], m.publishers(now, live)))

    def _ticker(self, shared: _SharedReplica) -> Callable[[], None]:
        return lambda: self._control.put(lambda: self._tick(shared))

    def _tick(self, shared: _SharedReplica) -> None:
        with shared.changed:
            shared.wakeup = math.nan  # the timer is not set any more
        self._step(shared, lambda m, now: ([], m.tick(now)))

    def _step(
        self,
        shared: _SharedReplica,
        step: Callable[[ReplicaMachine, float], tuple[list[Delta], list[Effect]]],
    ) -> None:
        with shared.changed:
            if shared.closed:
                return
            machine = shared.machine
            before, trusted = machine.state, not machine.untrusted
            deltas, effects = step(machine, self._timers.now())
            refused = trusted and machine.untrusted
            for delta in deltas:
                for handle in shared.handles:
                    handle.deliver(delta)
            if machine.state is not before:
                for handle in shared.handles:
                    handle.turned(machine.state)
            if deltas or refused or machine.state is not before:
                shared.changed.notify_all()
            if machine.wakeup != shared.wakeup:
                shared.wakeup = machine.wakeup
                self._timers.set(shared.timer, shared.wakeup)
        if refused:
            _log.error("%s.%s cannot be followed: %s", machine.service, machine.table, refused)
        if effects:
            self._carry_out(shared, effects)

    def _carry_out(self, shared: _SharedReplica, effects: list[Effect]) -> None:
        sends = [effect for effect in effects if isinstance(effect, Send)]
        others: list[Effect] = [effect for effect in effects if not isinstance(effect, Send)]
        if others:
            # Listening waits for the broker: not in a thread that receives. Sends keep their place behind it.
            self._control.put(lambda: self._carry_out_slowly(shared, others, sends))
        else:
            self._wire.carry_out(sends)

    def _carry_out_slowly(self, shared: _SharedReplica, effects: list[Effect], sends: list[Send]) -> None:
        for effect in effects:
            if isinstance(effect, Unlisten):
                with self._lock:
                    if self._by_address.get(effect.address) is shared:
                        del self._by_address[effect.address]
                self._listeners.remove(effect.address)
            elif isinstance(effect, Listen):
                self._listen(shared, effect.address)
        self._wire.carry_out(sends)

    def _listen(self, shared: _SharedReplica, address: Address) -> None:
        machine = shared.machine
        publisher = machine.publisher
        if publisher is None or table_address(publisher, machine.service, machine.table) != address:
            return  # the machine has moved on
        with self._lock:
            self._by_address[address] = shared
        if publisher == self._wire.instance or self._listeners.add(address):
            self._step(shared, lambda m, now: ([], m.listening(now, publisher)))

    def renew(self) -> None:
        """Tell every publisher what is held of its tables, now; it answers where that is behind."""
        self._timers.set(self._renew_timer, self._timers.now() + RENEW)
        held: dict[str, list[tuple[str, str, str, int]]] = {}
        for shared in self._all():
            with shared.changed:
                m = shared.machine
                if m.publisher is not None and not m.untrusted:
                    held.setdefault(m.publisher, []).append((m.service, m.table, m.epoch, m.seq))
        self._wire.carry_out(Send(instance_address(p), Renew(self._wire.instance, subs)) for p, subs in held.items())


def _answer(
    machine: ReplicaMachine, now: float, message: CatchUp | SnapshotBegin | SnapshotChunk | NoTable
) -> tuple[list[Delta], list[Effect]]:
    match message:
        case CatchUp():
            return machine.catch_up(now, message)
        case SnapshotBegin():
            return machine.snapshot_begin(now, message)
        case SnapshotChunk():
            return machine.snapshot_chunk(now, message)
        case NoTable():
            return [], machine.no_table(now, message)
    return [], []
