"""What nodes say to each other: the declared message types, and their encoding into frames.

A frame is one byte major version, one byte minor version, then one msgpack array whose first element says which message
it is. Fields are only ever added at the end and with a default: a reader ignores what follows the fields it knows and
fills in what an older writer left out, so that neighbouring releases share a bus. A frame of a foreign major version,
or one that does not fit its declaration, is refused with `BadFrame`; the node counts, logs and drops it.

An *instance* is the unique name of one life of a node, and the name of the DIRECT address it listens on.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar, Union, get_args

import msgspec
from msgspec import Meta, Struct

from dse.core import limits
from dse.core.transport import Address, Delivery
from dse.core.untrusted import may_hold_large_map, read_set

__all__ = [
    "CONTROL",
    "SEALED",
    "Accepted",
    "BadFrame",
    "Catalogue",
    "CatalogueRequest",
    "CatchUp",
    "ChangeMessage",
    "Changes",
    "Clash",
    "Failure",
    "ForeignVersion",
    "Greet",
    "Greeted",
    "Heartbeat",
    "Leave",
    "Message",
    "NoTable",
    "PlainChange",
    "PlainChanges",
    "PlainChunk",
    "Probe",
    "Renew",
    "Reply",
    "Request",
    "Row",
    "Scalar",
    "SealedFrame",
    "SnapshotBegin",
    "SnapshotChunk",
    "SnapshotCredit",
    "SyncRequest",
    "Tip",
    "UnknownCall",
    "Unsubscribe",
    "answers_request",
    "broadcast_address",
    "decode",
    "decode_change",
    "encode",
    "encode_body",
    "encode_change",
    "encode_changes",
    "encode_reply",
    "frame_of",
    "instance_address",
    "is_change",
    "service_address",
    "speaks_for",
    "table_address",
]

MAJOR = 1
MINOR = 1
_VERSION = bytes((MAJOR, MINOR))
SEALED = 0x81
"""The first byte of a sealed frame (`dse.core.seal`)."""
_SHORT = limits.SHORT

Scalar = None | bool | int | float | str | bytes
# msgspec cannot tell str from bytes in a union: rows are decoded as tuples of anything, and `dse.core.rows` checks
# them. Rows without bytes, as most are, are decoded as plain ones: that checks them on the way.
Row = tuple[Any, ...]
_PlainCell = bool | int | Annotated[float, Meta(ge=-sys.float_info.max)] | str | None  # NaN is not >= any
_PlainRow = tuple[_PlainCell, ...]
_Cell = TypeVar("_Cell")
Name = Annotated[str, Meta(max_length=limits.NAME)]
_Trace = Annotated[dict[Name, str], Meta(max_length=limits.TRACE)]
_SomeMethods = Meta(max_length=limits.METHODS)
_SomeServices = Meta(max_length=limits.SERVICES)
_SomeColumns = Meta(max_length=limits.COLUMNS)

CONTROL = Address(Delivery.FANOUT, "control")
"""Where every node of the bus listens: heartbeats, catalogues, leaves, calls to all nodes."""


class Heartbeat(Struct, array_like=True, tag=1, frozen=True):
    """I live. `age` is seconds since the node started; `interval` the seconds until the next heartbeat."""

    node_id: Name
    instance: Name
    age: float
    interval: float
    catalogue: int
    joining: bool = False


class Leave(Struct, array_like=True, tag=2, frozen=True):
    """I stop."""

    node_id: Name
    instance: Name


class Clash(Struct, array_like=True, tag=3, frozen=True):
    """To `loser`: `winner` is older and has your node_id; stop. `joining`: as far as I know you have not joined."""

    node_id: Name
    loser: Name
    winner: Name
    joining: bool = False


class CatalogueRequest(Struct, array_like=True, tag=4, frozen=True):
    """Send your catalogue to `instance`. With `everybody` all nodes are asked, and spread their answers."""

    instance: Name
    everybody: bool = False


class Catalogue(Struct, array_like=True, tag=5, frozen=True):
    """What I offer (`services`, each a `DataServiceInfo` as a dict), and what a heartbeat says."""

    node_id: Name
    instance: Name
    age: float
    interval: float
    version: int
    services: list[dict[str, Any]]
    node_methods: Annotated[list[Name], _SomeMethods] = []


class _MethodEntry(Struct):
    signature: str = ""
    doc: str = ""
    idempotent: bool = False


class _ServiceEntry(Struct, omit_defaults=True):
    """A `DataServiceInfo` as it comes from a peer; keys of a later release are ignored."""

    service_id: Name
    node_id: Name
    published_tables: Annotated[dict[Name, Annotated[list[Name], _SomeColumns]], _SomeMethods]
    subscribed_tables: Annotated[list[tuple[Name, Name]], _SomeMethods]
    rpc_methods: Annotated[dict[Name, _MethodEntry], _SomeMethods]
    stand_in: Name | None = None


class _ReceivedCatalogue(Catalogue, array_like=True, tag=5, frozen=True):
    """A catalogue whose services have not been decoded yet."""

    services: Annotated[list[msgspec.Raw], _SomeServices]  # type: ignore[assignment]


class Request(Struct, array_like=True, tag=10, frozen=True):
    """Run a method. `id` 0 asks for no answer. `service` None means the node's own methods.

    `timeout` is the seconds the caller still waits; `anycast` asks for `Accepted` at once, for the caller does not know
    who took the request. `relayed`: it came from another bus, and goes to no third one.
    """

    id: int
    instance: Name
    node_id: Name
    service: Name | None
    method: Name
    args: msgspec.Raw
    timeout: float
    anycast: bool = False
    trace: _Trace | None = None
    relayed: bool = False


class Reply(Struct, array_like=True, tag=11, frozen=True):
    """The result of request `id`."""

    id: int
    result: msgspec.Raw


class Failure(Struct, array_like=True, tag=12, frozen=True):
    """Why request `id` has no result. `code` names an error of `dse.errors`; the rest is text for `RemoteError`.

    `args` are the exception's own arguments, encoded, where they could be.
    """

    id: int
    code: Name
    message: str
    type_name: str = ""
    traceback: str = ""
    args: bytes | None = None


class Accepted(Struct, array_like=True, tag=13, frozen=True):
    """Request `id` waits or runs on this node."""

    id: int
    instance: Name
    node_id: Name


class Probe(Struct, array_like=True, tag=14, frozen=True):
    """Do you still have request `id` of `instance`? Answered by `Accepted` or `UnknownCall`."""

    id: int
    instance: Name


class UnknownCall(Struct, array_like=True, tag=15, frozen=True):
    """Request `id` is not here: it never came, or its answer was sent."""

    id: int
    instance: Name


class SyncRequest(Struct, array_like=True, tag=20, frozen=True):
    """Bring my replica up to date from (`epoch`, `seq`), and count me as a subscriber. No epoch: send everything."""

    service: Name
    table: Name
    instance: Name
    request: int
    epoch: Name = ""
    seq: int = 0


class ChangeMessage(Struct, array_like=True, tag=21, frozen=True, gc=False):
    """Change number `seq` of the table's life `epoch`. `plus` and `minus` are the digests of what came and went.

    `trace` is the context it was published in, if any. To be encoded by `encode_change`, which leaves out none.
    """

    epoch: Name
    seq: int
    added: frozenset[Row]
    removed: frozenset[Row]
    plus: int | None = None
    minus: int | None = None
    trace: _Trace | None = None


class PlainChange(ChangeMessage, array_like=True, tag=21, frozen=True, gc=False):
    """A change as it was received, whose cells were found to be what a table can hold, one by one."""

    added: frozenset[_PlainRow]
    removed: frozenset[_PlainRow]


class CatchUp(Struct, array_like=True, tag=22, frozen=True):
    """Answer to a sync request: the encoded changes that were missing, up to the tip (`seq`, `digest`)."""

    request: int
    epoch: Name
    columns: Annotated[tuple[Name, ...], _SomeColumns]
    changes: list[msgspec.Raw]
    seq: int
    digest: int


class SnapshotBegin(Struct, array_like=True, tag=23, frozen=True):
    """Answer to a sync request: `count` rows follow in chunks, the state at `seq`."""

    request: int
    epoch: Name
    columns: Annotated[tuple[Name, ...], _SomeColumns]
    seq: int
    count: int
    digest: int


class SnapshotChunk(Struct, array_like=True, tag=24, frozen=True):
    """Chunk number `index` of the snapshot of sync request `request`."""

    request: int
    index: int
    rows: frozenset[Row]


class PlainChunk(SnapshotChunk, array_like=True, tag=24, frozen=True):
    """A chunk as it was received, whose cells were found to be what a table can hold, one by one."""

    rows: frozenset[_PlainRow]


class SnapshotCredit(Struct, array_like=True, tag=25, frozen=True):
    """I have the chunks up to and without `received`; send on."""

    service: Name
    table: Name
    instance: Name
    request: int
    received: int


class Tip(Struct, array_like=True, tag=26, frozen=True):
    """The table stands at (`epoch`, `seq`) with rows of this `digest`. To one node, it says which table."""

    epoch: Name
    seq: int
    digest: int
    service: Name = ""
    table: Name = ""


class NoTable(Struct, array_like=True, tag=27, frozen=True):
    """Answer to a sync request: this node does not publish that table; or, `untrusted` says, not to you.

    With request 0 it answers none, and names the table: you may not follow it any more.
    """

    request: int
    untrusted: Annotated[str, Meta(max_length=2000)] = ""
    service: Name = ""
    table: Name = ""


class Unsubscribe(Struct, array_like=True, tag=28, frozen=True):
    """Count me no longer as a subscriber."""

    service: Name
    table: Name
    instance: Name


class Renew(Struct, array_like=True, tag=29, frozen=True):
    """All that `instance` subscribes to here, as (service, table, epoch, seq); whatever is missing has ended."""

    instance: Name
    subscriptions: Annotated[list[tuple[Name, Name, Name, int]], Meta(max_length=limits.REPLICAS)]


class Changes(Struct, array_like=True, tag=30, frozen=True):
    """Changes of one table that follow on each other, published faster than they could be sent one by one."""

    changes: Annotated[list[ChangeMessage], Meta(max_length=limits.CHANGES)]


class PlainChanges(Changes, array_like=True, tag=30, frozen=True):
    """`Changes` of which each is a `PlainChange`."""

    changes: Annotated[list[PlainChange], Meta(max_length=limits.CHANGES)]  # type: ignore[assignment]


# Large ones: their rows are looked at before they become a set (`dse.core.untrusted`).


class _ChangeOf(Struct, Generic[_Cell], array_like=True, tag=21):
    epoch: Name
    seq: int
    added: list[tuple[_Cell, ...]]
    removed: list[tuple[_Cell, ...]]
    plus: int | None = None
    minus: int | None = None
    trace: _Trace | None = None


class _ChangesOf(Struct, Generic[_Cell], array_like=True, tag=30):
    changes: Annotated[list[_ChangeOf[_Cell]], Meta(max_length=limits.CHANGES)]


class _ChunkOf(Struct, Generic[_Cell], array_like=True, tag=24):
    request: int
    index: int
    rows: list[tuple[_Cell, ...]]


class Greet(Struct, array_like=True, tag=40, frozen=True):
    """I do not know whether what `instance` says is said in my life, which began `age` seconds ago: tell me.

    `token` comes back with the answer. Only on a bus with keys (`dse.core.admission`), as `Greeted`.
    """

    instance: Name
    age: float
    token: int


class Greeted(Struct, array_like=True, tag=41, frozen=True):
    """What I sealed with a number above `floor` I sealed after the life of whoever sent the greeting began.

    `number` is that of my latest frame: what has a greater one I sealed after the greeting came.
    """

    instance: Name
    token: int
    floor: int
    number: int


Message = (
    Heartbeat
    | Leave
    | Clash
    | CatalogueRequest
    | Catalogue
    | Request
    | Reply
    | Failure
    | Accepted
    | Probe
    | UnknownCall
    | SyncRequest
    | ChangeMessage
    | CatchUp
    | SnapshotBegin
    | SnapshotChunk
    | SnapshotCredit
    | Tip
    | NoTable
    | Unsubscribe
    | Renew
    | Changes
    | Greet
    | Greeted
)

_encoder = msgspec.msgpack.Encoder()
_kinds = tuple(_ReceivedCatalogue if kind is Catalogue else kind for kind in get_args(Message))
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Union[_kinds])  # noqa: UP007
_plain_decoder = msgspec.msgpack.Decoder(PlainChange | PlainChanges | PlainChunk)
_plain_tags = frozenset(kind.__struct_config__.tag for kind in (PlainChange, PlainChanges, PlainChunk))
_change_decoder = msgspec.msgpack.Decoder(ChangeMessage)
_plain_change_decoder = msgspec.msgpack.Decoder(PlainChange)
_listed_decoder = msgspec.msgpack.Decoder(_ChangeOf[_PlainCell] | _ChangesOf[_PlainCell] | _ChunkOf[_PlainCell])
_any_decoder = msgspec.msgpack.Decoder(_ChangeOf[Any] | _ChangesOf[Any] | _ChunkOf[Any])
_raw_decoder = msgspec.msgpack.Decoder(_ChangeOf[msgspec.Raw] | _ChangesOf[msgspec.Raw] | _ChunkOf[msgspec.Raw])
_service_decoder = msgspec.msgpack.Decoder(_ServiceEntry)
_decode_cell = msgspec.msgpack.Decoder(bool | int | float | str | None).decode
_decode_bytes_cell = msgspec.msgpack.Decoder(bytes).decode
_answer_tags = frozenset(kind.__struct_config__.tag for kind in (CatchUp, SnapshotBegin, SnapshotChunk))
_change_tags = frozenset(kind.__struct_config__.tag for kind in (ChangeMessage, Changes))
_INT_SIZES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}  # bytes behind the first one of an unsigned integer
_ANY = 300_000  # bytes of rows of which each cell may be anything, as lists of lists, before it is checked
_refusals = (msgspec.DecodeError, RecursionError, ValueError, TypeError)

# Bytes of a frame, by the tag of its message, where they are not `limits.MESSAGE`. Who calls has the driver's limit.
_longest: dict[int, int] = {
    kind.__struct_config__.tag: size  # type: ignore[misc]
    for size, kinds in (
        (sys.maxsize, (Request, Reply, Failure)),
        (limits.CATALOGUE, (Catalogue,)),
        (limits.CHANGE + limits.MESSAGE, (ChangeMessage, Changes, CatchUp, SnapshotChunk, Renew)),
        (limits.NAME * limits.COLUMNS + limits.MESSAGE, (SnapshotBegin,)),
    )
    for kind in kinds
}


class BadFrame(Exception):
    """A frame that is no message of this protocol."""


class ForeignVersion(BadFrame):
    """A frame of another major version."""


class SealedFrame(BadFrame):
    """A sealed frame, where nothing can be opened."""


def encode_body(message: Message) -> bytes:
    """Encode a message without the version; raises what msgspec raises for a value that cannot be encoded."""
    return _encoder.encode(message)


def encode_change(change: ChangeMessage) -> bytes:
    """Encode a change without the version; raises like `encode_body`."""
    if change.trace is not None:
        return _encoder.encode(change)
    # msgspec would write None at the end: a byte a change, for nothing.
    tag = ChangeMessage.__struct_config__.tag
    return _encoder.encode((tag, change.epoch, change.seq, change.added, change.removed, change.plus, change.minus))


def encode_changes(bodies: Sequence[bytes]) -> bytes:
    """Encode `Changes` from changes that are encoded already."""
    return _encoder.encode((Changes.__struct_config__.tag, [msgspec.Raw(body) for body in bodies]))


def frame_of(body: bytes) -> bytes:
    """Make a frame of an encoded message."""
    return _VERSION + body


def encode(message: Message) -> bytes:
    """Encode a message into a frame."""
    return _VERSION + _encoder.encode(message)


def encode_reply(call_id: int, result: Any) -> bytes:
    """Encode a `Reply` into a frame; raises what msgspec raises for a result that cannot be encoded."""
    return _VERSION + _encoder.encode((Reply.__struct_config__.tag, call_id, result))


def decode(frame: bytes) -> Message:
    """Decode a frame; raise `BadFrame` for whatever is not exactly a declared message."""
    if len(frame) < 4:  # the version, an array, its tag
        raise BadFrame(f"{len(frame)} bytes are no frame")
    if frame[0] != MAJOR:
        if frame[0] == SEALED:
            raise SealedFrame("it is sealed, and this node has no keys")
        raise ForeignVersion(f"protocol version {frame[0]}.{frame[1]}, this node speaks {MAJOR}.{MINOR}")
    body = memoryview(frame)[2:]
    tag = frame[3]
    try:
        if len(frame) > _SHORT:
            _check_length(frame)
            if tag in _plain_tags:
                return _decode_rows(body)
        elif tag in _plain_tags:
            with contextlib.suppress(*_refusals):
                plain: Message = _plain_decoder.decode(body)
                return plain
        message = _decoder.decode(body)
    except _refusals as error:
        raise BadFrame(str(error)) from None
    return _read_catalogue(message) if type(message) is _ReceivedCatalogue else message


def answers_request(frame: bytes) -> int | None:
    """Return the number of the request that a frame of rows answers; None for any other; without decoding it."""
    if frame[3] not in _answer_tags:
        return None
    size = _INT_SIZES.get(frame[4], 0)
    return int.from_bytes(frame[5 : 5 + size]) if size else frame[4]


def is_change(frame: bytes) -> bool:
    """Whether a frame is one of changes; without decoding it."""
    return frame[3] in _change_tags


def decode_change(body: msgspec.Raw) -> ChangeMessage:
    """Decode one of the changes in a `CatchUp`; raise `BadFrame` for whatever is not a change."""
    view = memoryview(body)
    try:
        if len(view) > _SHORT:
            change = _decode_rows(view)
            if not isinstance(change, ChangeMessage):
                raise ValueError("not a change")
            return change
        with contextlib.suppress(*_refusals):
            return _plain_change_decoder.decode(body)
        return _change_decoder.decode(body)
    except _refusals as error:
        raise BadFrame(str(error)) from None


_NAMES_NODE = frozenset((Heartbeat, Leave, Catalogue, Request, Accepted))
_NAMES_INSTANCE = frozenset(
    (CatalogueRequest, Probe, UnknownCall, SyncRequest, SnapshotCredit, Unsubscribe, Renew, Greet, Greeted)
)


def speaks_for(message: Message, node_id: str, instance: str) -> bool:
    """Whether a message says of its sender what is true of the one with this node_id and instance."""
    kind, said = type(message), message
    if kind in _NAMES_NODE:
        return said.instance == instance and said.node_id == node_id  # type: ignore[union-attr]
    if kind in _NAMES_INSTANCE:
        return said.instance == instance  # type: ignore[union-attr]
    return kind is not Clash or said.winner == instance  # type: ignore[union-attr]


def _check_length(frame: bytes) -> None:
    """Refuse a frame that is longer than any of its kind."""
    if frame[2] & 0xF0 != 0x90 or frame[3] > 0x7F:
        raise ValueError("no message of that length begins like this")
    longest = _longest.get(frame[3], limits.MESSAGE)
    if len(frame) > longest:
        raise ValueError(f"{len(frame):,} bytes are over the limit of such a message, {longest:,}")


def _decode_rows(body: memoryview) -> Message:
    """Decode a message of many rows."""
    try:
        return _as_sets(_listed_decoder.decode(body), PlainChange, PlainChanges, PlainChunk, list)
    except msgspec.ValidationError:
        pass  # cells that are bytes, or no cells at all
    if len(body) > _ANY or may_hold_large_map(body):
        return _as_sets(_raw_decoder.decode(body), ChangeMessage, Changes, SnapshotChunk, _cells_of)
    return _as_sets(_any_decoder.decode(body), ChangeMessage, Changes, SnapshotChunk, list)


def _as_sets(
    listed: _ChangeOf[Any] | _ChangesOf[Any] | _ChunkOf[Any],
    change: type[ChangeMessage],
    changes: type[Changes],
    chunk: type[SnapshotChunk],
    rows: Callable[[list[Any]], list[Row]],
) -> Message:
    """Return the message, of the classes that are given, whose rows were decoded as lists."""

    def read(each: _ChangeOf[Any]) -> ChangeMessage:
        added, removed = read_set(rows(each.added)), read_set(rows(each.removed))
        return change(each.epoch, each.seq, added, removed, each.plus, each.minus, each.trace)

    if isinstance(listed, _ChunkOf):
        return chunk(listed.request, listed.index, read_set(rows(listed.rows)))
    return changes([read(each) for each in listed.changes]) if isinstance(listed, _ChangesOf) else read(listed)


def _cells_of(rows: list[tuple[msgspec.Raw, ...]]) -> list[Row]:
    return [tuple(map(_read_cell, row)) for row in rows]


def _read_cell(cell: msgspec.Raw) -> Any:
    try:
        return _decode_cell(cell)
    except msgspec.ValidationError:
        return _decode_bytes_cell(cell)


def _read_catalogue(received: _ReceivedCatalogue) -> Catalogue:
    """Read the services one by one: one that does not fit is left out."""
    services = []
    for each in received.services:
        with contextlib.suppress(*_refusals):
            services.append(msgspec.to_builtins(_service_decoder.decode(each)))
    return Catalogue(
        received.node_id,
        received.instance,
        received.age,
        received.interval,
        received.version,
        services,
        received.node_methods,
    )


@functools.lru_cache(maxsize=512)
def instance_address(instance: str) -> Address:
    """Where one node, in this life, is reached."""
    return Address(Delivery.DIRECT, f"node/{instance}")


def service_address(service_id: str) -> Address:
    """Where any one replica of a service is reached."""
    return Address(Delivery.ANYCAST, f"service/{service_id}")


def broadcast_address(service_id: str) -> Address:
    """Where all replicas of a service are reached."""
    return Address(Delivery.FANOUT, f"service/{service_id}")


@functools.lru_cache(maxsize=512)
def table_address(instance: str, service_id: str, table: str) -> Address:
    """Where the changes of the table that one node publishes are heard."""
    return Address(Delivery.FANOUT, f"table/{instance}/{service_id}/{table}")
