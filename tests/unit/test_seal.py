"""Sealed frames: what opens, and all that does not."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from dse.core.keys import new_key, parse_keys
from dse.core.messages import SEALED, broadcast_address, instance_address, service_address
from dse.core.seal import BadSeal, KeyRing, Sealer, UnknownKey, read_head
from dse.core.transport import Address

KEYS = parse_keys([new_key("k1"), new_key("k2")])
RING = KeyRing(KEYS, "prod")
THERE = instance_address("n2/bb")


def open_frame(ring: KeyRing, address: Address, frame: bytes) -> tuple[int, int, bytes]:
    opener = ring.opener(read_head(frame))
    return opener.open(opener.bound(address), frame)


def sealer(ring: KeyRing = RING, instance: str = "n1/aa") -> Sealer:
    return ring.sealer(instance)


@given(st.binary(max_size=20_000))
def test_what_is_sealed_opens_to_the_same(content: bytes) -> None:
    frame = sealer().seal(THERE, content)
    assert open_frame(RING, THERE, frame)[2] == content
    assert len(frame) == len(content) + sealer().overhead


def test_nothing_of_the_content_is_in_the_frame() -> None:
    assert b"salaries" not in sealer().seal(THERE, b"the salaries of everybody")


def test_the_sender_is_who_sealed_it() -> None:
    sender = RING.opener(read_head(sealer(instance="a/b/cc").seal(THERE, b"x"))).sender
    assert (sender.key_id, sender.node_id, sender.instance) == ("k1", "a/b", "a/b/cc")


@given(st.binary(min_size=1, max_size=300), st.data())
@settings(max_examples=300)
def test_a_frame_with_any_bit_changed_opens_nowhere(content: bytes, data: st.DataObject) -> None:
    frame = bytearray(sealer().seal(THERE, content))
    place = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[place // 8] ^= 1 << place % 8
    if frame[0] == SEALED:
        with pytest.raises((BadSeal, UnknownKey)):
            open_frame(RING, THERE, bytes(frame))


@given(st.binary(max_size=100), st.data())
def test_a_part_of_a_frame_opens_nowhere(content: bytes, data: st.DataObject) -> None:
    frame = sealer().seal(THERE, content)
    with pytest.raises((BadSeal, UnknownKey)):
        open_frame(RING, THERE, frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(st.binary(max_size=200))
def test_garbage_opens_nowhere(garbage: bytes) -> None:
    with pytest.raises((BadSeal, UnknownKey)):
        open_frame(RING, THERE, bytes((SEALED,)) + garbage)


@pytest.mark.parametrize(
    "address",
    [instance_address("n3/cc"), service_address("n2/bb"), broadcast_address("host"), Address(*[THERE.delivery, "x"])],
)
def test_a_frame_opens_at_its_own_address_only(address: Address) -> None:
    with pytest.raises(BadSeal):
        open_frame(RING, address, sealer().seal(THERE, b"x"))


def test_the_deliveries_of_one_name_are_different_addresses() -> None:
    frame = sealer().seal(broadcast_address("host"), b"x")
    with pytest.raises(BadSeal):
        open_frame(RING, service_address("host"), frame)


def test_a_frame_opens_on_its_own_bus_only() -> None:
    with pytest.raises(BadSeal):
        open_frame(KeyRing(KEYS, "test"), THERE, sealer().seal(THERE, b"x"))


def test_a_frame_does_not_open_under_another_senders_head() -> None:
    mine, other = sealer().seal(THERE, b"x"), sealer(instance="n9/zz").seal(THERE, b"x")
    head = read_head(other)
    with pytest.raises(BadSeal):
        open_frame(RING, THERE, head + mine[len(read_head(mine)) :])


def test_any_of_the_keys_opens_and_the_first_seals() -> None:
    old = KeyRing(KEYS[:1], "prod")
    new = KeyRing((KEYS[1], KEYS[0]), "prod")
    assert open_frame(new, THERE, sealer(old).seal(THERE, b"old"))[2] == b"old"
    assert open_frame(RING, THERE, sealer(new).seal(THERE, b"new"))[2] == b"new"
    with pytest.raises(UnknownKey, match="'n1/aa' seals with the key 'k2'"):
        open_frame(old, THERE, sealer(new).seal(THERE, b"new"))


def test_other_bytes_under_the_same_id_do_not_open() -> None:
    other = KeyRing(parse_keys([new_key("k1")]), "prod")
    with pytest.raises(BadSeal):
        open_frame(other, THERE, sealer().seal(THERE, b"x"))


def test_no_number_comes_twice_whichever_threads_seal() -> None:
    one, frames, start = sealer(), [], threading.Barrier(4)

    def work() -> None:
        start.wait()
        frames.extend([one.seal(THERE, b"x") for _ in range(2000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(open_frame(RING, THERE, frame)[0] for frame in frames)
    assert numbers == list(range(1, 8001))


def test_the_stamp_is_the_wall_clock_and_may_jump() -> None:
    wall = [1_000_000.0]
    one = RING.sealer("n1/aa", wall=lambda: wall[0])
    assert open_frame(RING, THERE, one.seal(THERE, b"x"))[1] == 1_000_000
    wall[0] = 500.0
    one.refresh()
    assert open_frame(RING, THERE, one.seal(THERE, b"x"))[1] == 500


def test_what_is_drawn_is_no_frames_number_and_below_those_of_all_later_frames() -> None:
    one = sealer()
    before = [open_frame(RING, THERE, one.seal(THERE, b"x"))[0] for _ in range(3)]
    drawn = one.draw()
    after = [open_frame(RING, THERE, one.seal(THERE, b"x"))[0] for _ in range(3)]
    assert max(before) < drawn < min(after)
