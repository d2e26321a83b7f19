"""A bridge between two buses, each on a broker within this process: calls, tables, moves, faults, other bridges."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dse import (
    CallTimeout,
    Change,
    ConfigError,
    DataService,
    DseError,
    InvalidArguments,
    Node,
    NodeIdClash,
    NodeLost,
    NoSuchMethod,
    NoSuchService,
    NoSuchTable,
    Overloaded,
    PublishedTable,
    RemoteError,
    Replica,
    ReplicaState,
    Table,
    call_context,
    register_error,
    rpc,
)
from dse.core.keys import new_key
from dse.core.messages import CatchUp, ChangeMessage, SnapshotBegin, broadcast_address, decode
from dse.core.methods import encode_args
from dse.services.bridge import Bridge
from dse.testing.contract.recorder import eventually
from dse.testing.faults import FakeServer, InFlight

PATIENCE = 15.0
BEAT = 0.3  # seconds between heartbeats: a node that a busy machine leaves waiting for five is taken for dead
LIVE, STALE = ReplicaState.LIVE, ReplicaState.STALE


@register_error
class Jammed(Exception):
    """An error that crosses a bus as itself."""


class Printer(DataService):
    jobs = Table("number", "title")

    def __init__(self, service_id: str = "printer", who: str = "") -> None:
        super().__init__(service_id)
        self.who = who
        self.ran: Counter[str] = Counter()
        self.gate = threading.Event()
        self.began = threading.Event()
        self.subscribers: list[str] = []

    @rpc
    def print(self, title: str, copies: int = 1) -> str:
        """Print it."""
        self.ran[title] += 1
        return f"{self.who}{title} x{copies}"

    @rpc(idempotent=True)
    def look(self, title: str = "") -> str:
        self.ran[title] += 1
        return self.who

    @rpc
    def echo(self, value: Any) -> Any:
        return value

    @rpc
    def hold(self, title: str) -> str:
        self.ran[title] += 1
        self.began.set()
        self.gate.wait(PATIENCE)
        return title

    @rpc
    def jam(self, tray: int) -> None:
        raise Jammed("tray", tray)

    @rpc
    def burn(self) -> None:
        raise OSError("smoke")

    @rpc
    def caller(self) -> str:
        context = call_context()
        assert context is not None
        return context.node_id

    def on_first_subscriber(self, table: str) -> None:
        self.subscribers.append(f"+{table}")

    def on_last_unsubscribe(self, table: str) -> None:
        self.subscribers.append(f"-{table}")


class Desk(DataService):
    """Follows tables, and adds up what it is told."""

    def __init__(self, service_id: str = "desk") -> None:
        super().__init__(service_id)
        self.changes: list[Change] = []
        self.sum: Counter[Any] = Counter()
        self.states: list[ReplicaState] = []

    def follow(self, table: str = "jobs", service_id: str = "printer") -> Replica:
        return self.subscribe(service_id, table, self.seen, on_state=self.states.append)

    def seen(self, change: Change) -> None:
        self.changes.append(change)
        self.sum.update(change.added)
        self.sum.subtract(change.removed)
        assert set(self.sum.values()) <= {0, 1}, change


class Site:
    """Buses, nodes and bridges that end with the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.servers = [stack.enter_context(contextlib.closing(FakeServer())) for _ in range(3)]

    def url(self, place: int) -> str:
        return self.servers[place].url

    def node(self, place: int, *services: DataService, node_id: str | None = None, **options: Any) -> Node:
        node = Node(self.url(place), node_id=node_id or f"n{uuid.uuid4().hex[:6]}", services=services,
                    heartbeat_interval=BEAT, **options)  # fmt: skip
        return self.stack.enter_context(node)

    def bridge(self, one: int = 0, other: int = 1, **options: Any) -> Bridge:
        options = {"heartbeat_interval": BEAT, "settle": 0.1} | options
        return self.stack.enter_context(Bridge(self.url(one), self.url(other), **options))


@pytest.fixture
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(stack)


def reach(node: Node, service_id: str = "printer") -> Node:
    node.wait_for(service_id, PATIENCE)
    return node


def error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(DseError) as caught:
        call()
    return caught.value


def wait_withdrawn(node: Node, service_id: str = "printer") -> None:
    eventually(lambda: service_id not in node.control_bus.replicas, f"{service_id} is gone", PATIENCE)


class TestCalls:
    @pytest.fixture
    def printer(self, site: Site) -> Printer:
        printer = Printer(who="p:")
        site.node(0, printer, node_id="cellar")
        return printer

    @pytest.fixture
    def far(self, site: Site, printer: Printer) -> Node:
        site.bridge()
        return reach(site.node(1, Desk()))

    def test_the_result_comes_as_it_would_on_the_same_bus(self, far: Node, printer: Printer) -> None:
        assert far.call("printer", "print", {"title": "a"}) == "p:a x1"
        assert far.proxy("printer").print(title="b", copies=3) == "p:b x3"
        for value in (None, True, 1 << 63, -1.5, "ä", b"\0\xff", [1, [2, {"three": b"3"}]], {"": None}):
            assert far.call("printer", "echo", {"value": value}) == value
        assert printer.ran == {"a": 1, "b": 1}

    def test_the_catalogue_says_what_the_service_says(self, far: Node, printer: Printer) -> None:
        (info,) = [info for info in far.status().peers["bridge"].services if info.service_id == "printer"]
        assert (info.node_id, info.published_tables) == ("bridge", {"jobs": ("number", "title")})
        assert info.rpc_methods == printer.info.rpc_methods
        assert info.rpc_methods["print"].signature == "(title: str, copies: int = 1) -> str"
        assert info.rpc_methods["look"].idempotent

    def test_a_stand_in_is_known_as_one(self, far: Node, site: Site) -> None:
        assert far.status().peers["bridge"].stand_ins == {"printer"}
        near = site.node(0)
        assert near.status().peers["cellar"].stand_ins == frozenset()

    def test_an_exception_comes_with_type_message_and_traceback(self, far: Node) -> None:
        error = error_of(lambda: far.call("printer", "burn"))
        assert isinstance(error, RemoteError)
        assert (error.type_name, error.message) == ("OSError", "smoke")
        assert 'raise OSError("smoke")' in error.traceback

    def test_a_registered_exception_comes_as_itself(self, far: Node) -> None:
        with pytest.raises(Jammed) as caught:
            far.call("printer", "jam", {"tray": 3})
        assert caught.value.args == ("tray", 3)

    def test_what_does_not_fit_is_said_by_the_callee(self, far: Node, printer: Printer) -> None:
        error = error_of(lambda: far.call("printer", "print", {"title": 5}))
        assert isinstance(error, InvalidArguments)
        assert "argument `title`" in str(error)
        error = error_of(lambda: far.call("printer", "paint"))
        assert isinstance(error, NoSuchMethod)
        assert "it has: burn, caller" in str(error)
        assert not printer.ran

    def test_a_timeout_says_how_far_the_call_got(
        self, far: Node, printer: Printer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bridge's time is over before its caller's; here by far, on whatever machine."""
        monkeypatch.setattr("dse.core.relay._EARLIER", 9.0)
        monkeypatch.setattr("dse.core.relay._SHARE", 0.9)
        error = error_of(lambda: far.call("printer", "hold", {"title": "x"}, timeout=10.0))
        assert isinstance(error, CallTimeout)
        assert "beyond the bridge 'bridge', on bus 'dse' at fake://" in str(error)
        assert "'cellar'" in str(error)
        printer.gate.set()

    def test_a_callee_that_dies_is_lost(self, site: Site, far: Node, printer: Printer) -> None:
        future = far.call_async("printer", "hold", {"title": "x"}, timeout=20.0)
        assert printer.began.wait(PATIENCE)
        site.servers[0].faults.cut(printer.node.runtime)
        error = future.exception(PATIENCE)
        assert isinstance(error, NodeLost)
        assert "'cellar' died" in str(error)
        printer.gate.set()

    def test_a_call_that_may_be_repeated_goes_to_another_replica(self, site: Site, far: Node, printer: Printer) -> None:
        second = Printer(who="second")
        site.node(0, second, node_id="attic")
        eventually(lambda: far.call("printer", "look") == "second", "the second is called, too", PATIENCE)
        site.servers[0].faults.cut(second.node.runtime)
        assert {far.call("printer", "look", timeout=PATIENCE) for _ in range(4)} == {"p:"}

    def test_an_overloaded_callee_says_so(self, site: Site) -> None:
        busy = Printer("busy")
        site.node(0, busy, workers=1, max_pending=1)
        site.bridge(name="second")
        far = reach(site.node(1), "busy")
        futures = [far.call_async("busy", "hold", {"title": str(number)}) for number in range(4)]
        errors = [future.exception(PATIENCE) for future in futures[2:]]
        busy.gate.set()
        assert any(isinstance(error, Overloaded) for error in errors)
        assert [future.exception(PATIENCE) for future in futures[:1]] == [None]

    def test_many_slow_calls_do_not_wait_for_each_other(self, site: Site, far: Node, printer: Printer) -> None:
        """More than a bridge has threads."""
        held = [far.call_async("printer", "hold", {"title": str(number)}, timeout=30.0) for number in range(31)]
        assert far.call("printer", "print", {"title": "now"}, timeout=PATIENCE) == "p:now x1"
        many = Printer("many")
        site.node(0, many)
        reach(far, "many")
        more = [far.call_async("many", "hold", {"title": str(number)}, timeout=30.0) for number in range(31)]
        assert far.call("many", "print", {"title": "now"}, timeout=PATIENCE) == "now x1"
        printer.gate.set()
        many.gate.set()
        assert [each.exception(PATIENCE) for each in held + more] == [None] * 62

    def test_casts_and_broadcasts_arrive_once(self, site: Site, far: Node, printer: Printer) -> None:
        second = Printer(who="second")
        site.node(0, second)
        eventually(lambda: far.call("printer", "look") == "second", "the second is called, too", PATIENCE)
        for number in range(6):
            far.cast("printer", "print", {"title": f"c{number}"})
        far.broadcast("printer", "print", {"title": "b"})
        eventually(lambda: printer.ran["b"] + second.ran["b"] == 2, "the broadcast is with both", PATIENCE)
        casts = [f"c{number}" for number in range(6)]
        eventually(lambda: all(printer.ran[c] + second.ran[c] for c in casts), "the casts are there", PATIENCE)
        assert [printer.ran[c] + second.ran[c] for c in casts] == [1] * 6
        assert printer.ran["b"] == second.ran["b"] == 1

    def test_call_all_asks_one_replica_of_the_other_bus(self, site: Site, far: Node, printer: Printer) -> None:
        site.node(0, Printer(who="second"))
        outcomes = far.call_all("printer", "print", {"title": "x"}, timeout=5.0)
        assert list(outcomes) == ["bridge"]
        assert outcomes["bridge"].unwrap().endswith("x x1")

    def test_the_callee_sees_the_bridge_as_its_caller(self, far: Node) -> None:
        assert far.call("printer", "caller") == "bridge"


class TestKeys:
    """Buses with keys: the same on both, others on each, or none on one of them."""

    OLD, NEW = [new_key("old")], [new_key("new")]

    @pytest.mark.parametrize(
        ("keys", "to_keys", "near", "far"),
        [(OLD, None, OLD, OLD), (OLD, NEW, OLD, NEW), (OLD, (), OLD, None), (None, NEW, None, NEW)],
        ids=["same", "others", "first", "second"],
    )
    def test_calls_and_tables_cross(self, site: Site, keys: Any, to_keys: Any, near: Any, far: Any) -> None:
        printer, desk = Printer(who="p:"), Desk()
        site.node(0, printer, keys=near)
        site.bridge(keys=keys, to_keys=to_keys)
        node = reach(site.node(1, desk, keys=far))
        assert node.call("printer", "print", {"title": "a"}) == "p:a x1"
        printer.jobs.insert([(1, "a")])
        desk.follow().wait(lambda replica: (1, "a") in replica, PATIENCE)

    def test_who_has_not_the_key_of_a_bus_sees_nothing_of_the_other(self, site: Site) -> None:
        site.node(0, Printer(), keys=self.OLD)
        site.bridge(keys=self.OLD, to_keys=self.NEW)
        reach(site.node(1, keys=self.NEW))
        stranger = site.node(1, keys=self.OLD)
        assert error_of(lambda: stranger.call("printer", "print", {"title": "a"}, timeout=2.0))


class TestTables:
    @pytest.fixture
    def printer(self, site: Site) -> Printer:
        printer = Printer()
        site.node(0, printer, node_id="cellar")
        printer.jobs.insert([(1, "one"), (2, "two")])
        return printer

    @pytest.fixture
    def desk(self, site: Site, printer: Printer) -> Desk:
        site.bridge()
        desk = Desk()
        reach(site.node(1, desk))
        return desk

    def test_a_follower_sees_every_change_as_it_was_made(self, desk: Desk, printer: Printer) -> None:
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        assert set(replica.rows) == {(1, "one"), (2, "two")}
        assert replica.columns == ("number", "title")
        made = [printer.jobs.apply([(number, "x")], [(number - 2, "x")]) for number in range(10, 200)]
        replica.wait(lambda replica: (199, "x") in replica, PATIENCE)
        eventually(lambda: len(desk.changes) > len(made), "all callbacks", PATIENCE)
        assert [(c.added, c.removed) for c in desk.changes[1:]] == [(c.added, c.removed) for c in made]

    def test_it_is_followed_while_somebody_follows_it(self, site: Site, desk: Desk, printer: Printer) -> None:
        assert printer.subscribers == []
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        eventually(lambda: printer.subscribers == ["+jobs"], "its publisher knows", PATIENCE)
        eventually(
            lambda: any(("printer", "jobs") in info.subscribed_tables
                        for info in printer.node.status().peers["bridge"].services),
            "the bridge's service is seen to follow it", PATIENCE,
        )  # fmt: skip
        desk.unsubscribe(replica)
        eventually(lambda: printer.subscribers == ["+jobs", "-jobs"], "it is followed no more", PATIENCE)
        printer.jobs.replace([(7, "seven")])
        again = desk.follow()
        again.wait(LIVE, PATIENCE)
        assert set(again.rows) == {(7, "seven")}

    def test_an_empty_table_is_known_to_be_empty(self, desk: Desk, printer: Printer) -> None:
        printer.jobs.replace([])
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        assert len(replica) == 0

    def test_a_table_that_does_not_exist_is_waited_for(self, desk: Desk, printer: Printer) -> None:
        """What a bridge says of a service is hearsay: the table may be there, and its publisher out of reach."""
        with pytest.raises(NoSuchTable):
            desk.subscribe("bridge", "nothing")
        replica = desk.follow("later")
        printer.add_table("later", "x", rows=[(1,)])
        replica.wait(LIVE, PATIENCE)
        assert set(replica.rows) == {(1,)}

    def test_tables_that_come_and_go(self, desk: Desk, printer: Printer) -> None:
        printer.add_table("trays", "tray", rows=[(1,)])
        eventually(lambda: "trays" in desk.node.control_bus.replicas["printer"][0].services["printer"].published_tables,
                   "the new table", PATIENCE)  # fmt: skip
        replica = desk.follow("trays")
        replica.wait(LIVE, PATIENCE)
        printer.remove_table("trays")
        replica.wait(STALE, PATIENCE)
        assert set(replica.rows) == {(1,)}
        printer.add_table("trays", "tray", "paper", rows=[(1, "A4")])
        replica.wait(LIVE, PATIENCE)
        replica.wait(lambda replica: (1, "A4") in replica, PATIENCE)
        assert replica.columns == ("tray", "paper")
        eventually(lambda: +desk.sum == {(1, "A4"): 1}, "the callbacks", PATIENCE)

    def test_a_publisher_that_restarts_is_told_as_a_difference(self, site: Site, desk: Desk, printer: Printer) -> None:
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        node = printer.node
        node.unregister("printer")
        replica.wait(STALE, PATIENCE)
        assert set(replica.rows) == {(1, "one"), (2, "two")}
        printer.jobs.replace([(2, "two"), (3, "three")])
        node.register(printer)
        replica.wait(LIVE, PATIENCE)
        eventually(lambda: len(desk.changes) == 2, "the difference", PATIENCE)
        assert (desk.changes[1].added, desk.changes[1].removed) == ({(3, "three")}, {(1, "one")})

    def test_a_table_that_nobody_knows_yet_is_waited_for(self, site: Site, desk: Desk) -> None:
        class Slow(DataService):
            rows = Table("x", pending=True)

        slow = Slow("slow")
        site.node(0, slow)
        reach(desk.node, "slow")
        replica = desk.follow("rows", "slow")
        eventually(lambda: slow.rows.subscribers == 1, "it is followed", PATIENCE)
        assert replica.state is ReplicaState.SYNCING
        slow.rows.replace([(1,)])
        replica.wait(LIVE, PATIENCE)
        assert set(replica.rows) == {(1,)}

    def test_a_large_table_goes_through(self, desk: Desk, printer: Printer) -> None:
        printer.jobs.replace((number, f"job {number}") for number in range(50_000))
        replica = desk.follow()
        replica.wait(lambda replica: len(replica) == 50_000, 60.0)
        printer.jobs.delete([(0, "job 0")])
        replica.wait(lambda replica: len(replica) == 49_999, PATIENCE)

    def test_fast_changes_arrive_whole(self, desk: Desk, printer: Printer) -> None:
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        for number in range(3_000):
            printer.jobs.apply([(number, "fast")], [(number - 5, "fast")])
        replica.wait(lambda replica: (2_999, "fast") in replica, PATIENCE)
        assert set(replica.rows) == set(printer.jobs.rows)
        eventually(lambda: set(+desk.sum) == set(printer.jobs.rows), "the callbacks", PATIENCE)


class TestMoves:
    def test_followers_and_callers_on_both_sides_stay_with_a_service_that_moves(self, site: Site) -> None:
        near, far = Desk("near"), Desk("far")
        home, there = site.node(0, near), site.node(1, far)
        first = Printer(who="first:")
        site.node(0, first, node_id="old")
        first.jobs.insert([(1, "one"), (2, "two")])
        site.bridge()
        reach(there), reach(home)
        replicas = [near.follow(), far.follow()]
        for replica in replicas:
            replica.wait(LIVE, PATIENCE)
        first.node.stop()
        for replica in replicas:
            replica.wait(STALE, PATIENCE)
        wait_withdrawn(there)
        second = Printer(who="second:")
        second.jobs.insert([(2, "two"), (3, "three")])
        site.node(1, second, node_id="new")
        for replica in replicas:
            replica.wait(LIVE, PATIENCE)
            replica.wait(lambda replica: set(replica.rows) == {(2, "two"), (3, "three")}, PATIENCE)
        for desk in (near, far):
            eventually(lambda: len(desk.changes) == 2, "the difference", PATIENCE)  # noqa: B023
            assert (desk.changes[1].added, desk.changes[1].removed) == ({(3, "three")}, {(1, "one")})
        for node in (home, there):
            assert reach(node).call("printer", "print", {"title": "x"}) == "second:x x1"

    def test_each_bus_uses_its_own_while_both_have_it(self, site: Site) -> None:
        desk = Desk()
        home, there = site.node(0), site.node(1, desk)
        old, new = Printer(who="old:"), Printer(who="new:")
        old.jobs.insert([(1, "old")])
        new.jobs.insert([(1, "new")])
        site.node(0, old)
        bridge = site.bridge()
        reach(there)
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        host = site.node(1, new)
        wait_without_stand_in(there)
        replica.wait(lambda replica: set(replica.rows) == {(1, "new")}, PATIENCE)
        assert {there.call("printer", "print", {"title": "x"}) for _ in range(4)} == {"new:x x1"}
        assert {home.call("printer", "print", {"title": "x"}) for _ in range(4)} == {"old:x x1"}
        assert {row[3] for row in bridge.carried() if row[0] == "printer"} == {"on both"}
        there.broadcast("printer", "print", {"title": "all"})
        eventually(lambda: new.ran["all"] == 1, "the broadcast", PATIENCE)
        assert old.ran["all"] == 0
        host.stop()
        eventually(lambda: "printer" in there.control_bus.replicas, "the stand-in is back", PATIENCE)
        replica.wait(lambda replica: set(replica.rows) == {(1, "old")}, PATIENCE)

    def test_callers_prefer_a_native_to_a_stand_in_that_has_not_gone_yet(self, site: Site) -> None:
        old, new = Printer(who="old:"), Printer(who="new:")
        site.node(0, old)
        bridge = site.bridge()
        there = reach(site.node(1))
        site.servers[1].faults.cut(bridge.other.node.runtime)  # it cannot take the stand-in away
        site.node(1, new)
        eventually(lambda: len(there.control_bus.replicas["printer"]) == 2, "both are known", PATIENCE)
        assert {there.call("printer", "print", {"title": "x"}) for _ in range(6)} == {"new:x x1"}
        assert len(there.call_all("printer", "print", {"title": "y"})) == 1
        assert old.ran == {}

    def test_a_call_under_way_is_answered_when_the_bridge_ends(self, site: Site) -> None:
        printer = Printer()
        site.node(0, printer)
        bridge = Bridge(site.url(0), site.url(1), heartbeat_interval=BEAT, settle=0.1)
        bridge.start()
        there = reach(site.node(1))
        future = there.call_async("printer", "hold", {"title": "x"}, timeout=PATIENCE)
        assert printer.began.wait(PATIENCE)
        ending = threading.Thread(target=bridge.stop)
        ending.start()
        wait_withdrawn(there)
        assert isinstance(error_of(lambda: there.call("printer", "print", {"title": "y"})), NoSuchService)
        printer.gate.set()
        assert future.result(PATIENCE) == "x"
        ending.join(PATIENCE)
        assert printer.ran == {"x": 1}


def wait_without_stand_in(node: Node, service_id: str = "printer") -> None:
    def gone() -> bool:
        members = node.control_bus.replicas.get(service_id, ())
        return bool(members) and not any(service_id in member.stand_ins for member in members)

    eventually(gone, "there is no stand-in", PATIENCE)


class TestChoice:
    def names(self, node: Node) -> set[str]:
        return set(node.control_bus.replicas) - {"bridge"}

    def test_one_way(self, site: Site) -> None:
        home, there = site.node(0, Printer("here")), site.node(1, Printer("there"))
        site.bridge(one_way=True)
        reach(there, "here")
        reach(home, "bridge")
        assert self.names(home) == set()

    def test_only_and_except(self, site: Site) -> None:
        class Office(DataService):
            open = Table("x")
            secret = Table("x")
            other = Table("x")

        site.node(0, Office("office"), Printer("printer1"), Printer("printer2"), Printer("scanner"))
        there = site.node(1)
        bridge = site.bridge(only=["printer?", "office:o*"], leave_out=["printer2", "office:other"])
        reach(there, "office")
        reach(there, "printer1")
        eventually(lambda: len(bridge.carried()) == 4, "all are judged", PATIENCE)
        assert self.names(there) == {"office", "printer1"}
        (office,) = there.control_bus.replicas["office"]
        assert set(office.services["office"].published_tables) == {"open"}
        why = {row[0]: row[-1] for row in bridge.carried() if row[3] == "left out"}
        assert why == {"printer2": "--except printer2", "scanner": "not in --only"}

    @pytest.mark.parametrize("pattern", ["", "a b", ":x", "x:", "a:b:c"])
    def test_what_is_no_pattern_is_refused(self, pattern: str) -> None:
        with pytest.raises(ConfigError, match="is no pattern"):
            Bridge("fake://a", "fake://b", only=[pattern])

    def test_two_buses_of_one_broker(self, site: Site) -> None:
        printer = Printer()
        site.stack.enter_context(Node(site.url(0), bus="old", services=[printer]))
        site.bridge(0, 0, bus="old", to_bus="new")
        there = site.stack.enter_context(Node(site.url(0), bus="new"))
        assert reach(there).call("printer", "print", {"title": "x"}) == "x x1"

    def test_a_bus_and_itself_are_refused_however_the_urls_are_spelled(self, site: Site) -> None:
        server = site.servers[0]
        bridge = Bridge(server.url, server.direct_url, heartbeat_interval=BEAT)
        with pytest.raises(ConfigError, match="are the same bus"):
            bridge.start()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("dse-bridge")]

    def test_a_second_bridge_of_the_same_name_is_refused(self, site: Site) -> None:
        site.bridge()
        with pytest.raises(NodeIdClash):
            Bridge(site.url(0), site.url(1), heartbeat_interval=BEAT).start()


class TestSeveralBridges:
    def test_two_bridges_between_two_buses_double_nothing(self, site: Site) -> None:
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        there = site.node(1, desk)
        printer.jobs.insert([(1, "one")])
        site.bridge(name="east")
        west = site.bridge(name="west")
        eventually(lambda: len(there.control_bus.replicas.get("printer", ())) == 2, "both offer it", PATIENCE)
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        titles = [f"t{number}" for number in range(20)]
        for title in titles:
            there.call("printer", "print", {"title": title})
        assert len(there.call_all("printer", "print", {"title": "all"})) == 1
        there.broadcast("printer", "print", {"title": "everybody"})
        there.cast("printer", "print", {"title": "anybody"})
        eventually(lambda: printer.ran["everybody"] and printer.ran["anybody"], "casts arrive", PATIENCE)
        west.stop()
        for title in titles:
            there.call("printer", "print", {"title": f"{title}b"})
        replica.wait(LIVE, PATIENCE)
        assert set(printer.ran.values()) == {1}
        assert desk.sum == {(1, "one"): 1}

    def test_when_one_of_two_bridges_dies_the_other_is_used(self, site: Site) -> None:
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        there = site.node(1, desk)
        printer.jobs.insert([(1, "one"), (2, "two")])
        bridges = {name: site.bridge(name=name) for name in ("east", "west")}
        eventually(lambda: len(there.control_bus.replicas.get("printer", ())) == 2, "both offer it", PATIENCE)
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        (followed,) = [bridge for bridge in bridges.values() if any(lane[7] for lane in bridge.carried())]
        for place, side in ((0, followed.one), (1, followed.other)):
            site.servers[place].faults.cut(side.node.runtime)
        printer.jobs.apply([(3, "three")], [(1, "one")])
        replica.wait(lambda replica: set(replica.rows) == {(2, "two"), (3, "three")}, PATIENCE)
        replica.wait(LIVE, PATIENCE)
        eventually(lambda: len(desk.changes) == 2, "only the difference", PATIENCE)
        there.broadcast("printer", "print", {"title": "everybody"})
        for number in range(4):
            there.call("printer", "print", {"title": f"t{number}"})
        eventually(lambda: printer.ran["everybody"] == 1, "the broadcast arrives", PATIENCE)
        for server in site.servers[:2]:
            server.mend()
        eventually(lambda: len(there.control_bus.replicas["printer"]) == 2, "both offer it again", PATIENCE)
        printer.jobs.insert([(4, "four")])
        replica.wait(lambda replica: len(replica) == 3, PATIENCE)
        there.call("printer", "print", {"title": "last"})
        assert set(printer.ran.values()) == {1}

    def test_a_ring_of_three_multiplies_nothing(self, site: Site) -> None:
        printer, desks = Printer(), [Desk(f"desk{place}") for place in range(3)]
        host = site.node(0, printer)
        nodes = [site.node(place, desks[place]) for place in range(3)]
        bridges = [site.bridge(a, b, name=f"bridge{a}{b}") for a, b in ((0, 1), (1, 2), (2, 0))]
        for node in nodes[1:]:
            reach(node)
        replicas = [desk.follow() for desk in desks]
        for replica in replicas:
            replica.wait(LIVE, PATIENCE)
        printer.jobs.insert([(1, "one")])
        for node in nodes[1:]:
            node.call("printer", "print", {"title": f"of {node.node_id}"})
            node.broadcast("printer", "print", {"title": f"all of {node.node_id}"})
        eventually(lambda: len(printer.ran) == 4, "all ran", PATIENCE)
        for replica in replicas:
            replica.wait(lambda replica: len(replica) == 1, PATIENCE)
        # Each bus has one stand-in for it, that of the bridge to its own bus.
        for place, name in ((1, "bridge01"), (2, "bridge20")):
            members = nodes[place].control_bus.replicas.get("printer", ())
            assert [member.node_id for member in members] == [name]
        host.stop()
        for node in nodes:
            wait_withdrawn(node)
        for replica in replicas:
            replica.wait(STALE, PATIENCE)
        assert set(printer.ran.values()) == {1}
        assert {row[0] for bridge in bridges for row in bridge.carried()} <= {
            "desk0", "desk1", "desk2", "bridge01", "bridge12", "bridge20",
        }  # fmt: skip

    def test_what_was_relayed_is_relayed_no_further(self, site: Site) -> None:
        """A stand-in that gets a relayed call, from a bridge with an older catalogue, does not run it."""
        printer = Printer()
        site.node(0, printer)
        bridge = site.bridge()
        there = reach(site.node(1))
        client = there.runtime.client
        args = encode_args("x", {"title": "x"})
        error = client.relay("printer", "print", args, 5.0).exception(PATIENCE)
        assert isinstance(error, NoSuchService)
        client.cast("printer", "print", args, broadcast_address("printer"), 5.0, relayed=True)
        assert there.call("printer", "print", {"title": "y"}) == "y x1"
        assert printer.ran == {"y": 1}
        assert bridge.carried()


class TestFaults:
    def test_a_broker_that_is_down_makes_its_side_stale_and_is_named(self, site: Site) -> None:
        printer, desk = Printer(), Desk()
        site.node(0, printer, node_id="cellar")
        printer.jobs.insert([(1, "one")])
        bridge = site.bridge()
        there = reach(site.node(1, desk))
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        server = site.servers[0]
        server.stop()
        replica.wait(STALE, PATIENCE)
        assert set(replica.rows) == {(1, "one")}
        began = time.monotonic()
        error = error_of(lambda: there.call("printer", "print", {"title": "x"}, timeout=5.0))
        assert time.monotonic() - began < 2.0
        assert isinstance(error, NoSuchService)
        assert f"on bus 'dse' at {server.url}" in str(error)
        late = Desk("late")
        there.register(late)
        waiting = late.follow()  # as if its publisher was not there: it comes
        printer.jobs.insert([(2, "two")])
        eventually(lambda: any(row[3] == "cut off" for row in bridge.carried()), "it says so", PATIENCE)
        watch = Desk("watch")
        there.register(watch)
        status = watch.follow("status", "bridge")
        status.wait(lambda replica: any(row[1] == "DEGRADED" for row in replica.rows), PATIENCE)
        server.start()
        for each in (replica, waiting):
            each.wait(lambda replica: set(replica.rows) == {(1, "one"), (2, "two")}, PATIENCE)
            each.wait(LIVE, PATIENCE)
        eventually(lambda: len(desk.changes) == 2, "only the difference", PATIENCE)
        assert reach(there).call("printer", "print", {"title": "x"}, timeout=PATIENCE) == "x x1"
        status.wait(lambda replica: {row[1] for row in replica.rows} == {"OK"}, PATIENCE)
        assert printer.ran == {"x": 1}

    def test_a_bridge_that_is_cut_off_from_one_side_lets_nobody_wait(self, site: Site) -> None:
        """It takes who is silent there for dead, or notices before that its connection is."""
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        printer.jobs.insert([(1, "one")])
        bridge = site.bridge()
        there = reach(site.node(1, desk))
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        site.servers[0].faults.cut(bridge.one.node.runtime)
        replica.wait(STALE, PATIENCE)

        def refused() -> bool:
            return isinstance(
                error_of(lambda: there.call("printer", "print", {"title": "x"}, timeout=1.0)), NoSuchService
            )

        eventually(refused, "calls are refused", PATIENCE)
        printer.jobs.insert([(2, "two")])
        site.servers[0].faults.mend()
        replica.wait(lambda replica: len(replica) == 2, PATIENCE)
        replica.wait(LIVE, PATIENCE)
        eventually(lambda: len(desk.changes) == 2, "only the difference", PATIENCE)
        assert reach(there).call("printer", "print", {"title": "y"}, timeout=PATIENCE) == "y x1"

    def test_a_call_that_may_be_repeated_waits_for_the_broker(self, site: Site) -> None:
        printer = Printer(who="me")
        site.node(0, printer)
        bridge = site.bridge()
        there = reach(site.node(1))
        site.servers[0].stop()
        eventually(lambda: not bridge.one.node.connected, "the outage is noticed", PATIENCE)
        future = there.call_async("printer", "look", timeout=PATIENCE)
        site.servers[0].start()
        assert future.result(PATIENCE + 5.0) == "me"

    def test_the_broker_of_the_followers_goes_and_comes(self, site: Site) -> None:
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        site.bridge()
        reach(site.node(1, desk))
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        site.servers[1].stop()
        replica.wait(STALE, PATIENCE) if replica.version[0] else None
        for number in range(50):
            printer.jobs.insert([(number, "x")])
        site.servers[1].start()
        replica.wait(lambda replica: len(replica) == 50, PATIENCE)
        eventually(lambda: sum(desk.sum.values()) == 50, "the callbacks", PATIENCE)

    def test_a_bridge_that_dies_is_replaced(self, site: Site) -> None:
        """Its followers converge on what there is; a call that was with it is lost, and runs no second time."""
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        printer.jobs.insert([(1, "one"), (2, "two")])
        dead = site.bridge()
        there = reach(site.node(1, desk))
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        held = there.call_async("printer", "hold", {"title": "held"}, timeout=5.0)
        assert printer.began.wait(PATIENCE)
        for place, side in ((0, dead.one), (1, dead.other)):
            site.servers[place].faults.cut(side.node.runtime)
        printer.jobs.replace([(2, "two"), (3, "three")])
        site.bridge()
        assert isinstance(held.exception(PATIENCE), NodeLost)
        replica.wait(lambda replica: set(replica.rows) == {(2, "two"), (3, "three")}, PATIENCE)
        replica.wait(LIVE, PATIENCE)
        printer.gate.set()
        eventually(lambda: len(desk.changes) == 2, "only the difference", PATIENCE)
        assert reach(there).call("printer", "print", {"title": "x"}) == "x x1"
        assert printer.ran == {"held": 1, "x": 1}

    def test_nothing_is_left_when_it_ends(self, site: Site) -> None:
        site.node(0, Printer())
        desk = Desk()
        there = site.node(1, desk)
        before = set(threading.enumerate())
        for _ in range(2):
            bridge = Bridge(site.url(0), site.url(1), heartbeat_interval=BEAT, settle=0.1, name="short")
            with bridge:
                reach(there)
                replica = desk.follow()
                replica.wait(LIVE, PATIENCE)
            assert not [each for each in threading.enumerate() if each not in before and "short" in each.name]
            assert "printer" not in there.control_bus.replicas
            desk.unsubscribe(replica)

    def test_what_cannot_be_carried_keeps_nothing_else_from_it(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A node whose catalogue is not what it should be."""
        liar = site.node(0, Printer("aaa"))
        offer = liar.runtime._catalogue()[0][0]
        liar.runtime.control_bus._machine.catalogue = lambda: ([offer | {"service_id": "no name"}], [])
        liar.runtime.announce()
        bridge = site.bridge()
        site.node(0, Printer("zzz"))
        there = reach(site.node(1), "zzz")
        assert there.call("zzz", "print", {"title": "x"}) == "x x1"
        eventually(
            lambda: [row[3] for row in bridge.carried() if row[0] == "no name"] == ["failed"], "it says", PATIENCE
        )
        bridge._look()
        bridge._look()
        reach(site.node(1), "zzz")
        assert len([each for each in caplog.messages if "'no name'" in each and "is not carried" in each]) == 1

    def test_it_can_be_started_again(self, site: Site) -> None:
        site.node(0, Printer())
        there = site.node(1)
        bridge = Bridge(site.url(0), site.url(1), heartbeat_interval=BEAT, settle=0.1)
        for title in ("a", "b"):
            with bridge:
                assert reach(there).call("printer", "print", {"title": title}) == f"{title} x1"
            wait_withdrawn(there)

    def test_a_copy_that_stays_incomplete_is_stale_for_its_followers(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A change was lost on the way to the bridge, and so is every answer to its question."""
        monkeypatch.setattr("dse.services.bridge.lane.PATIENCE", 0.2)
        printer, desk = Printer(), Desk()
        site.node(0, printer)
        bridge = site.bridge()
        there = reach(site.node(1, desk))
        replica = desk.follow()
        replica.wait(LIVE, PATIENCE)
        lost = ChangeMessage, CatchUp, SnapshotBegin

        def to_bridge(sent: InFlight) -> bool:
            return sent.receiver is bridge.one.node.runtime.transport and isinstance(decode(sent.frame), lost)

        faults = site.servers[0].faults
        faults.drop(1.0, to_bridge)
        printer.jobs.insert([(1, "one")])
        replica.wait(STALE, PATIENCE)
        faults.clear()
        replica.wait(lambda replica: set(replica.rows) == {(1, "one")}, PATIENCE)
        replica.wait(LIVE, PATIENCE)
        assert there.call("printer", "print", {"title": "x"}) == "x x1"

    def test_it_ends_soon_with_a_broker_that_is_down(self, site: Site) -> None:
        site.node(0, Printer())
        there = site.node(1)
        bridge = Bridge(site.url(0), site.url(1), heartbeat_interval=BEAT, settle=0.1)
        bridge.start()
        reach(there)
        site.servers[0].stop()
        site.servers[1].stop()
        began = time.monotonic()
        bridge.stop()
        assert time.monotonic() - began < 8.0

    def test_a_bridge_whose_name_was_taken_ends_and_says_so(self, site: Site) -> None:
        bridge = site.bridge()
        bridge.one.node.clashed("an older one")
        assert bridge.wait(PATIENCE)
        assert isinstance(bridge.failed, NodeIdClash)


def test_a_table_of_one_name_changes_hands_while_it_is_followed(site: Site) -> None:
    """`StandIn.set_table`: the subscribers of the one are those of the next."""
    printer, desk = Printer(), Desk()
    site.node(0, printer)
    bridge = site.bridge()
    reach(site.node(1, desk))
    replica = desk.follow()
    replica.wait(LIVE, PATIENCE)
    stand_in: Any = bridge.other.node.service("printer")
    stand_in.set_table("jobs", PublishedTable("printer", "jobs", ("number", "title"), pending=True))
    fresh = stand_in.published_tables["jobs"]
    eventually(lambda: fresh.subscribers == 1, "it has the subscriber", PATIENCE)
    fresh.replace([(9, "nine")])
    replica.wait(lambda replica: set(replica.rows) == {(9, "nine")}, PATIENCE)
