"""One life of a node: its transport, threads and parts, put together, and the dispatch of what arrives.

Threads of a node: the transport's, and its `Engine`'s: ``timers``, which only hands work on; ``pool`` (callbacks,
hooks, periodic work and the serial queues ``control`` and ``loopback``, each on at most one thread at a time);
``workers`` (RPC methods); the event loop. All are ended and joined by `Runtime.close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dse.core import limits
from dse.core.controlbus import ControlBus
from dse.core.effects import Send
from dse.core.figures import FIGURES, MOST_CELLS, MOST_FIRST_ROWS, MOST_TABLES, ROWS, TYPES, FirstRows, Traffic
from dse.core.guard import DENIALS, Guard
from dse.core.info import STAND_IN, DataServiceInfo
from dse.core.inline import InlineRuns
from dse.core.listeners import Listeners
from dse.core.membership import Membership, NodeState, PeerEvent
from dse.core.messages import (
    CONTROL,
    Accepted,
    BadFrame,
    Catalogue,
    CatalogueRequest,
    CatchUp,
    ChangeMessage,
    Changes,
    Clash,
    Failure,
    ForeignVersion,
    Greet,
    Greeted,
    Heartbeat,
    Leave,
    Message,
    NoTable,
    PlainChange,
    PlainChanges,
    PlainChunk,
    Probe,
    Renew,
    Reply,
    Request,
    SealedFrame,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    UnknownCall,
    Unsubscribe,
    broadcast_address,
    decode,
    service_address,
    speaks_for,
)
from dse.core.methods import Method
from dse.core.pace import Pace
from dse.core.receiving import leads
from dse.core.rpc import RpcClient, RpcServer
from dse.core.sender import Sender
from dse.core.table import PublishedTable
from dse.core.tablelog import Sizes
from dse.core.tables import Publisher, ReplicaHub
from dse.core.threads import Engine
from dse.core.transport import Address, ConnectionState, Delivery
from dse.core.wire import Wire
from dse.errors import DseError, NodeLost, NoSuchTable, Untrusted

if TYPE_CHECKING:
    from dse.core.gate import Gate
    from dse.core.node import Node
    from dse.core.service import _Host

__all__ = ["Runtime"]

_log = logging.getLogger("dse.node")

_LINGER = 0.05  # seconds between the last catalogue and the goodbye
_LARGEST_CHANGE = 4 << 20
_OVERHEAD = 1024  # bytes of a frame around an encoded change
UNLISTEN_PATIENCE = 1.0
"""Seconds that a stopping node gives the broker to take its services off their addresses; closing does it anyway."""
OFFER_PATIENCE = 60.0
"""Seconds after which a start gives up on a broker that does not answer."""
_SHORT = limits.SHORT
_LOG_EVERY = 60.0  # seconds between two log lines about bad frames
_ANSWERED = frozenset((Request, SyncRequest, Greet, Greeted))  # who may not join is told so, where it waits for that


class Runtime:
    """The parts of a started node. Made by `Node.start`, ended by `Node.stop`."""

    def __init__(self, node: Node, engine: Engine) -> None:
        self.node = node
        self.engine = engine
        self.closing = False  # protected by the node's lock
        self.closed = threading.Event()
        self.connected = False
        self.joined = False
        self.retired = False  # the catalogue is empty from now on
        self._bad_logged = -_LOG_EVERY
        self._log_pace = Pace(10, 1 / 6)  # of lines about messages that cannot be taken
        self._hosts = node.hosts  # of this life: the next has others
        self._offers: list[str] = []  # services that run and are not offered yet
        self._offers_lock = threading.Lock()  # protects _offers
        self.instance = f"{node.node_id}/{engine.unique()}"
        self.timers, self.pool, self.workers, self.loop = engine.timers, engine.pool, engine.workers, engine.loop
        self.control = engine.queue()
        self.traffic = self._traffic = Traffic()
        self.gate = self._make_gate()
        self.transport = node._driver(node.url, bus=node.bus, events=self.gate or self)
        self.reports_undeliverable = self.transport.capabilities.undeliverable
        self.wire = Wire(self.transport, self.instance, engine.queue(), self._dispatch, self._traffic)
        overhead = _OVERHEAD
        if self.gate is not None:
            self.wire.seal, self.wire.sender = self.gate.sealer.seal, self.gate.sealer.sender
            overhead += self.gate.sealer.overhead
        self.listeners = Listeners(self.transport)
        self.guard = Guard(node.node_id, node._rules, node.counters, self.timers.now)
        machine = Membership(
            node.node_id, self.instance, node.heartbeat_interval, self._catalogue, engine.random, passive=node.passive
        )
        self.control_bus = ControlBus(
            machine,
            self.wire,
            self.timers,
            self.control,
            self._own_infos,
            self._peers_changed,
            node.clashed,
            lambda: self.hub.renew(),
            self.guard,
            self._own_stand_ins,
            node.natives_only,
        )
        largest = min(_LARGEST_CHANGE, self.transport.capabilities.max_frame - overhead)
        sizes = Sizes(largest)
        self.publisher = Publisher(
            self.wire, self.timers, self.control, sizes, engine.unique, self._subscribers_changed, self.guard
        )
        self.hub = ReplicaHub(
            self.wire, self.listeners, self.timers, self.control, self._publishers_of, self.guard, engine.numbers()
        )
        inline = InlineRuns(self.transport, self.timers, self.workers)
        self._inline = inline.possible
        self.client = RpcClient(
            node.node_id,
            self.wire,
            self.control_bus,
            self.timers,
            self.control,
            self.pool,
            inline,
            self._has_local if node.natives_only else self._hosts.__contains__,
            self.reports_undeliverable,
            engine.random.randrange(1 << 16),
            self.guard,
            engine.numbers(),
            node.natives_only,
        )
        self.server = RpcServer(
            node.node_id,
            self.wire,
            self.workers,
            self.loop,
            inline,
            node.max_pending,
            self._find,
            self.timers.now,
            self.guard,
        )
        self.server.builtins = {
            FIGURES: lambda request, _: self.server.reply(request, self.figures()),
            TYPES: lambda request, _: self.server.reply(request, self.types()),
            ROWS: lambda request, sender: self.server.run_builtin(
                request, FirstRows, lambda wanted: self.first_rows(wanted, sender)
            ),
        }
        self._started = self.timers.now()
        self._handlers = self._make_handlers()

    def _make_gate(self) -> Gate | None:
        """Return what opens sealed frames, on a bus with keys."""
        if not self.node._keys:
            return None
        from dse.core.gate import Gate
        from dse.core.seal import KeyRing

        ring = KeyRing(self.node._keys, self.node.bus)
        return Gate(ring, ring.sealer(self.instance), self, self.timers, self.control)

    # Life

    def open(self) -> None:
        """Connect and begin to join."""
        self.transport.open()
        self.transport.listen(self.wire.own_address)
        self.transport.listen(CONTROL)
        self.control_bus.start()

    def close(self, deadline: float) -> None:
        """Undo everything, in the order that lets the others know early and lose nothing."""
        hosts = list(self.node.hosts.values())
        self.server.stop()
        try:
            self.control.run(lambda: self._unlisten_all(hosts), timeout=UNLISTEN_PATIENCE)
        except TimeoutError:
            _log.info("node %r: the broker does not answer; stopping without it", self.node.node_id)
        if hosts:
            self._retire()
        self.workers.close(max(0.1, deadline - time.monotonic()))
        self.server.drain(deadline)
        for host in hosts:
            host.stop(deadline)
        self.hub.stop()
        self.control_bus.leave()
        self.client.close(NodeLost(f"node {self.node.node_id!r}, which made the call, has stopped"))
        self.timers.close()
        self.loop.close(max(0.5, deadline - time.monotonic()))
        self.transport.close()
        if not self.pool.close(max(0.5, deadline - time.monotonic())):
            _log.warning("node %r stopped while a callback or method of a service still runs", self.node.node_id)

    def _retire(self) -> None:
        """Tell everybody that this node offers nothing any more, and refuse what was under way to it.

        Who was refused calls somebody else; who is left without an answer could only be told that the node is lost.
        """
        self.retired = True
        self.announce()
        self.engine.linger(_LINGER)

    def offer(self, service_id: str) -> None:
        """A service runs: soon it can be called, and everybody is told, of several at once where they come fast."""
        with self._offers_lock:
            self._offers.append(service_id)
            first = len(self._offers) == 1
        if first:
            self.control.put(self._offer)

    def wait_offered(self) -> None:
        """Wait until what was offered so far can be called; raise `TimeoutError` when the broker holds that up."""
        self.control.run(lambda: None, timeout=OFFER_PATIENCE)

    def _offer(self) -> None:
        with self._offers_lock:
            offers, self._offers = self._offers, []
        hosts = self.node.hosts
        addresses = [
            address(service_id)
            for service_id in offers
            if service_id in hosts
            for address in (service_address, broadcast_address)
        ]
        if addresses:
            self.listeners.add_all(addresses)
        for service_id in offers:
            if service_id not in self.node.hosts:
                self._unlisten_service(service_id)  # withdrawn meanwhile, perhaps before it was listened to
        self.announce()
        self.hub.published()

    def withdraw(self, service_id: str) -> None:
        """A service is about to stop."""
        self._unlisten_service(service_id)
        self.announce()
        self.hub.published()

    def announce(self) -> None:
        """What this node offers changed."""
        self.publisher.release()  # who follows a table that is offered no more does not hear its last changes
        self.control_bus.announce()

    def _unlisten_all(self, hosts: list[_Host]) -> None:
        for host in hosts:
            self._unlisten_service(host.service.service_id)

    def _unlisten_service(self, service_id: str) -> None:
        self.listeners.remove(service_address(service_id))
        self.listeners.remove(broadcast_address(service_id))

    # What services need

    def check_table(self, service_id: str, table: str) -> None:
        """Raise `NoSuchTable` when every known replica of the service is without the table."""
        offers = [info for info in self._own_infos() if info.service_id == service_id]
        others = self.control_bus.replicas.get(service_id, ())
        offers += [member.services[service_id] for member in others]
        # A stand-in has only those tables whose publisher it hears: more may come.
        hearsay = service_id in self._own_stand_ins() or any(service_id in member.stand_ins for member in others)
        if offers and not hearsay and not any(table in info.published_tables for info in offers):
            known = sorted({name for info in offers for name in info.published_tables})
            raise NoSuchTable(
                f"the service {service_id!r} publishes no table {table!r}; it publishes: {', '.join(known) or 'none'}"
            )

    def permissions_changed(self) -> None:
        """The guard has other rules: apply them to what is under way as well."""
        self.control_bus.permissions_changed()
        self.publisher.permissions_changed()
        self.hub.published()

    def figures(self) -> dict[str, Any]:
        """Return what the node can tell of itself, as plain dicts; reads without a lock, so it waits for nobody.

        counters: grow as long as the instance lives. gauges: as they are now. served: the histogram of seconds from the
        arrival of a request to its answer (`dse.core.figures.quantile`); served_seconds: their sum. tables:
        ``service:table`` -> rows, changes, followers.
        """
        published = self.publisher.tables()
        tables = {f"{table.service_id}:{table.name}": table.figures() for table in published[:MOST_TABLES]}
        more = sum(table.figures()["changes"] for table in published[MOST_TABLES:])
        hosts = list(self.node.hosts.values())
        traffic, counters = self.wire.traffic, self.node.counters
        return {
            "instance": self.instance,
            "counters": {
                **traffic.counters(),
                "changes": sum(each["changes"] for each in tables.values()) + more,
                "disconnects": counters["disconnects"],
                "syncs": self.hub.syncs(),
                "undeliverable": counters["undeliverable"],
                "denied": sum(counters[each] for each in DENIALS),
                "bad_frames": counters["bad_frames"] + counters["foreign_frames"],
            },
            "gauges": {
                "uptime": self.timers.now() - self._started,
                "requests_waiting": self.server.waiting,
                "jobs_waiting": self.workers.waiting,
                "callbacks_waiting": sum(len(host.callbacks) for host in hosts),
                "control_waiting": len(self.control),
                "calls_pending": self.client.pending,
                "tables": len(published),
                "replicas": len(self.hub.subscriptions()),
            },
            "served": traffic.served(),
            "served_seconds": traffic.seconds,
            "tables": tables,
        }

    def types(self) -> dict[str, list[list[str]]]:
        """Return what the columns of each table hold: ``service:table`` -> for each column the types found, by name.

        Some rows of each table are looked at, the fewer the more there is to look at; an empty table has told nothing.
        """
        published = self.publisher.tables()[:MOST_TABLES]
        rows = max(1, MOST_CELLS // max(1, sum(len(table.columns) for table in published)))
        return {f"{table.service_id}:{table.name}": table.types(rows) for table in published}

    def first_rows(self, wanted: FirstRows, sender: Sender | None) -> dict[str, Any]:
        """Return some rows of a table published here, and how many it has; raises `NoSuchTable`, `Untrusted`."""
        if not self.guard.subscribes(sender, wanted.service, wanted.table):
            raise Untrusted(self.guard.refusal("subscribe", sender, wanted.service, wanted.table))
        host = self.node.hosts.get(wanted.service)
        table = host.service.published_tables.get(wanted.table) if host is not None else None
        if table is None:
            raise NoSuchTable(f"node {self.node.node_id!r} publishes no table {wanted.service}:{wanted.table}")
        rows, count = table.sample(min(max(0, wanted.most), MOST_FIRST_ROWS), _LARGEST_CHANGE >> 4)
        return {"columns": list(table.columns), "rows": rows, "count": count}

    # What the gate needs (`dse.core.gate.Inside`)

    def distrust(self, kind: str) -> int:
        """Count a frame that is dropped for its seal; return how many there were of this kind."""
        counters = self.node.counters
        counters["untrusted_frames"] += 1
        counters[kind] += 1
        self.node.distrusted.set()
        return counters[kind]

    @property
    def node_id(self) -> str:
        return self.node.node_id

    def carry_out(self, sends: Sequence[Send]) -> None:
        self.wire.carry_out(sends)

    def live(self) -> int:
        return len(self.control_bus.members)

    # What the parts need of each other

    def _own_infos(self) -> list[DataServiceInfo]:
        return [host.service.info for host in list(self.node.hosts.values())]

    def _catalogue(self) -> tuple[list[dict[str, Any]], list[str]]:
        if self.retired:
            return [], []
        infos = self._own_infos()
        for info in infos:
            if max(map(len, (info.published_tables, info.subscribed_tables, info.rpc_methods))) > limits.METHODS:
                _log.error("service %r has over %d tables, subscriptions or methods: no peer will know it",
                           info.service_id, limits.METHODS)  # fmt: skip
        stand_ins = self._own_stand_ins()
        offers = [info.to_dict() for info in infos]
        for offer in offers:
            if (origin := stand_ins.get(offer["service_id"])) is not None:
                offer[STAND_IN] = origin
        return offers, sorted(self.node.endpoints)

    def _own_stand_ins(self) -> dict[str, str]:
        services = [host.service for host in list(self._hosts.values())]
        return {service.service_id: service._stands_in_for for service in services if service._stands_in_for}

    def _has_local(self, service_id: str) -> bool:
        host = self._hosts.get(service_id)
        return host is not None and not (self.node.natives_only and host.service._stands_in_for)

    def _find(self, service_id: str | None) -> tuple[str, Mapping[str, Method]] | None:
        if service_id is None:
            return f"node {self.node.node_id!r}", self.node.endpoints
        host = self._hosts.get(service_id)
        return (service_id, host.service.methods) if host is not None else None

    def _publishers_of(self, service_id: str, table: str) -> list[str]:
        host = self.node.hosts.get(service_id)
        own = [self.instance] if host is not None and table in host.service.published_tables else []
        if not self._has_local(service_id):
            own = []
        return own + [
            member.instance
            for member in self.control_bus.replicas.get(service_id, ())
            if table in member.services[service_id].published_tables
        ]

    def _subscribers_changed(self, table: PublishedTable, first: bool) -> None:
        service = self.node._services.get(table.service_id)
        host = service._host if service is not None else None  # known to the service before it is to the node
        if host is not None:
            host.subscribers_changed(table.name, first)

    def _peers_changed(self, events: list[PeerEvent]) -> None:
        now: dict[NodeState, list[str]] = {}
        for event in events:
            now.setdefault(event.peer.state, []).append(event.peer.instance)
        died, left = now.get(NodeState.DEAD, ()), now.get(NodeState.LEFT, ())
        if died or left:
            self.client.nodes_gone(dict.fromkeys(died, "died or was replaced") | dict.fromkeys(left, "left"))
        if died:
            self.publisher.nodes_died(died)
        if left:
            self.publisher.nodes_left(left)
        if NodeState.JOINED in now:
            self.publisher.nodes_heard(now[NodeState.JOINED])
            self.client.nodes_came()
        if touched := self.control_bus.touched():
            self.hub.published(touched)
        self.node.peers_changed()

    # What the transport tells (`dse.core.transport.TransportEvents`)

    def received(self, address: Address, frame: bytes) -> None:
        self._traffic.messages_in += 1
        self.take(address, frame, None)

    def take(self, address: Address, frame: bytes, sender: Sender | None, *, inline: bool = True) -> None:
        """Take a frame that is not sealed, or not any more: `sender` is who had sealed it.

        inline: the calling thread is one that receives, and may be relieved.
        """
        if len(frame) > _SHORT and not self.hub.expects(address, frame):
            self.node.counters["unexpected_frames"] += 1
            return
        try:
            message = decode(frame)
        except BadFrame as error:
            self._bad_frame(address, frame, error)
            return
        kind = type(message)
        # A reply says nothing of who sent it: the call knows whom it asked.
        if sender is not None and kind is not Reply and not self._is_believed(address, frame, message, sender):
            return
        if kind is Request:
            inline = inline and self._inline and not leads()
            fanout = address.delivery is Delivery.FANOUT
            self.server.requested(message, sender, inline=inline, fanout=fanout)  # type: ignore[arg-type]
        elif kind is Reply:
            self.client.replied(message, sender)  # type: ignore[arg-type]
        else:
            self._dispatch(address, message, sender)

    def _is_believed(self, address: Address, frame: bytes, message: Message, sender: Sender) -> bool:
        """Whether an opened frame is to be handled.

        It says who sent it, is of somebody who may be on the bus, and is nothing that others may run too.
        """
        if not speaks_for(message, sender.node_id, sender.instance):
            assert self.gate is not None
            why = f"{sender.instance!a} speaks for somebody else in a {type(message).__name__}"
            self.gate.refuse("impostor", address, frame, why)
            return False
        if self.guard.rules is not None and type(message) not in _ANSWERED and not self.guard.joins(sender):
            return False
        if address.delivery is Delivery.ANYCAST:
            # Shown to another replica, it would run there as well: the caller is to send it to this one alone.
            if isinstance(message, Request):
                self.server.redirect(message)
            return False
        return True

    def undeliverable(self, address: Address, frame: bytes) -> None:
        self.undelivered(address, frame)

    def undelivered(self, address: Address, frame: bytes) -> None:
        """Learn that a frame of this node, which is not sealed or not any more, found nobody."""
        self.node.counters["undeliverable"] += 1
        try:
            message = decode(frame)
        except BadFrame:
            return
        if isinstance(message, Request) and message.id:
            self.client.undeliverable(message)

    def state_changed(self, state: ConnectionState) -> None:
        self.control.put(lambda: self._state_changed(state))

    def _state_changed(self, state: ConnectionState) -> None:
        connected = state == ConnectionState.CONNECTED
        was, self.connected = self.connected, connected
        if connected and not self.joined:
            self.joined = True
            return
        if connected and not was:
            _log.info("node %r: connected again", self.node.node_id)
            self.listeners.restore()
            self.control_bus.connected()
            self.control_bus.tell()
            self.publisher.connected()
            self.hub.connected()
            self.client.connected()
        elif was and state == ConnectionState.DISCONNECTED:
            _log.warning("node %r: %s", self.node.node_id, state)
            self.node.counters["disconnects"] += 1
            self.control_bus.tell()
            self.control_bus.disconnected()
            self.publisher.disconnected()
            self.hub.disconnected()

    def _make_handlers(self) -> dict[type, Callable[[Address, Any, Sender | None], None]]:
        bus, client, server = self.control_bus, self.client, self.server
        publisher, hub = self.publisher, self.hub
        handlers: dict[type, Callable[[Address, Any, Sender | None], None]] = {
            Request: lambda a, m, sender: server.requested(m, sender, fanout=a.delivery is Delivery.FANOUT),
            Reply: lambda _, m, sender: client.replied(m, sender),
            Failure: lambda _, m, sender: client.failed(m, sender),
            Accepted: lambda _, m, sender: client.accepted(m, sender),
            Probe: lambda _, m, sender: server.probed(m, sender),
            UnknownCall: lambda _, m, sender: client.unknown(m, sender),
            ChangeMessage: hub.heard,
            PlainChange: hub.heard,
            Changes: hub.heard,
            PlainChanges: hub.heard,
            Tip: lambda a, m, sender: (hub.heard if a.delivery is Delivery.FANOUT else hub.tipped)(a, m, sender),
            SyncRequest: lambda _, m, sender: publisher.sync_requested(m, sender),
            SnapshotCredit: lambda _, m, sender: publisher.credited(m, sender),
            Unsubscribe: lambda _, m, sender: publisher.unsubscribed(m, sender),
            Renew: lambda _, m, sender: publisher.renewed(m, sender),
        }
        gate = self.gate
        handlers[Greet] = lambda _, m, sender: (
            gate.greet(m, sender) if gate is not None and sender is not None else None
        )
        handlers[Greeted] = lambda _, m, sender: (
            gate.greeted(m, sender) if gate is not None and sender is not None else None
        )
        control = (Heartbeat, Leave, Clash, Catalogue, CatalogueRequest)
        handlers |= dict.fromkeys(control, lambda _, m, sender: bus.heard(m, sender))
        answers = (CatchUp, SnapshotBegin, SnapshotChunk, PlainChunk, NoTable)
        handlers |= dict.fromkeys(answers, lambda _, m, sender: hub.answered(m, sender))
        return handlers

    def _dispatch(self, address: Address, message: Message, sender: Sender | None = None) -> None:
        try:
            self._handlers[type(message)](address, message, sender)
        except DseError as error:
            if self._log_pace.take(self.timers.now()):
                _log.warning("node %r: %s: %s", self.node.node_id, type(message).__name__, error)

    def _bad_frame(self, address: Address, frame: bytes, error: BadFrame) -> None:
        if isinstance(error, SealedFrame):
            kind = "untrusted_sealed"
            self.distrust(kind)
        else:
            kind = "foreign_frames" if isinstance(error, ForeignVersion) else "bad_frames"
            self.node.counters[kind] += 1
        now = time.monotonic()
        if now - self._bad_logged >= _LOG_EVERY:
            self._bad_logged = now
            _log.warning("node %r: dropped a frame of %d bytes to %s: %s (%d such since the start)",
                         self.node.node_id, len(frame), address.name, error, self.node.counters[kind])  # fmt: skip
