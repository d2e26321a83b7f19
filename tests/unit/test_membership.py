"""Membership by simulation: joins, clashes, silence and forgiveness, in virtual time; the rules of membership.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.core.effects import Effect, Send
from dse.core.info import DataServiceInfo
from dse.core.membership import (
    ANSWERS_PER_SECOND,
    AT_ONCE,
    DEAD_AFTER,
    HEARTBEATS_PER_SECOND,
    JOIN_WINDOW,
    REMEMBERED,
    SAME_AGE,
    SUSPECT_AFTER,
    Membership,
    NodeState,
    PeerEvent,
)
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

INTERVAL = 1.0


class Member:
    """One node of the simulated bus."""

    def __init__(self, bus: Bus, node_id: str, instance: str, offers: list[str]) -> None:
        self.bus = bus
        self.offers = offers
        self.machine = Membership(
            node_id,
            instance,
            INTERVAL,
            lambda: ([DataServiceInfo(name, node_id).to_dict() for name in self.offers], []),
            random.Random(instance),
        )
        self.connected = True
        self.running = True  # its process gets time
        self.killed = False
        self.heard: list[tuple[float, Message]] = []
        self.events: list[tuple[float, str, NodeState | None, NodeState]] = []

    def step(self, do: Callable[[float], list[Effect] | None]) -> None:
        effects = do(self.bus.now) or []
        events, self.machine.events = self.machine.events, []
        self.events += [(self.bus.now, e.peer.instance, e.before, e.peer.state) for e in events]
        assert all(isinstance(event, PeerEvent) for event in events)
        for effect in effects:
            assert isinstance(effect, Send)
            self.bus.send(self, effect)

    def hear(self, message: Message) -> None:
        self.heard.append((self.bus.now, message))
        machine = self.machine
        if isinstance(message, Heartbeat):
            self.step(lambda now: machine.heartbeat(now, message))
        elif isinstance(message, Catalogue):
            self.step(lambda now: machine.catalogue_of(now, message))
        elif isinstance(message, CatalogueRequest):
            self.step(lambda now: machine.catalogue_request(now, message))
        elif isinstance(message, Leave):
            self.step(lambda now: machine.left(now, message))
        elif isinstance(message, Clash):
            self.step(lambda now: machine.clashed(now, message))

    def state_of(self, other: Member) -> NodeState | None:
        peer = self.machine.peers.get(other.machine.instance)
        return peer.state if peer is not None else None

    def knows(self, other: Member) -> list[str]:
        peer = self.machine.peers[other.machine.instance]
        return [service["service_id"] for service in peer.services]

    def kill(self) -> None:
        self.killed = True

    def leave(self) -> None:
        self.step(lambda now: self.machine.leave())
        self.killed = True

    def cut(self) -> None:
        self.connected = False
        self.machine.disconnected()

    def mend(self) -> None:
        self.connected = True
        self.step(self.machine.connected)


class Bus:
    """Virtual time, and a bus that delivers after a delay."""

    def __init__(self, seed: int = 0, delay: float = 0.001) -> None:
        self.now = 1000.0
        self.delay = delay
        self.random = random.Random(seed)
        self.members: list[Member] = []
        self.due: list[tuple[float, int, Member, bytes]] = []
        self.sent = 0

    def join(self, node_id: str, *offers: str, instance: str = "", start: bool = True) -> Member:
        member = Member(self, node_id, instance or f"{node_id}/{len(self.members)}", list(offers))
        self.members.append(member)
        if start:
            member.step(member.machine.start)
            member.step(member.machine.changed)
        return member

    def send(self, sender: Member, effect: Send) -> None:
        if not sender.connected or sender.killed:
            return
        assert not isinstance(effect.message, bytes)
        frame = encode(effect.message)
        for member in self.members:
            if effect.address == CONTROL or effect.address == instance_address(member.machine.instance):
                self.sent += 1
                self.due.append((self.now + self.delay, self.sent, member, frame))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            times = [at for at, *_ in self.due]
            times += [max(self.now, m.machine.wakeup) for m in self.members if m.running and not m.killed]
            at = min((t for t in times if t <= end), default=None)
            if at is None:
                self.now = end
                return
            self.now = max(self.now, at)
            due = sorted((*item[:2], item) for item in self.due if item[0] <= self.now)
            self.due = [item for item in self.due if item[0] > self.now]
            for _, _, (_, _, member, frame) in due:
                if member.connected and member.running and not member.killed:
                    member.hear(decode(frame))
            for member in self.members:
                if member.running and not member.killed and member.machine.wakeup <= self.now:
                    member.step(member.machine.tick)
                    assert member.machine.wakeup > self.now, "a tick that is due again at once"

    def run_until(self, done: Callable[[], bool], limit: float) -> float:
        """Let time pass until something holds; return how long that took."""
        began = self.now
        while not done():
            assert self.now - began <= limit, f"not within {limit} s"
            self.run(0.01)
        return self.now - began


def joined(*members: Member) -> bool:
    return all(member.machine.state is NodeState.JOINED for member in members)


def test_a_node_joins_once_it_has_heard_itself_and_nobody_objected() -> None:
    bus = Bus()
    node = bus.join("a")
    assert node.machine.state is NodeState.JOINING
    took = bus.run_until(lambda: joined(node), 1.0)
    assert JOIN_WINDOW <= took < JOIN_WINDOW + 0.05


def test_a_node_that_does_not_hear_itself_says_it_again() -> None:
    bus = Bus()
    node = bus.join("a", start=False)
    node.connected = False
    node.step(node.machine.start)
    bus.run(3.0)
    assert node.machine.state is NodeState.JOINING
    node.connected = True
    bus.run_until(lambda: joined(node), 1.0)


def test_a_joining_node_knows_everybody_and_all_they_offer_by_the_time_it_has_joined() -> None:
    bus = Bus()
    others = [bus.join(f"n{number}", f"s{number}") for number in range(5)]
    bus.run(3.0)
    newcomer = bus.join("new", "mine")
    bus.run_until(lambda: joined(newcomer), 1.0)
    assert [newcomer.knows(other) for other in others] == [[f"s{number}"] for number in range(5)]
    bus.run(0.1)
    assert all(other.state_of(newcomer) is NodeState.JOINED for other in others)
    assert all(other.knows(newcomer) == ["mine"] for other in others)


def test_a_catalogue_that_was_missed_is_asked_for() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b", "one")
    bus.run(1.0)
    b.offers.append("two")
    b.connected = False
    b.step(b.machine.changed)  # lost
    b.connected = True
    bus.run(2.5)
    assert a.knows(b) == ["one", "two"]
    asked = [m for _, m in b.heard if isinstance(m, CatalogueRequest)]
    assert len(asked) == 1


def test_silence_makes_suspect_after_three_intervals_and_dead_after_five() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b", "service")
    bus.run(5.0)
    assert a.state_of(b) is NodeState.JOINED
    b.kill()
    last = a.machine.peers[b.machine.instance].last_heard
    bus.run_until(lambda: a.state_of(b) is NodeState.SUSPECT, 10.0)
    assert bus.now - last == pytest.approx(SUSPECT_AFTER * INTERVAL, abs=0.05)
    bus.run_until(lambda: a.state_of(b) is NodeState.DEAD, 10.0)
    assert bus.now - last == pytest.approx(DEAD_AFTER * INTERVAL, abs=0.05)
    bus.run(REMEMBERED - 1)
    assert a.state_of(b) is NodeState.DEAD
    bus.run(2.0)
    assert a.state_of(b) is None


@pytest.mark.parametrize("silence", [3.5, 6.0])
def test_whoever_is_heard_again_is_what_it_was_before(silence: float) -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b", "service")
    bus.run(5.0)
    b.running = False
    bus.run(silence + INTERVAL)
    assert a.state_of(b) in (NodeState.SUSPECT, NodeState.DEAD)
    b.running = True
    bus.run(1.5)
    assert a.state_of(b) is NodeState.JOINED
    assert a.knows(b) == ["service"]
    # It did not run itself: it blames nobody for what it did not hear.
    assert b.state_of(a) is NodeState.JOINED
    assert all(state in (NodeState.JOINED, NodeState.JOINING) for _, _, _, state in b.events)


def test_a_leave_is_immediate_and_no_straggler_revives() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b")
    bus.run(2.0)
    late = Heartbeat("b", b.machine.instance, 5.0, 1.0, 0)
    b.leave()
    bus.run(0.01)
    assert a.state_of(b) is NodeState.LEFT
    a.hear(late)
    assert a.state_of(b) is NodeState.LEFT


def test_a_node_without_connection_ages_nobody() -> None:
    bus = Bus()
    a, b, c = bus.join("a"), bus.join("b"), bus.join("c")
    bus.run(3.0)
    a.cut()
    bus.run(60.0)
    assert a.state_of(b) is a.state_of(c) is NodeState.JOINED
    assert b.state_of(a) is c.state_of(a) is NodeState.DEAD
    c.kill()
    a.mend()
    bus.run(0.05)
    assert b.state_of(a) is NodeState.JOINED
    assert a.state_of(c) is NodeState.JOINED  # its silence is counted from now
    bus.run_until(lambda: a.state_of(c) is NodeState.DEAD, DEAD_AFTER * INTERVAL + 0.1)
    assert a.state_of(b) is NodeState.JOINED


def test_a_node_that_was_suspended_ages_nobody() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b")
    bus.run(3.0)
    a.running = b.running = False
    bus.run(600.0)
    a.running = b.running = True
    bus.run(10.0)
    assert all(state in (NodeState.JOINED, NodeState.JOINING) for _, _, _, state in a.events + b.events)


def test_a_joining_node_yields_to_a_joined_one_whatever_their_instances() -> None:
    for instances in (("x/1", "x/2"), ("x/2", "x/1")):
        bus = Bus()
        older = bus.join("x", instance=instances[0])
        watcher = bus.join("w")
        bus.run(1.0)
        younger = bus.join("x", instance=instances[1])
        bus.run(1.0)
        assert younger.machine.clash == older.machine.instance
        assert younger.machine.state is NodeState.JOINING
        assert older.machine.clash is None
        assert watcher.state_of(older) is NodeState.JOINED


@given(st.permutations(["x/1", "x/2", "x/3"]), st.lists(st.floats(0, 0.4), min_size=2, max_size=2))
@settings(max_examples=60, deadline=None)
def test_of_several_that_join_at_once_exactly_one_stays(instances: list[str], pauses: list[float]) -> None:
    bus = Bus()
    nodes = [bus.join("x", instance=instances[0])]
    for instance, pause in zip(instances[1:], pauses, strict=True):
        bus.run(pause)
        nodes.append(bus.join("x", instance=instance))
    bus.run(3.0)
    assert sum(node.machine.clash is None for node in nodes) == 1
    (stays,) = (node for node in nodes if node.machine.clash is None)
    assert joined(stays)


@pytest.mark.parametrize("order", [("x/1", "x/2"), ("x/2", "x/1")])
def test_of_two_that_joined_apart_the_younger_stops(order: tuple[str, str]) -> None:
    bus = Bus()
    older = bus.join("x", instance=order[0])
    bus.run(SAME_AGE * 5)
    older.cut()
    younger = bus.join("x", instance=order[1])
    bus.run(20.0)
    assert joined(older, younger)
    older.mend()
    bus.run(3.0)
    assert younger.machine.clash == older.machine.instance
    assert older.machine.clash is None


def test_a_new_life_that_has_joined_proves_that_the_old_one_is_gone() -> None:
    bus = Bus()
    watcher, first = bus.join("w"), bus.join("x", instance="x/old")
    bus.run(2.0)
    first.kill()
    second = bus.join("x", instance="x/new")
    bus.run_until(lambda: watcher.state_of(second) is NodeState.JOINED, 1.0)
    assert watcher.state_of(first) is NodeState.DEAD


def test_the_interval_grows_with_the_number_of_nodes() -> None:
    machine = Membership("a", "a/1", 1.0, lambda: ([], []))
    machine.start(0.0)
    assert machine.interval == 1.0
    for number in range(1000):
        machine.heartbeat(0.1, Heartbeat(f"n{number}", f"n{number}/1", 1.0, 1.0, 0))
    assert machine.interval == pytest.approx(1001 / HEARTBEATS_PER_SECOND)
    for number in range(1000):
        machine.left(0.2, Leave(f"n{number}", f"n{number}/1"))
    assert machine.interval == 1.0


def test_a_promise_is_kept_although_the_bus_shrank_since_the_heartbeat_was_set() -> None:
    machine = Membership("a", "a/1", 1.0, lambda: ([], []))
    peers = [(f"n{number}", f"n{number}/1") for number in range(50 * HEARTBEATS_PER_SECOND)]
    machine.start(0.0)
    machine.heartbeat(0.0, Heartbeat("a", "a/1", 0.0, 1.0, 0, True))
    for node_id, instance in peers:
        machine.heartbeat(0.1, Heartbeat(node_id, instance, 1.0, 50.0, 0))
    (told,) = machine.tick(JOIN_WINDOW + 0.1) + machine.changed(JOIN_WINDOW + 0.1)
    for node_id, instance in peers[1:]:
        machine.left(1.0, Leave(node_id, instance))
    assert machine.interval == INTERVAL
    (answer,) = machine.catalogue_request(2.0, CatalogueRequest(peers[0][1]))
    assert isinstance(told, Send)
    assert isinstance(told.message, Catalogue)
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Catalogue)
    beats = [effect for effect in machine.tick(2.0 + answer.message.interval) if isinstance(effect, Send)]
    assert any(isinstance(beat.message, Heartbeat) for beat in beats)
    assert answer.message.interval > 0.8 * told.message.interval


def test_a_promise_that_makes_no_sense_is_not_believed() -> None:
    machine = Membership("a", "a/1", 1.0, lambda: ([], []))
    machine.start(0.0)
    for number, interval in enumerate((float("nan"), float("inf"), -1.0, 0.0, 1e300)):
        machine.heartbeat(0.0, Heartbeat("b", f"b/{number}", 1.0, interval, 0))
        assert 0.01 <= machine.peers[f"b/{number}"].interval <= 3600.0


class Chaos:
    """Random joins, kills, leaves, cuts and stalls."""

    def __init__(self, seed: int) -> None:
        self.bus = Bus(seed, delay=0.002)
        self.random = random.Random(seed)
        self.lives = 0

    def step(self) -> None:
        alive = [m for m in self.bus.members if not m.killed]
        choice = self.random.random()
        if len(alive) < 3 or (choice < 0.3 and len(alive) < 8):
            self.lives += 1
            self.bus.join(f"n{self.random.randrange(8)}", f"s{self.lives}", instance=f"i/{self.random.random()}")
        elif choice < 0.4:
            self.random.choice(alive).kill()
        elif choice < 0.5:
            self.random.choice(alive).leave()
        else:
            one = self.random.choice(alive)
            if choice < 0.65:
                one.cut()
            elif choice < 0.8:
                one.running = False
        self.bus.run(self.random.choice([0.05, 0.5, 3.0, 8.0]))
        for member in self.bus.members:
            if member.machine.clash is not None and not member.killed:
                member.leave()
            if self.random.random() < 0.5:
                member.running = True
                if not member.connected and not member.killed:
                    member.mend()


@pytest.mark.parametrize("seed", range(25))
def test_after_any_chaos_everybody_knows_exactly_who_lives_and_what_they_offer(seed: int) -> None:
    chaos = Chaos(seed)
    bus = chaos.bus
    for _ in range(30):
        chaos.step()
    for member in bus.members:
        member.running = True
        if not member.connected and not member.killed:
            member.mend()
    for _ in range(5):
        bus.run(5.0)
        for member in bus.members:
            if member.machine.clash is not None and not member.killed:
                member.leave()
    alive = [member for member in bus.members if not member.killed]
    assert alive
    names = [member.machine.node_id for member in alive]
    assert len(set(names)) == len(names)
    assert joined(*alive)
    for member in alive:
        live = {instance for instance, peer in member.machine.peers.items() if peer.live}
        assert live == {other.machine.instance for other in alive if other is not member}
        for other in alive:
            if other is not member:
                assert member.knows(other) == other.offers


def test_events_tell_every_change_of_state() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b")
    bus.run(2.0)
    b.kill()
    bus.run(6.0)
    states: list[Any] = [state for _, _, before, state in a.events if before is not state]
    assert states == [NodeState.JOINING, NodeState.JOINED, NodeState.SUSPECT, NodeState.DEAD]


def observe(bus: Bus) -> Member:
    """Start a passive observer."""
    observer = bus.join("observer", start=False)
    observer.machine.passive = True
    observer.step(observer.machine.start)
    return observer


@pytest.mark.parametrize("nodes", [0, 5, 80])
def test_an_observer_knows_everybody_and_nobody_knows_it(nodes: int) -> None:
    bus = Bus()
    others = [bus.join(f"n{number}", f"s{number}") for number in range(nodes)]
    bus.run(1.0 if nodes < 100 else 4.0)
    began, observer = bus.now, observe(bus)
    bus.run_until(lambda: joined(observer), 1.0)
    bus.run(nodes / ANSWERS_PER_SECOND)
    assert [observer.knows(other) for other in others] == [[f"s{number}"] for number in range(nodes)]
    answers = [at for at, message in observer.heard if isinstance(message, Catalogue)]
    if nodes > AT_ONCE:  # a large bus does not answer all at once
        assert max(answers) - min(answers) > 0.7 * nodes / ANSWERS_PER_SECOND
    bus.run(3.0)
    observer.leave()
    bus.run(3.0)
    assert all(other.state_of(observer) is None for other in others)
    assert all(at < began or not isinstance(m, Leave) for other in others for at, m in other.heard)


def test_an_observer_ages_its_peers_and_survives_an_outage() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b")
    bus.run(2.0)
    observer = observe(bus)
    bus.run(30.0)
    assert observer.state_of(a) is observer.state_of(b) is NodeState.JOINED
    b.kill()
    bus.run_until(lambda: observer.state_of(b) is NodeState.DEAD, DEAD_AFTER * INTERVAL + 0.1)
    observer.cut()
    c = bus.join("c", "new")
    bus.run(20.0)
    assert observer.state_of(a) is NodeState.JOINED
    observer.mend()
    bus.run(0.1)
    assert observer.knows(c) == ["new"]


def test_a_node_that_did_not_run_says_so() -> None:
    bus = Bus()
    a, b = bus.join("a"), bus.join("b")
    bus.run(10.0)
    assert a.machine.resumed == b.machine.resumed == 0
    b.running = False
    bus.run(6.0)
    b.running = True
    bus.run(1.0)
    assert (a.machine.resumed, b.machine.resumed) == (0, 1)
