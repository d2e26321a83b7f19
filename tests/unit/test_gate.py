"""Gates on a bus that an attacker plays with: what they let through, whatever comes, in whatever order."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from dse.core import gate as gate_module
from dse.core import seal
from dse.core.effects import Send
from dse.core.figures import Traffic
from dse.core.gate import FORGET_AFTER, Gate
from dse.core.keys import Key, new_key, parse_keys
from dse.core.messages import (
    CONTROL,
    Greet,
    Greeted,
    Leave,
    decode,
    encode,
    instance_address,
    service_address,
    table_address,
)
from dse.core.seal import KeyRing
from dse.core.sender import Sender
from dse.core.threads import SerialQueue, Timer, Timers
from dse.core.transport import Address, ConnectionState, Delivery

K1, K2 = parse_keys([new_key("k1"), new_key("k2")])


class World:
    """Virtual time, and the bus: every frame that was ever sent is recorded, and travels when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, int, Timer]] = []
        self.numbers = itertools.count()
        self.nodes: list[Peer] = []
        self.recorded: list[tuple[Address, bytes]] = []
        self.on_the_way: list[tuple[Address, bytes]] = []

    def send(self, address: Address, frame: bytes) -> None:
        self.recorded.append((address, frame))
        self.on_the_way.append((address, frame))

    def deliver(self, place: int = 0) -> None:
        self.show(*self.on_the_way.pop(place))

    def show(self, address: Address, frame: bytes) -> None:
        for node in list(self.nodes):
            if address.delivery is not Delivery.DIRECT or address == instance_address(node.instance):
                node.gate.received(address, frame)

    def settle(self) -> None:
        """Let everything arrive, in order."""
        while self.on_the_way:
            self.deliver()

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.due and self.due[0][0] <= until:
            at, _, timer = heapq.heappop(self.due)
            self.now = max(self.now, at)
            if timer.queued_at == at:
                timer.queued_at = math.inf
                timer.callback()
        self.now = until


class _Timers(Timers):
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    def set(self, timer: Timer, when: float) -> None:
        timer.queued_at = when
        if when < math.inf:
            heapq.heappush(self._world.due, (when, next(self._world.numbers), timer))


class _Queue(SerialQueue):
    def __init__(self) -> None: ...

    def put(self, job: Callable[[], None]) -> None:
        job()


class Peer:
    """One life of a node behind its gate; keeps what it was handed."""

    numbers = itertools.count(1)

    def __init__(self, world: World, node_id: str, keys: Sequence[Key] = (K1,), bus: str = "prod") -> None:
        self.world = world
        self.traffic = Traffic()
        self.counters: Counter[str] = Counter()
        self.node_id = node_id
        self.instance = f"{node_id}/{next(self.numbers):032x}"
        self.born = world.now
        self.taken: list[tuple[Address, str, bytes]] = []
        self.undelivered_frames: list[bytes] = []
        self.bus_size = 3
        ring = KeyRing(keys, bus)
        self.sealer = ring.sealer(self.instance, wall=lambda: world.now)
        self.gate = Gate(ring, self.sealer, self, _Timers(world), _Queue())
        world.nodes.append(self)

    def say(self, content: bytes | None = None, address: Address = CONTROL) -> bytes:
        content = content if content is not None else encode(Leave(self.node_id, f"{next(self.numbers)}"))
        self.world.send(address, self.sealer.seal(address, content))
        return content

    def tell(self, other: Peer) -> bytes:
        return self.say(address=instance_address(other.instance))

    def heard(self, content: bytes) -> int:
        return sum(each == content for _, _, each in self.taken)

    def take(self, address: Address, frame: bytes, sender: Sender, *, inline: bool = True) -> None:
        message = decode(frame)
        if isinstance(message, Greet):
            self.gate.greet(message, sender)
        elif isinstance(message, Greeted):
            self.gate.greeted(message, sender)
        else:
            self.taken.append((address, sender.instance, frame))

    def undelivered(self, address: Address, frame: bytes) -> None:
        self.undelivered_frames.append(frame)

    def state_changed(self, state: ConnectionState) -> None: ...

    def carry_out(self, sends: Sequence[Send]) -> None:
        for send in sends:
            assert not isinstance(send.message, bytes)
            self.world.send(send.address, self.sealer.seal(send.address, encode(send.message)))

    def distrust(self, kind: str) -> int:
        self.counters["untrusted_frames"] += 1
        self.counters[kind] += 1
        return self.counters[kind]

    def live(self) -> int:
        return self.bus_size


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(seal, "_gettime", lambda _: world.now)
    return world


def test_two_nodes_hear_what_they_say_to_all_from_the_first_frame_on(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    first, second = a.say(), b.say()
    world.settle()
    assert a.heard(first) == a.heard(second) == b.heard(first) == b.heard(second) == 1
    assert not a.counters
    assert not b.counters


def test_four_frames_at_most_prove_two_nodes_to_each_other(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    a.say()
    world.settle()
    b.say()
    world.settle()
    greetings = len(world.recorded) - 2
    for _ in range(20):
        a.say(), b.say()
        world.settle()
    assert len(world.recorded) - 42 == greetings <= 4


def test_a_frame_that_comes_twice_counts_once(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    to_all, to_one = a.say(), a.tell(b)
    world.settle()
    for address, frame in list(world.recorded):
        world.show(address, frame)
    assert b.heard(to_all) == b.heard(to_one) == 1
    assert b.counters["untrusted_replayed"] >= 2


def test_the_transport_is_told_which_frames_to_learn_nothing_from(world: World) -> None:
    """What the gate does not take may be anybody's: its age says nothing of its sender's clock."""
    a, b = Peer(world, "a"), Peer(world, "b")
    a.tell(b)
    address, frame = world.recorded[0]
    assert b.gate.received(address, frame) is True
    damaged = frame[:-1] + bytes((frame[-1] ^ 1,))
    for untrue in (frame, damaged, frame[:40], b"\x01\x01plain", b"\x81", b""):
        assert b.gate.received(address, untrue) is False


def test_what_was_said_before_a_node_started_does_not_count_for_it(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    old = [a.say() for _ in range(5)]
    world.settle()
    world.wait(1)
    recorded = list(world.recorded)
    new = Peer(world, "b")
    for address, frame in recorded:
        world.show(address, frame)
    world.settle()
    now = a.say()
    world.settle()
    assert not any(new.heard(content) for content in old)
    assert new.heard(now) == 1
    assert b.heard(now) == 1


def test_a_recording_of_the_dead_counts_for_nobody_new(world: World) -> None:
    dead = Peer(world, "d")
    old = dead.say()
    world.settle()
    world.nodes.remove(dead)
    world.wait(1)
    new = Peer(world, "n")
    for _ in range(100):
        world.show(*world.recorded[0])
        world.settle()
        world.wait(0.3)
    assert not new.heard(old)
    assert new.counters["untrusted_stranger"] >= 90
    assert len(world.recorded) < 12  # it greeted a few times in half a minute


def test_a_greeting_that_found_nobody_is_no_frame_of_the_node_to_mourn(world: World) -> None:
    dead, new = Peer(world, "d"), Peer(world, "n")
    world.nodes.remove(dead)
    dead.say()
    world.settle()
    (greeting,) = [each for each in world.recorded if each[0].delivery is Delivery.DIRECT]
    new.gate.undeliverable(*greeting)
    assert not new.undelivered_frames
    assert new.counters["untrusted_stranger"] == 1


def test_what_found_nobody_comes_back_opened_and_of_others_nothing_does(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    address = instance_address("gone/1")
    content = a.say(address=address)
    frame = world.recorded[-1][1]
    a.gate.undeliverable(address, frame)
    assert a.undelivered_frames == [content]
    b.gate.undeliverable(address, frame)
    a.gate.undeliverable(instance_address("gone/2"), frame)
    a.gate.undeliverable(address, b"x")
    assert b.undelivered_frames == []
    assert a.undelivered_frames == [content]


def test_what_was_sealed_before_the_greeting_came_counts_in_order(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    said = [a.say() for _ in range(10)]
    while not any(address.delivery is Delivery.DIRECT for address, _ in world.on_the_way):
        world.deliver()
    assert not b.taken
    said += [a.say() for _ in range(3)]
    world.settle()
    assert [content for _, sender, content in b.taken if sender == a.instance] == said


def test_who_does_not_answer_but_is_proved_otherwise_counts_from_there(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    before = a.say()
    world.settle()
    c = Peer(world, "c")
    world.wait(1)
    early = a.say()
    world.deliver()
    world.on_the_way.clear()  # neither the greeting nor anything else arrives
    a.tell(c)
    late = a.say()
    world.settle()
    world.wait(6)
    assert c.heard(late) == 1
    assert c.heard(before) == c.heard(early) == 0
    assert b.heard(early) == 1


@pytest.mark.parametrize(
    ("keys", "bus", "reason"),
    [((K2,), "prod", "unknown_key"), (parse_keys([new_key("k1")]), "prod", "bad_seal"), ((K1,), "test", "bad_seal")],
)
def test_another_key_other_bytes_or_another_bus_is_dropped_and_counted(
    world: World, keys: Sequence[Key], bus: str, reason: str
) -> None:
    a, other = Peer(world, "a"), Peer(world, "o", keys, bus)
    other.say()
    world.settle()
    assert not a.taken
    assert a.counters == {"untrusted_frames": 1, f"untrusted_{reason}": 1}


@pytest.mark.parametrize("frame", [b"", b"\x81", b"\x81\xff\xff", b"\x81\x00\x00", b"\x81\x00\x04\x00" + bytes(40)])
def test_what_begins_like_a_sealed_frame_and_is_none_is_dropped(world: World, frame: bytes) -> None:
    a = Peer(world, "a")
    a.gate.received(CONTROL, frame)
    assert a.counters["untrusted_frames"] == a.counters["untrusted_bad_seal"] == 1


def test_the_log_says_each_reason_once_a_minute(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, other = Peer(world, "a"), Peer(world, "o", (K2,))
    for _ in range(120):
        a.gate.received(CONTROL, b"\x01\x01junk")
        other.say()
        world.settle()
        world.wait(1)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("node 'a'")]
    assert len([line for line in lines if "not sealed" in line]) == 2
    assert len([line for line in lines if "seals with the key 'k2'; this node has: k1" in line]) == 2


def test_a_table_is_told_of_by_its_publisher_alone(world: World) -> None:
    a, b, liar = Peer(world, "a"), Peer(world, "b"), Peer(world, "liar")
    a.tell(b), liar.tell(b)
    world.settle()
    table = table_address(a.instance, "host", "sockets")
    own, false = a.say(address=table), liar.say(address=table)
    world.settle()
    assert b.heard(own) == 1
    assert b.heard(false) == 0
    assert b.counters["untrusted_impostor"] == 1


def test_an_instance_stays_with_its_key(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b", (K1, K2))
    a.tell(b)
    world.settle()
    false = KeyRing((K2,), "prod").sealer(a.instance).seal(CONTROL, encode(Leave("a", a.instance)))
    world.show(CONTROL, false)
    assert len(b.taken) == 1
    assert b.counters["untrusted_bad_seal"] == 1


def test_of_a_sender_that_was_long_silent_no_number_counts_again(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    said = [a.tell(b), a.say()]
    world.settle()
    recorded = list(world.recorded)
    world.wait(FORGET_AFTER + 100)
    assert a.instance not in b.gate._instances
    for address, frame in recorded:
        world.show(address, frame)
    assert [b.heard(content) for content in said] == [1, 1]
    again = [a.say(), a.tell(b)]
    world.settle()
    assert [b.heard(content) for content in again] == [1, 1]


def test_where_even_that_was_forgotten_an_answer_to_a_greeting_alone_proves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MOST_GONE", 0)
    a, b = Peer(world, "a"), Peer(world, "b")
    old = a.tell(b)
    world.settle()
    recorded = list(world.recorded)
    world.wait(FORGET_AFTER + 100)
    for address, frame in recorded:
        world.show(address, frame)
    assert not b.gate._instances[a.instance].proof
    world.settle()  # it greets, and is answered
    new = a.tell(b)
    world.settle()
    assert b.heard(new) == 1
    for address, frame in list(world.recorded):
        world.show(address, frame)
    world.settle()
    assert b.heard(old) == b.heard(new) == 1


def test_a_flood_of_recordings_of_the_dead_leaves_nothing_behind(world: World) -> None:
    for number in range(3000):
        dead = Peer(world, f"d{number}")
        world.nodes.remove(dead)
        dead.say()
    recorded = list(world.recorded)
    world.on_the_way.clear()
    world.wait(120)
    new, friend = Peer(world, "n"), Peer(world, "f")
    for address, frame in recorded:
        new.gate.received(address, frame)
    hello = friend.say()
    world.settle()
    assert new.heard(hello) == 1
    world.wait(30)
    assert len(new.gate._peers) <= 3
    assert not new.gate._gone


def test_what_goes_to_any_replica_proves_nothing_and_leaves_nothing_behind(world: World) -> None:
    a, b = Peer(world, "a"), Peer(world, "b")
    content = a.say(address=service_address("vault"))
    world.nodes.remove(a)
    world.settle()
    assert b.heard(content) == 1  # the node asks for it to be sent directly
    assert a.instance not in b.gate._instances


class TestAnyHistory:
    """Whatever the attacker does, no frame counts twice in one life of a node, nor one from before that."""

    @given(
        st.lists(
            st.tuples(st.sampled_from("sssttddddddrrrrbxwo"), st.integers(0, 10_000), st.integers(0, 10_000)),
            max_size=150,
        )
    )
    @settings(max_examples=300, deadline=None)
    def test_it(self, steps: list[tuple[str, int, int]]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            world = World()
            patch.setattr(seal, "_gettime", lambda _: world.now)
            lives = [Peer(world, name) for name in "abc"]
            sealed: dict[bytes, float] = {}
            for what, one, other in steps:
                node = world.nodes[one % len(world.nodes)]
                if what == "s":
                    sealed[node.say()] = world.now
                elif what == "t":
                    sealed[node.tell(lives[other % len(lives)])] = world.now
                elif what == "d" and world.on_the_way:  # in order, or not
                    world.deliver(0 if other % 3 else one % len(world.on_the_way))
                elif what == "o" and world.on_the_way:
                    world.on_the_way.pop(one % len(world.on_the_way))
                elif what == "r" and world.recorded:
                    address, frame = world.recorded[one % len(world.recorded)]
                    if other % 4 == 0:
                        address = instance_address(lives[other % len(lives)].instance)
                    world.show(address, frame)
                elif what == "x" and world.recorded:
                    address, frame = world.recorded[one % len(world.recorded)]
                    damaged = bytearray(frame)
                    damaged[other % len(damaged)] ^= 1 << other % 8
                    world.show(address, bytes(damaged))
                elif what == "b":
                    world.nodes.remove(node)
                    lives.append(Peer(world, node.node_id))
                else:
                    world.wait(one % 100 / 10 if other % 5 else one / 5)
            for address, frame in list(world.recorded):
                world.show(address, frame)
            world.settle()
            for life in lives:
                counts = Counter(content for _, _, content in life.taken)
                assert all(count == 1 for count in counts.values())
                assert all(sealed[content] >= life.born for content in counts)
            # Left alone, all who live hear each other again.
            world.settle()
            world.wait(700)
            for node in world.nodes:
                node.say()
            world.settle()
            world.wait(10)
            said = {node.instance: node.say() for node in world.nodes}
            world.settle()
            assert all(node.heard(content) == 1 for node in world.nodes for content in said.values())
