"""Tables that are made and removed while their service runs; who waits for them, and hears their states."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from dse import Change, ConfigError, DataService, Node, NoSuchTable, Replica, ReplicaState, Table, TableError

PATIENCE = 10.0


class Desk(DataService):
    fixed = Table("key")

    def __init__(self, service_id: str = "desk") -> None:
        super().__init__(service_id)
        self.hooks: list[tuple[str, str]] = []
        self.hooked = threading.Condition()

    def on_first_subscriber(self, table: str) -> None:
        with self.hooked:
            self.hooks.append(("first", table))
            self.hooked.notify_all()

    def on_last_unsubscribe(self, table: str) -> None:
        with self.hooked:
            self.hooks.append(("last", table))
            self.hooked.notify_all()

    def wait_hooks(self, *hooks: tuple[str, str]) -> None:
        with self.hooked:
            assert self.hooked.wait_for(lambda: self.hooks == list(hooks), PATIENCE), self.hooks


class Story:
    """What a subscriber is told: rows and states, in the order told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self._changed = threading.Condition()

    def change(self, change: Change) -> None:
        self._add((sorted(change.added), sorted(change.removed)))

    def state(self, state: ReplicaState) -> None:
        self._add(state)

    def _add(self, what: object) -> None:
        with self._changed:
            self.told.append(what)
            self._changed.notify_all()

    def wait(self, until: Callable[[list[object]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: until(self.told), PATIENCE), self.told


@pytest.fixture
def url() -> str:
    return f"fake://{uuid.uuid4().hex}"


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    desk = Desk()
    with Node(url, services=[desk]):
        yield desk


@pytest.fixture(params=["here", "there"])
def reader(request: pytest.FixtureRequest, url: str, desk: Desk) -> Iterator[DataService]:
    """A service on the same node, and on another."""
    service = DataService("reader")
    if request.param == "here":
        desk.node.register(service)
        yield service
    else:
        with Node(url, services=[service]) as node:
            node.wait_for("desk", PATIENCE)
            yield service


def live(replica: Replica) -> Replica:
    replica.wait(ReplicaState.LIVE, PATIENCE)
    return replica


def test_a_table_made_while_the_service_runs_is_followed_like_any_other(desk: Desk, reader: DataService) -> None:
    made = desk.add_table("made", "a", "b")
    made.insert([(1, "one")])
    replica = live(reader.subscribe("desk", "made", patient=True))
    assert replica.columns == ("a", "b")
    made.insert([(2, "two")])
    replica.wait(lambda replica: replica.rows == {(1, "one"), (2, "two")}, PATIENCE)
    assert desk.info.published_tables == {"fixed": ("key",), "made": ("a", "b")}
    desk.wait_hooks(("first", "made"))
    reader.unsubscribe(replica)
    desk.wait_hooks(("first", "made"), ("last", "made"))


def test_who_is_patient_waits_for_a_table_that_is_not_there_yet(desk: Desk, reader: DataService) -> None:
    with pytest.raises(NoSuchTable, match="publishes no table 'later'"):
        reader.subscribe("desk", "later")
    story = Story()
    replica = reader.subscribe("desk", "later", story.change, on_state=story.state, patient=True)
    desk.add_table("later", "a", rows=[(1,)])
    live(replica)
    story.wait(lambda told: told[-1:] == [ReplicaState.LIVE])
    assert story.told == [ReplicaState.SYNCING, ([(1,)], []), ReplicaState.LIVE]


def test_a_removed_table_leaves_its_followers_the_last_rows(desk: Desk, reader: DataService) -> None:
    made = desk.add_table("made", "a")
    made.insert([(1,)])
    story = Story()
    replica = live(reader.subscribe("desk", "made", story.change, on_state=story.state, patient=True))
    desk.remove_table("made")
    replica.wait(ReplicaState.STALE, PATIENCE)
    assert replica.rows == {(1,)}
    made.insert([(2,)])  # nobody's any more
    desk.add_table("made", "a", "b", rows=[(3, 4)])
    live(replica)
    assert replica.rows == {(3, 4)}
    assert replica.columns == ("a", "b")
    story.wait(lambda told: told[-1:] == [ReplicaState.LIVE] and len(told) > 4)
    rows: set[object] = set()
    for told in story.told:
        if isinstance(told, tuple):
            rows = (rows - set(told[1])) | set(told[0])
    assert rows == {(3, 4)}


def test_states_are_told_when_the_publisher_goes_and_comes_back(url: str) -> None:
    story, reader = Story(), DataService("reader")
    with Node(url, services=[reader]) as node:
        with Node(url, services=[Desk()]) as other:
            node.wait_for("desk", PATIENCE)
            reader.subscribe("desk", "fixed", story.change, on_state=story.state)
            story.wait(lambda told: told[-1:] == [ReplicaState.LIVE])
            other.stop()
        story.wait(lambda told: told[-1:] == [ReplicaState.STALE])
        with Node(url, services=[Desk()]):
            story.wait(lambda told: told[-1:] == [ReplicaState.LIVE])


def test_a_second_subscriber_is_told_the_state_that_holds(desk: Desk, reader: DataService) -> None:
    desk.fixed.insert([(1,)])
    live(reader.subscribe("desk", "fixed"))
    story = Story()
    reader.subscribe("desk", "fixed", story.change, on_state=story.state)
    story.wait(lambda told: told == [([(1,)], []), ReplicaState.LIVE])


def test_a_service_keeps_made_tables_when_it_is_stopped_and_started(url: str) -> None:
    desk = Desk()
    desk.add_table("made", "a").insert([(1,)])
    for _ in range(2):
        reader = DataService("reader")
        with Node(url, services=[desk]), Node(url, services=[reader]):
            replica = live(reader.subscribe("desk", "made", patient=True))
            assert replica.rows == {(1,)}


def test_misuse_is_refused_by_name(desk: Desk) -> None:
    with pytest.raises(TableError, match="'desk' has a table 'fixed' already"):
        desk.add_table("fixed", "a")
    with pytest.raises(TableError, match="declared by Desk"):
        desk.remove_table("fixed")
    with pytest.raises(NoSuchTable, match="no table 'nothing'; it has: fixed"):
        desk.remove_table("nothing")
    with pytest.raises(ConfigError, match="table name"):
        desk.add_table("no name", "a")
    with pytest.raises(ConfigError, match="at least one column"):
        desk.add_table("empty")
    assert set(desk.published_tables) == {"fixed"}


def test_many_threads_make_and_remove_tables_of_one_name(desk: Desk, reader: DataService) -> None:
    replica = reader.subscribe("desk", "busy", patient=True)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                try:
                    desk.add_table("busy", "a").insert([(number * 100 + turn,)])
                    desk.remove_table("busy")
                except TableError:
                    pass  # another thread was quicker
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 3)
    assert not failures
    if "busy" in desk.published_tables:
        desk.remove_table("busy")
    desk.add_table("busy", "a").insert([(-1,)])
    replica.wait(lambda replica: replica.state is ReplicaState.LIVE and replica.rows == {(-1,)}, PATIENCE)


class Meter(DataService):
    readings = Table("value", pending=True)


def test_a_pending_table_is_live_for_nobody_before_it_is_written_to(desk: Desk, reader: DataService) -> None:
    made = desk.add_table("made", "a", pending=True)
    story = Story()
    replica = reader.subscribe("desk", "made", story.change, on_state=story.state, patient=True)
    desk.wait_hooks(("first", "made"))
    with pytest.raises(TimeoutError, match="SYNCING"):
        replica.wait(ReplicaState.LIVE, 0.3)
    made.insert([(1,), (2,)])
    live(replica)
    made.delete([(1,)])
    story.wait(lambda told: told == [ReplicaState.SYNCING, ([(1,), (2,)], []), ReplicaState.LIVE, ([], [(1,)])])


def test_a_pending_table_that_is_found_to_be_empty_is_live(desk: Desk, reader: DataService) -> None:
    made = desk.add_table("made", "a", pending=True)
    replica = reader.subscribe("desk", "made", patient=True)
    desk.wait_hooks(("first", "made"))
    assert replica.state is ReplicaState.SYNCING
    assert not made.replace([])
    live(replica)
    assert len(replica) == 0


def test_followers_keep_their_rows_while_a_restarted_publisher_does_not_know_its_own(url: str) -> None:
    story, reader = Story(), DataService("reader")
    with Node(url, services=[reader]) as node:
        first = Meter("meter")
        with Node(url, services=[first]):
            node.wait_for("meter", PATIENCE)
            first.readings.insert([(1,), (2,)])
            replica = live(reader.subscribe("meter", "readings", story.change))
        second = Meter("meter")
        with Node(url, services=[second]):
            replica.wait(ReplicaState.SYNCING, PATIENCE)
            assert replica.rows == {(1,), (2,)}
            second.readings.replace([(2,), (3,)])
            replica.wait(lambda replica: replica.state is ReplicaState.LIVE and (3,) in replica, PATIENCE)
    assert story.told == [([(1,), (2,)], []), ([(3,)], [(1,)])]


def test_who_waits_for_a_pending_table_and_leaves_is_forgotten(desk: Desk, reader: DataService) -> None:
    made = desk.add_table("made", "a", pending=True)
    replica = reader.subscribe("desk", "made", patient=True)
    desk.wait_hooks(("first", "made"))
    reader.unsubscribe(replica)
    desk.wait_hooks(("first", "made"), ("last", "made"))
    made.insert([(1,)])
    assert made.subscribers == 0
