"""RabbitMQ: ``rabbit://user:password@h1:5672,h2:5672/vhost``, ``amqp://`` alike, ``amqps://`` with TLS.

How the deliveries map, on the exchange ``amq.direct`` that every virtual host has, with `wire_name` as routing key:

- DIRECT and FANOUT: one exclusive queue a session, one binding an address. It goes with its connection.
- ANYCAST: a queue of the wire's name, shared by all who consume it; it goes with its last consumer.
- DIRECT and ANYCAST are published `mandatory`: the broker returns what reaches no queue.

Consumers acknowledge nothing and messages are transient: the SPI promises at most one delivery. A session has two
connections, one to consume and one to publish, each with a thread that receives, because a broker short of memory or
disk stops reading from those that publish.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import amqp

from dse.core.connection import BrokerTransport, Session, wire_name
from dse.core.receiving import Turn
from dse.core.tls import TLS_OPTIONS, Tls
from dse.core.transport import Address, Capabilities, Delivery, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.transports._amqp_words import explain
from dse.transports._rabbit_frames import NotAmqp, message, publish_method
from dse.transports._rabbit_wire import Cancel, Cancelled, Login, Wire

__all__ = ["RabbitTransport"]

_log = logging.getLogger("dse.transport")

_EXCHANGE = "amq.direct"
_CHANNEL = 1  # where the node queue is consumed; on the other connection, where everything is published
_UNUSED_QUEUE_TTL = 30_000  # milliseconds an ANYCAST queue may wait for its first consumer
_SIDE_BY_SIDE = 4  # channels on which many shared queues are declared at a time
_SHARE_AT_ONCE = 20  # queues, at least, that are worth a channel of their own
_MOST_CHANNELS = 1000  # RabbitMQ's default limit is 2047 a connection
_ROUTES = 512  # addresses remembered that were sent to
_GOODBYE = 1.0  # seconds a broker gets to answer a logout
_HANDLER_TIMEOUT = 5.0  # seconds a handler of a lost session may go on before it is left behind


class Blocked(TransportUnavailable):
    """The broker is short of memory or disk space and takes no messages; the connection itself is sound."""


class RabbitTransport(BrokerTransport):
    """The driver. Its options besides the usual are those of TLS."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        undeliverable=True, max_frame=8 * 2**20, survives_broker_restart=True
    )
    options: ClassVar[Mapping[str, Callable[[str], Any]]] = TLS_OPTIONS
    connection_errors: ClassVar[tuple[type[BaseException], ...]] = (OSError, amqp.AMQPError)

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        super().__init__(url, bus=bus, events=events)
        if url.scheme not in ("rabbit", "amqp", "amqps"):
            raise InvalidUrl(f"{url}: the scheme is rabbit, amqp or amqps")
        tls = Tls.read(url, self.given, sealed=url.scheme == "amqps", scheme="amqps")
        named = url.username is not None
        self.login = Login(
            user=url.username or "guest",
            password=(url.password or "") if named else "guest",
            vhost=url.path or "/",
            heartbeat=self.heartbeat,
            tls=tls,
        )
        default = 5672 if tls is None else 5671
        self.hosts = [(host, port or default) for host, port in url.hosts or (("localhost", None),)]

    def session(self) -> Session:
        return _RabbitSession(self)

    def lost(self, session: Session, cause: BaseException) -> None:
        if not isinstance(cause, Blocked):
            super().lost(session, cause)


class _RabbitSession(Session):
    """Lock: ``_life`` is held by `open` and `close`, which exclude each other; `close` makes an `open` fail at once."""

    def __init__(self, transport: RabbitTransport) -> None:
        self._transport = transport
        self._life = threading.Lock()
        self._cancel = Cancel()
        self._ended = False
        self._cause: BaseException | None = None  # what the session was lost for
        self._turns: tuple[Turn, ...] = ()  # on the consuming and on the publishing connection
        self._wires: tuple[Wire, ...] = ()
        self._consume: Wire
        self._publish: Wire
        bus = quote(transport.bus, safe="", errors="surrogatepass")[:100]
        self._queue = f"dse:{bus}:node:{uuid.uuid4().hex}"
        self._name = f"dse:{bus}:{os.getpid()}:{self._queue[-8:]}"
        # What py-amqp's server sends in silence; below a second AMQP has no heartbeat.
        self._silence = max(1.0, transport.heartbeat)
        self._beat_every = max(1, int(transport.heartbeat)) / 2
        self._beat_at = 0.0
        self._addresses: dict[bytes, Address] = {}  # listened on, by wire name
        self._routes: dict[Address, bytes] = {}  # the start of a message to there
        self._sent_to: dict[bytes, Address] = {}  # the same, by wire name
        self._consumers: dict[bytes, Any] = {}  # of ANYCAST: their channels; protected by the consuming wire's lock
        # Both are counted by whose turn it is to receive on the consuming wire.
        self._handed_on = 0  # messages that a handler has returned from, or was relieved with
        self._handing_on = False
        self._flushed = threading.Condition()  # protects nothing but the waiting below
        self._flushes = 0  # threads that wait for _handed_on

    # Connecting

    def open(self) -> None:
        with self._life:
            self._connect()
            spawn = self._transport.spawn
            self._turns = (
                Turn("consume", functools.partial(self._receive, self._consume), self._failed, spawn),
                Turn("publish", functools.partial(self._receive, self._publish), self._failed, spawn),
            )
            for turn in self._turns:
                turn.start()

    @property
    def _threads(self) -> list[threading.Thread]:
        return [thread for turn in self._turns for thread in turn.threads]

    def turns(self) -> Sequence[Turn]:
        return self._turns

    def _connect(self) -> None:
        """Connect to one of the hosts, in random order; what time is left is shared by those left."""
        hosts = list(self._transport.hosts)
        random.shuffle(hosts)
        login = self._transport.login
        if login.tls is not None:
            login = dataclasses.replace(login, tls=login.tls.again())
        deadline = time.monotonic() + self._transport.connect_timeout
        failures: list[str] = []
        cause: BaseException | None = None
        for tried, (host, port) in enumerate(hosts):
            share = (deadline - time.monotonic()) / (len(hosts) - tried)
            try:
                return self._connect_to(login, host, port, time.monotonic() + share)
            except Exception as error:
                for wire in self._wires:
                    wire.shut(0.0)
                if isinstance(error, Cancelled | InvalidUrl):
                    raise
                cause = error
                failures.append(f"{host}:{port} {_explain(error, login, host, share)}")
        url = str(self._transport.url)
        raise TransportUnavailable(f"{url} cannot be reached: {'; '.join(failures)}", url=url, cause=cause)

    def _connect_to(self, login: Login, host: str, port: int, deadline: float) -> None:
        self._consume = Wire(login, f"{self._name}:consume", self._cancel)
        self._publish = Wire(login, f"{self._name}:publish", self._cancel)
        self._wires = self._consume, self._publish
        if self._ended:
            raise Cancelled("the session was closed")
        for wire in self._wires:
            wire.open(host, port, deadline)
        self._publish.request(lambda connection: connection.channel(_CHANNEL), deadline - time.monotonic())
        self._consume.request(self._make_queue, deadline - time.monotonic())

    def _make_queue(self, connection: Any) -> None:
        channel = connection.channel(_CHANNEL)
        channel.queue_declare(self._queue, durable=False, exclusive=True, auto_delete=True)
        channel.basic_consume(self._queue, consumer_tag="node", no_ack=True)

    # Listening

    def listen(self, addresses: Sequence[Address]) -> None:
        bound: list[str] = []
        shared: list[str] = []
        for address in addresses:
            name = wire_name(self._transport.bus, address)
            self._addresses[name.encode()] = address
            (shared if address.delivery is Delivery.ANYCAST else bound).append(name)
        if bound:
            self._request(functools.partial(self._bind, bound))
        if shared:
            self._request(functools.partial(self._share, shared))

    def unlisten(self, address: Address) -> None:
        name = wire_name(self._transport.bus, address)
        if address.delivery is Delivery.ANYCAST:
            self._request(functools.partial(self._unshare, name))
            self._flush()
        else:
            self._request(lambda connection: connection.channel(_CHANNEL).queue_unbind(self._queue, _EXCHANGE, name))
        self._addresses.pop(name.encode(), None)

    def _request(self, do: Any) -> None:
        try:
            self._consume.request(do, self._transport.heartbeat)
        except Cancelled as error:
            raise self._cause or error from None
        except amqp.ConsumerCancelled as error:
            raise _cancelled(error) from None

    def _bind(self, names: list[str], connection: Any) -> None:
        channel = connection.channel(_CHANNEL)
        for name in names[:-1]:
            channel.queue_bind(self._queue, _EXCHANGE, name, nowait=True)
        # A channel's methods are carried out in order: when the last is answered, all are done.
        channel.queue_bind(self._queue, _EXCHANGE, names[-1])

    def _share(self, names: list[str], connection: Any) -> None:
        """Consume shared queues.

        Between declaring a queue and consuming it, its last consumer elsewhere may leave and the queue with it. The
        broker then closes the channel, so each attempt is made on a channel without other consumers.
        """
        for name in self._share_many(names, connection) if len(names) > 1 else names:
            while True:
                channel = self._channel(connection)
                try:
                    self._share_on(channel, [name], last=True)
                    break
                except amqp.NotFound:
                    if channel in self._consumers.values():
                        raise  # other consumers are gone with it: the whole session must be restored

    def _share_many(self, names: list[str], connection: Any) -> list[str]:
        """Consume many shared queues, on a few channels side by side; return those that were lost on the way."""
        size = max(_SHARE_AT_ONCE, math.ceil(len(names) / _SIDE_BY_SIDE))
        parts = [(self._channel(connection), names[at : at + size]) for at in range(0, len(names), size)]
        for channel, part in parts:
            self._share_on(channel, part[:-1], last=False)
        lost: list[str] = []
        for channel, part in parts:
            try:
                self._share_on(channel, part[-1:], last=True)
            except amqp.NotFound:
                if any(channel is known for name, known in self._consumers.items() if name.decode() not in part):
                    raise
                for name in part:
                    self._consumers.pop(name.encode(), None)
                lost += part
        return lost

    def _channel(self, connection: Any) -> Any:
        """Return a new channel, or beyond `_MOST_CHANNELS` the one with the latest consumer."""
        if len(connection.channels) < _MOST_CHANNELS:
            return connection.channel()
        return next(reversed(self._consumers.values()))

    def _share_on(self, channel: Any, names: list[str], *, last: bool) -> None:
        """Consume shared queues; with `last` wait until that, and all before it on the channel, is done."""
        for name in names:
            channel.queue_declare(
                name,
                durable=False,
                exclusive=False,
                auto_delete=True,
                arguments={"x-expires": _UNUSED_QUEUE_TTL},
                nowait=True,
            )
            channel.basic_consume(name, consumer_tag=name, no_ack=True, nowait=not last)
        for name in names:
            self._consumers[name.encode()] = channel

    def _unshare(self, name: str, connection: Any) -> None:
        channel = self._consumers.pop(name.encode(), None)
        if channel is None:
            return
        # First alone: closing a channel, the broker may drop what it has taken from the queue and not sent yet.
        channel.basic_cancel(name)
        if channel not in self._consumers.values():
            channel.close()

    def _flush(self) -> None:
        """Wait until what was received so far is handed on: the broker has taken it from the shared queue for us."""
        if threading.current_thread() in self._threads or any(turn.mine for turn in self._turns):
            return
        with self._consume.lock:
            received = self._consume.received
        with self._flushed:
            self._flushes += 1
            self._flushed.wait_for(lambda: self._ended or self._handed_on >= received, _GOODBYE)
            self._flushes -= 1

    # Sending

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        wire = self._publish
        if wire.blocked:
            raise Blocked("the broker takes no messages now, for want of memory or disk space")
        method = self._routes.get(address) or self._route(address)
        try:
            whole = message(method, _CHANNEL, data, ttl, wire.frame_max)
            if self._consume.messages and self._turns[0].mine:
                wire.outbox.keep(whole, len(whole))
            else:
                wire.outbox.send(whole, len(whole))
        except Cancelled as error:
            raise self._cause or error from None

    def _route(self, address: Address) -> bytes:
        name = wire_name(self._transport.bus, address)
        exchange = "" if address.delivery is Delivery.ANYCAST else _EXCHANGE
        method = publish_method(_CHANNEL, exchange, name, mandatory=address.delivery is not Delivery.FANOUT)
        with self._publish.lock:
            if len(self._routes) >= _ROUTES:
                del self._routes[next(iter(self._routes))]
                del self._sent_to[next(iter(self._sent_to))]
            self._sent_to[name.encode()] = address
            self._routes[address] = method
        return method

    # Receiving

    def _receive(self, wire: Wire, timeout: float | None) -> bool:
        """Receive on one connection and keep both alive: a handler that takes its time holds up one thread only."""
        if self._ended:
            raise Cancelled("the session was closed")
        if self._handing_on and wire is self._consume:
            self._handed()  # by a thread that was relieved
        messages = wire.messages
        if not messages:
            if wire is self._consume:
                self._publish.outbox.flush()
            until_tick = self._until_tick()
            wire.receive(until_tick if timeout is None else min(timeout, until_tick))
            self._tick()
        if messages:
            self._hand_on(*messages.popleft())
        return bool(messages)

    def _hand_on(self, delivered: bool, key: bytes, body: bytes) -> None:
        if not delivered:
            address = self._sent_to.get(key)
            if address is not None:
                self._transport.return_undelivered(address, body)
            return
        address = self._addresses.get(key)
        if address is not None:
            self._handing_on = True
            self._transport.deliver(address, body)
            if not self._turns[0].mine:
                return
        self._handed()

    def _handed(self) -> None:
        self._handing_on = False
        self._handed_on += 1
        if self._flushes:
            with self._flushed:
                self._flushed.notify_all()

    def _failed(self, error: BaseException) -> None:
        self._lose(_cancelled(error) if isinstance(error, amqp.ConsumerCancelled) else error)

    def _until_tick(self) -> float:
        """Return in how many seconds a heartbeat is due, ours or the broker's."""
        heard = min(self._consume.received_at, self._publish.received_at)
        return min(self._beat_at, heard + self._silence) - time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + self._beat_every
            for wire in self._wires:
                wire.beat()
        for wire in self._wires:
            if now - wire.received_at >= self._silence and wire.silent(self._silence):
                self._lose(TimeoutError(f"the broker was silent for {self._silence:g} s"))

    def _lose(self, cause: BaseException) -> None:
        if self._ended:
            return
        self._cause = self._cause or cause
        if isinstance(cause, TimeoutError):
            for wire in self._wires:
                wire.connected = False  # no use to say goodbye
        self._transport.lost(self, cause)

    # The end

    def close(self) -> None:
        self._ended = True
        self._cancel.set()
        with self._flushed:
            self._flushed.notify_all()
        me = threading.current_thread()
        if not self._life.acquire(blocking=me not in self._threads):
            return  # called by a handler, while another thread closes the session and waits for this one
        try:
            deadline = time.monotonic() + _HANDLER_TIMEOUT
            for thread in self._threads:
                if thread is not me:
                    thread.join(max(0.0, deadline - time.monotonic()))
                    if thread.is_alive():
                        _log.warning("%s: an event handler still blocks; its session is closed", self._transport.url)
            deadline = time.monotonic() + _GOODBYE
            for wire in self._wires:
                wire.shut(max(0.0, deadline - time.monotonic()))
            self._cancel.close()
        finally:
            self._life.release()

    def abandon(self) -> None:
        self._ended = True
        for wire in self._wires:
            wire.abandon()
        self._cancel.abandon()


def _cancelled(error: amqp.ConsumerCancelled) -> ConnectionError:
    return ConnectionResetError(f"the broker cancelled a consumer: was its queue deleted? ({error})")


def _explain(error: BaseException, login: Login, host: str, waited: float) -> str:
    if isinstance(error, NotAmqp):
        return str(error)
    of_tls = login.tls.in_words(error, host, waited) if login.tls is not None else None
    return of_tls or explain(error, login.vhost, waited)
