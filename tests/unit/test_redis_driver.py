"""What only the Redis driver does: its URLs, its words for what is wrong, TLS, Sentinel, Cluster, databases.

The guarantees that all drivers share are the contract suite's business.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dse.core.tls import Tls
from dse.core.transport import Address, ConnectionState, Delivery, TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.certificates import files_for
from dse.testing.redis_server import RedisCluster, RedisSentinelSet, RedisServer
from dse.transports._redis_wire import MORE, Endpoint, Wire, pack
from dse.transports.redis import RedisTransport

SECRET = "Tr0ub4dor&3"


class Events:
    """Keeps what a transport reports."""

    def __init__(self) -> None:
        self.got: list[tuple[Address, bytes]] = []
        self.undelivered: list[tuple[Address, bytes]] = []
        self.states: list[ConnectionState] = []
        self.on_frame: Callable[[Address, bytes], None] = lambda address, frame: None
        self._changed = threading.Condition()

    def received(self, address: Address, frame: bytes) -> None:
        self.on_frame(address, frame)
        with self._changed:
            self.got.append((address, frame))
            self._changed.notify_all()

    def undeliverable(self, address: Address, frame: bytes) -> None:
        with self._changed:
            self.undelivered.append((address, frame))
            self._changed.notify_all()

    def state_changed(self, state: ConnectionState) -> None:
        with self._changed:
            self.states.append(state)
            self._changed.notify_all()

    def wait(self, condition: Callable[[Events], bool], timeout: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout), (self.got, self.undelivered, self.states)


class Bus:
    """Opens transports on one bus of a random name, and closes them."""

    def __init__(self) -> None:
        self.name = f"bus {secrets.token_hex(4)}"
        self.opened: list[RedisTransport] = []

    def make(self, url: str) -> tuple[RedisTransport, Events]:
        events = Events()
        transport = RedisTransport(TransportUrl.parse(url), bus=self.name, events=events)
        self.opened.append(transport)
        return transport, events

    def open(self, url: str) -> tuple[RedisTransport, Events]:
        transport, events = self.make(url)
        transport.open()
        return transport, events


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    for transport in bus.opened:
        transport.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    with RedisServer(password=SECRET) as server:
        yield server


def direct(name: str = "x") -> Address:
    return Address(Delivery.DIRECT, name)


def anycast(name: str = "x") -> Address:
    return Address(Delivery.ANYCAST, name)


def fanout(name: str = "x") -> Address:
    return Address(Delivery.FANOUT, name)


def with_options(url: str, **options: object) -> str:
    return url + ("&" if "?" in url else "?") + "&".join(f"{name}={value}" for name, value in options.items())


def without_password(url: str, userinfo: str = "") -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{userinfo}{rest.rpartition('@')[2]}"


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("redis://", "host"),
            ("redis://a,b/0", "several hosts"),
            ("redis://a/prod", "'prod'"),
            ("redis://a/-1", "'-1'"),
            ("redis://a/0/1", "'0/1'"),
            ("redis+tls://a", "redis+tls"),
            ("redis+sentinel://a", "master"),
            ("redis+sentinel://a/mymaster/x", "'x'"),
            ("redis+cluster://a,b/1", "'1'"),
            ("redis://a?nonsense=1", "ssl_ca_certs"),
            ("redis://a?ssl_ca_certs=/ca.pem", "rediss://"),
            ("rediss://a?ssl=no", "ssl"),
            ("rediss://a?ssl_ca_certs=/does/not/exist", "ssl_ca_certs"),
            ("rediss://a?ssl_certfile=/does/not/exist", "ssl_certfile"),
            ("rediss://a?ssl_keyfile=/k.pem", "ssl_certfile"),
            ("rediss://a?ssl_check_hostname=perhaps", "ssl_check_hostname"),
            ("redis://a?sentinel_password=x", "sentinel"),
            ("redis://a?connect_timeout=0", "connect_timeout"),
        ],
    )
    def test_says_which_part_is_wrong(self, bus: Bus, url: str, part: str) -> None:
        with pytest.raises(InvalidUrl) as caught:
            bus.make(url.replace("://a", f"://me:{SECRET.replace('&', '%26')}@a"))
        assert part in str(caught.value)
        assert "Tr0ub" not in str(caught.value)

    @pytest.mark.parametrize("url", ["redis://a", "redis://a/", "redis://[::1]:7/3", "redis+sentinel://a,b:1/m"])
    def test_good_ones_are_taken(self, bus: Bus, url: str) -> None:
        bus.make(url)


class TestRefusal:
    """A server that cannot be used is a typed error, in time, in words, without the password."""

    def refused(self, bus: Bus, url: str, *, within: float = 1.5) -> str:
        transport, events = bus.make(with_options(url, connect_timeout=1))
        began = time.monotonic()
        with pytest.raises(TransportUnavailable) as caught:
            transport.open()
        assert time.monotonic() - began < within
        assert caught.value.url == str(transport.url)
        assert "Tr0ub" not in str(caught.value) + repr(caught.value.cause)
        assert events.states == []
        return str(caught.value)

    def test_wrong_password(self, bus: Bus, locked_server: RedisServer) -> None:
        url = without_password(locked_server.direct_url, ":Tr0ubwrong@")
        assert "refuses the user name or password" in self.refused(bus, url)

    def test_unknown_user(self, bus: Bus, locked_server: RedisServer) -> None:
        url = without_password(locked_server.direct_url, "nobody:Tr0ub@")
        assert "refuses the user name or password" in self.refused(bus, url)

    def test_no_password(self, bus: Bus, locked_server: RedisServer) -> None:
        assert "needs a password" in self.refused(bus, without_password(locked_server.direct_url))

    def test_right_password(self, bus: Bus, locked_server: RedisServer) -> None:
        bus.open(locked_server.direct_url)

    def test_database_that_is_not_there(self, bus: Bus, server: RedisServer) -> None:
        assert "database 9999" in self.refused(bus, server.direct_url.replace("/0", "/9999"))

    def test_user_without_rights(self, bus: Bus, server: RedisServer) -> None:
        server.command("ACL", "SETUSER", "deaf", "on", "nopass", "+@all", "-subscribe", "allchannels", "allkeys")
        transport, _ = bus.open(without_password(server.direct_url, "deaf:x@"))
        with pytest.raises(TransportUnavailable, match="does not permit"):
            transport.listen(direct())

    def test_nobody_there(self, bus: Bus) -> None:
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            assert "refused the connection" in self.refused(bus, f"redis://127.0.0.1:{unused.getsockname()[1]}")

    def test_unknown_host(self, bus: Bus) -> None:
        assert "cannot be resolved" in self.refused(bus, "redis://no-such-host.invalid", within=6)

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster"])
    def test_silence(self, bus: Bus, scheme: str) -> None:
        with answering(b"") as port:
            assert "did not answer within" in self.refused(bus, f"{scheme}://127.0.0.1:{port}")

    def test_answer_in_drips(self, bus: Bus) -> None:
        with answering(b"%7\r\n$6\r\nserver\r\n" * 100, drip=0.2) as port:
            assert "did not answer within 1 s" in self.refused(bus, f"redis://127.0.0.1:{port}")

    @pytest.mark.parametrize(
        "greeting",
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01", b"SSH-2.0-x\r\n", b"+OK POP3 ready\r\n"],
    )
    def test_other_protocol(self, bus: Bus, greeting: bytes) -> None:
        with answering(greeting) as port:
            assert "does not speak the Redis protocol" in self.refused(bus, f"redis://127.0.0.1:{port}")

    def test_too_old(self, bus: Bus) -> None:
        with answering(b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n") as port:
            assert "Redis 6 or later" in self.refused(bus, f"redis://127.0.0.1:{port}")

    def test_no_tls(self, bus: Bus) -> None:
        with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            assert "TLS" in self.refused(bus, f"rediss://127.0.0.1:{port}")

    def test_close_ends_a_hanging_open(self, bus: Bus) -> None:
        with answering(b"") as port:
            transport, _ = bus.make(f"redis://127.0.0.1:{port}?connect_timeout=30")
            failed: list[BaseException] = []

            def run() -> None:
                try:
                    transport.open()
                except TransportUnavailable as error:
                    failed.append(error)

            opener = threading.Thread(target=run)
            opener.start()
            deadline = time.monotonic() + 5
            while opener.is_alive() and time.monotonic() < deadline:
                transport.close()
                opener.join(0.05)
            assert failed


@contextlib.contextmanager
def answering(answer: bytes, *, drip: float = 0.0) -> Iterator[int]:
    """Listen on a port of one's own, and answer whoever connects in the same way, then keep still."""
    done = threading.Event()
    peers: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peers.append(peer)
                for start in range(0, len(answer), 1 if drip else len(answer) or 1):
                    peer.sendall(answer[start : start + 1] if drip else answer)
                    if drip and done.wait(drip):
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for peer in peers:
                peer.close()


class TestDatabase:
    def test_is_a_bus_of_its_own(self, bus: Bus, server: RedisServer) -> None:
        zero, in_zero = bus.open(server.direct_url)
        one, in_one = bus.open(server.direct_url.replace("/0", "/1"))
        for transport in (zero, one):
            transport.listen(direct())
            transport.listen(anycast())
        zero.send(direct(), b"0")
        one.send(direct(), b"1")
        zero.send(anycast(), b"0")
        one.send(anycast(), b"1")
        in_zero.wait(lambda e: sorted(frame for _, frame in e.got) == [b"0", b"0"])
        in_one.wait(lambda e: sorted(frame for _, frame in e.got) == [b"1", b"1"])


class TestHandlers:
    """A handler may change what is listened on, though it runs in the thread that reads the confirmation."""

    @pytest.mark.parametrize("make", [direct, anycast])
    def test_listen_and_unlisten_inside(self, bus: Bus, server: RedisServer, make: Callable[[str], Address]) -> None:
        transport, events = bus.open(server.direct_url)

        def on_frame(address: Address, frame: bytes) -> None:
            if frame == b"go":
                for other in (direct("d"), anycast("a"), fanout("f")):
                    transport.listen(other)
                    transport.send(other, b"inside")
                transport.unlisten(make("gone"))

        events.on_frame = on_frame
        transport.listen(make("here"))
        transport.listen(make("gone"))
        transport.send(make("here"), b"go")
        for number in range(20):
            transport.send(make("here"), b"%d" % number)
        events.wait(lambda e: len(e.got) == 24)
        here = [frame for address, frame in events.got if address == make("here")]
        assert here == [b"go", *(b"%d" % number for number in range(20))]
        transport.send(make("gone"), b"too late")
        events.wait(lambda e: e.undelivered == [(make("gone"), b"too late")])

    def test_a_new_list_wakes_the_pop_at_once(self, bus: Bus, server: RedisServer) -> None:
        transport, events = bus.open(server.direct_url)
        transport.listen(anycast("first"))
        for number in range(50):
            transport.listen(anycast(f"n{number}"))
            transport.send(anycast(f"n{number}"), b"")
            events.wait(lambda e, count=number + 1: len(e.got) == count, 1.0)  # type: ignore[misc]

    def test_close_leaves_nothing(self, bus: Bus, server: RedisServer) -> None:
        transport, _ = bus.open(server.direct_url)
        for number in range(5):
            transport.listen(anycast(f"n{number}"))
        transport.unlisten(anycast("n0"))
        transport.close()
        deadline = time.monotonic() + 2
        while (left := server.leftovers(bus.name)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left
        assert server.command("DBSIZE") == 0


class TestClosingListener:
    def test_leaves_the_rest_to_the_others(self, bus: Bus, server: RedisServer) -> None:
        """What a closing or leaving listener has popped and can no longer hand on goes back."""
        sender, sent = bus.open(server.direct_url)
        sides = [bus.open(server.direct_url) for _ in range(3)]
        for transport, _ in sides:
            transport.listen(anycast())
        for number in range(2000):
            sender.send(anycast(), b"%d" % number)
            if number == 1000:
                sides[0][0].close()
            elif number % 100 == 0:
                sides[1][0].unlisten(anycast())
                sides[1][0].listen(anycast())

        def all_numbers() -> list[int]:
            return sorted(int(frame) for _, events in sides for _, frame in events.got)

        deadline = time.monotonic() + 10
        while len(all_numbers()) < 2000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all_numbers() == list(range(2000))
        assert sent.undelivered == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for localhost."""
    return files_for("localhost", tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_port(certificates: Path) -> Iterator[int]:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    files = {"tls-cert-file": "cert.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
    config = {name: str(certificates / file) for name, file in files.items()}
    with RedisServer(config={"tls-port": str(port), **config}):
        yield port


class Dripping:
    """Passes on one connection to a local port, and of what comes back only the first bytes when told so."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.held = threading.Event()
        """Some bytes were passed on, and others are kept back."""
        self._state = threading.Condition()
        self._part: int | None = None
        self._server = socket.create_connection(("127.0.0.1", port))
        self._client: socket.socket | None = None
        self._threads = [threading.Thread(target=work) for work in (self._forth, self._back)]

    def pass_only(self, part: int) -> None:
        with self._state:
            self._part = part

    def pass_all(self) -> None:
        with self._state:
            self._part = None
            self._state.notify_all()

    def _forth(self) -> None:
        self._client, _ = self._listener.accept()
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads[1].start()
        with contextlib.suppress(OSError):
            while data := self._client.recv(65536):
                self._server.sendall(data)

    def _back(self) -> None:
        assert self._client is not None
        with contextlib.suppress(OSError):
            while data := self._server.recv(65536):
                with self._state:
                    part = self._part
                    self._client.sendall(data[:part])
                    if part is not None:
                        self.held.set()
                        self._state.wait_for(lambda: self._part is None, 10)
                        self._client.sendall(data[part:])

    def __enter__(self) -> Dripping:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self.pass_all()
        for end in (self._listener, self._server, self._client):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


class TestTls:
    def url(
        self, certificates: Path, port: int, *, host: str = "localhost", client: bool = True, heartbeat: float = 2
    ) -> str:
        url = f"rediss://{host}:{port}?heartbeat={heartbeat}&connect_timeout=3&ssl_ca_certs={certificates}/ca.pem"
        return url + (f"&ssl_certfile={certificates}/cert.pem&ssl_keyfile={certificates}/key.pem" if client else "")

    def test_frames_of_all_sizes_both_ways_at_once(self, bus: Bus, certificates: Path, tls_port: int) -> None:
        url = self.url(certificates, tls_port)
        sides = [bus.open(url), bus.open(url)]
        sizes = (0, 1, 1000, 16_384, 65_536, 100_000, 3_000_000)
        frames = [bytes([size % 251]) * size for size in sizes] + [b"x"] * 2000
        for number, (transport, _) in enumerate(sides):
            transport.listen(direct(str(number)))
            transport.listen(anycast(str(number)))

        def send(number: int) -> None:
            for frame in frames:
                sides[number][0].send(direct(str(1 - number)), frame)
            sides[number][0].send(anycast(str(1 - number)), b"any")

        senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        for number, (_, events) in enumerate(sides):
            events.wait(lambda e: len(e.got) == len(frames) + 1, 20)
            assert [frame for address, frame in events.got if address == direct(str(number))] == frames

    def test_no_round_trip_waits_for_the_next_look_at_the_connection(
        self, bus: Bus, certificates: Path, tls_port: int
    ) -> None:
        url = self.url(certificates, tls_port, heartbeat=20)  # a frame left lying would lie for 5 s
        (here, heard_here), (there, heard_there) = bus.open(url), bus.open(url)
        here.listen(direct("here"))
        there.listen(direct("there"))
        for trip in range(1, 501):
            here.send(direct("there"), b"%d" % trip)
            heard_there.wait(lambda e, trip=trip: len(e.got) == trip, 2.5)  # type: ignore[misc]
            there.send(direct("here"), b"%d" % trip)
            heard_here.wait(lambda e, trip=trip: len(e.got) == trip, 2.5)  # type: ignore[misc]

    def test_answers_that_come_in_one_record_are_all_taken_at_once(
        self, bus: Bus, certificates: Path, tls_port: int
    ) -> None:
        url = self.url(certificates, tls_port, heartbeat=20)
        (here, heard), (there, sent) = bus.open(url), bus.open(url)
        here.listen(direct("here"))
        there.listen(direct("there"))

        def answer(address: Address, frame: bytes) -> None:
            for n in range(20):
                there.send(direct("here"), b"%s %d" % (frame, n))
                there.send(direct("nobody"), b"%s %d" % (frame, n))

        sent.on_frame = answer
        for trip in range(1, 301):
            here.send(direct("there"), b"%d a" % trip)
            here.send(direct("there"), b"%d b" % trip)
            heard.wait(lambda e, trip=trip: len(e.got) == 40 * trip, 2.5)  # type: ignore[misc]
            sent.wait(lambda e, trip=trip: len(e.undelivered) == 40 * trip, 2.5)  # type: ignore[misc]
        expected = [b"%d %c %d" % (trip, half, n) for trip in range(1, 301) for half in b"ab" for n in range(20)]
        assert [frame for _, frame in heard.got] == expected
        assert [frame for _, frame in sent.undelivered] == expected

    @pytest.mark.parametrize("part", [1, 4, 5, 6, 20])
    def test_who_has_little_time_does_not_wait_for_the_rest_of_a_record(
        self, certificates: Path, tls_port: int, part: int
    ) -> None:
        files = (str(certificates / f"{name}.pem") for name in ("ca", "cert", "key"))
        tls = Tls(TransportUrl.parse("rediss://test"), *files)
        with Dripping(tls_port) as relay:
            wire = Wire("rediss://test", Endpoint("localhost", relay.port, tls=tls))
            try:
                wire.open(time.monotonic() + 5)
                wire.run(send_timeout=5, receive_timeout=20)
                relay.pass_only(part)
                with wire.lock:
                    wire.send(pack(("PING",)))
                assert relay.held.wait(5)
                begun = time.monotonic()
                assert not wire.receive(0.1)
                assert time.monotonic() - begun < 2.5
                relay.pass_all()
                assert wire.receive(5)
                assert (wire.gets(False), wire.gets(False)) == (b"PONG", MORE)
            finally:
                wire.drop()

    def test_certificate_that_nobody_vouches_for(self, bus: Bus, tls_port: int) -> None:
        transport, _ = bus.make(f"rediss://localhost:{tls_port}")
        with pytest.raises(TransportUnavailable, match="certificate that is not trusted"):
            transport.open()

    def test_host_name_is_checked_unless_told_otherwise(self, bus: Bus, certificates: Path, tls_port: int) -> None:
        url = self.url(certificates, tls_port, host="127.0.0.1")
        transport, _ = bus.make(url)
        with pytest.raises(TransportUnavailable, match="certificate that is not trusted"):
            transport.open()
        bus.open(with_options(url, ssl_check_hostname="no"))

    def test_client_certificate_is_needed(self, bus: Bus, certificates: Path, tls_port: int) -> None:
        transport, _ = bus.make(self.url(certificates, tls_port, client=False))
        with pytest.raises(TransportUnavailable):
            transport.open()

    def test_plain_client_on_a_tls_port(self, bus: Bus, tls_port: int) -> None:
        transport, _ = bus.make(f"redis://localhost:{tls_port}?connect_timeout=1")
        with pytest.raises(TransportUnavailable):
            transport.open()


class TestSentinel:
    @pytest.fixture
    def sentinels(self) -> Iterator[RedisSentinelSet]:
        with RedisSentinelSet(password=SECRET) as sentinels:
            yield sentinels

    def test_follows_the_master(self, bus: Bus, sentinels: RedisSentinelSet) -> None:
        url = with_options(sentinels.url, heartbeat=2)
        sender, sent = bus.open(url)
        listener, heard = bus.open(url)
        listener.listen(direct())
        listener.listen(anycast())
        for act in (None, sentinels.failover, sentinels.stop_master):
            if act is not None:
                sent.states.clear()
                heard.states.clear()
                act()
                for events in (sent, heard):
                    events.wait(lambda e: ConnectionState.CONNECTED in e.states, 30)
            heard.got.clear()
            sender.send(direct(), b"d")
            sender.send(anycast(), b"a")
            heard.wait(lambda e: sorted(frame for _, frame in e.got) == [b"a", b"d"])

    def test_asks_the_next_sentinel_and_says_what_each_said(self, bus: Bus, sentinels: RedisSentinelSet) -> None:
        with contextlib.closing(socket.socket()) as unused, answering(b"") as hung:
            unused.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{unused.getsockname()[1]},127.0.0.1:{hung},"
            url = with_options(sentinels.url.replace("127.0.0.1", dead + "127.0.0.1", 1), connect_timeout=3)
            bus.open(url)
            transport, _ = bus.make(url.replace("mymaster", "other"))
            with pytest.raises(TransportUnavailable) as caught:
                transport.open()
        for words in ("refused the connection", "did not answer", "knows no master 'other'"):
            assert words in str(caught.value)
        assert "Tr0ub" not in str(caught.value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(password=SECRET) as cluster:
        yield cluster


class TestCluster:
    def test_every_slot_is_served(self, bus: Bus, cluster: RedisCluster) -> None:
        sender, sent = bus.open(cluster.url)
        listener, heard = bus.open(cluster.url)
        names = [f"name {number}" for number in range(40)]
        for name in names:
            for address in (direct(name), anycast(name), fanout(name)):
                listener.listen(address)
            sender.listen(fanout(name))
        for name in names:
            for address in (direct(name), anycast(name), fanout(name)):
                sender.send(address, name.encode())
            sender.send(direct(name + "!"), b"")
            sender.send(anycast(name + "!"), b"")
        heard.wait(lambda e: len(e.got) == 120)
        sent.wait(lambda e: len(e.got) == 40 and len(e.undelivered) == 80)
        assert all(address.name.encode() == frame for address, frame in heard.got)

    def test_comes_back_with_a_member(self, bus: Bus, cluster: RedisCluster) -> None:
        transport, events = bus.open(with_options(cluster.url, heartbeat=2))
        addresses = [make(f"n{number}") for number in range(10) for make in (direct, anycast)]
        for address in addresses:
            transport.listen(address)
        cluster.stop_node(1)
        events.wait(lambda e: ConnectionState.DISCONNECTED in e.states)
        with pytest.raises(TransportUnavailable):
            transport.send(addresses[0], b"")
        cluster.start()
        events.wait(lambda e: e.states[-1] == ConnectionState.CONNECTED, 30)
        for address in addresses:
            transport.send(address, b"")
        events.wait(lambda e: {address for address, _ in e.got} == set(addresses))

    def test_one_server_is_no_cluster(self, bus: Bus, server: RedisServer) -> None:
        transport, _ = bus.make(server.direct_url.replace("redis://", "redis+cluster://"))
        with pytest.raises(TransportUnavailable, match="cluster"):
            transport.open()
