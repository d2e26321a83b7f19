"""The cut-off proxy: what it passes, loses, keeps back and refuses."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dse.testing.proxy import CutProxy, Mode


class EchoServer:
    """Sends back what it gets, and counts it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.received = bytearray()
        self.connections: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                thread = threading.Thread(target=self._echo, args=(connection,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                self.received += data
                connection.sendall(data)

    def end_connections(self) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end_connections()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[CutProxy]:
    with CutProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: CutProxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(proxy.address, timeout=5))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def echo(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return receive(client, len(data))


def receive(client: socket.socket, size: int) -> bytes:
    answer = bytearray()
    while len(answer) < size:
        part = client.recv(size - len(answer))
        if not part:
            break
        answer += part
    return bytes(answer)


def silent(client: socket.socket) -> bool:
    """True when nothing comes for a moment and the connection is up."""
    client.settimeout(0.2)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_traffic_passes_both_ways_and_quickly(connect):
    client = connect()
    assert echo(client, b"hello") == b"hello"
    started = time.perf_counter()
    for _ in range(100):
        echo(client, b"x")
    assert (time.perf_counter() - started) / 100 < 0.02


def test_more_than_the_buffers_hold_passes_unharmed(connect):
    client = connect()
    data = bytes(range(256)) * 40_000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert receive(client, len(data)) == data
    sender.join()


def test_an_end_of_stream_passes_after_the_data(connect):
    client = connect()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 100) == b"last words"


def test_a_server_that_ends_the_connection_ends_the_clients(connect, server):
    client = connect()
    echo(client, b"x")
    server.end_connections()
    assert client.recv(1) == b""


def test_a_server_that_is_gone_resets_the_client(connect, server):
    server.close()
    with pytest.raises(ConnectionResetError):
        connect().recv(1)


def test_cut_loses_bytes_and_keeps_connections_up(connect, proxy, server):
    old, idle = connect(), connect()
    echo(old, b"before")
    echo(idle, b"before")
    seen = len(server.received)
    proxy.cut()
    new = connect()
    old.sendall(b"lost")
    new.sendall(b"lost too")
    assert silent(old)
    assert silent(new)
    assert len(server.received) == seen
    proxy.mend()
    for dead in (old, new):
        with pytest.raises(ConnectionResetError):
            dead.recv(1)
    assert echo(idle, b"lost nothing") == b"lost nothing"
    assert echo(connect(), b"new") == b"new"


def test_stall_keeps_bytes_and_delivers_them_later(connect, proxy):
    client = connect()
    echo(client, b"before")
    proxy.stall()
    client.sendall(b"waiting")
    new = connect()
    new.sendall(b"new")
    assert silent(client)
    assert silent(new)
    proxy.mend()
    assert receive(client, 7) == b"waiting"
    assert receive(new, 3) == b"new"


def test_refuse_resets_and_refuses_until_mended(connect, proxy):
    client = connect()
    echo(client, b"before")
    proxy.refuse()
    assert proxy.mode is Mode.REFUSE
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect()
    proxy.mend()
    assert echo(connect(), b"again") == b"again"


def test_reset_ends_the_connections_and_takes_new_ones(connect, proxy):
    client = connect()
    echo(client, b"before")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert echo(connect(), b"again") == b"again"


def test_modes_may_change_at_any_time_under_traffic(connect, proxy):
    done = threading.Event()

    def chatter() -> None:
        while not done.is_set():
            with suppress(OSError), socket.create_connection(proxy.address, timeout=0.2) as client:
                client.settimeout(0.2)
                echo(client, b"x" * 10_000)

    threads = [threading.Thread(target=chatter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        for change in (proxy.cut, proxy.mend, proxy.stall, proxy.mend, proxy.refuse, proxy.mend):
            change()
    done.set()
    for thread in threads:
        thread.join()
    assert echo(connect(), b"well") == b"well"


def test_close_leaves_no_thread_and_no_connection(server):
    proxy = CutProxy(server.address)
    client = socket.create_connection(proxy.address, timeout=5)
    echo(client, b"x")
    proxy.close()
    proxy.close()
    assert not any(thread.name == f"cut-proxy-{proxy.port}" for thread in threading.enumerate())
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address, timeout=5)
    with pytest.raises(RuntimeError):
        proxy.cut()
