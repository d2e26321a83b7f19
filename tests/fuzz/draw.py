"""Values drawn from fuzzed bytes: any bytes are a sequence of choices, and another byte changes only what follows."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from dse.core.messages import (
    Accepted,
    Catalogue,
    CatalogueRequest,
    CatchUp,
    ChangeMessage,
    Changes,
    Clash,
    Failure,
    Heartbeat,
    Leave,
    Message,
    NoTable,
    PlainChange,
    Probe,
    Renew,
    Reply,
    Request,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    UnknownCall,
    Unsubscribe,
    encode_body,
)

__all__ = ["Draw", "Exhausted"]

T = TypeVar("T")

_INTS = (0, 1, 2, 3, 5, 64, 255, 10_000, 2**31, 2**32, 2**53, 2**61 - 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**63))
_FLOATS = (0.0, 1.0, 0.5, -1.0, 1e-9, 60.0, 3600.0, 1e6, 1e300, -1e300, 5e-324, math.inf, -math.inf, math.nan)
_TEXTS = ("", "s", "t", "n1", "n2", "n1/a", "n2/b", "me", "me/1", "ping", "é", "x" * 300, "\x00", "a b", "/", "%", "*")


_CODES = ("RemoteError", "NoSuchService", "NoSuchMethod", "Stopping", "Overloaded", "", "x")


class Exhausted(Exception):
    """The bytes are used up."""


class Draw:
    """Reads choices from bytes. names: what names are drawn from, besides odd ones."""

    def __init__(self, data: bytes, names: Sequence[str] = ()) -> None:
        self._data = data
        self._at = 0
        self.names = (*names, *_TEXTS)

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self._data) - self._at

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise Exhausted
        self._at += 1
        return self._data[self._at - 1]

    def take(self, size: int) -> bytes:
        """Return the next bytes, as many as are left."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def below(self, limit: int) -> int:
        return self.byte() % limit

    def flag(self) -> bool:
        return self.byte() & 1 == 1

    def choice(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def int(self) -> int:
        kind = self.byte()
        if kind < 128:
            return kind
        if kind < 224:
            return _INTS[kind % len(_INTS)]
        return (
            int.from_bytes(self.take(8), "little") if kind < 240 else int.from_bytes(self.take(8), "big", signed=True)
        )

    def float(self) -> float:
        kind = self.byte()
        if kind < 100:
            return kind / 10
        if kind < 230:
            return _FLOATS[kind % len(_FLOATS)]
        raw = self.take(8)
        return float(struct.unpack("<d", raw)[0]) if len(raw) == 8 else 0.0

    def name(self) -> str:
        kind = self.byte()
        if kind < 240:
            return self.names[kind % len(self.names)]
        return self.take(self.byte()).decode(errors="replace")

    def items(self, draw: Callable[[], T], most: int = 5) -> list[T]:
        return [draw() for _ in range(self.below(most + 1))]

    def cell(self) -> Any:
        kind = self.byte() % 12
        if kind < 4:
            return self.below(8)
        draws = (self.float, self.name, lambda: self.take(4), self.int)
        return draws[kind - 4]() if kind < 8 else (None, True, 2.5, "a")[kind - 8]

    def row(self, width: int | None = None) -> tuple[Any, ...]:
        return tuple(self.cell() for _ in range(self.below(4) if width is None else width))

    def rows(self, width: int = 2) -> frozenset[Any]:
        odd = self.byte() > 240
        return frozenset(self.row(None if odd else width) for _ in range(self.below(6)))

    def value(self, depth: int = 0) -> Any:
        """Any value that a message can carry."""
        kind = self.byte() % 16
        if kind == 0 and depth < 5:
            return [self.value(depth + 1) for _ in range(self.below(5))]
        if kind == 1 and depth < 5:
            return {self.key(): self.value(depth + 1) for _ in range(self.below(5))}
        if kind == 2:
            return self.float()
        if kind == 3:
            return self.take(self.byte())
        if kind == 4:
            return self.int()
        return self.name() if kind < 8 else self.below(9) if kind < 12 else None if kind < 14 else True

    def key(self) -> Any:
        return self.name() if self.byte() < 200 else self.row() if self.flag() else self.below(20)

    def raw(self) -> msgspec.Raw:
        return msgspec.Raw(self.take(self.byte()) if self.byte() > 230 else msgspec.msgpack.encode(self.value()))

    def info(self) -> Any:
        """What a service says of itself; often nearly right."""
        info: dict[Any, Any] = {
            "service_id": self.name(),
            "node_id": self.name(),
            "published_tables": {self.name(): self.items(self.name, 3) for _ in range(self.below(3))},
            "subscribed_tables": [[self.name(), self.name()] for _ in range(self.below(3))],
            "rpc_methods": {
                self.name(): {"signature": self.name(), "doc": self.name(), "idempotent": self.flag()}
                for _ in range(self.below(3))
            },
        }
        if self.byte() > 200:
            info[self.choice([*info, "later"])] = self.value()
        if self.byte() > 240:
            del info[self.choice(list(info))]
        return info if self.byte() < 250 else self.value()

    def change(self) -> ChangeMessage:
        kind = PlainChange if self.byte() > 100 else ChangeMessage
        plus, minus = (self.int(), self.int()) if self.flag() else (None, None)
        rows, gone = self.rows(), self.rows()
        if kind is PlainChange:
            rows, gone = _plain(rows), _plain(gone)
        return kind(self.name(), self.int(), rows, gone, plus, minus)

    def message(self, kinds: Sequence[type] | None = None) -> Message:
        """Any declared message with any fields that it can be decoded with."""
        made: Message = _MAKE[self.choice(kinds or _KINDS)](self)
        return made

    def columns(self) -> tuple[str, ...]:
        return ("a", "b") if self.byte() < 200 else tuple(self.items(self.name, 4))


def _plain(rows: frozenset[Any]) -> frozenset[Any]:
    # Compared by type: bytes, NaN and minus infinity do not come in a plain row.
    return frozenset(row for row in rows if not any(isinstance(c, bytes) or c != c or c == -math.inf for c in row))


_MAKE: dict[type, Callable[[Draw], Any]] = {
    Heartbeat: lambda d: Heartbeat(d.name(), d.name(), d.float(), d.float(), d.int(), d.flag()),
    Leave: lambda d: Leave(d.name(), d.name()),
    Clash: lambda d: Clash(d.name(), d.name(), d.name(), d.flag()),
    CatalogueRequest: lambda d: CatalogueRequest(d.name(), d.flag()),
    Catalogue: lambda d: Catalogue(
        d.name(), d.name(), d.float(), d.float(), d.int(), d.items(d.info, 3), d.items(d.name, 3)
    ),
    Request: lambda d: Request(
        d.int(), d.name(), d.name(), d.name() if d.byte() < 200 else None, d.name(), d.raw(), d.float(), d.flag(),
        {d.name(): d.name() for _ in range(d.below(3))} if d.flag() else None,
    ),
    Reply: lambda d: Reply(d.int(), d.raw()),
    Failure: lambda d: Failure(
        d.int(), d.choice(_CODES), d.name(),
        d.name(), d.name(), d.take(d.byte()) if d.flag() else None,
    ),
    Accepted: lambda d: Accepted(d.int(), d.name(), d.name()),
    Probe: lambda d: Probe(d.int(), d.name()),
    UnknownCall: lambda d: UnknownCall(d.int(), d.name()),
    SyncRequest: lambda d: SyncRequest(d.name(), d.name(), d.name(), d.int(), d.name(), d.int()),
    ChangeMessage: lambda d: d.change(),
    CatchUp: lambda d: CatchUp(
        d.int(), d.name(), d.columns(), [_body(d) for _ in range(d.below(4))], d.int(), d.int()
    ),
    SnapshotBegin: lambda d: SnapshotBegin(d.int(), d.name(), d.columns(), d.int(), d.int(), d.int()),
    SnapshotChunk: lambda d: SnapshotChunk(d.int(), d.int(), d.rows()),
    SnapshotCredit: lambda d: SnapshotCredit(d.name(), d.name(), d.name(), d.int(), d.int()),
    Tip: lambda d: Tip(d.name(), d.int(), d.int(), d.name(), d.name()),
    NoTable: lambda d: NoTable(d.int()),
    Unsubscribe: lambda d: Unsubscribe(d.name(), d.name(), d.name()),
    Renew: lambda d: Renew(d.name(), [(d.name(), d.name(), d.name(), d.int()) for _ in range(d.below(4))]),
    Changes: lambda d: Changes([d.change() for _ in range(d.below(5))]),
}  # fmt: skip
_KINDS = tuple(_MAKE)


def _body(draw: Draw) -> msgspec.Raw:
    return msgspec.Raw(draw.take(draw.byte())) if draw.byte() > 240 else msgspec.Raw(encode_body(draw.change()))
