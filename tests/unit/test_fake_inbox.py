"""The inbox of the in-process driver: nobody sleeps while something is there, and no descriptor stays behind."""

from __future__ import annotations

import os
import threading
import time

import pytest

from dse.transports._fake_inbox import Inbox

LONG = 30.0


def ends_of(inbox: Inbox[int]) -> tuple[int, ...]:
    assert inbox._pipe is not None
    return inbox._pipe._ends


def is_open(end: int) -> bool:
    try:
        os.fstat(end)
    except OSError:
        return False
    return True


def asleep(inbox: Inbox[int]) -> tuple[threading.Thread, list[int | None]]:
    """Return a thread that sleeps in `get`, and what it gets."""
    got: list[int | None] = []
    thread = threading.Thread(target=lambda: got.append(inbox.get(LONG)))
    thread.start()
    deadline = time.monotonic() + 10
    while not inbox.waits:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread, got


def test_items_are_taken_in_order_and_without_waiting() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(5):
        inbox.put(number)
    assert len(inbox) == 5
    assert [inbox.get(LONG) for _ in range(5)] == [0, 1, 2, 3, 4]
    inbox.close()


def test_an_empty_one_is_waited_on_for_as_long_as_was_said() -> None:
    inbox: Inbox[int] = Inbox()
    began = time.monotonic()
    assert inbox.get(0.05) is None
    assert 0.05 <= time.monotonic() - began < 5
    assert not inbox.waits
    inbox.close()


def test_who_sleeps_is_woken_up() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(20):
        thread, got = asleep(inbox)
        inbox.put(number)
        inbox.wake()
        thread.join(10)
        assert got == [number]
    inbox.close()


def test_a_wait_may_be_of_any_length() -> None:
    inbox: Inbox[int] = Inbox()
    got: list[int | None] = []
    thread = threading.Thread(target=lambda: got.append(inbox.get(1e12)))
    thread.start()
    while not inbox.waits and thread.is_alive():
        time.sleep(0.001)
    inbox.put(1)
    inbox.wake()
    thread.join(10)
    assert got == [1]
    inbox.close()


def test_a_wake_up_that_nobody_needs_does_no_harm() -> None:
    inbox: Inbox[int] = Inbox()
    thread, got = asleep(inbox)
    inbox.wake()
    thread.join(10)
    assert got == [None]
    inbox.wake()
    assert inbox.get(0.02) is None
    inbox.put(1)
    assert inbox.get(LONG) == 1
    inbox.close()


@pytest.mark.parametrize("pause", [0.0, 0.0001])
def test_nothing_is_left_lying_by_whoever_puts(pause: float) -> None:
    inbox: Inbox[tuple[int, int]] = Inbox()
    each, senders = 2000 if not pause else 300, 4

    def send(sender: int) -> None:
        for number in range(each):
            inbox.put((sender, number))
            inbox.wake()
            if pause:
                time.sleep(pause)

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    began, got, vain = time.monotonic(), [], 0
    while len(got) < each * senders:
        item = inbox.get(LONG)
        if item is None:
            vain += 1
        else:
            got.append(item)
    assert time.monotonic() - began < LONG - 1  # it never slept until the time was over
    assert vain <= each * senders  # woken for nothing once in a while
    for sender in range(senders):
        assert [number for who, number in got if who == sender] == list(range(each))
    for thread in threads:
        thread.join(10)
    inbox.close()


def test_closing_gives_the_descriptors_back() -> None:
    inbox: Inbox[int] = Inbox()
    ends = ends_of(inbox)
    inbox.close()
    assert not any(map(is_open, ends))
    inbox.put(1)
    inbox.wake()
    inbox.close()


def test_descriptors_stay_open_for_whoever_still_sleeps() -> None:
    inbox: Inbox[int] = Inbox()
    ends = ends_of(inbox)
    thread, got = asleep(inbox)
    inbox.wake()
    inbox.close()
    thread.join(10)
    assert got == [None]
    assert not any(map(is_open, ends))
    assert inbox.get(LONG) is None


def test_a_forked_child_gives_them_back_at_once() -> None:
    inbox: Inbox[int] = Inbox()
    ends = ends_of(inbox)
    thread, _ = asleep(inbox)
    inbox.wake()
    thread.join(10)
    inbox.abandon()
    assert not any(map(is_open, ends))
    inbox.abandon()
