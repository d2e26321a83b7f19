"""Guarantee 12."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from dse.core.transport import Delivery, Transport
from dse.testing.contract.fixtures import DELIVERIES, Connect, Contract, each_delivery
from dse.testing.contract.peer import class_name
from dse.testing.contract.recorder import DEADLINE, address
from dse.testing.piped import run_module

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = ["TestForkAndReopen"]


class TestForkAndReopen(Contract):
    """A closed transport can be opened again; one inherited through fork refuses to be used."""

    guarantee = 12

    @each_delivery
    def test_a_closed_transport_can_be_opened_again(self, connect: Connect, delivery: Delivery) -> None:
        client, sender = connect(), connect()
        for turn in range(4):
            where = address(delivery)
            client.listen(where)
            sender.mark(where, client)
            client.mark(where, client)
            assert client.count(where) == 2
            client.close()
            client.open()
            assert [state.name for state in client.states] == ["CONNECTED", "CLOSED"] * (turn + 1) + ["CONNECTED"]

    def test_the_same_addresses_work_again(self, connect: Connect) -> None:
        client, sender = connect(), connect()
        addresses = [address(delivery) for delivery in DELIVERIES]
        for turn in range(1, 4):
            client.listen(*addresses)
            for where in addresses:
                sender.mark(where, client)
                assert client.count(where) == turn
            client.close()
            client.open()

    def test_open_is_idempotent(self, connect: Connect) -> None:
        client = connect()
        where = address()
        client.listen(where)
        client.open()
        client.mark(where, client)
        assert [state.name for state in client.states] == ["CONNECTED"]

    def test_a_transport_that_was_never_opened_can_be_after_close(self, connect: Connect) -> None:
        client = connect(opened=False)
        client.close()
        client.open()
        where = address()
        client.listen(where)
        client.mark(where, client)

    @pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="this system has no fork")
    def test_a_forked_child_is_refused_and_does_the_parent_no_harm(
        self, broker: Broker, transport_class: type[Transport], bus: str
    ) -> None:
        process = run_module("dse.testing.contract.forked", class_name(transport_class), broker.url, bus)
        try:
            output, _ = process.communicate(timeout=2 * DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError("the process that forks, or its child, hangs") from None
        finally:
            process.kill()
        result: dict[str, Any] = json.loads(output or "{}")
        assert result, "the process that forks ended early"
        refused = dict.fromkeys(("send", "listen", "unlisten", "open"), "TransportUnavailable")
        assert result["child"] == refused | {"events": "0"}
        assert result["status"] == 0, "the child did not exit normally"
        assert result["parent"] == "goes on"
        assert result["lost"] == [0, 0]
