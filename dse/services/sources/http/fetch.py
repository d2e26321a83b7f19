"""One GET over HTTP(S), within limits of time, size and redirects.

httpx times out each operation by itself, so a server that drips a byte a second could hold a request for ever. Here a
watchdog shuts the connection down when the whole has taken too long, or from outside with `Fetcher.interrupt`. To reach
a connection at any moment, also in the TLS handshake, it keeps a duplicate of its socket.
"""

from __future__ import annotations

import base64
import os
import pathlib
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from dse.errors import ConfigError, DseError, MissingExtra

try:
    import httpx
except ImportError as error:
    raise MissingExtra("the service http needs httpx: pip install 'dse[http]'", extra="http") from error

__all__ = ["Access", "Answer", "Fetcher", "HttpError", "place_of"]

_CONNECT = 4.0  # seconds; less than stopping waits for a read, for connecting cannot be interrupted
_REDIRECTS = 5
_REDIRECT_CODES = frozenset({301, 302, 303, 307, 308})
_CHUNK = 65536


class HttpError(DseError):
    """A request that failed. Its text names the URL without secrets. retry_after: seconds the server asks to wait."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: status 200, or 304 without a body. url: where it came from after redirects."""

    url: str
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True)
class Access:
    """Credentials and trust; sent to the origin (scheme, host, port) of the table's URL and to no other."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: pathlib.Path | None = None
    cert_file: pathlib.Path | None = None
    key_file: pathlib.Path | None = None

    def check(self) -> None:
        """Raise `ConfigError` for what no request can carry; no value is shown."""
        for name, value in self.headers.items():
            if not name or not name.isascii() or any(sign in name for sign in " :\r\n\t"):
                raise ConfigError(f"headers: {name!r} is not a header's name", key=("headers",))
            _sendable(value, "headers", name)
        _sendable(self.token or "", "token")
        if self.token is not None and self.username is not None:
            raise ConfigError("token and username exclude each other", key=("token",))
        if self.password is not None and self.username is None:
            raise ConfigError("password needs a username", key=("password",))
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("key_file needs a cert_file", key=("key_file",))

    def sent(self) -> dict[str, str]:
        """Return the headers that carry it."""
        headers = dict(self.headers)
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        elif self.username is not None:
            headers["Authorization"] = f"Basic {self._basic()}"
        return headers

    def clean(self, text: str) -> str:
        """Take the secrets out of a text."""
        secrets = [*self.headers.values(), self.token or "", self.password or ""]
        if self.username is not None:
            secrets.append(self._basic())
        for secret in sorted(secrets, key=len, reverse=True):
            if secret:
                text = text.replace(secret, "***")
        return text

    def context(self, *, client: bool) -> ssl.SSLContext:
        """Return what to trust; with client also the certificate to show. Raises `HttpError` naming a bad file."""
        context = ssl.create_default_context()
        try:
            if self.ca_file is not None:
                context = ssl.create_default_context(cafile=str(self.ca_file))
        except OSError as error:
            raise HttpError(f"ca_file {self.ca_file}: {error.strerror or error}") from None
        if client and self.cert_file is not None:
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
            except OSError as error:
                raise HttpError(f"cert_file {self.cert_file}: {error.strerror or error}") from None
        return context

    def _basic(self) -> str:
        return base64.b64encode(f"{self.username}:{self.password or ''}".encode()).decode()


def _sendable(value: str, *key: str) -> None:
    if not value.isascii() or any(sign in value for sign in "\r\n\0"):
        raise ConfigError(f"{'.'.join(key)} has characters that no header can carry", key=key)


def place_of(url: str) -> str:
    """Return a URL without what may be secret: user, query, fragment."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class Fetcher:
    """GETs for one table, one at a time.

    home: the URL whose origin gets the credentials. read_timeout: seconds without a byte. max_bytes: of a body, after
    decompression. Lock: ``_lock`` protects ``_line`` and ``_cut``.
    """

    def __init__(self, home: str, access: Access, *, read_timeout: float, max_bytes: int) -> None:
        self._home = origin_of(home)
        self._access = access
        self._timeout = httpx.Timeout(read_timeout, connect=_CONNECT)
        self._max_bytes = max_bytes
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._cut = False

    def open(self) -> None:
        """Take certificate files as they are now."""
        self._contexts.clear()

    def begin(self) -> None:
        """Begin a look: what was interrupted was the one before."""
        with self._lock:
            self._cut = False

    def interrupt(self) -> None:
        """End the request that runs, and let none begin until `begin`."""
        with self._lock:
            self._cut = True
            self._shut()

    def get(self, url: str, headers: Mapping[str, str], deadline: float) -> Answer:
        """Return the answer, after redirects. deadline: on the monotonic clock. Raises `HttpError`."""
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self.interrupt)
        timer.name, timer.daemon = "http-source-deadline", True
        timer.start()
        try:
            first = url
            for _ in range(_REDIRECTS + 1):
                answer = self._once(url, headers)
                if answer.status not in _REDIRECT_CODES:
                    return answer
                url = self.follow(url, answer.headers.get("location", ""))
            raise HttpError(f"{place_of(first)}: more than {_REDIRECTS} redirects, the last to {place_of(url)}")
        finally:
            timer.cancel()
            timer.join()
            self._hold(None)

    def follow(self, url: str, target: str) -> str:
        """Return where a link in the answer of url leads. Raises `HttpError` where it must not lead."""
        try:
            there = urllib.parse.urldefrag(urllib.parse.urljoin(url, target)).url
            scheme, host, _ = origin_of(there)
        except ValueError:
            scheme, host, there = "", None, ""
        if not target or scheme not in ("http", "https") or not host:
            raise HttpError(f"{place_of(url)}: leads to {self._access.clean(target)[:80]!r}, which is no http(s) URL")
        if scheme == "http" and url.startswith("https:"):
            raise HttpError(f"{place_of(url)}: leads from https to {place_of(there)}, which is not followed")
        return there

    def _once(self, url: str, headers: Mapping[str, str]) -> Answer:
        at_home = origin_of(url) == self._home
        sent = {"Accept": "application/json", "Accept-Encoding": "gzip", **headers}
        if at_home:
            sent |= self._access.sent()
        try:
            with httpx.Client(verify=self._context(at_home), timeout=self._timeout, trust_env=False) as client:
                extensions = {"trace": self._trace}
                with client.stream("GET", url, headers=sent, extensions=extensions) as response:
                    body = self._body(response) if response.status_code not in _REDIRECT_CODES else b""
                    if self._cut:  # a body without a length ends where the connection was shut down
                        raise OSError("interrupted")
                    return self._judged(Answer(url, response.status_code, response.headers, body))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, zlib.error) as error:
            raise HttpError(f"{place_of(url)}: {self._what(error)}") from None

    def _what(self, error: Exception) -> str:
        if self._cut:
            return "no whole answer in time; the request was given up"
        if isinstance(error, httpx.ConnectTimeout):
            return f"no connection within {_CONNECT:g} s"
        if isinstance(error, httpx.ReadTimeout):
            return f"not a byte for {self._timeout.read:g} s"
        return self._access.clean(str(error)) or type(error).__name__

    def _context(self, at_home: bool) -> ssl.SSLContext:
        if at_home not in self._contexts:
            self._contexts[at_home] = self._access.context(client=at_home)
        return self._contexts[at_home]

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            line = info["return_value"].get_extra_info("socket")
            self._hold(socket.socket(fileno=os.dup(line.fileno())))

    def _hold(self, line: socket.socket | None) -> None:
        with self._lock:
            old, self._line = self._line, line
            if self._cut:
                self._shut()
        if old is not None:
            old.close()

    def _shut(self) -> None:
        if self._line is not None:
            try:
                self._line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by the peer

    def _body(self, response: httpx.Response) -> bytes:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            raise ValueError(f"content encoding {coding[:40]!r} was not asked for")
        unpack = None if coding == "identity" else zlib.decompressobj(wbits=31)
        body = bytearray()
        for chunk in response.iter_raw(_CHUNK):
            # One byte more than allowed tells a body that is too large from one that just fits.
            room = self._max_bytes - len(body) + 1
            body += chunk[:room] if unpack is None else unpack.decompress(chunk, room)
            if len(body) > self._max_bytes:
                raise ValueError(f"the body is larger than max_bytes = {self._max_bytes}")
        if unpack is not None and body and not unpack.eof:
            raise ValueError("the compressed body ends too early")
        return bytes(body)

    def _judged(self, answer: Answer) -> Answer:
        if answer.status in (200, 304) or answer.status in _REDIRECT_CODES:
            return answer
        wait = _seconds(answer.headers.get("retry-after", "")) if answer.status in (429, 503) else None
        asked = "" if wait is None else f", asks to wait {wait:g} s"
        raise HttpError(f"{place_of(answer.url)}: answers {self.told(answer)}{asked}", retry_after=wait)

    def told(self, answer: Answer) -> str:
        """Return status, type and first characters of an answer, for an error's text."""
        kind = answer.headers.get("content-type", "no content type")[:60]
        start = self._access.clean(answer.body[:200].decode("utf-8", "replace"))[:80]
        return self._access.clean(f"{answer.status} ({kind}): {start!r}")


def _seconds(text: str) -> float | None:
    """Return what Retry-After says, in seconds from now."""
    if text.strip().isascii() and text.strip().isdigit():
        return min(float(text.strip()[:10]), 86400.0)
    try:
        return min(86400.0, max(0.0, parsedate_to_datetime(text).timestamp() - time.time()))
    except (ValueError, TypeError):
        return None
