"""The control bus at 10 to 10,000 nodes: the real `Membership` machines on virtual time, counted and timed.

A *full* node is a machine that hears everything, as in production. Full nodes need memory and time that grow with the
square of their number, so a large bus is *sampled*: some nodes are full, the others are *speakers*. A speaker is the
same machine and says all that it would say, but does not hear what the others say to everybody, unless they ask for an
answer; the number of live peers, on which its pace depends, it takes from a full node. What a full node receives is the
same either way.

    python -m dse.testing.simulation.scale 10 100 1000 10000:16     (nodes[:full nodes])
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dse.core.effects import Effect, Send
from dse.core.info import DataServiceInfo, MethodInfo
from dse.core.membership import ANSWERS_PER_SECOND, DEAD_AFTER, Membership, NodeState
from dse.core.messages import (
    CONTROL,
    Catalogue,
    CatalogueRequest,
    Clash,
    Heartbeat,
    Leave,
    Message,
    decode,
    encode,
    instance_address,
)

__all__ = ["Figures", "Load", "ScaleBus", "measure"]

DELAYS = (0.0005, 0.005)  # seconds on the way, drawn for each frame; frames of one node keep their order
START_SERVICES = 0.002  # seconds between having joined and offering the services
MASS_START = 10.0  # seconds within which all nodes start
RECONNECT = 1.0  # seconds within which all nodes are connected again after the broker was down
OUTAGE = 5.0  # seconds that the broker is down
VICTIMS = 8  # nodes whose deaths are timed


def catalogue(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what a usual node offers: one service with three tables and four methods."""
    columns = ("id", "host", "name", "state", "updated_at")
    info = DataServiceInfo(
        f"inventory_{number % 50}",
        f"worker-{number:05}",
        {"servers": columns, "networks": columns, "volumes": columns},
        (("policy", "rules"),),
        {
            "refresh": MethodInfo("() -> int", "Read everything again; return the number of rows."),
            "find": MethodInfo("(name: str, limit: int = 10) -> list[dict[str, str]]", "Find servers by name.", True),
            "restart": MethodInfo("(server_id: str) -> bool", "Restart a server."),
            "describe": MethodInfo("(server_id: str) -> dict[str, str]", "Return all that is known of one.", True),
        },
    )
    return [info.to_dict()], []


class SimulatedNode:
    """One machine, what it received, and whom it knows completely: JOINED, with a catalogue."""

    def __init__(self, number: int, instance: str, machine: Membership, full: bool) -> None:
        self.number = number
        self.instance = instance
        self.machine = machine
        self.full = full
        self.alive = self.connected = True
        self.offers = True  # it has services
        self.wake = math.inf  # when the bus looks at it next
        self.frame_at = 0.0  # when its last frame arrives
        self.messages = self.bytes = 0  # received at its own address
        self.complete: set[str] = set()
        self.handlers: dict[type, Callable[[float, Any], list[Effect]]] = {
            Heartbeat: machine.heartbeat,
            Catalogue: machine.catalogue_of,
            CatalogueRequest: machine.catalogue_request,
            Leave: machine.left,
            Clash: machine.clashed,
        }


@dataclass(frozen=True)
class Load:
    """What one node receives in a second, over whole seconds: `messages` and `bytes` in the mean, and the most."""

    messages: float
    most_messages: int
    bytes: float
    most_bytes: int


class ScaleBus:
    """A bus of `nodes` nodes, `full` of them full (default all), seeded, in virtual time."""

    def __init__(self, nodes: int, full: int | None = None, seed: int = 1, base_interval: float = 1.0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.base_interval = base_interval
        self.nodes: dict[str, SimulatedNode] = {}
        self.full: list[SimulatedNode] = []
        self.speakers: list[SimulatedNode] = []
        self.fanouts = self.fanout_bytes = 0  # sent to everybody
        self.asked_and_told = 0  # catalogues, and requests for them, sent
        self.watched: set[str] = set()
        self.noted_of: dict[NodeState, list[tuple[float, str]]] = {}  # state -> (when a full node knew, who is in it)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._most_full = nodes if full is None else full
        for _ in range(nodes):
            self.add(full=len(self.full) < self._most_full)

    # Nodes

    def add(self, full: bool = True) -> SimulatedNode:
        """Make one more node, which has not started."""
        number = len(self.nodes)
        instance = f"worker-{number:05}/{self.random.getrandbits(128):032x}"
        rng = random.Random(self.random.random())
        machine = Membership(f"worker-{number:05}", instance, self.base_interval, lambda: catalogue(number), rng)
        node = self.nodes[instance] = SimulatedNode(number, instance, machine, full)
        (self.full if full else self.speakers).append(node)
        return node

    def start(self, node: SimulatedNode) -> None:
        """Let a node join; it offers its services once it has."""
        self._step(node, node.machine.start)

    def establish(self) -> None:
        """Make all nodes know each other, as if long ago, with their heartbeats evenly at random."""
        everybody = list(self.nodes.values())
        for node in everybody:
            node.machine.start(self.now)
            node.machine.state = NodeState.JOINED
            node.machine.changed(self.now)
        # What each says with everybody known: a catalogue promises the interval.
        for node in everybody:
            node.machine._live = len(everybody) - 1
        said = [(node, node.machine._catalogue(self.now)) for node in everybody]
        for node in everybody:
            node.machine._live = 0
        for node in self.full:
            for other, message in said:
                if other is not node:
                    node.machine.catalogue_of(self.now, message)
            node.complete = {other.instance for other, _ in said if other is not node}
            node.machine.events.clear()
        for node in everybody:
            self._follow(node)
            node.machine._beat_at = self.now + self.random.random() * node.machine._jittered()
            self._schedule(node)

    def kill(self, node: SimulatedNode) -> None:
        """End a node without a word."""
        node.alive = False

    def disconnect(self) -> None:
        """Take the bus down: what is on its way is lost."""
        for node in self.nodes.values():
            node.connected = False
            node.machine.disconnected()

    def connect(self, node: SimulatedNode) -> None:
        """Give one node its connection back."""
        node.connected = True
        self._step(node, node.machine.connected)

    def leave(self, node: SimulatedNode) -> None:
        """Let a node say goodbye and end."""
        self._step(node, lambda now: node.machine.leave())
        node.alive = False
        (self.full if node.full else self.speakers).remove(node)

    def watch(self, *nodes: SimulatedNode) -> None:
        """Note from now on when full nodes learn that one is JOINED (with its catalogue), SUSPECT, DEAD or LEFT."""
        self.watched = {node.instance for node in nodes}
        self.noted_of = {state: [] for state in NodeState}

    @property
    def noted(self) -> dict[NodeState, list[float]]:
        """Return when full nodes learned each state of what is watched."""
        return {state: [at for at, _ in times] for state, times in self.noted_of.items()}

    # Time

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do something at a time."""
        self._order += 1
        heapq.heappush(self._due, (when, self._order, do))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        due = self._due
        while due and due[0][0] <= end:
            at, _, do = heapq.heappop(due)
            self.now = max(self.now, at)
            do()
        self.now = end

    def when(self, done: Callable[[], bool], every: float = 0.1) -> Callable[[], float]:
        """Look every so often, from now on, whether something holds; return what tells when it first did (or inf)."""
        found = [math.inf]

        def look() -> None:
            if done():
                found[0] = self.now
            else:
                self.at(self.now + every, look)

        look()
        return lambda: found[0]

    def load(self, seconds: int, nodes: list[SimulatedNode] | None = None) -> Load:
        """Let whole seconds pass; return what the given full nodes, or all, received in one."""
        nodes = nodes or self.full
        messages: list[int] = []
        sizes: list[int] = []
        for _ in range(seconds):
            before = self.fanouts, self.fanout_bytes, [(node.messages, node.bytes) for node in nodes]
            self.run(1.0)
            for node, (direct, direct_bytes) in zip(nodes, before[2], strict=True):
                if node.alive:
                    messages.append(self.fanouts - before[0] + node.messages - direct)
                    sizes.append(self.fanout_bytes - before[1] + node.bytes - direct_bytes)
        return Load(statistics.fmean(messages), max(messages), statistics.fmean(sizes), max(sizes))

    def settled(self) -> bool:
        """Whether each full node knows exactly the nodes that live, and what they offer."""
        alive = sum(node.alive for node in self.nodes.values())
        return all(len(node.complete) == alive - 1 == node.machine._live for node in self.full if node.alive)

    # Inside

    def _follow(self, node: SimulatedNode) -> None:
        if not node.full:
            node.machine._live = next(full.machine._live for full in self.full if full.alive)

    def _schedule(self, node: SimulatedNode) -> None:
        wakeup = max(self.now, node.machine.wakeup)
        if wakeup < node.wake:
            node.wake = wakeup
            self.at(wakeup, lambda: self._tick(node, wakeup))

    def _tick(self, node: SimulatedNode, wakeup: float) -> None:
        if node.wake != wakeup or not node.alive:
            return
        node.wake = math.inf
        if node.machine.wakeup <= self.now:
            self._follow(node)
            self._step(node, node.machine.tick)
        else:
            self._schedule(node)

    def _hear(self, node: SimulatedNode, message: Message) -> None:
        effects = node.handlers[type(message)](self.now, message)
        if effects or node.machine.events:
            self._carry_out(node, effects or [])
        self._schedule(node)

    def _step(self, node: SimulatedNode, do: Callable[[float], list[Effect]]) -> None:
        before = node.machine.state
        self._carry_out(node, do(self.now))
        if before is NodeState.JOINING and node.machine.state is NodeState.JOINED and node.offers:
            self.at(self.now + START_SERVICES, lambda: self._step(node, node.machine.changed))
        self._schedule(node)

    def _carry_out(self, node: SimulatedNode, effects: list[Effect]) -> None:
        events, node.machine.events = node.machine.events, []
        if node.full:
            for event in events:
                peer = event.peer
                known = peer.state is NodeState.JOINED and peer.services
                if known:
                    node.complete.add(peer.instance)
                elif not peer.live:
                    node.complete.discard(peer.instance)
                if peer.instance in self.watched and (known or peer.state is not NodeState.JOINED):
                    self.noted_of[peer.state].append((self.now, peer.instance))
        for effect in effects:
            assert isinstance(effect, Send)
            assert not isinstance(effect.message, bytes)
            self._send(node, effect.address == CONTROL, effect)

    def _send(self, sender: SimulatedNode, everybody: bool, effect: Send) -> None:
        if not sender.connected:
            return
        assert not isinstance(effect.message, bytes)
        frame = encode(effect.message)
        self.asked_and_told += isinstance(effect.message, Catalogue | CatalogueRequest)
        at = sender.frame_at = max(sender.frame_at, self.now + self.random.uniform(*DELAYS))
        if everybody:
            self.at(at, lambda: self._fan_out(sender, frame))
        else:
            instance = effect.address.name.removeprefix(instance_address("").name)
            self.at(at, lambda: self._deliver(instance, frame))

    def _fan_out(self, sender: SimulatedNode, frame: bytes) -> None:
        message = decode(frame)
        self.fanouts += 1
        self.fanout_bytes += len(frame)
        if self.speakers:
            # First: a full node that heard it counts the newcomer already.
            self._tell_speakers(sender, message)
        kind, now = type(message), self.now
        for node in self.full:  # `_hear`, without its calls: this is where the time goes
            if node.alive and node.connected:
                machine = node.machine
                effects = node.handlers[kind](now, message)
                if effects or machine.events:
                    self._carry_out(node, effects or [])
                if machine.wakeup < node.wake:
                    self._schedule(node)

    def _tell_speakers(self, sender: SimulatedNode, message: Message) -> None:
        if isinstance(message, CatalogueRequest) or (isinstance(message, Heartbeat) and message.joining):
            for node in self.speakers:
                if node.alive and node.connected:
                    self._follow(node)
                    self._hear(node, message)
        elif not sender.full and sender.connected and sender.alive:
            self._hear(sender, message)

    def _deliver(self, instance: str, frame: bytes) -> None:
        node = self.nodes[instance]
        if node.alive and node.connected:
            node.messages += 1
            node.bytes += len(frame)
            self._hear(node, decode(frame))


@dataclass(frozen=True)
class Figures:
    """What was measured on a bus of `nodes` nodes, `full` of them full.

    Times are in seconds from the event on; the last full node to know counts where there is one figure.
    """

    nodes: int
    full: int
    interval: float
    heartbeat_bytes: int
    catalogue_bytes: int
    steady: Load
    cpu: float  # CPU seconds of a full node in a second, decoding included
    join: float  # until all know the newcomer and its catalogue
    joiner_knows_all: float  # until the newcomer knows all and their catalogues
    joiner: Load  # what the newcomer received until then
    join_sent: float  # catalogues and requests for them that one join caused, for each node of the bus
    leave: float
    suspect: tuple[float, float]  # until all know: the median and the longest of some deaths
    dead: tuple[float, float]
    outage: Load  # after the broker was down, until all have spoken again
    outage_doubted: int  # nodes that were taken for SUSPECT or DEAD because of it
    half_dead: Load  # when half of the nodes die at once
    half_dead_settled: float
    start: Load | None = None  # when all start within `MASS_START` seconds
    start_settled: float | None = None

    @property
    def most_messages(self) -> dict[str, int]:
        """Return the most messages that a node received in a second, by what happened."""
        loads = {
            "steady": self.steady,
            "one node joins": self.joiner,
            "broker restart": self.outage,
            "half of the nodes die": self.half_dead,
            "all nodes start": self.start,
        }
        return {name: load.most_messages for name, load in loads.items() if load is not None}


def measure(nodes: int, full: int | None = None, seed: int = 1) -> Figures:
    """Take all figures of one size. Only a bus of full nodes is started from nothing: speakers hear too little."""
    bus = ScaleBus(nodes, full, seed)
    bus.establish()
    found = _steady(bus)
    joiner = bus.add()
    found |= _join(bus, joiner)
    found |= {"leave": _leave(bus, joiner)}
    found |= _deaths(bus)
    found |= _outage(bus)
    found |= _half_dies(bus)
    if not bus.speakers:
        found |= _mass_start(ScaleBus(nodes, full, seed))
    return Figures(nodes=nodes, full=nodes if full is None else full, **found)


def _steady(bus: ScaleBus) -> dict[str, Any]:
    machine = bus.full[0].machine
    frame = encode(machine._heartbeat(bus.now).message)  # type: ignore[arg-type]
    bus.run(1.0)
    seconds = max(10, 320 // len(bus.full))
    began = time.process_time()
    load = bus.load(seconds)
    cpu = (time.process_time() - began) / seconds / len(bus.full)
    began = time.process_time()
    for _ in range(1000):
        decode(frame)
    return {
        "interval": machine.interval,
        "heartbeat_bytes": len(frame),
        "catalogue_bytes": len(encode(machine._catalogue(bus.now))),
        "steady": load,
        "cpu": cpu + (time.process_time() - began) / 1000 * load.messages,  # the bus decodes once for all
    }


def _join(bus: ScaleBus, joiner: SimulatedNode) -> dict[str, Any]:
    others, began = len(bus.nodes) - 1, bus.now
    bus.watch(joiner)
    sent = bus.asked_and_told
    bus.start(joiner)
    known = bus.when(lambda: len(joiner.complete) == others)
    load = bus.load(math.ceil(1.5 * bus.full[0].machine.interval) + 1, [joiner])
    return {
        "join": max(bus.noted[NodeState.JOINED]) - began,
        "joiner_knows_all": known() - began,
        "joiner": load,
        "join_sent": (bus.asked_and_told - sent) / others,
    }


def _leave(bus: ScaleBus, node: SimulatedNode) -> float:
    began = bus.now
    bus.watch(node)
    bus.leave(node)
    bus.run(1.0)
    return max(bus.noted[NodeState.LEFT]) - began


def _deaths(bus: ScaleBus) -> dict[str, Any]:
    """Kill some nodes, a while apart: how soon a death is known depends on when the node was last heard."""
    interval = bus.full[0].machine.interval
    found: dict[NodeState, list[float]] = {NodeState.SUSPECT: [], NodeState.DEAD: []}
    victims = bus.speakers[:VICTIMS] or bus.full[-min(VICTIMS, len(bus.full) // 3) :]
    killed = {victim.instance: bus.now + interval * bus.random.random() for victim in victims}
    for victim in victims:
        bus.at(killed[victim.instance], partial(bus.kill, victim))
    bus.watch(*victims)
    bus.run((DEAD_AFTER + 1) * interval + 0.1)
    for state, times in found.items():
        for instance, at in killed.items():
            times.append(max(when for when, who in bus.noted_of[state] if who == instance) - at)
    return {
        "suspect": (statistics.median(found[NodeState.SUSPECT]), max(found[NodeState.SUSPECT])),
        "dead": (statistics.median(found[NodeState.DEAD]), max(found[NodeState.DEAD])),
    }


def _outage(bus: ScaleBus) -> dict[str, Any]:
    alive = [node for node in bus.nodes.values() if node.alive]
    bus.watch(*alive)
    bus.disconnect()
    bus.run(OUTAGE)
    for node in alive:
        bus.at(bus.now + bus.random.random() * RECONNECT, partial(bus.connect, node))
    load = bus.load(math.ceil(RECONNECT + 3 * bus.full[0].machine.interval))
    doubted = {who for state in (NodeState.SUSPECT, NodeState.DEAD) for _, who in bus.noted_of[state]}
    return {"outage": load, "outage_doubted": len(doubted)}


def _half_dies(bus: ScaleBus) -> dict[str, Any]:
    alive = [node for node in bus.nodes.values() if node.alive and node is not bus.full[0]]
    began, interval = bus.now, bus.full[0].machine.interval
    for node in bus.random.sample(alive, len(alive) // 2):
        bus.kill(node)
    settled = bus.when(bus.settled)
    return {
        "half_dead": bus.load(math.ceil((DEAD_AFTER + 1) * interval) + 1),
        "half_dead_settled": settled() - began,
    }


def _mass_start(bus: ScaleBus) -> dict[str, Any]:
    for node in bus.full:
        bus.at(bus.random.random() * MASS_START, partial(bus.start, node))
    settled = bus.when(bus.settled)
    load = bus.load(math.ceil(MASS_START + 1.5 * len(bus.full) / ANSWERS_PER_SECOND) + 1)
    return {"start": load, "start_settled": settled()}


def main() -> None:
    """Measure the sizes named on the command line and print what was found."""
    for size in sys.argv[1:] or ["10", "100"]:
        nodes, _, full = size.partition(":")
        began = time.process_time()
        figures = measure(int(nodes), int(full) if full else None)
        for name, value in dataclasses.asdict(figures).items():
            print(f"{name:22} {value}")
        print(f"took {time.process_time() - began:.1f} s of CPU\n")


if __name__ == "__main__":
    main()
