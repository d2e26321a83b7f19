"""Rows: what a table may hold, how rows are checked, and the digest of a set of rows.

A row is a tuple of scalars: ``None | bool | int | float | str | bytes``. Integers are of 64 bits, text is valid
Unicode, NaN (which equals nothing, not even itself) is refused. Rows are the same row when Python says that they are
equal, so ``(1,)``, ``(1.0,)`` and ``(True,)`` are one.

The digest of a set is the sum modulo 2**64 of its rows' digests, so it does not depend on order and follows a change at
the cost of the change. A row's digest is the CRC-32 of its encoding, in which equal rows are written alike. It finds
what was lost or applied twice; it is no defence against a liar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from itertools import chain, islice
from typing import Any
from zlib import crc32

import msgspec

from dse.core.messages import Row
from dse.errors import RowError

__all__ = ["DIGEST_MASK", "MAX_ROW", "RowsView", "check_received", "check_shape", "digest", "found_types", "read_rows"]

MAX_ROW = 1 << 20
"""The longest encoded row in bytes."""

DIGEST_MASK = (1 << 64) - 1

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_ALIKE = frozenset({type(None), int, str, bytes})  # encoded alike when equal
_BOOLS = _ALIKE | {bool}
_as_int = {False: 0, True: 1}.get  # by cell, with the cell itself as the default
_AT_ONCE = 4096  # rows whose encodings are held at once
_encode = msgspec.msgpack.Encoder().encode


def read_rows(table: str, columns: tuple[str, ...], rows: Iterable[Any]) -> set[Any]:
    """Return rows as a set; raise `RowError` for anything that is not a collection of rows.

    What equals a row of the table is one: `check_shape` is for those that are new, and `digest` for their cells.
    """
    if isinstance(rows, set | frozenset):
        found: set[Any] = rows if isinstance(rows, set) else set(rows)
    else:
        if isinstance(rows, list | tuple):
            listed: list[Any] | tuple[Any, ...] = rows
        elif isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
            raise RowError(f"{table}: rows are an iterable of tuples, not {type(rows).__name__}", row=rows)
        else:
            listed = list(rows)
        try:
            found = set(listed)
        except TypeError:
            listed = [tuple(row) if isinstance(row, list) else row for row in listed]
            try:
                found = set(listed)
            except TypeError:
                for row in listed:
                    _check_row(table, columns, row)
                raise
    return found


def check_shape(table: str, columns: tuple[str, ...], rows: set[Any]) -> set[Row]:
    """Return rows as plain tuples; raise `RowError` for one that is no tuple of that width."""
    width = len(columns)
    if set(map(type, rows)) <= {tuple} and set(map(len, rows)) <= {width}:
        return rows
    checked = set()
    for row in rows:
        # A named tuple is a tuple with a name: kept as a plain one.
        checked.add(tuple(row) if isinstance(row, tuple) and len(row) == width else row)
    for row in checked:
        _check_row(table, columns, row)
    return checked


def digest(table: str, columns: tuple[str, ...], rows: Collection[Row]) -> int:
    """Return the digest of rows; raise `RowError` for one with a cell that a table cannot hold."""
    if len(rows) <= _AT_ONCE:
        return _digest(table, columns, rows) & DIGEST_MASK if rows else 0
    total, rest = 0, iter(rows)
    while part := list(islice(rest, _AT_ONCE)):
        total += _digest(table, columns, part)
    return total & DIGEST_MASK


def _digest(table: str, columns: tuple[str, ...], rows: Collection[Row]) -> int:
    # Every row of every change comes through here: loops are left to C.
    cells = list(chain.from_iterable(rows))
    kinds = set(map(type, cells))
    try:
        if kinds <= _ALIKE:
            encoded = list(map(_encode, rows))
        elif kinds <= _BOOLS:
            numbers = map(_as_int, cells, cells)
            encoded = list(map(_encode, zip(*[numbers] * len(columns), strict=True)))
        else:
            encoded = [_encode(_canonical(table, columns, row)) for row in rows]
    except (TypeError, OverflowError, UnicodeEncodeError):
        for row in rows:
            _check_row(table, columns, row)
        raise
    if len(b"".join(encoded)) > MAX_ROW and max(map(len, encoded)) > MAX_ROW:
        row, size = max(zip(rows, map(len, encoded), strict=True), key=lambda each: each[1])
        raise RowError(
            f"{table}: a row of {size:,} encoded bytes is over the limit of {MAX_ROW:,}: {_short(row)}", row=row
        )
    return sum(map(crc32, encoded))


def check_received(rows: Collection[Row], width: int, *, plain: bool = False) -> bool:
    """Say whether rows that a peer sent are rows of that width. plain: their cells have been found to fit."""
    if not set(map(len, rows)) <= {width}:
        return False
    if plain:
        return True
    kinds = set(map(type, chain.from_iterable(rows)))
    if not kinds <= _SCALARS:
        return False
    return float not in kinds or not any(cell != cell for cell in chain.from_iterable(rows))


def found_types(rows: Collection[Row], width: int) -> list[list[str]]:
    """Return the types of the cells in each column, sorted: names of Python's, ``None`` for no value."""
    columns = zip(*rows, strict=True) if rows else [()] * width
    return [sorted({"None" if cell is None else type(cell).__name__ for cell in column}) for column in columns]


def _canonical(table: str, columns: tuple[str, ...], row: Row) -> Row:
    cells: list[Any] = []
    for cell in row:
        kind = type(cell)
        if kind is float:
            if cell.is_integer():
                cell = int(cell) if -(2**63) <= cell < 2**64 else cell
            elif cell != cell:
                column = columns[len(cells)]
                raise RowError(f"{table}: column {column!r} is NaN in {_short(row)}", row=row, column=column)
        elif kind is bool:
            cell = int(cell)
        elif kind not in _SCALARS:
            _refuse_cell(table, row, columns[len(cells)], cell)
        cells.append(cell)
    return tuple(cells)


def _check_row(table: str, columns: tuple[str, ...], row: Any) -> None:
    if not isinstance(row, tuple):
        raise RowError(f"{table}: a row is a tuple, not {type(row).__name__}: {_short(row)}", row=row)
    if len(row) != len(columns):
        raise RowError(
            f"{table}: a row has {len(columns)} columns ({', '.join(columns)}), not {len(row)}: {_short(row)}",
            row=row,
            column=columns[len(row)] if len(row) < len(columns) else None,
        )
    for column, cell in zip(columns, row, strict=True):
        if type(cell) not in _SCALARS:
            _refuse_cell(table, row, column, cell)
        if type(cell) is int and not -(2**63) <= cell < 2**64:
            raise RowError(f"{table}: column {column!r} is over 64 bits in {_short(row)}", row=row, column=column)
        if type(cell) is str:
            try:
                cell.encode()
            except UnicodeEncodeError:
                raise RowError(
                    f"{table}: column {column!r} is not valid Unicode in {_short(row)}", row=row, column=column
                ) from None


def _refuse_cell(table: str, row: Row, column: str, cell: Any) -> None:
    raise RowError(
        f"{table}: column {column!r} holds a {type(cell).__name__}, not None, bool, int, float, str or bytes, "
        f"in {_short(row)}",
        row=row,
        column=column,
    )


def _short(row: object) -> str:
    shown = ascii(row)
    return shown if len(shown) <= 200 else shown[:200] + "…"


class RowsView(Set[Row]):
    """A frozen view of a table's rows: it never changes, whatever the table does after it was taken."""

    __slots__ = ("__weakref__", "_rows")

    def __init__(self, rows: set[Row]) -> None:
        self._rows = rows

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> frozenset[Any]:
        return frozenset(it)

    def __contains__(self, row: object) -> bool:
        return row in self._rows

    def __iter__(self) -> Any:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RowsView):
            return self._rows == other._rows
        return self._rows == other if isinstance(other, set | frozenset) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._rows))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, sorted(self._rows, key=repr)[:10]))
        return f"RowsView({{{shown}{', …' if len(self._rows) > 10 else ''}}}, {len(self._rows)} rows)"
