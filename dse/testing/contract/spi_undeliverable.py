"""Guarantee 5."""

from __future__ import annotations

import os
import time

import pytest

from dse.core.transport import Address, Delivery
from dse.testing.contract.fixtures import ANYCAST, DIRECT, FANOUT, Connect, Contract, StartPeer, needs
from dse.testing.contract.recorder import DEADLINE, Client, address, assert_each_once, eventually

__all__ = ["TestUndeliverable"]

_WITHIN = 1.0
point_to_point = pytest.mark.parametrize("delivery", [DIRECT, ANYCAST], ids=lambda delivery: delivery.value)


def report_time(sender: Client, where: Address, frame: bytes) -> float:
    """Send a frame that has no listener; return the seconds until the report."""
    began = time.monotonic()
    sender.send(where, frame)
    sender.wait_returned(where, frame)
    return time.monotonic() - began


class TestUndeliverable(Contract):
    """With the capability, a DIRECT or ANYCAST frame without listener is reported within 1 s."""

    guarantee = 5

    @needs("undeliverable")
    @point_to_point
    def test_a_frame_nobody_listens_for_is_reported_within_a_second(self, connect: Connect, delivery: Delivery) -> None:
        sender, other = connect(), connect()
        times = []
        for number in range(3):
            where = address(delivery)
            times.append(report_time(sender, where, b"%d" % number))
            assert sender.returned(where) == [b"%d" % number]
        assert sorted(times)[len(times) // 2] <= _WITHIN  # the median: one hiccup of a busy machine is no breach
        assert not other.all_returned()
        assert not sender.all_frames()

    @needs("undeliverable")
    @point_to_point
    def test_the_report_has_the_frame_unchanged(self, connect: Connect, delivery: Delivery) -> None:
        sender, where = connect(), address(delivery, "naïve *.# ")
        for frame, ttl in ((b"", None), (bytes(range(256)), 30.0), (os.urandom(1_000_000), None), (b"x" * 4096, 30.0)):
            sender.send(where, frame, ttl)
            sender.wait_returned(where, frame)
        assert len(sender.returned(where)) == 4

    @needs("undeliverable")
    @point_to_point
    def test_of_many_frames_exactly_the_undeliverable_are_reported(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        heard, unheard = address(delivery), [address(delivery) for _ in range(10)]
        listener.listen(heard)
        for number in range(500):
            sender.send(heard, b"%d" % number)
            sender.send(unheard[number % 10], b"%d" % number)
        listener.wait_count(500, heard)
        sender.wait_for(lambda: len(sender.all_returned()) >= 500, "500 reports")
        report_time(sender, unheard[0], b"marker")
        expected = [(unheard[number % 10], b"%d" % number) for number in range(500)] + [(unheard[0], b"marker")]
        assert_each_once(sender.all_returned(), expected)

    @needs("undeliverable")
    @point_to_point
    def test_after_unlisten_frames_are_reported_until_somebody_listens(
        self, connect: Connect, delivery: Delivery
    ) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        for turn in range(5):
            listener.listen(where)
            sender.mark(where, listener)
            listener.unlisten(where)
            report_time(sender, where, b"%d" % turn)
        assert listener.count(where) == 5
        assert sender.returned(where) == [b"%d" % turn for turn in range(5)]

    @needs("undeliverable")
    @point_to_point
    def test_after_the_listener_closed_frames_are_reported(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        listener.listen(where)
        sender.mark(where, listener)
        listener.close()
        assert report_time(sender, where, b"nobody") <= _WITHIN
        assert listener.count(where) == 1

    @needs("undeliverable")
    @point_to_point
    def test_one_listener_of_several_is_enough(self, connect: Connect, delivery: Delivery) -> None:
        sender = connect()
        where = address(delivery)
        listeners = [connect() for _ in range(1 if delivery is DIRECT else 3)]
        for listener in listeners:
            listener.listen(where)
        for listener in listeners[1:]:
            listener.close()
        for number in range(50):
            sender.send(where, b"%d" % number)
        listeners[0].wait_count(50, where)
        report_time(sender, address(delivery), b"marker")
        assert len(sender.all_returned()) == 1

    @needs("undeliverable")
    def test_fanout_is_never_reported(self, connect: Connect) -> None:
        sender = connect()
        nobody = address(FANOUT)
        for number in range(50):
            sender.send(nobody, b"%d" % number)
        for delivery in (DIRECT, ANYCAST):
            for number in range(3):
                report_time(sender, address(delivery), b"%d" % number)
        assert {where.delivery for where, _ in sender.all_returned()} == {DIRECT, ANYCAST}

    @needs("undeliverable")
    @point_to_point
    def test_other_deliveries_of_the_same_name_are_no_listeners(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        others = [Address(other, where.name) for other in Delivery if other is not delivery]
        listener.listen(*others)
        report_time(sender, where, b"nobody")
        for other in others:
            sender.mark(other, listener)
        assert not listener.frames(where)

    @needs("undeliverable")
    @point_to_point
    def test_a_handler_may_send_what_came_back_elsewhere(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where, second_choice = address(delivery), address(delivery)
        listener.listen(second_choice)
        sender.on_returned = lambda _where, frame: sender.send(second_choice, frame)
        for number in range(100):
            sender.send(where, b"%d" % number)
        listener.wait_count(100, second_choice)
        assert_each_once(listener.frames(second_choice), (b"%d" % number for number in range(100)))

    @needs("undeliverable", "multiprocess")
    def test_after_the_listening_process_was_killed_frames_are_reported(
        self, connect: Connect, start_peer: StartPeer
    ) -> None:
        sender, peer = connect(), start_peer()
        addresses = [address(delivery) for delivery in (DIRECT, ANYCAST)]
        peer.listen(*addresses)
        for where in addresses:
            sender.send(where, b"heard")
        peer.wait_count(2, *addresses)
        peer.kill()
        for where in addresses:
            # The broker learns of the death a moment later; what is sent in that moment may be lost with the process.
            def comes_back(where: Address = where) -> bool:
                sender.send(where, b"still there?")
                return bool(sender.returned(where))

            eventually(comes_back, "the broker knows that the listener is dead", DEADLINE / 2)
            assert report_time(sender, where, b"nobody") <= _WITHIN
