"""Changes that come faster than they could be sent one by one go out together; nothing else is different."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse import DataService, Node, ReplicaState, Table, rpc
from dse.core import tables
from dse.core.effects import Send
from dse.core.messages import ChangeMessage, Changes, SyncRequest, decode, frame_of
from dse.core.replica import ReplicaMachine
from dse.core.table import PublishedTable
from dse.core.tablelog import Sizes, TableLog
from dse.core.transport import Delivery


class Desk:
    """A node as a published table sees it, whose clock the test moves."""

    def __init__(self) -> None:
        self.instance, self.sizes = "here", Sizes()
        self.time = 0.0
        self.sent: list[list[int]] = []  # the numbers of the changes in each frame
        self.held: list[PublishedTable] = []

    def now(self) -> float:
        return self.time

    def new_epoch(self) -> str:
        return "epoch"

    def transmit(self, send: Send, *, remote: bool, local: bool) -> None:
        if send.address.delivery is not Delivery.FANOUT or not isinstance(send.message, bytes):
            return
        message = decode(frame_of(send.message))
        changes = message.changes if isinstance(message, Changes) else [message]
        self.sent.append([change.seq for change in changes if isinstance(change, ChangeMessage)])

    def hold(self, table: PublishedTable) -> None:
        self.held.append(table)

    def watch(self, table: PublishedTable, wakeup: float) -> None:
        pass

    def subscribers_changed(self, table: PublishedTable, first: bool) -> None:
        pass


def published() -> tuple[PublishedTable, Desk]:
    table, desk = PublishedTable("service", "rows", ("number",)), Desk()
    table.attach(desk, ["there"])
    desk.sent.clear()
    return table, desk


def test_changes_that_come_slowly_go_out_at_once() -> None:
    table, desk = published()
    for number in range(20):
        table.insert([(number,)])
        desk.time += 0.001
    assert desk.sent == [[seq] for seq in range(1, 21)]
    assert not desk.held


def test_a_few_changes_at_once_are_not_held_back() -> None:
    table, desk = published()
    for number in range(4):
        table.insert([(number,)])
    assert desk.sent == [[1], [2], [3], [4]]


def test_a_burst_goes_out_in_few_frames_and_in_order() -> None:
    table, desk = published()
    for number in range(1000):
        table.insert([(number,)])
    table.flush()
    assert [seq for frame in desk.sent for seq in frame] == list(range(1, 1001))
    assert len(desk.sent) < 30
    assert set(desk.held) == {table}


def test_a_thread_that_is_held_up_in_a_burst_does_not_end_it() -> None:
    table, desk = published()
    for number in range(300):
        table.insert([(number,)])
        desk.time += 0.003 if number % 50 == 49 else 0.00001
    table.flush()
    assert [seq for frame in desk.sent for seq in frame] == list(range(1, 301))
    assert len(desk.sent) < 12


def test_a_burst_is_soon_over_when_changes_come_slowly() -> None:
    table, desk = published()
    for number in range(200):
        table.insert([(number,)])
    desk.time += 0.002
    for number in range(200, 210):
        table.insert([(number,)])
        desk.time += 0.002
    assert desk.sent[-6:] == [[seq] for seq in range(205, 211)]
    for number in range(210, 330):
        table.insert([(number,)])
    desk.time += 0.02
    table.insert([(330,)])
    assert desk.sent[-1][-1] == 331  # the first after a longer rest is not held back


def test_what_is_held_back_goes_out_before_the_tip() -> None:
    table, desk = published()
    for number in range(8):
        table.insert([(number,)])
    assert sum(map(len, desk.sent)) < 8
    table.connected()  # announces the tip
    assert [seq for frame in desk.sent for seq in frame] == list(range(1, 9))


def test_long_changes_do_not_wait_for_each_other() -> None:
    table, desk = published()
    for number in range(10):
        table.insert([("x" * 100_000 + str(number),)])
    assert desk.sent == [[seq] for seq in range(1, 11)]


operations = st.lists(
    st.tuples(st.frozensets(st.integers(0, 5), max_size=3), st.frozensets(st.integers(0, 5), max_size=3)), max_size=20
)


@given(operations, st.lists(st.integers(1, 5), max_size=20), st.booleans())
def test_a_replica_does_not_see_how_changes_were_put_together(
    todo: list[tuple[frozenset[int], frozenset[int]]], sizes: list[int], loses: bool
) -> None:
    log = TableLog("service", "rows", ("number",), "here", "epoch", subscribers={"there": 1e9})
    replicas = [ReplicaMachine("service", "rows", "there") for _ in range(2)]
    for replica in replicas:
        replica.publishers(0.0, ["here"])
        replica.listening(0.0, "here")
        for send in log.sync(0.0, SyncRequest("service", "rows", "there", replica.request, "", 0)):
            assert not isinstance(send.message, bytes)
            replica.snapshot_begin(0.0, send.message)  # type: ignore[arg-type]
        assert replica.state is ReplicaState.LIVE
    changes = []
    for added, removed in todo:
        change, _ = log.apply(0.0, [(number,) for number in added], [(number,) for number in removed])
        if change is not None:
            changes.append(change)
    if loses and changes:
        del changes[len(changes) // 2]
    one, other = replicas
    deltas = [delta for change in changes for delta in one.change(0.0, change)[0]]
    together = []
    while changes:
        size = sizes.pop() if sizes else 3
        together += other.changes(0.0, changes[:size])[0]
        changes = changes[size:]
    assert together == deltas
    assert (other.view(), other.version, other.digest, other.state) == (one.view(), one.version, one.digest, one.state)
    if not loses:
        assert (other.view(), other.digest) == (log.view(), log.digest)


class Source(DataService):
    numbers = Table("number")

    @rpc
    def count(self, to: int) -> int:
        for number in range(to):
            self.numbers.insert([(number,)])
        return to


def test_the_last_changes_of_a_burst_arrive_soon() -> None:
    url = f"fake://{uuid.uuid4().hex}"
    source, reader = Source("source"), DataService("reader")
    with Node(url, services=[source]), Node(url, services=[reader]) as node:
        node.wait_for("source", 10)
        replica = reader.subscribe("source", "numbers")
        replica.wait(ReplicaState.LIVE)
        began = time.monotonic()
        assert node.call("source", "count", {"to": 500}) == 500
        replica.wait(lambda replica: len(replica) == 500, 5)
        assert time.monotonic() - began < 0.45  # the tip, which would find out what is missing, comes later


def test_what_was_changed_last_before_a_node_stops_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HOLD", 60.0)  # so that only the stop can bring it on its way
    url = f"fake://{uuid.uuid4().hex}"
    source, reader = Source("source"), DataService("reader")
    with Node(url, services=[reader]) as node:
        with Node(url, services=[source]):
            node.wait_for("source", 10)
            replica = reader.subscribe("source", "numbers")
            replica.wait(ReplicaState.LIVE)
            source.count(40)
            assert len(replica) < 40
        replica.wait(lambda replica: len(replica) == 40, 5)


def test_an_answer_does_not_overtake_the_changes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HOLD", 60.0)
    url = f"fake://{uuid.uuid4().hex}"
    source, reader = Source("source"), DataService("reader")
    with Node(url, services=[source]), Node(url, services=[reader]) as node:
        node.wait_for("source", 10)
        replica = reader.subscribe("source", "numbers")
        replica.wait(ReplicaState.LIVE)
        node.call("source", "count", {"to": 40})
        replica.wait(lambda replica: len(replica) == 40, 0.3)  # before the tip would have told
