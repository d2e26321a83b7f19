"""Any arguments fit the annotations of a method, or `InvalidArguments` says what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from dse.core.methods import Method
from dse.errors import InvalidArguments
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([n, *range(n, n + 60)]) for n in range(0, 160, 12)] + [b"\xff\x81\xa1a" + b"\x91" * 3000]


@dataclass
class Point:
    x: int
    y: float = 0.0


class Service:
    def nothing(self) -> None: ...
    def plain(self, s: int, t: str, n1: float = 1.0) -> None: ...
    def some(self, s: list[int], t: dict[str, bytes] | None = None) -> None: ...
    def anything(self, s, t=None) -> None: ...  # type: ignore[no-untyped-def]
    def points(self, s: Point, t: tuple[Point, ...] = ()) -> None: ...
    def sets(self, s: set[tuple[int, str]], t: frozenset[bytes] = frozenset()) -> None: ...
    def keys(self, s: dict[tuple[int, int], Any]) -> None: ...


_METHODS = [Method("s", getattr(Service(), name)) for name in dir(Service) if not name.startswith("_")]


def run(data: bytes) -> None:
    draw = Draw(data)
    try:
        method = draw.choice(_METHODS)
        kind = draw.byte()
        if kind == 255:
            args = msgspec.Raw(draw.take(1 << 20))
        else:
            args = msgspec.Raw(msgspec.msgpack.encode({draw.name(): draw.value() for _ in range(kind % 4)}))
    except Exhausted:
        return
    try:
        bound = method.bind(args)
    except InvalidArguments as error:
        str(error).encode()
        return
    method.function(**bound)
