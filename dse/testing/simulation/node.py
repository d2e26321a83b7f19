"""A simulated node: the real `Node`, `Runtime` and services, on a virtual engine and network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dse.core.membership import DEAD_AFTER, NodeState, PeerEvent
from dse.core.messages import Heartbeat, Message
from dse.core.methods import rpc
from dse.core.node import JOIN_PATIENCE, Node
from dse.core.replica import ReplicaState
from dse.core.runtime import Runtime
from dse.core.service import DataService
from dse.core.table import Table
from dse.core.transport import Address, ConnectionState, Transport
from dse.errors import NodeIdClash
from dse.testing.simulation.checks import RuleBroken
from dse.testing.simulation.clock import Process, VirtualEngine
from dse.testing.simulation.network import URL, Link

if TYPE_CHECKING:
    from dse.testing.simulation.simulation import Simulation

__all__ = ["VirtualNode", "VirtualService", "service_class"]

POLL = 0.05  # seconds between two looks whether a node has joined


class VirtualService(DataService):
    """A service that publishes tables and counts what is asked of it."""

    simulation: Simulation

    def on_start(self) -> None:
        self.watched: dict[str, bool] = {}

    def on_first_subscriber(self, table: str) -> None:
        self._hook(table, True)

    def on_last_unsubscribe(self, table: str) -> None:
        self._hook(table, False)

    def _hook(self, table: str, first: bool) -> None:
        if self.watched.get(table, False) is first:
            raise RuleBroken(f"{self.service_id}.{table}: two {'first' if first else 'last'} subscribers in a row")
        self.watched[table] = first

    @rpc
    def work(self, token: int) -> int:
        return self.simulation.worked(token)

    @rpc(idempotent=True)
    def again(self, token: int) -> int:
        return self.simulation.worked(token)


_classes: dict[int, type[VirtualService]] = {}


def service_class(tables: int) -> type[VirtualService]:
    """Return the class of services that publish so many tables."""
    if tables not in _classes:
        body: dict[str, Any] = {f"t{number}": Table("number", "value") for number in range(tables)}
        _classes[tables] = type(f"Service{tables}", (VirtualService,), body)
    return _classes[tables]


class VirtualRuntime(Runtime):
    """The real runtime, which also remembers whose heartbeats reached it, to judge what it believes."""

    def __init__(self, node: VirtualNode, engine: VirtualEngine) -> None:
        self.heard: dict[str, tuple[float, float]] = {}  # instance -> when a heartbeat came, and what it promised
        self.blind_until = 0.0  # it could not hear, and knows it: nobody's silence counts from before
        super().__init__(node, engine)

    def deliver(self, address: Address, message: Message) -> None:
        if type(message) is Heartbeat:
            self.heard[message.instance] = (self.timers.now(), message.interval)
        self._dispatch(address, message)

    def _state_changed(self, state: ConnectionState) -> None:
        if self.joined:  # the first time there was nobody yet whose silence could count
            self.blind_until = self.timers.now()
        super()._state_changed(state)

    def _peers_changed(self, events: list[PeerEvent]) -> None:
        for event in events:
            peer = event.peer
            if peer.state is NodeState.DEAD and event.before is not NodeState.DEAD:
                self._check_death(peer.instance, peer.node_id)
        super()._peers_changed(events)

    def _check_death(self, instance: str, node_id: str) -> None:
        at, interval = self.heard.get(instance, (0.0, 0.0))
        silent = self.timers.now() - max(at, self.blind_until)
        others = {peer.instance for peer in self.control_bus._machine.peers.values() if peer.node_id == node_id}
        if silent < DEAD_AFTER * interval - 1e-6 and len(others) < 2:
            raise RuleBroken(
                f"{self.node.node_id} declares {instance} dead after {silent:.2f} s of silence, "
                f"but it promised to be heard every {interval:g} s"
            )


class VirtualNode(Node):
    """One life of a node at a place of the simulated bus."""

    def __init__(self, simulation: Simulation, place: int, node_id: str) -> None:
        self.simulation = simulation
        self.place = place
        self.process = Process()
        self.ended = ""  # why it is over: crash, leave, clash
        self.clash_winner = ""
        self.instance = ""
        self.ready = False  # joined, and its services run
        super().__init__(URL, node_id=node_id, heartbeat_interval=simulation.history.interval)

    def begin(self) -> None:
        """What `Node.start` does, without waiting. Raises `TransportUnavailable`."""
        runtime = self._runtime = self._make_runtime()
        runtime.open()
        self._await_joined(self.simulation.clock.now + JOIN_PATIENCE)

    def _await_joined(self, deadline: float) -> None:
        clock = self.simulation.clock

        def look(_: None) -> None:
            self.process.run(lambda: self._await_joined(deadline))

        runtime = self._runtime
        if runtime is None or self.ended:
            return
        if self._clash is not None or clock.now > deadline:
            self.simulation.start_failed(self)
        elif runtime.control_bus.state is NodeState.JOINED:
            for service in list(self._services.values()):
                self._start_service(service)
            self.ready = True
            self.simulation.started(self)
        else:
            clock.at(clock.now + POLL, look)

    def clashed(self, other: str) -> None:
        self._clash = NodeIdClash(f"clash with {other}")
        self.clash_winner = other
        if self.ready:
            self.simulation.clock.soon(lambda: self.simulation.clashed(self))

    @property
    def link(self) -> Link:
        """Its connection."""
        transport = self.runtime.transport
        assert isinstance(transport, Link)
        return transport

    def check(self) -> None:
        """Look at what must hold at any time."""
        runtime = self.runtime
        for (service, table), shared in runtime.hub._shared.items():
            machine = shared.machine
            if machine.state is not ReplicaState.LIVE:
                continue
            own = machine.publisher == runtime.instance
            # The runtime learns of the connection a little after it is back and brings messages.
            if not own and not runtime.connected and not self.link.up:
                raise RuleBroken(f"{self.node_id}: {service}.{table} is LIVE without a connection")
            if machine.publisher not in runtime._publishers_of(service, table):
                raise RuleBroken(f"{self.node_id}: {service}.{table} is LIVE without a publisher")
            if machine.columns and machine._asking:
                raise RuleBroken(f"{self.node_id}: {service}.{table} is LIVE while it asks")

    def _load_driver(self) -> Callable[..., Transport]:
        return lambda url, bus, events: self.simulation.link(self, events)

    def _make_runtime(self) -> VirtualRuntime:
        history = self.simulation.history
        rng = self.simulation.random
        engine = VirtualEngine(
            self.simulation.clock,
            self.process,
            rng.getrandbits(64),
            history.sluggish,
            lambda: rng.random() * history.duration,
        )
        runtime = VirtualRuntime(self, engine)
        runtime.publisher.sizes = history.sizes
        return runtime
