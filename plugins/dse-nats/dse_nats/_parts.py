"""Frames larger than a server's ``max_payload`` travel in parts; this takes them apart and puts them together.

Rules:

1. A part begins with its frame's id, its number and how many there are. The parts of one frame come in order, on one
   subscription: a part whose predecessor is missing makes its frame incomplete, and that is forgotten.
2. A sender may die before the last part: what is incomplete is bounded, and the oldest goes first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["PART", "Assembly", "is_part", "split"]

_HEAD = struct.Struct(">B8sII")  # 2, frame id, number, how many; the base's own data begins with 0 or 1
PART = 2
_MOST_BYTES = 1 << 26  # of incomplete frames
_MOST_FRAMES = 256


def is_part(data: bytes) -> bool:
    """Whether received data is a part of a frame."""
    return data[:1] == b"\x02"


def split(data: bytes, room: int, frame_id: bytes) -> Iterator[bytes]:
    """Yield the parts of data, none longer than `room` bytes; the id (8 bytes) is the frame's alone."""
    size = room - _HEAD.size
    if size <= 0:
        raise ValueError(f"no part fits into {room} bytes")
    count = max(1, -(-len(data) // size))
    for number in range(count):
        yield _HEAD.pack(PART, frame_id, number, count) + data[number * size : (number + 1) * size]


class Assembly:
    """Puts parts together. Not locked: whoever has the turn to receive uses it."""

    def __init__(self) -> None:
        self._frames: dict[tuple[bytes, bytes], list[bytes]] = {}  # by where they arrive, and id
        self.bytes = 0  # of all parts that wait for others

    def add(self, where: bytes, part: bytes) -> bytes | None:
        """Take a part that arrived at `where`; return the data once it is whole."""
        if len(part) < _HEAD.size:
            return None
        _, frame_id, number, count = _HEAD.unpack_from(part)
        key = where, frame_id
        parts = self._frames.setdefault(key, []) if number == 0 else self._frames.get(key)
        if parts is None or number != len(parts) or number >= count:
            self._forget(key)
            return None
        parts.append(part[_HEAD.size :])
        self.bytes += len(parts[-1])
        if number == count - 1:
            self._forget(key)
            return b"".join(parts)
        while self._frames and (self.bytes > _MOST_BYTES or len(self._frames) > _MOST_FRAMES):
            self._forget(next(iter(self._frames)))
        return None

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        self.bytes -= sum(map(len, self._frames.pop(key, ())))
