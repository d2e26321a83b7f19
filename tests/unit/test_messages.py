"""Messages: what is encoded is decoded, and garbage is refused and nothing else."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.core import messages
from dse.core.info import DataServiceInfo
from dse.core.messages import (
    BadFrame,
    Catalogue,
    CatchUp,
    ChangeMessage,
    Failure,
    ForeignVersion,
    Heartbeat,
    Message,
    PlainChange,
    PlainChanges,
    PlainChunk,
    Renew,
    Reply,
    Request,
    SnapshotChunk,
    Tip,
    decode,
    decode_change,
    encode,
    encode_body,
    encode_changes,
    encode_reply,
    frame_of,
)
from dse.core.rows import check_received

RAW = msgspec.Raw(msgspec.msgpack.encode({"a": 1}))
EXAMPLES: list[Message] = [
    Heartbeat("n", "n/1", 1.5, 1.0, 3, True),
    Catalogue("n", "n/1", 1.0, 1.0, 2, [DataServiceInfo("s", "n", {"t": ("a",)}).to_dict()], ["ping"]),
    Request(1, "i", "n", "s", "m", RAW, 5.0, True, {"trace": "id"}),
    Request(0, "i", "n", None, "m", RAW, 5.0),
    Failure(1, "RemoteError", "text", "module.Type", "traceback", msgspec.msgpack.encode(["a", 1])),
    Failure(1, "NoSuchMethod", "text"),
    ChangeMessage("e", 1, frozenset({(1, "a", None)}), frozenset({(b"b", 2.5, True)})),
    CatchUp(1, "e", ("a",), [msgspec.Raw(encode_body(ChangeMessage("e", 1, frozenset({(1,)}), frozenset())))], 1, 5),
    SnapshotChunk(1, 0, frozenset({("x", b"x")})),
    Tip("e", 1, 2**64 - 1),
    Renew("i", [("s", "t", "e", 5)]),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    decoded = decode(encode(message))
    assert type(decoded) is type(message)
    assert encode(decoded) == encode(message) or isinstance(message, ChangeMessage | SnapshotChunk)
    assert frame_of(encode_body(message)) == encode(message)
    if isinstance(message, Failure):
        assert decoded == message  # its arguments too


def test_every_message_is_declared_once_with_a_tag_of_its_own() -> None:
    tags = [kind.__struct_config__.tag for kind in get_args(Message)]
    assert len(set(tags)) == len(tags)


def test_a_frame_of_another_major_version_is_told_apart() -> None:
    frame = encode(EXAMPLES[0])
    with pytest.raises(ForeignVersion, match="2"):
        decode(b"\x02" + frame[1:])
    assert decode(frame[:1] + b"\x63" + frame[2:]) == EXAMPLES[0]  # a later minor version


def test_fields_of_a_later_release_are_ignored_and_those_of_an_earlier_filled_in() -> None:
    body = msgspec.msgpack.decode(encode_body(EXAMPLES[0]))
    assert decode(frame_of(msgspec.msgpack.encode([*body, "new", {"more": 1}]))) == EXAMPLES[0]
    older = decode(frame_of(msgspec.msgpack.encode(body[:-1])))
    assert isinstance(older, Heartbeat)
    assert not older.joining
    with pytest.raises(BadFrame):
        decode(frame_of(msgspec.msgpack.encode(body[:-2])))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)


def decode_or_refuse(frame: bytes) -> None:
    try:
        message = decode(frame)
    except BadFrame:
        return
    assert isinstance(message, get_args(Message))
    if isinstance(message, SnapshotChunk):
        check_received(message.rows, 2)
    if isinstance(message, CatchUp):
        for change in message.changes:
            try:
                decode_change(change)
            except BadFrame:
                pass


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    decode_or_refuse(data)
    decode_or_refuse(b"\x01\x00" + data)


@given(st.integers(0, 30), st.lists(anything, max_size=9))
def test_any_array_is_a_message_or_refused(tag: int, fields: list[Any]) -> None:
    decode_or_refuse(frame_of(msgspec.msgpack.encode([tag, *fields])))


@settings(deadline=None)  # a clock that a busy machine stops
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_damaged_frame_is_a_message_or_refused(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    decode_or_refuse(bytes(frame))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x01", b"\xdc\xff\xff", b"\xc9\xff\xff\xff\xff"])
def test_what_nests_or_promises_without_end_is_refused(opening: bytes) -> None:
    for prefix in (b"", b"\x93\x15\xa1e\x01", b"\x97\x0a\x01\xa0\xa0\xa0\xa0"):
        with pytest.raises(BadFrame):
            decode(b"\x01\x00" + prefix + opening * 100_000)


def test_a_name_without_end_is_refused() -> None:
    with pytest.raises(BadFrame):
        decode(encode(messages.Leave("n" * 2000, "i")))


def test_an_answer_that_is_encoded_at_once_is_a_reply() -> None:
    assert encode_reply(7, {"a": 1}) == encode(Reply(7, RAW))


plain_cells = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"]))
)
finite = st.floats(allow_nan=False, allow_infinity=False)
odd_cells = st.binary(max_size=3) | st.floats() | st.lists(st.integers(0, 3), max_size=2) | st.datetimes()


def as_change(cells: list[Any]) -> bytes:
    return encode_body(ChangeMessage("e", 1, [tuple(cells)], frozenset()))  # type: ignore[arg-type]


def as_changes(cells: list[Any]) -> bytes:
    return encode_changes([as_change([1]), as_change(cells)])


def as_chunk(cells: list[Any]) -> bytes:
    return encode_body(SnapshotChunk(1, 0, [tuple(cells)]))  # type: ignore[arg-type]


def rows_in(message: Any) -> tuple[bool, list[Any]]:
    """Return whether the rows of a message were found to fit while it was decoded, and the rows."""
    if isinstance(message, messages.Changes):
        return isinstance(message, PlainChanges), [row for change in message.changes for row in change.added]
    kind = PlainChange if isinstance(message, ChangeMessage) else PlainChunk
    return isinstance(message, kind), list(message.added if isinstance(message, ChangeMessage) else message.rows)


bodies = pytest.mark.parametrize("body", [as_change, as_changes, as_chunk])


@bodies
@given(cells=st.lists(plain_cells | finite, max_size=5))
def test_rows_without_bytes_are_checked_while_they_are_decoded(body: Any, cells: list[Any]) -> None:
    plain, rows = rows_in(decode(frame_of(body(cells))))
    assert plain
    assert tuple(cells) in rows


@bodies
@given(cells=st.lists(plain_cells | odd_cells, max_size=5))
def test_what_was_checked_while_it_was_decoded_fits_a_table(body: Any, cells: list[Any]) -> None:
    try:
        message = decode(frame_of(body(cells)))
    except BadFrame:
        return
    plain, rows = rows_in(message)
    assert not plain or all(check_received([row], len(row)) for row in rows)


@pytest.mark.parametrize("cell", [b"x", float("nan"), float("-inf")], ids=repr)
def test_rows_of_any_other_cells_are_checked_afterwards(cell: Any) -> None:
    for body in (as_change, as_changes, as_chunk):
        plain, rows = rows_in(decode(frame_of(body([cell]))))
        assert not plain
        assert check_received(rows, 1) == (cell == cell)
