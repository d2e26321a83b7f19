"""A TCP proxy on loopback that can lose, keep back or refuse what passes: the cut cable in a test."""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["CutProxy", "Mode"]

_BUFFER = 256 * 1024  # bytes kept for a slow receiver, a connection and direction


class Mode(enum.Enum):
    """What the proxy does with traffic."""

    PASS = "pass"
    CUT = "cut"  # every byte is lost, both ways; connections stay up, new ones are accepted and dead
    STALL = "stall"  # nothing moves, nothing is lost
    REFUSE = "refuse"  # connections are reset, new ones refused


@dataclass(eq=False)
class _End:
    """One socket of a connection and what is still to be written to it."""

    link: _Link
    socket: socket.socket | None = None
    to_write: bytearray = field(default_factory=bytearray)
    connecting: bool = False
    finished: bool = False  # it sent its end of stream
    told: bool = False  # it was told the other one's end of stream

    @property
    def other(self) -> _End:
        return self.link.upstream if self is self.link.client else self.link.client


class _Link:
    def __init__(self, client: socket.socket) -> None:
        self.client = _End(self, client)
        self.upstream = _End(self)
        self.lost = False  # bytes were lost: the stream is of no more use

    @property
    def ends(self) -> tuple[_End, _End]:
        return self.client, self.upstream


class CutProxy:
    """Forward connections on a loopback port to `upstream`, a ``(host, port)``.

    port: where to listen; 0 takes a free one. The port stays ours until `close`, also while connecting is refused.
    A change of mode is in force when its method returns. One thread serves all connections.
    """

    def __init__(self, upstream: tuple[str, int], *, port: int = 0) -> None:
        self._target = upstream
        self._hold = _bound(port)
        self.port: int = self._hold.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._lock = threading.Lock()  # protects _orders and _closed
        self._orders: list[tuple[Callable[[], None], threading.Event]] = []
        self._closed = False
        # The proxy's thread alone uses what follows.
        self._mode = Mode.PASS
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._owner = os.getpid()
        self._listen()
        self._thread = threading.Thread(target=self._run, name=f"cut-proxy-{self.port}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def connections(self) -> int:
        """How many client connections are open."""
        return len(self._links)

    @property
    def upstream_ports(self) -> set[int]:
        """The local ports of the connections to `upstream`, by which the other end can tell them from others."""
        ports = set()
        for link in list(self._links):
            with contextlib.suppress(OSError):  # closed at this moment
                if link.upstream.socket is not None:
                    ports.add(link.upstream.socket.getsockname()[1])
        return ports - {0}

    def cut(self) -> None:
        """Lose every byte from now on, both ways, those still on their way included; connections stay up."""
        self._order(lambda: self._change(Mode.CUT))

    def stall(self) -> None:
        """Let nothing pass, but lose nothing."""
        self._order(lambda: self._change(Mode.STALL))

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        self._order(lambda: self._change(Mode.REFUSE))

    def mend(self) -> None:
        """Let traffic pass again; connections that lost bytes are reset."""
        self._order(lambda: self._change(Mode.PASS))

    def reset(self) -> None:
        """Reset all connections; new ones are treated as the mode says."""
        self._order(self._reset_all)

    def close(self) -> None:
        """Reset all connections and end; idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed or self._owner != os.getpid():
            return
        with contextlib.suppress(OSError):  # the thread may have seen it already, and ended
            self._wake_in.send(b"x")
        self._thread.join()
        self._wake_in.close()

    def __enter__(self) -> CutProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, action: Callable[[], None]) -> None:
        done = threading.Event()
        with self._lock:
            if self._closed:
                raise RuntimeError("the proxy is closed")
            self._orders.append((action, done))
        self._wake_in.send(b"x")
        done.wait()

    # What follows runs in the proxy's thread.

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._wake_out:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_out.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _End):
                    self._serve(key.data, events)
            with self._lock:
                orders, self._orders = self._orders, []
                closed = self._closed
            for action, done in orders:
                action()
                done.set()
            if closed:
                break
        self._reset_all()
        self._unlisten()
        self._hold.close()
        self._wake_out.close()
        self._selector.close()

    def _change(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.REFUSE:
            self._unlisten()
            self._reset_all()
            return
        self._listen()
        for link in list(self._links):
            if mode is Mode.CUT:
                link.lost = link.lost or any(end.to_write or end.connecting for end in link.ends)
                for end in link.ends:
                    end.to_write.clear()
            elif mode is Mode.PASS and link.lost:
                self._drop(link, reset=True)
                continue
            self._watch(link)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(512)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        _prepare(client)
        link = _Link(client)
        self._links.add(link)
        if self._mode is Mode.CUT:
            link.lost = True
        else:
            try:
                end = link.upstream
                family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
                end.socket = socket.socket(family, socket.SOCK_STREAM)
                _prepare(end.socket)
                end.connecting = True
                end.socket.connect_ex(self._target)
            except OSError:
                self._drop(link, reset=True)
                return
        self._watch(link)

    def _serve(self, end: _End, events: int) -> None:
        link = end.link
        if link not in self._links:
            return
        try:
            if end.connecting and self._mode is not Mode.CUT:
                assert end.socket is not None
                error = end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                end.connecting = False
            if events & selectors.EVENT_READ:
                self._read(end)
            if events & selectors.EVENT_WRITE:
                self._write(end)
            if not any(end.to_write for end in link.ends) and all(end.finished for end in link.ends):
                self._drop(link, reset=link.lost)
                return
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            if self._mode is not Mode.CUT:
                self._drop(link, reset=True)
                return
            link.lost = end.finished = True  # this end is dead, and the other one does not hear of it
        self._watch(link)

    def _read(self, end: _End) -> None:
        assert end.socket is not None
        data = end.socket.recv(65536)
        if self._mode is Mode.CUT:
            link = end.link
            link.lost = True
            end.finished = end.finished or not data
            return
        if data:
            end.other.to_write += data
        else:
            end.finished = True
        if not end.other.connecting and end.other.socket is not None:
            self._write(end.other)

    def _write(self, end: _End) -> None:
        assert end.socket is not None
        if end.to_write:
            try:
                sent = end.socket.send(end.to_write)
            except BlockingIOError:
                return
            del end.to_write[:sent]
        if not end.to_write and end.other.finished and not end.told:
            end.told = True
            end.socket.shutdown(socket.SHUT_WR)

    def _watch(self, link: _Link) -> None:
        """Ask the selector for what can be done for the link now."""
        if link not in self._links:
            return
        for end in link.ends:
            if end.socket is None:
                continue
            events = 0
            if self._mode is Mode.CUT:
                events = 0 if end.finished or end.connecting else selectors.EVENT_READ
            elif self._mode is Mode.PASS:
                if end.connecting or end.to_write or (end.other.finished and not end.told):
                    events |= selectors.EVENT_WRITE
                if not end.finished and not end.connecting and len(end.other.to_write) < _BUFFER:
                    events |= selectors.EVENT_READ
            registered = self._selector.get_map().get(end.socket)
            if registered is None and events:
                self._selector.register(end.socket, events, end)
            elif registered is not None and not events:
                self._selector.unregister(end.socket)
            elif registered is not None and registered.events != events:
                self._selector.modify(end.socket, events, end)

    def _reset_all(self) -> None:
        for link in list(self._links):
            self._drop(link, reset=True)

    def _drop(self, link: _Link, *, reset: bool) -> None:
        self._links.discard(link)
        for end in link.ends:
            if end.socket is None:
                continue
            if self._selector.get_map().get(end.socket) is not None:
                self._selector.unregister(end.socket)
            if reset:
                with contextlib.suppress(OSError):
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.socket.close()


def _bound(port: int) -> socket.socket:
    """A socket bound to the loopback port. Several may be bound to one; only one listens, and gets the connections."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
