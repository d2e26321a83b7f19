"""What a file holds: CSV, JSON and JSON Lines read into typed rows; what does not fit is noted with its place."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import msgspec

from dse.services.sources.base import Problem
from dse.services.sources.columns import Columns

__all__ = ["Layout", "Rows", "read_csv", "read_json", "read_json_lines"]

_PROBLEMS = 100  # kept of one look
_LINE = 1 << 20  # characters of a line; a longer one is left out
_EVERY = 1_000  # rows between two looks whether to go on


@dataclass(frozen=True)
class Layout:
    """How a table's files are written. names: column -> what it is called there."""

    columns: Columns
    names: Mapping[str, str]
    at: str = ""
    delimiter: str = ","
    encoding: str = "utf-8"
    header: bool = True


@dataclass
class Rows:
    """What was found so far, within limits. path: for messages. interrupted: whether to give up."""

    path: str
    max_rows: int
    max_bytes: int
    interrupted: Callable[[], bool] = lambda: False
    rows: set[tuple[Any, ...]] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    left_out: int = 0
    _seen: int = 0
    _size: int = 0

    def count(self) -> None:
        """Another row comes."""
        self._seen += 1
        if self._seen > self.max_rows:
            raise ValueError(f"{self.path}: holds over {self.max_rows:,} rows, the limit (max_rows)")
        if self._seen % _EVERY == 0 and self.interrupted():
            raise InterruptedError(f"{self.path}: interrupted")

    def measure(self, size: int) -> None:
        """So many more bytes or characters were read: a file may grow while it is read."""
        self._size += size
        if self._size > self.max_bytes:
            raise ValueError(f"{self.path}: is over the limit (max_bytes) of {self.max_bytes:,} bytes")

    def leave_out(self, place: str, what: str) -> None:
        """A row does not fit."""
        self.left_out += 1
        if len(self.problems) < _PROBLEMS:
            self.problems.append(Problem(place, what))


class _Lines:
    """The lines of a text, without those that are too long.

    number: of the last line that was read. first: of the first that was given since it was set to 0.
    """

    def __init__(self, text: io.TextIOBase, path: str, rows: Rows) -> None:
        self._text, self._path, self._rows = text, path, rows
        self.number = 0
        self.first = 0

    def __iter__(self) -> Iterator[str]:
        readline, rows = self._text.readline, self._rows
        while line := readline(_LINE):
            rows.measure(len(line))
            self.number += 1
            if len(line) == _LINE and not line.endswith(("\n", "\r")):
                while line and not line.endswith(("\n", "\r")):
                    line = readline(_LINE)
                    rows.measure(len(line))
                    if rows.interrupted():
                        raise InterruptedError(f"{self._path}: interrupted")
                rows.leave_out(f"{self._path}:{self.number}", f"the line is over the limit of {_LINE:,} characters")
                continue
            if not self.first:
                self.first = self.number
            yield line


@contextmanager
def _text(file: BinaryIO, encoding: str, path: str) -> Iterator[io.TextIOWrapper]:
    """Give the text of a file, which stays open."""
    utf8 = codecs.lookup(encoding).name == "utf-8"
    # Bytes that are no UTF-8 spoil their own cell only: columns refuse what they become.
    text = io.TextIOWrapper(
        file, encoding="utf-8-sig" if utf8 else encoding, errors="surrogateescape" if utf8 else "strict", newline=""
    )
    try:
        yield text
    except UnicodeError as error:
        raise ValueError(f"{path}: is not {encoding}: {getattr(error, 'reason', error)}") from None
    finally:
        text.detach()


def read_csv(file: BinaryIO, layout: Layout, path: str, rows: Rows) -> None:
    """Add the rows of a CSV file."""
    with _text(file, layout.encoding, path) as text:
        _read_csv(_Lines(text, path, rows), layout, path, rows)


def _read_csv(lines: _Lines, layout: Layout, path: str, rows: Rows) -> None:
    reader = csv.reader(iter(lines), delimiter=layout.delimiter)
    fields: list[str] | None = None if layout.header else [layout.names[name] for name in layout.columns.names]
    pick: list[tuple[str, int]] = [] if fields is None else list(zip(layout.columns.names, range(99999), strict=False))
    from_text, keep = layout.columns.from_text, rows.rows.add
    while True:
        lines.first = 0
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            rows.leave_out(f"{path}:{lines.first}", str(error))
            continue
        if not record:
            continue
        if fields is None:
            fields = record
            pick = _pick(fields, layout, path)
            continue
        rows.count()
        if len(record) != len(fields):
            rows.leave_out(f"{path}:{lines.first}", f"has {len(record)} fields, not {len(fields)}")
            continue
        try:
            keep(from_text({name: record[at] for name, at in pick}))
        except ValueError as error:
            rows.leave_out(f"{path}:{lines.first}", str(error))
    if fields is None:
        raise ValueError(f"{path}: is empty; it is to begin with a header")


def _pick(header: list[str], layout: Layout, path: str) -> list[tuple[str, int]]:
    """Return which field each column is."""
    pick = []
    for name in layout.columns.names:
        called = layout.names[name]
        if header.count(called) == 1:
            pick.append((name, header.index(called)))
        elif called in header:
            raise ValueError(f"{path}:1: the header has {called!r} twice")
        elif not layout.columns.optional(name):
            shown = ascii(", ".join(header))[:200]
            raise ValueError(f"{path}:1: the header has no {called!r}; it has: {shown}")
    return pick


def read_json_lines(file: BinaryIO, layout: Layout, path: str, rows: Rows) -> None:
    """Add the rows of a file with a JSON object a line."""
    with _text(file, layout.encoding, path) as text:
        lines = _Lines(text, path, rows)
        for line in lines:
            if line.strip():
                rows.count()
                _add(f"{path}:{lines.number}", partial(_decode, line), layout, rows)


def read_json(file: BinaryIO, layout: Layout, path: str, rows: Rows) -> None:
    """Add the rows of a JSON document: an array of objects, at its top or where `Layout.at` says."""
    body = file.read(rows.max_bytes + 1)
    rows.measure(len(body))
    try:
        document = _decode(body.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    at = ""
    for step in layout.at.split(".") if layout.at else ():
        at = f"{at}.{step}" if at else step
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        else:
            raise ValueError(f"{path}: there is nothing at {at!r}")
    if not isinstance(document, list):
        raise ValueError(f"{path}: {at or 'the document'} is to be an array of objects")
    for index, value in enumerate(document):
        rows.count()
        _add(f"{path}:{at}[{index}]", partial(_same, value), layout, rows)


def _decode(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("is not JSON that can be read: it is nested too deeply") from None


def _same(value: Any) -> Any:
    return value


def _add(place: str, get: Callable[[], Any], layout: Layout, rows: Rows) -> None:
    try:
        value = get()
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        rows.rows.add(layout.columns.from_values({name: value.get(key) for name, key in layout.names.items()}))
    except ValueError as error:
        rows.leave_out(place, str(error))
