"""Guarantee 6."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from dse.core.transport import Address, Delivery
from dse.testing.contract.fixtures import DELIVERIES, Connect, Contract, each_delivery, needs
from dse.testing.contract.recorder import DEADLINE, Client, address, assert_in_order

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = ["TestTtl"]


def let_pass(seconds: float) -> None:
    """Let a ttl run out: here time itself is the condition."""
    time.sleep(seconds)


class Busy:
    """Keeps the handler of a client occupied with one frame until released."""

    def __init__(self, client: Client, sender: Client, where: Address) -> None:
        self._release = threading.Event()
        busy = threading.Event()

        def block(_where: Address, frame: bytes) -> None:
            if frame == b"block":
                busy.set()
                self._release.wait(DEADLINE)

        client.on_frame = block
        sender.send(where, b"block")
        assert busy.wait(DEADLINE)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._release.set()


class TestTtl(Contract):
    """A frame older than its `ttl` is never delivered."""

    guarantee = 6

    @each_delivery
    def test_a_frame_that_waited_too_long_for_a_busy_listener_is_dropped(
        self, connect: Connect, delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        with Busy(listener, sender, where):
            for frame, ttl in (
                (b"old", 0.1),
                (b"for ever", None),
                (b"older", 0.05),
                (b"in time", 60.0),
                (b"oldest", 0.01),
            ):
                sender.send(where, frame, ttl)
            let_pass(0.3)
        sender.mark(where, listener)
        assert listener.frames(where)[:3] == [b"block", b"for ever", b"in time"]
        assert listener.count(where) == 4

    @each_delivery
    def test_a_frame_in_time_arrives_as_it_is(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        frames = [b"", b"\0", b"\1" * 30, bytes(range(256)) * 300]
        for ttl in (5.0, 3600.0, 86400.0 * 365):
            for frame in frames:
                sender.send(where, frame, ttl)
        listener.wait_count(12, where)
        assert listener.frames(where) == frames * 3

    @each_delivery
    def test_no_time_at_all_is_too_late(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        for ttl in (0, 0.0, -1.0, 1e-9):
            sender.send(where, b"too late", ttl)
        sender.mark(where, listener)
        assert listener.count(where) == 1

    @each_delivery
    def test_a_mixed_stream_keeps_exactly_what_is_fresh(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        with Busy(listener, sender, where):
            for number in range(300):
                sender.send(where, b"%d" % number, (0.01, 60.0, None)[number % 3])
            let_pass(0.2)
        sender.mark(where, listener)
        assert_in_order(listener.frames(where)[1:-1], [b"%d" % number for number in range(300) if number % 3])

    @needs("can_fail")
    def test_a_frame_that_waited_too_long_in_a_hung_broker_is_dropped(self, connect: Connect, failing: Broker) -> None:
        listener, sender = connect(heartbeat=30), connect(heartbeat=30)
        addresses = [address(delivery) for delivery in DELIVERIES]
        listener.listen(*addresses)
        for where in addresses:
            sender.mark(where, listener)
        failing.pause()
        try:
            for where in addresses:
                sender.send(where, b"old", 0.2)
                sender.send(where, b"fresh", 60.0)
            let_pass(0.6)
        finally:
            failing.resume()
        for where in addresses:
            listener.wait_frame(where, b"fresh")
            sender.mark(where, listener)
            assert b"old" not in listener.frames(where)
