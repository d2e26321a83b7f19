"""Keys on real brokers: who sees whom, what an operator is told, and a rotation that loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from dse import Change, DataService, Node, Observer, ReplicaState, RpcError, Table, rpc
from dse.core.keys import new_key
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import eventually

PATIENCE = 20.0


class Counter(DataService):
    """Publishes a number, and counts what it is told."""

    numbers = Table("number")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self.told: list[int] = []

    @rpc
    def tell(self, number: int) -> int:
        self.told.append(number)
        return number


@pytest.fixture(params=["redis", "rabbit"])
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def bus() -> str:
    return f"keys-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.stop()


def test_nodes_see_those_with_their_key_and_nobody_else(broker: Broker, bus: str, nodes: list[Node]) -> None:
    k1, k2 = new_key("k1"), new_key("k2")
    kinds = {"one": [k1], "same": [k1], "both": [k2, k1], "other": [k2], "liar": [new_key("k1")], "plain": None}
    for node_id, keys in kinds.items():
        nodes.append(Node(broker.url, bus=bus, node_id=node_id, keys=keys, heartbeat_interval=0.3))
        nodes[-1].start()
    by_id = {node.node_id: node for node in nodes}
    eventually(lambda: set(by_id["same"].status().peers) == {"one"}, "those with one key", PATIENCE)
    # `both` could read what `one` says, and `one` not what `both` says: who cannot talk to each other is no peer.
    eventually(lambda: set(by_id["both"].status().peers) == {"other"}, "those that read it", PATIENCE)
    eventually(lambda: set(by_id["other"].status().peers) == {"both"}, "those that it reads", PATIENCE)
    eventually(lambda: all(by_id[name].counters["untrusted_frames"] > 3 for name in kinds), "all drop some", PATIENCE)
    assert set(by_id["one"].status().peers) == {"same"}
    assert set(by_id["liar"].status().peers) == set(by_id["plain"].status().peers) == set()
    assert by_id["plain"].status().counters["untrusted_sealed"] > 0
    assert by_id["liar"].status().counters["untrusted_bad_seal"] > 0
    assert by_id["one"].status().counters["untrusted_unsealed"] > 0
    assert by_id["one"].status().counters["untrusted_unknown_key"] > 0


@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_a_rotation_under_load_loses_nothing(
    kind: str, request: pytest.FixtureRequest, bus: str, nodes: list[Node]
) -> None:
    """Add the new key as the second everywhere, make it the first everywhere, drop the old one: node by node."""
    broker: Broker = request.getfixturevalue(f"{kind}_server")
    old, new = new_key("old"), new_key("new")
    counters = [Counter("counter"), Counter("counter"), Counter("publisher")]
    keys = [[old], [old], [old]]

    def start(place: int) -> Node:
        node = Node(
            broker.url,
            bus=bus,
            node_id=f"n{place}",
            keys=keys[place],
            services=[counters[place]],
            heartbeat_interval=0.3,
        )
        node.start()
        nodes.append(node)
        return node

    running = [start(place) for place in range(3)]
    caller_keys, caller = [old], None
    seen: list[Change] = []
    sent: list[int] = []
    answered: list[int] = []
    numbers = iter(range(1_000_000))
    for step in ([old], [old, new], [new, old], [new]):
        # The caller is last with what opens, so that nobody seals what it cannot read.
        caller_keys = step
        if caller is not None:
            caller.stop()
        desk = DataService("desk")
        caller = Node(broker.url, bus=bus, node_id="caller", keys=caller_keys, services=[desk], heartbeat_interval=0.3)
        caller.start()
        nodes.append(caller)
        caller.wait_for("counter", PATIENCE)
        caller.wait_for("publisher", PATIENCE)
        replica = desk.subscribe("publisher", "numbers", seen.append)
        replica.wait(ReplicaState.LIVE, PATIENCE)
        stop = threading.Event()
        failures: list[BaseException] = []

        def load(caller: Node = caller, stop: threading.Event = stop, failures: list[BaseException] = failures) -> None:
            while not stop.is_set():
                number = next(numbers)
                sent.append(number)
                try:
                    answered.append(caller.call("counter", "tell", {"number": number}, timeout=PATIENCE))
                except Exception as error:
                    failures.append(error)
                    return
                if number % 5 == 0:
                    counters[2].numbers.insert([(number,)])

        def goes_on(failures: list[BaseException] = failures) -> None:
            before = len(answered)
            eventually(lambda: len(answered) > before + 20 or bool(failures), "calls go on", PATIENCE)

        thread = threading.Thread(target=load, name="test-load")
        thread.start()
        try:
            for place in (0, 1):  # the replicas of `counter`, one after the other: calls go to the other meanwhile
                goes_on()
                running[place].stop()
                counters[place] = type(counters[place])("counter")
                keys[place] = step
                running[place] = start(place)
            goes_on()
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert not failures
        running[2].stop()  # the publisher: the replica is brought up to date by its next life
        rows = {row[0] for row in counters[2].numbers.rows}
        counters[2] = Counter("publisher")
        counters[2].numbers.insert([(number,) for number in rows])
        keys[2] = step
        running[2] = start(2)
        replica.wait(lambda replica, rows=rows: {row[0] for row in replica.rows} == rows, PATIENCE)
    assert answered == sent
    assert len(sent) > 200
    assert all(node.counters["untrusted_unknown_key"] == 0 for node in nodes)


def dse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


class TestCommands:
    @pytest.fixture
    def where(self, redis_server: Broker, bus: str, nodes: list[Node], tmp_path: Path) -> list[str]:
        assert dse("keygen", "k1", "--into", str(tmp_path / "keys")).stdout == "k1\n"
        keys = (tmp_path / "keys").read_text().split()
        nodes.append(Node(redis_server.url, bus=bus, node_id="house", keys=keys, services=[Counter("counter")]))
        nodes[0].start()
        return ["--transport", redis_server.url, "--bus", bus]

    def test_with_the_keys_a_command_sees_the_bus(self, where: list[str], tmp_path: Path) -> None:
        keys = str(tmp_path / "keys")
        done = dse("status", *where, "--keys", keys, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert [node["node_id"] for node in json.loads(done.stdout)["nodes"]] == ["house"]
        done = dse("call", "counter", "tell", "number=7", *where, DSE_KEYS=keys)
        assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")

    def test_without_or_with_other_keys_it_says_why_it_sees_nobody(self, where: list[str], tmp_path: Path) -> None:
        done = dse("status", *where)
        assert "0 nodes" in done.stdout
        assert "are sealed: the nodes of this bus have keys, and none were given" in done.stderr
        other = tmp_path / "others"
        dse("keygen", "k2", "--into", str(other))
        done = dse("status", *where, "--keys", str(other))
        assert "0 nodes" in done.stdout
        assert "sealed with a key that is not among those given" in done.stderr

    def test_check_tries_a_sealed_call(self, where: list[str], tmp_path: Path) -> None:
        done = dse("check", where[1], "--keys", str(tmp_path / "keys"))
        assert done.returncode == 0
        assert "sealed with 'k1'" in done.stdout
        assert (tmp_path / "keys").read_text().partition(":")[2].strip() not in done.stdout + done.stderr


def test_an_observer_sees_a_keyed_bus_with_its_keys_only(broker: Broker, bus: str, nodes: list[Node]) -> None:
    keys = [new_key("k1")]
    nodes.append(Node(broker.url, bus=bus, node_id="n", keys=keys, services=[Counter("counter")]))
    nodes[0].start()
    with Observer(broker.url, bus=bus, keys=keys) as seeing:
        seeing.wait_for("counter", PATIENCE)
        assert seeing.call("counter", "tell", {"number": 3}, timeout=PATIENCE) == 3
    with Observer(broker.url, bus=bus) as blind:
        assert blind.distrusted.wait(PATIENCE)
        assert not blind.status().peers
        with pytest.raises(RpcError):
            blind.call("counter", "tell", {"number": 3}, timeout=0.5)


def test_a_forked_process_sends_nothing_under_its_parents_numbers(redis_server: Broker, bus: str) -> None:
    with Node(redis_server.url, bus=bus, keys=[new_key("k1")], services=[Counter("counter")]) as node:
        node.call("counter", "tell", {"number": 1}, timeout=PATIENCE)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                node.broadcast("counter", "tell", {"number": 2})
            except BaseException as error:
                code = 0 if "fork" in str(error) else 2
            finally:
                os._exit(code)
        until = time.monotonic() + PATIENCE
        while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(done[1]) == 0
