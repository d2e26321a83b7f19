"""The embedded engine: SQLite in memory, which holds the tables that rules read, and runs what rules say.

SQLite because its cells are typed one by one, as DSE's are; `docs/policy.md` has what was measured. What it cannot hold
is written so that it comes back: an integer over 63 bits is a tagged BLOB (such are greater than all other integers,
and ordered among themselves), true and false are 1 and 0, which equal them.

A statement can read the tables it was given, call functions that only look at their arguments, and nothing else: an
authorizer refuses every other action, and limits bound length, depth, time and rows.

Not thread-safe: one thread owns it.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dse.core.messages import Row
from dse.services.policy.errors import PolicyError, Stopped
from dse.services.policy.sql import Key, Statement, quoted

__all__ = ["Compiled", "Engine", "Limits"]

_TAG = b"\0dse:uint64\0"  # before an integer that SQLite has no room for
_INDEXES = 8  # at most on a table
_CHECK = 1_000  # steps of SQLite's machine between looks at the clock
_FETCH = 2_000
_LONGEST_VALUE = 2 << 20  # bytes; a row of a table is no longer than half of that
_AUTOMATIC = re.compile(r"^(?:SEARCH|SCAN) (\S+) USING AUTOMATIC (?:PARTIAL )?(?:COVERING )?INDEX \((.*)\)")
_CONDITION = re.compile(r"(?:^| AND )(.*?)[=<>]\?")

# Reads the world, changes with nothing having changed, or is SQLite's own.
_FORBIDDEN = frozenset(
    {
        "load_extension",
        "readfile",
        "writefile",
        "edit",
        "fts3_tokenizer",
        "random",
        "randomblob",
        "zeroblob",
        "changes",
        "total_changes",
        "last_insert_rowid",
        "sqlite_compileoption_get",
        "sqlite_compileoption_used",
        "sqlite_log",
        "sqlite_source_id",
        "sqlite_offset",
        "current_date",
        "current_time",
        "current_timestamp",
    }
)


@dataclass(frozen=True)
class Limits:
    """What a statement may use: seconds of time, and rows that it returns."""

    seconds: float
    rows: int


_COMPILE = Limits(5.0, 0)


@dataclass
class _Table:
    """A table that is loaded: its rows and the number of each, which is that of its row in SQLite."""

    name: str
    columns: tuple[str, ...]
    number: str  # the name by which SQL reaches a row's number: one that no column has
    numbers: dict[Row, int] = field(default_factory=dict)
    next: int = 1
    indexes: set[tuple[str, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class Compiled:
    """A statement as the engine runs it. steps: for each table that it can follow row by row, what one row gives."""

    whole: str
    columns: tuple[str, ...]
    tables: frozenset[Key]
    steps: Mapping[Key, str]


class Engine:
    """See the top of this file."""

    def __init__(self) -> None:
        # Statements are kept compiled; each rule has a few.
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None, cached_statements=1024)
        self._db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for what, most in (
            (sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE),
            (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 500),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
            (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
        ):
            self._db.setlimit(what, most)
        self._db.execute("PRAGMA temp_store=MEMORY")
        self._db.execute("PRAGMA trusted_schema=OFF")
        self._tables: dict[Key, _Table] = {}
        self._names: dict[str, Key] = {}
        self._named = 0
        self._prefix = f"dse_{secrets.token_hex(4)}_"  # so that no WITH name of a rule is one of ours
        self._journal: list[tuple[Key, Row | None, int | None]] | None = None  # what `supposing` is to undo
        self._large = False  # whether an integer over 63 bits was ever stored
        self._denied = ""
        self._allowed: frozenset[Key] | None = None  # of the statement that runs; None: one of our own
        self._steps = False
        self._limits = _COMPILE
        self._deadline = 0.0
        self._db.set_authorizer(self._authorize)
        self._db.set_progress_handler(self._late, _CHECK)

    def close(self) -> None:
        """Forget everything."""
        self._db.close()
        self._tables.clear()

    # Tables

    def keys(self) -> set[Key]:
        """Return the tables that are loaded."""
        return set(self._tables)

    def columns(self, key: Key) -> tuple[str, ...] | None:
        """Return the columns of a table that is loaded, or None."""
        table = self._tables.get(key)
        return table.columns if table is not None else None

    def rows(self, key: Key) -> Collection[Row]:
        """Return the rows of a table that is loaded."""
        return self._tables[key].numbers.keys()

    def add(self, key: Key, columns: tuple[str, ...]) -> None:
        """Make a table; raise `PolicyError` for one that SQL cannot name."""
        lower = [column.lower() for column in columns]
        for index, column in enumerate(lower):
            if column in lower[:index]:
                other = columns[lower.index(column)]
                raise PolicyError(
                    f"{'.'.join(key)}: SQL cannot tell the columns {other!r} and {columns[index]!r} apart, which "
                    "differ only in case"
                )
        number = next((name for name in ("rowid", "oid", "_rowid_") if name not in lower), None)
        if number is None:
            raise PolicyError(
                f"{'.'.join(key)}: it has columns named rowid, oid and _rowid_, and one must be left free"
            )
        self._named += 1
        name = f"{self._prefix}{self._named}"
        self._db.execute(f"CREATE TABLE {name} ({', '.join(map(quoted, columns))})")
        self._tables[key] = _Table(name, columns, number)
        self._names[name] = key
        if self._journal is not None:
            self._journal.append((key, None, None))

    def drop(self, key: Key) -> None:
        """Forget a table."""
        table = self._tables.pop(key, None)
        if table is not None:
            del self._names[table.name]
            self._db.execute(f"DROP TABLE {table.name}")

    def apply(self, key: Key, added: Collection[Row], removed: Collection[Row]) -> None:
        """Remove rows and add rows; what is not there, or is, is left."""
        table, journal = self._tables[key], self._journal
        with self._transaction():
            if removed:
                there = [(row, number) for row in removed if (number := table.numbers.pop(row, None)) is not None]
                gone = [(number,) for _, number in there]
                if journal is not None:
                    journal += [(key, row, number) for row, number in there]
                self._db.executemany(f"DELETE FROM {table.name} WHERE {table.number} = ?", gone)
            if added:
                if journal is not None:
                    journal += [(key, row, None) for row in added if row not in table.numbers]
                self._db.executemany(
                    f"INSERT INTO {table.name} ({table.number}, {', '.join(map(quoted, table.columns))}) "
                    f"VALUES (?{', ?' * len(table.columns)})",
                    self._number(table, added),
                )

    def _number(self, table: _Table, rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
        numbers, number = table.numbers, table.next
        for row in rows:
            if row in numbers:
                continue
            numbers[row] = number
            cells: tuple[Any, ...] = row
            for cell in row:
                if type(cell) is int and cell >= 1 << 63:
                    cells = tuple(map(_stored, row))
                    self._large = True
                    break
            yield (number, *cells)
            number += 1
        table.next = number

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        nested = self._db.in_transaction
        if not nested:
            self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            if not nested:
                self._db.execute("ROLLBACK")
            raise
        else:
            if not nested:
                self._db.execute("COMMIT")

    @contextmanager
    def supposing(self) -> Iterator[None]:
        """Undo in the end whatever is done to tables meanwhile."""
        self._db.execute("BEGIN")
        journal: list[tuple[Key, Row | None, int | None]] = []
        self._journal = journal
        try:
            yield
        finally:
            self._journal = None
            self._db.execute("ROLLBACK")
            for key, row, number in reversed(journal):
                if row is None:
                    table = self._tables.pop(key)
                    del self._names[table.name]
                elif number is None:
                    self._tables[key].numbers.pop(row, None)
                else:
                    self._tables[key].numbers[row] = number

    # Statements

    def compile(self, statement: Statement) -> Compiled:
        """Check a statement against the tables, all of which are loaded; raise `PolicyError` saying what is wrong."""
        whole = statement.render(self._name)
        columns = self._check(statement, whole)
        steps = {}
        for key in statement.in_steps:
            steps[key] = statement.render(self._name, key, self._tables[key].number)
        compiled = Compiled(whole, columns, statement.tables, steps)
        if self._journal is None:  # else it would be undone
            for name, column in sorted(statement.compared):
                for key in sorted(statement.named(name)):
                    if column in self._tables[key].columns:
                        self._index(key, (column,))
            for text in (whole, *steps.values()):
                self._index_for(compiled, text)
        return compiled

    def run(self, compiled: Compiled, limits: Limits) -> list[Row]:
        """Return all rows of the result, as often as they come; raise `Stopped` or `PolicyError`."""
        return self._select(compiled.tables, compiled.whole, (), limits)

    def step(self, compiled: Compiled, key: Key, rows: Collection[Row], limits: Limits) -> Counter[Row]:
        """Return how often each row of the result comes from these rows of a table, which are in it."""
        table, text = self._tables[key], compiled.steps[key]
        found: Counter[Row] = Counter()
        for row in rows:
            number = table.numbers.get(row)
            if number is not None:
                found.update(self._select(compiled.tables, text, (number,), limits))
        return found

    def _name(self, key: Key) -> str:
        return self._tables[key].name

    def _check(self, statement: Statement, whole: str) -> tuple[str, ...]:
        with self._only(statement.tables, _COMPILE):
            cursor = self._execute(f"SELECT * FROM (\n{whole}\n) LIMIT 0")
            columns = tuple(column[0] for column in cursor.description or ())
            cursor.close()
        for index, column in enumerate(columns):
            name, colon, number = column.rpartition(":")
            if colon and number.isdigit() and name in columns:  # SQLite's way to tell two of one name apart
                raise PolicyError(f"two columns of the result are named {name}: give one another name with AS")
            if not column.isidentifier():
                raise PolicyError(f"column {index + 1} of the result, {column[:60]}, needs a name: {column[:60]} AS …")
        return columns

    def _select(self, tables: frozenset[Key], text: str, parameters: tuple[object, ...], limits: Limits) -> list[Row]:
        rows: list[Row] = []
        with self._only(tables, limits, steps=bool(parameters)):
            cursor = self._execute(text, parameters)
            try:
                while part := cursor.fetchmany(_FETCH):
                    rows += part
                    if len(rows) > limits.rows:
                        raise Stopped(f"stopped: it returns more than {limits.rows:,} rows")
            except sqlite3.Error as error:
                raise self._explain(error) from None
            finally:
                cursor.close()
        return [tuple(map(_loaded, row)) for row in rows] if self._large else rows

    def _execute(self, text: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(text, parameters)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> PolicyError:
        """Return what the statement did wrong, in terms of whoever wrote it."""
        text = str(error)
        if self._denied:
            return PolicyError(f"not allowed: {self._denied}")
        if "interrupted" in text:
            return Stopped(f"stopped: it ran for more than {self._limits.seconds:g} s")
        tables = sorted(self._allowed or ())
        for key in tables:
            text = re.sub(rf"\b(?:main\.)?{self._tables[key].name}\b", ".".join(key), text)
        if text.startswith("no such column"):
            known = "; ".join(f"{'.'.join(key)} has {', '.join(self._tables[key].columns)}" for key in tables)
            text = f"{text}; {known}" if known else text
        elif text.startswith("no such table"):
            text = f"{text}: a table is named service.table"
        return PolicyError(text)

    @contextmanager
    def _only(self, tables: frozenset[Key], limits: Limits, *, steps: bool = False) -> Iterator[None]:
        """What runs now may read these tables, for so long; with `steps` also the numbers of their rows."""
        self._allowed, self._steps, self._denied = tables, steps, ""
        self._limits, self._deadline = limits, time.monotonic() + limits.seconds
        try:
            yield
        finally:
            self._allowed = None

    def _late(self) -> int:
        return self._allowed is not None and time.monotonic() > self._deadline

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, inner: str | None
    ) -> int:
        allowed = self._allowed
        if allowed is None or action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            # Not called for the columns of a WITH or a subquery, but for one of which none is read, as in count(*).
            key = self._names.get(first or "")
            if key is None and second == "" and not (first or "").startswith(("sqlite_", "pragma_")):
                return sqlite3.SQLITE_OK
            if key in allowed and self._readable(key, second or ""):
                return sqlite3.SQLITE_OK
            self._denied = f"reading {second} of {'.'.join(key)}" if key is not None else f"reading {first}"
        elif action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() not in _FORBIDDEN:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second}"
        else:
            self._denied = "PRAGMA" if action == sqlite3.SQLITE_PRAGMA else "anything but reading tables"
        return sqlite3.SQLITE_DENY

    def _readable(self, key: Key | None, column: str) -> bool:
        if key is None:
            return False
        return column == "" or column in self._tables[key].columns or (self._steps and column == "ROWID")

    def _index_for(self, compiled: Compiled, text: str) -> None:
        """Make for good what SQLite would make anew each time: the indexes by which it joins."""
        parameters = (0,) if text is not compiled.whole else ()
        with self._only(compiled.tables, _COMPILE, steps=True):
            plan = self._execute(f"EXPLAIN QUERY PLAN {text}", parameters).fetchall()
        for *_, detail in plan:
            match = _AUTOMATIC.match(detail)
            columns = tuple(_CONDITION.findall(match[2])) if match is not None else ()
            for key in compiled.tables if columns else ():
                if set(columns) <= set(self._tables[key].columns):
                    self._index(key, columns)

    def _index(self, key: Key, columns: tuple[str, ...]) -> None:
        table = self._tables[key]
        if columns not in table.indexes and len(table.indexes) < _INDEXES:
            table.indexes.add(columns)
            name = f"{table.name}i{len(table.indexes)}"
            self._db.execute(f"CREATE INDEX {name} ON {table.name} ({', '.join(map(quoted, columns))})")


def _stored(cell: Any) -> Any:
    return _TAG + cell.to_bytes(8, "big") if type(cell) is int and cell >= 1 << 63 else cell


def _loaded(cell: Any) -> Any:
    if type(cell) is bytes and len(cell) == len(_TAG) + 8 and cell.startswith(_TAG):
        return int.from_bytes(cell[-8:], "big")
    return cell
