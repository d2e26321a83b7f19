"""A peer that lies: it costs bounded memory and time, and does not disturb services that it does not talk to.

The liar is a bare transport on the bus of real nodes: it sends whatever it likes and does as much of the protocol as
its lie needs. A pair of nodes that has nothing to do with it calls on all the while.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from dse import DataService, Node, Table, rpc
from dse.core import limits
from dse.core.info import DataServiceInfo
from dse.core.messages import (
    CONTROL,
    Accepted,
    BadFrame,
    Catalogue,
    CatalogueRequest,
    CatchUp,
    ChangeMessage,
    Clash,
    Failure,
    Heartbeat,
    Leave,
    Message,
    NoTable,
    Reply,
    Request,
    SnapshotBegin,
    SnapshotChunk,
    SyncRequest,
    Tip,
    UnknownCall,
    decode,
    encode,
    frame_of,
    instance_address,
    service_address,
    table_address,
)
from dse.core.plugins import open_transport
from dse.core.replica import ASKS, ReplicaState
from dse.core.transport import Address
from dse.errors import Overloaded
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import DEADLINE, eventually

PROMPT = DEADLINE / 2
"""Seconds within which calls are answered on a machine that is busy with much else: what lies would do takes more."""

BEAT = 5.0
"""Seconds between heartbeats: a busy machine is not to be taken for a dead node."""


class Victim(DataService):
    """What the liar talks to."""

    t = Table("a", "b")

    def on_start(self) -> None:
        self.let_go = threading.Event()
        self.running = 0
        self.sleeping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @rpc
    def echo(self, x: int) -> int:
        return x

    @rpc
    def slow(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    @rpc
    def hold(self) -> str:
        self.let_go.wait(DEADLINE)
        return "held"

    @rpc
    async def later(self) -> None:
        self.running += 1
        let_go = asyncio.Event()
        self.sleeping.append((asyncio.get_running_loop(), let_go))
        await let_go.wait()


class Bystander(DataService):
    @rpc
    def echo(self, x: int) -> int:
        return x


class Liar:
    """A transport without a node. heard: the messages that came to it, the latest 10,000."""

    def __init__(self, bus: Bus, node_id: str = "liar") -> None:
        self.node_id = node_id
        self.instance = f"{node_id}/{uuid.uuid4().hex}"
        self.heard: list[Message] = []
        self.answer: Callable[[Message], None] = lambda message: None
        self._transport = open_transport(bus.url, bus=bus.bus, events=self)
        self._transport.open()
        self._transport.listen(instance_address(self.instance))
        self._transport.listen(CONTROL)

    def received(self, address: Address, frame: bytes) -> None:
        try:
            message = decode(frame)
        except BadFrame:
            return
        if len(self.heard) < 10_000:
            self.heard.append(message)
        self.answer(message)

    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: object) -> None: ...

    def say(self, address: Address, message: Message | bytes) -> None:
        self._transport.send(address, message if isinstance(message, bytes) else encode(message))

    def to(self, node: Node, message: Message | bytes) -> None:
        """Send to one node."""
        self.say(instance_address(node.runtime.instance), message)

    def join(self, *services: str, interval: float = 60.0) -> None:
        """Be a node that offers services with a table ``t`` each."""
        infos = [DataServiceInfo(service, self.node_id, {"t": ("a", "b")}).to_dict() for service in services]
        self.say(CONTROL, Catalogue(self.node_id, self.instance, 5.0, interval, 1, infos))

    def count(self, kind: type) -> int:
        return sum(type(message) is kind for message in list(self.heard))

    def close(self) -> None:
        self._transport.close()


class Pair:
    """Two nodes that call each other all the while; `longest` is the longest that a call has taken."""

    def __init__(self, bus: Bus) -> None:
        self.callee = Node(
            bus.url, bus=bus.bus, heartbeat_interval=BEAT, node_id="callee", services=[Bystander("bystander")]
        )
        self.caller = Node(bus.url, bus=bus.bus, heartbeat_interval=BEAT, node_id="caller")
        self.callee.start()
        self.caller.start()
        self.caller.wait_for("bystander", DEADLINE)
        self.longest, self.calls = 0.0, 0
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        try:
            for number in itertools.count():
                began = time.monotonic()
                assert self.caller.call("bystander", "echo", {"x": number}, timeout=DEADLINE) == number
                self.longest = max(self.longest, time.monotonic() - began)
                self.calls += 1
                if self._ended.wait(0.005):
                    return
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.caller.stop()
        self.callee.stop()


class Bus(NamedTuple):
    """A bus of its own."""

    url: str
    bus: str


@pytest.fixture(params=["fake", pytest.param("redis", marks=pytest.mark.redis)])
def bus(request: pytest.FixtureRequest) -> Bus:
    if request.param == "fake":
        return fake_bus()
    broker: Broker = request.getfixturevalue("redis_server")
    return Bus(broker.url, uuid.uuid4().hex)


def fake_bus() -> Bus:
    """Return a bus for a test in which the broker makes no difference."""
    return Bus(f"fake://{uuid.uuid4().hex}", "dse")


class Site:
    """A victim, a liar and the pair."""

    def __init__(self, bus: Bus) -> None:
        self.pair = Pair(bus)
        self.service = Victim("victim")
        self.victim = Node(
            bus.url,
            bus=bus.bus,
            heartbeat_interval=BEAT,
            node_id="victim",
            services=[self.service],
            workers=2,
            max_pending=50,
        )
        self.victim.start()
        self.other = Node(
            bus.url, bus=bus.bus, heartbeat_interval=BEAT, node_id="other", services=[DataService("reader")]
        )
        self.other.start()
        self.other.wait_for("victim", DEADLINE)
        self.liar = Liar(bus)

    def is_well(self) -> None:
        """Assert that the victim serves others, and that the pair has noticed nothing."""
        assert self.other.call("victim", "echo", {"x": 5}, timeout=DEADLINE, node_id="victim") == 5
        calls = self.pair.calls
        eventually(lambda: self.pair.calls > calls + 5 or self.pair.error, "the pair goes on calling")
        assert self.pair.error is None
        assert self.pair.longest < PROMPT
        assert {"victim", "other", "callee", "caller"} <= self.victim.status().nodes.keys()

    def close(self) -> None:
        self.service.let_go.set()
        for loop, let_go in self.service.sleeping:
            loop.call_soon_threadsafe(let_go.set)
        self.liar.close()
        self.other.stop()
        self.victim.stop()
        self.pair.close()


def _site(bus: Bus) -> Iterator[Site]:
    site = Site(bus)
    try:
        yield site
        site.is_well()
    finally:
        site.close()


@pytest.fixture
def site(bus: Bus) -> Iterator[Site]:
    yield from _site(bus)


@pytest.fixture
def fake_site() -> Iterator[Site]:
    yield from _site(fake_bus())


def rows(start: int, count: int) -> frozenset[tuple[int, str]]:
    return frozenset((number, "x") for number in range(start, start + count))


# Tables


def follow(site: Site, answer: Callable[[Liar, SyncRequest], None]) -> Any:
    """Let the victim follow a table of the liar's, which answers each request to be brought up to date."""
    liar = site.liar

    def hear(message: Message) -> None:
        if type(message) is SyncRequest:
            answer(liar, message)

    liar.answer = hear
    liar.join("lies")
    site.victim.wait_for("lies", DEADLINE)
    replica = site.service.subscribe("lies", "t")
    eventually(lambda: liar.count(SyncRequest) > 0, "the liar is asked")
    return replica


def asked_within(site: Site, seconds: float) -> int:
    """Return how often the liar is asked in so many seconds from its first request on."""
    time.sleep(seconds)
    return site.liar.count(SyncRequest)


def test_a_snapshot_with_a_wrong_digest_is_never_live_and_asked_for_with_patience(site: Site) -> None:
    def lie(liar: Liar, request: SyncRequest) -> None:
        liar.to(site.victim, SnapshotBegin(request.request, "e", ("a", "b"), 1, 3, 12345))
        liar.to(site.victim, SnapshotChunk(request.request, 0, rows(0, 3)))

    replica = follow(site, lie)
    assert asked_within(site, 1.5) <= ASKS + 4
    assert replica.state is ReplicaState.SYNCING
    assert len(replica) == 0


def test_a_catch_up_with_a_wrong_digest_is_asked_for_with_patience(fake_site: Site) -> None:
    site = fake_site

    def lie(liar: Liar, request: SyncRequest) -> None:
        if request.epoch:
            liar.to(site.victim, CatchUp(request.request, request.epoch, ("a", "b"), [], request.seq, 99))
        else:
            liar.to(site.victim, SnapshotBegin(request.request, "e", ("a", "b"), 1, 0, 0))

    replica = follow(site, lie)
    replica.wait(ReplicaState.LIVE, DEADLINE)
    for seq in range(2, 60):
        liar_table = table_address(site.liar.instance, "lies", "t")
        site.liar.say(liar_table, Tip("e", seq, 0))
    assert asked_within(site, 1.0) <= ASKS + 4


@pytest.mark.parametrize("count", [2**63 - 1, limits.ROWS + 1, -1])
def test_a_snapshot_of_more_rows_than_a_table_has_is_not_begun(fake_site: Site, count: int) -> None:
    site = fake_site

    def lie(liar: Liar, request: SyncRequest) -> None:
        liar.to(site.victim, SnapshotBegin(request.request, "e", ("a", "b"), 1, count, 0))
        for index in range(20):
            liar.to(site.victim, SnapshotChunk(request.request, index, rows(index * 100, 100)))

    replica = follow(site, lie)
    assert asked_within(site, 0.5) <= ASKS + 2
    assert replica.loading is None
    assert len(replica) == 0


@pytest.mark.parametrize("lie", ["empty", "again", "beyond"])
def test_a_snapshot_without_end_is_given_up(fake_site: Site, lie: str) -> None:
    site = fake_site
    sent = 0

    def endless(liar: Liar, request: SyncRequest) -> None:
        nonlocal sent
        liar.to(site.victim, SnapshotBegin(request.request, "e", ("a", "b"), 1, 1000, 0))
        for index in range(50):
            chunk = {"empty": frozenset(), "again": rows(0, 10), "beyond": rows(index * 400, 400)}[lie]
            liar.to(site.victim, SnapshotChunk(request.request, index, chunk))
            sent += 1

    replica = follow(site, endless)
    assert asked_within(site, 0.5) <= ASKS + 2
    assert replica.state is ReplicaState.SYNCING
    assert len(replica) == 0


def test_tips_with_a_huge_seq_do_not_keep_a_replica_from_its_rows(fake_site: Site) -> None:
    site, table, liar = fake_site, fake_site.service.t, fake_site.liar
    replica = site.other.service("reader").subscribe("victim", "t")
    replica.wait(ReplicaState.LIVE, DEADLINE)
    address = table_address(site.victim.runtime.instance, "victim", "t")
    epoch = replica.version[0]
    for number in range(300):
        liar.say(address, Tip(epoch, 2**64 - 1, 0))
        liar.say(address, Tip(f"other {number}", number, 0))
        if number % 10 == 0:
            table.insert([(number, "true")])
    wanted = table.rows
    replica.wait(lambda held: held.rows == wanted and held.state is ReplicaState.LIVE, 4 * DEADLINE)


def test_changes_of_another_come_to_nothing_in_the_end(fake_site: Site) -> None:
    # Without keys anybody can say that a table changed: the next tip shows it, and the replica asks for everything.
    site = fake_site
    site.service.t.insert(rows(0, 10))
    replica = site.other.service("reader").subscribe("victim", "t")
    replica.wait(lambda held: len(held) == 10 and held.state is ReplicaState.LIVE, DEADLINE)
    epoch, seq = replica.version
    address = table_address(site.victim.runtime.instance, "victim", "t")
    site.liar.say(address, ChangeMessage(epoch, seq + 1, rows(500, 1), frozenset()))
    replica.wait(lambda held: len(held) == 11, DEADLINE)
    site.service.t.insert(rows(100, 1))
    wanted = site.service.t.rows
    replica.wait(lambda held: held.rows == wanted and held.state is ReplicaState.LIVE, 4 * DEADLINE)


def test_nobody_but_who_was_asked_can_answer_for_a_table(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    site.service.t.insert(rows(0, 10))
    replica = site.other.service("reader").subscribe("victim", "t")
    for number, request in itertools.product(range(1, 20), range(1, 20)):
        guess = (number << 32) + request
        liar.to(site.other, SnapshotBegin(guess, "e", ("a", "b"), 1, 1, 0))
        liar.to(site.other, SnapshotChunk(guess, 0, rows(900, 1)))
        liar.to(site.other, NoTable(guess))
    wanted = site.service.t.rows
    replica.wait(lambda held: held.rows == wanted and held.state is ReplicaState.LIVE, DEADLINE)


def test_subscribers_are_bounded_and_who_subscribes_already_is_served(
    fake_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = fake_site
    monkeypatch.setattr(limits, "SUBSCRIBERS", 40)
    replica = site.other.service("reader").subscribe("victim", "t")
    replica.wait(ReplicaState.LIVE, DEADLINE)
    for number in range(300):
        site.liar.to(site.victim, SyncRequest("victim", "t", f"nobody/{number}", 1))
    site.service.t.insert(rows(0, 5))
    replica.wait(lambda held: len(held) == 5, DEADLINE)
    assert site.service.t.figures()["followers"] <= 40


def test_snapshots_are_given_out_at_a_bounded_pace(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    site.service.t.insert(rows(0, 5000))
    for number in range(200):
        liar.to(site.victim, SyncRequest("victim", "t", liar.instance, number))
    site.is_well()
    assert liar.count(SnapshotBegin) <= 25


# Members


def test_a_crowd_of_node_ids_has_an_end(fake_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site, liar = fake_site, fake_site.liar
    monkeypatch.setattr(limits, "PEERS", 200)
    for number in range(400):
        liar.say(CONTROL, Heartbeat(f"n{number}", f"n{number}/1", 1.0, 3600.0, 1))
        liar.say(CONTROL, Heartbeat("many-lives", f"many-lives/{number}", 1.0, 1.0, 1))
    site.is_well()
    machine = site.victim.runtime.control_bus._machine
    eventually(lambda: len(machine.peers) >= 200, "the crowd has been heard")
    assert len(machine.peers) <= 200
    assert sum(peer.node_id == "many-lives" for peer in machine.peers.values()) <= limits.INSTANCES


def test_catalogues_are_given_out_at_a_bounded_pace(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    for _ in range(50):
        for _ in range(20):
            liar.to(site.victim, CatalogueRequest(liar.instance))
        liar.to(site.victim, CatalogueRequest(f"nobody/{uuid.uuid4().hex}"))
    site.is_well()
    assert liar.count(Catalogue) <= 400 + 5 * 80


def test_catalogues_are_kept_within_bounds(fake_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site, liar = fake_site, fake_site.liar
    monkeypatch.setattr(limits, "CATALOGUES", 200_000)
    for number in range(30):
        info = DataServiceInfo(f"s{number}", f"n{number}", {f"t{n}": ("a" * 900,) for n in range(30)}).to_dict()
        liar.say(CONTROL, Catalogue(f"n{number}", f"n{number}/1", 1.0, 60.0, 1, [info]))
    site.is_well()
    machine = site.victim.runtime.control_bus._machine
    eventually(lambda: len(machine.peers) >= 30, "all were heard")
    assert machine._catalogues <= 200_000
    assert machine.left_out > 0


def test_nobody_speaks_for_another_node(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    other, victim = site.other.runtime.instance, site.victim.runtime.instance
    info = DataServiceInfo("stolen", "other", {"t": ("a",)}).to_dict()
    liar.say(CONTROL, Catalogue("liar", liar.instance, 5.0, 60.0, 1, [info]))  # a service on another's node
    liar.say(CONTROL, Heartbeat("liar", other, 5.0, 60.0, 7))  # another's instance
    liar.say(CONTROL, Catalogue("liar", other, 5.0, 60.0, 2**63, []))
    liar.say(CONTROL, Leave("liar", other))
    liar.to(site.victim, Clash("other", victim, "liar/1"))  # of another name
    liar.to(site.victim, Clash("victim", victim, victim))  # by itself
    liar.to(site.victim, Clash("victim", other, "liar/1"))  # to another
    site.is_well()
    eventually(lambda: "liar" in site.victim.status().peers, "the liar has been heard")
    assert "stolen" not in [info.service_id for node in site.victim.status().nodes.values() for info in node.services]
    assert site.victim.status().peers["other"].state == "JOINED"
    assert site.victim.status().peers["other"].services


# Calls


def test_nobody_but_the_callee_can_answer_a_call(site: Site) -> None:
    liar = site.liar
    future = site.other.call_async("victim", "hold", timeout=DEADLINE)
    eventually(lambda: site.service.running or site.victim.runtime.server._active, "the call has come")
    for number in range(300):
        liar.to(site.other, Reply(number, msgspec.Raw(msgspec.msgpack.encode("forged"))))
        liar.to(site.other, Failure(number, "NoSuchService", "forged"))
        liar.to(site.other, Accepted(number, liar.instance, "liar"))
        liar.to(site.other, UnknownCall(number, site.victim.runtime.instance))
    assert not future.done()
    site.service.let_go.set()
    assert future.result(DEADLINE) == "held"


def test_who_asks_faster_than_is_served_is_refused_before_others_are(site: Site) -> None:
    liar = site.liar
    args = msgspec.Raw(msgspec.msgpack.encode({"seconds": 0.01}))
    stop = threading.Event()

    def flood() -> None:
        for number in itertools.count(1):
            if stop.is_set() or number > 20_000:
                return
            liar.to(site.victim, Request(number, liar.instance, "liar", "victim", "slow", args, 60.0))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        eventually(lambda: liar.count(Failure) > 20, "the liar is refused")
        for _ in range(5):
            began = time.monotonic()
            assert site.other.call("victim", "slow", {"seconds": 0.0}, timeout=DEADLINE) == "done"
            assert time.monotonic() - began < PROMPT  # behind 50 requests of the liar's on 2 threads at most
    finally:
        stop.set()
        flooding.join()
    refused = [message for message in list(liar.heard) if isinstance(message, Failure)]
    assert {message.code for message in refused} == {"Overloaded"}
    assert site.victim.runtime.server.waiting <= 50


def test_async_methods_under_way_are_bounded(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    args = msgspec.Raw(msgspec.msgpack.encode({}))
    for number in range(1, 2000):
        liar.to(site.victim, Request(number, liar.instance, "liar", "victim", "later", args, 60.0))
    eventually(lambda: liar.count(Failure) > 500, "the liar is refused")
    assert site.service.running <= limits.COROUTINES * 50 // 2
    with pytest.raises(Overloaded):
        for number in range(2000, 2100):
            liar.to(site.victim, Request(number, liar.instance, "liar", "victim", "later", args, 60.0))
        raise Overloaded(next(m.message for m in liar.heard if isinstance(m, Failure)))


def test_a_timeout_that_is_none_is_no_trouble(fake_site: Site) -> None:
    site, liar = fake_site, fake_site.liar
    args = msgspec.Raw(msgspec.msgpack.encode({"x": 1}))
    for timeout in (float("nan"), float("inf"), 1e308, -1.0, -float("inf"), 0.0):
        liar.to(site.victim, Request(7, liar.instance, "liar", "victim", "echo", args, timeout))
        liar.say(service_address("victim"), Request(8, liar.instance, "liar", "victim", "echo", args, timeout, True))
    eventually(lambda: liar.count(Reply) >= 4, "those that last for ever are answered")


# Frames


def test_frames_that_would_keep_a_node_busy_for_minutes_are_dropped(fake_site: Site) -> None:
    site = fake_site
    cells = list(range(5, 2**64, 2**61 - 1))[:8]
    alike = list(itertools.islice(itertools.product(cells, repeat=6), 30_000))
    frames = [
        frame_of(msgspec.msgpack.encode([24, 1, 0, alike])),
        frame_of(b"\x92\x1e" + b"\xdd\x00\x10\x00\x00" + b"\x95\x15\xa0\x00\x90\x90" * (1 << 20)),
        frame_of(msgspec.msgpack.encode([29, "i", [["s", "t", "e", 1]] * 200_000])),
        frame_of(msgspec.msgpack.encode([5, "n", "i", 1.0, 1.0, 1, [[]] * 1_000_000])),
    ]
    began = time.monotonic()
    for frame in frames:
        site.liar.to(site.victim, frame)
        site.liar.say(CONTROL, frame)

    def dropped() -> int:
        counters = site.victim.status().counters
        return counters.get("bad_frames", 0) + counters.get("unexpected_frames", 0)

    eventually(lambda: dropped() >= 2 * len(frames), "they were dropped")
    assert time.monotonic() - began < 2 * PROMPT
