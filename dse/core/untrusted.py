"""Decoding what a peer made up, at a bounded cost.

Rules:

1. msgspec allocates nothing for what a frame only announces, and refuses what is nested deeper than Python's stack.
   What is left to a liar is Python's own weakness: sets and dicts take quadratic time for keys of one hash, and the
   hash of a tuple of numbers is no secret. Text and bytes are hashed with a secret; of numbers few have one hash.
2. So rows are put into a set, and arrays taken as keys of a map, only after a look at their hashes, where there may be
   enough of them to matter: in what is longer than `limits.SHORT`.
3. That look costs a fraction of the decoding. What is short is decoded at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

import msgspec

from dse.core import limits

__all__ = ["check_value", "decode_value", "may_hold_large_map", "read_set"]

_T = TypeVar("_T", bound=Hashable)
_decode = msgspec.msgpack.Decoder().decode
_Key = bool | int | float | str | None  # hashed with a secret, or few with one hash
_ByteKey = bool | int | float | bytes | None
_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_by_key = msgspec.msgpack.Decoder(dict[_Key, msgspec.Raw]).decode
_by_byte_key = msgspec.msgpack.Decoder(dict[_ByteKey, msgspec.Raw]).decode
_FEW = 4096  # bytes of a map whose keys may be anything
_large_map = re.compile(b"[\xde\xdf]").search  # what a map of more than 15 entries begins with


def read_set(items: Iterable[_T]) -> frozenset[_T]:
    """Return the set of items; raise `ValueError` where so many have one hash that it would take long."""
    listed = items if isinstance(items, list) else list(items)
    hashes = list(map(hash, listed))
    if len(listed) - len(set(hashes)) > limits.ALIKE and Counter(hashes).most_common(1)[0][1] > limits.ALIKE:
        raise ValueError(f"more than {limits.ALIKE} have one hash")
    return frozenset(listed)


def decode_value(data: bytes | msgspec.Raw) -> Any:
    """Decode any value; raise what msgspec raises, also for what would take out of all proportion long."""
    if len(memoryview(data)) > limits.SHORT:
        check_value(data)
    return _decode(data)


def check_value(data: bytes | msgspec.Raw) -> None:
    """Raise `msgspec.DecodeError` for an encoded value that would take out of all proportion long to decode."""
    _check(memoryview(data), 0)


def may_hold_large_map(data: memoryview) -> bool:
    """Whether there can be a map of more than 15 entries in encoded data."""
    return _large_map(data) is not None


def _check(data: memoryview, depth: int) -> None:
    """Look into lists and maps that are large enough to matter."""
    if len(data) <= _FEW:
        return
    first = data[0]
    is_map = first & 0xF0 == 0x80 or first in (0xDE, 0xDF)
    if not is_map and first & 0xF0 != 0x90 and first not in (0xDC, 0xDD):
        return
    if not may_hold_large_map(data):
        return
    if depth >= limits.DEPTH:
        raise msgspec.DecodeError(f"nested deeper than {limits.DEPTH}")
    values = _read_map(data) if is_map else _items(data)
    for value in values:
        inner = memoryview(value)
        if len(inner) > _FEW:
            _check(inner, depth + 1)


def _read_map(data: memoryview) -> Iterable[msgspec.Raw]:
    try:
        return _by_key(data).values()
    except msgspec.DecodeError:
        pass
    try:
        return _by_byte_key(data).values()
    except msgspec.DecodeError as error:
        raise msgspec.DecodeError(f"a map this large has text, numbers or bytes as keys: {error}") from None
