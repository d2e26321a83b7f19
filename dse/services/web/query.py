"""Which rows of a table, in which order: filters, sorting and paging. Plain functions of a snapshot of rows."""

from __future__ import annotations

import heapq
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dse.core.messages import Row

__all__ = ["LONGEST_PAGE", "OPERATORS", "BadQuery", "Query"]

LONGEST_PAGE = 10_000
"""Rows in one answer of JSON."""

_MOST = 20  # filters, and columns to sort by
_RANK = {type(None): 0, bool: 1, int: 1, float: 1, str: 2, bytes: 3}


class BadQuery(ValueError):
    """A query that cannot be answered. `where`: the parameter; the text says what is wrong and what is allowed."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    # What cannot be ordered (text and numbers) is neither less nor greater.
    def ordered(cell: Any, value: Any) -> bool:
        return _RANK.get(type(cell)) == _RANK.get(type(value)) != 0 and compare(cell, value)

    return ordered


def _text(cell: Any) -> str:
    return cell if type(cell) is str else str(cell)


OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": _ordered(operator.lt),
    "le": _ordered(operator.le),
    "gt": _ordered(operator.gt),
    "ge": _ordered(operator.ge),
    "contains": lambda cell, value: _text(value).casefold() in _text(cell).casefold(),
    "prefix": lambda cell, value: _text(cell).startswith(_text(value)),
}
"""What a filter may say of a cell and a value."""


@dataclass(frozen=True, slots=True)
class Query:
    """Filters that must all hold, what to sort by (place of the column, descending), and the page."""

    filters: tuple[tuple[int, Callable[[Any, Any], bool], Any], ...] = ()
    sort: tuple[tuple[int, bool], ...] = ()
    offset: int = 0
    limit: int = 100

    @classmethod
    def read(
        cls, columns: Sequence[str], parameters: Iterable[tuple[str, str]], *, longest: int = LONGEST_PAGE
    ) -> Query:
        """Read ``filter=COLUMN:OPERATOR:VALUE``, ``sort=COLUMN,-COLUMN``, ``offset=N`` and ``limit=N``.

        Raises `BadQuery` for anything else. A value is JSON where it can be read as such, and text where not.
        """
        filters, sort, numbers = [], [], {"offset": 0, "limit": min(100, longest)}
        for name, text in parameters:
            if name == "filter":
                filters.append(_filter(columns, text))
            elif name == "sort":
                sort += [_sort(columns, each) for each in text.split(",") if each]
            elif name in numbers:
                numbers[name] = _number(name, text, longest if name == "limit" else 1 << 53)
            else:
                raise BadQuery(name[:100], "no such parameter; there are: filter, format, limit, offset, raw, sort")
        if len(filters) > _MOST or len(sort) > _MOST:
            raise BadQuery("filter" if len(filters) > _MOST else "sort", f"at most {_MOST} are allowed")
        return cls(tuple(filters), tuple(sort), numbers["offset"], numbers["limit"])

    def select(self, rows: Sequence[Row]) -> tuple[int, list[Row]]:
        """Return how many rows the filters leave, and those of the page."""
        found: Sequence[Row] = rows
        for place, compare, value in self.filters:
            found = [row for row in found if compare(row[place], value)]
        if not self.sort:
            return len(found), list(islice(found, self.offset, self.offset + self.limit))
        return len(found), self._sorted(found)

    def all(self, rows: Sequence[Row]) -> list[Row]:
        """Return all rows that the filters leave, in order."""
        return Query(self.filters, self.sort, self.offset, len(rows)).select(rows)[1]

    def _sorted(self, rows: Sequence[Row]) -> list[Row]:
        end = self.offset + self.limit
        directions = {descending for _, descending in self.sort}
        if len(directions) == 1 and end < len(rows) // 8:
            chosen = heapq.nlargest if directions == {True} else heapq.nsmallest
            return chosen(end, rows, key=_key([place for place, _ in self.sort]))[self.offset :]
        ordered = list(rows)
        for place, descending in reversed(self.sort):
            ordered.sort(key=_key([place]), reverse=descending)
        return ordered[self.offset : end]


def _key(places: list[int]) -> Callable[[Row], Any]:
    rank = _RANK
    if len(places) == 1:
        place = places[0]

        def one(row: Row) -> Any:
            cell = row[place]
            return (rank[type(cell)], cell) if cell is not None else (0, 0)

        return one
    return lambda row: [(rank[type(row[place])], row[place] if row[place] is not None else 0) for place in places]


def _place(columns: Sequence[str], name: str, where: str) -> int:
    try:
        return columns.index(name)
    except ValueError:
        raise BadQuery(where, f"no column {name[:100]!a}; there are: {', '.join(columns)}") from None


def _filter(columns: Sequence[str], text: str) -> tuple[int, Callable[[Any, Any], bool], Any]:
    name, colon, rest = text.partition(":")
    how, second, value = rest.partition(":")
    if not (colon and second):
        raise BadQuery("filter", f"a filter is COLUMN:OPERATOR:VALUE, as in {columns[0]}:eq:1")
    place = _place(columns, name, "filter")
    if how not in OPERATORS:
        raise BadQuery("filter", f"no operator {how[:40]!a}; there are: {', '.join(OPERATORS)}")
    return place, OPERATORS[how], _value(value)


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _sort(columns: Sequence[str], text: str) -> tuple[int, bool]:
    return _place(columns, text.removeprefix("-"), "sort"), text.startswith("-")


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise BadQuery(name, f"a whole number from 0 to {most}")
    return int(text)
