"""The driver's connection when the broker is away, refuses, or breaks off: what no real one does on demand."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dse.transports._oslo_library import oslo_messaging

sys.path.insert(0, str(Path(__file__).parent))
from oslo_programs import soon

from dse.oslo.connection import Connection
from dse.oslo.port import TooLarge, Unreachable


class Line:
    """A port that does what it is told: `fails` are the errors of the next tries."""

    url = "test://"

    def __init__(self, *fails: Exception) -> None:
        self.fails = list(fails)
        self.tries = 0
        self.sent: list[bytes] = []
        self.is_open = False

    def _try(self) -> None:
        self.tries += 1
        if self.fails:
            raise self.fails.pop(0)

    def open(self) -> None:
        self._try()
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def listen(self, addresses: Sequence[str]) -> None: ...

    def send(self, address: str, frame: bytes, ttl: float | None) -> None:
        self._try()
        self.sent.append(frame)


def connected(line: Line) -> Connection:
    connection = Connection(line, ("d:me",))  # type: ignore[arg-type]
    connection.ready(math.inf, None)
    return connection


def away(unsure: bool = False) -> Unreachable:
    return Unreachable("the line is dead", unsure=unsure)


def test_what_surely_has_not_left_is_sent_again() -> None:
    connection = connected(line := Line())
    line.fails = [away(), away()]
    connection.send("a:x", b"1", retry=None)
    assert line.sent == [b"1"]


def test_what_may_have_left_is_not_sent_again() -> None:
    connection = connected(line := Line())
    line.fails = [away(unsure=True)]
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="may or may not arrive"):
        connection.send("a:x", b"1", retry=None)
    assert line.sent == []


def test_a_connection_that_takes_nothing_is_given_up() -> None:
    connection = connected(line := Line())
    line.fails = [away() for _ in range(1000)]
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="the line is dead"):
        connection.send("a:x", b"1", retry=None)
    assert line.tries < 50


def test_what_is_too_large_is_refused_at_once() -> None:
    connection = connected(line := Line())
    line.fails = [TooLarge("8 bytes are the limit")]
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="the limit"):
        connection.send("a:x", b"1", retry=None)


def test_opening_is_tried_as_often_as_wanted() -> None:
    line = Line(away(), away(), away())
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="after 1 retries: the line is dead"):
        Connection(line, ()).send("a:x", b"1", retry=1)  # type: ignore[arg-type]
    assert line.tries == 2
    assert not line.is_open


def test_the_deadline_ends_the_wait_for_the_connection() -> None:
    connection = Connection(Line(*[away()] * 99), ())  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(oslo_messaging.MessagingTimeout, match="the line is dead"):
        connection.send("a:x", b"1", deadline=began + 0.3, retry=None)
    assert 0.3 <= time.monotonic() - began < 2


def test_one_thread_opens_and_the_others_wait_for_it() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Line):
        def open(self) -> None:
            super().open()
            entered.set()
            assert go_on.wait(5)

    connection = Connection(line := Slow(), ())  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as threads:
        sent = [threads.submit(connection.send, "a:x", b"%d" % n, retry=None) for n in range(4)]
        assert entered.wait(5)
        assert line.sent == []
        go_on.set()
        for each in sent:
            each.result(5)
    assert (sorted(line.sent), line.tries) == ([b"0", b"1", b"2", b"3"], 5)


def test_who_waits_for_the_connection_is_woken_when_it_is_back_or_ended() -> None:
    connection = connected(line := Line())
    connection.changed(False)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(connection.send, "a:x", b"1", retry=None)
        assert not first.done()
        connection.changed(True)
        first.result(5)
        assert line.sent == [b"1"]
        connection.changed(False)
        second = threads.submit(connection.send, "a:x", b"2", retry=None)
        soon(second.running)
        connection.end(lambda: None)
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
            second.result(5)
    assert not line.is_open


def test_one_that_is_ended_while_it_opens_is_closed_again() -> None:
    class Ended(Line):
        def open(self) -> None:
            super().open()
            connection.end(lambda: None)

    connection = Connection(line := Ended(), ())  # type: ignore[arg-type]
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
        connection.send("a:x", b"1", retry=None)
    assert not line.is_open
