"""Permissions on a bus: who may not is told so at once, gets nothing, is counted, and disturbs nobody."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dse import (
    Change,
    ConfigError,
    DataService,
    Node,
    NoSuchService,
    Observer,
    Permission,
    Replica,
    ReplicaState,
    Table,
    Untrusted,
    on_change,
    rpc,
)
from dse.core import replica as replica_module
from dse.core import tables as tables_module
from dse.core.keys import Key, new_key, parse_keys
from dse.core.messages import (
    CONTROL,
    Catalogue,
    ChangeMessage,
    Clash,
    Heartbeat,
    Leave,
    Message,
    NoTable,
    Renew,
    Request,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    decode,
    encode,
    instance_address,
    table_address,
)
from dse.core.plugins import open_transport
from dse.core.seal import KeyRing, read_head
from dse.core.transport import Address, ConnectionState
from dse.errors import CallTimeout
from dse.testing.contract.recorder import eventually

DEADLINE = 10.0
AT_ONCE = 1.0
"""Seconds: an answer takes about one millisecond, and nothing but a loaded machine makes it longer. No timeout of the
tests' calls is below ten times that."""

ALL = Permission(allow=["join", "call", "publish", "subscribe"])
WEB, OPS, HOST = (new_key(name) for name in ("web", "ops", "host"))
KEYS = {"web": [WEB, OPS, HOST], "ops": [OPS, WEB, HOST], "host": [HOST, WEB, OPS]}
NO_KILL = [ALL, Permission(deny="call", service="host", method="kill", key="!ops")]


class Host(DataService):
    """Has a method that not everybody may call, and a table that not everybody may follow."""

    sockets = Table("port")
    secrets = Table("text")

    def __init__(self, service_id: str = "host") -> None:
        super().__init__(service_id)
        self.killed: list[int] = []
        self.listed = 0

    @rpc
    def kill(self, pid: int = 0) -> int:
        self.killed.append(pid)
        return pid

    @rpc
    def list(self) -> int:
        self.listed += 1
        return self.listed


class Endpoint:
    """A node's own methods."""

    def restart(self) -> str:
        return "restarted"


class Bus:
    """A bus on fake, and its nodes; each is named after its key."""

    def __init__(self) -> None:
        self.url = f"fake://{uuid.uuid4().hex}"
        self.nodes: list[Node] = []
        self._numbers = itertools.count(1)

    def node(self, key: str, *services: DataService, node_id: str | None = None, **options: Any) -> Node:
        node_id = node_id or f"{key}-{next(self._numbers)}"
        node = Node(
            self.url, node_id=node_id, services=services, keys=KEYS[key], heartbeat_interval=0.2,
            node_endpoints=[Endpoint()], **options,
        )  # fmt: skip
        self.nodes.append(node)
        node.start()
        return node

    def forger(self, key: str, instance: str, *, listens: bool = True) -> Forger:
        return Forger(self.url, parse_keys(KEYS[key]), instance, listens)


class Forger:
    """Somebody with a key, and no scruples: says what it likes, and writes down what it hears."""

    def __init__(self, url: str, keys: tuple[Key, ...], instance: str, listens: bool) -> None:
        self.instance = instance
        self._ring = KeyRing(keys, "dse")
        self._sealer = self._ring.sealer(instance)
        self.heard: list[Message] = []
        self.transport = open_transport(url, bus="dse", events=self)
        if listens:
            self.transport.listen(instance_address(instance))

    def say(self, address: Address, message: Message) -> None:
        self.transport.send(address, self._sealer.seal(address, encode(message)))

    def received(self, address: Address, frame: bytes) -> None:
        opener = self._ring.opener(read_head(frame))
        self.heard.append(decode(opener.open(opener.bound(address), frame)[2]))

    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: ConnectionState) -> None: ...

    def wait(self, kind: type[Message], count: int = 1) -> list[Any]:
        eventually(lambda: len(self.of(kind)) >= count, f"{count} {kind.__name__}: {self.heard}", DEADLINE)
        return self.of(kind)

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in list(self.heard) if isinstance(message, kind)]


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    for node in reversed(bus.nodes):
        node.stop()


def subscribe(node: Node, service_id: str, table: str, callback: Callable[[Change], Any] | None = None) -> Replica:
    """Follow a table from a service of the node's own."""
    service = DataService(f"follower_{uuid.uuid4().hex}")
    node.register(service)
    return service.subscribe(service_id, table, callback, patient=True)


def refused(node: Node, service: str, method: str, args: dict[str, Any] | None = None, **options: Any) -> str:
    """What a call is refused with, which must be at once."""
    began = time.monotonic()
    with pytest.raises(Untrusted) as error:
        node.call(service, method, args, timeout=DEADLINE, **options)
    assert time.monotonic() - began < AT_ONCE
    return str(error.value)


def count(node: Node, kind: str) -> int:
    return node.status().counters.get(kind, 0)


class TestCalls:
    def test_a_denied_call_is_untrusted_at_once_and_does_not_run(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=NO_KILL)
        web, ops = bus.node("web"), bus.node("ops")
        for node in (web, ops):
            node.wait_for("host", DEADLINE)
        said = refused(web, "host", "kill", {"pid": 1})
        assert said == f"node {host.node_id!r} does not let node {web.node_id!r} (key 'web') call host.kill"
        assert service.killed == []
        assert web.call("host", "list") == 1
        assert ops.call("host", "kill", {"pid": 2}) == 2
        assert service.killed == [2]
        assert count(host, "denied_calls") == 1
        assert host.runtime.figures()["counters"]["denied"] == 1

    def test_it_is_denied_as_well_when_the_bus_chooses_and_by_whatever_way(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=NO_KILL)
        web = bus.node("web")
        refused(web, "host", "kill")  # perhaps before the catalogue came
        web.wait_for("host", DEADLINE)
        refused(web, "host", "kill", node_id=host.node_id)
        with pytest.raises(Untrusted):
            web.call_async("host", "kill").result(DEADLINE)
        with pytest.raises(Untrusted):
            web.proxy("host").kill(pid=3)
        assert service.killed == []

    def test_what_does_not_exist_is_denied_like_what_does(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=[ALL, Permission(deny="call", key="web")])
        web = bus.node("web")
        web.wait_for("host", DEADLINE)
        said = {refused(web, "host", method, node_id=host.node_id) for method in ("kill", "no_such_method")}
        said |= {refused(web, "no_such_service", "kill", node_id=host.node_id)}
        assert {text.partition(" call ")[0] for text in said} == {
            f"node {host.node_id!r} does not let node {web.node_id!r} (key 'web')"
        }

    def test_casts_and_broadcasts_are_dropped_and_counted(self, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
        host = bus.node("host", service := Host(), permissions=NO_KILL)
        web = bus.node("web")
        web.wait_for("host", DEADLINE)
        with caplog.at_level(logging.INFO, "dse"):
            for pid in range(50):
                web.cast("host", "kill", {"pid": pid})
                web.broadcast("host", "kill", {"pid": pid})
            eventually(lambda: count(host, "denied_calls") == 100, "all are counted", DEADLINE)
        web.call("host", "list")
        assert service.killed == []
        assert len([line for line in caplog.messages if "kill" in line]) == 1

    def test_of_several_replicas_each_answers_by_its_own_rules(self, bus: Bus) -> None:
        strict = bus.node("host", Host(), permissions=NO_KILL)
        lax = bus.node("host", Host())
        web = bus.node("web")
        eventually(lambda: len(web.control_bus.replicas.get("host", ())) == 2, "both are known", DEADLINE)
        outcomes = web.call_all("host", "kill", {"pid": 4}, timeout=DEADLINE)
        assert isinstance(outcomes[strict.node_id].error, Untrusted)
        assert outcomes[lax.node_id].result == 4

    def test_a_nodes_own_methods_and_its_figures_are_each_a_thing_of_their_own(self, bus: Bus) -> None:
        rest = Permission(allow=["join", "publish", "subscribe"])
        rules = [
            rest,
            Permission(allow="call", service="@figures"),
            Permission(allow="call", key="ops", service="@node"),
        ]
        host = bus.node("host", permissions=rules)
        web, ops = bus.node("web"), bus.node("ops")
        eventually(lambda: host.node_id in web.status().peers, "it is known", DEADLINE)
        assert ops.call_node(host.node_id, "restart") == "restarted"
        with pytest.raises(Untrusted, match="call its method restart"):
            web.call_node(host.node_id, "restart", timeout=DEADLINE)
        with Observer(bus.url, keys=KEYS["web"]) as observer:
            assert observer.figures()[host.node_id] is not None
            host.set_permissions([rest, Permission(allow="call", service="@node")])
            assert observer.figures()[host.node_id] is None
            assert observer.call_node(host.node_id, "restart") == "restarted"

    def test_a_broadcast_to_nodes_is_dropped_where_it_is_denied(self, bus: Bus) -> None:
        done = threading.Event()

        class Marks:
            def mark(self) -> None:
                done.set()

        host = Node(bus.url, node_id="marked", keys=KEYS["host"], node_endpoints=[Marks()], heartbeat_interval=0.2,
                    permissions=[ALL, Permission(deny="call", service="@node", key="web")])  # fmt: skip
        bus.nodes.append(host)
        host.start()
        web, ops = bus.node("web"), bus.node("ops")
        for node in (web, ops):
            eventually(lambda node=node: host.node_id in node.status().peers, "it is known", DEADLINE)  # type: ignore[misc]
        web.broadcast_nodes("mark")
        eventually(lambda: count(host, "denied_calls") == 1, "it is counted", DEADLINE)
        assert not done.is_set()
        ops.broadcast_nodes("mark")
        assert done.wait(DEADLINE)

    def test_a_call_within_the_node_is_one_like_any_other(self, bus: Bus) -> None:
        caller = DataService("caller")
        host = bus.node("host", service := Host(), caller, permissions=NO_KILL)
        with pytest.raises(Untrusted, match=r"does not let node 'host-1' \(key 'host'\) call host\.kill"):
            caller.call("host", "kill")
        assert caller.call("host", "list") == 1
        assert service.killed == []
        assert count(host, "denied_calls") == 1

    def test_who_says_to_be_somebody_else_is_not_believed(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=NO_KILL)
        ops = bus.node("ops")
        ops_instance = ops.runtime.instance
        eventually(lambda: ops.node_id in host.status().peers, "they know each other", DEADLINE)
        forger = bus.forger("web", "web-x/1")
        request = Request(7, ops_instance, ops.node_id, "host", "kill", encoded({"pid": 5}), 5.0)
        forger.say(host.runtime.wire.own_address, request)
        eventually(lambda: count(host, "untrusted_impostor") == 1, "it is noticed", DEADLINE)
        honest = Request(8, forger.instance, "web-x", "host", "kill", encoded({"pid": 6}), 5.0)
        forger.say(host.runtime.wire.own_address, honest)
        eventually(lambda: count(host, "denied_calls") == 1, "it is denied", DEADLINE)
        assert service.killed == []
        forger.transport.close()

    def test_a_flood_of_denied_calls_does_not_disturb_allowed_ones(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=NO_KILL)
        web, ops = bus.node("web"), bus.node("ops")
        for node in (web, ops):
            node.wait_for("host", DEADLINE)
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                for future in [web.call_async("host", "kill", timeout=DEADLINE) for _ in range(20)]:
                    assert isinstance(future.exception(DEADLINE), Untrusted)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            eventually(lambda: count(host, "denied_calls") > 100, "the flood is there", DEADLINE)
            slowest = 0.0
            for _ in range(200):
                began = time.monotonic()
                ops.call("host", "list", timeout=DEADLINE)
                slowest = max(slowest, time.monotonic() - began)
        finally:
            over.set()
            thread.join()
        assert slowest < AT_ONCE
        assert host.runtime.figures()["gauges"]["requests_waiting"] == 0
        assert count(host, "denied_calls") > 200


def state_of(node: Node, peer: str) -> str:
    known = node.status().peers.get(peer)
    return known.state.value if known is not None else ""


def encoded(args: dict[str, Any]) -> Any:
    from dse.core.methods import encode_args

    return encode_args("test", args)


class TestWhatIsSaid:
    def test_the_operator_reads_who_what_and_which_rule_once_a_minute(
        self, bus: Bus, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = bus.node("host", Host(), permissions=NO_KILL)
        web = bus.node("web")
        web.wait_for("host", DEADLINE)
        with caplog.at_level(logging.WARNING, "dse"):
            for _ in range(20):
                said = refused(web, "host", "kill")
        lines = [record.getMessage() for record in caplog.records if "denied" in record.getMessage()]
        assert lines == [
            f"node {host.node_id!r}: denied: node {web.node_id!r} (key 'web') may not call host.kill: permissions[1] "
            "denies it (deny call, key !ops, service host, method kill) (denied_calls: 1 since the start)"
        ]
        assert "permissions" not in said, "the other side learns no rule"

    def test_names_that_a_peer_chose_cannot_forge_a_line(self, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
        host = bus.node("host", Host(), permissions=[ALL, Permission(deny="call", key="web")])
        name = "kill\n2026-01-01 CRITICAL all is well" + "x" * 900
        forger = bus.forger("web", "web-x/1")
        forger.say(host.runtime.wire.own_address, Request(1, forger.instance, "web-x", name, name, encoded({}), 5.0))
        eventually(lambda: any("denied:" in text for text in caplog.messages), "it is denied, and logged", DEADLINE)
        (line,) = [text for text in caplog.messages if "denied:" in text]
        assert "\n" not in line
        assert len(line) < 500
        forger.transport.close()

    def test_many_names_fill_neither_the_log_nor_the_memory(self, bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
        host = bus.node("host", Host(), permissions=[ALL, Permission(deny="call", key="web")])
        for number in range(60):
            forger = bus.forger("web", f"web-{number}/1")
            forger.say(
                host.runtime.wire.own_address,
                Request(1, forger.instance, f"web-{number}", "host", "kill", encoded({}), 5.0),
            )
            forger.transport.close()
        eventually(lambda: count(host, "denied_calls") == 60, "all are counted", DEADLINE)
        assert len([text for text in caplog.messages if "denied:" in text]) == 20

    def test_rules_for_a_key_that_the_node_has_not_are_named_when_it_starts(
        self, bus: Bus, caplog: pytest.LogCaptureFixture
    ) -> None:
        bus.node("host", permissions=[ALL, Permission(deny="call", key="wbe")])
        assert "rules name keys that it has not, and so cannot apply: permissions[1] (wbe); it has: host, web, ops" in (
            caplog.text
        )


class TestSubscriptions:
    RULES = (ALL, Permission(deny="subscribe", service="host", table="secrets", key="!ops"))

    def test_a_denied_subscriber_is_told_at_once_and_gets_no_row(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=self.RULES)
        service.secrets.insert([("swordfish",)])
        service.sockets.insert([(80,)])
        web, ops = bus.node("web"), bus.node("ops")
        changes: list[Change] = []
        denied = subscribe(web, "host", "secrets", changes.append)
        began = time.monotonic()
        with pytest.raises(Untrusted) as error:
            denied.wait(ReplicaState.LIVE, DEADLINE)
        assert time.monotonic() - began < AT_ONCE + 1.0  # with the time until the catalogue comes
        assert str(error.value) == (
            f"node {host.node_id!r} does not let node {web.node_id!r} (key 'web') subscribe to host.secrets"
        )
        with pytest.raises(Untrusted):
            denied.wait(lambda replica: len(replica) > 0, DEADLINE)
        assert str(denied.error) == str(error.value)
        assert web.status().untrusted == {"host.secrets": str(error.value)}
        service.secrets.insert([("another",)])
        assert subscribe(web, "host", "sockets").wait(ReplicaState.LIVE, DEADLINE)
        allowed = subscribe(ops, "host", "secrets")
        allowed.wait(lambda replica: len(replica) == 2, DEADLINE)
        assert (len(denied), changes, denied.columns) == (0, [], ())
        assert service.secrets.subscribers == 1
        assert count(host, "denied_subscriptions") >= 1

    def test_a_first_look_at_rows_is_for_those_who_may_follow_them(self, bus: Bus) -> None:
        bus.node("host", service := Host(), permissions=self.RULES)
        service.secrets.insert([("swordfish",)])
        service.sockets.insert([(80,)])
        web, ops = bus.node("web"), bus.node("ops")
        for node in (web, ops):
            node.wait_for("host", DEADLINE)
        with pytest.raises(Untrusted, match=r"subscribe to host\.secrets"):
            web.first_rows("host", "secrets", 10, DEADLINE)
        assert web.first_rows("host", "sockets", 10, DEADLINE) == ([(80,)], 1)
        assert ops.first_rows("host", "secrets", 10, DEADLINE) == ([("swordfish",)], 1)

    def test_it_is_logged_once_and_asked_again_only_after_long(
        self, bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replica_module, "REFUSED", 0.3)
        host = bus.node("host", service := Host(), permissions=self.RULES)

        class Nosy(DataService):
            @on_change("host", "secrets")
            def seen(self, change: Change) -> None:
                raise AssertionError("it may not see that")

        began = time.monotonic()
        bus.node("web", Nosy("nosy"))
        eventually(lambda: count(host, "denied_subscriptions") >= 4, "it asks again", DEADLINE)
        service.secrets.insert([("unseen",)])
        asked = count(host, "denied_subscriptions")
        assert asked <= 1 + (time.monotonic() - began) / 0.3
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert errors == [
            "host.secrets cannot be followed: "
            "node 'host-1' does not let node 'web-2' (key 'web') subscribe to host.secrets"
        ]

    def test_a_forged_request_gets_no_row_whatever_names_it_has(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=self.RULES)
        service.secrets.insert([("swordfish",)])
        ops = bus.node("ops")
        replica = subscribe(ops, "host", "secrets")
        replica.wait(ReplicaState.LIVE, DEADLINE)
        forger = bus.forger("web", "web-x/1")
        to, me = host.runtime.wire.own_address, forger.instance
        names = [
            ("host", "secrets"), ("*", "*"), ("h*", "secrets"), ("host", "*"), ("host", "secret?"), ("Host", "secrets"),
            ("host ", "secrets"), ("host", "secrets\n"), ("", ""), ("@node", "secrets"), ("host.secrets", ""),
            ("host\0", "secrets"), ("host/secrets", "sockets"),
        ]  # fmt: skip
        for number, (name, table) in enumerate(names, 1):
            forger.say(to, SyncRequest(name, table, me, number))
        # A subscriber's other messages do not make one of it either.
        epoch, seq = service.secrets.version
        forger.say(to, Renew(me, [("host", "secrets", epoch, 0), ("host", "secrets", epoch, seq)]))
        forger.say(to, SnapshotCredit("host", "secrets", me, 1, 1))
        # One that names somebody who may: it is not believed, and who may is not disturbed.
        forger.say(to, SyncRequest("host", "secrets", ops.runtime.instance, 99))
        forger.say(to, SyncRequest("host", "sockets", me, 100))
        forger.wait(SnapshotBegin)
        answers = forger.wait(NoTable, len(names) + 1)
        assert {answer.request for answer in answers} == {0, *range(1, len(names) + 1)}
        assert [answer.request for answer in answers if answer.untrusted and answer.request] == [1]
        assert {begin.request for begin in forger.of(SnapshotBegin)} == {100}
        assert all(not chunk.rows for chunk in forger.of(SnapshotChunk))
        assert forger.of(Tip) == [], "not even where the table stands"
        assert count(host, "untrusted_impostor") == 1
        service.secrets.insert([("another",)])
        replica.wait(lambda each: len(each) == 2, DEADLINE)
        assert service.secrets.subscribers == 1
        forger.transport.close()

    def test_a_refused_replica_listens_to_nothing(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=self.RULES)
        ops, web = bus.node("ops"), bus.node("web")
        subscribe(ops, "host", "secrets").wait(ReplicaState.LIVE, DEADLINE)
        denied = subscribe(web, "host", "secrets")
        eventually(lambda: denied.error is not None, "it is refused", DEADLINE)
        hub = web.runtime.hub
        eventually(lambda: not hub._by_address, "it listens no more", DEADLINE)
        web.call("host", "list")  # behind whatever it has asked: twice, when the answer took a second
        before = count(host, "denied_subscriptions")
        for number in range(50):
            service.secrets.insert([(f"secret {number}",)])
        web.call("host", "list")
        hub.renew()
        web.call("host", "list")
        assert count(host, "denied_subscriptions") == before, "no change and no renewal makes it ask again"

    def test_nothing_is_kept_of_followers_that_left(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=self.RULES)
        publisher = host.runtime.publisher
        for _ in range(3):
            web = bus.node("web")
            denied = subscribe(web, "host", "secrets")
            subscribe(web, "host", "sockets").wait(ReplicaState.LIVE, DEADLINE)
            eventually(lambda denied=denied: denied.error is not None, "it is refused", DEADLINE)  # type: ignore[misc]
            web.stop()
        eventually(lambda: not publisher._asked_by, "they are forgotten", DEADLINE)
        assert not any(publisher._denied.values())

    def test_many_that_are_refused_cost_bounded_memory(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables_module, "MAX_DENIED", 5)
        host = bus.node("host", Host(), permissions=self.RULES)
        for number in range(12):
            forger = bus.forger("web", f"web-{number}/1")
            forger.say(host.runtime.wire.own_address, SyncRequest("host", "secrets", forger.instance, 1))
            forger.say(host.runtime.wire.own_address, SyncRequest("host", f"none_{number}", forger.instance, 2))
            forger.wait(NoTable, 2)
            forger.transport.close()
        denied = host.runtime.publisher._denied
        assert {key: list(whose) for key, whose in denied.items()} == {
            ("host", "secrets"): [f"web-{number}/1" for number in range(7, 12)]
        }

    def test_with_two_publishers_it_follows_the_one_that_lets_it(self, bus: Bus) -> None:
        rules = self.RULES
        first, second = Host(), Host()
        bus.node("host", first, node_id="a", permissions=rules)
        web = bus.node("web")
        denied = subscribe(web, "host", "secrets")
        eventually(lambda: denied.error is not None, "it is refused", DEADLINE)
        second.secrets.insert([("public",)])
        other = bus.node("host", second, node_id="b")
        eventually(lambda: len(denied) == 1, "it follows the other one", DEADLINE)
        assert (denied.state, denied.error) == (ReplicaState.LIVE, None)
        late = subscribe(bus.node("web"), "host", "secrets")
        late.wait(ReplicaState.LIVE, DEADLINE)
        other.stop()
        for replica in (denied, late):
            with pytest.raises(Untrusted):
                replica.wait(lambda each: False, DEADLINE)
            assert replica.state is ReplicaState.STALE
            assert len(replica) == 1, "it keeps the rows it had"

    def test_a_service_follows_a_table_of_its_own_node_by_the_same_rules(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=self.RULES)
        with pytest.raises(Untrusted, match=r"subscribe to host\.secrets"):
            subscribe(host, "host", "secrets").wait(ReplicaState.LIVE, DEADLINE)
        subscribe(host, "host", "sockets").wait(ReplicaState.LIVE, DEADLINE)

    def test_one_that_is_let_in_while_the_rules_change_is_let_go(
        self, bus: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = bus.node("host", service := Host(), permissions=[ALL])
        web = bus.node("web")
        sync = service.secrets.sync

        def slow(request: SyncRequest) -> None:
            host.set_permissions(self.RULES)  # it was let in already, and is no subscriber yet
            sync(request)

        monkeypatch.setattr(service.secrets, "sync", slow)
        replica = subscribe(web, "host", "secrets")
        with pytest.raises(Untrusted):
            replica.wait(lambda each: False, DEADLINE)
        assert service.secrets.subscribers == 0

    def test_a_table_that_is_pending_refuses_like_any(self, bus: Bus) -> None:
        class Slow(DataService):
            secrets = Table("text", pending=True)

        bus.node("host", slow := Slow("host"), permissions=self.RULES)
        denied = subscribe(bus.node("web"), "host", "secrets")
        with pytest.raises(Untrusted):
            denied.wait(ReplicaState.LIVE, DEADLINE)
        slow.secrets.insert([("late",)])
        assert len(denied) == 0


class TestPublishers:
    RULES = (
        Permission(allow=["join", "call", "subscribe"]),
        Permission(allow="publish", key="host", service="host"),
        Permission(allow="publish", service="follower_*"),
    )

    def test_a_service_that_a_node_may_not_publish_is_not_seen_and_not_called(
        self, bus: Bus, caplog: pytest.LogCaptureFixture
    ) -> None:
        false = Host()
        rogue = bus.node("web", false)
        ops = bus.node("ops", permissions=self.RULES)
        eventually(lambda: count(ops, "denied_publishers") >= 1, "it is left out", DEADLINE)
        assert ops.status().peers[rogue.node_id].services == ()
        with pytest.raises(TimeoutError):
            ops.wait_for("host", 0.2)
        for call in (
            lambda: ops.call("host", "list", timeout=DEADLINE),
            lambda: ops.call("host", "list", node_id=rogue.node_id, timeout=DEADLINE),
        ):
            with pytest.raises((Untrusted, NoSuchService)) as error:
                call()
            assert not isinstance(error.value, CallTimeout)
        with pytest.raises(Untrusted, match=rf"node {rogue.node_id!r} \(key 'web'\) may not offer 'host'"):
            ops.cast("host", "kill", node_id=rogue.node_id)
        real = bus.node("host", Host())
        ops.wait_for("host", DEADLINE)
        assert [ops.call("host", "list") for _ in range(6)] == [1, 2, 3, 4, 5, 6], "all by the real one"
        assert set(ops.call_all("host", "list", timeout=DEADLINE)) == {real.node_id}
        assert (false.listed, false.killed) == (0, [])
        (line,) = [text for text in caplog.messages if "may not publish" in text]
        assert line.startswith(
            f"node {ops.node_id!r}: denied: node {rogue.node_id!r} (key 'web') may not publish host: no rule allows it"
        )

    def test_one_of_whom_only_a_heartbeat_was_heard_is_judged_by_its_key(self, bus: Bus) -> None:
        ops = bus.node("ops", permissions=self.RULES)
        forgers = {name: bus.forger(name, f"{name}-x/1") for name in ("host", "web")}
        for name, forger in forgers.items():
            forger.say(ops.runtime.wire.own_address, Heartbeat(f"{name}-x", forger.instance, 1.0, 5.0, 0))
            eventually(lambda name=name: f"{name}-x" in ops.status().peers, "it is known", DEADLINE)  # type: ignore[misc]
        with pytest.raises(CallTimeout):
            ops.call("host", "list", node_id="host-x", timeout=0.2)
        with pytest.raises(Untrusted, match=r"node 'web-x' \(key 'web'\) may not offer 'host'"):
            ops.call("host", "list", node_id="web-x", timeout=0.2)
        for forger in forgers.values():
            forger.transport.close()

    def test_its_tables_are_not_followed(self, bus: Bus) -> None:
        false, real = Host(), Host()
        false.sockets.insert([(666,)])
        bus.node("web", false)
        ops = bus.node("ops", permissions=self.RULES)
        replica = subscribe(ops, "host", "sockets")
        eventually(lambda: count(ops, "denied_publishers") >= 1, "it is left out", DEADLINE)
        assert (replica.state, len(replica)) == (ReplicaState.SYNCING, 0)
        real.sockets.insert([(80,)])
        bus.node("host", real)
        replica.wait(ReplicaState.LIVE, DEADLINE)
        assert set(replica) == {(80,)}
        assert false.sockets.subscribers == 0

    def test_of_a_service_one_table_may_be_denied(self, bus: Bus) -> None:
        rules = [ALL, Permission(deny="publish", table="secrets", key="host")]
        bus.node("host", service := Host())
        web = bus.node("web", permissions=rules)
        web.wait_for("host", DEADLINE)
        (info,) = [info for node in web.status().peers.values() for info in node.services]
        assert set(info.published_tables) == {"sockets"}
        subscribe(web, "host", "sockets").wait(ReplicaState.LIVE, DEADLINE)
        denied = subscribe(web, "host", "secrets")
        assert denied.state is ReplicaState.SYNCING
        assert service.secrets.subscribers == 0
        assert web.call("host", "list") == 1

    def test_changes_that_somebody_else_forges_are_dropped(self, bus: Bus) -> None:
        host = bus.node("host", service := Host())
        service.sockets.insert([(80,)])
        ops = bus.node("ops", permissions=self.RULES)
        replica = subscribe(ops, "host", "sockets")
        replica.wait(ReplicaState.LIVE, DEADLINE)
        epoch, seq = service.sockets.version
        where = table_address(host.runtime.instance, "host", "sockets")
        change = ChangeMessage(epoch, seq + 1, frozenset({(666,)}), frozenset())
        # As itself, and in the name of the node that publishes it, which a holder of another key can say.
        for forger in (bus.forger("web", "web-x/1"), bus.forger("web", host.runtime.instance + "1")):
            forger.say(ops.runtime.wire.own_address, Tip(epoch, seq + 5, 7, "host", "sockets"))
            forger.say(ops.runtime.wire.own_address, NoTable(0, "you may not", "host", "sockets"))
            forger.say(where, change)
            forger.transport.close()
        service.sockets.insert([(443,)])
        replica.wait(lambda each: len(each) == 2, DEADLINE)
        assert set(replica) == {(80,), (443,)}
        ops.call("host", "list")
        assert (replica.error, replica.state) == (None, ReplicaState.LIVE)

    def test_a_catalogue_that_somebody_forges_changes_nothing(self, bus: Bus) -> None:
        bus.node("host", service := Host())
        ops = bus.node("ops", permissions=self.RULES)
        ops.wait_for("host", DEADLINE)
        forger = bus.forger("web", "web-x/1")
        offer = service.info.to_dict() | {"node_id": "web-x"}
        forger.say(ops.runtime.wire.own_address, Catalogue("web-x", forger.instance, 1.0, 1.0, 1, [offer]))
        eventually(lambda: "web-x" in ops.status().peers, "it was heard", DEADLINE)
        assert len(ops.control_bus.replicas["host"]) == 1
        assert ops.call("host", "list") == 1
        forger.transport.close()

    def test_what_the_node_itself_may_not_publish_it_is_not_let(self, bus: Bus) -> None:
        rules = [*self.RULES, Permission(allow="publish", service="inventory", table="machines")]
        words = r"node 'web-1' \(key 'web'\) may not publish host by its own permissions: no rule allows it"
        web = bus.node("web", permissions=rules)
        with pytest.raises(Untrusted, match=words):
            web.register(Host())
        assert web.services == ()
        with pytest.raises(Untrusted, match="may not publish host"):
            Node(bus.url, keys=KEYS["web"], permissions=rules, services=[Host()])

        class Inventory(DataService):
            machines = Table("name")

        web.register(inventory := Inventory("inventory"))
        with pytest.raises(Untrusted, match=r"may not publish inventory\.more"):
            inventory.add_table("more", "name")
        assert set(inventory.published_tables) == {"machines"}

        class TooMuch(Inventory):
            others = Table("name")

        web.unregister("inventory")
        with pytest.raises(Untrusted, match=r"may not publish inventory\.others"):
            web.register(TooMuch("inventory"))


class TestJoining:
    RULES = (
        Permission(allow="join", key="web", node="web-*"),
        Permission(allow="join", key="ops", node="ops-*"),
        Permission(allow="join", key="host"),
        Permission(allow=["call", "publish", "subscribe"]),
    )

    def test_a_key_is_good_for_its_names_alone(self, bus: Bus) -> None:
        host = bus.node("host", service := Host(), permissions=self.RULES)
        web = bus.node("web")
        false = bus.node("web", Host("other"), node_id="ops-9")
        eventually(lambda: count(host, "denied_frames") >= 2, "it is not heard", DEADLINE)
        eventually(lambda: web.node_id in host.status().peers, "the others are", DEADLINE)
        assert set(host.status().peers) == {web.node_id}
        false.wait_for("host", DEADLINE) if "host" in false.control_bus.replicas else None
        said = refused(false, "host", "kill")
        assert said == f"node {host.node_id!r} does not let node 'ops-9' (key 'web') call host.kill"
        replica = subscribe(false, "host", "sockets")
        assert len(replica) == 0
        assert service.sockets.subscribers == 0
        assert service.killed == []

    def test_it_cannot_make_another_leave_or_stop(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=self.RULES)
        ops = bus.node("ops", node_id="ops-1", permissions=self.RULES)
        eventually(lambda: state_of(host, "ops-1") == "JOINED", "it is known", DEADLINE)
        at_host, at_ops = host.runtime.wire.own_address, ops.runtime.wire.own_address
        same = bus.forger("web", ops.runtime.instance, listens=False)
        for where in (CONTROL, at_host):
            same.say(where, Leave("ops-1", ops.runtime.instance))
        older = bus.forger("web", "ops-1/0")
        for where in (CONTROL, at_host, at_ops):
            older.say(where, Heartbeat("ops-1", older.instance, 1e6, 1.0, 0))
            older.say(where, Clash("ops-1", ops.runtime.instance, older.instance))
        eventually(lambda: count(ops, "denied_frames") >= 2 and count(host, "denied_frames") >= 2, "heard", DEADLINE)
        assert ops.call("host", "list") == 1
        assert state_of(host, "ops-1") == "JOINED"
        for forger in (same, older):
            forger.transport.close()

    def test_a_node_that_its_own_rules_do_not_let_join_is_a_mistake(self, bus: Bus) -> None:
        with pytest.raises(ConfigError, match=r"node 'ops-1' \(key 'web'\) may not join itself: no rule allows it"):
            Node(bus.url, node_id="ops-1", keys=KEYS["web"], permissions=self.RULES)

    def test_permissions_need_keys(self, bus: Bus) -> None:
        with pytest.raises(ConfigError, match="permissions need keys: without keys a frame proves nothing"):
            Node(bus.url, permissions=[ALL])


class TestOtherRules:
    def test_what_is_denied_from_now_on_ends_and_what_is_allowed_comes_back(self, bus: Bus) -> None:
        deny = Permission(deny=["call", "subscribe"], key="web", service="host")
        host = bus.node("host", service := Host(), permissions=[ALL])
        service.sockets.insert([(80,)])
        web, ops = bus.node("web"), bus.node("ops")
        replica, other = subscribe(web, "host", "sockets"), subscribe(ops, "host", "sockets")
        for each in (replica, other):
            each.wait(ReplicaState.LIVE, DEADLINE)
        for round_number in range(3):
            host.set_permissions([ALL, deny])
            with pytest.raises(Untrusted):
                replica.wait(lambda each: False, DEADLINE)
            refused(web, "host", "list")
            service.sockets.insert([(1000 + round_number,)])
            other.wait(lambda each, rows=round_number + 2: len(each) == rows, DEADLINE)  # type: ignore[misc]
            assert len(replica) == round_number + 1
            assert service.sockets.subscribers == 1
            host.set_permissions([ALL] if round_number % 2 else None)
            eventually(lambda: replica.error is None, "it may again", DEADLINE)
            replica.wait(lambda each, rows=round_number + 2: len(each) == rows, DEADLINE)  # type: ignore[misc]
            replica.wait(ReplicaState.LIVE, DEADLINE)
            assert web.call("host", "list") == round_number + 1
        assert web.status().untrusted == {}

    def test_who_may_publish_is_looked_at_anew(self, bus: Bus) -> None:
        bus.node("host", service := Host())
        service.sockets.insert([(80,)])
        ops = bus.node("ops", permissions=[ALL])
        replica = subscribe(ops, "host", "sockets")
        replica.wait(ReplicaState.LIVE, DEADLINE)
        ops.set_permissions([ALL, Permission(deny="publish", key="host", service="host")])
        replica.wait(ReplicaState.STALE, DEADLINE)
        with pytest.raises((Untrusted, NoSuchService)):
            ops.call("host", "list", timeout=DEADLINE)
        ops.set_permissions([ALL])
        replica.wait(ReplicaState.LIVE, DEADLINE)
        assert ops.call("host", "list") == 1

    def test_rules_that_cannot_be_are_refused_and_change_nothing(self, bus: Bus) -> None:
        host = bus.node("host", Host(), permissions=NO_KILL)
        for rules, error in (
            ([ALL, Permission(deny="publish", service="host")], Untrusted),
            ([ALL, Permission(deny="join", node="host-*")], ConfigError),
            ([], ConfigError),
        ):
            with pytest.raises(error):
                host.set_permissions(rules)
            assert host.permissions == tuple(NO_KILL)
        refused(bus.node("web"), "host", "kill")

    def test_a_call_that_runs_is_let_finish(self, bus: Bus) -> None:
        began, go = threading.Event(), threading.Event()

        class Slow(DataService):
            @rpc
            def wait(self) -> str:
                began.set()
                go.wait(DEADLINE)
                return "finished"

        host = bus.node("host", Slow("host"), permissions=[ALL])
        web = bus.node("web")
        web.wait_for("host", DEADLINE)
        future = web.call_async("host", "wait", timeout=DEADLINE)
        assert began.wait(DEADLINE)
        host.set_permissions([ALL, Permission(deny="call", key="web")])
        refused(web, "host", "wait")
        go.set()
        assert future.result(DEADLINE) == "finished"

    def test_rules_that_come_and_go_while_all_is_used_leave_nothing_hanging(self, bus: Bus) -> None:
        deny = Permission(deny=["call", "subscribe"], key="web", service="host")
        host = bus.node("host", service := Host(), permissions=[ALL])
        web = bus.node("web")
        web.wait_for("host", DEADLINE)
        replica = subscribe(web, "host", "sockets")
        over = threading.Event()
        failures: list[BaseException] = []
        answers = {"yes": 0, "no": 0}

        def use() -> None:
            while not over.is_set():
                try:
                    web.call("host", "list", timeout=DEADLINE)
                    answers["yes"] += 1
                except Untrusted:
                    answers["no"] += 1
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(40):
            host.set_permissions([ALL, deny] if number % 2 else [ALL])
            service.sockets.insert([(number,)])
        host.set_permissions([ALL])
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        assert failures == []
        assert answers["yes"]
        eventually(lambda: len(replica) == 40 and replica.state is ReplicaState.LIVE, "all is there", DEADLINE)


def test_a_release_that_knows_no_permissions_reads_the_refusal_as_no_such_table() -> None:
    import msgspec

    old = msgspec.msgpack.encode((NoTable.__struct_config__.tag, 5))
    assert decode(b"\x01\x01" + old) == NoTable(5)
    assert encode(NoTable(5, "may not", "s", "t"))[2:].startswith(bytes((0x95, 27, 5)))  # what it needs comes first
