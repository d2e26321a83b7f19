"""Cells of rows as JSON, and as CSV.

JSON has no bytes, no infinity, and in browsers no whole numbers over 53 bits. Such a cell is an object with one key:
``{"base64": "/9g="}``, ``{"float": "inf"}``, ``{"int": "9007199254740993"}``. All other cells are themselves.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from dse.core.messages import Row

__all__ = ["csv_lines", "json_bytes", "json_cell", "json_rows"]

_EXACT = 1 << 53
_PLAIN = frozenset({type(None), bool, str})

json_bytes = msgspec.json.Encoder().encode
"""Encodes plain values as JSON."""


def json_cell(cell: Any) -> Any:
    """Return what stands for a cell in JSON."""
    kind = type(cell)
    if kind is int:
        return cell if -_EXACT <= cell <= _EXACT else {"int": str(cell)}
    if kind is float:
        return cell if math.isfinite(cell) else {"float": str(cell)}
    if kind is bytes:
        return {"base64": base64.b64encode(cell).decode("ascii")}
    return cell


def json_rows(rows: Iterable[Row]) -> list[list[Any]]:
    """Return rows as JSON has them."""
    return [[cell if type(cell) in _PLAIN else json_cell(cell) for cell in row] for row in rows]


def csv_lines(columns: Iterable[str], rows: Iterable[Row], *, raw: bool = False) -> Iterator[bytes]:
    """Yield CSV (RFC 4180), the names of the columns first.

    raw: as it is. Otherwise text that a spreadsheet would take for a formula gets a ``'`` in front.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(cell, raw) for cell in row])
        if buffer.tell() >= 1 << 16:
            yield _taken(buffer)
    yield _taken(buffer)


def _csv_cell(cell: Any, raw: bool) -> Any:
    if type(cell) is bytes:
        return base64.b64encode(cell).decode("ascii")
    if type(cell) is str and not raw and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{cell}"
    return cell


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode("utf-8", "replace")
