"""What several threads send over one connection: in order, once, in few writes, and in bounded time and memory."""

from __future__ import annotations

import threading
import time

import pytest

from dse.core import outbox as module
from dse.core.outbox import Outbox


class Connection:
    """Keeps what is written; a write can be held up."""

    def __init__(self, patience: float = 5.0) -> None:
        self.lock = threading.Lock()
        self.writes: list[list[tuple[int, int]]] = []
        self.open = threading.Event()
        self.open.set()
        self.writing = threading.Event()
        self.outbox: Outbox[tuple[int, int]] = Outbox(self.lock, self.write, patience)

    @property
    def written(self) -> list[tuple[int, int]]:
        return [item for batch in self.writes for item in batch]

    def write(self, items: list[tuple[int, int]]) -> None:
        assert self.lock.locked()
        self.writing.set()
        assert self.open.wait(10.0)
        self.writes.append(items)


def test_a_single_sender_writes_at_once() -> None:
    connection = Connection()
    for number in range(3):
        connection.outbox.send((0, number), 10)
        assert connection.writes == [[(0, n)] for n in range(number + 1)]


def test_each_threads_items_are_written_once_and_in_order() -> None:
    connection = Connection()

    def send(thread: int) -> None:
        for number in range(2000):
            (connection.outbox.keep if number % 7 == thread else connection.outbox.send)((thread, number), 10)
        connection.outbox.flush()

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    for number in range(6):
        assert [item for item in connection.written if item[0] == number] == [(number, n) for n in range(2000)]


def test_who_finds_another_writing_leaves_the_item_to_it() -> None:
    connection = Connection()
    connection.open.clear()
    writer = threading.Thread(target=connection.outbox.send, args=((0, 0), 10))
    writer.start()
    assert connection.writing.wait(5.0)
    for number in range(1, 50):
        connection.outbox.send((0, number), 10)  # does not wait
    connection.open.set()
    writer.join(5.0)
    assert connection.writes == [[(0, 0)], [(0, number) for number in range(1, 50)]]


def test_too_much_waits_for_its_turn_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    connection = Connection(patience=0.2)
    connection.open.clear()
    writer = threading.Thread(target=connection.outbox.send, args=((0, 0), 10))
    writer.start()
    assert connection.writing.wait(5.0)
    connection.outbox.send((0, 1), 900)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"none went out in 0\.2 s"):
        connection.outbox.send((0, 2), 900)
    assert 0.15 < time.monotonic() - began < 5.0
    connection.open.set()
    writer.join(5.0)


def test_what_is_kept_goes_out_together_but_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 60.0)
    connection = Connection()
    for number in range(5):
        connection.outbox.keep((0, number), 10)
    assert not connection.writes
    connection.outbox.flush()
    assert connection.writes == [[(0, number) for number in range(5)]]
    monkeypatch.setattr(module, "_LONGEST", 0.01)
    connection.outbox.keep((1, 0), 10)
    time.sleep(0.02)
    connection.outbox.keep((1, 1), 10)
    assert connection.writes[1:] == [[(1, 0), (1, 1)]]


def test_a_lost_connection_is_told_to_the_sender() -> None:
    connection = Connection()

    def fail(_items: list[tuple[int, int]]) -> None:
        raise ConnectionResetError("lost")

    connection.outbox = Outbox(connection.lock, fail, 1.0)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            connection.outbox.send((0, 0), 10)
        assert not connection.lock.locked()
