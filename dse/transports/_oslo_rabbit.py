"""oslo.messaging's RabbitMQ driver, under the transport SPI.

oslo.messaging configures, connects, declares and publishes; retrying, waiting and threads are its caller's here. As it
comes, it retries for ever with the caller blocked, logs errors on the way, and has a thread for each connection's
heartbeats.

- DIRECT: one queue a session, bound to the topic exchange once an address, as ``<topic>.<server>``.
- ANYCAST: the queue of the topic, shared by all who consume it. Each is consumed on a channel of its own, for a broker
  that refuses closes the channel and with it its consumers.
- FANOUT: one queue a session on the bus's fanout exchange; what is for nobody here is dropped on arrival.

Consumers acknowledge nothing, so nothing is ever delivered again. DIRECT and ANYCAST are published *mandatory*: the
broker returns what reaches no queue.

Threads: one receives on both connections, asks for what its session needs on the consuming one, and keeps both alive;
one hands on. Who publishes does so on its own thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import amqp

from dse.core.connection import Session
from dse.core.transport import Address, Delivery
from dse.errors import InvalidUrl, TransportUnavailable
from dse.transports._amqp_words import explain
from dse.transports._oslo_connection import (
    CONNECTION_ERRORS,
    Cancelled,
    MessagingConnection,
    Queue,
)
from dse.transports._oslo_library import common, oslo_messaging
from dse.transports._oslo_wire import Dispatcher, Places, pack, unpack

if TYPE_CHECKING:
    from dse.transports.oslo import OsloTransport

__all__ = ["CONNECTION_ERRORS", "Blocked", "RabbitSession"]

_log = logging.getLogger("dse.transport")

_READ_AT_ONCE = 500  # AMQP frames received before other things get their turn
_MOST_CHANNELS = 1000  # RabbitMQ's default limit is 2047 a connection
_ROUTES = 4096  # addresses remembered that were sent to
_ATTEMPTS = 100  # at a shared queue whose last consumer leaves again and again as it is declared
_SOON = 0.002  # seconds until it is seen whether a sender is done with the publishing connection
_GOODBYE = 1.0  # seconds a broker gets to answer a logout
_FLUSH = 1.0  # seconds that unlisten waits for handlers


class Blocked(TransportUnavailable):
    """The broker is short of memory or disk space and takes no messages; the connection itself is sound."""


class RabbitSession(Session):
    """Lock: ``_lock`` protects ``_requests``, ``_connections`` and ``_wake``. The consuming connection and what is
    declared on it belong to the receiving thread.
    """

    def __init__(self, transport: OsloTransport) -> None:
        self._transport = transport
        self.places = Places(transport.bus)
        self.name = f"{self.places.prefix[:100]}{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.silence = max(1.0, transport.heartbeat)
        self.connect_timeout = transport.connect_timeout
        self.ended = False
        self.blocked = False
        self._messaging = transport.messaging()
        self._driver: Any = self._messaging._driver
        self._dispatcher = Dispatcher(transport)
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._requests: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._connections: set[MessagingConnection] = set()  # all that live, being connected or in use
        self._opened = threading.Event()
        self._open_error: BaseException | None = None
        self._cause: BaseException | None = None  # what the session was lost for
        self._thread: threading.Thread | None = None
        self._beat_every = max(1, int(transport.heartbeat)) / 2
        self._driver._connection_pool.connection_cls = functools.partial(MessagingConnection, session=self)
        self._mandatory = oslo_messaging.TransportOptions(at_least_once=True)
        self._publishing: MessagingConnection
        # The receiving thread's own.
        self._contexts: list[Any] = []  # oslo.messaging closes a connection with its last user
        self._consuming: MessagingConnection
        self._queue: Queue
        self._own_queues: tuple[Queue, ...] = ()
        self._shared: dict[str, tuple[Any, Queue]] = {}  # of ANYCAST, by name: channel and queue
        self._addresses: dict[str, Address] = {}  # listened on, by name
        self._sent_to: dict[str, Address] = {}  # by name; changed with the lock
        self._poll = select.poll()

    # Connecting

    def open(self) -> None:
        timeout = self._transport.connect_timeout
        self._dispatcher.start()
        self._thread = self._transport.spawn(self._run, "receive")
        # The connection keeps the deadline; this is for where it cannot, in the resolver and in a TLS handshake.
        self._opened.wait(timeout + 0.2)
        if self._open_error is not None:
            raise self._open_error
        if self.ended:
            raise Cancelled("the session was closed")
        if not self._opened.is_set():
            raise TimeoutError(f"no answer within {timeout:g} s")

    def unavailable(self, failures: list[tuple[str, BaseException]], waited: float) -> TransportUnavailable:
        """Say in words why none of the hosts could be connected to."""
        url = self._transport.url
        said = "; ".join(f"{host} {explain(error, url.path or '/', waited)}" for host, error in failures)
        return TransportUnavailable(f"{url} cannot be reached: {said}", url=str(url), cause=failures[-1][1])

    def _connect(self) -> None:
        for purpose in (common.PURPOSE_LISTEN, common.PURPOSE_SEND):
            self._contexts.append(self._driver._get_connection(purpose))
        self._consuming, self._publishing = (context.connection for context in self._contexts)
        connection = self._consuming
        self._poll.register(self._wake, select.POLLIN)
        for each in (self._consuming, self._publishing):
            self._poll.register(each.sock, select.POLLIN)
        own = uuid.uuid4().hex
        # Bound to a name of its own: while the session lives so does the exchange, which goes with its last queue.
        self._queue = connection.queue(
            self.places.exchange,
            f"{self.places.prefix}node:{own}",
            self._received,
            key=f"{self.places.prefix}d.{own}",
            transient=True,
        )
        fanout = connection.fanout_queue(self.places.fanout, f"{self.places.fanout}_fanout_{own}", self._received)
        # Options that contradict each other are found out as they are used: better now than when a service comes.
        connection.queue(self.places.exchange, "", self._received, key="")
        self._own_queues = self._queue, fanout
        self._insist(self._start_own)

    def _start_own(self) -> None:
        for queue in self._own_queues:  # both again if one fails, which closes the channel that they share
            queue.start(self._consuming)

    def _insist(self, do: Callable[[], None]) -> None:
        """Declare something; between two steps of that, an exchange or queue may go with the last who leaves it."""
        for _ in range(_ATTEMPTS):
            try:
                do()
                return
            except amqp.NotFound:
                continue
        do()

    def adopt(self, connection: MessagingConnection) -> None:
        """Take note of a connection that is about to be connected; raises when the session is over."""
        with self._lock:
            if self.ended:
                raise Cancelled("the session was closed")
            self._connections.add(connection)

    def drop(self, connection: MessagingConnection) -> None:
        """A connection is closed."""
        with self._lock:
            self._connections.discard(connection)

    # Listening: asked for by any thread, done by the receiving one

    def listen(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            self._addresses[self.places.of(address).name] = address
        direct = [self.places.of(address) for address in addresses if address.delivery is Delivery.DIRECT]
        shared = [self.places.of(address).name for address in addresses if address.delivery is Delivery.ANYCAST]
        if direct or shared:
            keys = [f"{place.topic}.{place.server}" for place in direct]
            self._request(lambda: self._bind_and_share(keys, shared))

    def unlisten(self, address: Address) -> None:
        place = self.places.of(address)
        if address.delivery is Delivery.DIRECT:
            self._request(lambda: self._queue.unbind(f"{place.topic}.{place.server}"))
        elif address.delivery is Delivery.ANYCAST:
            self._request(lambda: self._unshare(place.name))
            self._dispatcher.flush(_FLUSH)  # the broker has taken what was received from the shared queue for us
        self._addresses.pop(place.name, None)

    def _request(self, do: Callable[[], Any]) -> None:
        future: Future[Any] = Future()
        with self._lock:
            if self.ended or self._cause is not None:
                raise self._cause or Cancelled("the session was closed")
            self._requests.append((do, future))
        self.wake()
        try:
            future.result(self._transport.heartbeat + 1.0)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._transport.heartbeat:g} s") from None

    def _bind_and_share(self, keys: list[str], shared: list[str]) -> None:
        for key in keys[:-1]:
            self._queue.bind(key, nowait=True)
        for key in keys[-1:]:
            self._queue.bind(key)  # a channel's methods are carried out in order: when this is answered, all are done
        for name in shared:
            self._insist(functools.partial(self._share_one, name))

    def _share_one(self, name: str) -> None:
        channel = self._channel()
        queue = self._consuming.queue(self.places.exchange, name, self._received, key=name)
        try:
            queue.start(self._consuming.beside(channel))
        except amqp.NotFound as error:
            if any(channel is used for used, _ in self._shared.values()):
                raise ConnectionResetError(f"the broker closed a channel with other consumers: {error}") from error
            channel.close()
            raise
        self._shared[name] = channel, queue

    def _channel(self) -> Any:
        kombu_connection = self._consuming.connection
        if len(self._shared) < _MOST_CHANNELS:
            return kombu_connection.channel()
        return next(reversed(self._shared.values()))[0]

    def _unshare(self, name: str) -> None:
        if name not in self._shared:
            return
        channel, queue = self._shared.pop(name)
        queue.stop()
        if not any(channel is used for used, _ in self._shared.values()):
            channel.close()

    # Sending

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        if self.ended or self._cause is not None:
            raise self._cause or Cancelled("the session was closed")
        if self.blocked:
            raise Blocked("the broker takes no messages now, for want of memory or disk space")
        place = self.places.of(address)
        body = pack(place.name, data)
        if address.delivery is Delivery.FANOUT:
            self._publishing.fanout_send(place.topic, body)
            return
        self._remember(place.name, address)
        key = f"{place.topic}.{place.server}" if place.server else place.topic
        self._publishing.topic_send(self.places.exchange, key, body, transport_options=self._mandatory)

    def _remember(self, name: str, address: Address) -> None:
        """Know the address when a message to it comes back."""
        if name not in self._sent_to:
            with self._lock:
                if len(self._sent_to) >= _ROUTES:
                    del self._sent_to[next(iter(self._sent_to))]
                self._sent_to[name] = address

    def returned(self, message: bytes) -> None:
        """A message found no queue; called by the thread that reads it, a sender's too."""
        name, data = unpack(message)
        address = self._sent_to.get(name)
        if address is not None:
            self._dispatcher.put(address, data, returned=True)

    # Receiving

    def wake(self) -> None:
        """Make the receiving thread look at what it does not see by itself."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._connect()
        except RuntimeError as error:  # options that contradict each other are found out as they are used
            self._open_error = InvalidUrl(f"{self._transport.url}: oslo.messaging refuses its configuration: {error}")
        except BaseException as error:
            self._open_error = error
        self._opened.set()
        if self._open_error is None:
            try:
                while not self.ended:
                    self._step()
            except BaseException as error:
                self._lose(error)
            self._answer_requests()
            if not isinstance(self._cause, TimeoutError):
                self._take_leave()
        self._shut()

    def _step(self) -> None:
        connection = self._consuming
        if not (connection.connected and self._publishing.connected):
            raise ConnectionResetError("the connection is lost")
        full = self._dispatcher.full
        self._poll.modify(connection.sock, 0 if full else select.POLLIN)
        # While a sender writes it has the connection to itself, and what came there waits.
        busy = self._publishing.busy
        self._poll.modify(self._publishing.sock, 0 if busy else select.POLLIN)
        timeout = 0.0 if connection.pending else _SOON if busy else self._beat_every / 2
        if full:
            self._dispatcher.wait_room(0.1)
            timeout = 0.0
        for fd, _ in self._poll.poll(timeout * 1000):
            if fd == self._wake:
                os.eventfd_read(fd)
        self._answer_requests()
        if not full:
            for _ in range(_READ_AT_ONCE):
                if self.ended or not connection.readable:
                    break
                connection.read(self.silence)
        self._keep_alive(full)

    def _keep_alive(self, full: bool) -> None:
        now = time.monotonic()
        self._publishing.look_after(now, self._beat_every, self.silence)
        self._consuming.beat(now, self._beat_every, None if full else self.silence)

    def _answer_requests(self) -> None:
        """Do what others have asked for; once the session is over, refuse it."""
        while True:
            with self._lock:
                if not self._requests:
                    return
                do, future = self._requests.popleft()
            cause = self._cause or (Cancelled("the session was closed") if self.ended else None)
            if cause is not None:
                future.set_exception(cause)
                continue
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(error)
                if not self._consuming.connected:
                    raise

    def _received(self, message: bytes) -> None:
        try:
            name, data = unpack(message)
        except ValueError:
            _log.warning("%s: dropped %d bytes that no DSE transport sent", self._transport.url, len(message))
            return
        address = self._addresses.get(name)
        if address is not None:
            self._dispatcher.put(address, data)

    def _lose(self, cause: BaseException) -> None:
        if self.ended:
            return
        self._cause = self._cause or cause
        if isinstance(cause, amqp.ConsumerCancelled):
            self._cause = ConnectionResetError(f"the broker cancelled a consumer: was its queue deleted? ({cause})")
        self._transport.lost(self, self._cause)

    # The end

    def close(self) -> None:
        with self._lock:
            self.ended = True
        self.wake()
        self._opened.set()
        self._dispatcher.end()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._join(thread)
        self._dispatcher.join()
        self._shut()
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _join(self, thread: threading.Thread) -> None:
        """Let the receiving thread take its leave, then make it end: again and again, it may be at the next host."""
        polite = self._opened.is_set() and self._open_error is None and not isinstance(self._cause, TimeoutError)
        thread.join(_GOODBYE if polite else 0.0)
        until = time.monotonic() + 2 * _GOODBYE
        while True:
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                connection.kill()
            thread.join(0.02)
            if not thread.is_alive() or time.monotonic() > until:
                return

    def _take_leave(self) -> None:
        """Log out, where it consumes last: its queues keep the exchanges that publishing declares."""
        self._publishing.take_leave(_GOODBYE / 2)
        self._consuming.take_leave(_GOODBYE / 2, self._own_queues)

    def _shut(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.shut()

    def abandon(self) -> None:
        self.ended = True
        for connection in self._connections:
            connection.abandon()
        with contextlib.suppress(OSError):
            os.close(self._wake)
