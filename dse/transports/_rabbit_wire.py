"""One AMQP connection: kombu and py-amqp log in and speak the rare methods, `Wire` owns the socket.

Rules:

1. The socket never blocks. Every wait has a deadline, and ends as well when the session's `Cancel` is set.
2. Whoever touches the socket or py-amqp holds ``lock``. The receiving thread waits for bytes without it.
3. Whatever thread reads, messages go to ``messages`` in the order of arrival, and only the receiving thread takes them
   out. A thread that read something it does not handle wakes the receiving thread.
4. Nothing is dispatched while a frame is being written, but bytes are read: two full socket buffers cannot deadlock.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kombu.connection import Connection as KombuConnection
from kombu.transport import pyamqp

from dse.core.outbox import Outbox
from dse.core.tls import NoHandshake, Tls
from dse.transports._rabbit_frames import HEARTBEAT, FrameParser

__all__ = ["Cancel", "Cancelled", "Login", "Wire"]

_CHUNK = 65536
_TLS_AT_ONCE = 65536  # bytes written; OpenSSL takes nothing before it has taken all, which hides the progress made
_READ_AT_ONCE = 1 << 20  # bytes read before the messages among them are handed on
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_FRAME_MAX = 131072

_T = TypeVar("_T")


class Cancelled(ConnectionError):
    """The session was closed while somebody waited."""


class Cancel:
    """An event that ends every wait of a session at once."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # protects fd from being written to after it was closed

    def set(self) -> None:
        """End all waits, now and to come."""
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Give the descriptor back; nobody waits any more."""
        with self._lock:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def abandon(self) -> None:
        """In a forked child: close the descriptor without waiting for a lock whose owner is gone."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True)
class Login:
    """Who logs in where: what all connections of one session share."""

    user: str
    password: str = field(repr=False)
    vhost: str
    heartbeat: float
    tls: Tls | None


class _Channel(pyamqp.Channel):
    """A channel that stays closed when the broker closes it; py-amqp's would open itself again in mid-dispatch."""

    def _do_revive(self) -> None:
        self.collect()


class _Connection(pyamqp.Connection):
    """py-amqp's connection on the socket of a `Wire`."""

    Channel = _Channel

    def __init__(self, *args: Any, wire: Wire, **kwargs: Any) -> None:
        self._wire = wire
        super().__init__(*args, on_blocked=wire.on_blocked, on_unblocked=wire.on_unblocked, **kwargs)

    def Transport(self, *args: Any, **kwargs: Any) -> Wire:
        return self._wire

    def blocking_read(self, timeout: float | None = None) -> Any:
        return self.on_inbound_frame(self._wire.next_method())


class _KombuTransport(pyamqp.Transport):
    Connection = _Connection


class Wire:
    """One connection; see the rules above. `name` is what an operator sees in the broker's list of connections."""

    def __init__(self, login: Login, name: str, cancel: Cancel) -> None:
        self.login = login
        self.name = name
        self.cancel = cancel
        self.lock = threading.Lock()  # protects everything below, but for what rule 3 says about messages
        self.amqp: Any = None
        self.connected = False  # py-amqp reads it
        self.blocked = False
        self.frame_max = _FRAME_MAX
        self.received_at = 0.0
        self._socket: socket.socket | None = None
        self._parser = FrameParser(_FRAME_MAX)
        self.messages = self._parser.messages
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._receiver = select.poll()  # the receiving thread's; a poll object must not be used by two at once
        self._holder = select.poll()  # the lock holder's
        self._farewell = select.poll()  # the same without the cancel event: for logging out
        self.outbox: Outbox[bytes] = Outbox(self.lock, self._send, login.heartbeat)
        """Messages to be published."""
        self._more = False  # bytes may wait in the TLS layer, or methods in the parser, where poll sees nothing
        self._deadline = 0.0
        self._patience = 0.0  # seconds a write may make no progress
        self._at_once = _TLS_AT_ONCE if login.tls is not None else None
        self._closing = False
        self._where: tuple[str, int] = ("", 0)

    @property
    def received(self) -> int:
        """How many messages were ever put into `messages`."""
        return self._parser.received

    # Connecting

    def open(self, host: str, port: int, deadline: float) -> None:
        """Connect and log in before the deadline (monotonic); raise what went wrong."""
        self._where = host, port
        self._deadline = deadline
        login = self.login
        connect: Any = KombuConnection
        connection = connect(
            hostname=host,
            port=port,
            userid=login.user,
            password=lambda: login.password,  # keeps an empty one, and every one out of kombu's repr
            virtual_host=login.vhost,
            heartbeat=max(1, int(login.heartbeat)),
            transport=_KombuTransport,
            transport_options={"wire": self, "client_properties": {"connection_name": self.name}},
        )
        with self.lock:
            self.amqp = connection.transport.establish_connection()
            self.frame_max = self.amqp.frame_max
            self._parser.frame_max = max(self.frame_max, _FRAME_MAX)
        assert self._socket is not None
        self._receiver.register(self._wake, select.POLLIN)
        self._receiver.register(self.cancel.fd, select.POLLIN)
        self._receiver.register(self._socket, select.POLLIN)

    def connect(self) -> None:
        """Connect the socket and greet; called by py-amqp from inside `open`."""
        self._holder.register(self.cancel.fd, select.POLLIN)
        failure: OSError | None = None
        for family, kind, protocol, _, address in _resolve(*self._where, self._deadline, self.cancel):
            try:
                self._connect_to(socket.socket(family, kind, protocol), address)
                break
            except OSError as error:
                failure = error
                if isinstance(error, TimeoutError | Cancelled | ssl.SSLError):
                    raise
        else:
            raise failure or OSError("the host has no address")
        self.connected = True
        self.received_at = time.monotonic()
        self.write(b"AMQP\x00\x00\x09\x01")

    def _connect_to(self, sock: socket.socket, address: Any) -> None:
        self._socket = sock
        self._holder.register(sock, select.POLLIN | select.POLLOUT)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                sock.connect(address)
            except BlockingIOError:
                self._await(select.POLLOUT)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code)) from None
            if self.login.tls is not None:
                self._handshake(sock, self.login.tls)
        except BaseException:
            self._drop_socket()
            raise

    def _handshake(self, sock: socket.socket, tls: Tls) -> None:
        self._socket = wrapped = tls.wrap(sock, self._where[0])  # which moved the descriptor; its number stays
        while True:
            try:
                return wrapped.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                ready = select.POLLOUT if isinstance(want, ssl.SSLWantWriteError) else select.POLLIN
            try:
                self._await(ready)
            except TimeoutError as error:
                raise NoHandshake from error

    # Waiting, reading, writing: with the lock

    def _await(self, events: int) -> int:
        """Wait for the socket until the deadline; return what it is ready for."""
        assert self._socket is not None
        fds = self._farewell if self._closing else self._holder
        fds.register(self._socket, events)
        left = self._deadline - time.monotonic()
        ready = dict(fds.poll(max(0.0, left) * 1000))
        if self.cancel.fd in ready:
            raise Cancelled("the session was closed")
        if not ready:
            raise TimeoutError("no answer in time")
        return ready[self._socket.fileno()]

    def _read(self) -> int:
        """Feed the parser with one piece of what is there; return how many bytes (0: nothing there)."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
        except _WOULD_BLOCK:
            return 0
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        self.received_at = time.monotonic()
        self._parser.feed(data)
        return len(data)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of the data; a write that fails midway leaves the connection broken."""
        sock = self._socket
        if sock is None or not self.connected:
            raise ConnectionResetError("the connection is lost")
        try:
            sent = sock.send(data[: self._at_once])
        except _WOULD_BLOCK:
            sent = 0
        except OSError:
            self.connected = False
            raise
        if sent < len(data):
            try:
                self._write_rest(sock, memoryview(data)[sent:])
            except BaseException:
                self.connected = False
                raise

    def _write_rest(self, sock: socket.socket, rest: memoryview) -> None:
        while rest:
            if self._await(select.POLLIN | select.POLLOUT) & ~select.POLLOUT and self._read():
                self.wake()
            try:
                sent = sock.send(rest[: self._at_once])  # if tried before, the same: OpenSSL insists
            except ssl.SSLWantReadError:
                self._await(select.POLLIN)
            except _WOULD_BLOCK:
                pass
            else:
                rest = rest[sent:]
                self._deadline = max(self._deadline, time.monotonic() + self._patience)

    def next_method(self) -> Any:
        """Return the next frame that is py-amqp's to handle, before the deadline."""
        methods = self._parser.methods
        while not methods:
            if not self._read():
                self._await(select.POLLIN)
        return methods.popleft()

    # What a session calls, without the lock

    def request(self, do: Callable[[Any], _T], timeout: float) -> _T:
        """Return do(connection), which may wait for the broker's answers for `timeout` seconds in all."""
        with self.lock:
            if not self.connected:
                raise ConnectionResetError("the connection is lost")
            self._deadline = time.monotonic() + timeout
            try:
                return do(self.amqp)
            except (TimeoutError, Cancelled):
                self.connected = False  # an answer that comes later would be taken for another's
                raise
            finally:
                self._more = True
                self.wake()  # and what was sent meanwhile goes out when the receiving thread has looked

    def _send(self, messages: list[bytes]) -> None:
        """Write messages, with the lock; raise when the broker takes none of them for a heartbeat."""
        self._deadline = time.monotonic() + self.login.heartbeat
        self._patience = self.login.heartbeat
        self.write(messages[0] if len(messages) == 1 else b"".join(messages))
        self._patience = 0.0

    def beat(self) -> None:
        """Send a heartbeat, unless the connection is in use: then whoever uses it has a deadline."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if self.connected and not self.blocked and self._ready(select.POLLOUT):
                self._deadline = time.monotonic() + 1.0
                self.write(HEARTBEAT)
        finally:
            self.lock.release()
        self.outbox.flush()

    def silent(self, longest: float) -> bool:
        """Return whether the broker has sent nothing for so many seconds (what waits to be read counts as sent)."""
        if time.monotonic() - self.received_at <= longest:
            return False
        if not self._ready(select.POLLIN):
            return True
        self.received_at = time.monotonic()  # its thread is busy with a handler
        return False

    def _ready(self, event: int) -> bool:
        sock = self._socket
        if sock is None:
            return False
        fds = select.poll()
        fds.register(sock, event)
        return bool(fds.poll(0))

    def receive(self, timeout: float) -> None:
        """Wait for bytes, at most `timeout` seconds, and take in all that are there. For the receiving thread only."""
        if not self._more:
            for fd, _ in self._receiver.poll(max(0.0, timeout) * 1000):
                if fd == self._wake:
                    os.eventfd_read(fd)
        with self.lock:
            if not self.connected:
                raise ConnectionResetError("the connection is lost")
            self._more = False
            got = 0
            tls = self.login.tls is not None
            while size := self._read():
                got += size
                if got >= _READ_AT_ONCE:
                    self._more = True
                    break
                if size < _CHUNK and not tls:
                    break
            methods = self._parser.methods
            if methods:
                # A method that waits for an answer would be one that py-amqp sends by itself: there is none.
                self._deadline = time.monotonic()
                while methods:
                    self.amqp.on_inbound_frame(methods.popleft())
        self.outbox.flush()  # what others sent while this thread had the lock

    def wake(self) -> None:
        """Make the receiving thread look at what other threads have read."""
        os.eventfd_write(self._wake, 1)

    def on_blocked(self, reason: str) -> None:
        self.blocked = True

    def on_unblocked(self) -> None:
        self.blocked = False

    # The end

    def close(self) -> None:
        """Take note that py-amqp is done with the connection; the session closes the socket with `shut`."""
        self.connected = False

    def shut(self, timeout: float) -> None:
        """Log out if the broker answers within `timeout` seconds, and close the socket. Once no thread receives."""
        if not self.lock.acquire(timeout=timeout + 1.0):
            return  # impossible by rule 1; a leaked descriptor is better than a stolen one
        try:
            if self.connected and self.amqp is not None and not self.blocked:
                self._closing = True
                self._deadline = time.monotonic() + timeout
                self._parser.methods.clear()
                with contextlib.suppress(Exception):  # the socket is closed all the same
                    self.amqp.close()
            self.connected = False
            self._drop_socket()
            wake, self._wake = self._wake, -1
            if wake >= 0:
                os.close(wake)
        finally:
            self.lock.release()

    def _drop_socket(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            for fds in (self._holder, self._receiver, self._farewell):
                with contextlib.suppress(KeyError):
                    fds.unregister(sock)
            sock.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors; nothing goes to the wire, and no lock is waited for."""
        self.connected = False
        sock, self._socket = self._socket, None
        if sock is not None:
            os.close(sock.detach())
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)


def _resolve(host: str, port: int, deadline: float, cancel: Cancel) -> list[Any]:
    """Return getaddrinfo's answer before the deadline: a name server that is down must not hold `open` up."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    answer: list[Any] = []
    done = os.eventfd(0, os.EFD_CLOEXEC)

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answer.append(error)
        os.eventfd_write(done, 1)

    fds = select.poll()
    fds.register(done, select.POLLIN)
    fds.register(cancel.fd, select.POLLIN)
    threading.Thread(target=ask, name="dse-rabbit-resolve", daemon=True).start()
    ready = dict(fds.poll(max(0.0, deadline - time.monotonic()) * 1000))
    if done not in ready:
        # The thread still owns `done`, and both go when the resolver gives up.
        raise Cancelled("the session was closed") if ready else TimeoutError("the host name was not resolved")
    os.close(done)
    if isinstance(answer[0], OSError):
        raise answer[0]
    result: list[Any] = answer[0]
    return result
