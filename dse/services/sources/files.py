"""The `files` source: tables that are CSV, JSON or JSON Lines files, read again whenever they change.

Needs watchfiles (``pip install 'dse[files]'``), unless it polls.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dse.errors import ConfigError, MissingExtra
from dse.services.sources.base import Feed, Reading, Source
from dse.services.sources.columns import Columns
from dse.services.sources.filewatch import Watcher, have_watchfiles
from dse.services.sources.options import structs
from dse.services.sources.parsing import Layout, Rows, read_csv, read_json, read_json_lines

__all__ = ["FileTable", "Files"]

_SUFFIXES: Mapping[str, Literal["csv", "json", "jsonl"]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_READERS = {"csv": read_csv, "json": read_json, "jsonl": read_json_lines}
# A file that was written just now may be written again without its time or size becoming different.
_SETTLED = 0.1  # seconds

_Signature = tuple[tuple[str, int, int, int, int], ...]


class FileTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One table of `Files`.

    path: a file, or a pattern with ``*``, ``?``, ``[…]`` or ``**`` for several. columns: name -> type.
    format: by the suffix when not given. names: column -> the header (CSV) or key (JSON) it is called there, where that
    is not the column's own name. at: the JSON document's array of rows, as keys with dots between (``data.machines``).
    delimiter, encoding: of the text (JSON is UTF-8). header: whether CSV begins with one; without it the fields are the
    columns in order. max_bytes, max_rows: of all the table's files together; with more the table keeps its last rows.
    """

    path: Path
    columns: dict[str, str]
    format: Literal["csv", "json", "jsonl"] | None = None
    names: dict[str, str] = {}
    at: str = ""
    delimiter: str = ","
    encoding: str = "utf-8"
    header: bool = True
    max_bytes: int = 256 * 1024 * 1024
    max_rows: int = 2_000_000


class Files(Source):
    """Publishes files as tables.

    tables: name -> `FileTable`. watch: ``events`` reads a file when the system says that something happened to it,
    ``poll`` looks every `interval` seconds: for network mounts, whose events do not get here. lazy, max_backoff: as
    for `Source`. Raises `ConfigError`, and `MissingExtra` for ``events`` without watchfiles.
    """

    def __init__(
        self,
        service_id: str = "files",
        *,
        tables: Mapping[str, FileTable | Mapping[str, Any]],
        watch: Literal["events", "poll"] = "events",
        interval: float = 1.0,
        lazy: bool = False,
        max_backoff: float = 10.0,
    ) -> None:
        if watch not in ("events", "poll"):
            raise ConfigError(f"watch is events or poll, not {watch!r}", key=("watch",))
        if not interval > 0:
            raise ConfigError(f"interval is a positive number of seconds, not {interval!r}", key=("interval",))
        if watch == "events" and not have_watchfiles():
            raise MissingExtra(
                "the files source lacks its package (watchfiles cannot be imported); install it with: "
                "pip install 'dse[files]', or set watch to poll",
                extra="files",
            )
        feeds = [_feed(name, each, watch, interval) for name, each in structs(FileTable, "tables", tables).items()]
        super().__init__(service_id, feeds, lazy=lazy, max_backoff=max_backoff)


def _feed(name: str, table: FileTable, watch: str, interval: float) -> FileFeed:
    key = ("tables", name)
    kind = table.format or _SUFFIXES.get(table.path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"{name}: the format of {table.path} cannot be told from its suffix: say csv, json or jsonl",
            key=(*key, "format"),
        )
    try:
        columns = Columns(table.columns)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}", key=(*key, "columns", *error.key)) from None
    for column in table.names:
        if column not in columns.names:
            raise ConfigError(f"{name}: names: there is no column {column!r}", key=(*key, "names", column))
    if len(table.delimiter) != 1 or table.delimiter in '"\r\n':
        raise ConfigError(f"{name}: delimiter is one character, not {table.delimiter!r}", key=(*key, "delimiter"))
    try:
        "".encode(table.encoding)
        b"".decode(table.encoding)
    except LookupError:
        raise ConfigError(f"{name}: no encoding {table.encoding[:60]!r} is known", key=(*key, "encoding")) from None
    for option, limit in (("max_bytes", table.max_bytes), ("max_rows", table.max_rows)):
        if limit < 1:
            raise ConfigError(f"{name}: {option} is a positive number, not {limit}", key=(*key, option))
    layout = Layout(
        columns, {c: table.names.get(c, c) for c in columns.names}, table.at, table.delimiter, table.encoding,
        table.header,
    )  # fmt: skip
    return FileFeed(name, table, kind, layout, watch == "events", interval)


class FileFeed(Feed):
    """Reads the files of one table; between two looks it keeps only what tells whether they changed."""

    reopen = False  # the watcher goes on after a failure: it tells when the file is there

    def __init__(self, name: str, table: FileTable, kind: str, layout: Layout, events: bool, interval: float) -> None:
        super().__init__(name, layout.columns.names, interval=None if events else interval)
        self._path = str(table.path)
        self._pattern = glob.has_magic(self._path)
        self._read = _READERS[kind]
        self._layout = layout
        self._max_bytes, self._max_rows = table.max_bytes, table.max_rows
        self._last: _Signature | None = None
        self._watcher = Watcher(name, self._path, self._pattern, self.changed, interval) if events else None

    def open(self) -> None:
        self._last = None
        if self._watcher is not None:
            self._watcher.start()

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()

    def read(self) -> Reading | None:
        began = time.time()
        paths = self._paths()
        signature = _signature(paths)
        if signature == self._last:
            return None
        self._last = None
        size = sum(each[3] for each in signature)
        if size > self._max_bytes:
            raise ValueError(f"{self._path}: {size:,} bytes are over the limit (max_bytes) of {self._max_bytes:,}")
        rows = Rows(self._path, self._max_rows, self._max_bytes, lambda: self.interrupted)
        for path in paths:
            fd = _open_regular(path)
            with os.fdopen(fd, "rb") as file:
                try:
                    self._read(file, self._layout, path if self._pattern else self._path, rows)
                except OSError as error:
                    raise _named(path, error) from error
        if all(each[4] < (began - _SETTLED) * 1e9 for each in signature):
            self._last = signature
        return Reading(rows.rows, rows.problems, rows.left_out)

    def _paths(self) -> list[str]:
        if not self._pattern:
            return [self._path]
        paths = sorted(path for path in glob.iglob(self._path, recursive=True) if not os.path.isdir(path))
        if not paths and not os.path.isdir(base := pattern_base(self._path)):
            raise FileNotFoundError(f"{base}: there is no such folder")
        return paths


def pattern_base(pattern: str) -> str:
    """Return the folder above the first part of a pattern that is not just a name."""
    base = Path(pattern)
    while glob.has_magic(str(base)):
        base = base.parent
    return str(base)


def _signature(paths: list[str]) -> _Signature:
    """Return what is different when a file was changed or replaced; raise for one that is not there."""
    found = []
    for path in paths:
        try:
            info = os.stat(path)
        except OSError as error:
            raise _named(path, error) from None
        found.append((path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))
    return tuple(found)


def _open_regular(path: str) -> int:
    """Open a regular file; raise for anything else without waiting for it (a FIFO's writer, a device)."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
    except OSError as error:
        raise _named(path, error) from None
    raise OSError(f"{path}: is not a regular file")


def _named(path: str, error: OSError) -> OSError:
    if error.errno == errno.ENOENT:
        return FileNotFoundError(f"{path}: there is no such file")
    return OSError(f"{path}: {error.strerror or error}")
