"""Typed columns: what a source makes of text (a CSV file) or of plain values (JSON, a database, a push).

A column's type is ``str``, ``int``, ``float``, ``bool``, ``bytes`` or ``json`` (anything, as compact JSON text); with a
``?`` behind it a missing value is None; without it the row does not fit.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dse.core.info import identifier
from dse.errors import ConfigError

__all__ = ["TYPES", "Columns"]

_INT = re.compile(r"[+-]?[0-9]{1,20}")  # int() alone would take 1_000 and other digits than these
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class Columns:
    """The columns of a table: names and types, in order.

    spec: name -> type. Raises `ConfigError`, whose `key` is the column, for one that cannot be.
    """

    def __init__(self, spec: Mapping[str, str]) -> None:
        if not spec:
            raise ConfigError("a table has at least one column")
        self.names = tuple(spec)
        self._rules: list[tuple[str, str, bool]] = []
        for name, kind in spec.items():
            try:
                identifier("column name", name)
            except ConfigError as error:
                raise ConfigError(str(error), key=(name,)) from None
            if kind.removesuffix("?") not in TYPES:
                raise ConfigError(
                    f"column {name!r}: a type is one of {', '.join(TYPES)} (with ? if a value may be missing), "
                    f"not {kind[:60]!r}",
                    key=(name,),
                )
            self._rules.append((name, kind.removesuffix("?"), kind.endswith("?")))

    def optional(self, column: str) -> bool:
        """Say whether a value of the column may be missing."""
        return any(name == column and optional for name, _, optional in self._rules)

    def from_text(self, row: Mapping[str, str | None]) -> tuple[Any, ...]:
        """Return the cells of a row that is text; raise ValueError naming the column that does not fit.

        Empty text is a missing value, but for ``str``.
        """
        return self._row({name: text for name, text in row.items() if text}, row, _FROM_TEXT)

    def from_values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the cells of a row of plain values; raise ValueError naming the column that does not fit.

        None is a missing value.
        """
        return self._row({name: value for name, value in row.items() if value is not None}, row, _FROM_VALUE)

    def _row(
        self, present: Mapping[str, Any], row: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]]
    ) -> tuple[Any, ...]:
        cells: list[Any] = []
        for name, kind, optional in self._rules:
            if name in present:
                cells.append(_read(name, kind, readers[kind], present[name]))
            elif optional:
                cells.append(None)
            elif kind == "str" and row.get(name) == "":
                cells.append("")
            else:
                raise ValueError(f"column {name!r} is missing")
        return tuple(cells)


def _read(name: str, kind: str, reader: Callable[[Any], Any], value: Any) -> Any:
    try:
        return reader(value)
    except _Said as error:
        what = str(error)
    except (ValueError, TypeError, OverflowError, RecursionError):
        what = f"is not {'an' if kind == 'int' else 'a'} {kind}"
    raise ValueError(f"column {name!r}: {_short(value)} {what}")


class _Said(ValueError):
    """Says by itself what is wrong with the value."""


def _in_range(value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise _Said("is over 64 bits")
    return value


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Said("is not valid Unicode") from None
    return text


def _number(value: float) -> float:
    if math.isnan(value):
        raise _Said("is not a number (NaN)")
    return value


def _int_of_text(text: str) -> int:
    text = text.strip()
    if not _INT.fullmatch(text):
        raise ValueError
    return _in_range(int(text))


def _float_of_text(text: str) -> float:
    if "_" in text:
        raise ValueError
    return _number(float(text))


def _bool_of_text(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise _Said("is not base64") from None


def _json_of_text(text: str) -> str:
    return _json_of(json.loads(text))


def _str_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return _valid(value)


def _int_of(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return _in_range(value)


def _float_of(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError
    return _number(float(value))


def _bool_of(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _json_of(value: Any) -> str:
    return _valid(json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True))


_FROM_TEXT: Mapping[str, Callable[[Any], Any]] = {
    "str": _valid,
    "int": _int_of_text,
    "float": _float_of_text,
    "bool": _bool_of_text,
    "bytes": _bytes_of,
    "json": _json_of_text,
}
_FROM_VALUE: Mapping[str, Callable[[Any], Any]] = {
    "str": _str_of,
    "int": _int_of,
    "float": _float_of,
    "bool": _bool_of,
    "bytes": _bytes_of,
    "json": _json_of,
}
TYPES = tuple(_FROM_TEXT)


def _short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:60] + "…"
