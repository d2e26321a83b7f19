"""Level 2: tables."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from dse.core.methods import every, on_change
from dse.core.node import Node
from dse.core.replica import ReplicaState
from dse.core.service import DataService
from dse.core.table import Change
from dse.errors import NoSuchTable, RowError
from dse.testing.contract.bus_network import BEAT, MARGIN, Network, together
from dse.testing.contract.bus_services import Sink, Source, sorted_rows
from dse.testing.contract.fixtures import Contract
from dse.testing.contract.recorder import DEADLINE, PROMPT, eventually

__all__ = ["TestReplicas", "TestTableChanges"]

SCALARS: list[list[Any]] = [
    ["none", None],
    ["true", True],
    ["one", 1],
    ["lowest", -(2**63)],
    ["highest", 2**64 - 1],
    ["half", 0.5],
    ["infinite", float("-inf")],
    ["tiny", 5e-324],
    ["empty", ""],
    ["text", "Grüße \U0001f680 \x00"],
    ["no bytes", b""],
    ["bytes", bytes(range(256))],
    [7, "a number"],
    [None, None],
    [b"key", "bytes"],
    ["long", "x" * 200_000],
]


def sink(node: Node) -> Sink:
    """Return the node's sink."""
    service = node.service("sink")
    assert isinstance(service, Sink)
    return service


class _Watcher(DataService):
    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self.seen: set[Any] = set()
        self.ticks = 0

    @on_change("source", "items")
    async def look(self, change: Change) -> None:
        self.seen = (self.seen - change.removed) | change.added

    @every(0.02)
    def tick(self) -> None:
        self.ticks += 1


class TestTableChanges(Contract):
    """A replica in another process is always a state that the publisher was in; its callback is told every change."""

    guarantee = "table-changes"

    def test_every_change_arrives_and_is_told(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink}, {"source": Source})
        followed = sink(node).follow("source")
        followed.wait_equal([])
        replica = followed.replica
        assert replica.columns == ("key", "value")
        other.ask("source", "insert", [[1, "one"], [2, "two"], [3, "three"]])
        followed.wait_equal([(1, "one"), (2, "two"), (3, "three")])
        other.ask("source", "delete", [[2, "two"], [9, "absent"]])
        followed.wait_equal([(1, "one"), (3, "three")])
        frozen = replica.rows
        other.ask("source", "apply", [[4, "four"], [1, "one"]], [[3, "three"], [1, "one"]])
        followed.wait_equal([(1, "one"), (4, "four")])
        other.ask("source", "replace", [[4, "four"], [5, "five"]])
        followed.wait_equal([(4, "four"), (5, "five")])
        assert frozen == {(1, "one"), (3, "three")}
        assert len(replica) == 2
        assert (4, "four") in replica
        assert (1, "one") not in replica
        assert sorted(replica) == [(4, "four"), (5, "five")]
        assert [(set(change.added), set(change.removed)) for change in followed.changes] == [
            ({(1, "one"), (2, "two"), (3, "three")}, set()),
            (set(), {(2, "two")}),
            ({(4, "four")}, {(3, "three")}),
            ({(5, "five")}, {(1, "one")}),
        ]
        assert [change.version[1] for change in followed.changes] == [1, 2, 3, 4]
        assert {(change.service_id, change.table) for change in followed.changes} == {("source", "items")}
        with pytest.raises(TimeoutError, match=r"source\.items"):
            replica.wait(ReplicaState.STALE, 0.05)

    def test_all_scalars_go_round(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink}, {"source": Source})
        other.ask("source", "replace", SCALARS[:8])
        followed = sink(node).follow("source")
        followed.wait_equal(SCALARS[:8])  # in the snapshot
        other.ask("source", "insert", SCALARS[8:])
        followed.wait_equal(SCALARS)  # in a change
        assert sorted_rows(followed.replica) == sorted_rows(SCALARS)
        types = {repr(row): [type(cell) for cell in row] for row in followed.replica}
        assert types == {repr(tuple(row)): [type(cell) for cell in row] for row in SCALARS}

    def test_a_row_that_does_not_fit_publishes_nothing(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink, "source": Source}, {"far": Sink})
        source = node.service("source")
        assert isinstance(source, Source)
        source.items.replace([(1, "one")])
        other.ask("far", "begin", "source")
        for rows, column in (
            ([(2, "two"), (3,)], "value"),
            ([(2, "two"), (3, "three", "surplus")], None),
            ([(2, "two"), (3, float("nan"))], "value"),
            ([(2, "two"), (3, object())], "value"),
            ([(2, "two"), (["list"], "x")], "key"),
            ([(2, "two"), (2**64, "x")], "key"),
            ([(2, "two"), (3, "\ud800")], "value"),
            ([(2, "two"), "ab"], None),
            ([(2, "two"), None], None),
            ("ab", None),
            (None, None),
        ):
            for publish in (source.items.insert, source.items.replace, source.items.apply):
                with pytest.raises(RowError) as caught:
                    publish(rows)  # type: ignore[arg-type]
                assert caught.value.column == column or column is None
                assert column is None or column in str(caught.value)
        assert source.items.rows == {(1, "one")}
        assert source.items.version[1] == 1
        source.items.insert([(4, "four")])
        other.ask("far", "wait_rows", [[1, "one"], [4, "four"]])
        assert not source.items.insert([(4, "four")])
        assert source.items.version[1] == 2

    def test_a_large_table_is_copied_while_it_changes(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink}, {"source": Source})
        other.ask("source", "fill", 20_000)
        other.ask("source", "churn")
        followed = sink(node).follow("source")
        followed.replica.wait(lambda r: len(r) > 19_000 and r.version[1] > 20, DEADLINE)
        late = sink(node).follow("source")
        late.replica.wait(lambda r: len(r) > 19_000, DEADLINE)
        other.ask("source", "settle")
        rows = other.ask("source", "rows")
        assert len(rows) > 20_000
        followed.wait_equal(rows)
        late.wait_equal(rows)

    def test_subscribers_on_one_node_share_and_end_apart(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink, "second": Sink}, {"source": Source})
        other.ask("source", "insert", [[1, "one"]])
        second = node.service("second")
        assert isinstance(second, Sink)
        first, other_table, later = (
            sink(node).follow("source"),
            sink(node).follow("source", "others"),
            second.follow("source"),
        )
        for followed in (first, later):
            followed.wait_equal([(1, "one")])
        other_table.wait_equal([])
        sink(node).unsubscribe(first.replica)
        told = len(first.changes)
        other.ask("source", "insert", [[2, "two"]])
        later.wait_equal([(1, "one"), (2, "two")])
        assert len(first.changes) == told
        second.unsubscribe(later.replica)
        sink(node).unsubscribe(other_table.replica)
        eventually(lambda: sorted(other.ask("source", "hooks"))[2:] == ["last items", "last others"], "nobody is left")
        again = sink(node).follow("source")
        again.wait_equal([(1, "one"), (2, "two")])

    def test_callbacks_may_be_coroutines_and_may_raise(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink}, {"source": Source})
        seen: list[Change] = []

        async def slowly(change: Change) -> None:
            await asyncio.sleep(0.001)
            seen.append(change)

        def raises(change: Change) -> None:
            raise RuntimeError("a callback that raises harms nobody")

        sink(node).subscribe("source", "items", raises)
        replica = sink(node).subscribe("source", "items", slowly)
        replica.wait(ReplicaState.LIVE, DEADLINE)
        for number in range(30):
            other.ask("source", "insert", [[number, "x"]])
        eventually(lambda: len(seen) == 30, "all changes are told")
        assert [change.version[1] for change in seen] == list(range(1, 31))


class TestReplicas(Contract):
    """Replicas follow whoever publishes the table, and the publisher knows whether anybody follows."""

    guarantee = "replicas"

    def test_tables_that_nobody_publishes_are_named(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink}, {"source": Source})
        with pytest.raises(NoSuchTable, match="items"):
            sink(node).subscribe("source", "absent")
        early = sink(node).follow("not_yet")
        assert early.replica.state is ReplicaState.SYNCING
        assert len(early.replica) == 0
        other.register("not_yet", Source)
        other.ask("not_yet", "insert", [[1, "one"]])
        early.wait_equal([(1, "one")])

    def test_a_replica_outlives_its_publisher(self, network: Network) -> None:
        node, first = network.pair({"sink": Sink}, {"source": Source}, heartbeat_interval=BEAT)
        first.ask("source", "replace", [[1, "stays"], [2, "goes"]])
        followed = sink(node).follow("source")
        followed.wait_equal([(1, "stays"), (2, "goes")])
        epoch = followed.replica.version[0]
        first.kill()
        followed.replica.wait(ReplicaState.STALE, 6 * BEAT + MARGIN + PROMPT)
        assert followed.replica.rows == {(1, "stays"), (2, "goes")}
        told = len(followed.changes)

        second = network.far({"spare": Source}, heartbeat_interval=BEAT)
        second.register("source", Source)
        second.ask("source", "replace", [[1, "stays"], [3, "comes"]])
        followed.wait_equal([(1, "stays"), (3, "comes")])
        assert followed.replica.version[0] != epoch
        news = followed.changes[told:]
        # The new life may have been met while it was empty still.
        assert {row for change in news for row in change.added} - {(1, "stays")} == {(3, "comes")}
        assert (2, "goes") in {row for change in news for row in change.removed}

    def test_after_a_restart_only_the_difference_is_told(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink, "source": Source}, {"far": Sink})
        source = node.service("source")
        assert isinstance(source, Source)
        source.items.replace([(1, "stays"), (2, "goes")])
        followed = sink(node).follow("source")
        followed.wait_equal([(1, "stays"), (2, "goes")])
        other.ask("far", "begin", "source")
        node.unregister("source")
        followed.replica.wait(ReplicaState.STALE, DEADLINE)
        source.items.replace([(1, "stays"), (3, "comes")])
        node.register(source)
        followed.wait_equal([(1, "stays"), (3, "comes")])
        assert [(set(c.added), set(c.removed)) for c in followed.changes[1:]] == [({(3, "comes")}, {(2, "goes")})]
        other.ask("far", "wait_rows", [[1, "stays"], [3, "comes"]])

    @pytest.mark.parametrize("how", ["kill", "stop"])
    def test_another_replica_of_the_service_takes_over(self, network: Network, how: str) -> None:
        node, first, second = together(
            lambda: network.here({"sink": Sink}, heartbeat_interval=BEAT),
            lambda: network.far({"source": Source}, heartbeat_interval=BEAT),
            lambda: network.far({"source": Source}, heartbeat_interval=BEAT),
        )
        network.meet(node, "source", first, second)
        first.ask("source", "replace", [[1, "both"], [2, "first"]])
        second.ask("source", "replace", [[1, "both"], [3, "second"]])
        followed = sink(node).follow("source")
        followed.replica.wait(ReplicaState.LIVE, DEADLINE)
        followed.replica.wait(lambda r: len(r) == 2, DEADLINE)
        epoch = followed.replica.version[0]
        gone, stays = (first, second) if epoch == first.ask("source", "epoch") else (second, first)
        followed.wait_equal(gone.ask("source", "rows"))
        getattr(gone, how)()
        followed.wait_equal(stays.ask("source", "rows"), 6 * BEAT + PROMPT if how == "kill" else PROMPT)
        assert followed.replica.version[0] == stays.ask("source", "epoch")
        assert len(followed.changes) == 2
        assert (1, "both") not in followed.changes[1].added | followed.changes[1].removed

    def test_the_publisher_knows_whether_anybody_follows(self, network: Network) -> None:
        node, other = network.pair({"sink": Sink, "source": Source}, {"far": Sink}, heartbeat_interval=BEAT)
        source = node.service("source")
        assert isinstance(source, Source)
        other.ask("far", "begin", "source")
        source.wait_hooks("first items")
        mine = sink(node).follow("source")
        mine.replica.wait(ReplicaState.LIVE, DEADLINE)
        other.ask("far", "end")
        eventually(lambda: source.items.subscribers == 1, "one subscriber is left")
        assert source.hooks() == ["first items"]
        sink(node).unsubscribe(mine.replica)
        source.wait_hooks("first items", "last items")
        other.ask("far", "begin", "source")
        source.wait_hooks("first items", "last items", "first items")
        killed = time.monotonic()
        other.kill()
        source.wait_hooks("first items", "last items", "first items", "last items")
        assert time.monotonic() - killed < 6 * BEAT + MARGIN + PROMPT
        assert source.items.subscribers == 0

    def test_on_change_and_every_run_while_the_service_runs(self, network: Network) -> None:
        node, other = network.pair({}, {"source": Source})
        other.ask("source", "insert", [[1, "one"]])
        watcher = _Watcher("watcher")
        node.register(watcher)
        eventually(lambda: watcher.seen == {(1, "one")}, "the change is seen")
        eventually(lambda: watcher.ticks > 2, "the task runs again and again")
        node.unregister("watcher")
        ticks = watcher.ticks
        other.ask("source", "insert", [[2, "two"]])
        other.ask("source", "wait_hooks", "first items", "last items")
        assert watcher.seen == {(1, "one")}
        assert watcher.ticks == ticks
