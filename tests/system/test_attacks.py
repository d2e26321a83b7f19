"""What an attacker can do who reaches the broker, has every right there, and no key: a test an attack.

Each attack is played twice: on a bus without keys, where it succeeds, and on one with keys, where it must not. The
attacker is a process of its own (`attacker.py`), which listens to everything from before the first node starts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("cryptography")

from dse import Change, DataService, DseError, Node, NodeIdClash, ReplicaState, Table, rpc
from dse.core.age import STAMP
from dse.core.connection import wire_name
from dse.core.info import NodeStatus
from dse.core.keys import new_key, parse_keys
from dse.core.messages import (
    CONTROL,
    BadFrame,
    Catalogue,
    ChangeMessage,
    Clash,
    Heartbeat,
    Leave,
    Message,
    Reply,
    Request,
    broadcast_address,
    decode,
    encode,
    instance_address,
    service_address,
    table_address,
)
from dse.core.seal import KeyRing
from dse.core.transport import Address
from dse.testing.brokers import Broker, RabbitServer, RedisServer
from dse.testing.contract.recorder import eventually
from dse.testing.piped import PipedProcess

PATIENCE = 20.0

Frame = tuple[str, bytes]


class Vault(DataService):
    """Has rows that nobody else may read, and a method that counts who ran it."""

    secrets = Table("name", "code")

    def __init__(self, service_id: str, secret: str) -> None:
        super().__init__(service_id)
        self.secret = secret
        self.runs: list[str] = []
        self.let_go = threading.Event()

    def on_start(self) -> None:
        self.secrets.replace([("launch", self.secret)])

    @rpc
    def open(self, word: str) -> str:
        self.runs.append(word)
        return f"opened {word}"

    @rpc
    def wait(self) -> str:
        self.let_go.wait(PATIENCE)
        return "waited"


class Desk(DataService):
    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self.seen: list[Change] = []


class RemoteAttacker:
    """The attacker's process, seen from here."""

    def __init__(self, url: str) -> None:
        self._process = PipedProcess("attacker", url)
        self._process.answer(PATIENCE)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def command(*arguments: object) -> Any:
            answer = json.loads(self._process.ask(json.dumps([name, *arguments]), 3 * PATIENCE))
            assert "error" not in answer, f"the attacker's {name}: {answer['error']}"
            return answer["result"]

        return command

    def frames(self, *names: str) -> list[Frame]:
        """Return what was sent to these names, or to any if none is named, as if it had no time to live."""
        found = [(name, base64.b64decode(data)) for name, data in self.recorded()]
        return [
            (name, data if data[:1] == b"\0" else b"\0" + data[STAMP.size :])
            for name, data in found
            if name in names or not names
        ]

    def show(self, frames: list[Frame]) -> None:
        self.send_all([(name, base64.b64encode(data).decode()) for name, data in frames])

    def close(self) -> None:
        self._process.kill()


class Site:
    """A bus with a vault on one node and a desk, which follows the vault's rows, on another."""

    def __init__(self, broker: Broker, keyed: bool, attacker: RemoteAttacker) -> None:
        self.broker = broker
        self.keyed = keyed
        self.attacker = attacker
        self.bus = f"attack-{uuid.uuid4().hex[:10]}"
        self.secret = f"launch-code-{uuid.uuid4().hex}"
        self.keys = [new_key("k1")] if keyed else None
        self.nodes: list[Node] = []
        self.vault = self.new_vault()
        self.vault_node = self.start("bank", self.vault)
        self.desk = Desk("desk")
        self.desk_node = self.start("office", self.desk)
        self.desk_node.wait_for("vault", PATIENCE)
        self.replica = self.desk.subscribe("vault", "secrets", self.desk.seen.append)
        self.replica.wait(ReplicaState.LIVE, PATIENCE)
        self.replica.wait(lambda replica: len(replica) == 1, PATIENCE)
        assert self.call("hello") == "opened hello"
        self.vault_node.wait_for("desk", PATIENCE)

    def new_vault(self) -> Vault:
        return Vault("vault", self.secret)

    def start(self, node_id: str, *services: DataService, **options: Any) -> Node:
        url = f"{self.broker.url}?heartbeat=2&connect_timeout=2"
        options = {"bus": self.bus, "keys": self.keys, "heartbeat_interval": 0.5} | options
        node = Node(url, node_id=node_id, services=services, **options)
        self.nodes.append(node)
        node.start()
        return node

    def call(self, word: str) -> object:
        return self.desk_node.call("vault", "open", {"word": word}, timeout=PATIENCE)

    def close(self) -> None:
        self.vault.let_go.set()
        for node in self.nodes:
            node.stop()

    # What the attacker knows

    def name(self, address: Address, bus: str | None = None) -> str:
        return wire_name(bus or self.bus, address)

    @property
    def instance(self) -> str:
        return self.vault_node.runtime.instance

    @property
    def table(self) -> Address:
        return table_address(self.instance, "vault", "secrets")

    def forge(self, address: Address, message: Message) -> int:
        """Send a message that the attacker made up; say how many frames it takes, in all the ways it has."""
        frame = encode(message)
        ways = [frame]
        if self.keyed:  # with a key that it made itself, as somebody new and as one of the nodes
            ring = KeyRing(parse_keys([new_key("k1")]), self.bus)
            other = KeyRing(parse_keys([new_key("evil")]), self.bus)
            ways += [ring.sealer("evil/1").seal(address, frame), ring.sealer(self.instance).seal(address, frame)]
            ways.append(other.sealer("evil/1").seal(address, frame))
        self.attacker.show([(self.name(address), b"\0" + way) for way in ways])
        return len(ways)

    # What came of it

    def dropped(self) -> int:
        """How many frames the nodes did not take."""
        return sum(node.counters["untrusted_frames"] for node in self.nodes)

    def succeeds(self, effect: Callable[[], bool], attack: Callable[[], object], drops: int = 1) -> None:
        """Play an attack: without keys it has its effect; with keys so many frames at least are dropped."""
        before = self.dropped()
        assert not effect()
        attack()
        if self.keyed:
            eventually(lambda: self.dropped() >= before + drops, f"{drops} frames are dropped", PATIENCE)
            assert not effect()
            self.is_sound()
            assert not effect()
        else:
            eventually(effect, "the attack succeeds without keys", PATIENCE)

    def is_sound(self) -> None:
        """All is as it was: calls, rows, peers."""
        word = uuid.uuid4().hex
        assert self.call(word) == f"opened {word}"
        assert self.vault.runs.count(word) == 1
        assert set(self.replica.rows) == {("launch", self.secret)}
        assert {name: peer.state.value for name, peer in self.peers().items()} == {"bank": "JOINED"}

    def peers(self) -> dict[str, NodeStatus]:
        return dict(self.desk_node.status().peers)


def trace(broker: Broker) -> None:
    """Turn the firehose on, as an administrator may, so that the attacker sees everything."""
    if isinstance(broker, RabbitServer):
        broker.evaluate('rabbit_trace:start(<<"/">>).')


@pytest.fixture(scope="module", params=["redis", "rabbit"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    # Its own: what is done to it would disturb others, and the firehose is on.
    with RedisServer() if request.param == "redis" else RabbitServer() as broker:
        trace(broker)
        yield broker


@pytest.fixture(scope="module")
def attacker(broker: Broker) -> Iterator[RemoteAttacker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        attacker = RemoteAttacker(broker.direct_url)
    yield attacker
    attacker.close()


@pytest.fixture(params=[False, True], ids=["no-keys", "keys"])
def site(request: pytest.FixtureRequest, broker: Broker, attacker: RemoteAttacker) -> Iterator[Site]:
    site = Site(broker, request.param, attacker)
    yield site
    site.close()


@pytest.fixture
def keyed(broker: Broker, attacker: RemoteAttacker) -> Iterator[Site]:
    site = Site(broker, True, attacker)
    yield site
    site.close()


def states(node: Node) -> dict[str, str]:
    return {name: peer.state.value for name, peer in node.status().peers.items()}


class TestReading:
    def test_it_reads_rows_arguments_and_names_of_methods_off_the_broker(self, site: Site) -> None:
        argument, row = uuid.uuid4().hex, uuid.uuid4().hex
        site.call(argument)
        site.vault.secrets.insert([("second", row)])
        site.replica.wait(lambda replica: len(replica) == 2, PATIENCE)
        eventually(lambda: len(site.attacker.frames(site.name(site.table))) > 0, "it heard the change", PATIENCE)
        heard = {word: site.attacker.saw(word) for word in (argument, row, site.secret)}
        assert heard == dict.fromkeys(heard, not site.keyed)

    def test_it_subscribes_to_a_table_itself(self, site: Site) -> None:
        from dse.core.messages import SyncRequest

        name = site.name(instance_address("evil/1"))
        request = SyncRequest("vault", "secrets", "evil/1", 1)

        def answered() -> bool:
            return any(site.secret.encode() in data for _, data in site.attacker.frames(name))

        site.succeeds(answered, lambda: site.forge(instance_address(site.instance), request), drops=4)


class TestForging:
    @pytest.mark.parametrize("way", ["to the node", "to any replica", "to all replicas"])
    def test_it_calls_a_method(self, site: Site, way: str) -> None:
        address = {
            "to the node": instance_address(site.instance),
            "to any replica": service_address("vault"),
            "to all replicas": broadcast_address("vault"),
        }[way]
        args = msgspec.Raw(msgspec.msgpack.encode({"word": "evil"}))
        request = Request(1, "evil/1", "evil", "vault", "open", args, 30.0)
        site.succeeds(lambda: "evil" in site.vault.runs, lambda: site.forge(address, request), drops=4)

    def test_it_joins(self, site: Site) -> None:
        def attack() -> None:
            site.forge(CONTROL, Heartbeat("evil", "evil/1", 5.0, 30.0, 1))
            site.forge(CONTROL, Catalogue("evil", "evil/1", 5.0, 30.0, 1, []))

        site.succeeds(lambda: "evil" in site.peers(), attack, drops=16)

    def test_it_makes_a_node_leave(self, site: Site) -> None:
        leave = Leave("bank", site.instance)
        site.succeeds(lambda: site.peers()["bank"].state.value == "LEFT", lambda: site.forge(CONTROL, leave), drops=8)

    def test_it_makes_a_node_suspect_by_promising_more_than_it_keeps(self, site: Site) -> None:
        promise = Heartbeat("bank", site.instance, 5.0, 0.01, 1)

        def effect() -> bool:
            return site.peers()["bank"].state.value in ("SUSPECT", "DEAD")

        def attack() -> None:
            for _ in range(5):
                site.forge(CONTROL, promise)

        site.succeeds(effect, attack, drops=40)

    def test_it_stops_a_node_as_if_it_clashed_with_an_older_one(self, site: Site) -> None:
        def effect() -> bool:
            try:
                return site.vault_node.status() is None
            except NodeIdClash:
                return True

        clash = Clash("bank", site.instance, "bank/0")
        address = instance_address(site.instance)
        site.succeeds(effect, lambda: site.forge(address, clash), drops=4)

    def test_it_puts_a_row_into_a_replica(self, site: Site) -> None:
        epoch, seq = site.replica.version
        change = ChangeMessage(epoch, seq + 1, frozenset({("forged", "row")}), frozenset())
        site.succeeds(lambda: ("forged", "row") in site.replica, lambda: site.forge(site.table, change), drops=4)

    def test_it_answers_a_call_in_place_of_the_callee(self, site: Site) -> None:
        future = site.desk_node.call_async("vault", "wait", timeout=PATIENCE)

        def overheard() -> list[int]:
            """The number of the call, which nobody can guess: it is read, where frames can be."""
            numbers = []
            for _, data in site.attacker.frames(site.name(instance_address(site.instance))):
                with contextlib.suppress(BadFrame):
                    message = decode(data[1:])
                    numbers += [message.id] if isinstance(message, Request) and message.method == "wait" else []
            return numbers

        if not site.keyed:
            eventually(lambda: bool(overheard()), "it heard the call", PATIENCE)

        def attack() -> None:
            for number in overheard() or range(1, 20):
                site.forge(
                    instance_address(site.desk_node.runtime.instance),
                    Reply(number, msgspec.Raw(msgspec.msgpack.encode("forged"))),
                )

        site.succeeds(lambda: future.done() and future.result() == "forged", attack, drops=19 * 4)
        site.vault.let_go.set()
        assert future.result(PATIENCE) == ("waited" if site.keyed else "forged")


class TestReplaying:
    def test_it_runs_a_call_again_by_sending_it_again(self, site: Site) -> None:
        name = site.name(instance_address(site.instance))
        site.call("once")
        eventually(lambda: len(site.attacker.frames(name)) >= 2, "it heard the calls", PATIENCE)
        recorded = site.attacker.frames(name)
        site.succeeds(
            lambda: site.vault.runs.count("once") > 1, lambda: site.attacker.show(recorded * 3), drops=3 * len(recorded)
        )
        if site.keyed:
            assert site.vault.runs.count("once") == site.vault.runs.count("hello") == 1

    def test_it_runs_calls_and_broadcasts_of_a_former_life_on_a_restarted_node(self, site: Site) -> None:
        site.call("once")
        site.desk_node.broadcast("vault", "open", {"word": "to-all"})
        eventually(lambda: "to-all" in site.vault.runs, "the broadcast runs", PATIENCE)
        to_all = site.name(broadcast_address("vault"))
        to_one = site.name(instance_address(site.instance))
        eventually(lambda: bool(site.attacker.frames(to_all)), "it heard the broadcast", PATIENCE)
        old = site.attacker.frames(to_one, to_all)
        site.vault_node.stop()
        site.vault = site.new_vault()
        site.vault_node = site.start("bank", site.vault)
        new = site.name(instance_address(site.instance))
        replay = [(new if name == to_one else name, data) for name, data in old]
        eventually(lambda: states(site.desk_node) == {"bank": "JOINED"}, "the new life is known", PATIENCE)
        site.replica.wait(ReplicaState.LIVE, PATIENCE)
        site.succeeds(
            lambda: bool({"once", "to-all", "hello"} & set(site.vault.runs)),
            lambda: site.attacker.show(replay),
            drops=2,
        )

    def test_it_runs_a_broadcast_on_a_node_that_was_not_there_then(self, site: Site) -> None:
        site.desk_node.broadcast("vault", "open", {"word": "to-all"})
        to_all = site.name(broadcast_address("vault"))
        eventually(lambda: bool(site.attacker.frames(to_all)), "it heard the broadcast", PATIENCE)
        branch = site.new_vault()
        site.start("branch", branch)
        assert not branch.runs
        site.attacker.show(site.attacker.frames(to_all))
        if site.keyed:
            eventually(lambda: site.nodes[-1].counters["untrusted_replayed"] > 0, "it is dropped", PATIENCE)
            assert not branch.runs
        else:
            eventually(lambda: branch.runs == ["to-all"], "the attack succeeds without keys", PATIENCE)

    def test_it_brings_a_node_back_that_is_gone_by_its_old_heartbeats(self, site: Site) -> None:
        ghost = site.start("ghost", DataService("haunted"))
        instance = ghost.runtime.instance
        eventually(lambda: "ghost" in site.peers(), "the ghost joined", PATIENCE)
        ghost.stop()
        late = site.start("late")
        eventually(lambda: states(late) == {"bank": "JOINED", "office": "JOINED"}, "late knows the others", PATIENCE)
        frames = site.attacker.frames(site.name(CONTROL))
        if not site.keyed:
            frames = [each for each in frames if instance.encode() in each[1]]
        site.attacker.show(frames)
        if site.keyed:
            eventually(lambda: late.counters["untrusted_stranger"] > 0, "they are dropped", PATIENCE)
            late.wait_for("vault", PATIENCE)
            assert states(late) == {"bank": "JOINED", "office": "JOINED"}
            assert states(site.desk_node)["ghost"] == "LEFT"
        else:
            eventually(lambda: "ghost" in states(late), "the attack succeeds without keys", PATIENCE)

    def test_it_shows_everything_it_has_to_everybody_everywhere(self, site: Site) -> None:
        """Also where it was not sent to, and on another bus."""
        twin = site.new_vault()
        other_bus = f"{site.bus}-2"
        site.start("bank-2", twin, bus=other_bus)
        for number in range(5):
            site.call(f"call {number}")
            site.vault.secrets.apply([("n", str(number))], [("n", str(number - 1))])
        site.vault.secrets.delete([("n", "4")])
        site.replica.wait(lambda replica: set(replica.rows) == {("launch", site.secret)}, PATIENCE)
        changes = site.name(site.table)
        eventually(lambda: len(site.attacker.frames(changes)) >= 6, "it heard the changes", PATIENCE)
        frames = [each for each in site.attacker.frames() if each[0].startswith(f"dse:{site.bus}:")]
        assert len(frames) > 15
        runs = len(site.vault.runs)
        there = site.nodes[-1].runtime.instance
        everywhere = [
            *(site.name(instance_address(node.runtime.instance)) for node in site.nodes[:2]),
            *(site.name(address) for address in (CONTROL, broadcast_address("vault"), service_address("vault"))),
            site.name(site.table),
            *(
                site.name(address, other_bus)
                for address in (CONTROL, broadcast_address("vault"), instance_address(there))
            ),
        ]
        shown = [(name, data) for name in everywhere for _, data in frames]
        site.succeeds(
            lambda: len({*site.vault.runs, *twin.runs}) < len([*site.vault.runs, *twin.runs]) or "call 1" in twin.runs,
            lambda: site.attacker.show(shown),
            drops=len(frames) * 5,
        )
        if site.keyed:
            assert len(site.vault.runs) == runs + 1
            assert not twin.runs
            assert all(change.added | change.removed for change in site.desk.seen)
            assert not site.nodes[-1].status().peers


class TestDamaging:
    def test_a_bit_turned_or_a_part_cut_off_leaves_nothing_of_a_frame(self, keyed: Site) -> None:
        for number in range(3):
            keyed.call(f"call {number}")

        def heard() -> list[Frame]:
            return [each for each in keyed.attacker.frames() if each[0].startswith(f"dse:{keyed.bus}:")]

        eventually(lambda: len(heard()) >= 12, "it heard the calls and their answers", PATIENCE)
        frames = heard()
        damaged: list[Frame] = []
        for place, (name, data) in enumerate(frames[:60]):
            for bit in range(place % 7, len(data) * 8, 97):
                turned = bytearray(data)
                turned[bit // 8] ^= 1 << bit % 8
                damaged.append((name, bytes(turned)))
            damaged += [(name, data[:end]) for end in range(place % 5, len(data), 29)]
            damaged.append((name, data + b"\0"))
        runs = list(keyed.vault.runs)
        keyed.attacker.show(damaged)
        keyed.is_sound()
        assert keyed.vault.runs[:-1] == runs
        # What was sent to addresses where nobody listens any more is dropped by the broker.
        eventually(lambda: keyed.dropped() > len(damaged) // 4, "what was damaged is dropped", PATIENCE)

    def test_garbage_faster_than_it_can_be_looked_at_is_dropped_in_bounded_time(
        self, keyed: Site, record_property: Callable[[str, object], None]
    ) -> None:
        quiet = min(timed(lambda: keyed.call("quiet")) for _ in range(20))
        count = 10_000
        dropped = keyed.dropped()
        flood = threading.Thread(
            target=lambda: keyed.attacker.flood(keyed.name(CONTROL), count, 200), name="test-flood"
        )
        began = time.monotonic()
        flood.start()
        calls = []
        while flood.is_alive():
            calls.append(timed(lambda: keyed.call("meanwhile")))
        flood.join()
        eventually(lambda: keyed.dropped() >= dropped + 2 * count, "all of it is dropped", 3 * PATIENCE)
        took = time.monotonic() - began
        calls.sort()
        record_property("flood", (count, took, quiet, calls[len(calls) // 2]))
        print(f"{count} frames of garbage to two nodes in {took:.2f} s; a call took {quiet * 1000:.2f} ms before, "
              f"{calls[len(calls) // 2] * 1000:.2f} ms at the median of {len(calls)} meanwhile")  # fmt: skip
        assert took < 30
        assert calls[-1] < 5
        keyed.is_sound()

    def test_a_node_whose_connections_are_ended_comes_back(self, keyed: Site) -> None:
        for _ in range(3):
            before = [node.counters["disconnects"] for node in keyed.nodes]
            if isinstance(keyed.broker, RabbitServer):
                keyed.broker.evaluate(
                    '[(catch rabbit_networking:close_connection(proplists:get_value(pid, C), "no")) || C <- '
                    "rabbit_networking:connection_info_all([pid, client_properties]), "
                    'lists:keymember(<<"connection_name">>, 1, proplists:get_value(client_properties, C))].'
                )
            else:
                keyed.attacker.disconnect_all()
            eventually(
                lambda before=before: all(
                    node.counters["disconnects"] > count for node, count in zip(keyed.nodes, before, strict=True)
                ),
                "both are disconnected",
                PATIENCE,
            )
            eventually(lambda: all(node.status().connected for node in keyed.nodes), "both are back", PATIENCE)
            keyed.replica.wait(ReplicaState.LIVE, PATIENCE)
            eventually(lambda: states(keyed.desk_node) == {"bank": "JOINED"}, "nobody is lost", PATIENCE)
            keyed.is_sound()

    def test_what_it_deletes_and_spoils_on_the_broker_is_made_good(self, keyed: Site) -> None:
        stranger = keyed.start("stranger")
        stranger.runtime.client.pick = lambda *_: None  # type: ignore[method-assign]  # it knows no replica: the bus is asked
        assert stranger.call("vault", "open", {"word": "before"}, timeout=PATIENCE) == "opened before"
        if isinstance(keyed.broker, RabbitServer):  # it knows the names of queues from what it has seen
            asked = keyed.name(service_address("vault"))
            eventually(lambda: bool(keyed.attacker.frames(asked)), "it heard the request", PATIENCE)
        spoilt = keyed.attacker.wreck(f"dse:{keyed.bus}:")
        assert any(":a:" in name for name in spoilt)
        if isinstance(keyed.broker, RabbitServer):
            keyed.broker.evaluate(
                '[(catch rabbit_amqqueue:delete(Q, false, false, <<"evil">>)) || Q <- rabbit_amqqueue:list(), '
                f'binary:match(element(4, amqqueue:get_name(Q)), <<"{keyed.bus}">>) =/= nomatch].'
            )
            eventually(
                lambda: all(node.counters["disconnects"] for node in keyed.nodes), "all lost their queues", PATIENCE
            )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                assert stranger.call("vault", "open", {"word": "after"}, timeout=3) == "opened after"
                break
            except DseError:
                if time.monotonic() > until:
                    raise
        eventually(lambda: states(keyed.desk_node).get("bank") == "JOINED", "nobody is lost", PATIENCE)
        keyed.replica.wait(ReplicaState.LIVE, PATIENCE)
        keyed.vault.secrets.insert([("after", "it")])
        keyed.replica.wait(lambda replica: len(replica) == 2, PATIENCE)
        assert keyed.vault.runs.count("before") == 1

    def test_a_request_that_it_takes_off_the_broker_is_sent_again(self, site: Site) -> None:
        """Requests to whoever offers a service may be taken by anybody, as long as the caller knows no replica."""
        site.attacker.steal(site.name(service_address("vault")))
        try:
            newcomer = site.start("newcomer")
            runs = len(site.vault.runs)
            client = newcomer.runtime.client
            pick, asked = client.pick, []
            # As if the catalogues were still on their way when the first requests are sent.
            client.pick = lambda *args: pick(*args) if len(asked) > 8 else asked.append(1)  # type: ignore[method-assign,func-returns-value]
            if not site.keyed:
                outcomes = []
                for number in range(9):
                    try:
                        outcomes.append(newcomer.call("vault", "open", {"word": f"{number}"}, timeout=0.7))
                    except Exception as error:
                        outcomes.append(type(error).__name__)
                assert "CallTimeout" in outcomes
            else:
                assert newcomer.call("vault", "open", {"word": "x"}, timeout=PATIENCE) == "opened x"
                assert len(site.vault.runs) == runs + 1
        finally:
            site.attacker.stop_stealing()


class TestOldKeys:
    def test_a_key_that_leaked_opens_and_seals_until_it_is_dropped_everywhere(
        self, broker: Broker, attacker: RemoteAttacker
    ) -> None:
        site = Site(broker, True, attacker)
        try:
            assert site.keys is not None
            leaked, fresh = site.keys[0], new_key("k2")

            def forge(word: str) -> None:
                address = instance_address(site.instance)
                args = msgspec.Raw(msgspec.msgpack.encode({"word": word}))
                frame = encode(Request(1, "evil/1", "evil", "vault", "open", args, 30.0))
                sealed = KeyRing(parse_keys([leaked]), site.bus).sealer("evil/1").seal(address, frame)
                attacker.show([(site.name(address), b"\0" + sealed)])

            for keys in ([leaked, fresh], [fresh, leaked]):
                restart(site, keys)
                forge(f"leaked {keys[0][:2]}")
                eventually(lambda keys=keys: f"leaked {keys[0][:2]}" in site.vault.runs, "it runs", PATIENCE)
            recorded = [each for each in attacker.frames() if each[0].startswith(f"dse:{site.bus}:")]
            restart(site, [fresh])
            new = site.name(instance_address(site.instance))
            forge("leaked and dropped")
            attacker.show([(new, data) for _, data in recorded])
            eventually(
                lambda: (
                    site.vault_node.counters["untrusted_unknown_key"] > 0
                    and site.vault_node.counters["untrusted_frames"] > len(recorded)
                ),
                "all of it is dropped",
                PATIENCE,
            )
            assert not site.vault.runs
        finally:
            site.close()


def restart(site: Site, keys: list[str]) -> None:
    for node in site.nodes:
        node.stop()
    site.keys = keys
    site.vault, site.desk = site.new_vault(), Desk("desk")
    site.vault_node, site.desk_node = site.start("bank", site.vault), site.start("office", site.desk)
    site.desk_node.wait_for("vault", PATIENCE)


def timed(job: Callable[[], object]) -> float:
    began = time.monotonic()
    job()
    return time.monotonic() - began
