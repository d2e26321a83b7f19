"""Transport URLs: ``scheme://user:password@host:port,host:port/path?option=value``.

A parsed URL never shows its password: not in `str`, not in `repr`, not in an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from dse.errors import InvalidUrl

__all__ = ["TransportUrl"]

_SCHEME = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9]+)*\Z")
_SECRET_OPTION = re.compile(r"pass|secret|token|key(?!_?file$)", re.IGNORECASE)  # the name of a key file is none


@dataclass(frozen=True)
class TransportUrl:
    """A transport URL in its parts.

    scheme: in lower case, with its variant (``redis+sentinel``). hosts: ``(host, port)`` pairs, port None when not
    given; a host is text as written, IPv6 without brackets. path: decoded, without the leading slash. options: the
    query, as text.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str | TransportUrl) -> TransportUrl:
        """Parse a URL; raise `InvalidUrl` that says which part is wrong and shows no password."""
        if isinstance(text, TransportUrl):
            return text
        if not isinstance(text, str):
            raise InvalidUrl(f"a transport URL is text, not {type(text).__name__}")
        if not _is_unicode(text):
            raise InvalidUrl("a transport URL is valid Unicode: what else it holds must be %-encoded")
        scheme, separator, rest = text.strip().partition("://")
        scheme = scheme.lower()
        if not separator or not _SCHEME.match(scheme):
            raise InvalidUrl("a transport URL begins with the driver's name and '://', as in redis://localhost/0")
        authority, query, path = _split(scheme, rest)
        userinfo, hosts = _login(scheme, authority)
        username, has_password, password = userinfo.partition(":")
        return cls(
            scheme=scheme,
            hosts=tuple(_host(scheme, part) for part in hosts.split(",")) if hosts else (),
            username=unquote(username) or None,
            password=unquote(password) if has_password else None,
            path=unquote(path),
            options=MappingProxyType(_options(scheme, query)),
        )

    @property
    def driver(self) -> str:
        """The entry point that serves the URL: ``redis`` for ``redis+sentinel``, ``oslo`` for ``oslo+rabbit``."""
        return self.scheme.partition("+")[0]

    @property
    def variant(self) -> str:
        """What follows the ``+`` of the scheme, or ''."""
        return self.scheme.partition("+")[2]

    def read_options(self, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """Return the options that were given, each read by its reader in `known`.

        Raises `InvalidUrl` for an option that is not known (listing those that are) or cannot be read.
        """
        values = {}
        for name, text in self.options.items():
            if name not in known:
                raise InvalidUrl(f"{self}: unknown option {name!r}; known are {', '.join(sorted(known)) or 'none'}")
            try:
                values[name] = known[name](text)
            except ValueError as error:
                raise InvalidUrl(f"{self}: option {name!r} cannot be used: {error}") from None
        return values

    def __str__(self) -> str:
        user = quote(self.username or "", safe="")
        if self.password is not None:
            user += ":***"
        hosts = ",".join(_show_host(host, port) for host, port in self.hosts)
        path = f"/{quote(self.path)}" if self.path else ""
        shown = (f"{k}={'***' if _SECRET_OPTION.search(k) else quote(v, safe='/:')}" for k, v in self.options.items())
        query = "&".join(shown)
        return f"{self.scheme}://{user}{'@' if user else ''}{hosts}{path}{'?' if query else ''}{query}"

    def __repr__(self) -> str:
        return f"TransportUrl({str(self)!r})"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(scheme: str, rest: str) -> tuple[str, str, str]:
    """Split what follows ``://`` into authority, query and path."""
    rest = rest.partition("#")[0] if "@" not in rest.partition("#")[2] else _refuse_userinfo(scheme)
    before_query, _, query = rest.partition("?")
    authority, _, path = before_query.partition("/")
    if "@" not in authority and "@" in before_query + query:
        _refuse_userinfo(scheme)
    return authority, query, path


def _login(scheme: str, authority: str) -> tuple[str, str]:
    """Split user and password from the hosts; they may stand before each host too, as oslo.messaging writes them."""
    parts = [part.rpartition("@") for part in authority.split(",")]
    if len(parts) == 1 or not all(separator for _, separator, _ in parts):
        userinfo, _, hosts = authority.rpartition("@")
        return userinfo, hosts
    if len({login for login, _, _ in parts}) > 1:
        raise InvalidUrl(
            f"{scheme}://…: user name and password must be the same for all hosts, and a , or @ in them %-encoded"
        )
    return parts[0][0], ",".join(host for _, _, host in parts)


def _refuse_userinfo(scheme: str) -> str:
    # The text is not shown: what looks like a host or path here may be a piece of the password.
    raise InvalidUrl(f"{scheme}://…: the user name or password has a character (/ ? # @ :) that must be %-encoded")


def _host(scheme: str, text: str) -> tuple[str, int | None]:
    # A port that is no number is not shown: in "redis://user:secret" it is the password.
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise InvalidUrl(f"{scheme}://…: an IPv6 address is written [address] or [address]:port")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
    if not host:
        raise InvalidUrl(f"{scheme}://…: a host name is empty")
    if not port:
        return unquote(host), None
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise InvalidUrl(f"{scheme}://…: the port of host {unquote(host)!r} is not a number from 1 to 65535")
    return unquote(host), int(port)


def _show_host(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else quote(host, safe="")
    return shown if port is None else f"{shown}:{port}"


def _options(scheme: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise InvalidUrl(f"{scheme}://…: option {name!r} is given twice")
        options[name] = value
    return options
