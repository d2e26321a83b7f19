"""Guarantee 9."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dse.core.transport import Address, Delivery
from dse.testing.contract.fixtures import DELIVERIES, DIRECT, FANOUT, Connect, Contract, bounded, each_delivery, needs
from dse.testing.contract.recorder import DEADLINE, PROMPT, Client, address, assert_in_order
from dse.testing.contract.spi_delivery import run_together

__all__ = ["TestThreads"]


class TestThreads(Contract):
    """`send`, `listen`, `unlisten` from any thread at once. A handler that raises is logged; delivery goes on."""

    guarantee = 9

    def test_sixteen_threads_use_one_transport_at_once(self, connect: Connect) -> None:
        client, other = connect(), connect()

        def job(number: int) -> Callable[[], None]:
            def run() -> None:
                for turn in range(12):
                    where = address(DELIVERIES[(number + turn) % 3])
                    client.listen(where)
                    client.send(where, b"own")
                    other.send(where, b"other")
                    client.wait_count(2, where)
                    client.unlisten(where)

            return run

        run_together([job(number) for number in range(16)])
        frames = client.all_frames()
        assert len(frames) == 16 * 12
        assert all(sorted(got) == [b"other", b"own"] for got in frames.values())
        assert len(client.states) == 1

    @each_delivery
    def test_threads_that_quarrel_about_one_address_leave_it_sound(self, connect: Connect, delivery: Delivery) -> None:
        client, sender = connect(), connect()
        where = address(delivery)

        def run() -> None:
            for _ in range(10):
                client.listen(where)
                client.unlisten(where)

        run_together([run] * 16)
        client.unlisten(where)
        fence = address(delivery)
        client.listen(fence)
        sender.send(where, b"nobody")
        sender.mark(fence, client)  # now the broker is done with what nobody hears
        client.listen(where)
        sender.mark(where, client)
        assert client.count(where) == 1

    @each_delivery
    def test_after_a_handler_raised_delivery_goes_on(
        self, connect: Connect, delivery: Delivery, caplog: pytest.LogCaptureFixture
    ) -> None:
        listener, sender = connect(), connect()
        where = address(delivery)

        def fail(_where: Address, frame: bytes) -> None:
            raise {0: ValueError, 1: KeyError, 2: OSError, 3: TimeoutError, 4: ConnectionResetError}[frame[0] % 5]("no")

        listener.listen(where)
        listener.on_frame = fail
        with caplog.at_level(logging.WARNING):
            for number in range(100):
                sender.send(where, bytes([number]))
            listener.wait_count(100, where)
            sender.mark(where, listener)
        assert_in_order(listener.frames(where)[:100], [bytes([number]) for number in range(100)])
        assert len(listener.states) == 1, "the connection was lost"
        assert [record for record in caplog.records if record.exc_info], "nothing was logged"

    @needs("undeliverable")
    def test_after_a_handler_of_reports_raised_reports_go_on(self, connect: Connect) -> None:
        sender = connect()

        def fail(_where: Address, _frame: bytes) -> None:
            raise OSError("no")

        sender.on_returned = fail
        for number in range(20):
            sender.send(address(DIRECT), b"%d" % number)
        sender.wait_for(lambda: len(sender.all_returned()) == 20, "20 reports")
        assert len(sender.states) == 1

    def test_after_a_handler_of_states_raised_all_goes_on(self, connect: Connect) -> None:
        client = connect(opened=False)

        def fail(_state: object) -> None:
            raise OSError("no")

        client.on_state = fail
        client.open()
        for delivery in DELIVERIES:
            where = address(delivery)
            client.listen(where)
            client.mark(where, client)
        client.close()
        assert [state.name for state in client.states] == ["CONNECTED", "CLOSED"]

    @each_delivery
    def test_a_handler_may_send(self, connect: Connect, delivery: Delivery) -> None:
        asker, answerer = connect(), connect()
        there, back = address(delivery), address(delivery)
        answerer.on_frame = lambda _where, frame: answerer.send(back, frame)
        answerer.listen(there)
        asker.listen(back)
        for number in range(300):
            asker.send(there, b"%d" % number)
        asker.wait_count(300, back)
        assert_in_order(asker.frames(back), [b"%d" % number for number in range(300)])

    @each_delivery
    def test_a_handler_may_listen_and_unlisten(self, connect: Connect, delivery: Delivery) -> None:
        listener, sender = connect(), connect()
        chain = [address(delivery) for _ in range(10)]
        done = threading.Event()
        failures: list[BaseException] = []

        def go_on(where: Address, frame: bytes) -> None:
            try:
                step = chain.index(where)
                if step + 1 == len(chain):
                    done.set()
                    return
                listener.listen(chain[step + 1])
                listener.unlisten(where)
                listener.send(chain[step + 1], frame)
            except BaseException as error:
                failures.append(error)
                done.set()

        listener.on_frame = go_on
        listener.listen(chain[0])
        sender.send(chain[0], b"go on")
        assert done.wait(DEADLINE), "a handler that listens and unlistens hangs"
        assert not failures
        listener.on_frame = None
        for left in chain[:-1]:
            sender.send(left, b"nobody")
        sender.mark(chain[-1], listener)
        assert listener.count(*chain[:-1]) == len(chain) - 1

    def test_a_handler_may_close(self, connect: Connect) -> None:
        listener, sender = connect(), connect()
        where, closed = address(DIRECT), threading.Event()

        def close(_where: Address, _frame: bytes) -> None:
            listener.close()
            closed.set()

        listener.on_frame = close
        listener.listen(where)
        sender.send(where, b"close")
        assert closed.wait(DEADLINE), "close in a handler hangs"
        bounded(PROMPT, "close after a close in a handler", listener.close)
        assert listener.states[-1].name == "CLOSED"

    @each_delivery
    def test_a_slow_handler_holds_up_no_other_transport_and_no_sender(
        self, connect: Connect, delivery: Delivery
    ) -> None:
        slow, other, sender = connect(), connect(), connect()
        release, busy = threading.Event(), threading.Event()

        def block(_where: Address, _frame: bytes) -> None:
            busy.set()
            release.wait(DEADLINE + PROMPT)

        def work() -> None:
            other.listen(second, third)
            for client in (sender, slow, other):
                for number in range(100):
                    client.send(second, b"%d" % number)
            other.wait_count(300, second)
            sender.mark(third, other)

        slow.on_frame = block
        first, second, third = address(delivery), address(delivery), address(FANOUT)
        slow.listen(first)
        sender.send(first, b"block")
        assert busy.wait(DEADLINE)
        try:
            bounded(PROMPT, "the work of others", work)
        finally:
            release.set()

    @each_delivery
    def test_listen_and_unlisten_get_along_with_a_slow_handler(self, connect: Connect, delivery: Delivery) -> None:
        slow, sender = connect(), connect()
        busy = threading.Event()
        first, second = address(delivery), address(delivery)

        def linger(_where: Address, frame: bytes) -> None:
            if frame == b"linger":
                busy.set()
                time.sleep(0.5)  # the condition is a handler that takes its time

        slow.on_frame = linger
        slow.listen(first)
        sender.send(first, b"linger")
        assert busy.wait(DEADLINE)
        bounded(PROMPT, "listen beside a slow handler", lambda: slow.listen(second))
        bounded(PROMPT, "unlisten beside a slow handler", lambda: slow.unlisten(first))
        sender.send(first, b"nobody")
        sender.mark(second, slow)
        assert slow.frames(first) == [b"linger"]
        assert len(slow.states) == 1

    def test_frames_received_while_other_threads_listen_are_not_lost(self, connect: Connect) -> None:
        client, sender = connect(), connect()
        steady = [address(delivery) for delivery in DELIVERIES]
        client.listen(*steady)
        ended = threading.Event()

        def send() -> None:
            try:
                for number in range(500):
                    for where in steady:
                        sender.send(where, b"%d" % number)
            finally:
                ended.set()

        def come_and_go(delivery: Delivery) -> Callable[[], None]:
            def run() -> None:
                while not ended.is_set():
                    where = address(delivery)
                    client.listen(where)
                    _exchange(client, where)
                    client.unlisten(where)

            return run

        jobs: list[Any] = [send, *(come_and_go(delivery) for delivery in DELIVERIES)]
        run_together(jobs)
        for where in steady:
            client.wait_count(500, where)
            assert_in_order(client.frames(where), [b"%d" % number for number in range(500)])


def _exchange(client: Client, where: Address) -> None:
    client.send(where, b"hello")
    client.wait_frame(where, b"hello")
