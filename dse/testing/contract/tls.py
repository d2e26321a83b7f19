"""TLS, as every driver does it that makes its own connections: the options `dse.core.tls.TLS_OPTIONS`.

A driver's test file says how its broker is set up, and takes the tests:

    from dse.testing.contract.tls import TestTls, TlsBroker, tls_client

    @pytest.fixture(scope="module")
    def tls_broker(tmp_path_factory):
        with MyBroker(tmp_path_factory.mktemp("tls")) as broker:
            yield broker
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pytest

from dse.core.transport import ConnectionState, Delivery, Transport
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.certificates import Authority, Issued
from dse.testing.contract.recorder import Client, address, eventually, with_options

__all__ = ["TestTls", "TlsBroker", "tls_client"]

SECRET = "Tr0ub4dor"
TIMEOUT = 3.0  # seconds for connecting
_BUSY = 2.0  # seconds that a busy machine may need besides

Connect = Callable[..., Client]


class TlsBroker(ABC):
    """A broker with a TLS port on 127.0.0.1. It shows `shown`, and wants a certificate that `wanted` vouches for.

    A subclass starts it with these files and sets `port` and `plain_port`. Files are replaced, then `reload` is called.
    scheme, plain: of URLs with TLS and without. hello: what such a server says before the handshake.
    """

    driver: type[Transport]
    scheme: ClassVar[str]
    plain: ClassVar[str]
    hello: ClassVar[bytes] = b""
    no_tls: ClassVar[str] = "TLS"
    """What is said of a server that has none."""
    port: int
    plain_port: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, self.theirs = Authority(folder / "ours"), Authority(folder / "theirs")
        self.right = self.ours.issue("localhost")
        self.client = self.ours.issue("client.test")
        self.shown = self.right.copy(folder / "shown")
        self.wanted = folder / "wanted.pem"
        self.wanted.write_bytes(self.ours.file.read_bytes())

    @abstractmethod
    def reload(self) -> None:
        """Take over what the files hold now; connections stay."""

    @abstractmethod
    def restart(self) -> None:
        """Kill the broker and start it again."""

    @abstractmethod
    def close(self) -> None:
        """End the broker."""

    def show(self, issued: Issued) -> None:
        """Show another certificate from now on; returns when it does."""
        issued.put(self.shown)
        self.reload()
        wanted = ssl.PEM_cert_to_DER_cert(issued.certificate.read_text().partition("-----END")[0] + _END)
        eventually(lambda: self._presents() == wanted, "the broker shows its new certificate")

    def _presents(self) -> bytes | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port), 5) as plain:
            if self.hello:
                plain.recv(65536)
            with contextlib.suppress(OSError), context.wrap_socket(plain) as sealed:
                return sealed.getpeercert(True)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


_END = "-----END CERTIFICATE-----\n"


@pytest.fixture
def tls_client(tls_broker: TlsBroker) -> Iterator[Connect]:
    """Makes clients of the broker, on a bus of the test's own; by default with all that is right, and not opened."""
    clients: list[Client] = []
    bus = f"test-{uuid.uuid4().hex[:12]}"

    def make(
        *,
        host: str = "localhost",
        port: int | None = None,
        scheme: str | None = None,
        ca: Path | None = tls_broker.ours.file,
        own: Issued | None = tls_broker.client,
        **options: object,
    ) -> Client:
        url = f"{scheme or tls_broker.scheme}://{host}:{port or tls_broker.port}"
        options = {"heartbeat": 2, "connect_timeout": TIMEOUT} | options
        if ca is not None:
            options["ssl_ca_certs"] = ca
        if own is not None:
            options |= {"ssl_certfile": own.certificate, "ssl_keyfile": own.key}
        clients.append(Client(tls_broker.driver, with_options(url, **options), bus))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def refused(client: Client, *words: str, within: float = TIMEOUT) -> str:
    """Opening fails in time, in words that name the culprit and show no password; return them."""
    began = time.monotonic()
    with pytest.raises(TransportUnavailable) as caught:
        client.open()
    assert time.monotonic() - began < within + _BUSY
    said = str(caught.value)
    for each in words:
        assert each in said
    assert SECRET not in said + repr(caught.value.cause)
    assert client.states == []
    return said


def round_trip(client: Client) -> None:
    for delivery in Delivery:
        where = address(delivery)
        client.listen(where)
        client.send(where, b"over TLS")
        client.wait_frame(where, b"over TLS")


class Server:
    """A server on loopback that does to each connection what it is told."""

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._run, args=(connection,)))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._serve(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._connections):
            each.close()


class SlowLink:
    """Passes on connections to a local port, to there at `rate` bytes a second once `slow` is set."""

    rate = 1_000_000

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # or it would take in too much at once
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self.slow = threading.Event()
        self._full_speed = threading.Event()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def full_speed(self) -> None:
        self._full_speed.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._ends.append(client)
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._ends.append(broker)
                for ends in ((client, broker), (broker, client)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=(*ends, ends[0] is client)))
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, forth: bool) -> None:
        due = 0.0
        with contextlib.suppress(OSError):
            while data := source.recv(16_384):
                target.sendall(data)
                if forth and self.slow.is_set():
                    due = max(due, time.monotonic() - 0.5) + len(data) / self.rate  # whatever else the machine does
                    self._full_speed.wait(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *error: object) -> None:
        self._full_speed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


class TestTls:
    """What is right works, what is not is refused in words, in time, and never answered with plain text."""

    @pytest.fixture(autouse=True)
    def _right_again(self, tls_broker: TlsBroker) -> Iterator[None]:
        yield
        if tls_broker.shown.certificate.read_bytes() != tls_broker.right.certificate.read_bytes():
            tls_broker.show(tls_broker.right)

    def test_what_is_right_works(self, tls_client: Connect) -> None:
        client = tls_client()
        client.open()
        round_trip(client)

    def test_a_frame_may_take_longer_than_a_heartbeat_while_the_link_takes_it(
        self, tls_broker: TlsBroker, tls_client: Connect
    ) -> None:
        with SlowLink(tls_broker.port) as link:
            # Longer than a third of a socket's buffer takes on the link: before that it is not ready for more.
            client = tls_client(port=link.port, heartbeat=3)
            client.open()
            where = address()
            client.listen(where)
            frame = os.urandom(client.transport.capabilities.max_frame)
            link.slow.set()
            begun = time.monotonic()
            client.send(where, frame)
            assert time.monotonic() - begun > 3.0  # or it was no test
            link.full_speed()
            client.wait_frame(where, frame)
            assert client.states == [ConnectionState.CONNECTED]
            client.close()

    # The server's certificate

    def test_a_server_of_another_authority_is_refused(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        tls_broker.show(tls_broker.theirs.issue("localhost"))
        refused(
            tls_client(), "certificate that is not trusted", f"no authority in {tls_broker.ours.file} (ssl_ca_certs)"
        )

    def test_an_expired_certificate_is_refused(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        tls_broker.show(tls_broker.ours.issue("localhost", days=(-3, -1)))
        refused(tls_client(), "certificate that is not trusted: certificate has expired; here it is 20")

    def test_a_certificate_that_is_not_valid_yet_is_refused(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        tls_broker.show(tls_broker.ours.issue("localhost", days=(1, 3)))
        refused(tls_client(), "certificate that is not trusted: certificate is not yet valid; here it is 20")

    def test_a_certificate_for_another_host_is_refused(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        tls_broker.show(tls_broker.ours.issue("elsewhere.test"))
        refused(tls_client(), "certificate that is not trusted", "'localhost'", "ssl_server_name")

    def test_the_name_of_the_server_can_be_another_than_the_host(self, tls_client: Connect) -> None:
        refused(tls_client(host="127.0.0.1"), "certificate that is not trusted", "'127.0.0.1'")
        refused(tls_client(ssl_server_name="elsewhere.test"), "certificate that is not trusted", "'elsewhere.test'")
        client = tls_client(host="127.0.0.1", ssl_server_name="localhost")
        client.open()
        round_trip(client)

    def test_the_check_of_the_host_can_be_turned_off_and_nothing_else_goes_with_it(
        self, tls_broker: TlsBroker, tls_client: Connect
    ) -> None:
        client = tls_client(host="127.0.0.1", ssl_check_hostname="no")
        client.open()
        round_trip(client)
        refused(tls_client(ca=tls_broker.theirs.file, ssl_check_hostname="no"), "certificate that is not trusted")

    def test_without_a_file_the_authorities_of_the_system_are_asked(
        self, tls_broker: TlsBroker, tls_client: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused(tls_client(ca=None), "certificate that is not trusted", "no authority that this system trusts")
        monkeypatch.setenv("SSL_CERT_FILE", str(tls_broker.ours.file))
        client = tls_client(ca=None)
        client.open()
        round_trip(client)

    # Ours

    def test_a_broker_that_wants_a_client_certificate_and_gets_none(self, tls_client: Connect) -> None:
        refused(tls_client(own=None), "a client certificate", "ssl_certfile")

    def test_a_client_certificate_of_another_authority(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        own = tls_broker.theirs.issue("client.test")
        refused(tls_client(own=own), f"accept the client certificate {own.certificate} (ssl_certfile)")

    def test_a_client_certificate_that_has_expired(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        own = tls_broker.ours.issue("client.test", days=(-3, -1))
        refused(tls_client(own=own), f"accept the client certificate {own.certificate} (ssl_certfile)")

    def test_a_key_with_a_password(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        own = tls_broker.client.encrypted(SECRET)
        client = tls_client(own=own, ssl_keyfile_password=SECRET)
        client.open()
        round_trip(client)
        with pytest.raises(InvalidUrl, match="ssl_keyfile_password") as caught:
            tls_client(own=own)
        assert str(own.key) in str(caught.value)

    def test_files_that_cannot_be_used(self, tls_broker: TlsBroker, tls_client: Connect, tmp_path: Path) -> None:
        garbage, missing = tmp_path / "garbage.pem", tmp_path / "missing.pem"
        garbage.write_bytes(os.urandom(3000))
        client = tls_broker.client
        for arguments in (
            {"ca": missing},
            {"ca": garbage},
            {"own": Issued(missing, client.key)},
            {"own": Issued(garbage, client.key)},
            {"own": Issued(client.certificate, missing)},
            {"own": Issued(client.certificate, garbage)},
            {"own": Issued(client.certificate, tls_broker.right.key)},
        ):
            with pytest.raises(InvalidUrl) as caught:
                tls_client(**arguments)
            culprit = {"ca": "ssl_ca_certs", "own": "file"}[next(iter(arguments))]
            assert culprit in str(caught.value)
            assert any(str(file) in str(caught.value) for file in (missing, garbage, tls_broker.right.key))

    # The other side is none

    def test_a_plain_client_on_a_tls_port(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        client = tls_client(scheme=tls_broker.plain, ca=None, own=None)
        refused(client, "TLS")

    def test_a_tls_client_on_a_plain_port(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        refused(tls_client(port=tls_broker.plain_port, connect_timeout=1), tls_broker.no_tls, within=1)

    def test_nothing_is_said_in_plain_text(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        heard: list[bytes] = []

        def answer(connection: socket.socket) -> None:
            if tls_broker.hello:
                connection.sendall(tls_broker.hello)
            while data := connection.recv(65536):
                heard.append(data)
                connection.sendall(b"+OK\r\n")

        with Server(answer) as server:
            refused(tls_client(host=f"user:{SECRET}@localhost", port=server.port), "TLS")
        assert heard
        assert heard[0][:2] == b"\x16\x03"  # the first word of a handshake
        assert all(secret not in b"".join(heard) for secret in (SECRET.encode(), b"user"))

    def test_a_server_that_hangs_in_the_handshake(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        def hang(connection: socket.socket) -> None:
            connection.sendall(tls_broker.hello)
            while connection.recv(65536):
                pass

        def drip(connection: socket.socket) -> None:
            connection.sendall(tls_broker.hello)
            connection.recv(65536)
            for byte in b"\x16\x03\x03\x40\x00" + bytes(1000):  # a record that never ends
                connection.sendall(bytes([byte]))
                time.sleep(0.05)

        for serve in (hang, drip):
            with Server(serve) as server:
                client = tls_client(port=server.port, connect_timeout=0.7)
                refused(client, "did not answer within 0.7 s", "TLS", within=0.7)

    def test_a_server_whose_tls_is_too_old(self, tls_broker: TlsBroker, tls_client: Connect) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls_broker.right.certificate, tls_broker.right.key)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

        def serve(connection: socket.socket) -> None:
            connection.sendall(tls_broker.hello)
            with contextlib.suppress(ssl.SSLError):
                context.wrap_socket(connection.dup(), server_side=True).close()

        with Server(serve) as server:
            refused(tls_client(port=server.port), "1.2 or later is needed")

    # Later

    def test_certificates_that_were_renewed_on_both_sides_count_at_the_next_connection(
        self, tls_broker: TlsBroker, tls_client: Connect, tmp_path: Path
    ) -> None:
        own = tls_broker.client.copy(tmp_path / "own")
        ca = tmp_path / "ca.pem"
        ca.write_bytes(tls_broker.ours.file.read_bytes())
        client = tls_client(ca=ca, own=own)
        client.open()
        # Another authority, which the client does not know: no connection, and nothing goes out without one.
        tls_broker.theirs.issue("localhost").put(tls_broker.shown)
        tls_broker.wanted.write_bytes(tls_broker.theirs.file.read_bytes())
        try:
            tls_broker.restart()
            client.wait_state(ConnectionState.DISCONNECTED)
            with pytest.raises(TransportUnavailable):
                client.send(address(), b"to nobody")
            refused(tls_client(ca=ca, own=own), "certificate that is not trusted")
            assert client.states[-1] == ConnectionState.DISCONNECTED
            ca.write_bytes(tls_broker.theirs.file.read_bytes())
            tls_broker.theirs.issue("client.test").put(own)
            client.wait_state(ConnectionState.CONNECTED, times=2)
            round_trip(client)
        finally:
            tls_broker.wanted.write_bytes(tls_broker.ours.file.read_bytes())
            tls_broker.show(tls_broker.right)
