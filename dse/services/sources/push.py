"""The `push` source: rows come in by RPC, and with `persist` outlive the process.

Rules:

1. A call is done whole or not at all: what does not fit is named by table, row and column, and nothing is published.
2. With `persist` a change is on the disk before it is published, and published before the call is answered. So a crash
   between the two loses nothing: after a restart the table is what was persisted, and the caller, who got no answer
   (`NodeLost`), may push again: every method is idempotent.
3. A row of a table with a `ttl` vanishes when it was not pushed again for so long, also over a restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dse.core.info import identifier
from dse.core.messages import Row
from dse.core.methods import rpc
from dse.core.rows import MAX_ROW
from dse.core.service import DataService
from dse.core.table import PublishedTable
from dse.errors import ConfigError, RowError, StorageError
from dse.services.sources.base import SourceState
from dse.services.sources.columns import Columns
from dse.services.sources.options import structs
from dse.services.sources.store import RowStore, encode_row

__all__ = ["Push", "PushTable"]

_log = logging.getLogger("dse.source")

_RETRY = 5.0  # seconds until rows that expired are removed, when the file could not be written

Pushed = list[Any] | dict[str, Any]


class PushTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One table of `Push`. columns: name -> type. ttl: seconds a row lives that is not pushed again; None: for ever.

    max_rows: of the table.
    """

    columns: dict[str, str]
    ttl: float | None = None
    max_rows: int = 2_000_000


class _Kept:
    """What is kept of one table beside its rows. expiry: row -> when (seconds since 1970), soonest first."""

    def __init__(self, name: str, options: PushTable, table: PublishedTable, columns: Columns) -> None:
        self.name, self.options, self.table, self.columns = name, options, table, columns
        self.expiry: dict[Row, float] = {}


class Push(DataService):
    """Publishes what others push.

    tables: name -> `PushTable`. persist: the file that keeps the rows; None: they go with the process. lazy: accepted
    as with every source; there is no work that could be left out. max_call_rows, max_call_bytes: of one call. Raises
    `ConfigError`; starting raises `StorageError` when the file is damaged, another's, or in use by another process.

    Lock: ``_lock`` protects ``_store`` and each table's rows and ``expiry``: one change at a time is stored and then
    published, so that both are in the same order.
    """

    def __init__(
        self,
        service_id: str = "push",
        *,
        tables: Mapping[str, PushTable | Mapping[str, Any]],
        persist: Path | None = None,
        lazy: bool = False,
        max_call_rows: int = 100_000,
        max_call_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        super().__init__(service_id)
        for option, limit in (("max_call_rows", max_call_rows), ("max_call_bytes", max_call_bytes)):
            if limit < 1:
                raise ConfigError(f"{option} is a positive number, not {limit}", key=(option,))
        self.lazy = lazy
        self._max_rows, self._max_bytes = max_call_rows, max_call_bytes
        self._lock = threading.Condition()
        self._stopping = False
        self._expirer: threading.Thread | None = None
        self._store = RowStore(Path(persist)) if persist is not None else None
        self._kept: dict[str, _Kept] = {}
        for name, options in structs(PushTable, "tables", tables).items():
            key = ("tables", name)
            if identifier("table name", name) == "status":
                raise ConfigError("status is the table in which a source says how it is: name yours differently")
            try:
                columns = Columns(options.columns)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}", key=(*key, "columns", *error.key)) from None
            if options.ttl is not None and not options.ttl > 0:
                raise ConfigError(f"{name}: ttl is a positive number of seconds, not {options.ttl}", key=(*key, "ttl"))
            if options.max_rows < 1:
                raise ConfigError(f"{name}: max_rows is a positive number", key=(*key, "max_rows"))
            table = self.add_table(name, *columns.names, pending=True)
            self._kept[name] = _Kept(name, options, table, columns)
        self._states = self.add_table(
            "status", "table", "state", "reason", rows=[(name, SourceState.IDLE.value, "") for name in self._kept]
        )

    # Life

    def on_start(self) -> None:
        """Load what was kept."""
        with self._lock:
            self._stopping = False
            if self._store is not None:
                self._store.open({name: kept.options.columns for name, kept in self._kept.items()})
            try:
                for kept in self._kept.values():
                    self._load(kept)
            except BaseException:
                if self._store is not None:
                    self._store.close()
                raise
            self._tell_all(SourceState.RUNNING)
        if any(kept.options.ttl is not None for kept in self._kept.values()):
            self._expirer = threading.Thread(target=self._expire, name=f"{self.service_id}-expiry", daemon=True)
            self._expirer.start()

    def on_stop(self) -> None:
        """Close the file."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        thread, self._expirer = self._expirer, None
        if thread is not None:
            thread.join()
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._tell_all(SourceState.IDLE)

    def _load(self, kept: _Kept) -> None:
        if self._store is None:
            kept.table.apply()  # in this process a table keeps its rows from one start to the next
            return
        loaded = self._store.load(kept.name)
        for row, _ in loaded:
            if len(row) != len(kept.columns.names):
                raise StorageError(f"{self._store.path}: is damaged: a row of {kept.name!r} has {len(row)} columns")
        try:
            kept.table.replace([row for row, _ in loaded])
        except RowError as error:
            raise StorageError(f"{self._store.path}: is damaged: {error}") from None
        ttl = kept.options.ttl
        now = time.time()
        kept.expiry = {}
        if ttl is not None:
            # Rows that were kept without a time to live have one from now on.
            times = [(row, now + ttl if expires is None else min(expires, now + ttl)) for row, expires in loaded]
            kept.expiry = dict(sorted(times, key=lambda pair: pair[1]))

    # For pushers

    @rpc(idempotent=True)
    def replace(self, table: str, rows: list[Pushed]) -> dict[str, Any]:
        """Make the table hold exactly these rows; return counts (added, removed, rows) and the version it led to."""
        kept = self._find(table)
        wanted = self._check(kept, rows)
        with self._lock:
            present = kept.table.rows
            return self._change(kept, wanted, [row for row in present if row not in wanted])

    @rpc(idempotent=True)
    def insert(self, table: str, rows: list[Pushed]) -> dict[str, Any]:
        """Add rows, as lists or as mappings of column to value; return as `replace` does."""
        return self.apply(table, added=rows)

    @rpc(idempotent=True)
    def delete(self, table: str, rows: list[Pushed]) -> dict[str, Any]:
        """Remove rows; those that are not there are no change. Return as `replace` does."""
        return self.apply(table, removed=rows)

    @rpc(idempotent=True)
    def apply(
        self, table: str, added: list[Pushed] | None = None, removed: list[Pushed] | None = None
    ) -> dict[str, Any]:
        """Remove rows and add rows as one change; a row in both is there afterwards. Return as `replace` does."""
        kept = self._find(table)
        put, gone = self._check(kept, added or (), "added "), self._check(kept, removed or (), "removed ")
        with self._lock:
            present = kept.table.rows
            return self._change(kept, put, [row for row in gone if row not in put and row in present])

    def _find(self, table: str) -> _Kept:
        kept = self._kept.get(table)
        if kept is None:
            raise LookupError(f"{self.service_id} has no table {table[:60]!r}; it has: {', '.join(self._kept)}")
        return kept

    def _check(self, kept: _Kept, rows: Sequence[Pushed], which: str = "") -> dict[Row, bytes]:
        """Return row -> the row as bytes; raise `RowError` that names the first that does not fit."""
        if len(rows) > self._max_rows:
            raise RowError(
                f"{kept.name}: {len(rows):,} {which}rows are over the limit (max_call_rows) of {self._max_rows:,}"
            )
        found: dict[Row, bytes] = {}
        size = 0
        for number, pushed in enumerate(rows, 1):
            try:
                row = _typed(kept.columns, pushed)
            except ValueError as error:
                raise RowError(f"{kept.name}: {which}row {number}: {error}", row=pushed) from None
            body = found[row] = encode_row(row)
            if len(body) > MAX_ROW:
                raise RowError(
                    f"{kept.name}: {which}row {number}: {len(body):,} bytes are over the limit of {MAX_ROW:,}"
                )
            size += len(body)
            if size > self._max_bytes:
                raise RowError(
                    f"{kept.name}: {which}row {number}: the rows until here are over the limit (max_call_bytes) of "
                    f"{self._max_bytes:,} bytes"
                )
        return found

    def _change(self, kept: _Kept, put: Mapping[Row, bytes], removed: Sequence[Row]) -> dict[str, Any]:
        """Store, then publish (the lock is held). removed: rows that are there and not in `put`."""
        if self._stopping:
            raise StorageError(f"{self.service_id}: is stopping; nothing was changed")
        table, ttl = kept.table, kept.options.ttl
        present = table.rows
        new = [row for row in put if row not in present]
        count = len(present) + len(new) - len(removed)
        if new and count > kept.options.max_rows:
            raise RowError(
                f"{kept.name}: would hold {count:,} rows, over the limit (max_rows) of {kept.options.max_rows:,}"
            )
        expires = time.time() + ttl if ttl is not None else None
        if self._store is not None and (new or removed or (put and ttl is not None)):
            stored: Iterable[Row] = put if ttl is not None else new
            try:
                self._store.commit(kept.name, ((put[row], expires) for row in stored), map(encode_row, removed))
            except StorageError as error:
                self._tell(kept.name, SourceState.DEGRADED, str(error))
                raise
            self._tell(kept.name, SourceState.RUNNING, "")
        for row in removed:
            kept.expiry.pop(row, None)
        if expires is not None:
            for row in put:
                kept.expiry.pop(row, None)
                kept.expiry[row] = expires
            self._lock.notify_all()
        change = table.apply(new, removed)
        return {
            "added": len(change.added),
            "removed": len(change.removed),
            "rows": count,
            "version": list(change.version),
        }

    # Rows that expire

    def _expire(self) -> None:
        """Remove rows when their time has come, until the service stops."""
        with self._lock:
            while not self._stopping:
                now, due = time.time(), float("inf")
                for kept in self._kept.values():
                    over = []
                    for row, expires in kept.expiry.items():
                        if expires > now:
                            due = min(due, expires - now)
                            break
                        over.append(row)
                    if over and not self._remove(kept, over):
                        due = min(due, _RETRY)
                self._lock.wait(None if due == float("inf") else min(due, 3600.0))

    def _remove(self, kept: _Kept, rows: Sequence[Row]) -> bool:
        try:
            self._change(kept, {}, rows)
        except StorageError as error:
            _log.warning("%s.%s: rows that expired stay: %s", self.service_id, kept.name, error)
            return False
        return True

    # Status

    @property
    def status(self) -> str:
        """As `DataService.status`, but ``degraded`` while a table's last change could not be stored."""
        status = super().status
        degraded = any(row[1] == SourceState.DEGRADED.value for row in self._states.rows)
        return "degraded" if status == "running" and degraded else status

    def _tell_all(self, state: SourceState) -> None:
        self._states.replace([(name, state.value, "") for name in self._kept])

    def _tell(self, table: str, state: SourceState, reason: str) -> None:
        row = (table, state.value, reason)
        if row not in self._states.rows:
            self._states.apply([row], [old for old in self._states.rows if old[0] == table])


def _typed(columns: Columns, pushed: Pushed) -> Row:
    names = columns.names
    if isinstance(pushed, Mapping):
        for name in pushed:
            if name not in names:
                raise ValueError(f"there is no column {str(name)[:60]!r}; there are: {', '.join(names)}")
        return columns.from_values(pushed)
    if len(pushed) != len(names):
        raise ValueError(f"has {len(pushed)} values, not {len(names)} ({', '.join(names)})")
    return columns.from_values(dict(zip(names, pushed, strict=True)))
