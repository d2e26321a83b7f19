"""A publisher and its replicas over links that lose frames, by simulation: the rules of tablelog.py and replica.py."""

from __future__ import annotations

import itertools
from collections import deque
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dse.core import tablelog
from dse.core.effects import Effect, Listen, Send, Unlisten
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    Message,
    NoTable,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    Unsubscribe,
    decode,
    encode,
    frame_of,
    table_address,
)
from dse.core.replica import Delta, ReplicaMachine, ReplicaState
from dse.core.tablelog import Sizes, TableLog
from dse.core.transport import Delivery

ROWS = [(1,), (True,), (1.0,), (2,), (2.5,), (None,), ("",), ("a",), (b"a",), ("long" * 20,), (b"longer" * 30,), (-7,)]
ROWS += [(f"row {number}",) for number in range(12)]
some_rows = st.sets(st.sampled_from(ROWS), max_size=8)
COLUMNS = ("value",)


class Subscriber:
    """A replica machine, what its callback was told, and its links: each keeps order, and loses what the test says."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.machine = ReplicaMachine("s", "t", name, number << 32)
        self.told: set[Any] = set()
        self.version: tuple[str, int] = ("", 0)
        self.listens: str | None = None  # the publisher whose table address is listened on
        self.connected = True
        self.links: dict[str, deque[Any]] = {"direct": deque(), "fanout": deque(), "up": deque(), "listen": deque()}

    def took(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            assert not delta.added & self.told, "a row came twice"
            assert delta.removed <= self.told, "a row went that was not there"
            if delta.version[0] == self.version[0]:
                assert delta.version[1] >= self.version[1]
            self.told = (self.told - delta.removed) | delta.added
            self.version = delta.version


class Lossy(RuleBasedStateMachine):
    """One table, two subscribers, a bus that loses."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.epochs = itertools.count(1)
        self.instances = itertools.count(1)
        self.history: dict[tuple[str, int], frozenset[Any]] = {}
        self.log: TableLog | None = None
        self.instance = ""
        self.subscribers = [Subscriber("sub/1", 1), Subscriber("sub/2", 2)]
        self.orphans: list[str] = []
        self.rows: set[Any] = set()

    @initialize()
    def begin(self) -> None:
        self.publish(new_node=True)

    # What happens to the table

    @precondition(lambda self: self.log is None)
    @rule(new_node=st.booleans())
    def publish(self, new_node: bool) -> None:
        old = TableLog("s", "t", COLUMNS, "", "old")
        old._rows = set(self.rows)
        old.digest = tablelog.row_rules.digest("t", COLUMNS, self.rows)
        if new_node or not self.instance:
            self.instance = f"pub/{next(self.instances)}"
            self.orphans = []
        self.log = TableLog("s", "t", COLUMNS, self.instance, f"epoch {next(self.epochs)}", Sizes(largest=200))
        self.send(self.log.adopt(self.now, old, self.orphans))
        self.remember()
        self.tell_publishers()

    @precondition(lambda self: self.log is not None)
    @rule()
    def unpublish(self) -> None:
        assert self.log is not None
        self.orphans = list(self.log.subscribers)
        self.log = None
        self.tell_publishers()

    @precondition(lambda self: self.log is not None)
    @rule(added=some_rows, removed=some_rows)
    def change(self, added: set[Any], removed: set[Any]) -> None:
        assert self.log is not None
        before = self.log.seq
        change, sends = self.log.apply(self.now, added, removed)
        assert (change is None) == (self.log.seq == before)
        self.rows = (self.rows - removed) | added
        self.remember()
        self.send(sends)

    @precondition(lambda self: self.log is not None)
    @rule(rows=some_rows)
    def replace(self, rows: set[Any]) -> None:
        assert self.log is not None
        _, sends = self.log.replace(self.now, rows)
        self.rows = set(rows)
        self.remember()
        self.send(sends)

    # What happens to the links

    @rule(index=st.integers(0, 1), link=st.sampled_from(["direct", "fanout", "up", "listen"]), count=st.integers(1, 5))
    def deliver(self, index: int, link: str, count: int) -> None:
        for _ in range(count):
            self.deliver_one(self.subscribers[index], link)

    @rule(index=st.integers(0, 1), link=st.sampled_from(["direct", "fanout", "up"]), count=st.integers(1, 3))
    def lose(self, index: int, link: str, count: int) -> None:
        queue = self.subscribers[index].links[link]
        for _ in range(min(count, len(queue))):
            queue.popleft()

    @rule(random=st.randoms(use_true_random=False), loss=st.sampled_from([0.0, 0.1, 0.5]))
    def flow(self, random: Random, loss: float) -> None:
        """Let what is under way arrive, and the answers to it, in any order of the links; some of it is lost."""
        for _ in range(200):
            open_links = [(s, name) for s in self.subscribers for name, queue in s.links.items() if queue]
            if not open_links:
                return
            subscriber, link = random.choice(open_links)
            if link != "listen" and random.random() < loss:
                subscriber.links[link].popleft()
            else:
                self.deliver_one(subscriber, link)
            self.replicas_hold_a_state_that_the_publisher_was_in()

    @rule(index=st.integers(0, 1))
    def cut(self, index: int) -> None:
        subscriber = self.subscribers[index]
        if subscriber.connected:
            subscriber.connected = False
            for queue in subscriber.links.values():
                queue.clear()
            subscriber.machine.disconnected()

    @rule(index=st.integers(0, 1))
    def mend(self, index: int) -> None:
        subscriber = self.subscribers[index]
        if not subscriber.connected:
            subscriber.connected = True
            self.carry_out(subscriber, subscriber.machine.connected(self.now))

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    # What must hold

    @invariant()
    def replicas_hold_a_state_that_the_publisher_was_in(self) -> None:
        for subscriber in self.subscribers:
            machine = subscriber.machine
            rows = set(machine.view())
            assert rows == subscriber.told, "the changes do not add up to the rows"
            assert rows == (self.history[machine.version] if machine.epoch else set())
            if machine.state is ReplicaState.LIVE:
                assert machine.publisher == self.instance
                assert subscriber.connected

    def teardown(self) -> None:
        if not self.instance:
            return
        if self.log is None:
            self.publish(new_node=True)
        for index in (0, 1):
            self.mend(index)
        assert self.log is not None
        for _ in range(300):
            self.deliver_all()
            self.now += 0.5
            self.tick()
            self.deliver_all()
            if all(s.machine.state is ReplicaState.LIVE and s.told == self.rows for s in self.subscribers):
                break
        for subscriber in self.subscribers:
            assert subscriber.machine.state is ReplicaState.LIVE
            assert subscriber.machine.version == (self.log.epoch, self.log.seq)
            assert set(subscriber.machine.view()) == subscriber.told == self.rows
            assert subscriber.machine.digest == self.log.digest
        self.replicas_hold_a_state_that_the_publisher_was_in()
        for subscriber in self.subscribers:
            self.carry_out(subscriber, subscriber.machine.close())
        self.deliver_all()
        assert not self.log.subscribers
        assert not self.log._snapshots

    # The bus

    def remember(self) -> None:
        assert self.log is not None
        assert set(self.log.view()) == self.rows
        self.history[self.log.epoch, self.log.seq] = frozenset(self.rows)

    def tell_publishers(self) -> None:
        live = [self.instance] if self.log is not None else []
        for subscriber in self.subscribers:
            self.carry_out(subscriber, subscriber.machine.publishers(self.now, live))

    def send(self, sends: list[Send]) -> None:
        """The publisher sends."""
        for send in sends:
            body = send.message
            message = decode(frame_of(body) if isinstance(body, bytes) else encode(body))
            for subscriber in self.subscribers:
                if not subscriber.connected:
                    continue
                if send.address.delivery is Delivery.FANOUT:
                    assert send.address == table_address(self.instance, "s", "t")
                    if subscriber.listens == self.instance:
                        subscriber.links["fanout"].append(message)
                elif send.address.name == f"node/{subscriber.name}":
                    subscriber.links["direct"].append(message)

    def carry_out(self, subscriber: Subscriber, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Unlisten):
                subscriber.listens = None
                subscriber.links["fanout"].clear()
                subscriber.links["listen"].clear()
            elif isinstance(effect, Listen):
                subscriber.links["listen"].append(effect.address.name.removeprefix("table/").removesuffix("/s/t"))
            elif subscriber.connected and effect.address.name == f"node/{self.instance}":
                assert not isinstance(effect.message, bytes)
                subscriber.links["up"].append(decode(encode(effect.message)))

    def deliver_one(self, subscriber: Subscriber, link: str) -> None:
        queue = subscriber.links[link]
        if not queue or not subscriber.connected:
            return
        item = queue.popleft()
        if link == "listen":
            subscriber.listens = item
            self.carry_out(subscriber, subscriber.machine.listening(self.now, item))
        elif link == "up":
            self.publisher_hears(subscriber, item)
        else:
            self.replica_hears(subscriber, item)

    def publisher_hears(self, subscriber: Subscriber, message: Message) -> None:
        if self.log is None:
            if isinstance(message, SyncRequest):
                subscriber.links["direct"].append(NoTable(message.request))
            return
        match message:
            case SyncRequest():
                self.send(self.log.sync(self.now, message))
            case SnapshotCredit():
                self.send(self.log.credit(self.now, message.instance, message.request, message.received))
            case Unsubscribe():
                self.log.drop(message.instance)
            case _:
                raise AssertionError(message)

    def replica_hears(self, subscriber: Subscriber, message: Message) -> None:
        machine = subscriber.machine
        deltas: list[Delta] = []
        effects: list[Effect] = []
        match message:
            case ChangeMessage():
                deltas, effects = machine.change(self.now, message)
            case Tip():
                effects = machine.tip(self.now, message)
            case CatchUp():
                deltas, effects = machine.catch_up(self.now, message)
            case SnapshotBegin():
                deltas, effects = machine.snapshot_begin(self.now, message)
            case SnapshotChunk():
                deltas, effects = machine.snapshot_chunk(self.now, message)
            case NoTable():
                assert not machine.no_table(self.now, message)
            case _:
                raise AssertionError(message)
        subscriber.took(deltas)
        self.carry_out(subscriber, effects)

    def deliver_all(self) -> None:
        while any(queue for s in self.subscribers if s.connected for queue in s.links.values()):
            for subscriber in self.subscribers:
                for link in subscriber.links:
                    self.deliver_one(subscriber, link)

    def tick(self) -> None:
        if self.log is not None and self.log.wakeup <= self.now:
            self.send(self.log.tick(self.now))
            assert self.log.wakeup > self.now
        for subscriber in self.subscribers:
            if subscriber.machine.wakeup <= self.now:
                self.carry_out(subscriber, subscriber.machine.tick(self.now))
            machine = subscriber.machine
            follows = machine.publisher == self.instance and subscriber.connected
            if self.log is not None and follows and int(self.now) % 20 == 0:
                # The hub renews all subscriptions now and then.
                self.send(self.log.renew(self.now, subscriber.name, machine.version))


@pytest.fixture(params=[(0, 1), (300, 150), (1 << 18, 1 << 18)], ids=["no log", "short log", "long log"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much the log holds, and a chunk."""
    monkeypatch.setattr(tablelog, "LOG_BYTES", request.param[0])
    monkeypatch.setattr(tablelog, "CHUNK_BYTES", request.param[1])
    monkeypatch.setattr(tablelog, "WINDOW", 2)


@pytest.mark.usefixtures("sizes")
def test_replicas_are_right_at_any_time_and_equal_in_the_end() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Lossy,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("seed", range(40))
def test_long_lives_with_much_loss_end_equal(seed: int) -> None:
    """The same machine over hundreds of steps, with the likelihoods of a busy table on a bad network."""
    random = Random(seed)
    bus = Lossy()
    bus.begin()

    def some() -> set[Any]:
        return set(random.sample(ROWS, random.randint(0, 8)))

    for _ in range(300):
        what = random.random()
        if bus.log is None:
            bus.publish(random.random() < 0.5)
        elif what < 0.4:
            bus.change(some(), some())
        elif what < 0.45:
            bus.replace(some())
        elif what < 0.75:
            bus.flow(random, random.choice([0.0, 0.02, 0.1, 0.5]))
        elif what < 0.9:
            bus.wait(random.choice([0.1, 0.6, 1.5, 6.0]))
        elif what < 0.93:
            bus.cut(random.randrange(2))
        elif what < 0.98:
            bus.mend(random.randrange(2))
        else:
            bus.unpublish()
        bus.replicas_hold_a_state_that_the_publisher_was_in()
    bus.teardown()
