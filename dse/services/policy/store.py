"""What outlives the policy service: policies, rules, and for which rows their actions were called. A SQLite file.

One process at a time has the file. What is written is committed, and on the disk, before the method that writes it
returns: an action is written down as called before it is called, so that no crash leads to a second call.

Lock: ``_lock`` is held while the database is used.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from dse.core.info import identifier
from dse.core.messages import Row
from dse.errors import ConfigError

__all__ = ["ActionOptions", "Progress", "Store", "StoredRule"]

_SCHEMA = """
CREATE TABLE policy (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE rule (policy TEXT, name TEXT, sql TEXT NOT NULL, action TEXT, PRIMARY KEY (policy, name)) WITHOUT ROWID;
CREATE TABLE called (
    policy TEXT, rule TEXT, violation BLOB, progress TEXT NOT NULL, PRIMARY KEY (policy, rule, violation)
) WITHOUT ROWID;
"""
_VERSION = 1
_APPLICATION = 0x44534550  # "DSEP", in the file's header


class ActionOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What a rule calls for each new row.

    service, method: the RPC. args: argument -> column of the rule; without it each column is an argument of its name.
    constants: arguments that are the same for every row. timeout: seconds of one call. retry: call again, with growing
    pauses, until it succeeds or the row is gone; without it a row is called for once at most.
    """

    service: str
    method: str
    args: dict[str, str] | None = None
    constants: dict[str, Any] = {}
    timeout: float = 10.0
    retry: bool = False

    def check(self, columns: Collection[str] | None = None) -> None:
        """Raise `ConfigError` for what cannot be; with the columns of the rule, also for one that it does not have."""
        identifier("service_id", self.service)
        identifier("RPC method's name", self.method)
        if not 0 < self.timeout <= 3600:
            raise ConfigError(f"an action's timeout is up to 3600 seconds, not {self.timeout:g}", key=("timeout",))
        for argument, column in (self.args or {}).items():
            if argument in self.constants:
                raise ConfigError(f"the argument {argument!r} is in args and in constants", key=("args", argument))
            if columns is not None and column not in columns:
                raise ConfigError(
                    f"the action's argument {argument!r} is to be the column {column!r}; the rule has: "
                    f"{', '.join(columns)}",
                    key=("args", argument),
                )

    def arguments(self, columns: Iterable[str], row: Row) -> dict[str, Any]:
        """Return the arguments of the call for a row."""
        cells = dict(zip(columns, row, strict=True))
        if self.args is None:
            return {**self.constants, **cells}
        return {**self.constants, **{argument: cells[column] for argument, column in self.args.items()}}


class Progress(StrEnum):
    """How far the call for a row has come."""

    WAITING = "waiting"  # surely not called yet
    CALLED = "called"  # may have been called, or is being
    DONE = "done"  # called, and it returned
    FAILED = "failed"  # called, and it raised or did not answer


class StoredRule(msgspec.Struct, frozen=True):
    """A rule as it was inserted."""

    policy: str
    name: str
    sql: str
    action: ActionOptions | None = None


class Store:
    """See the top of this file. `path` None: in memory, gone with the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it; raise `ConfigError` if another process has it, it is damaged or not writable."""
        with self._lock:
            try:
                self._db = self._connect()
            except (sqlite3.Error, OSError) as error:
                raise self._explain(error) from error

    def close(self) -> None:
        """Give up the file; idempotent."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _connect(self) -> sqlite3.Connection:
        path = ":memory:" if self._path is None else os.fspath(self._path)
        db = sqlite3.connect(path, timeout=0.5, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN EXCLUSIVE")
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={_VERSION}")
                db.execute(f"PRAGMA application_id={_APPLICATION}")
            elif application != _APPLICATION:
                raise ConfigError(f"store: {path} is a SQLite file of something else", key=("store",))
            elif version != _VERSION:
                raise ConfigError(
                    f"store: {path} was written by another release (form {version}, not {_VERSION})", key=("store",)
                )
            elif (damage := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise ConfigError(f"store: {path} is damaged: {damage}", key=("store",))
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _explain(self, error: Exception) -> ConfigError:
        text = str(error)
        if "locked" in text or "busy" in text:
            text = "another process has it"
        elif "not a database" in text or "malformed" in text:
            text = f"it is damaged, or no SQLite file ({text})"
        return ConfigError(f"store: {self._path}: {text}", key=("store",))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._db is None:
                raise ConfigError(f"store: {self._path or 'it'} is closed")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._explain(error) from error

    # Policies and rules

    def load(self) -> tuple[list[str], list[StoredRule]]:
        """Return the policies, and the rules of all."""
        with self._writing() as db:
            policies = [name for (name,) in db.execute("SELECT name FROM policy ORDER BY name")]
            rules = []
            for policy, name, sql, action in db.execute("SELECT policy, name, sql, action FROM rule"):
                options = None if action is None else msgspec.json.decode(action, type=ActionOptions)
                rules.append(StoredRule(policy, name, sql, options))
            return policies, rules

    def add_policy(self, name: str) -> None:
        """Keep a policy."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO policy VALUES (?)", (name,))

    def delete_policy(self, name: str) -> None:
        """Forget a policy with its rules, and what was called for them."""
        with self._writing() as db:
            db.execute("DELETE FROM policy WHERE name = ?", (name,))
            db.execute("DELETE FROM rule WHERE policy = ?", (name,))
            db.execute("DELETE FROM called WHERE policy = ?", (name,))

    def add_rule(self, rule: StoredRule) -> None:
        """Keep a rule."""
        action = None if rule.action is None else msgspec.json.encode(rule.action).decode()
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO rule VALUES (?, ?, ?, ?)", (rule.policy, rule.name, rule.sql, action))

    def delete_rule(self, policy: str, name: str, *, keep_called: bool = False) -> None:
        """Forget a rule, and what was called for its rows unless that is to be kept."""
        with self._writing() as db:
            db.execute("DELETE FROM rule WHERE policy = ? AND name = ?", (policy, name))
            if not keep_called:
                db.execute("DELETE FROM called WHERE policy = ? AND rule = ?", (policy, name))

    # Calls

    def called(self, policy: str, rule: str) -> dict[Row, Progress]:
        """Return how far the calls for a rule's rows had come."""
        with self._writing() as db:
            found = db.execute("SELECT violation, progress FROM called WHERE policy = ? AND rule = ?", (policy, rule))
            return {tuple(msgspec.msgpack.decode(row)): Progress(progress) for row, progress in found}

    def mark(self, policy: str, rule: str, rows: Mapping[Row, Progress], gone: Collection[Row] = ()) -> None:
        """Write down how far the calls for rows have come, and forget rows that are gone, at once."""
        with self._writing() as db:
            db.executemany(
                "DELETE FROM called WHERE policy = ? AND rule = ? AND violation = ?",
                [(policy, rule, msgspec.msgpack.encode(row)) for row in gone],
            )
            db.executemany(
                "INSERT OR REPLACE INTO called VALUES (?, ?, ?, ?)",
                [(policy, rule, msgspec.msgpack.encode(row), progress.value) for row, progress in rows.items()],
            )
