"""Guarantee 1."""

from __future__ import annotations

import threading

from dse.core.transport import Delivery
from dse.testing.contract.fixtures import Connect, Contract, StartPeer, each_delivery, needs
from dse.testing.contract.recorder import DEADLINE, address

__all__ = ["TestReady"]


class TestReady(Contract):
    """After `listen` returns, a frame sent by any process is delivered."""

    guarantee = 1

    @each_delivery
    def test_a_frame_sent_right_after_listen_arrives(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        addresses = [address(delivery) for _ in range(40)]
        for where in addresses:
            listener.listen(where)
            sender.send(where, b"at once")
        listener.wait_count(len(addresses), *addresses)

    @each_delivery
    def test_a_frame_to_oneself_right_after_listen_arrives(self, connect: Connect, delivery: Delivery) -> None:
        client = connect()
        addresses = [address(delivery) for _ in range(40)]
        for where in addresses:
            client.listen(where)
            client.send(where, b"at once")
        client.wait_count(len(addresses), *addresses)

    @each_delivery
    def test_listening_anew_after_unlisten_is_ready_as_well(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        for turn in range(30):
            listener.listen(where)
            sender.send(where, b"%d" % turn)
            listener.wait_frame(where, b"%d" % turn)
            listener.unlisten(where)
        assert listener.frames(where) == [b"%d" % turn for turn in range(30)]

    @each_delivery
    def test_a_second_listener_is_ready_while_the_first_goes_on(self, connect: Connect, delivery: Delivery) -> None:
        first, sender = connect(), connect()
        stable, where = address(delivery), address(Delivery.FANOUT)
        first.listen(stable, where)
        sender.mark(where, first)
        second = connect()
        second.listen(where)
        sender.send(where, b"for both")
        for listener in (first, second):
            listener.wait_frame(where, b"for both")
        sender.mark(stable, first)

    @each_delivery
    def test_listen_is_idempotent(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)
        for _ in range(3):
            listener.listen(where)
        sender.send(where, b"once")
        sender.mark(where, listener)
        assert listener.count(where) == 2
        listener.unlisten(where)
        listener.listen(where)
        sender.mark(where, listener)
        assert listener.count(where) == 3

    @each_delivery
    def test_whichever_of_two_threads_returns_from_listen_is_ready(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        addresses = [address(delivery) for _ in range(20)]
        for where in addresses:
            together = threading.Barrier(2)

            def listen_and_send(where: object = where, together: threading.Barrier = together) -> None:
                together.wait(DEADLINE)
                listener.listen(where)  # type: ignore[arg-type]
                sender.send(where, b"after listen")  # type: ignore[arg-type]

            threads = [threading.Thread(target=listen_and_send) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
        listener.wait_count(2 * len(addresses), *addresses)

    @needs("multiprocess")
    @each_delivery
    def test_other_processes_reach_a_listener_and_are_reached(
        self, connect: Connect, start_peer: StartPeer, delivery: Delivery
    ) -> None:
        here, peer = connect(), start_peer()
        there_to_here, here_to_there = [address(delivery) for _ in range(10)], [address(delivery) for _ in range(10)]
        for where in there_to_here:
            here.listen(where)
            peer.send(where, b"from there")
        here.wait_count(len(there_to_here), *there_to_here)
        for where in here_to_there:
            peer.listen(where)
            here.send(where, b"from here")
        peer.wait_count(len(here_to_there), *here_to_there)
