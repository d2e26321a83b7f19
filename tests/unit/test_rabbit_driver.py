"""What only the RabbitMQ driver does: its URLs, its words for what is wrong, TLS, failover, alarms, its frames.

The guarantees that all drivers share are the contract suite's business.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dse.core.transport import Address, ConnectionState, Delivery, TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.certificates import files_for
from dse.testing.rabbit_server import RabbitServer
from dse.transports import rabbit as driver
from dse.transports._rabbit_frames import HEARTBEAT, FrameParser, NotAmqp, message, publish_method
from dse.transports.rabbit import RabbitTransport

SECRET = "Tr0ub4dor&3"
ALARM = "rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})."
ALL_CLEAR = "rabbit_alarm:clear_alarm({resource_limit, memory, node()})."


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
        self.opened: list[RabbitTransport] = []

    def make(self, url: str) -> tuple[RabbitTransport, Events]:
        events = Events()
        transport = RabbitTransport(TransportUrl.parse(url), bus=self.name, events=events)
        self.opened.append(transport)
        return transport, events

    def open(self, url: str) -> tuple[RabbitTransport, Events]:
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
def server() -> Iterator[RabbitServer]:
    with RabbitServer(users={"anna": SECRET}) as server:
        yield server


def direct(name: str = "x") -> Address:
    return Address(Delivery.DIRECT, name)


def anycast(name: str = "x") -> Address:
    return Address(Delivery.ANYCAST, name)


def fanout(name: str = "x") -> Address:
    return Address(Delivery.FANOUT, name)


def host_of(url: str) -> str:
    return url.rpartition("@")[2].rstrip("/")


def refusal(bus: Bus, url: str) -> str:
    """Return what opening the URL raises, as text; it is raised within the connect timeout and hides the password."""
    transport, _ = bus.make(url)
    begun = time.monotonic()
    with pytest.raises(TransportUnavailable) as caught:
        transport.open()
    assert time.monotonic() - begun < transport.connect_timeout + 2.0  # what a busy machine adds
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert SECRET not in repr(transport.url)
    assert caught.value.url == str(transport.url)
    return str(caught.value)


def round_trip(transport: RabbitTransport, events: Events) -> None:
    for address in (direct("trip"), anycast("trip"), fanout("trip")):
        frame = secrets.token_bytes(8)
        transport.listen(address)
        transport.send(address, frame)
        events.wait(lambda e, expected=(address, frame): expected in e.got)  # type: ignore[misc]


class Listener:
    """A server that accepts, says `greeting` to each client and nothing more."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.clients: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
                self.clients.append(client)
                client.sendall(self.greeting)
            except OSError:
                return

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for client in self.clients:
            client.close()


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("rabbit+x://a", "rabbit, amqp or amqps"),
            ("rabbit://a?nonsense=1", "ssl_ca_certs"),
            ("rabbit://a?ssl_ca_certs=/ca.pem", "amqps://"),
            ("amqps://a?ssl_ca_certs=/does/not/exist", "ssl_ca_certs"),
            ("amqps://a?ssl_certfile=/does/not/exist", "ssl_certfile"),
            ("amqps://a?ssl_keyfile=/k.pem", "ssl_certfile"),
            ("amqps://a?ssl_check_hostname=perhaps", "ssl_check_hostname"),
            ("rabbit://a?connect_timeout=0", "connect_timeout"),
        ],
    )
    def test_says_which_part_is_wrong(self, bus: Bus, url: str, part: str) -> None:
        with pytest.raises(InvalidUrl, match=part):
            bus.make(url)

    @pytest.mark.parametrize(
        ("url", "user", "password", "vhost", "hosts"),
        [
            ("rabbit://", "guest", "guest", "/", [("localhost", 5672)]),
            ("amqp://h", "guest", "guest", "/", [("h", 5672)]),
            ("amqps://h", "guest", "guest", "/", [("h", 5671)]),
            ("rabbit://a:b@h1,h2:1/", "a", "b", "/", [("h1", 5672), ("h2", 1)]),
            ("rabbit://a:b%40@[::1]:7//", "a", "b@", "/", [("::1", 7)]),
            ("rabbit://a@h/%2f", "a", "", "/", [("h", 5672)]),
            ("rabbit://h/prod%20x", "guest", "guest", "prod x", [("h", 5672)]),
        ],
    )
    def test_follows_the_amqp_uri_specification(
        self, bus: Bus, url: str, user: str, password: str, vhost: str, hosts: list[tuple[str, int]]
    ) -> None:
        transport, _ = bus.make(url)
        login = transport.login
        assert (login.user, login.password, login.vhost, transport.hosts) == (user, password, vhost, hosts)

    def test_logs_in_with_a_password_of_odd_characters(self, bus: Bus, server: RabbitServer) -> None:
        round_trip(*bus.open(server.url_for("anna", SECRET)))


class TestRefusal:
    def test_of_a_wrong_password(self, bus: Bus, server: RabbitServer) -> None:
        url = server.url_for("guest", SECRET)
        assert "refuses the user name or password" in refusal(bus, url)

    def test_of_a_virtual_host_that_is_not_there(self, bus: Bus, server: RabbitServer) -> None:
        url = server.url_for("anna", SECRET, vhost="nowhere")
        assert "has no virtual host 'nowhere'" in refusal(bus, url)

    def test_of_a_closed_port(self, bus: Bus) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            said = refusal(bus, f"rabbit://a:{SECRET.replace('&', '%26')}@127.0.0.1:{bound.getsockname()[1]}")
        assert "refused the connection" in said

    def test_of_an_unknown_host(self, bus: Bus) -> None:
        assert "is not a known host" in refusal(bus, "rabbit://no-such-host.invalid")

    @pytest.mark.parametrize(
        "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command 'AMQP'\r\n", b"AMQP\x00\x01\x00\x00"]
    )
    def test_of_another_protocol(self, bus: Bus, greeting: bytes) -> None:
        with Listener(greeting) as other:
            assert "does not speak AMQP" in refusal(bus, f"rabbit://127.0.0.1:{other.port}")

    @pytest.mark.parametrize("scheme", ["rabbit", "amqps"])
    def test_of_a_server_that_says_nothing(self, bus: Bus, scheme: str) -> None:
        with Listener() as mute:
            said = refusal(bus, f"{scheme}://127.0.0.1:{mute.port}?connect_timeout=0.5")
        assert "did not answer within 0.5 s" in said

    def test_of_tls_where_the_broker_has_none(self, bus: Bus, server: RabbitServer) -> None:
        assert "does not speak TLS" in refusal(bus, f"amqps://127.0.0.1:{server.port}")

    def test_is_told_for_every_host(self, bus: Bus, server: RabbitServer) -> None:
        with Listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
            said = refusal(bus, f"rabbit://guest:wrong@127.0.0.1:{server.port},127.0.0.1:{other.port}")
        assert "refuses the user name or password" in said
        assert "does not speak AMQP" in said

    def test_ends_at_once_when_the_transport_is_closed(self, bus: Bus) -> None:
        with Listener() as mute:
            transport, _ = bus.make(f"rabbit://127.0.0.1:{mute.port}?connect_timeout=30")
            failures: list[BaseException] = []

            def open_it() -> None:
                try:
                    transport.open()
                except TransportUnavailable as error:
                    failures.append(error)

            opener = threading.Thread(target=open_it)
            opener.start()
            deadline = time.monotonic() + 10
            while not mute.clients:
                assert time.monotonic() < deadline
                opener.join(0.01)
            transport.close()
            opener.join(5)
        assert not opener.is_alive()
        assert failures


class TestSeveralHosts:
    def test_a_hung_and_a_closed_host_are_passed_over(self, bus: Bus, server: RabbitServer) -> None:
        with Listener() as mute, socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            hosts = f"127.0.0.1:{mute.port},127.0.0.1:{bound.getsockname()[1]},127.0.0.1:{server.port}"
            for _ in range(4):  # the order is random
                transport, events = bus.open(f"rabbit://{hosts}?connect_timeout=3")
                round_trip(transport, events)
                transport.close()

    def test_listeners_move_to_another_host_when_theirs_dies(self, bus: Bus, server: RabbitServer) -> None:
        with RabbitServer() as other:
            url = f"rabbit://guest:guest@{host_of(server.url)},{host_of(other.url)}?heartbeat=2"
            transport, events = bus.open(url)
            for address in (direct(), anycast(), fanout()):
                transport.listen(address)
            other.stop()
            if len(events.states) > 1 or _is_lost(events):
                events.wait(lambda e: e.states[-1] == ConnectionState.CONNECTED and len(e.states) >= 3)
            for address in (direct(), anycast(), fanout()):
                transport.send(address, b"still here")
            events.wait(lambda e: len(e.got) == 3)


def _is_lost(events: Events) -> bool:
    """Return whether the dead host was ours: then the loss is seen within a moment."""
    try:
        events.wait(lambda e: len(e.states) > 1, timeout=1.0)
    except AssertionError:
        return False
    return True


class TestAlarm:
    def test_send_fails_at_once_and_deliveries_go_on(self, bus: Bus, server: RabbitServer) -> None:
        sender, sent = bus.open(server.url)
        listener, heard = bus.open(server.url)
        listener.listen(direct())
        sender.send(direct(), b"before")
        heard.wait(lambda e: len(e.got) == 1)
        server.evaluate(ALARM)
        try:
            with pytest.raises(TransportUnavailable, match="memory or disk"):
                _until(lambda: sender.send(direct(), b"during"))
            begun = time.monotonic()
            with pytest.raises(TransportUnavailable):
                sender.send(direct(), b"more")
            assert time.monotonic() - begun < 0.5
            listener.listen(fanout("made during an alarm"))
        finally:
            server.evaluate(ALL_CLEAR)
        _until(lambda: _is_sent(sender))
        heard.wait(lambda e: (direct(), b"after") in e.got)
        assert sent.states == heard.states == [ConnectionState.CONNECTED]


def _until(attempt: Callable[[], bool | None]) -> None:
    """Try again until the attempt returns True or raises."""
    deadline = time.monotonic() + 10
    while not attempt():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def _is_sent(transport: RabbitTransport) -> bool:
    try:
        transport.send(direct(), b"after")
    except TransportUnavailable:
        return False
    return True


class TestOperator:
    @pytest.mark.parametrize("kind", ["node", "shared"])
    def test_a_queue_that_is_deleted_comes_back(self, bus: Bus, server: RabbitServer, kind: str) -> None:
        transport, events = bus.open(server.url)
        transport.listen(anycast())
        names = [line.removeprefix("queue ") for line in server.leftovers(bus.name) if line.startswith("queue ")]
        name = next(name for name in names if (":node:" in name) == (kind == "node"))
        server.evaluate(
            f'Q = rabbit_misc:r(<<"/">>, queue, <<"{name}">>), {{ok, R}} = rabbit_amqqueue:lookup(Q), '
            'rabbit_amqqueue:delete(R, false, false, <<"test">>).'
        )
        events.wait(lambda e: [s.name for s in e.states] == ["CONNECTED", "DISCONNECTED", "CONNECTED"])
        assert "cancelled a consumer" in str(events.states[1].cause)
        round_trip(transport, events)

    def test_connections_say_whose_they_are(self, bus: Bus, server: RabbitServer) -> None:
        transport, _ = bus.open(server.url)
        names = {line for line in server.leftovers(bus.name) if line.startswith("connection ")}
        assert {name.rpartition(":")[2] for name in names} == {"consume", "publish"}
        transport.close()
        assert server.leftovers(bus.name) == set()


class TestSending:
    def test_what_is_sent_while_the_driver_reads_goes_out_at_once(self, server: RabbitServer, bus: Bus) -> None:
        # The broker's answer to the first frame is being read while the second is sent, at one moment or another.
        transport, events = bus.open(server.url)
        for number in range(1500):
            first, second = b"%d first" % number, b"%d second" % number
            transport.send(direct(), first)
            time.sleep(number % 30 * 0.00002)
            transport.send(direct(), second)
            events.wait(lambda events: len(events.undelivered) == 2, 2.0)
            events.undelivered.clear()


class TestSharedQueues:
    def test_may_be_more_than_the_channels(
        self, bus: Bus, server: RabbitServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "_MOST_CHANNELS", 4)
        transport, events = bus.open(server.url)
        addresses = [anycast(f"service {n}") for n in range(12)]
        for address in addresses:
            transport.listen(address)
        for address in addresses[::2]:
            transport.unlisten(address)
        for address in addresses:
            transport.send(address, address.name.encode())
        events.wait(lambda e: len(e.got) == 6 and len(e.undelivered) == 6)
        assert {a for a, _ in events.got} == set(addresses[1::2])

    def test_no_frame_is_lost_to_a_listener_that_leaves(self, bus: Bus, server: RabbitServer) -> None:
        stays, stayed = bus.open(server.url)
        leaves, left = bus.open(server.url)
        stays.listen(anycast())
        sent = 0
        for _ in range(20):
            leaves.listen(anycast())
            for _ in range(20):
                stays.send(anycast(), b"%d" % sent)
                sent += 1
            leaves.unlisten(anycast())
        stayed.wait(lambda e: len(e.got) + len(left.got) == sent)
        frames = [frame for _, frame in stayed.got + left.got]
        assert sorted(map(int, frames)) == list(range(sent))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files_for("localhost", tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_url(certificates: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": f"{certificates}/ca.pem",
        "ssl_options.certfile": f"{certificates}/cert.pem",
        "ssl_options.keyfile": f"{certificates}/key.pem",
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
    }
    with RabbitServer(config=config):
        yield (
            f"amqps://localhost:{port}?ssl_certfile={certificates}/cert.pem&ssl_keyfile={certificates}/key.pem"
            f"&ssl_ca_certs={certificates}/ca.pem"
        )


class TestTls:
    def test_carries_everything(self, bus: Bus, tls_url: str) -> None:
        transport, events = bus.open(tls_url)
        round_trip(transport, events)
        for size in (16_383, 16_384, 65_536, 65_537, transport.capabilities.max_frame):  # around TLS records and reads
            frame = secrets.token_bytes(size)
            transport.send(direct("trip"), frame)
            events.wait(lambda e, frame=frame: e.got[-1][1] == frame)  # type: ignore[misc]

    def test_no_round_trip_waits_for_the_next_look_at_the_connection(self, bus: Bus, tls_url: str) -> None:
        (here, heard_here), (there, heard_there) = [bus.open(f"{tls_url}&heartbeat=60") for _ in range(2)]
        here.listen(direct("here"))
        there.listen(direct("there"))
        for trip in range(1, 501):
            here.send(direct("there"), b"%d" % trip)
            heard_there.wait(lambda e, trip=trip: len(e.got) == trip, 2.5)  # type: ignore[misc]
            there.send(direct("here"), b"%d" % trip)
            heard_here.wait(lambda e, trip=trip: len(e.got) == trip, 2.5)  # type: ignore[misc]

    def test_frames_that_come_in_one_record_are_all_taken_at_once(self, bus: Bus, tls_url: str) -> None:
        (here, heard), (there, sent) = [bus.open(f"{tls_url}&heartbeat=60") for _ in range(2)]
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

    def test_many_threads(self, bus: Bus, tls_url: str) -> None:
        transport, events = bus.open(tls_url)
        transport.listen(fanout("all"))

        def work(me: int) -> None:
            for n in range(50):
                transport.send(fanout("all"), b"%d %d" % (me, n))
                transport.listen(direct(f"own {me}"))
                transport.unlisten(direct(f"own {me}"))

        workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        events.wait(lambda e: len(e.got) == 400)
        assert events.states == [ConnectionState.CONNECTED]

    def test_an_unknown_authority_is_refused(self, bus: Bus, tls_url: str) -> None:
        assert "not trusted" in refusal(bus, tls_url.partition("&ssl_ca_certs")[0])

    def test_the_host_name_is_checked_unless_told_otherwise(self, bus: Bus, tls_url: str) -> None:
        by_number = tls_url.replace("localhost", "127.0.0.1")
        assert "not trusted" in refusal(bus, by_number)
        round_trip(*bus.open(f"{by_number}&ssl_check_hostname=no"))


class TestFrames:
    def test_a_message_is_as_the_specification_has_it(self) -> None:
        data = message(publish_method(1, "amq.direct", "key", True), 1, b"body", 1.5, 131072)
        kinds = []
        while data:
            kind, channel, size = struct.unpack_from(">BHI", data)
            kinds.append((kind, channel, data[7 : 7 + size]))
            assert data[7 + size] == 0xCE
            data = data[8 + size :]
        assert kinds == [
            (1, 1, b"\x00\x3c\x00\x28\x00\x00\x0aamq.direct\x03key\x01"),
            (2, 1, struct.pack(">HHQH", 60, 0, 4, 0x1100) + b"\x01\x041500"),
            (3, 1, b"body"),
        ]

    @pytest.mark.parametrize(
        ("ttl", "text"),
        [(1e-9, b"\x011"), (0.0011, b"\x012"), (1e9, b"\x0a4294967295"), (float("inf"), b"\x0a4294967295")],
    )
    def test_the_expiration_is_rounded_up_and_bounded(self, ttl: float, text: bytes) -> None:
        assert text in message(publish_method(1, "", "k", False), 1, b"", ttl, 131072)

    @pytest.mark.parametrize("size", [0, 1, 87, 88, 89, 176, 177, 1000])
    @pytest.mark.parametrize("step", [1, 7, 64, 10_000])
    def test_a_delivery_is_put_together_however_it_is_cut(self, size: int, step: int) -> None:
        body = secrets.token_bytes(size)
        # A delivery differs from a publication in its method frame only.
        method = b"\x00\x3c\x00\x3c\x04node" + bytes(8) + b"\x00\x0aamq.direct\x03key"
        start = struct.pack(">BHI", 1, 1, len(method)) + method + b"\xce"
        wire = HEARTBEAT + message(start, 1, body, None, 96) * 2 + HEARTBEAT
        parser = FrameParser(131072)
        for at in range(0, len(wire), step):
            parser.feed(wire[at : at + step])
        assert list(parser.messages) == [(True, b"key", body)] * 2
        assert not parser.methods
        assert parser.received == 2

    def test_other_methods_are_left_to_py_amqp(self) -> None:
        parser = FrameParser(131072)
        parser.feed(struct.pack(">BHI", 1, 0, 4) + b"\x00\x0a\x00\x0a\xce")
        assert list(parser.methods) == [(1, 0, b"\x00\x0a\x00\x0a")]

    @pytest.mark.parametrize(
        "data", [b"H", b"AMQP\0\0\x09\x01", b"\x01\0\0\x7f\xff\xff\xff\0", b"\x08\0\0\0\0\0\0\xcd"]
    )
    def test_what_is_not_amqp_is_noticed(self, data: bytes) -> None:
        with pytest.raises(NotAmqp):
            FrameParser(131072).feed(data)
