"""Level 2: who is on the bus."""

from __future__ import annotations

import time
import uuid

import pytest

from dse.core.info import DataServiceInfo
from dse.core.membership import NodeState
from dse.core.node import Node
from dse.core.replica import ReplicaState
from dse.core.table import Change
from dse.core.transport import Transport
from dse.errors import ConfigError, DseError, NodeIdClash, NoSuchService, ServiceExists
from dse.testing.contract.bus_network import BEAT, MARGIN, Far, Network, together
from dse.testing.contract.bus_services import Sink, Source, Worker
from dse.testing.contract.fixtures import Contract, within
from dse.testing.contract.recorder import DEADLINE, PROMPT, eventually

__all__ = ["TestControlBus", "TestObserver"]


def state_of(node: Node, other: Far) -> NodeState | None:
    """Return the state of another node as a node knows it."""
    status = node.status().nodes.get(other.node_id)
    return status.state if status is not None else None


class TestControlBus(Contract):
    """Nodes know who is on the bus and what they offer; what leaves is gone at once, what dies within 5 intervals."""

    guarantee = "control-bus"

    def test_nodes_know_each_other_and_what_they_offer(self, network: Network) -> None:
        node, other = network.pair({"mine": Sink}, {"theirs": Worker, "data": Source})
        eventually(lambda: other.status().get(node.node_id) == "JOINED", "the other one knows this one")
        status = node.status()
        assert status.bus == network.bus
        assert status.connected
        assert (status.node.node_id, status.node.state) == (node.node_id, NodeState.JOINED)
        assert set(status.nodes) == {node.node_id, other.node_id}
        peer = status.peers[other.node_id]
        assert (peer.state, peer.instance) == (NodeState.JOINED, other.instance)
        assert 0 <= peer.last_heard < DEADLINE
        infos = {info.service_id: info for info in peer.services}
        assert set(infos) == {"theirs", "data"}
        assert dict(infos["data"].published_tables) == {"items": ("key", "value"), "others": ("a", "b", "c")}
        assert "typed" in infos["theirs"].rpc_methods
        assert infos["theirs"].rpc_methods["typed"].signature.startswith("(count: ")
        assert infos["theirs"].rpc_methods["typed"].doc == "Take what is annotated, and nothing else."
        assert infos["theirs"].rpc_methods["steady"].idempotent
        assert not infos["theirs"].rpc_methods["typed"].idempotent
        for info in (*infos.values(), *status.node.services):
            assert DataServiceInfo.from_dict(info.to_dict()) == info
        with pytest.raises(ConfigError, match="surplus"):
            DataServiceInfo.from_dict(infos["data"].to_dict() | {"surplus": 1})

    def test_services_come_and_go_while_the_node_stays(self, network: Network) -> None:
        node, other = network.pair({}, {"first": Worker})
        other.register("second", Worker)
        node.wait_for("second", DEADLINE)
        assert node.call("second", "echo", {"value": 2}) == 2
        other.unregister("first")
        eventually(lambda: "first" not in node.control_bus.replicas, "the first one is gone")
        with within(PROMPT, "a call to a service that is gone"), pytest.raises(NoSuchService):
            node.call("first", "echo", {"value": 1}, timeout=30)
        other.register("first", Worker)
        node.wait_for("first", DEADLINE)
        assert node.call("first", "echo", {"value": 1}) == 1
        node.register(Worker("mine"))
        with pytest.raises(ServiceExists):
            node.register(Worker("mine"))
        assert node.call("mine", "echo", {"value": 3}) == 3
        node.unregister("mine")
        with pytest.raises(NoSuchService):
            node.call("mine", "echo", {"value": 3}, timeout=30)

    def test_waiting_for_a_service_ends_when_it_comes_or_the_time_is_over(self, network: Network) -> None:
        node = network.here({"mine": Worker})
        node.wait_for("mine", 0.01)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="absent"):
            node.wait_for("absent", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 0.2 + PROMPT
        other, _ = together(lambda: network.far({"theirs": Worker}), lambda: node.wait_for("theirs", DEADLINE))
        assert node.call("theirs", "mark", {"key": "x"}) == other.node_id

    def test_a_leave_is_known_at_once(self, network: Network) -> None:
        node, other = network.pair({}, {"theirs": Worker}, heartbeat_interval=10.0)
        other.stop()
        eventually(lambda: state_of(node, other) is NodeState.LEFT, "LEFT", PROMPT)
        assert "theirs" not in node.control_bus.replicas

    def test_silence_makes_suspect_and_then_dead(self, network: Network) -> None:
        node, other = network.pair({}, {"theirs": Worker}, heartbeat_interval=BEAT)
        other.kill()
        killed = time.monotonic()
        eventually(lambda: state_of(node, other) is NodeState.SUSPECT, "SUSPECT", 4 * BEAT + MARGIN)
        # The last heartbeat may be one interval old when the process is killed.
        assert time.monotonic() - killed > 1.5 * BEAT
        eventually(
            lambda: state_of(node, other) is NodeState.DEAD, "DEAD", killed + 6 * BEAT + MARGIN - time.monotonic()
        )
        assert time.monotonic() - killed > 3.5 * BEAT
        assert "theirs" not in node.control_bus.replicas

    def test_the_younger_of_two_nodes_with_one_id_raises(self, network: Network) -> None:
        node_id = f"twin-{uuid.uuid4().hex[:8]}"
        older = network.far({"theirs": Worker}, node_id=node_id)
        watcher = network.here()
        network.meet(watcher, "theirs", older)
        younger = network.make({"mine": Worker}, node_id=node_id)
        with within(PROMPT * 2, "to notice the clash"), pytest.raises(NodeIdClash, match=node_id):
            younger.start()
        with pytest.raises(NodeIdClash):
            younger.call("theirs", "echo", {"value": 1})
        assert watcher.call("theirs", "mark", {"key": "x"}) == node_id
        assert state_of(watcher, older) is NodeState.JOINED
        assert older.status()[node_id] == "JOINED"

    def test_a_node_may_come_back_under_its_name(self, network: Network) -> None:
        node, other = network.pair({}, {"theirs": Worker})
        other.stop()
        eventually(lambda: state_of(node, other) is NodeState.LEFT, "LEFT")
        again = network.far({"theirs": Worker}, node_id=other.node_id)
        node.wait_for("theirs", DEADLINE)
        assert again.instance != other.instance
        assert node.status().peers[other.node_id].instance == again.instance
        assert node.call("theirs", "mark", {"key": "x"}) == other.node_id

    def test_a_node_that_was_killed_may_come_back_under_its_name(self, network: Network) -> None:
        node, other = network.pair({}, {"theirs": Worker}, heartbeat_interval=5.0)
        other.kill()
        again = network.far({"theirs": Worker}, node_id=other.node_id, heartbeat_interval=5.0)
        # Long before the silence of the dead one would tell.
        eventually(
            lambda: [m.instance for m in node.control_bus.replicas.get("theirs", ())] == [again.instance],
            "the new life is known, the old one gone",
            PROMPT,
        )
        assert node.call("theirs", "mark", {"key": "x"}) == other.node_id

    def test_a_node_can_be_stopped_and_started_again(self, network: Network) -> None:
        node, other = network.pair({"mine": Worker}, {"theirs": Worker})
        first = node.status().node.instance
        node.stop()
        node.stop()
        with pytest.raises(DseError, match="not started"):
            node.call("theirs", "echo", {"value": 1})
        node.start()
        assert node.status().node.instance != first
        node.wait_for("theirs", DEADLINE)
        assert node.call("theirs", "mark", {"key": "x"}) == other.node_id
        assert node.call("mine", "echo", {"value": 1}) == 1

    def test_other_buses_on_the_broker_are_not_seen(self, network: Network, transport_class: type[Transport]) -> None:
        node, other = network.pair({}, {"theirs": Worker})
        stranger = network.here(bus=f"{network.bus}-other", node_id=node.node_id)
        assert set(stranger.status().nodes) == {stranger.node_id}
        with within(PROMPT, "a call to another bus"), pytest.raises(NoSuchService):
            stranger.call("theirs", "echo", {"value": 1}, timeout=30)
        stranger.broadcast("theirs", "mark", {"key": "from another bus"})
        assert node.call("theirs", "mark", {"key": "x"}) == other.node_id
        assert other.ask("theirs", "ran") == ["x"]
        assert set(node.status().nodes) == {node.node_id, other.node_id}


class TestObserver(Contract):
    """An observer sees who is on the bus, calls and follows tables, and nobody sees it."""

    guarantee = "observer"

    def test_it_knows_everybody_when_it_has_started_and_nobody_knows_it(self, network: Network) -> None:
        node, other = network.pair({"mine": Worker}, {"theirs": Source})
        observer = network.observer()
        status = observer.status()
        assert set(status.nodes) == set(status.peers) == {node.node_id, other.node_id}
        assert {peer.state for peer in status.peers.values()} == {NodeState.JOINED}
        assert [info.service_id for info in status.peers[other.node_id].services] == ["theirs"]
        assert (status.node.state, status.bus) == (NodeState.LEFT, network.bus)
        other.register("late", Worker)
        observer.wait_for("late", DEADLINE)
        with pytest.raises(ConfigError, match="Observer"):
            observer.register(Worker("none"))
        assert observer.call("mine", "echo", {"value": 1}) == 1
        assert observer.call_node(node.node_id, "ping", {"text": "x"}) == "pong x"
        assert set(observer.call_all("late", "echo", {"value": 2})) == {other.node_id}
        observer.stop()
        assert set(node.status().nodes) == {node.node_id, other.node_id}
        assert set(other.status()) == {node.node_id, other.node_id}

    def test_on_an_empty_bus_it_sees_nobody_and_then_who_comes_leaves_and_dies(self, network: Network) -> None:
        observer = network.observer()
        assert not observer.status().nodes
        first, second = together(
            lambda: network.far({"theirs": Worker}, heartbeat_interval=BEAT),
            lambda: network.far({"other": Worker}, heartbeat_interval=BEAT),
        )
        observer.wait_for("theirs", DEADLINE)
        observer.wait_for("other", DEADLINE)
        first.stop()
        eventually(lambda: state_of(observer, first) is NodeState.LEFT, "it left")
        second.kill()
        with within(5 * BEAT + MARGIN, "to notice the death"):
            eventually(lambda: state_of(observer, second) is NodeState.DEAD, "it is dead")

    def test_it_follows_a_table_and_lets_go_of_it(self, network: Network) -> None:
        node = network.here({"source": Source})
        source = node.service("source")
        assert isinstance(source, Source)
        source.insert([[1, "one"]])
        with network.observer() as observer:
            changes: list[Change] = []
            replica = observer.subscribe("source", "items", changes.append)
            replica.wait(ReplicaState.LIVE, DEADLINE)
            assert replica.rows == {(1, "one")}
            source.insert([[2, "two"]])
            eventually(lambda: len(changes) == 2, "both changes were seen")
            assert changes[1].added == {(2, "two")}
            assert source.items.subscribers == 1
        eventually(lambda: source.items.subscribers == 0, "it subscribes no more")
        # The count comes first, then the hook, on a thread of its own.
        eventually(lambda: source._hooks == ["first items", "last items"], "the source was told of both")
