"""Frames larger than the server's ``max_payload``: their parts, and the claims of those to one of many listeners."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.transport import Address, Delivery
from dse.errors import TransportUnavailable
from dse.testing.contract.recorder import DEADLINE, PROMPT, Client, address, eventually
from dse_nats._claims import Claims
from dse_nats._parts import Assembly, is_part, split
from dse_nats.testing import NatsServer

Make = Callable[..., Client]
SHARED = Address(Delivery.ANYCAST, "shared")


@given(st.binary(max_size=500), st.integers(18, 200))
def test_parts_fit_and_make_the_whole(data: bytes, room: int) -> None:
    assembly, parts = Assembly(), list(split(data, room, b"12345678"))
    assert all(len(part) <= room and is_part(part) for part in parts)
    assert [assembly.add(b"here", part) for part in parts] == [None] * (len(parts) - 1) + [data]
    assert assembly.bytes == 0


@given(st.data())
def test_frames_of_several_senders_do_not_mix(data: st.DataObject) -> None:
    frames = data.draw(st.dictionaries(st.binary(min_size=8, max_size=8), st.binary(max_size=200), max_size=5))
    assembly, waiting, got = Assembly(), {i: list(split(f, 30, i)) for i, f in frames.items()}, list[bytes]()
    while waiting:
        frame_id = data.draw(st.sampled_from(sorted(waiting)))
        whole = assembly.add(b"here", waiting[frame_id].pop(0))
        got += [] if whole is None else [whole]
        if not waiting[frame_id]:
            del waiting[frame_id]
    assert sorted(got) == sorted(frames.values())
    assert assembly.bytes == 0


@given(st.binary(min_size=60, max_size=300), st.data())
def test_a_frame_without_one_of_its_parts_is_forgotten(frame: bytes, data: st.DataObject) -> None:
    assembly, parts = Assembly(), list(split(frame, 30, b"12345678"))
    del parts[data.draw(st.integers(0, len(parts) - 2))]
    assert [assembly.add(b"here", part) for part in parts] == [None] * len(parts)


def test_what_never_becomes_whole_is_bounded() -> None:
    assembly = Assembly()
    for number in range(200):
        for part in list(split(bytes(2**20), 2**19, b"%08d" % number))[:-1]:
            assert assembly.add(b"here", part) is None
    assert assembly.bytes <= 1 << 26


def test_what_follows_a_large_frame_waits_for_its_grant() -> None:
    claims = Claims(10.0)
    assert claims.begin(SHARED, b"small", 0.0, large=False) == 0
    claim = claims.begin(SHARED, b"large", 0.0, large=True)
    assert claim
    assert claims.begin(SHARED, b"after", 0.0, large=False) is None
    assert claims.begin(SHARED, b"large again", 0.0, large=True) is None
    assert claims.granted(claim) == (SHARED, b"large")
    assert claims.granted(claim) is None
    assert claims.next(SHARED, 0.0, room=5) == (b"after", 0)
    data, second = claims.next(SHARED, 0.0, room=5)
    assert data == b"large again"
    assert claims.overdue(9.0) == []
    assert claims.overdue(10.0) == [second]
    assert claims.untaken(second) == (SHARED, b"large again")
    assert claims.next(SHARED, 0.0, room=5) == (None, 0)
    assert not claims.any


def test_what_waits_for_grants_is_bounded() -> None:
    claims, frame = Claims(10.0), bytes(1 << 23)
    for _ in range(8):
        claims.begin(SHARED, frame, 0.0, large=True)
    with pytest.raises(OverflowError):
        claims.begin(SHARED, frame, 0.0, large=True)


# On a server whose messages are small


@pytest.fixture(scope="module")
def small() -> Iterator[NatsServer]:
    with NatsServer(config="max_payload: 2048") as server:
        yield server


@pytest.mark.parametrize("delivery", list(Delivery))
def test_large_and_small_frames_keep_their_order(small: NatsServer, make: Make, delivery: Delivery) -> None:
    listener, sender = make(small.url), make(small.url)
    where = address(delivery)
    listener.listen(where)
    frames = [os.urandom(size) for size in (10, 5000, 20, 100_000, 2047, 2048, 2049, 30, 3_000_000, 1)]
    for frame in frames:
        sender.send(where, frame, 60.0)
    listener.wait_count(len(frames), where)
    assert listener.frames(where) == frames


def test_each_large_frame_reaches_one_of_many_whole(small: NatsServer, make: Make) -> None:
    listeners, senders = [make(small.url) for _ in range(3)], [make(small.url) for _ in range(2)]
    where = address(Delivery.ANYCAST)
    for listener in listeners:
        listener.listen(where)
    frames = [bytes([number]) * 9000 for number in range(60)]
    for number, frame in enumerate(frames):
        senders[number % 2].send(where, frame)
    eventually(lambda: sum(each.count(where) for each in listeners) >= len(frames), "all have arrived", DEADLINE)
    assert sorted(frame for each in listeners for frame in each.frames(where)) == sorted(frames)
    assert sum(1 for each in listeners if each.count(where)) > 1


@pytest.mark.parametrize("delivery", [Delivery.DIRECT, Delivery.ANYCAST])
def test_a_large_frame_for_nobody_is_reported_once(small: NatsServer, make: Make, delivery: Delivery) -> None:
    sender, where = make(small.url), address(delivery)
    frames = [os.urandom(size) for size in (9000, 10, 9000)]
    for frame in frames:
        sender.send(where, frame, 60.0)
    eventually(lambda: len(sender.returned(where)) >= 3, "all are reported", 1.0)
    sender.listen(where)
    sender.mark(where, sender)
    assert sender.returned(where) == frames


def test_a_listener_that_dies_with_a_claim_costs_its_frame_only(
    small: NatsServer, make: Make, start: Callable[..., object]
) -> None:
    """A listener that has the claim, and neither grants nor ends: the frame is reported, what follows goes on."""
    sender, stuck, release = make(f"{small.url}?heartbeat=1"), make(small.url), threading.Event()
    where = address(Delivery.ANYCAST)
    stuck.on_frame = lambda _where, _frame: void(release.wait(DEADLINE))
    stuck.listen(where)
    sender.send(where, b"blocks its handler")
    sender.send(where, bytes(9000))
    sender.send(where, b"follows")
    eventually(lambda: sender.returned(where) == [bytes(9000)], "the large one is reported", 1.0 + PROMPT)
    release.set()
    stuck.wait_count(2, where)
    assert stuck.frames(where) == [b"blocks its handler", b"follows"]


def test_more_than_may_wait_for_a_listener_is_refused_and_the_connection_goes_on(small: NatsServer, make: Make) -> None:
    sender, stuck, release = make(small.url), make(small.url), threading.Event()
    where, other = address(Delivery.ANYCAST), address(Delivery.DIRECT)
    stuck.on_frame = lambda _where, _frame: void(release.wait(DEADLINE))
    stuck.listen(where)
    sender.send(where, b"blocks its handler")
    sent = 0
    with pytest.raises(TransportUnavailable, match="wait for listeners to take large frames"):
        while sent < 100:
            sender.send(where, bytes(8 * 2**20))
            sent += 1
    sender.listen(other)
    sender.mark(other, sender)
    release.set()
    stuck.wait_count(1 + sent, where)
    assert [state.name for state in sender.states] == ["CONNECTED"]


def test_large_frames_may_be_sent_by_handlers(small: NatsServer, make: Make) -> None:
    here, there = make(small.url), make(small.url)
    ping, pong = address(Delivery.ANYCAST), address(Delivery.ANYCAST)
    there.on_frame = lambda where, frame: there.send(pong, frame) if where == ping else None
    there.listen(ping)
    here.listen(pong)
    frames = [bytes([number]) * 5000 for number in range(20)]
    for frame in frames:
        here.send(ping, frame)
    here.wait_count(len(frames), pong)
    assert here.frames(pong) == frames


def void(_: object) -> None:
    """Make nothing of a value."""
