"""What a node keeps, and does, for peers has bounds, and who keeps within them does not notice the others."""

from __future__ import annotations

import itertools
import math
import random
import threading
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse import Change, DataService, Node, Table
from dse.core import limits
from dse.core.effects import Send
from dse.core.fairqueue import FairQueue
from dse.core.membership import MAX_ANSWERS, Membership, NodeState
from dse.core.messages import (
    Catalogue,
    CatalogueRequest,
    CatchUp,
    ChangeMessage,
    Heartbeat,
    SnapshotBegin,
    SnapshotChunk,
    SyncRequest,
    Tip,
)
from dse.core.pace import Pace
from dse.core.replica import ASKS, ReplicaMachine, ReplicaState
from dse.core.rows import digest
from dse.core.tablelog import COPIES, SYNCS, Sizes, TableLog
from dse.core.threads import Engine
from dse.errors import ConfigError, RowError
from dse.testing.contract.recorder import eventually

MIB = 1 << 20


# Turns


def test_each_sender_has_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(100, MIB)
    for number in range(5):
        assert queue.put("greedy", f"g{number}", 1) == []
    queue.put("a", "a0", 1)
    queue.put("b", "b0", 1)
    queue.put("a", "a1", 1)
    assert [queue.take() for _ in range(9)] == ["g0", "a0", "b0", "g1", "a1", "g2", "g3", "g4", None]


def test_a_sender_alone_may_fill_the_queue_and_is_refused_then() -> None:
    queue: FairQueue[int] = FairQueue(3, MIB)
    assert [queue.put("only", number, 1) for number in range(4)] == [[], [], [], [3]]
    assert [queue.take() for _ in range(4)] == [0, 1, 2, None]


def test_who_has_most_waiting_gives_way() -> None:
    queue: FairQueue[str] = FairQueue(4, MIB)
    for number in range(4):
        queue.put("greedy", f"g{number}", 1)
    assert queue.put("a", "a0", 1) == ["g3"]
    assert queue.put("b", "b0", 1) == ["g2"]
    assert queue.put("a", "a1", 1) == ["a1"]  # would only trade places
    assert len(queue) == 4


def test_bytes_count_like_items() -> None:
    queue: FairQueue[str] = FairQueue(10, 100)
    assert queue.put("greedy", "large", 80) == []
    assert queue.put("greedy", "larger", 90) == ["larger"]
    assert queue.put("a", "small", 30) == ["large"]
    assert [queue.take(), queue.take()] == ["small", None]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50), st.booleans()), max_size=60))
def test_nothing_is_lost_in_the_queue_and_its_bounds_hold(steps: list[tuple[int, int, bool]]) -> None:
    queue: FairQueue[int] = FairQueue(8, 200)
    waiting: dict[int, int] = {}
    for number, (sender, size, take) in enumerate(steps):
        if take:
            item = queue.take()
            assert (item is None) == (not waiting)
            waiting.pop(item, None)  # type: ignore[arg-type]
        else:
            waiting[number] = size
            for gone in queue.put(str(sender), number, size):
                del waiting[gone]
        assert len(queue) == len(waiting) <= 8
        assert sum(waiting.values()) <= 200
    assert {queue.take() for _ in range(len(waiting))} == set(waiting)


def test_a_pace_is_some_at_once_and_then_so_many_a_second() -> None:
    pace = Pace(3, 2.0)
    assert [pace.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert pace.next_at() == pytest.approx(0.5)
    assert pace.take(pace.next_at())
    assert not pace.take(0.6)
    assert [pace.take(100.0) for _ in range(4)] == [True, True, True, False]


@given(st.integers(1, 20), st.floats(0.1, 100), st.lists(st.floats(0, 2), max_size=60))
def test_whoever_comes_back_when_it_is_said_is_let_in(burst: int, rate: float, pauses: list[float]) -> None:
    pace, now, taken = Pace(burst, rate), 1000.0, 0
    pace.take(now, 0.0)
    for pause in pauses:
        now += pause
        taken += pace.take(now)
        assert taken <= burst + (now - 1000.0) * rate + 1
    for _ in range(burst + 2):
        now = max(now, pace.next_at())
        assert pace.take(now)


def test_numbers_are_not_to_be_guessed() -> None:
    engine = Engine("numbers", 1)
    numbers = list(itertools.islice(engine.numbers(), 3000))
    engine.timers.close()
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number <= 1 << 62 for number in numbers)
    assert len({number % 1024 for number in numbers}) > 800


# Members


def member() -> Membership:
    machine = Membership("me", "me/1", 1.0, lambda: ([], []), random.Random(1))
    machine.start(0.0)
    machine.heartbeat(0.0, Heartbeat("me", "me/1", 0.0, 1.0, 0, True))
    machine.tick(1.0)
    assert machine.state is NodeState.JOINED
    return machine


def beat(node_id: str, instance: str, interval: float = 1.0, joining: bool = False) -> Heartbeat:
    return Heartbeat(node_id, instance, 5.0, interval, 0, joining)


def test_an_instance_keeps_its_node_id() -> None:
    machine = member()
    machine.heartbeat(1.0, beat("a", "a/1"))
    machine.heartbeat(1.0, beat("b", "a/1"))
    machine.catalogue_of(1.0, Catalogue("b", "a/1", 1.0, 1.0, 9, []))
    (peer,) = machine.peers.values()
    assert (peer.node_id, peer.version) == ("a", -1)


def test_an_interval_that_changes_each_time_leaves_nothing_behind() -> None:
    machine = member()
    for number in range(5000):
        machine.heartbeat(1.0, beat("a", "a/1", 3000.0 - number / 10))
    assert len(machine._checks) < 20
    machine.heartbeat(1.0, beat("a", "a/1", 1.0))
    for now in (2.5, 4.1):
        machine.tick(now)
    assert machine.peers["a/1"].state is NodeState.SUSPECT


def test_of_many_lives_of_a_node_the_latest_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = member()
    for number in range(limits.INSTANCES * 3):
        machine.heartbeat(1.0 + number / 100, beat("a", f"a/{number}"))
    lives = machine.peers.values()
    assert len(lives) == limits.INSTANCES
    assert [peer.instance for peer in lives if peer.live] == [f"a/{limits.INSTANCES * 3 - 1}"]
    assert machine._live == 1


@pytest.mark.parametrize("interval", [math.nan, math.inf, -1.0, 0.0, 1e300, 5e-324])
def test_whatever_interval_is_promised_counts_as_one_that_can_be(interval: float) -> None:
    machine = member()
    machine.heartbeat(1.0, beat("a", "a/1", interval))
    assert limits.LEAST_INTERVAL <= machine.peers["a/1"].interval <= limits.LONGEST_INTERVAL
    assert machine.wakeup > 0


def test_everybody_who_asks_for_a_catalogue_is_answered_in_time() -> None:
    machine = member()
    now, answered = 1.0, 0
    for number in range(MAX_ANSWERS * 3):
        answered += len(machine.catalogue_request(now, CatalogueRequest(f"x/{number}")))
    assert answered == MAX_ANSWERS
    while answered < MAX_ANSWERS * 3:
        assert machine.wakeup > now
        now = machine.wakeup
        sends = [effect for effect in machine.tick(now) if isinstance(effect, Send)]
        answered += sum(send.address.name.startswith("node/x/") for send in sends)
    assert now < 1.0 + MAX_ANSWERS * 2 / 80 + 0.1


# Tables


def log_of(rows: int) -> TableLog:
    log = TableLog("s", "t", ("a", "b"), "me/1", "epoch", Sizes(1 << 22, 1 << 9, 1 << 12, 2))
    log.replace(0.0, {(number, "x") for number in range(rows)})
    return log


def test_a_table_of_more_rows_than_it_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROWS", 10)
    log = log_of(10)
    with pytest.raises(RowError, match="at most 10 rows"):
        log.apply(1.0, [(99, "x")], ())
    log.apply(1.0, [(99, "x")], [(0, "x")])
    assert log.count == 10


def test_who_asks_for_a_large_table_again_and_again_waits_and_others_do_not() -> None:
    log = log_of(2000)
    asked = [log.sync(1.0, SyncRequest("s", "t", "greedy/1", number)) for number in range(SYNCS * 3)]
    assert sum(map(bool, asked)) == SYNCS
    assert log.sync(1.0, SyncRequest("s", "t", "other/1", 1))
    assert log.sync(2.0, SyncRequest("s", "t", "greedy/1", 99))


def test_who_asks_for_a_small_table_is_answered_each_time() -> None:
    log = log_of(3)
    assert all(log.sync(1.0, SyncRequest("s", "t", "a/1", number)) for number in range(500))


def test_snapshots_under_way_hold_few_states_and_end_as_what_was() -> None:
    log = log_of(2000)
    begun: dict[str, Any] = {}
    for number in range(COPIES * 2):
        sends = log.sync(1.0, SyncRequest("s", "t", f"slow/{number}", 1))
        begun[f"slow/{number}"] = sends[0].message
        log.apply(1.0, [(number, "new")], ())
    assert log._copies == COPIES
    latest = begun[f"slow/{COPIES * 2 - 1}"]
    assert isinstance(latest, SnapshotBegin)
    assert latest.seq == begun[f"slow/{COPIES - 1}"].seq < log.seq
    assert latest.digest == digest("t", log.columns, log._snapshots[f"slow/{COPIES}"].state.rows)


def replica() -> ReplicaMachine:
    machine = ReplicaMachine("s", "t", "me/1", 5 << 32)
    machine.publishers(0.0, ["p/1"])
    machine.listening(0.0, "p/1")
    return machine


def live(rows: frozenset[Any] = frozenset()) -> ReplicaMachine:
    machine = replica()
    begin = SnapshotBegin(machine.request, "e", ("a", "b"), 1, len(rows), digest("t", ("a", "b"), rows))
    machine.snapshot_begin(0.0, begin)
    if rows:
        machine.snapshot_chunk(0.0, SnapshotChunk(machine.request, 0, rows))
    assert machine.state is ReplicaState.LIVE
    return machine


def test_a_snapshot_that_does_not_have_its_digest_is_not_taken() -> None:
    machine = replica()
    machine.snapshot_begin(0.0, SnapshotBegin(machine.request, "e", ("a", "b"), 1, 2, 77))
    deltas, effects = machine.snapshot_chunk(0.0, SnapshotChunk(machine.request, 0, frozenset({(1, "a"), (2, "b")})))
    assert not deltas
    assert effects
    assert machine.state is ReplicaState.SYNCING
    assert len(machine.view()) == 0


def test_a_replica_that_never_gets_it_right_asks_with_patience_and_takes_what_is_right_then() -> None:
    machine, now, asked = live(), 1.0, 0
    for number in range(500):
        asked += len(machine.tip(now, Tip("other", number, 0)))
        asked += len(machine.tick(now))
        asked += len(machine.snapshot_begin(now, SnapshotBegin(machine.request, "e", ("a", "b"), 1, -1, 0))[1])
        now += 0.01
    assert ASKS <= asked <= ASKS + 6
    now = machine.wakeup
    assert machine.tick(now)
    machine.snapshot_begin(now, SnapshotBegin(machine.request, "e", ("a", "b"), 3, 0, 0))
    assert machine.state is ReplicaState.LIVE


def test_changes_that_wait_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITING_BYTES", 100_000)
    machine = replica()
    for seq in range(2, 200):
        machine.change(0.0, ChangeMessage("e", seq, frozenset({(seq, "x" * 5000)}), frozenset()))
    assert 10 < len(machine._buffer) < 25
    machine.snapshot_begin(0.0, SnapshotBegin(machine.request, "e", ("a", "b"), 1, 0, 0))
    assert len(machine.view()) == len(range(2, 200)) - 198 + machine.seq - 1
    assert machine._buffered == 0


# Nodes


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(f"fake://{uuid.uuid4().hex}", node_id="n") as node:
        yield node


def test_a_slow_callback_is_given_the_sum_of_many_rows(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITING_ROWS", 100)
    go, came = threading.Event(), threading.Event()
    changes: list[Change] = []

    class Publisher(DataService):
        t = Table("a", "b")

    class Slow(DataService):
        def seen(self, change: Change) -> None:
            came.set()
            go.wait(20)
            changes.append(change)

    publisher, slow = Publisher("p"), Slow("s")
    node.register(publisher)
    node.register(slow)
    replica = slow.subscribe("p", "t", slow.seen)
    replica.wait(ReplicaState.LIVE, 20)
    publisher.t.insert([("first", 0)])
    assert came.wait(20)
    for number in range(50):
        publisher.t.replace([(number, each) for each in range(40)])
    wanted = publisher.t.rows
    replica.wait(lambda held: held.rows == wanted, 20)
    assert replica._waiting_rows <= 300
    go.set()
    rows: set[Any] = set()

    def told_all() -> bool:
        rows.clear()
        for change in list(changes):
            rows.difference_update(change.removed)
            rows.update(change.added)
        return rows == wanted

    eventually(told_all, "the callback was told all")
    assert len(changes) < 10
    assert replica._waiting_rows == 0


def test_more_than_peers_would_take_is_refused_where_it_is_declared(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="at most"):
        Table(*(f"c{number}" for number in range(limits.COLUMNS + 1)))
    monkeypatch.setattr(limits, "SERVICES", 2)
    node.register(DataService("a"))
    node.register(DataService("b"))
    with pytest.raises(ConfigError, match="at most 2"):
        node.register(DataService("c"))


def test_the_limits_are_told_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/limits.md").read_text()
    names = [name for name, value in vars(limits).items() if name.isupper() and not isinstance(value, types.ModuleType)]
    assert sorted(names) == sorted(limits.__all__)
    assert [name for name in names if f"`{name}`" not in text] == []


def test_a_life_of_a_table_without_a_name_is_none() -> None:
    machine = replica()
    machine.catch_up(0.0, CatchUp(machine.request, "", (), [], 0, 0))
    assert machine.state is ReplicaState.SYNCING
    machine.snapshot_begin(0.0, SnapshotBegin(machine.request, "", ("a",), 0, 0, 0))
    assert machine.state is ReplicaState.SYNCING
    machine.publishers(1.0, [])
    assert machine.state is not ReplicaState.LIVE
