"""The control bus: runs the membership machine, and tells the rest of the node who offers what."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dse.core import limits
from dse.core.effects import Effect, Send
from dse.core.guard import Guard
from dse.core.info import STAND_IN, DataServiceInfo, NodeStatus
from dse.core.membership import Membership, NodeState, Peer, PeerEvent
from dse.core.messages import Catalogue, CatalogueRequest, Clash, Heartbeat, Leave
from dse.core.sender import Sender
from dse.core.threads import SerialQueue, Timers
from dse.core.wire import Wire
from dse.errors import ConfigError

__all__ = ["ControlBus", "Member"]

T = TypeVar("T")

_log = logging.getLogger("dse.node")

_ANNOUNCE_EVERY = 0.02  # seconds, at least, between two announcements of one's own catalogue: it may be long


class Member:
    """A live peer as the rest of the node needs it: immutable, made anew when the peer's catalogue or state changes."""

    __slots__ = ("instance", "node_id", "node_methods", "sender", "services", "stand_ins", "state")

    def __init__(
        self, peer: Peer, services: dict[str, DataServiceInfo], stand_ins: Mapping[str, str], key_id: str = ""
    ) -> None:
        self.sender = Sender(key_id, peer.node_id, peer.instance)
        self.node_id = peer.node_id
        self.instance = peer.instance
        self.state = peer.state
        self.services = services
        self.stand_ins = stand_ins  # of these, those that stand in for one on another bus -> an instance there
        self.node_methods = frozenset(peer.node_methods)


class ControlBus:
    """How a node knows its peers: heartbeats, catalogues, joins, leaves and failures.

    Runs one `Membership` machine: frames come from the transport's threads, time from the node's timer thread, and what
    the machine wants sent goes out through `control`, the node's serial queue for work that may block.

    Services and tables that a peer may not publish, by this node's permissions, are left out of all that it tells.

    A service that its own bus has comes before a bridge's stand-in for one on another bus. natives_only: what this node
    calls and follows is never a stand-in; `replicas` and `preferred` are without them then.

    Lock: ``_changed`` protects ``_machine``, ``_infos``, ``_stand_ins``, ``_key_ids``, ``_denied`` and ``_touched``;
    `members` and `replicas` are immutable values that are replaced under it and read without.
    """

    def __init__(
        self,
        machine: Membership,
        wire: Wire,
        timers: Timers,
        control: SerialQueue,
        own_infos: Callable[[], list[DataServiceInfo]],
        on_event: Callable[[list[PeerEvent]], None],
        on_clash: Callable[[str], None],
        on_resumed: Callable[[], None],
        guard: Guard,
        own_stand_ins: Callable[[], dict[str, str]] = dict,
        natives_only: bool = False,
    ) -> None:
        self._guard = guard
        self._key_ids: dict[str, str] = {}  # instance -> the key that it seals with
        self._denied: list[tuple[Sender, str, str | None]] = []  # services and tables left out, to be counted
        self._machine = machine
        self._wire = wire
        self._timers = timers
        self._timer = timers.timer(lambda: control.put(self._tick))
        self._control = control
        self._own_infos = own_infos
        self._on_event = on_event
        self._on_clash = on_clash
        self._on_resumed = on_resumed
        self._changed = threading.Condition()
        self._own_stand_ins = own_stand_ins
        self._natives_only = natives_only
        self._infos: dict[str, dict[str, DataServiceInfo]] = {}  # instance -> its services
        self._stand_ins: dict[str, dict[str, str]] = {}  # instance -> those of its services that are stand-ins
        self._announcing = False
        self._announced_at = -math.inf
        self._announcer = timers.timer(lambda: control.put(self._announce))
        self._clash_told = False
        self._watchers: tuple[Callable[[], None], ...] = ()  # replaced under _changed, read without
        self._touched: set[str] = set()  # services whose replicas have changed since `touched`
        self._left_out = 0
        self.clashes: deque[tuple[str, str]] = deque(
            maxlen=100
        )  # nodes that came while another of their name was there
        self.members: Mapping[str, Member] = {}  # live peers by instance
        # Live peers by service_id: JOINED before SUSPECT, and of these the stand-ins last.
        self.replicas: Mapping[str, Sequence[Member]] = {}
        # Of these the JOINED that are no stand-ins, or the JOINED, or all.
        self.preferred: Mapping[str, Sequence[Member]] = {}

    # Life

    @property
    def state(self) -> NodeState:
        """This node's own state."""
        return self._machine.state

    @property
    def clash(self) -> str | None:
        """The instance of the older node that has this node's id, if one was met."""
        return self._machine.clash

    def start(self) -> None:
        """Begin to join."""
        self._step(lambda now: self._machine.start(now))

    def wait_joined(self, timeout: float) -> bool:
        """Wait until this node has joined (True), met a node of its own id, or the time is over (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self.state is not NodeState.JOINING or self.clash, timeout)
            return self.state is NodeState.JOINED and self.clash is None

    def leave(self) -> None:
        """Say that this node stops, and do nothing any more."""
        self._timers.cancel(self._timer)
        self._timers.cancel(self._announcer)
        self._step(lambda now: self._machine.leave())

    def announce(self) -> None:
        """What this node offers has changed: tell the bus soon, several changes at once."""
        with self._changed:
            if self._announcing:
                return
            self._announcing = True
            at = self._announced_at + _ANNOUNCE_EVERY
        if at <= self._timers.now():
            self._control.put(self._announce)
        else:
            self._timers.set(self._announcer, at)

    def _announce(self) -> None:
        with self._changed:
            self._announcing = False
            self._announced_at = self._timers.now()
        self._step(self._machine.changed)
        with self._changed:
            self._changed.notify_all()
        self.tell()

    # What the bus says

    def heard(
        self, message: Heartbeat | Leave | Clash | Catalogue | CatalogueRequest, sender: Sender | None = None
    ) -> None:
        """Take a message of the control bus."""
        machine = self._machine
        if sender is not None and type(message) in (Heartbeat, Catalogue):
            self._note_key(sender)
        if type(message) is Heartbeat:
            self._step(machine.heartbeat, message)
        elif type(message) is Catalogue:
            self._step(machine.catalogue_of, message)
        elif type(message) is CatalogueRequest:
            self._step(machine.catalogue_request, message)
        elif type(message) is Leave:
            self._step(machine.left, message)
        elif type(message) is Clash:
            self._step(machine.clashed, message)

    def _note_key(self, sender: Sender) -> None:
        if self._key_ids.get(sender.instance) != sender.key_id:
            with self._changed:
                peers = self._machine.peers
                if len(self._key_ids) > 2 * len(peers) + 1000:
                    self._key_ids = {each: key for each, key in self._key_ids.items() if each in peers}
                self._key_ids[sender.instance] = sender.key_id

    def connected(self) -> None:
        """The transport is connected again."""
        self._step(self._machine.connected)

    def disconnected(self) -> None:
        """The transport lost its connection."""
        with self._changed:
            self._machine.disconnected()

    def permissions_changed(self) -> None:
        """Other rules apply: what peers offer is looked at anew."""
        with self._changed:
            self._rebuild([PeerEvent(peer, peer.state) for peer in self._machine.peers.values()])
            denied, self._denied = self._denied, []
            self._changed.notify_all()
        self._count(denied)

    # What the node asks

    def wait_for(self, service_id: str, timeout: float) -> None:
        """Wait until a live replica of the service is known, here or elsewhere; raise `TimeoutError` if none comes."""
        with self._changed:
            known = self._changed.wait_for(lambda: self._offers(service_id), timeout)
        if not known:
            peers = sorted(member.node_id for member in self.members.values())
            raise TimeoutError(
                f"no node offered the service {service_id!r} within {timeout:g} s; "
                f"known nodes: {', '.join(peers) or 'none but this one'}"
            )

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call something after each change of the peers and what they offer; return what ends that."""
        with self._changed:
            self._watchers = (*self._watchers, callback)

        def end() -> None:
            with self._changed:
                self._watchers = tuple(each for each in self._watchers if each is not callback)

        return end

    def tell(self) -> None:
        """Call those who watch."""
        for watcher in self._watchers:
            try:
                watcher()
            except Exception:
                _log.exception("a watcher of the bus failed")

    def _offers(self, service_id: str) -> bool:
        return service_id in self.replicas or any(info.service_id == service_id for info in self._own_infos())

    def member(self, node_id: str) -> Member | None:
        """Return the live peer of that node_id."""
        return next((m for m in self.members.values() if m.node_id == node_id), None)

    def statuses(self) -> tuple[NodeStatus, dict[str, NodeStatus]]:
        """Return this node's status, and those of its peers by node_id."""
        now = self._timers.now()
        with self._changed:
            machine = self._machine
            peers = sorted(machine.peers.values(), key=lambda peer: (peer.live, peer.last_heard))
            infos, stand_ins = dict(self._infos), dict(self._stand_ins)
            state = NodeState.LEFT if machine.passive else machine.state
        own = NodeStatus(
            machine.node_id, machine.instance, state, 0.0, tuple(self._own_infos()), frozenset(self._own_stand_ins())
        )
        others = {
            peer.node_id: NodeStatus(
                peer.node_id,
                peer.instance,
                peer.state,
                max(0.0, now - peer.last_heard),
                tuple(infos.get(peer.instance, {}).values()),
                frozenset(stand_ins.get(peer.instance, ())),
            )
            for peer in peers  # the live, latest heard one of a node_id comes last and stays
        }
        return own, others

    # Inside

    def _tick(self) -> None:
        self._step(self._machine.tick)

    def _step(self, step: Callable[..., list[Effect]], *message: object) -> None:
        machine = self._machine
        with self._changed:
            before, resumed = machine.state, machine.resumed
            effects = step(self._timers.now(), *message)
            events = machine.events
            clash = None if self._clash_told else machine.clash
            if events or clash is not None or before is not machine.state:
                machine.events = []
                self._clash_told = self._clash_told or clash is not None
                if events:
                    self._rebuild(events)
                self._changed.notify_all()
            wakeup, left_out = machine.wakeup, machine.left_out
            resumed = machine.resumed - resumed
            denied, self._denied = self._denied, []
        self._timers.set(self._timer, wakeup)
        if effects:
            sends = [effect for effect in effects if isinstance(effect, Send)]
            # Peers are answered from the queue: the receiving thread goes on receiving.
            if self._control.thread is threading.current_thread() or self.state is NodeState.LEFT:
                self._wire.carry_out(sends)
            elif len(self._control) < limits.CONTROL_JOBS:
                self._control.put(lambda: self._wire.carry_out(sends))
        self._count(denied)
        if events:
            self._on_event(events)
            if self._watchers:
                self.tell()
        if left_out > self._left_out:
            if not self._left_out:
                _log.warning("node %r: the catalogues of its peers are over the limit of %d MiB; some are not kept",
                             machine.node_id, limits.CATALOGUES >> 20)  # fmt: skip
            self._left_out = left_out
        if clash is not None:
            self._on_clash(clash)
        if resumed:
            self._on_resumed()

    def _rebuild(self, events: list[PeerEvent]) -> None:
        """Follow the machine at the cost of what changed, for a large bus joins node by node."""
        peers = self._machine.peers
        members = dict(self.members)
        changed = {event.peer.instance: event.peer for event in events}
        for event in events:
            if event.before is event.peer.state or event.before is None:
                instance = event.peer.instance
                infos, self._stand_ins[instance] = _read_infos(event.peer)
                self._infos[instance] = self._let(event.peer, infos)
            came = event.before is None and event.peer.state is NodeState.JOINING
            if came and any(member.node_id == event.peer.node_id for member in members.values()):
                self.clashes.append((event.peer.node_id, event.peer.instance))
        touched: dict[str, list[Member]] = {}  # service_id -> its members among those that changed
        for instance, peer in changed.items():
            before = members.pop(instance, None)
            for service_id in before.services if before is not None else ():
                touched.setdefault(service_id, [])
            if peer.live and instance in peers:
                stand_ins = self._stand_ins.get(instance, {})
                member = members[instance] = Member(
                    peer, self._infos.get(instance, {}), stand_ins, self._key_ids.get(instance, "")
                )
                for service_id in member.services if member.state is not NodeState.JOINING else ():
                    if not (self._natives_only and service_id in stand_ins):
                        touched.setdefault(service_id, []).append(member)
            if instance not in peers:
                self._infos.pop(instance, None)
                self._stand_ins.pop(instance, None)
        if len(self._infos) > 2 * len(peers):  # many were forgotten
            self._infos = {instance: infos for instance, infos in self._infos.items() if instance in peers}
            self._key_ids = {instance: key_id for instance, key_id in self._key_ids.items() if instance in peers}
            self._stand_ins = {instance: each for instance, each in self._stand_ins.items() if instance in peers}
        replicas, preferred = dict(self.replicas), dict(self.preferred)
        for service_id, new in touched.items():
            kept = [member for member in replicas.pop(service_id, ()) if member.instance not in changed]
            found = _best_first([*kept, *new], service_id)
            preferred.pop(service_id, None)
            if found:
                replicas[service_id] = found
                joined = [m for m in found if m.state is NodeState.JOINED]
                preferred[service_id] = [m for m in joined if service_id not in m.stand_ins] or joined or found
        self.members, self.replicas, self.preferred = members, replicas, preferred
        self._touched |= touched.keys()

    def touched(self) -> set[str]:
        """Return the services whose replicas have changed since this was called last."""
        with self._changed:
            touched, self._touched = self._touched, set()
            return touched

    def _let(self, peer: Peer, infos: dict[str, DataServiceInfo]) -> dict[str, DataServiceInfo]:
        """Return what a peer may publish of what it offers."""
        guard = self._guard
        if guard.rules is None:
            return infos
        sender = Sender(self._key_ids.get(peer.instance, ""), peer.node_id, peer.instance)
        let = {}
        for service_id, info in infos.items():
            if not guard.may_publish(sender, service_id):
                self._denied.append((sender, service_id, None))
                continue
            denied = [table for table in info.published_tables if not guard.may_publish(sender, service_id, table)]
            if denied:
                self._denied += [(sender, service_id, table) for table in denied]
                tables = {name: columns for name, columns in info.published_tables.items() if name not in denied}
                info = replace(info, published_tables=tables)
            let[service_id] = info
        return let

    def _count(self, denied: list[tuple[Sender, str, str | None]]) -> None:
        for what in denied:
            self._guard.publishes(*what)


def _best_first(members: list[Member], service_id: str) -> list[Member]:
    return sorted(members, key=lambda m: (m.state is NodeState.SUSPECT, service_id in m.stand_ins, m.instance))


def _read_infos(peer: Peer) -> tuple[dict[str, DataServiceInfo], dict[str, str]]:
    """Return what a peer offers, and for what of it it stands in."""
    infos, stand_ins = {}, {}
    for data in peer.services:
        known: dict[str, Any] = {key: data[key] for key in data if key in DataServiceInfo.__slots__}
        try:
            info = DataServiceInfo.from_dict(known)  # keys of a later release are ignored
        except ConfigError:
            continue
        if info.node_id != peer.node_id:
            continue  # nobody speaks for another node
        infos[info.service_id] = info
        if isinstance(origin := data.get(STAND_IN), str) and origin:
            stand_ins[info.service_id] = origin
    return infos, stand_ins
