"""One AMQP connection of oslo.messaging's RabbitMQ driver, without its retrying, waiting, threads and log lines.

Rules:

1. Nothing is tried again: an error goes to the caller, and the session that the connection belongs to is lost.
2. The consuming connection is used by one thread only, the publishing one with ``_connection_lock`` held.
3. A wait that the peer does not end is ended from outside: `kill` makes it fail, from any thread.
4. Publishing waits for no confirmation: what finds no queue comes back when it comes back, and goes to `returned`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import amqp
import kombu.entity
import kombu.exceptions
from kombu.compression import decompress
from kombu.transport import pyamqp

from dse.transports._oslo_library import common, impl_rabbit

if TYPE_CHECKING:
    from dse.transports._oslo_rabbit import RabbitSession

__all__ = ["CONNECTION_ERRORS", "Cancelled", "MessagingConnection", "Queue"]

CONNECTION_ERRORS = (OSError, amqp.AMQPError, kombu.exceptions.KombuError)


class Cancelled(ConnectionError):
    """The session was closed while somebody waited."""


class _Amqp(pyamqp.Connection):
    """py-amqp's connection, which its owner knows before it is connected."""

    def __init__(self, *args: Any, owner: MessagingConnection, **kwargs: Any) -> None:
        owner.amqp = self
        super().__init__(*args, **kwargs)

    def Transport(self, *args: Any, **kwargs: Any) -> Any:
        transport = super().Transport(*args, **kwargs)
        # py-amqp sets every TCP option to what it is already, which the kernel refuses when the peer was quick.
        transport._get_tcp_socket_defaults = lambda _: {socket.TCP_NODELAY: 1}
        return transport


class _KombuTransport(pyamqp.Transport):
    Connection = _Amqp


class Queue(impl_rabbit.Consumer):  # type: ignore[misc]
    """A queue that is consumed without acknowledgements; `callback` gets each message's body."""

    queue: Any  # kombu's
    tag = ""  # of its consumer

    def declare(self, conn: Any) -> None:
        # oslo.messaging's own method deletes a queue that vanishes as it is bound: by then it may be another's again.
        make: Any = kombu.entity.Queue
        self.queue = make(
            name=self.queue_name,
            channel=conn.channel,
            exchange=self.exchange,
            durable=self.durable,
            auto_delete=self.queue_auto_delete,
            routing_key=self.routing_key,
            queue_arguments=self.queue_arguments,
            consumer_arguments={"x-cancel-on-ha-failover": True} if self.enable_cancel_on_failover else None,
            no_ack=True,
        )
        self.queue.declare()

    def start(self, connection: Any) -> None:
        """Declare, bind and consume the queue, on the connection's channel."""
        self.declare(connection)
        self.tag = str(next(connection._tags))
        self.queue.consume(callback=self._callback, consumer_tag=self.tag)

    def remove(self) -> None:
        """Take away a queue that does not go by itself."""
        if not self.queue_auto_delete:
            self.queue.delete()

    def stop(self) -> None:
        """Consume it no more; returns when all that was received before is handed to the callback."""
        self.queue.cancel(self.tag)

    def bind(self, key: str, *, nowait: bool = False) -> None:
        self.queue.bind_to(self.exchange, key, nowait=nowait)

    def unbind(self, key: str) -> None:
        self.queue.unbind_from(self.exchange, key)

    def _callback(self, message: Any) -> None:
        self.callback(_body(self.queue.channel.message_to_python(message)))


def _body(message: Any) -> bytes:
    body = message.body
    return body if isinstance(body, bytes) else str(body).encode(errors="replace")


class MessagingConnection(impl_rabbit.Connection):  # type: ignore[misc]
    """See the rules above. session: what it belongs to; the other arguments are those of oslo.messaging's pool."""

    def __init__(self, conf: Any, url: Any, purpose: str, retry: int | None = None, *, session: RabbitSession) -> None:
        self.amqp: Any = None
        self._session = session
        self._busy_since = time.monotonic()  # 0: nobody waits for the broker
        self._heard_at = self._busy_since
        self._heard = -1
        self._beat_at = 0.0
        self._ready = select.poll()
        session.adopt(self)
        try:
            super().__init__(conf, url, purpose, retry)
        except BaseException:
            self.shut()
            session.drop(self)
            raise
        if purpose == common.PURPOSE_SEND:
            self._connection_lock = threading.Lock()
        self._busy_since = 0.0

    @property
    def name(self) -> str:
        """What an operator sees in the broker's list of connections."""
        return self._session.name

    @name.setter
    def name(self, _: str) -> None: ...

    # What oslo.messaging calls

    def _transform_transport_url(
        self,
        url: Any,
        host: Any,
        default_username: str = "guest",
        default_password: str = "guest",
        default_hostname: str = "localhost",
    ) -> str:
        """Return kombu's URL; oslo.messaging's own method takes no ``/`` in a password and no ``%`` in a vhost."""
        user, password = host.username, host.password
        if user is None:
            user, password = default_username, default_password
        name = host.hostname or default_hostname
        where = f"[{name}]" if ":" in name else name
        login = f"{quote(user, safe='')}:{quote(password or '', safe='')}"
        return f"amqp://{login}@{where}:{host.port or 5672}/{quote(url.virtual_host or '/', safe='')}"

    def ensure_connection(self) -> None:
        self._set_current_channel(None)
        timeout = self._session.connect_timeout
        deadline = time.monotonic() + timeout
        hosts = len(self.connection.alt) or 1
        failures: list[tuple[str, BaseException]] = []
        for tried in range(hosts):
            share = (deadline - time.monotonic()) / (hosts - tried)
            try:
                self._connect(max(0.05, share))
                return
            except Exception as error:
                self.shut()
                if self._session.ended:
                    raise Cancelled("the session was closed") from None
                failures.append((f"{self.connection.hostname}:{self.connection.port}", error))
                self.connection.maybe_switch_next()
        raise self._session.unavailable(failures, timeout / hosts)

    def _connect(self, timeout: float) -> None:
        connection = self.connection
        connection.connect_timeout = timeout
        connection._transport = None
        connection.transport_cls = _KombuTransport
        connection.transport_options |= {"owner": self, "confirm_publish": False}
        connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        self.sock.settimeout(timeout)
        self._set_current_channel(connection.channel())
        self.set_transport_socket_timeout()
        self._ready = select.poll()
        self._ready.register(self.sock, select.POLLIN)
        self._heard_at = time.monotonic()

    def ensure(
        self,
        method: Callable[[], Any],
        retry: int | None = None,
        recoverable_error_callback: Any = None,
        error_callback: Any = None,
        timeout_is_error: bool = True,
    ) -> None:
        """Publish, once."""
        self._busy_since = time.monotonic()
        try:
            method()
        except (AttributeError, ValueError) as error:  # what py-amqp raises when its socket is taken away
            if self.connected:
                raise
            raise ConnectionResetError("the connection is lost") from error
        finally:
            self._busy_since = 0.0
        if self.pending:  # read off the socket with what publishing has looked at, so that no poll shows it
            self._session.wake()

    def on_return(self, _error: Any, _exchange: str, _key: str, message: Any) -> None:
        compression = (message.properties.get("application_headers") or {}).get("compression")
        plain: Callable[..., bytes] = decompress
        self._session.returned(plain(message.body, compression) if compression else message.body)

    def _on_connection_blocked(self, _reason: str) -> None:
        self._session.blocked = True

    def _on_connection_unblocked(self) -> None:
        self._session.blocked = False

    def _heartbeat_start(self) -> None:
        self._heartbeat_thread = None  # the session's receiving thread does it for all

    # What a session needs besides

    def queue(
        self, exchange: str, name: str, callback: Callable[[bytes], None], *, key: str, transient: bool = False
    ) -> Queue:
        """Return a queue on the topic exchange; a transient one is this connection's alone."""
        # No quorum queue goes with its last consumer; without consumers it may live on for a while.
        quorum = self.rabbit_transient_quorum_queue if transient else self.rabbit_quorum_queue
        queue = Queue(
            exchange_name=exchange,
            queue_name=name,
            routing_key=key,
            type="topic",
            durable=quorum if transient else self.durable,
            exchange_auto_delete=self.amqp_auto_delete,
            queue_auto_delete=not quorum and (transient or self.amqp_auto_delete),
            callback=callback,
            rabbit_ha_queues=self.rabbit_ha_queues,
            rabbit_queue_ttl=self.rabbit_transient_queues_ttl if transient or (quorum and self.amqp_auto_delete) else 0,
            enable_cancel_on_failover=self.enable_cancel_on_failover,
            rabbit_quorum_queue=quorum,
            rabbit_quorum_queue_config=self.rabbit_quorum_queue_config,
        )
        queue.exchange.durable = self.durable
        return queue

    def fanout_queue(self, topic: str, name: str, callback: Callable[[bytes], None]) -> Queue:
        """Return a queue of this connection's own on the fanout exchange of a topic."""
        queue = self.queue(f"{topic}_fanout", name, callback, key=topic, transient=True)
        queue.type = "fanout"
        queue.exchange.type = "fanout"
        queue.exchange.durable = self.rabbit_transient_quorum_queue
        queue.exchange.auto_delete = True
        return queue

    def beside(self, channel: Any) -> Any:
        """Return what a queue takes for this connection, with another channel."""
        return types.SimpleNamespace(channel=channel, _tags=self._tags)

    @property
    def sock(self) -> Any:
        """The socket, None while there is none."""
        return getattr(getattr(self.amqp, "_transport", None), "sock", None)

    @property
    def busy(self) -> bool:
        """Whether somebody publishes."""
        return self._busy_since > 0.0

    @property
    def connected(self) -> bool:
        return self.sock is not None and bool(self.amqp._transport.connected)

    @property
    def pending(self) -> bool:
        """Whether something has been read off the socket by the TLS layer, where poll does not see it."""
        pending = getattr(self.sock, "pending", None)
        return bool(pending and pending())

    @property
    def readable(self) -> bool:
        """Whether there is something to read."""
        return self.pending or bool(self._ready.poll(0))

    def read(self, timeout: float) -> None:
        """Read one AMQP frame and do what it is for; it has begun to arrive."""
        try:
            self.amqp.blocking_read(timeout)
        except TimeoutError:
            raise TimeoutError(f"the broker was silent for {timeout:g} s amid a message") from None
        except AttributeError as error:
            raise ConnectionResetError("the connection is lost") from error

    def beat(self, now: float, every: float, silence: float | None) -> None:
        """Send a heartbeat when it is time; raise `TimeoutError` when the broker's own have not come."""
        heard = self.amqp.bytes_recv
        if heard != self._heard or silence is None:
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at > silence and not self.readable:
            raise TimeoutError(f"the broker was silent for {silence:g} s")
        if now >= self._beat_at:
            self._beat_at = now + every
            writable = select.poll()
            writable.register(self.sock, select.POLLOUT)
            if writable.poll(0):
                self.amqp.send_heartbeat()

    def look_after(self, now: float, every: float, silence: float) -> None:
        """Keep a publishing connection alive while it is idle; end a wait that the broker does not."""
        since = self._busy_since
        if since:
            if now - since > silence:
                self.kill()
            return
        if not self._connection_lock.acquire(blocking=False):
            return
        try:
            if self.connected:
                while self.readable:
                    self.read(silence)
                self.beat(now, every, silence)
        finally:
            self._connection_lock.release()

    def take_leave(self, timeout: float, queues: Sequence[Queue] = ()) -> None:
        """Remove queues that are nobody else's and log out, if that takes no longer; `shut` is still to be called."""
        lock = self._connection_lock if self.purpose == common.PURPOSE_SEND else contextlib.nullcontext()
        if self._busy_since or not self.connected:
            return
        with lock, contextlib.suppress(Exception):  # gone already, or not in time: the broker notices
            self.sock.settimeout(timeout)
            for queue in queues:
                queue.remove()
            self.amqp.close()

    def kill(self) -> None:
        """Cut the connection, from any thread: who waits for it gets an error."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def shut(self) -> None:
        """Close the socket; who still uses it gets an error."""
        self.kill()
        sock = self.sock
        if sock is not None:
            sock.close()

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptor without a byte on the wire."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                os.close(sock.detach())
