"""What the gateway can be told, and its limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dse.errors import ConfigError
from dse.services.web.tokens import Tokens

__all__ = ["Limits", "Options"]

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the gateway takes on at most.

    memory: of the process, in MiB; beyond, what nobody looks at goes and nobody new is taken on. rows: of all tables
    that it follows together. tables: that it follows at one time. connections: at one time. streams: of these, those
    that follow changes. rate: requests in a second of one address, on average; burst: at once. body: bytes of a
    request. linger: seconds that a table is followed after the last client went. stall: seconds in which a client takes
    nothing before it is cut off.
    """

    memory: Positive = 1024
    rows: Positive = 2_000_000
    tables: Positive = 200
    connections: Positive = 1_000
    streams: Positive = 600
    rate: Positive = 50
    burst: Positive = 200
    body: Positive = 1 << 20
    linger: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    stall: Annotated[float, msgspec.Meta(gt=0)] = 30.0

    @classmethod
    def of(cls, given: Limits | Mapping[str, Any] | None) -> Limits:
        """Return limits from Python: themselves, a mapping, or the defaults; raises `ConfigError`."""
        if isinstance(given, Limits):
            return given
        try:
            return msgspec.convert(dict(given or {}), cls)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise ConfigError(f"limits: {error}", key=("limits",)) from None


class Options:
    """The checked options of the gateway; raises `ConfigError`."""

    def __init__(
        self,
        host: str,
        port: int,
        hosts: list[str],
        tokens: Path | None,
        allow: list[str],
        limits: Limits,
    ) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"a port is 0 to 65535, not {port}", key=("port",))
        for place, pattern in enumerate(allow):
            if pattern.count(".") != 1 or not all(pattern.split(".")):
                raise ConfigError(
                    f"a method is allowed as SERVICE.METHOD, each a name or a pattern with *, not {pattern!r}",
                    key=("allow", str(place)),
                )
        self.host, self.port, self.allow, self.limits = host, port, allow, limits
        self.tokens = Tokens.read(tokens) if tokens is not None else None
        self.local = is_loopback(host)
        if not self.local and self.tokens is None:
            raise ConfigError(
                f"{host} can be reached from other machines: that needs tokens (dse web --help says how to make one)",
                key=("host",),
            )
        self.hosts = frozenset(each.casefold() for each in (*hosts, host, *_LOCAL) if each)
        self.any_host = not self.local and not hosts
        """Whether requests may name any host: a token is asked for then in any case."""

    def allowed(self, service_id: str, method: str) -> bool:
        """Whether the configuration lets clients call this method."""
        return any(fnmatchcase(f"{service_id}.{method}", pattern) for pattern in self.allow)


_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
