"""The driver for NATS: ``nats://``, ``nats+tls://`` and ``nats+local://``.

| delivery | in NATS |
| --- | --- |
| DIRECT, FANOUT | a subject; for DIRECT, the server's status 503 (*no responders*) means undeliverable |
| ANYCAST | a subject whose listeners are one queue group; 503 likewise |

Subjects are ``dse.<bus>.<d|a|f>.<name>``, made of `dse.core.connection.wire_name`; replies of the server come to
``dse.<bus>.r.<session>.*``. So a user that may publish and subscribe to ``dse.<bus>.>`` may use that bus.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from dse.core.connection import JOIN_TIMEOUT, BrokerTransport, Session, wire_name
from dse.core.receiving import Turn
from dse.core.sockets import unavailable
from dse.core.tls import TLS_OPTIONS, Tls
from dse.core.transport import Address, Capabilities, Delivery, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import ConfigError, InvalidUrl, TransportError, TransportUnavailable
from dse_nats._cluster import Others
from dse_nats._link import Link
from dse_nats._wire import Endpoint, NotPossible
from dse_nats.local import Membership
from dse_nats.protocol import NotNats

__all__ = ["NatsTransport", "subject", "subjects_of"]

_PORT = 4222
_MAX_NAMES = 512  # subjects remembered
_CLOSE_TIMEOUT = 1.0  # for the server to carry out the last commands
_HANDLER_TIMEOUT = 5.0  # for a handler that blocks, while frames that others could have wait behind it
_SCHEMES = ("nats", "nats+tls", "nats+local")


def subject(bus: str, address: Address) -> str:
    """Return the subject of an address: four tokens, with nothing in them that NATS takes for syntax."""
    return wire_name(bus, address).replace(".", "%2E").replace(":", ".")


def subjects_of(bus: str) -> str:
    """Return what all subjects of a bus begin with."""
    return subject(bus, Address(Delivery.DIRECT, "x"))[:-3]


class NatsTransport(BrokerTransport):
    """A transport over a NATS server or cluster, 2.2 or later. See `dse.core.transport.Transport`."""

    capabilities = Capabilities(undeliverable=True, max_frame=8 * 2**20, survives_broker_restart=True)
    options: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **TLS_OPTIONS,
        "token": str,
    }
    connection_errors = (OSError, NotNats)

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        if url.username and url.password is None:
            # What a NATS URL has before the @ alone is a token: a secret, which must not be shown as a user's name.
            raise InvalidUrl(f"{url.scheme}://…: a user needs a password, as in user:password@; a token is ?token=…")
        super().__init__(url, bus=bus, events=events)
        if url.scheme not in _SCHEMES:
            raise InvalidUrl(f"{url}: the scheme is {', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}, not {url.scheme}")
        if url.path.strip("/"):
            raise InvalidUrl(f"{url}: a NATS URL has no path; leave {url.path!r} out")
        if self.local:
            self._check_local()
        elif not url.hosts:
            raise InvalidUrl(f"{url}: the host is missing")
        elif "token" in self.given and url.password is not None:
            raise InvalidUrl(f"{url}: option 'token' and a password exclude each other")
        self.tls, self.must_encrypt = self._read_tls()
        self.bus_subjects = subjects_of(bus)
        self.name = f"{self.bus_subjects}{os.getpid()}"

    def lost(self, session: Session, cause: BaseException) -> None:
        if not isinstance(cause, NotPossible):
            super().lost(session, cause)

    @property
    def local(self) -> bool:
        """Whether the server is one that this machine's user starts by using it."""
        return self.url.variant == "local"

    def session(self) -> Session:
        return _NatsSession(self)

    def endpoints(self, tls: Tls | None, info: Mapping[str, Any] | None = None) -> list[Endpoint]:
        """Return the servers to try, in random order; with what a server said of itself, those that it knows too."""
        url, given = self.url, self.given
        credentials: dict[str, str] = {}
        if "token" in given:
            credentials["auth_token"] = given["token"]
        elif url.username:
            credentials = {"user": url.username, "pass": url.password or ""}
        elif url.password is not None:
            credentials["auth_token"] = url.password
        hosts = {(host, port or _PORT) for host, port in url.hosts} | _hosts_in(info or {})
        found = [Endpoint(host, port, self.name, tls, self.must_encrypt, credentials) for host, port in hosts]
        random.shuffle(found)
        return found

    def _read_tls(self) -> tuple[Tls | None, bool]:
        """Return how connections are encrypted, and whether that is not left to the server."""
        url, given = self.url, self.given
        sealed = url.variant == "tls"
        # Whoever says how to do TLS wants it.
        wants = sealed or not TLS_OPTIONS.keys().isdisjoint(given.keys() - {"ssl"})
        if wants or "ssl" in given:
            tls = Tls.read(url, {"ssl": wants} | given, sealed=sealed, scheme="nats+tls")
            return tls, tls is not None
        return (None if self.local else Tls(url)), False

    def _check_local(self) -> None:
        url = self.url
        if len(url.hosts) > 1 or any(port is not None for _, port in url.hosts):
            raise InvalidUrl(f"{url}: nats+local:// is followed by one name and no port, as in nats+local://mine")
        if url.password is not None:
            raise InvalidUrl(f"{url}: nats+local:// takes no user and no password; it makes its own")
        if self.given:
            raise InvalidUrl(f"{url}: option {next(iter(self.given))!r} is not for nats+local://")
        if sys.platform != "linux":
            raise InvalidUrl(f"{url}: nats+local:// is for Linux; start a server, and use nats://")


def _hosts_in(info: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Return the servers of the cluster that one of them names."""
    found = set()
    for text in info.get("connect_urls") or ():
        host, _, port = str(text).rpartition(":")
        if host and port.isdigit():
            found.add((host.strip("[]"), int(port)))
    return found


class _NatsSession(Session):
    """One life of the connection.

    Lock: ``_lock`` protects ``_link``, ``_membership``, ``_others`` and the change of ``_closed``.
    """

    def __init__(self, transport: NatsTransport) -> None:
        self._transport = transport
        self._bus = transport.bus
        self._subjects: dict[Address, bytes] = {}  # only ever added to; emptied when full
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._membership: Membership | None = None
        self._others: Others | None = None  # where there is a cluster
        self._tls: Tls | None = None  # set by `open`, in which whatever uses it begins
        self._closed = False
        self._opening = False  # a thread is in `open`, and may be using the connection

    # Life

    def open(self) -> None:
        self._opening = True
        try:
            deadline = time.monotonic() + self._transport.connect_timeout
            transport = self._transport
            self._tls = transport.tls.again() if transport.tls is not None else None
            endpoints = [self._join(deadline)] if transport.local else transport.endpoints(self._tls)
            link = self._connect(endpoints, deadline)
            link.start(transport.spawn)
        finally:
            self._opening = False

    def _join(self, deadline: float) -> Endpoint:
        """Become a member of those who use the local server; the first one starts it."""
        transport = self._transport
        host = transport.url.hosts[0][0] if transport.url.hosts else "default"
        membership = Membership(transport.url, host)
        with self._lock:
            self._refuse_closed()
            self._membership = membership
        server = membership.join(deadline)
        return Endpoint("127.0.0.1", server.port, transport.name, None, credentials={"auth_token": server.token})

    def _connect(self, endpoints: Sequence[Endpoint], deadline: float) -> Link:
        """Connect to one of the servers; what time is left is shared by those left."""
        transport = self._transport
        failures: list[TransportUnavailable] = []
        for tried, endpoint in enumerate(endpoints):
            link = Link(
                transport.url,
                endpoint,
                bus=transport.bus_subjects.encode("ascii"),
                subject_of=self._subject,
                heartbeat=transport.heartbeat,
                deliver=transport.deliver,
                undelivered=transport.return_undelivered,
                lost=self._lost,
            )
            with self._lock:
                self._refuse_closed()
                self._link = link
            now = time.monotonic()
            try:
                link.open(now + (deadline - now) / (len(endpoints) - tried))
                return link
            except TransportUnavailable as error:
                link.wire.drop()
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        url = str(transport.url)
        reasons = "; ".join(str(failure).removeprefix(f"{url} ") for failure in failures)
        raise unavailable(url, f"has no server that can be used: {reasons}", failures[-1])

    def close(self) -> None:
        with self._lock:
            first, self._closed = not self._closed, True
            link, membership = self._link, self._membership
        if link is not None:
            self._close(link, first)
        if membership is not None:
            membership.leave()

    def _close(self, link: Link, first: bool) -> None:
        if first and link.turn is not None and link.failure is None:
            if link.leave(_CLOSE_TIMEOUT / 2, _HANDLER_TIMEOUT):
                with contextlib.suppress(OSError, TransportError):  # there is no time left for more
                    self._wait_known(link, _CLOSE_TIMEOUT / 2)
            link.wire.finish()  # the server closes the connection once it has taken all
            _join(link.threads, time.monotonic() + _CLOSE_TIMEOUT / 2)
        link.kill()
        if _join(link.threads, time.monotonic() + JOIN_TIMEOUT) and (link.threads or not self._opening):
            link.wire.drop()

    def abandon(self) -> None:
        if self._link is not None:
            self._link.wire.abandon()
        if self._membership is not None:
            self._membership.abandon()

    def _lost(self, cause: BaseException) -> None:
        self._transport.lost(self, cause)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise unavailable(self._transport.url, "is being closed")

    # Addresses

    def _subject(self, address: Address) -> bytes:
        found = self._subjects.get(address)
        if found is None:
            found = subject(self._bus, address).encode("ascii")
            if len(self._subjects) >= _MAX_NAMES:
                self._subjects = {}
            self._subjects[address] = found
        return found

    def _live(self) -> Link:
        link = self._link
        if link is None:
            raise ConfigError("a session is used before it is open")
        return link

    def listen(self, addresses: Sequence[Address]) -> None:
        link = self._live()
        link.subscribe({address: self._subject(address) for address in addresses})
        self._wait_known(link, self._transport.heartbeat)

    def _wait_known(self, link: Link, timeout: float) -> None:
        """Return once the other servers of a cluster know what we are subscribed to, and no longer."""
        if "cluster" not in link.wire.info:
            return
        transport = self._transport
        with self._lock:
            if self._others is None:
                own = str(link.wire.info.get("server_id"))
                where = functools.partial(transport.endpoints, self._tls, link.wire.info)
                self._others = Others(transport.url, own, link.inbox, where)
        marker = link.inbox + b"m." + secrets.token_hex(8).encode()
        sid = link.mark(marker)
        try:
            self._others.wait_known(marker, time.monotonic() + timeout)
        finally:
            link.unmark(sid)

    def unlisten(self, address: Address) -> None:
        link = self._live()
        link.unsubscribe(address)
        self._wait_known(link, self._transport.heartbeat)

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        self._live().publish(self._subjects.get(address) or self._subject(address), address, data)

    def turns(self) -> Sequence[Turn]:
        link = self._link
        return () if link is None or link.turn is None else (link.turn,)


def _join(threads: Sequence[threading.Thread], deadline: float) -> bool:
    """Wait for threads, but not for oneself; True when all have ended."""
    for thread in threads:
        if thread is threading.current_thread():
            return False
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
