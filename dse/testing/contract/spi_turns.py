"""Guarantee 9, for drivers whose threads take turns: whoever receives, each frame comes once and in order."""

from __future__ import annotations

import threading
import time
from threading import get_ident

from dse.core.transport import Address
from dse.testing.contract.fixtures import DIRECT, FANOUT, Connect, Contract, bounded, needs, within
from dse.testing.contract.recorder import DEADLINE, PROMPT, Client, address, assert_in_order
from dse.testing.contract.spi_delivery import run_together

__all__ = ["TestTurns"]


class Answer:
    """What a thread waits for."""

    def __init__(self) -> None:
        self.done = False
        self._event = threading.Event()

    def give(self) -> None:
        self.done = True
        self._event.set()

    def wait(self, timeout: float) -> bool:
        return self._event.wait(timeout)


class TestTurns(Contract):
    """A thread that stays in its handler can be relieved; one that waits for an answer may receive meanwhile."""

    guarantee = 9

    @needs("relieves")
    def test_others_receive_while_a_relieved_thread_is_in_its_handler(self, connect: Connect) -> None:
        listener, sender = connect(), connect()
        where, release = address(DIRECT), threading.Event()
        busy: list[int] = []

        def block(_where: Address, frame: bytes) -> None:
            if frame.startswith(b"block"):
                busy.append(get_ident())
                release.wait(DEADLINE)

        listener.on_frame = block
        listener.listen(where)
        frames = [b"block %d" % number if number % 50 == 0 else b"%d" % number for number in range(201)]
        try:
            for number, frame in enumerate(frames):
                sender.send(where, frame)
                if number % 50 == 0:
                    listener.wait_frame(where, frame)
                    # The handler may just be about to begin.
                    blocks = number // 50 + 1
                    listener.wait_for(lambda blocks=blocks: len(busy) == blocks, "the handler")  # type: ignore[misc]
                    assert listener.transport.relieve(busy[-1])
                    assert not listener.transport.relieve(busy[-1]), "relieved twice"
            sender.mark(where, listener)
        finally:
            release.set()
        sender.mark(where, listener)
        assert len(set(busy)) == 5, "a relieved thread went on receiving"
        assert_in_order([frame for frame in listener.frames(where) if not frame.startswith(b"marker")], frames)

    @needs("relieves")
    def test_a_relieved_handler_may_do_everything(self, connect: Connect) -> None:
        listener, sender = connect(), connect()
        where, other, done = address(DIRECT), address(FANOUT), threading.Event()

        def work(_where: Address, frame: bytes) -> None:
            if frame == b"work":
                assert listener.transport.relieve(get_ident())
                listener.listen(other)
                listener.send(where, b"from the handler")
                listener.wait_frame(where, b"from the handler")
                listener.unlisten(other)
                done.set()

        listener.on_frame = work
        listener.listen(where)
        sender.send(where, b"work")
        assert done.wait(DEADLINE), "the handler hangs"
        bounded(PROMPT, "close after a relief", listener.close)

    @needs("relieves")
    def test_threads_that_do_not_receive_cannot_be_relieved(self, connect: Connect) -> None:
        listener, sender = connect(), connect()
        where = address(DIRECT)
        listener.listen(where)
        assert not listener.transport.relieve(get_ident())
        sender.mark(where, listener)

    def test_who_waits_for_an_answer_gets_it(self, connect: Connect) -> None:
        asker, answerer, other = connect(), connect(), connect()
        there, back, aside = address(DIRECT), address(DIRECT), address(FANOUT)
        waiting: dict[bytes, Answer] = {}

        def answered(where: Address, frame: bytes) -> None:
            if where == back:
                waiting.pop(frame).give()

        asker.on_frame = answered
        answerer.on_frame = lambda _where, frame: answerer.send(back, frame)
        answerer.listen(there)
        asker.listen(back, aside)

        def ask(name: bytes) -> None:
            for number in range(150):
                frame, answer = b"%s %d" % (name, number), Answer()
                waiting[frame] = answer
                asker.send(there, frame)
                assert asker.transport.wait(answer, DEADLINE), f"no answer to {frame!r}"

        def chatter() -> None:
            for number in range(450):
                other.send(aside, b"%d" % number)

        ask(b"alone")
        run_together([lambda: ask(b"with others"), chatter])
        run_together([lambda name=name: ask(name) for name in (b"a", b"b", b"c")])  # type: ignore[misc]
        asker.wait_count(450, aside)
        assert_in_order(asker.frames(aside), [b"%d" % number for number in range(450)])

    def test_a_wait_ends_in_time_and_by_others(self, connect: Connect) -> None:
        asker, sender = connect(), connect()
        where = address(DIRECT)
        asker.listen(where)
        for _ in range(3):
            _exchange(asker, where)
            began = time.monotonic()
            assert not asker.transport.wait(Answer(), 0.2)
            assert 0.15 < time.monotonic() - began < 0.2 + PROMPT
            answer = Answer()
            timer = threading.Timer(0.1, answer.give)
            timer.start()
            with within(PROMPT, "a wait that somebody else ends"):
                assert asker.transport.wait(answer, DEADLINE)
            timer.join()
            sender.mark(where, asker)

    @needs("can_fail")
    def test_a_wait_outlives_the_connection(self, connect: Connect) -> None:
        asker = connect()
        where = address(DIRECT)
        asker.listen(where)
        _exchange(asker, where)
        answer = Answer()
        closer = threading.Timer(0.2, asker.close)
        closer.start()
        assert not asker.transport.wait(answer, 0.5)
        closer.join()
        assert asker.states[-1].name == "CLOSED"


def _exchange(client: Client, where: Address) -> None:
    """Send oneself a frame and wait for it as for an answer: the next to wait may receive."""
    for _ in range(3):
        answer = Answer()
        client.on_frame = lambda _where, _frame, answer=answer: answer.give()
        client.send(where, b"hello")
        assert client.transport.wait(answer, DEADLINE)
    client.on_frame = None
