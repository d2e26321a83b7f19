"""The driver for Redis: ``redis://``, ``rediss://``, ``redis+sentinel://`` and ``redis+cluster://``.

| delivery | in Redis |
| --- | --- |
| DIRECT, FANOUT | a pub/sub channel; for DIRECT, ``PUBLISH`` saying 0 means undeliverable |
| ANYCAST | a list that every listener pops from, blocking; a script pushes only where a listener is *present*: |
| | subscribed to the channel that has the list's name |

Channels and lists are named by `dse.core.connection.wire_name`; in a database other than 0 with ``db<n>:`` before it,
because pub/sub does not heed databases. In a cluster pub/sub is sharded, and a bus has all its ANYCAST lists in one
slot (their names end in ``{<bus>}``), because one blocking pop can wait on one slot only.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from redis.crc import key_slot
from redis.exceptions import RedisError

from dse.core.connection import BrokerTransport, Session, wire_name
from dse.core.receiving import Turn
from dse.core.sockets import unavailable
from dse.core.tls import TLS_OPTIONS, Tls
from dse.core.transport import Address, Capabilities, Delivery, TransportEvents, TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.transports._redis_discovery import Found, find_cluster, find_master
from dse.transports._redis_link import Link, Popper, Scripts
from dse.transports._redis_wire import Endpoint

__all__ = ["RedisTransport"]

_MAX_NAMES = 512  # wire names remembered
_CLOSE_TIMEOUT = 1.0  # for the server to carry out the last commands
_JOIN_TIMEOUT = 10.0  # for a handler that blocks
_PORT = 6379
_SENTINEL_PORT = 26379


class RedisTransport(BrokerTransport):
    """A transport over one Redis server, the master that a Sentinel names, or a Redis Cluster; Redis 6 or later.

    Sharded pub/sub makes that Redis 7 for a cluster. See `dse.core.transport.Transport`.
    """

    capabilities = Capabilities(undeliverable=True, max_frame=8 * 2**20, survives_broker_restart=True)
    options: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **TLS_OPTIONS,
        "sentinel_username": str,
        "sentinel_password": str,
    }
    connection_errors = (OSError, RedisError)

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        super().__init__(url, bus=bus, events=events)
        if url.scheme not in ("redis", "rediss", "redis+sentinel", "redis+cluster"):
            raise InvalidUrl(f"{url}: the scheme is redis, rediss, redis+sentinel or redis+cluster, not {url.scheme}")
        if not url.hosts:
            raise InvalidUrl(f"{url}: the host is missing")
        if not url.variant and len(url.hosts) > 1:
            raise InvalidUrl(f"{url}: several hosts need redis+sentinel:// or redis+cluster://")
        self.master, self.db = _read_path(url)
        for option in ("sentinel_username", "sentinel_password"):
            if option in self.given and url.variant != "sentinel":
                raise InvalidUrl(f"{url}: option {option!r} is for redis+sentinel:// only")
        self.tls = Tls.read(url, self.given, sealed=url.scheme == "rediss", scheme="rediss")
        self.node = secrets.token_hex(4)

    @property
    def sharded(self) -> bool:
        """Whether pub/sub is sharded: in a cluster."""
        return self.url.variant == "cluster"

    def session(self) -> Session:
        return _RedisSession(self)

    def endpoint(self, host: str, port: int | None, tls: Tls | None) -> Endpoint:
        """Return how one server of this bus is connected to."""
        url, name = self.url, f"dse:{quote(self.bus, safe='', errors='surrogatepass')}:{self.node}"
        return Endpoint(host, port or _PORT, url.username, url.password, self.db, name, tls)

    def sentinel_endpoint(self, host: str, port: int | None, tls: Tls | None) -> Endpoint:
        """Return how one Sentinel is connected to."""
        username, password = self.given.get("sentinel_username"), self.given.get("sentinel_password")
        return Endpoint(host, port or _SENTINEL_PORT, username, password, tls=tls, resp3=False)


def _read_path(url: TransportUrl) -> tuple[str, int]:
    """Return the master's name (Sentinel only) and the database number in a URL's path."""
    path, master = url.path.strip("/"), ""
    if url.variant == "sentinel":
        master, _, path = path.partition("/")
        if not master:
            raise InvalidUrl(f"{url}: the path must name the master, as in redis+sentinel://host/mymaster/0")
    if url.variant == "cluster":
        if path not in ("", "0"):
            raise InvalidUrl(f"{url}: a cluster has no databases; leave the path {path!r} out")
        return "", 0
    if path and not (path.isascii() and path.isdigit() and len(path) < 6):
        raise InvalidUrl(f"{url}: the path must be a database number, not {path!r}")
    return master, int(path or 0)


class _RedisSession(Session):
    """One life of the connections to all servers of the bus."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport
        self._sharded = transport.sharded
        self._scripts = Scripts(sharded=self._sharded)
        self._names: dict[Address, tuple[Link, bytes]] = {}  # only ever added to; emptied when full
        bus = quote(transport.bus, safe="", errors="surrogatepass")
        self._bus = f"dse:{bus}:"
        self._tag = f"{{{bus}}}" if self._sharded else ""
        self._prefix = f"db{transport.db}:" if transport.db else ""
        self._found: Found | None = None  # what is connected before the links: sentinels, cluster seeds
        self._links: list[Link] = []
        self._slots: Sequence[int] = ()
        self._popper_lock = threading.Lock()  # held while the popper is connected
        self._lock = threading.Lock()  # protects _popper, _anycast, _links and the change of _closed
        self._popper: Popper | None = None
        self._anycast: set[Address] = set()
        self._closed = False
        self._opening = False  # a thread is in `open`, and may be using any connection

    # Life

    def open(self) -> None:
        self._opening = True
        try:
            self._open()
        finally:
            self._opening = False

    def _open(self) -> None:
        transport = self._transport
        deadline = time.monotonic() + transport.connect_timeout
        hosts = transport.url.hosts
        found = self._found = Found(transport.url)
        tls = transport.tls.again() if transport.tls is not None else None
        endpoints = [transport.endpoint(*hosts[0], tls)]
        if transport.master:
            sentinels = [transport.sentinel_endpoint(*host, tls) for host in hosts]
            endpoints = [transport.endpoint(*find_master(found, sentinels, transport.master, deadline), tls)]
        elif transport.sharded:
            seeds = [transport.endpoint(*host, tls) for host in hosts]
            masters, self._slots = find_cluster(found, seeds, deadline)
            endpoints = [transport.endpoint(*master, tls) for master in masters]
        for endpoint in endpoints:
            link = Link(
                transport.url,
                endpoint,
                heartbeat=transport.heartbeat,
                sharded=self._sharded,
                deliver=transport.deliver,
                undelivered=transport.return_undelivered,
                lost=self._lost,
            )
            with self._lock:
                self._refuse_closed()
                self._links.append(link)
            link.open(deadline)
        if transport.master:
            role = self._links[0].wire.ask(deadline, "ROLE")
            if role[0] != b"master":
                raise unavailable(transport.url, f"is not a master yet, but a {role[0].decode()} ({endpoints[0]})")
        for link in self._links:
            link.start(transport.spawn)

    def close(self) -> None:
        with self._lock:
            first, self._closed = not self._closed, True
            popper, links = self._popper, list(self._links)
        if self._found is not None:
            self._found.kill()
        if first and all(link.turn is not None and link.failure is None for link in links):
            self._leave(popper)
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for link in links:
            _join(link.threads, deadline)
            link.kill()
        if popper is not None:
            popper.kill()
        deadline = time.monotonic() + _JOIN_TIMEOUT
        for part in (popper, *links):
            if part is None or not _join(part.threads, deadline):
                continue
            if part.threads or not self._opening:
                part.wire.drop()

    def _leave(self, popper: Popper | None) -> None:
        """Take back everything that others could see, in an order that loses no frame that others could have."""
        with self._lock:
            anycast = [self._route(address) for address in self._anycast]
        try:
            for link in self._links:
                link.leave([key for at, key in anycast if at is link])
            if popper is not None:
                popper.stop()
                _join(popper.threads, time.monotonic() + _CLOSE_TIMEOUT)
        except OSError:
            pass
        for link in self._links:
            rests = [("EVAL", self._scripts.take_rest, 1, key, key) for at, key in anycast if at is link]
            wake = [("DEL", popper.wake_key)] if popper is not None and popper.link is link else []
            link.finish(*rests, *wake)

    def abandon(self) -> None:
        for part in (self._popper, *self._links):
            if part is not None:
                part.wire.abandon()
        if self._found is not None:
            self._found.abandon()

    def _lost(self, cause: BaseException) -> None:
        self._transport.lost(self, cause)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise TransportUnavailable(f"{self._transport.url} is being closed", url=str(self._transport.url))

    # Addresses

    def _route(self, address: Address) -> tuple[Link, bytes]:
        """Return the link that serves an address, and its name there."""
        name = wire_name(self._transport.bus, address)
        if address.delivery is Delivery.ANYCAST:
            name += self._tag
        key = (self._prefix + name).encode("ascii")
        route = self._link_of(key), key
        if len(self._names) >= _MAX_NAMES:
            self._names = {}
        self._names[address] = route
        return route

    def _link_of(self, key: bytes) -> Link:
        return self._links[self._slots[key_slot(key)]] if self._slots else self._links[0]

    def listen(self, addresses: Sequence[Address]) -> None:
        wanted: dict[Link, dict[bytes, Address]] = {}
        lists: dict[bytes, Address] = {}
        for address in addresses:
            link, key = self._route(address)
            wanted.setdefault(link, {})[key] = address
            if address.delivery is Delivery.ANYCAST:
                lists[key] = address
        if lists:
            popper = self._popping()
            with self._lock:
                self._anycast.update(lists.values())
            popper.add(lists)
        for link, channels in wanted.items():
            link.subscribe(channels)

    def unlisten(self, address: Address) -> None:
        link, key = self._route(address)
        link.unsubscribe(key)
        if address.delivery is not Delivery.ANYCAST:
            return
        popper = self._popper
        in_handler = self._in_handler()
        if popper is not None:
            popper.remove(key, in_handler=in_handler)
        if in_handler:
            link.tell(("EVAL", self._scripts.take_rest, 1, key, key))
        with self._lock:
            self._anycast.discard(address)

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        link, key = self._names.get(address) or self._route(address)
        if address.delivery is Delivery.DIRECT:
            link.publish(key, (address, data), data)
        elif address.delivery is Delivery.FANOUT:
            link.publish(key, None, data)
        else:
            link.push(key, (address, data), data)

    def _popping(self) -> Popper:
        """Return the popper; the first to need it connects it."""
        transport = self._transport
        with self._popper_lock:
            popper = self._popper
            if popper is not None:
                return popper
            wake_key = f"{self._prefix}{self._bus}w:{secrets.token_hex(8)}{self._tag}".encode()
            popper = Popper(
                self._link_of(wake_key),
                wake_key,
                url=transport.url,
                heartbeat=transport.heartbeat,
                sharded=self._sharded,
                offer=transport.deliver,
                lost=self._lost,
            )
            with self._lock:
                self._refuse_closed()
                self._popper = popper  # so that `close` ends its connecting
            popper.open(time.monotonic() + transport.connect_timeout)
            popper.start(transport.spawn)
            return popper

    def _in_handler(self) -> bool:
        popper = self._popper
        if popper is not None and threading.current_thread() in popper.threads:
            return True
        return any(link.turn is not None and link.turn.mine for link in self._links)

    def turns(self) -> Sequence[Turn]:
        return [link.turn for link in self._links if link.turn is not None]


def _join(threads: Sequence[threading.Thread], deadline: float) -> bool:
    """Wait for threads, but not for oneself; True when all have ended."""
    for thread in threads:
        if thread is threading.current_thread():
            return False
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
