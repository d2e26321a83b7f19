"""One connection to a Redis server: dialled, introduced (HELLO 3), and closed, each within a deadline.

Sockets are made here, not by redis-py's `Connection`, for two reasons: its timeouts are for a single step, so that a
server which answers in drips outlasts any of them; and nobody else can end its connect. Replies are parsed by hiredis,
redis-py's own parser, and errors are redis-py's exceptions.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis import exceptions as redis_errors

from dse.errors import TransportUnavailable

__all__ = ["MORE", "Endpoint", "Wire", "Word", "in_words", "pack", "reply_error", "unavailable"]

MORE: Any = object()
"""What `Wire.gets` returns when no whole reply has been received yet."""

LED = 0.02
"""Seconds that `Wire.receive` waits when it is led."""

_READ_SIZE = 1 << 16
_SHORTEST_MESSAGE = 8  # bytes; an integer reply, as in ``:1``, has fewer up to a thousand
_SERVER_AWAY = frozenset({"READONLY", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "UNBLOCKED"})


Word = bytes | str | float  # of a command; an int is written as such

pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
"""Returns a command in the Redis protocol (hiredis' annotation says a tuple of one)."""


class ServerAway(redis_errors.ResponseError):
    """The server answers, but is not (or no longer) the one that serves us: connect anew."""


def reply_error(text: str) -> Exception:
    """Return the exception that stands for an error reply."""
    code = text.partition(" ")[0]
    if code in _SERVER_AWAY:
        return ServerAway(text)
    if code in ("NOAUTH", "WRONGPASS"):
        return redis_errors.AuthenticationError(text)
    if code == "NOPERM":
        return redis_errors.NoPermissionError(text)
    return redis_errors.ResponseError(text)


def unavailable(url: object, what: str, cause: BaseException | None = None) -> TransportUnavailable:
    """Return the error that says in words why a server cannot be used."""
    return TransportUnavailable(f"{url} {what}", url=str(url), cause=cause)


@dataclass(frozen=True)
class Endpoint:
    """A server and how to introduce oneself to it: `host` is a path when `port` is None."""

    host: str
    port: int | None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    name: str = ""
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


class Wire:
    """One connection. Reading is one thread's business at a time; `send` is locked, and so is TLS reading.

    `lock` protects the writing side: the order of what is sent, and the TLS state.
    """

    def __init__(self, url: object, endpoint: Endpoint) -> None:
        self._url = url
        self.endpoint = endpoint
        self.lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._tls = False
        self.released: Callable[[], object] = lambda: None
        """Called each time that `receive` has held `lock` and received nothing: who found it taken may have left."""
        self._patience = math.inf  # seconds that `receive` waits while others than the own thread receive
        self._killed = False
        self._opening = False
        self._send_timeout = 5.0
        self._receive_timeout = 5.0
        self._buffer = bytearray(_READ_SIZE)
        reader = hiredis.Reader(protocolError=redis_errors.InvalidResponse, replyError=reply_error, notEnoughData=MORE)
        self._reader = reader
        self.gets = reader.gets
        """``gets(False)``: the next reply that was received as a whole, or MORE."""

    # Connecting

    def open(self, deadline: float, *, resp3: bool = True) -> None:
        """Connect and introduce; raise `TransportUnavailable` that says in words what is wrong."""
        began = time.monotonic()
        self._opening = True
        try:
            self._dial(deadline)
            self._introduce(deadline, resp3)
            self._refuse_killed()
        except BaseException as error:
            killed, self._killed = self._killed, True
            if killed:
                raise self._unavailable("is being closed", error) from error
            what = None if isinstance(error, TransportUnavailable) else in_words(error, max(0.1, deadline - began))
            if what is None:
                raise
            raise self._unavailable(f"{what} ({self.endpoint})", error) from error
        finally:
            self._opening = False
            if self._killed:
                self.drop()

    def _dial(self, deadline: float) -> None:
        host, port = self.endpoint.host, self.endpoint.port
        if port is None:
            self._connect(socket.AF_UNIX, host, deadline)
            return
        failure: OSError = OSError("the name has no address")
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                self._connect(family, address, deadline)
                break
            except OSError as error:
                failure = error
                if isinstance(error, _Killed):
                    raise
        else:
            raise failure
        assert self._sock is not None
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.endpoint.tls is not None:
            self._sock.settimeout(_left(deadline))
            plain = self._sock
            self._sock = self.endpoint.tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            self._tls = True
            self._refuse_killed()
            self._sock.do_handshake()

    def _connect(self, family: int, address: Any, deadline: float) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock = sock
        try:
            self._refuse_killed()
            sock.settimeout(_left(deadline))
            sock.connect(address)
            self._refuse_killed()
        except BaseException:
            sock.close()
            self._refuse_killed()
            raise

    def _introduce(self, deadline: float, resp3: bool) -> None:
        end = self.endpoint
        if resp3:
            hello: list[bytes | str | int] = ["HELLO", 3]
            if end.username or end.password is not None:
                hello += ["AUTH", end.username or "default", end.password or ""]
            if end.name:
                hello += ["SETNAME", end.name]
            try:
                answer = self.ask(deadline, *hello)
            except redis_errors.AuthenticationError as error:
                if str(error).startswith("NOAUTH"):
                    raise self._unavailable(f"needs a password ({end})", error) from error
                raise
            except redis_errors.ResponseError as error:
                if str(error).startswith("NOPROTO") or "unknown command" in str(error).lower():
                    raise self._unavailable(f"is too old: Redis 6 or later is needed ({end})", error) from error
                raise
            if not isinstance(answer, dict) or answer.get(b"proto") != 3:
                raise redis_errors.InvalidResponse("no answer to HELLO")
        elif end.password is not None:
            self.ask(deadline, "AUTH", *([end.username] if end.username else []), end.password)
        if end.db:
            try:
                self.ask(deadline, "SELECT", end.db)
            except redis_errors.ResponseError as error:
                raise self._unavailable(f"refuses database {end.db}: {error} ({end})", error) from error

    def ask(self, deadline: float, *command: Word) -> Any:
        """Send a command and return its reply; only while no other thread reads. Raises an error reply."""
        sock = self._socket()
        sock.settimeout(_left(deadline))
        sock.sendall(pack(command))
        while (reply := self.gets(False)) is MORE:
            sock.settimeout(_left(deadline))
            self._feed(sock.recv_into(self._buffer))
        if isinstance(reply, Exception):
            raise reply
        return reply

    # Running

    def run(self, *, send_timeout: float, receive_timeout: float) -> None:
        """From now on `send` and `receive` are used, from different threads."""
        sock = self._socket()
        self._send_timeout, self._receive_timeout = send_timeout, receive_timeout
        if self._tls:
            sock.settimeout(0)
        else:
            # The kernel's own timeouts: a Python one would cost a poll() for every send and receive.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(receive_timeout))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_timeout))

    def lead(self, led: bool) -> None:
        """From now on `receive` waits for a whole message, and `LED` seconds at most; or as before (False).

        An integer reply, as `PUBLISH` gets at once, does not wake up who waits for an answer: it is read with it.
        """
        if self._tls:
            return
        sock = self._socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _SHORTEST_MESSAGE if led else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(LED if led else self._receive_timeout))
        self._patience = LED if led else math.inf

    def send(self, data: bytes) -> None:
        """Send all of the data, with `lock` held; an error (OSError) means that the connection is of no more use."""
        sock = self._sock
        if sock is None or self._killed:
            raise _closed()
        try:
            if self._tls:
                self._send_tls(sock, data)
            else:
                sock.sendall(data)
        except BaseException as error:
            self.kill()  # part of a command may be out: nothing else may ever follow it
            if isinstance(error, BlockingIOError):
                message = f"the server took no data for {self._send_timeout:g} s"
                raise TimeoutError(message) from error
            raise

    def receive(self, timeout: float | None = None) -> bool:
        """Wait for data and feed the parser; False when none came within `timeout` seconds or the receive timeout."""
        sock = self._sock
        if sock is None or self._killed:
            raise _closed()
        if self._tls:
            return self._receive_tls(sock, timeout)
        # Waiting in the kernel's receive saves a system call; for one who will not wait that long there is poll.
        if timeout is not None and timeout < self._patience / 2 and not _ready(sock, False, timeout):
            return False
        try:
            size = sock.recv_into(self._buffer)
        except BlockingIOError:
            return False
        self._feed(size)
        return True

    def _feed(self, size: int) -> None:
        if not size:
            raise ConnectionResetError("the server closed the connection")
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]

    def _send_tls(self, sock: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + self._send_timeout
        while view:
            try:
                view = view[sock.send(view) :]
                deadline = time.monotonic() + self._send_timeout
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                if not _ready(sock, isinstance(want, ssl.SSLWantWriteError), deadline - time.monotonic()):
                    raise BlockingIOError from None

    def _receive_tls(self, sock: socket.socket, timeout: float | None) -> bool:
        # OpenSSL's state must not be used by two threads at once, but waiting needs none of it. What the socket is
        # ready for may be part of a record, or nothing for us.
        longest = self._receive_timeout
        deadline = time.monotonic() + (longest if timeout is None else min(timeout, longest))
        while True:
            with self.lock:
                try:
                    self._feed(sock.recv_into(self._buffer))  # has room for any record: none is left in part
                    return True
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                    write = isinstance(want, ssl.SSLWantWriteError)
            self.released()
            if not _ready(sock, write, deadline - time.monotonic()):
                return False

    # Ending

    def finish(self) -> None:
        """Say that nothing more will be sent: the server carries out what it has and closes."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_WR)  # not SSLSocket's, which drops the TLS state

    def kill(self) -> None:
        """End the connection; who reads, writes or connects in another thread fails at once."""
        self._killed = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close the file descriptor without a word on the wire; the thread that reads must have ended."""
        self._killed = True
        if not self._opening:  # whoever connects would be left with a descriptor that may come to mean another file
            self.abandon()

    def abandon(self) -> None:
        """Close the file descriptor, whoever uses it: in a forked child nobody does."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _socket(self) -> socket.socket:
        sock = self._sock
        if sock is None or self._killed:
            raise _closed()
        return sock

    def _refuse_killed(self) -> None:
        if self._killed:
            raise _Killed

    def _unavailable(self, what: str, cause: BaseException | None) -> TransportUnavailable:
        return unavailable(self._url, what, cause)


class _Killed(OSError):
    pass


def _closed() -> ConnectionResetError:
    return ConnectionResetError("the connection is closed")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or (1 if seconds < 1 else 0))


def _ready(sock: socket.socket, write: bool, timeout: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT if write else select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def in_words(error: BaseException, timeout: float) -> str | None:
    """Say what is wrong with a server, or return None when it is not the server's doing."""
    words: Sequence[tuple[type[BaseException], str]] = (
        (redis_errors.AuthenticationError, "refuses the user name or password"),
        (redis_errors.NoPermissionError, f"does not permit the user what DSE needs: {error}"),
        (redis_errors.InvalidResponse, "does not speak the Redis protocol"),
        (redis_errors.ResponseError, f"refuses: {error}"),
        (ssl.SSLCertVerificationError, f"shows a TLS certificate that is not trusted: {_tls_reason(error)}"),
        (ssl.SSLError, f"cannot be spoken to in TLS: {_tls_reason(error)}"),
        (socket.gaierror, "has a host name that cannot be resolved"),
        (TimeoutError, f"did not answer within {round(timeout, 1):g} s"),
        (ConnectionRefusedError, "refused the connection"),
        (FileNotFoundError, "has no such socket"),
        (ConnectionResetError, "closed the connection without an answer"),
        (OSError, f"cannot be reached: {error}"),
    )
    return next((text for kind, text in words if isinstance(error, kind)), None)


def _tls_reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return str(getattr(error, "reason", None) or error)
