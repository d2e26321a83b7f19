"""The data source `http`: its options, and how rows are made of what is fetched."""

from __future__ import annotations

import pathlib
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec

from dse.errors import ConfigError, MissingExtra
from dse.services.sources.base import Feed, Problem, Reading, Source
from dse.services.sources.columns import Columns
from dse.services.sources.http.fetch import Access, Answer, Fetcher, HttpError, origin_of, place_of

try:
    import jmespath
    from jmespath.exceptions import JMESPathError
except ImportError as error:
    raise MissingExtra("the service http needs jmespath: pip install 'dse[http]'", extra="http") from error

__all__ = ["Http", "HttpColumn", "HttpError", "HttpTable"]

_PROBLEMS = 100
_LONGEST_WAIT = 3600.0  # seconds of a Retry-After that are honoured
_FRESH_INTERVALS = 10  # intervals for which a max-age is honoured: a server's mistake is to be over some day
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel\s*=\s*"?(?:[^",;]*\s)?next(?:\s[^",;]*)?"?\s*(?:[;,]|$)', re.IGNORECASE)


class HttpColumn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A column. path: a JMESPath from the row to the value. type: as in `Columns`."""

    path: str
    type: str


class HttpTable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One table: where its JSON is, and how rows are made of it.

    url: without user and password. columns: name -> type, where the value has the column's name in the row, or an
    `HttpColumn`. rows: a JMESPath from the answer to a list. interval: seconds between looks. timeout: seconds for the
    whole look, all its pages. read_timeout: seconds without a byte. max_bytes: of one body, decompressed. follow_links:
    read on at ``Link: <…>; rel="next"``. next_page: a JMESPath to the next page's URL, or with cursor_parameter to the
    value that this query parameter has for the next page; null or empty ends. More than max_pages or max_rows are a
    failure.
    """

    url: str
    columns: dict[str, str | HttpColumn]
    rows: str = "@"
    interval: float = 10.0
    timeout: float = 30.0
    read_timeout: float = 10.0
    max_bytes: int = 64 * 2**20
    max_rows: int = 1_000_000
    follow_links: bool = False
    next_page: str | None = None
    cursor_parameter: str | None = None
    max_pages: int = 100


class Http(Source):
    """See `HttpTable` and docs/sources.md.

    headers, token (bearer), username and password (basic), cert_file and key_file are shown to the origin of each
    table's URL, and to no other it may redirect to. ca_file: whom to trust instead of the system's. lazy, max_backoff:
    as in `Source`. Raises `ConfigError` for what cannot be.
    """

    def __init__(
        self,
        service_id: str,
        *,
        tables: dict[str, HttpTable],
        headers: dict[str, str] | None = None,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        ca_file: pathlib.Path | None = None,
        cert_file: pathlib.Path | None = None,
        key_file: pathlib.Path | None = None,
        lazy: bool = False,
        max_backoff: float = 60.0,
    ) -> None:
        access = Access(headers or {}, token, username, password, ca_file, cert_file, key_file)
        access.check()
        if not tables:
            raise ConfigError("a source has at least one table", key=("tables",))
        feeds = [_HttpFeed(name, table, access) for name, table in tables.items()]
        super().__init__(service_id, feeds, lazy=lazy, max_backoff=max_backoff)


class _HttpFeed(Feed):
    def __init__(self, name: str, table: HttpTable, access: Access) -> None:
        key = ("tables", name)
        _check(name, table, key)
        paths = {c: spec.path if isinstance(spec, HttpColumn) else f'"{c}"' for c, spec in table.columns.items()}
        types = {c: spec.type if isinstance(spec, HttpColumn) else spec for c, spec in table.columns.items()}
        try:
            self._columns = Columns(types)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}", key=(*key, "columns", *error.key)) from None
        self._rows = _path(name, table.rows, (*key, "rows"))
        self._paths = {c: _path(name, path, (*key, "columns", c)) for c, path in paths.items()}
        self._next = None if table.next_page is None else _path(name, table.next_page, (*key, "next_page"))
        super().__init__(name, self._columns.names, interval=table.interval)
        self._table = table
        self._fetcher = Fetcher(table.url, access, read_timeout=table.read_timeout, max_bytes=table.max_bytes)
        self._paged = table.follow_links or self._next is not None
        self._validators: dict[str, str] = {}
        self._fresh_until = 0.0  # monotonic
        self._refused: tuple[float, str] = (0.0, "")  # until when the server does not want to be asked, and its words

    def open(self) -> None:
        """Forget what the server's validators were: the table may be without rows."""
        self._validators, self._fresh_until = {}, 0.0
        self._fetcher.open()

    def interrupt(self) -> None:
        """End a request that hangs."""
        self._fetcher.interrupt()

    def read(self) -> Reading | None:
        """Fetch all pages; half a table is none."""
        now = time.monotonic()
        if now < self._refused[0]:
            raise HttpError(self._refused[1])
        if now < self._fresh_until:
            return None
        self._fetcher.begin()
        if self.interrupted:  # asked after begin, which forgets an interruption
            raise HttpError(f"{place_of(self._table.url)}: interrupted")
        try:
            return self._pages(now + self._table.timeout)
        except HttpError as error:
            if error.retry_after:
                self._refused = (time.monotonic() + min(error.retry_after, _LONGEST_WAIT), str(error))
            raise

    def _pages(self, deadline: float) -> Reading | None:
        rows: list[tuple[Any, ...]] = []
        problems: list[Problem] = []
        seen, left_out = {self._table.url}, 0
        url: str | None = self._table.url
        validators: dict[str, str] = {}
        while url is not None:
            answer = self._fetcher.get(url, self._validators, deadline)
            if answer.status == 304:
                if not self._validators:
                    raise HttpError(f"{place_of(url)}: answers 304 (not modified) to what was asked unconditionally")
                self._keep_fresh(answer)
                return None
            document = self._document(answer)
            left_out += self._take(document, answer.url, rows, problems)
            if len(rows) + left_out > self._table.max_rows:
                raise HttpError(f"{place_of(url)}: more than max_rows = {self._table.max_rows} rows")
            url = self._after(answer, document)
            if url in seen:
                raise HttpError(f"{place_of(self._table.url)}: the pages go in a circle, back to {place_of(url)}")
            if url is not None:
                if len(seen) >= self._table.max_pages:
                    raise HttpError(f"{place_of(self._table.url)}: more than max_pages = {self._table.max_pages} pages")
                seen.add(url)
            if not self._paged:  # a first page that is as it was says nothing of the others
                validators = _validators_of(answer)
        self._validators = validators
        if not self._paged:
            self._keep_fresh(answer)
        return Reading(rows, problems, left_out)

    def _keep_fresh(self, answer: Answer) -> None:
        assert self.interval is not None
        self._fresh_until = time.monotonic() + min(_max_age(answer), _FRESH_INTERVALS * self.interval)

    def _document(self, answer: Answer) -> Any:
        try:
            return msgspec.json.decode(_text(answer))
        except (msgspec.DecodeError, ValueError, LookupError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else "not JSON"
            raise HttpError(f"{place_of(answer.url)}: {why}, answers {self._fetcher.told(answer)}") from None

    def _take(self, document: Any, url: str, rows: list[tuple[Any, ...]], problems: list[Problem]) -> int:
        found = self._search(self._rows, document, url)
        if not isinstance(found, list):
            kind = "null" if found is None else type(found).__name__
            raise HttpError(f"{place_of(url)}: rows = {self._table.rows!r} gives {kind}, not a list")
        left_out = 0
        for number, item in enumerate(found):
            try:
                values = {name: path.search(item) for name, path in self._paths.items()}
                rows.append(self._columns.from_values(values))
            except (ValueError, TypeError, RecursionError) as error:  # JMESPath's own are ValueErrors
                left_out += 1
                if len(problems) < _PROBLEMS:
                    problems.append(Problem(f"{place_of(url)}#{self._table.rows}[{number}]", str(error)))
        return left_out

    def _search(self, path: Any, document: Any, url: str) -> Any:
        try:
            return path.search(document)
        except (JMESPathError, TypeError, RecursionError) as error:
            raise HttpError(f"{place_of(url)}: {path.expression!r}: {error}") from None

    def _after(self, answer: Answer, document: Any) -> str | None:
        if self._table.follow_links:
            found = _NEXT.search(", ".join(answer.headers.get_list("link")))
            target: Any = found.group(1) if found else None
        elif self._next is not None:
            target = self._search(self._next, document, answer.url)
        else:
            return None
        if target is None or target == "" or target is False:
            return None
        if not isinstance(target, str | int):
            raise HttpError(f"{place_of(answer.url)}: next_page gives {type(target).__name__}, not a text or number")
        if self._table.cursor_parameter is not None:
            return _with_parameter(self._table.url, self._table.cursor_parameter, str(target))
        return self._fetcher.follow(answer.url, str(target))


def _check(name: str, table: HttpTable, key: tuple[str, ...]) -> None:
    try:
        scheme, host, _ = origin_of(table.url)
        parts = urllib.parse.urlsplit(table.url)
    except ValueError:
        raise ConfigError(f"{name}: url is not a URL", key=(*key, "url")) from None
    if "@" in parts.netloc:
        raise ConfigError(f"{name}: url holds a user; use username and password", key=(*key, "url"))
    if scheme not in ("http", "https") or not host:
        raise ConfigError(f"{name}: url begins with http:// or https:// and a host", key=(*key, "url"))
    for option in ("interval", "timeout", "read_timeout", "max_bytes", "max_rows", "max_pages"):
        value = getattr(table, option)
        if not value > 0:
            raise ConfigError(f"{name}: {option} is a positive number, not {value!r}", key=(*key, option))
    if table.follow_links and table.next_page is not None:
        raise ConfigError(f"{name}: follow_links and next_page exclude each other", key=(*key, "next_page"))
    if table.cursor_parameter is not None and table.next_page is None:
        raise ConfigError(f"{name}: cursor_parameter needs next_page", key=(*key, "cursor_parameter"))


def _path(name: str, text: str, key: tuple[str, ...]) -> Any:
    try:
        return jmespath.compile(text)
    except JMESPathError as error:
        raise ConfigError(f"{name}: {text!r} is not a JMESPath: {str(error).splitlines()[0]}", key=key) from None


def _with_parameter(url: str, name: str, value: str) -> str:
    parts = urllib.parse.urlsplit(url)
    query = [pair for pair in urllib.parse.parse_qsl(parts.query, keep_blank_values=True) if pair[0] != name]
    return urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode([*query, (name, value)])))


def _text(answer: Answer) -> str:
    """Decode by the byte order mark, then by the header's charset, then as UTF-8, which JSON is."""
    body = answer.body
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return body.decode("utf-16")
    if body.startswith(b"\xef\xbb\xbf"):
        return body.decode("utf-8-sig")
    found = re.search(r"charset\s*=\s*\"?([\w.:-]+)", answer.headers.get("content-type", ""), re.IGNORECASE)
    return body.decode(found.group(1) if found else "utf-8")


def _validators_of(answer: Answer) -> dict[str, str]:
    headers: Mapping[str, str] = answer.headers
    pairs = (("If-None-Match", headers.get("etag")), ("If-Modified-Since", headers.get("last-modified")))
    return {name: value for name, value in pairs if value}


def _max_age(answer: Answer) -> float:
    control = answer.headers.get("cache-control", "").lower()
    found = re.search(r"\bmax-age\s*=\s*\"?([0-9]{1,9})", control)
    if found is None or "no-cache" in control or "no-store" in control:
        return 0.0
    age = answer.headers.get("age", "0")
    return max(0.0, float(found.group(1)) - (float(age[:9]) if age.isascii() and age.isdigit() else 0.0))
