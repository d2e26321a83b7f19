"""Level 2: the broker fails, and what is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from dse.core.membership import NodeState
from dse.core.replica import ReplicaState
from dse.errors import NodeLost, RpcError, TransportError
from dse.testing.contract.bus_network import Network, together
from dse.testing.contract.bus_peer import node_threads
from dse.testing.contract.bus_services import Sink, Source, Worker
from dse.testing.contract.fixtures import Contract, bounded, needs
from dse.testing.contract.recorder import DEADLINE, PROMPT, eventually

if TYPE_CHECKING:
    from dse.core.node import Node
    from dse.testing.brokers import Broker

__all__ = ["TestBusClean", "TestBusOutage"]

HEARTBEAT = 1.0
HEALED = 10.0
"""Seconds after which everything is as it should be, from when the broker answers again."""


def sink(node: Node) -> Sink:
    service = node.service("sink")
    assert isinstance(service, Sink)
    return service


class TestBusOutage(Contract):
    """An outage of the broker delays, and falsifies nothing: within 10 s of its end everything is as it should be."""

    guarantee = "bus-outage"

    @needs("can_fail", "survives_broker_restart")
    @pytest.mark.parametrize("how", ["stop", "cut", "pause"])
    def test_after_an_outage_replicas_are_equal_and_calls_work(
        self, network: Network, failing: Broker, how: str
    ) -> None:
        fail: Callable[[], None] = getattr(failing, how)
        repair: Callable[[], None] = {"stop": failing.start, "cut": failing.mend, "pause": failing.resume}[how]
        network.url_options = {"heartbeat": HEARTBEAT, "connect_timeout": 2}
        node, other = network.pair(
            {"sink": Sink, "mine": Source, "worker_here": Worker},
            {"their_sink": Sink, "theirs": Source, "worker": Worker},
            heartbeat_interval=0.3,
        )
        mine = node.service("mine")
        assert isinstance(mine, Source)
        eventually(lambda: other.status().get(node.node_id) == "JOINED", "the other one knows this one")
        mine.fill(500)
        other.ask("theirs", "fill", 500)
        followed = sink(node).follow("theirs")
        own = sink(node).follow("mine")
        other.ask("their_sink", "begin", "mine")
        followed.wait_equal(other.ask("theirs", "rows"))
        under_way = node.call_async("worker", "hold", {"key": "under way"}, timeout=60)
        other.ask("worker", "wait_ran", "under way")

        fail()
        mine.apply([[-1, "during the outage"]], [mine.rows()[3]])
        own.wait_equal(mine.rows(), PROMPT)  # what stays on the node needs no broker
        assert node.call("worker_here", "echo", {"value": 1}) == 1
        other.ask("theirs", "apply", [[-1, "during the outage"]], [other.ask("theirs", "rows")[3]])
        self._calls_fail(node)
        eventually(lambda: not node.status().connected, "the outage is noticed", HEARTBEAT + PROMPT)
        followed.replica.wait(lambda r: r.state is not ReplicaState.LIVE, PROMPT)
        assert len(followed.replica) == 500
        self._calls_fail(node)
        other.ask("theirs", "insert", [[-2, "late in the outage"]])
        mine.insert([[-2, "late in the outage"]])
        other.ask("worker", "let_go")

        repair()
        healed = time.monotonic() + HEALED
        followed.wait_equal(other.ask("theirs", "rows"), HEALED)
        other.ask("their_sink", "wait_rows", mine.rows())
        eventually(lambda: _works(node), "calls work again", healed - time.monotonic())
        eventually(
            lambda: node.status().nodes[other.node_id].state is NodeState.JOINED,
            "the other node is JOINED again",
            healed - time.monotonic(),
        )
        try:
            assert under_way.result(max(0.1, healed - time.monotonic())) == "under way"
        except NodeLost:
            pass  # the answer went down with the broker, and the caller was told so
        other.ask("theirs", "insert", [[-3, "after the outage"]])
        followed.wait_equal(other.ask("theirs", "rows"))
        mine.insert([[-3, "after the outage"]])
        other.ask("their_sink", "wait_rows", mine.rows())
        assert other.ask("worker", "ran").count("under way") == 1

    @needs("can_fail", "survives_broker_restart")
    def test_a_call_that_may_be_repeated_waits_for_the_broker(self, network: Network, failing: Broker) -> None:
        network.url_options = {"heartbeat": HEARTBEAT, "connect_timeout": 2}
        node, _ = network.pair({}, {"worker": Worker}, heartbeat_interval=2.0)
        failing.stop()
        eventually(lambda: not node.status().connected, "the outage is noticed", HEARTBEAT + PROMPT)
        waiting = [node.call_async("worker", "again", {"key": f"{n}"}, timeout=60) for n in range(3)]
        failing.start()
        assert [future.result(HEALED) for future in waiting] == ["0", "1", "2"]

    @needs("can_fail", "survives_broker_restart")
    def test_what_was_asked_for_during_an_outage_is_there_after_it(self, network: Network, failing: Broker) -> None:
        network.url_options = {"heartbeat": HEARTBEAT, "connect_timeout": 2}
        node, other = network.pair({"sink": Sink}, {"theirs": Source}, heartbeat_interval=0.5)
        other.ask("theirs", "insert", [[1, "one"]])
        failing.stop()
        eventually(lambda: not node.status().connected, "the outage is noticed", HEARTBEAT + PROMPT)
        node.register(Worker("new"))
        followed = sink(node).follow("theirs")
        other.register("newer", Worker)
        failing.start()
        followed.wait_equal([(1, "one")], HEALED)
        node.wait_for("newer", HEALED)
        assert node.call("newer", "relay", {"service_id": "new", "method": "echo", "args": {"value": 5}}) == 5

    @needs("can_fail")
    def test_a_node_stops_promptly_while_the_broker_is_gone(self, network: Network, failing: Broker) -> None:
        network.url_options = {"heartbeat": HEARTBEAT, "connect_timeout": 2}
        node = network.here({"worker": Worker, "source": Source, "sink": Sink})
        sink(node).follow("source").wait_equal([])
        failing.cut()
        bounded(PROMPT * 2, "stop without a broker", node.stop)

    def _calls_fail(self, node: Node) -> None:
        """A call ends in bounded time, with an error that says why."""
        began = time.monotonic()
        with pytest.raises((RpcError, TransportError)):
            node.call("worker", "echo", {"value": "lost"}, timeout=0.5)
        assert time.monotonic() - began < 0.5 + HEARTBEAT + PROMPT


def _works(node: Node) -> bool:
    try:
        return bool(node.call("worker", "echo", {"value": 1}, timeout=1.0) == 1)
    except (RpcError, TransportError):
        return False


class TestBusClean(Contract):
    """After `Node.stop` no thread of the node is left, and nothing of its bus on the broker."""

    guarantee = "bus-clean"

    @needs("can_look")
    def test_a_stopped_node_leaves_nothing(self, network: Network, broker: Broker, bus: str) -> None:
        before = node_threads()
        node, other = network.pair({"sink": Sink, "mine": Source}, {"their_sink": Sink, "theirs": Source})
        eventually(lambda: other.status().get(node.node_id) == "JOINED", "the other one knows this one")
        other.ask("their_sink", "begin", "mine")
        sink(node).follow("theirs").wait_equal([])
        node.call_async("theirs", "absent").exception(DEADLINE)
        assert broker.leftovers(bus), "the second door does not show what is there"
        together(lambda: bounded(PROMPT * 2, "stop", node.stop), other.stop)
        until = time.monotonic() + PROMPT
        while left := broker.leftovers(bus):
            assert time.monotonic() < until, f"left on the broker: {sorted(left)[:10]}"
            time.sleep(0.02)
        left_threads: list[Any] = [name for name in node_threads() if name not in before]
        assert not left_threads
