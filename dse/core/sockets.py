"""A client's connection to a server: dialled, encrypted, introduced, used and closed, each within a deadline.

What the drivers share that own their sockets; what is said over the connection is theirs. Sockets are made here, not by
a client library, for two reasons: a library's timeouts are for a single step, so that a server which answers in drips
outlasts any of them; and nobody else can end its connect.
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
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from dse.core.tls import NoHandshake, Tls, speaks_tls
from dse.errors import TransportUnavailable

__all__ = ["LED", "ServerSocket", "explain", "unavailable"]

LED = 0.02
"""Seconds that `ServerSocket.receive` waits when it is led."""

_TLS_AT_ONCE = 1 << 16  # bytes written; OpenSSL takes nothing before it has taken all, which hides the progress made
_READ_SIZE = 1 << 16  # has room for any TLS record: none is left in part


def unavailable(url: object, what: str, cause: BaseException | None = None) -> TransportUnavailable:
    """Return the error that says in words why a server cannot be used."""
    return TransportUnavailable(f"{url} {what}", url=str(url), cause=cause)


class ServerSocket(ABC):
    """One connection. Reading is one thread's business at a time; `send` is locked, and so is TLS reading.

    url: named in errors. where: the server, as errors name it besides.

    Lock: `lock` protects the writing side: the order of what is sent, and the TLS state.
    """

    shortest: ClassVar[int] = 1
    """Bytes that are worth waking up for while `receive` is led."""

    def __init__(self, url: object, where: object) -> None:
        self._url = url
        self._where = where
        self.lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._tls: Tls | None = None  # once it is encrypted
        self._host = ""  # whom the server must prove to be
        self.released: Callable[[], object] = lambda: None
        """Called each time that `receive` has held `lock` and received nothing: who found it taken may have left."""
        self._patience = math.inf  # seconds that `receive` waits while others than the own thread receive
        self._killed = False
        self._opening = False
        self._send_timeout = self._receive_timeout = 5.0
        self._buffer = bytearray(_READ_SIZE)

    # What a driver says over it

    @abstractmethod
    def _introduce(self, deadline: float) -> None:
        """Dial, log in, and see that this is the server that is wanted."""

    @abstractmethod
    def _feed(self, size: int) -> None:
        """Take the first `size` bytes of ``_buffer``."""

    @abstractmethod
    def _in_words(self, error: BaseException, timeout: float) -> str | None:
        """Say what is wrong with the server, or return None when it is not the server's doing; see `explain`."""

    # Connecting

    def open(self, deadline: float) -> None:
        """Connect and introduce; raise `TransportUnavailable` that says in words what is wrong."""
        began = time.monotonic()
        self._opening = True
        try:
            self._introduce(deadline)
            self._refuse_killed()
        except BaseException as error:
            killed, self._killed = self._killed, True
            if killed:
                raise unavailable(self._url, "is being closed", error) from error
            what = None
            if not isinstance(error, TransportUnavailable):
                waited = max(0.1, deadline - began)
                of_tls = self._tls.in_words(error, self._host, waited) if self._tls is not None else None
                what = of_tls or self._in_words(error, waited)
            if what is None:
                raise
            raise unavailable(self._url, f"{what} ({self._where})", error) from error
        finally:
            self._opening = False
            if self._killed:
                self.drop()

    def dial(self, host: str, port: int | None, deadline: float) -> None:
        """Connect; without a port, `host` is the path of a Unix socket. Raises `OSError`."""
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
        sock = self._socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

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

    def encrypt(self, tls: Tls, host: str, deadline: float) -> None:
        """Go on in TLS; the server proves that it is `host`.

        Raises `OSError`, of which `ssl.SSLError` is one, and `InvalidUrl` when a file of ours cannot be used.
        """
        plain = self._socket()
        plain.settimeout(_left(deadline))
        sock = tls.wrap(plain, host)
        self._sock, self._tls, self._host = sock, tls, host
        self._refuse_killed()
        try:
            sock.do_handshake()  # whose timeout is for all of it
        except TimeoutError as error:
            raise NoHandshake from error

    def write(self, deadline: float, data: bytes) -> None:
        """Send all of the data; only before `run`."""
        sock = self._socket()
        sock.settimeout(_left(deadline))
        try:
            sock.sendall(data)
        except ConnectionError:
            if self._tls is not None:  # in TLS 1.3 a server refuses our certificate after the handshake, in an alert
                with contextlib.suppress(ConnectionError, TimeoutError):
                    self.read(deadline)
            raise

    def read(self, deadline: float) -> None:
        """Receive once and feed the parser; only before `run`, or while nobody else receives."""
        sock = self._socket()
        sock.settimeout(_left(deadline))
        size = sock.recv_into(self._buffer)
        if not size:
            raise _ended()
        if self._tls is None and speaks_tls(self._buffer):
            raise _SpeaksTls
        self._feed(size)

    # Running

    def run(self, *, send_timeout: float, receive_timeout: float) -> None:
        """From now on `send` and `receive` are used, from different threads."""
        sock = self._socket()
        self._send_timeout, self._receive_timeout = send_timeout, receive_timeout
        if self._tls is not None:
            sock.settimeout(0)
        else:
            # The kernel's own timeouts: a Python one would cost a poll() for every send and receive.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(receive_timeout))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_timeout))

    def lead(self, led: bool) -> None:
        """From now on `receive` waits for `shortest` bytes, and `LED` seconds at most; or as before (False)."""
        if self._tls is not None:
            return
        sock = self._socket()
        if self.shortest > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self.shortest if led else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(LED if led else self._receive_timeout))
        self._patience = LED if led else math.inf

    def send(self, data: bytes) -> None:
        """Send all of the data, with `lock` held; an error (OSError) means that the connection is of no more use."""
        sock = self._sock
        if sock is None or self._killed:
            raise _closed()
        try:
            if self._tls is not None:
                self._send_tls(sock, data)
            else:
                sock.sendall(data)
        except BaseException as error:
            self.kill()  # part of a command may be out: nothing else may ever follow it
            if isinstance(error, BlockingIOError):
                raise TimeoutError(f"the server took no data for {self._send_timeout:g} s") from error
            raise

    def receive(self, timeout: float | None = None) -> bool:
        """Wait for data and feed the parser; False when none came within `timeout` seconds or the receive timeout."""
        sock = self._sock
        if sock is None or self._killed:
            raise _closed()
        if self._tls is not None:
            return self._receive_tls(sock, timeout)
        # Waiting in the kernel's receive saves a system call; for one who will not wait that long there is poll.
        if timeout is not None and timeout < self._patience / 2 and not _ready(sock, False, timeout):
            return False
        try:
            size = sock.recv_into(self._buffer)
        except BlockingIOError:
            return False
        if not size:
            raise _ended()
        self._feed(size)
        return True

    def _send_tls(self, sock: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + self._send_timeout
        while view:
            try:
                view = view[sock.send(view[:_TLS_AT_ONCE]) :]  # if tried before, the same: OpenSSL insists
                deadline = time.monotonic() + self._send_timeout
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                if not _ready(sock, isinstance(want, ssl.SSLWantWriteError), deadline - time.monotonic()):
                    raise BlockingIOError from None

    def _receive_tls(self, sock: socket.socket, timeout: float | None) -> bool:
        # OpenSSL's state must not be used by two threads at once, but waiting needs none of it. What the socket is
        # ready for may be part of a record, or nothing for us: only the deadline ends the wait.
        longest = self._receive_timeout
        deadline = time.monotonic() + (longest if timeout is None else min(timeout, longest))
        while True:
            with self.lock:
                try:
                    size = sock.recv_into(self._buffer)
                    if not size:
                        raise _ended()
                    self._feed(size)
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


class _Killed(OSError):
    pass


class _SpeaksTls(OSError):
    """The server answers in TLS, and was not spoken to in TLS."""


def _closed() -> ConnectionResetError:
    return ConnectionResetError("the connection is closed")


def _ended() -> ConnectionResetError:
    return ConnectionResetError("the server closed the connection")


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


def explain(error: BaseException, timeout: float) -> str | None:
    """Say what an error on the way to a server means, to stand behind its name; None when it is none of the way's."""
    words: tuple[tuple[type[BaseException], str], ...] = (
        (_SpeaksTls, "speaks TLS, and the URL does not ask for it"),
        (socket.gaierror, "has a host name that cannot be resolved"),
        (TimeoutError, f"did not answer within {round(timeout, 1):g} s"),
        (ConnectionRefusedError, "refused the connection"),
        (FileNotFoundError, "has no such socket"),
        (ConnectionResetError, "closed the connection without an answer; it may want TLS"),
        (OSError, f"cannot be reached: {error}"),
    )
    return next((text for kind, text in words if isinstance(error, kind)), None)
