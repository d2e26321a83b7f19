"""What all data sources have in common: polling, waking up, back-off, lazy work, an honest status."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dse import ConfigError, DataService, Node, RemoteError, Replica, ReplicaState
from dse.services.sources.base import Feed, Problem, Reading, Source

PATIENCE = 10.0


class Tap(Feed):
    """Gives what the test put there; fails, hangs and reports problems on demand."""

    def __init__(self, name: str = "water", *, interval: float | None = 0.02) -> None:
        super().__init__(name, ("litres",), interval=interval)
        self.reading: Reading | Exception | None = Reading([(1,)])
        self.hang = False
        self.reads: list[float] = []
        self.calls: list[str] = []
        self._let_go = threading.Event()
        self.seen = threading.Condition()

    def open(self) -> None:
        self.calls.append("open")

    def read(self) -> Reading | None:
        with self.seen:
            self.reads.append(time.monotonic())
            self.seen.notify_all()
        if self.hang:
            self._let_go.wait(PATIENCE)
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    def close(self) -> None:
        self.calls.append("close")

    def interrupt(self) -> None:
        self._let_go.set()

    def wait_reads(self, count: int) -> None:
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.reads) >= count, PATIENCE), self.reads


class Bus:
    def __init__(self, node: Node, reader: DataService) -> None:
        self.node, self.reader = node, reader

    def follow(self, table: str) -> Replica:
        return self.reader.subscribe("source", table)

    def wait_status(self, *row: object, table: str = "water") -> None:
        self.follow("status").wait(lambda replica: (table, *row) in replica, PATIENCE)


@contextmanager
def running(*taps: Tap, **options: Any) -> Iterator[tuple[Source, Bus]]:
    source, reader = Source("source", taps, **options), DataService("reader")
    url = f"fake://{uuid.uuid4().hex}"
    with Node(url, services=[source]), Node(url, services=[reader]) as node:
        node.wait_for("source", PATIENCE)
        yield source, Bus(node, reader)


def wait(until: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def no_threads_of(source: Source) -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith(f"{source.service_id}-")]


def test_a_table_holds_what_was_read_last() -> None:
    tap = Tap()
    with running(tap) as (source, bus):
        replica = bus.follow("water")
        replica.wait(lambda replica: replica.rows == {(1,)}, PATIENCE)
        tap.reading = Reading([(2,), (3,)])
        replica.wait(lambda replica: replica.rows == {(2,), (3,)}, PATIENCE)
        bus.wait_status("RUNNING", "")
        assert source.status == "running"
    assert no_threads_of(source)
    assert tap.calls == ["open", "close"]
    assert source.published_tables["status"].rows == {("water", "IDLE", "")}


def test_nobody_takes_a_table_that_was_not_read_yet_for_empty() -> None:
    tap = Tap()
    tap.hang = True
    with running(tap) as (_, bus):
        replica = bus.follow("water")
        tap.wait_reads(1)
        bus.wait_status("STARTING", "")
        assert replica.state is ReplicaState.SYNCING
        tap.interrupt()
        replica.wait(ReplicaState.LIVE, PATIENCE)
        assert replica.rows == {(1,)}


def test_a_failure_keeps_the_rows_says_why_and_is_over_by_itself() -> None:
    tap = Tap()
    with running(tap, max_backoff=0.05) as (source, bus):
        replica = bus.follow("water")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        tap.reading = OSError("the pipe is\nbroken")
        bus.wait_status("DEGRADED", "the pipe is broken")
        assert source.status == "degraded"
        assert replica.rows == {(1,)}
        assert replica.state is ReplicaState.LIVE
        assert bus.node.call("source", "problems", {"table": "water"}) == ["the pipe is\nbroken"]
        tap.reading = Reading([(4,)])
        replica.wait(lambda replica: replica.rows == {(4,)}, PATIENCE)
        bus.wait_status("RUNNING", "")
        assert bus.node.call("source", "problems", {"table": "water"}) == []


def test_pauses_after_failures_grow_to_the_longest() -> None:
    tap = Tap()
    tap.reading = OSError("no water")
    with running(tap, max_backoff=0.4):
        tap.wait_reads(9)
    pauses = [after - before for before, after in zip(tap.reads, tap.reads[1:], strict=False)]
    assert pauses[0] < 0.1
    assert all(pause >= 0.19 for pause in pauses[5:8]), pauses
    assert tap.calls[:4] == ["open", "close", "open", "close"]


def test_rows_that_do_not_fit_are_named_and_the_others_published() -> None:
    tap = Tap()
    tap.reading = Reading([(1,), (2,)], [Problem("meter:3", "column 'litres' is missing")], left_out=7)
    with running(tap) as (_, bus):
        replica = bus.follow("water")
        replica.wait(lambda replica: replica.rows == {(1,), (2,)}, PATIENCE)
        bus.wait_status("DEGRADED", "7 rows are left out: meter:3: column 'litres' is missing")
        tap.reading = None  # unchanged: what was left out is left out still
        tap.wait_reads(len(tap.reads) + 3)
        bus.wait_status("DEGRADED", "7 rows are left out: meter:3: column 'litres' is missing")


def test_a_row_that_no_table_can_hold_is_a_failure_that_names_it() -> None:
    tap = Tap()
    with running(tap) as (_, bus):
        replica = bus.follow("water")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        tap.reading = Reading([(2,), (float("nan"),)])
        bus.wait_status("DEGRADED", "source.water: column 'litres' is NaN in (nan,)")
        assert replica.rows == {(1,)}


def test_a_watcher_is_read_when_it_says_that_something_changed() -> None:
    tap = Tap(interval=None)
    with running(tap) as (_, bus):
        replica = bus.follow("water")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        tap.reading = Reading([(5,)])
        tap.changed()
        replica.wait(lambda replica: replica.rows == {(5,)}, PATIENCE)
        assert len(tap.reads) == 2


def test_a_lazy_source_works_only_while_somebody_subscribes() -> None:
    tap = Tap()
    with running(tap, lazy=True) as (source, bus):
        bus.wait_status("IDLE", "")
        assert tap.reads == []
        replica = bus.follow("water")
        replica.wait(lambda replica: replica.rows == {(1,)}, PATIENCE)
        bus.reader.unsubscribe(replica)
        bus.wait_status("IDLE", "")
        wait(lambda: no_threads_of(source))
        count, tap.reading = len(tap.reads), Reading([(6,)])
        # Not the rows of then: those of now, though nobody has read them yet.
        replica = bus.follow("water")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        assert replica.rows == {(6,)}
        assert len(tap.reads) > count
    assert no_threads_of(source)


def test_a_lazy_source_whose_last_subscriber_comes_back_at_once_goes_on() -> None:
    tap = Tap()
    with running(tap, lazy=True) as (source, bus):
        for _ in range(20):
            replica = bus.follow("water")
            replica.wait(ReplicaState.LIVE, PATIENCE)
            bus.reader.unsubscribe(replica)
        bus.wait_status("IDLE", "")
        wait(lambda: no_threads_of(source))


def test_stopping_interrupts_a_read_that_hangs() -> None:
    tap = Tap()
    tap.hang = True
    with running(tap) as (source, _):
        tap.wait_reads(1)
        began = time.monotonic()
    assert time.monotonic() - began < 3.0
    assert no_threads_of(source)


def test_a_source_can_be_stopped_and_started_again() -> None:
    tap = Tap()
    source = Source("source", [tap])
    for number in range(3):
        tap.reading = Reading([(number,)])
        reader = DataService("reader")
        with Node(f"fake://{uuid.uuid4().hex}", services=[source, reader]):
            replica = reader.subscribe("source", "water")
            replica.wait(ReplicaState.LIVE, PATIENCE)
            assert replica.rows == {(number,)}
        assert no_threads_of(source)


def test_feeds_fail_one_by_one() -> None:
    good, bad = Tap("good"), Tap("bad")
    bad.reading = OSError("dry")
    with running(good, bad) as (_, bus):
        bus.wait_status("DEGRADED", "dry", table="bad")
        bus.wait_status("RUNNING", "", table="good")
        with pytest.raises(RemoteError, match="fills no table 'other'; it fills: good, bad"):
            bus.node.call("source", "problems", {"table": "other"})


def test_what_cannot_be_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="status is the table in which"):
        Source("source", [Tap("status")])
    with pytest.raises(ConfigError, match="interval is a positive number"):
        Source("source", [Tap(interval=0.0)])
    with pytest.raises(ConfigError, match="max_backoff"):
        Source("source", [Tap()], max_backoff=-1.0)
