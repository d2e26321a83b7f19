"""Guarantee 11."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from dse.core.transport import Address, ConnectionState, Delivery
from dse.errors import TransportUnavailable
from dse.testing.contract.fixtures import (
    ANYCAST,
    DELIVERIES,
    DIRECT,
    Connect,
    Contract,
    StartPeer,
    bounded,
    each_delivery,
    needs,
)
from dse.testing.contract.recorder import PROMPT, Client, address, eventually
from dse.testing.contract.spi_delivery import run_together

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = ["TestClean"]

_LOOK_AGAIN = 3.0  # seconds a broker's own administration may lag behind
_AFTER_CRASH = 60.0


def wait_clean(broker: Broker, bus: str, timeout: float = _LOOK_AGAIN) -> None:
    """Look through the second door until nothing of the bus is left."""
    until = time.monotonic() + timeout
    while left := broker.leftovers(bus):
        assert time.monotonic() < until, f"left on the broker after {timeout:g} s: {sorted(left)[:10]}"
        time.sleep(0.02)


class TestClean(Contract):
    """After `close` nothing of this transport is left on the broker; after a crash nothing is left within 60 s."""

    guarantee = 11

    def test_close_is_prompt_and_idempotent(self, connect: Connect) -> None:
        client = connect()
        client.listen(*(address(delivery) for delivery in DELIVERIES))
        bounded(PROMPT, "close", client.close)
        client.close()
        assert [state.name for state in client.states] == ["CONNECTED", "CLOSED"]
        never_opened = connect(opened=False)
        never_opened.close()
        assert not never_opened.states

    @needs("can_look")
    def test_after_close_the_broker_holds_nothing(self, connect: Connect, broker: Broker, bus: str) -> None:
        clients = [connect() for _ in range(3)]
        addresses = [address(delivery, name) for delivery in DELIVERIES for name in ("", "a b*#", "x" * 300)]
        for client in clients:
            client.listen(*(where for where in addresses if where.delivery is not DIRECT), address(DIRECT))
        clients[0].listen(*addresses)
        for client in clients:
            for where in addresses:
                client.send(where, b"a frame", 60.0)
                client.send(address(where.delivery), b"for nobody")
        assert broker.leftovers(bus), "the second door does not show what is there"
        for client in clients:
            client.close()
        wait_clean(broker, bus)

    @needs("can_look")
    def test_one_that_closes_takes_nothing_of_the_others_along(
        self, connect: Connect, broker: Broker, bus: str
    ) -> None:
        first, second, sender = connect(), connect(), connect()
        shared = [address(delivery) for delivery in DELIVERIES[1:]]
        for client in (first, second):
            client.listen(*shared)
        first.close()
        for where in shared:
            sender.mark(where, second)
        for client in (second, sender):
            client.close()
        wait_clean(broker, bus)

    @needs("can_look")
    def test_unlisten_leaves_nothing_of_the_address(self, connect: Connect, broker: Broker, bus: str) -> None:
        client = connect()
        warm = [address(delivery) for delivery in DELIVERIES]
        client.listen(*warm)  # what a driver needs once, whatever the number of addresses
        before = broker.leftovers(bus)
        for _ in range(10):
            addresses = [address(delivery) for delivery in DELIVERIES]
            client.listen(*addresses)
            for where in addresses:
                client.mark(where, client)
            client.unlisten(*addresses)
        eventually(lambda: len(broker.leftovers(bus)) <= len(before), "unlisten leaves nothing", _LOOK_AGAIN)

    @needs("can_look")
    @each_delivery
    def test_close_with_frames_waiting_is_prompt_and_clean(
        self, connect: Connect, broker: Broker, bus: str, delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where, busy, release = address(delivery), threading.Event(), threading.Event()

        def block(_where: Address, _frame: bytes) -> None:
            busy.set()
            release.wait(0.2)

        listener.on_frame = block
        listener.listen(where)
        for number in range(2000):
            sender.send(where, b"%d" % number)
        assert busy.wait(PROMPT)
        bounded(PROMPT, "close with frames waiting", listener.close)
        count = listener.events
        sender.close()
        wait_clean(broker, bus)
        assert listener.events == count

    def test_no_event_fires_after_close_returned(self, connect: Connect) -> None:
        sender, ended = connect(), threading.Event()
        addresses = [address(delivery) for delivery in DELIVERIES]
        unheard = address(DIRECT)

        def send() -> None:
            while not ended.is_set():
                for where in addresses:
                    sender.send(where, b"on and on", 60.0)

        def open_and_close() -> None:
            try:
                for _ in range(8):
                    listener = connect()
                    listener.listen(*addresses)
                    listener.wait_count(30, *addresses)
                    for _ in range(20):
                        listener.send(unheard, b"nobody")
                    listener.close()
                    counts.append((listener, listener.events))
                    assert listener.states[-1] == ConnectionState.CLOSED
            finally:
                ended.set()

        counts: list[tuple[Client, int]] = []
        run_together([send, open_and_close])
        sender.listen(unheard)
        sender.mark(unheard, sender)
        assert [listener.events for listener, _ in counts] == [events for _, events in counts]

    def test_many_threads_may_close_at_once(self, connect: Connect) -> None:
        client = connect()
        client.listen(*(address(delivery) for delivery in DELIVERIES))
        run_together([client.close] * 8)
        assert [state.name for state in client.states] == ["CONNECTED", "CLOSED"]

    @each_delivery
    def test_a_closed_transport_refuses_to_be_used(self, connect: Connect, delivery: Delivery) -> None:
        for client in (connect(), connect(opened=False)):
            client.close()
            with pytest.raises(TransportUnavailable):
                client.send(address(delivery), b"too late")
            with pytest.raises(TransportUnavailable):
                client.listen(address(delivery))

    def test_close_while_others_send_and_listen_ends_all(self, connect: Connect) -> None:
        client = connect()
        where = address(ANYCAST)
        client.listen(where)

        def use() -> None:
            with pytest.raises(TransportUnavailable):
                while True:
                    client.send(where, b"on and on", 60.0)
                    each = address(DIRECT)
                    client.listen(each)
                    client.unlisten(each)

        def close() -> None:
            client.wait_count(20, where)
            client.close()

        run_together([use, use, use, close])

    @needs("multiprocess", "can_look")
    @pytest.mark.parametrize("waiting", [0, 300], ids=("idle", "with frames waiting"))
    def test_after_a_crash_nothing_is_left(
        self, connect: Connect, start_peer: StartPeer, broker: Broker, bus: str, waiting: int
    ) -> None:
        sender, peer = connect(), start_peer()
        addresses = [address(delivery) for delivery in DELIVERIES]
        peer.block()
        peer.listen(*addresses)
        for number in range(waiting):
            for where in addresses:
                sender.send(where, b"%d" % number, 60.0)
        assert broker.leftovers(bus), "the second door does not show what is there"
        peer.kill()
        sender.close()
        wait_clean(broker, bus, _AFTER_CRASH)
