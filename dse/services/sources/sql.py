"""`Sql`: tables filled by queries to a database, over any SQLAlchemy URL.

Each table has a connection of its own, so that a query that hangs holds up no other. A query runs in a transaction that
is rolled back, and that is read only where the database knows such (PostgreSQL, SQLite). A failure closes the
connection; the next try makes a new one. What is shown to anybody has the URL's secrets taken out.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import pathlib
import socket
import sqlite3
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from dse.errors import ConfigError, DseError, MissingExtra
from dse.services.sources.base import Feed, Problem, Reading, Source
from dse.services.sources.columns import Columns

try:
    import sqlalchemy
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise MissingExtra("the service sql needs SQLAlchemy: pip install 'dse[sql]'", extra="sql") from error

__all__ = ["Sql", "SqlError", "SqlTable"]

_CONNECT = 4  # seconds; less than stopping waits for a read, for connecting cannot be interrupted
_GRACE = 1.0  # seconds by which the client waits longer than the server, which can say more of what happened
_BATCH = 1000  # rows fetched at once
_PROBLEMS = 100
_WITH_CONNECT_TIMEOUT = frozenset({"psycopg", "psycopg2", "pymysql", "mysqldb"})


class SqlError(DseError):
    """A query that failed. Its text names the table, and holds no secret."""


class SqlTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One table: what to ask, and how often.

    query: one statement that returns rows. columns: name -> type, as in `Columns`; the query may return more. interval:
    seconds between looks. changed_when: a query, cheap to answer; while it gives what it gave the last time, `query` is
    not run. timeout: seconds that a look may take. max_rows: more are a failure.
    """

    query: str
    columns: dict[str, str]
    interval: float = 5.0
    changed_when: str | None = None
    timeout: float = 30.0
    max_rows: int = 1_000_000


class Sql(Source):
    """See the top of this file.

    url: as SQLAlchemy takes it; a SQLite file is opened read only. tables: name -> `SqlTable`. lazy, max_backoff: as in
    `Source`. Raises `ConfigError` for what cannot be, also for a database whose driver is not installed.
    """

    def __init__(
        self, service_id: str, *, url: str, tables: dict[str, SqlTable], lazy: bool = False, max_backoff: float = 60.0
    ) -> None:
        database = _Database(url)
        feeds = [_SqlFeed(name, table, database) for name, table in tables.items()]
        if not feeds:
            raise ConfigError("a source has at least one table", key=("tables",))
        super().__init__(service_id, feeds, lazy=lazy, max_backoff=max_backoff)


class _Database:
    """How to connect, and what never to show."""

    def __init__(self, url: str) -> None:
        try:
            self._url = sqlalchemy.make_url(url)
            dialect = self._url.get_dialect()
        except (sqlalchemy.exc.NoSuchModuleError, ImportError):
            raise ConfigError(
                f"SQLAlchemy knows no database {self._url.drivername!r}: its dialect may be a package to install",
                key=("url",),
            ) from None
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise ConfigError(
                "url is not a database URL such as postgresql+psycopg://user:password@host/name or sqlite:////a/file.db",
                key=("url",),
            ) from None
        if getattr(dialect, "is_async", False):
            raise ConfigError(f"{self._url.drivername} is for asyncio: name a driver that is not", key=("url",))
        try:
            dialect.import_dbapi()
        except ImportError as error:
            package = error.name or dialect.driver
            raise ConfigError(
                f"{self._url.drivername} needs the Python package {package}, which is not installed", key=("url",)
            ) from None
        self.kind = self._url.get_backend_name()
        self._secrets = _secrets_of(self._url)
        options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
        self._creator: Callable[[], Any] | None = (
            None  # not SQLAlchemy's option of that name: do_connect is to be called
        )
        path = self._url.database
        if self.kind == "sqlite" and path and path != ":memory:" and not self._url.query:
            self._creator = lambda: _open_sqlite(path)
        elif dialect.driver in _WITH_CONNECT_TIMEOUT and "connect_timeout" not in self._url.query:
            options["connect_args"] = {"connect_timeout": _CONNECT}
        self._options = options

    def engine(self, connected: Callable[[Any], None]) -> sqlalchemy.Engine:
        """Return a new engine; connected is called with each connection of the driver, before it is used."""
        engine = sqlalchemy.create_engine(self._url, **self._options)

        @sqlalchemy.event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
            raw = self._creator() if self._creator is not None else dialect.connect(*args, **options)
            connected(raw)
            return raw

        return engine

    def clean(self, text: str) -> str:
        """Take the secrets out of a text."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _secrets_of(url: sqlalchemy.URL) -> list[str]:
    plain = [url.password or ""]
    for name, value in url.query.items():
        if any(word in name.lower() for word in ("pass", "secret", "token", "pwd", "odbc_connect")):
            plain += [value] if isinstance(value, str) else list(value)
    shapes = {shape for text in plain for shape in (text, urllib.parse.quote(text), urllib.parse.quote_plus(text))}
    return sorted((shape for shape in shapes if shape), key=len, reverse=True)


def _open_sqlite(path: str) -> sqlite3.Connection:
    """Open a file that must be there: without mode=ro SQLite would make an empty one."""
    where = pathlib.Path(path).absolute().as_uri()
    return sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=2.0, check_same_thread=False)


class _SqlFeed(Feed):
    """Lock: ``_lock`` protects ``_raw``, ``_busy`` and ``_cut``.

    Shutting the connection down happens under it, so that the file descriptor cannot be another's by then.
    """

    def __init__(self, name: str, table: SqlTable, database: _Database) -> None:
        key = ("tables", name)
        try:
            self._columns = Columns(table.columns)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}", key=(*key, "columns", *error.key)) from None
        for option, value in (("timeout", table.timeout), ("interval", table.interval), ("max_rows", table.max_rows)):
            if not value > 0:
                raise ConfigError(f"{name}: {option} is a positive number, not {value!r}", key=(*key, option))
        for option, text in (("query", table.query), ("changed_when", table.changed_when)):
            if text is not None and not text.strip():
                raise ConfigError(f"{name}: {option} is empty", key=(*key, option))
        super().__init__(name, self._columns.names, interval=table.interval)
        self._table = table
        self._database = database
        self._engine = database.engine(self._connected)
        self._connection: sqlalchemy.Connection | None = None
        self._token: Sequence[Any] | None = None  # what changed_when gave when the rows were read
        self._lock = threading.Lock()
        self._raw: Any = None
        self._busy = False
        self._cut = False

    def open(self) -> None:
        """Connect."""
        self._token = None
        with self._watched():
            connection = self._connection = self._engine.connect()
            if self._database.kind == "sqlite":
                self._run("PRAGMA query_only = ON").close()
            elif self._database.kind == "postgresql":
                self._run("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").close()
                self._run(f"SET SESSION statement_timeout = {max(1, int(self._table.timeout * 1000))}").close()
                connection.commit()  # the settings only: a rollback would take them back

    def read(self) -> Reading | None:
        """Ask, in a transaction that is rolled back."""
        assert self._connection is not None
        with self._watched():
            try:
                return self._ask()
            finally:
                self._connection.rollback()

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            self._raw = None
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()  # closes without asking a server that may hang
            connection.close()
        except Exception:
            pass  # it is gone already

    def interrupt(self) -> None:
        """End what runs, by the driver's means or by shutting its connection down."""
        with self._lock:
            if not self._busy:
                return
            self._cut = True
            self._shut()

    def _connected(self, raw: Any) -> None:
        with self._lock:
            self._raw = raw
            if self._cut:
                self._shut()

    def _shut(self) -> None:
        try:
            if hasattr(self._raw, "interrupt"):
                self._raw.interrupt()
            elif hasattr(self._raw, "fileno"):
                with socket.socket(fileno=os.dup(self._raw.fileno())) as line:
                    line.shutdown(socket.SHUT_RDWR)
        except Exception:
            pass  # closed already

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Have what runs interrupted when it takes too long."""
        with self._lock:
            self._busy, self._cut = True, False
        timer = threading.Timer(self._table.timeout + _GRACE, self.interrupt)
        timer.name, timer.daemon = f"{self.name}-sql-deadline", True
        timer.start()
        try:
            with self._said():
                if self.interrupted:  # asked after _cut, which forgets an interruption
                    raise SqlError(f"{self.name}: interrupted")
                yield
        finally:
            timer.cancel()
            timer.join()
            with self._lock:
                self._busy = False

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Turn what SQLAlchemy and the driver raise into an error without secrets, and without what caused it."""
        try:
            yield
        except SqlError:
            raise
        except Exception as error:
            if self._cut:
                what = f"no answer within {self._table.timeout:g} s; the query was cancelled"
            else:
                cause = getattr(error, "orig", None) or error
                what = self._database.clean(str(cause).strip()) or type(cause).__name__
            raise SqlError(f"{self.name}: {what}") from None

    def _ask(self) -> Reading | None:
        token = None
        if self._table.changed_when is not None:
            with self._run(self._table.changed_when) as result:
                token = [tuple(row) for row in result.fetchmany(_BATCH)]
            if token == self._token:
                return None
        if self._database.kind == "postgresql":
            # A cursor of the server's, which holds the rows until they are fetched, and takes nothing but a SELECT.
            self._run(f"DECLARE dse_rows NO SCROLL CURSOR FOR {self._table.query.strip().rstrip(';')}").close()
            reading = self._rows(lambda: self._run(f"FETCH {_BATCH} FROM dse_rows"), again=True)
        else:
            reading = self._rows(lambda: self._run(self._table.query, stream_results=True), again=False)
        self._token = token  # taken before the rows: what changed in between is seen the next time
        return reading

    def _rows(self, ask: Callable[[], sqlalchemy.CursorResult[Any]], *, again: bool) -> Reading:
        """Make rows of what ask gives; with again it is asked until it gives no more."""
        rows: list[tuple[Any, ...]] = []
        problems: list[Problem] = []
        kinds = {name: kind.removesuffix("?") for name, kind in self._table.columns.items()}
        left_out = 0
        for number, (places, row) in enumerate(_each(ask, self._places, again), 1):
            if number > self._table.max_rows:
                raise SqlError(f"{self.name}: the query gives more than max_rows = {self._table.max_rows} rows")
            try:
                cells = {name: plain(row[at], kinds[name]) for name, at in places}
                rows.append(self._columns.from_values(cells))
            except ValueError as error:
                left_out += 1
                if len(problems) < _PROBLEMS:
                    problems.append(Problem(f"{self.name} row {number}", str(error)))
        return Reading(rows, problems, left_out)

    def _places(self, result: sqlalchemy.CursorResult[Any]) -> list[tuple[str, int]]:
        if not result.returns_rows:
            raise SqlError(f"{self.name}: the query returns no rows; it is to be a SELECT")
        names = list(result.keys())
        for name in self.columns:
            if names.count(name) != 1:
                how = "no" if name not in names else "more than one"
                raise SqlError(f"{self.name}: the query gives {how} column {name!r} (AS names one); it gives: {names}")
        return [(name, names.index(name)) for name in self.columns]

    def _run(self, statement: str, **options: Any) -> sqlalchemy.CursorResult[Any]:
        # Without parameters: a % or :name in the statement is the user's own.
        assert self._connection is not None
        return self._connection.exec_driver_sql(statement, execution_options={"no_parameters": True, **options})


def _each(
    ask: Callable[[], sqlalchemy.CursorResult[Any]],
    places_of: Callable[[sqlalchemy.CursorResult[Any]], list[tuple[str, int]]],
    again: bool,
) -> Iterator[tuple[list[tuple[str, int]], Sequence[Any]]]:
    while True:
        found = False
        with ask() as result:
            places = places_of(result)
            while batch := result.fetchmany(_BATCH):
                found = True
                for row in batch:
                    yield places, row
        if not (again and found):
            return


def plain(value: Any, kind: str) -> Any:
    """Return a database's value as the column's type can take it.

    Times are ISO 8601 text, in a ``float`` column a duration is seconds; a Decimal is a number, or exact text in a
    ``str`` column; a UUID is text; an enum is its value; 0 and 1 are truth values in a ``bool`` column.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if kind == "json":
        return _json(value)
    if isinstance(value, decimal.Decimal):
        if kind == "int" and value.is_finite() and value == value.to_integral_value() and value.adjusted() < 30:
            return int(value)
        return float(value) if kind == "float" else str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds() if kind == "float" else str(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if kind == "bool" and type(value) is int and value in (0, 1):
        return bool(value)
    return value


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("bytes are not JSON")
    return plain(value, "float" if isinstance(value, decimal.Decimal) else "str")
