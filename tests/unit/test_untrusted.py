"""What a peer made up is decoded, or refused, in bounded time: whatever it announces, nests, or makes alike."""

from __future__ import annotations

import itertools
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dse import Node
from dse.core import limits
from dse.core.messages import (
    BadFrame,
    Catalogue,
    CatchUp,
    ChangeMessage,
    Changes,
    Heartbeat,
    PlainChange,
    PlainChunk,
    Renew,
    Request,
    SnapshotBegin,
    SnapshotChunk,
    answers_request,
    decode,
    decode_change,
    encode,
    encode_body,
    frame_of,
    instance_address,
    is_change,
)
from dse.core.methods import Method
from dse.core.untrusted import check_value, decode_value, read_set
from dse.errors import InvalidArguments

encode_any = msgspec.msgpack.encode
_MODULUS = 2**61 - 1  # of Python's hash of numbers


def alike(count: int) -> list[tuple[int, ...]]:
    """Return rows that Python gives one hash: hashing them into a set takes quadratic time."""
    cells = list(range(5, 2**64, _MODULUS))[:8]
    rows = list(itertools.islice(itertools.product(cells, repeat=6), count))
    assert len({hash(row) for row in rows}) == 1
    return rows


def quickly(do: Callable[[], Any]) -> Any:
    """Do it, twice if something held it up the first time, in less than 100 ms of this thread."""
    for attempt in range(2):
        began = time.thread_time()
        try:
            return do()
        finally:
            assert time.thread_time() - began < 0.1 or attempt == 0
    return None


def raw(change: list[Any]) -> msgspec.Raw:
    return msgspec.Raw(encode_any(change))


@pytest.mark.parametrize("more", [[], [(b"x",)]], ids=["plain", "with bytes"])
@pytest.mark.parametrize(
    "body",
    [lambda rows: [21, "e", 1, rows, []], lambda rows: [21, "e", 1, [], rows], lambda rows: [24, 1, 0, rows],
     lambda rows: [30, [[21, "e", 1, [], []], [21, "e", 2, rows, []]]]],
    ids=["added", "removed", "chunk", "several"],
)  # fmt: skip
def test_rows_of_one_hash_are_refused(body: Callable[[Any], Any], more: list[Any]) -> None:
    frame = frame_of(encode_any(body(alike(20_000) + more)))
    with pytest.raises(BadFrame):
        quickly(lambda: decode(frame))


def test_a_few_rows_of_one_hash_are_rows() -> None:
    rows = frozenset(itertools.product([-1, -2], repeat=5))  # Python hashes both alike
    (one,) = {hash(row) for row in rows}
    assert isinstance(one, int)
    padding = {(f"{number:0100}", 1, 1, 1, 1) for number in range(1000)}
    message = decode(encode(ChangeMessage("e", 1, rows | padding, frozenset())))
    assert isinstance(message, PlainChange)
    assert message.added == rows | padding


def test_large_messages_come_as_they_were_sent() -> None:
    rows = frozenset((number, f"name {number}", number / 4, None, True) for number in range(3000))
    odd = frozenset((number, f"name {number}", bytes([number % 256]), float("-inf")) for number in range(3000))
    plain = decode(encode(SnapshotChunk(7, 3, rows)))
    assert plain == PlainChunk(7, 3, rows)
    other = decode(encode(SnapshotChunk(7, 3, odd)))
    assert type(other) is SnapshotChunk
    assert other.rows == odd
    change = ChangeMessage("e", 5, rows, odd, 1, 2)
    assert decode(encode(change)) == change
    assert decode_change(msgspec.Raw(encode_body(change))) == change
    several = decode(encode(Changes([change, change])))
    assert isinstance(several, Changes)
    assert several.changes == [change, change]
    text_only = frozenset((number, b"x" * 20) for number in range(3000))
    assert decode(encode(SnapshotChunk(7, 3, text_only))) == SnapshotChunk(7, 3, text_only)


def test_rows_that_hold_maps_of_rows_of_one_hash_are_refused() -> None:
    hidden = b"\xde" + struct.pack(">H", 20_000) + b"".join(encode_any(row) + b"\xc0" for row in alike(20_000))
    body = b"\x95\x15\xa1e\x01\x91\x91" + hidden + b"\x90"
    with pytest.raises(BadFrame):
        quickly(lambda: decode(frame_of(body)))
    with pytest.raises(BadFrame):
        quickly(lambda: decode_change(msgspec.Raw(body)))


def test_a_change_of_a_catch_up_is_looked_at_like_any_other() -> None:
    with pytest.raises(BadFrame):
        quickly(lambda: decode_change(raw([21, "e", 1, alike(20_000), []])))
    with pytest.raises(BadFrame):
        decode_change(msgspec.Raw(encode_body(SnapshotChunk(1, 0, frozenset((n, "x" * 20) for n in range(2000))))))


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat("n", "i", 1.0, 1.0, 1),
        Catalogue("n", "i", 1.0, 1.0, 1, []),
        Renew("i", []),
        SnapshotChunk(1, 0, frozenset()),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_frame_that_is_longer_than_any_of_its_kind_is_refused_unread(message: Any) -> None:
    body = msgspec.msgpack.decode(encode_body(message))
    frame = frame_of(encode_any([*body, b"x" * (5 << 20)]))
    with pytest.raises(BadFrame, match="over the limit"):
        decode(frame)


def test_a_long_frame_shows_its_kind_in_its_first_bytes() -> None:
    body = encode_any([1, "n", "i", 1.0, 1.0, 1, False])
    disguised = b"\xdc\x00\x08" + body[1:] + encode_any(b"x" * (1 << 20))
    with pytest.raises(BadFrame):
        decode(frame_of(disguised))


@pytest.mark.parametrize(
    "message",
    [
        Renew("i", [("s", "t", "e", 1)] * (limits.REPLICAS + 1)),
        Catalogue("n", "i", 1.0, 1.0, 1, [{}] * (limits.SERVICES + 1)),
        Catalogue("n", "i", 1.0, 1.0, 1, [], ["m"] * (limits.METHODS + 1)),
        Catalogue("n", "i", 1.0, 1.0, 1, [], ["m" * (limits.NAME + 1)]),
        SnapshotBegin(1, "e", ("c",) * (limits.COLUMNS + 1), 1, 1, 1),
        CatchUp(1, "e", ("c",) * (limits.COLUMNS + 1), [], 1, 1),
        Changes([ChangeMessage("e", 1, frozenset(), frozenset())] * (limits.CHANGES + 1)),
        Request(1, "i", "n", "s", "m", raw([]), 1.0, False, {str(n): "" for n in range(limits.TRACE + 1)}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_more_than_there_can_be_is_refused(message: Any) -> None:
    with pytest.raises(BadFrame):
        quickly(lambda: decode(encode(message)))


def test_a_service_that_does_not_fit_is_left_out_of_its_catalogue() -> None:
    good = {"service_id": "s", "node_id": "n", "published_tables": {"t": ["a"]}, "subscribed_tables": [["u", "v"]],
            "rpc_methods": {"m": {"signature": "()", "doc": "d", "idempotent": True}}}  # fmt: skip
    for change in ({"service_id": 5}, {"published_tables": 5}, {"rpc_methods": {"m": {"doc": 5}}},
                   {"published_tables": {"t": [1]}}, {"service_id": "s" * 2000}):  # fmt: skip
        message = decode(encode(Catalogue("n", "i", 1.0, 1.0, 1, [{**good, **change}, {**good, "later": [1]}])))
        assert isinstance(message, Catalogue)
        assert message.services == [{**good, "subscribed_tables": [("u", "v")]}] or message.services == [good]


def map_of(keys: list[Any]) -> bytes:
    return b"\xdf" + struct.pack(">I", len(keys)) + b"".join(encode_any(key) + b"\xc0" for key in keys)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: b"\x91" * 20 + m, lambda m: b"\x81\xa1k" + m])
def test_a_value_with_keys_of_one_hash_is_refused(wrap: Callable[[bytes], bytes]) -> None:
    with pytest.raises(msgspec.DecodeError, match="keys"):
        quickly(lambda: decode_value(wrap(map_of(alike(20_000)))))


def test_a_value_that_is_long_and_nested_deep_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError, match="deep"):
        decode_value(b"\x91" * 100 + map_of(list(range(10_000))))


@pytest.mark.parametrize(
    "value",
    [
        {str(n): n for n in range(5000)},
        {n: {"a": [n]} for n in range(5000)},
        {str(n).encode(): n for n in range(5000)},
        [{"a": n, "b": [None, True, 2.5]} for n in range(5000)],
        {(1, 2): "few"},
        b"\xde\xdf" * 50_000,
        {"deep": [[[{"a": "x" * 50_000}]]]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_other_value_is_decoded(value: Any) -> None:
    assert decode_value(encode_any(value)) == value


def test_arguments_of_one_hash_are_refused_before_they_are_decoded() -> None:
    def anything(data: Any) -> None: ...

    method = Method("s", anything)
    with pytest.raises(InvalidArguments, match="keys"):
        quickly(lambda: method.bind(msgspec.Raw(b"\x81\xa4data" + map_of(alike(20_000)))))
    assert method.bind(msgspec.Raw(encode_any({"data": {"a": 1}}))) == {"data": {"a": 1}}


def test_a_set_of_what_has_one_hash_is_not_made() -> None:
    with pytest.raises(ValueError, match="one hash"):
        read_set(alike(1000))
    assert read_set(alike(limits.ALIKE)) == frozenset(alike(limits.ALIKE))
    check_value(encode_any([1, 2, 3]))


def test_what_a_frame_of_rows_answers_is_told_without_decoding_it() -> None:
    for number in (0, 5, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63, 2**64 - 1):
        assert answers_request(encode(SnapshotChunk(number, 3, frozenset({(1,)})))) == number
        assert answers_request(encode(CatchUp(number, "e", (), [], 1, 1))) == number
        assert answers_request(encode(SnapshotBegin(number, "e", (), 1, 1, 1))) == number
    assert answers_request(encode(Heartbeat("n", "i", 1.0, 1.0, 1))) is None
    assert is_change(encode(ChangeMessage("e", 1, frozenset(), frozenset())))
    assert is_change(encode(Changes([])))
    assert not is_change(encode(Renew("i", [])))


def test_rows_that_nobody_asked_for_are_not_decoded() -> None:
    with Node(f"fake://{uuid.uuid4().hex}", node_id="n") as node:
        runtime = node.runtime
        many = frozenset((number, "x" * 20) for number in range(1000))
        for message in (
            ChangeMessage("e", 1, many, frozenset()),
            Changes([ChangeMessage("e", 1, many, frozenset())]),
            SnapshotChunk(5 << 32, 0, many),
            CatchUp(5 << 32, "e", ("a",), [msgspec.Raw(encode_body(ChangeMessage("e", 1, many, frozenset())))], 1, 1),
        ):
            runtime.received(instance_address(runtime.instance), encode(message))
        assert node.status().counters["unexpected_frames"] == 4
