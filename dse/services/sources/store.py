"""Rows that outlive their process, in an SQLite file that one process has to itself.

Each `commit` is one transaction, on the disk when it returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dse.core.messages import Row
from dse.errors import StorageError

__all__ = ["RowStore", "decode_row", "encode_row"]

_APPLICATION = 0x44534550  # "DSEP": in the file's header
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS columns (tbl TEXT PRIMARY KEY, spec TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (tbl TEXT NOT NULL, row BLOB NOT NULL, expires REAL, PRIMARY KEY (tbl, row)) WITHOUT ROWID;
"""  # noqa: E501

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[tuple[Any, ...]] = msgspec.msgpack.Decoder(tuple[Any, ...])


def encode_row(row: Row) -> bytes:
    """Return a row as bytes, the same for equal rows of typed columns."""
    return _encode([cell + 0.0 if type(cell) is float else cell for cell in row])  # -0.0 is 0.0


def decode_row(body: bytes) -> Row:
    """Return the row that `encode_row` was given."""
    return _decoder.decode(body)


class RowStore:
    """Rows of several tables in one file. Not thread-safe: its owner calls one method at a time.

    Every method raises `StorageError` that names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None

    def open(self, specs: Mapping[str, Mapping[str, str]]) -> None:
        """Make or open the file and lock it. specs: table -> its typed columns, which are to be those in the file."""
        with self._errors("cannot be opened"):
            self._db = sqlite3.connect(self.path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            with self._errors("cannot be used"):
                self._prepare(self._db, specs)
        except BaseException:
            self.close()
            raise

    def _prepare(self, db: sqlite3.Connection, specs: Mapping[str, Mapping[str, str]]) -> None:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN EXCLUSIVE")  # the lock is kept until the file is closed
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (things,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if things and application != _APPLICATION:
            raise StorageError(f"{self.path}: is an SQLite file of another program")
        if version > _VERSION:
            raise StorageError(f"{self.path}: was written by a newer version of DSE (format {version})")
        ((verdict,), *_) = db.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise StorageError(f"{self.path}: is damaged: {verdict}")
        db.execute(f"PRAGMA application_id={_APPLICATION}")
        db.execute(f"PRAGMA user_version={_VERSION}")
        for statement in _SCHEMA.strip().splitlines():
            db.execute(statement)
        kept = dict(db.execute("SELECT tbl, spec FROM columns").fetchall())
        for table, spec in specs.items():
            text = msgspec.json.encode(list(spec.items())).decode()
            if kept.setdefault(table, text) != text:
                raise StorageError(
                    f"{self.path}: holds the table {table!r} with other columns: {kept[table]}, not {text}; "
                    f"name another file, or move this one away"
                )
            db.execute("INSERT OR IGNORE INTO columns VALUES (?, ?)", (table, text))
        db.execute("COMMIT")

    def load(self, table: str) -> list[tuple[Row, float | None]]:
        """Return a table's rows, each with the time (seconds since 1970) it expires."""
        with self._errors("cannot be read"):
            found = self._open().execute("SELECT row, expires FROM cells WHERE tbl = ? ORDER BY expires", (table,))
            try:
                return [(decode_row(body), expires) for body, expires in found]
            except (msgspec.MsgspecError, TypeError) as error:
                raise StorageError(f"{self.path}: is damaged: a row of {table!r}: {error}") from None

    def commit(self, table: str, put: Iterable[tuple[bytes, float | None]], removed: Iterable[bytes]) -> None:
        """Remove rows, then put rows or their new expiry, as one transaction."""
        with self._errors("cannot be written"):
            db = self._open()
            try:
                db.execute("BEGIN")
                db.executemany("DELETE FROM cells WHERE tbl = ? AND row = ?", ((table, body) for body in removed))
                db.executemany(
                    "INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", ((table, body, expires) for body, expires in put)
                )
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; another process may have it."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise StorageError(f"{self.path}: is not open: the service does not run")
        return self._db

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            reason = "is in use by another process" if locked else f"{what}: {error}"
            raise StorageError(f"{self.path}: {reason}") from error
