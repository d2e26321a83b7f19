"""One connection to a NATS server: dialled, introduced, used and closed, each within a deadline.

A client library would bring an event loop with a thread of its own, and hand every message from there to the thread
that waits for it; this one is read by whichever thread has the turn (`dse.core.receiving.Turn`).
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

from dse.errors import TransportUnavailable
from dse_nats.protocol import PING, Event, Info, Message, NotNats, Parser, Refusal, Signal, connect

__all__ = ["LED", "Endpoint", "NotPossible", "Refused", "Wire", "unavailable"]

LED = 0.02
"""Seconds that `Wire.receive` waits when it is led."""

_READ_SIZE = 1 << 16


class Refused(ConnectionError):
    """The server said ``-ERR``."""


class NotPossible(TransportUnavailable):
    """What was asked for cannot be done, or not now; the connection itself is sound."""


def unavailable(url: object, what: str, cause: BaseException | None = None) -> TransportUnavailable:
    """Return the error that says in words why a server cannot be used."""
    return TransportUnavailable(f"{url} {what}", url=str(url), cause=cause)


@dataclass(frozen=True)
class Endpoint:
    """A server, and how to introduce oneself to it.

    tls: makes the context, should the connection be encrypted. must_encrypt: whether the server's word that it is not
    counts. credentials: the fields of CONNECT that prove who one is.
    """

    host: str
    port: int
    name: str
    tls: Callable[[], ssl.SSLContext]
    must_encrypt: bool = False
    credentials: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wire:
    """One connection. Reading is one thread's business at a time; `send` is locked, and so is TLS reading.

    Lock: `lock` protects the writing side: the order of what is sent, and the TLS state.
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
        self._send_timeout = self._receive_timeout = 5.0
        self._parser = Parser()
        self.next = self._parser.next
        """The next event that was received as a whole, or None."""
        self.info: dict[str, Any] = {}  # what the server said of itself

    # Connecting

    def open(self, deadline: float) -> None:
        """Connect and introduce; raise `TransportUnavailable` that says in words what is wrong."""
        began = time.monotonic()
        self._opening = True
        try:
            self._dial(deadline)
            self._introduce(deadline)
            self._refuse_killed()
        except BaseException as error:
            killed, self._killed = self._killed, True
            if killed:
                raise unavailable(self._url, "is being closed", error) from error
            what = None if isinstance(error, TransportUnavailable) else _in_words(error, max(0.1, deadline - began))
            if what is None:
                raise
            raise unavailable(self._url, f"{what} ({self.endpoint})", error) from error
        finally:
            self._opening = False
            if self._killed:
                self.drop()

    def _dial(self, deadline: float) -> None:
        failure: OSError = OSError("the name has no address")
        host, port = self.endpoint.host, self.endpoint.port
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                self._refuse_killed()
                sock.settimeout(_left(deadline))
                sock.connect(address)
                self._refuse_killed()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return
            except OSError as error:
                sock.close()
                self._refuse_killed()
                failure = error
        raise failure

    def _introduce(self, deadline: float) -> None:
        greeting = self._read(deadline)
        if not isinstance(greeting, Info):
            raise NotNats("it does not begin with INFO")
        self.info = dict(greeting.fields)
        if self.info.get("tls_required") or self.endpoint.must_encrypt:
            self._encrypt(deadline)
        if not self.info.get("headers"):
            raise unavailable(self._url, f"is too old: NATS 2.2 or later is needed ({self.endpoint})")
        hello = connect(
            verbose=False,
            pedantic=False,
            echo=True,
            headers=True,
            no_responders=True,
            protocol=1,
            lang="python-dse",
            version="0.1.0",
            name=self.endpoint.name,
            **self.endpoint.credentials,
        )
        self.ask(deadline, hello)

    def _encrypt(self, deadline: float) -> None:
        if not (self.info.get("tls_required") or self.info.get("tls_available")):
            raise unavailable(self._url, f"offers no TLS ({self.endpoint})")
        plain = self._socket()
        plain.settimeout(_left(deadline))
        context = self.endpoint.tls()
        sock = context.wrap_socket(plain, server_hostname=self.endpoint.host, do_handshake_on_connect=False)
        self._sock, self._tls = sock, True
        self._refuse_killed()
        sock.do_handshake()

    def ask(self, deadline: float, data: bytes) -> int:
        """Send commands, and return once the server has carried them out, how many messages came meanwhile.

        Only while no other thread reads.
        """
        sock = self._socket()
        sock.settimeout(_left(deadline))
        sock.sendall(data + PING)
        messages = 0
        while (event := self._read(deadline)) is not Signal.PONG:
            if isinstance(event, Refusal):
                raise Refused(event.text)
            messages += isinstance(event, Message)
        return messages

    def _read(self, deadline: float) -> Event:
        sock = self._socket()
        while (event := self.next()) is None:
            sock.settimeout(_left(deadline))
            self._feed(sock.recv(_READ_SIZE))
        return event

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
        """From now on `receive` waits `LED` seconds at most; or as long as before (False)."""
        if self._tls:
            return
        self._socket().setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(LED if led else self._receive_timeout)
        )
        self._patience = LED if led else math.inf

    def send(self, data: bytes) -> None:
        """Send all of the data, with `lock` held; an error (OSError) means that the connection is of no more use."""
        sock = self._socket()
        try:
            if self._tls:
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
        sock = self._socket()
        if self._tls:
            return self._receive_tls(sock, timeout)
        # Waiting in the kernel's receive saves a system call; for one who will not wait that long there is poll.
        if timeout is not None and timeout < self._patience / 2 and not _ready(sock, False, timeout):
            return False
        try:
            data = sock.recv(_READ_SIZE)
        except BlockingIOError:
            return False
        self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._parser.feed(data)

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
        # OpenSSL's state must not be used by two threads at once, but waiting needs none of it. What can be received
        # may be part of a record, or nothing for us: only the deadline ends the wait, however often it is ready.
        longest = self._receive_timeout
        deadline = time.monotonic() + (longest if timeout is None else min(timeout, longest))
        while True:
            with self.lock:
                try:
                    self._feed(sock.recv(_READ_SIZE))
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
            raise ConnectionResetError("the connection is closed")
        return sock

    def _refuse_killed(self) -> None:
        if self._killed:
            raise _Killed


class _Killed(OSError):
    pass


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


def _in_words(error: BaseException, timeout: float) -> str | None:
    """Say what is wrong with a server, or return None when it is not the server's doing."""
    words: Sequence[tuple[type[BaseException], str]] = (
        (Refused, _refusal(str(error))),
        (NotNats, f"does not speak the NATS protocol: {error}"),
        (ssl.SSLCertVerificationError, f"shows a TLS certificate that is not trusted: {_tls_reason(error)}"),
        (ssl.SSLError, f"cannot be spoken to in TLS: {_tls_reason(error)}"),
        (socket.gaierror, "has a host name that cannot be resolved"),
        (TimeoutError, f"did not answer within {round(timeout, 1):g} s"),
        (ConnectionRefusedError, "refused the connection"),
        (ConnectionResetError, "closed the connection without an answer"),
        (OSError, f"cannot be reached: {error}"),
    )
    return next((text for kind, text in words if isinstance(error, kind)), None)


def _refusal(text: str) -> str:
    if text.lower().startswith("authorization"):
        return "refuses the user name, password or token"
    if text.lower().startswith("permissions"):
        return f"does not permit the user what DSE needs: {text}"
    return f"refuses: {text}"


def _tls_reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return str(getattr(error, "reason", None) or error)
