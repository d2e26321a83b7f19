"""What only the oslo.messaging driver does on RabbitMQ: hand-over, words for what is wrong, TLS, alarms, leftovers.

The guarantees that all drivers share are the contract suite's business.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dse import DataService, Node, rpc
from dse.core.transport import Address, ConnectionState, Delivery, TransportUrl
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.certificates import files_for
from dse.testing.contract.recorder import Client, eventually
from dse.testing.rabbit_server import RabbitServer
from dse.transports import _oslo_rabbit as driver
from dse.transports._oslo_library import cfg, oslo_messaging
from dse.transports.oslo import OsloTransport, oslo_url

pytestmark = [pytest.mark.rabbit, pytest.mark.xdist_group("rabbit-test_oslo_driver")]

SECRET = "Tr0ub/dor&3 %;@"
ALARM = "rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})."
ALL_CLEAR = "rabbit_alarm:clear_alarm({resource_limit, memory, node()})."


class Echo(DataService):
    @rpc
    def echo(self, text: str) -> str:
        return text


class Bus:
    """Opens transports on one bus of a random name, and closes them."""

    def __init__(self) -> None:
        self.name = f"bus {secrets.token_hex(4)}"
        self.clients: list[Client] = []

    def make(self, url: str | TransportUrl) -> Client:
        client = Client(OsloTransport, url, self.name)
        self.clients.append(client)
        return client

    def open(self, url: str | TransportUrl) -> Client:
        client = self.make(url)
        client.open()
        return client


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    for client in bus.clients:
        client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    with RabbitServer(users={"anna": SECRET, "testing": "test"}) as server:
        yield server


def over_oslo(url: str) -> str:
    return f"oslo+{url}"


def direct(name: str = "x") -> Address:
    return Address(Delivery.DIRECT, name)


def anycast(name: str = "x") -> Address:
    return Address(Delivery.ANYCAST, name)


def fanout(name: str = "x") -> Address:
    return Address(Delivery.FANOUT, name)


def refusal(bus: Bus, url: str) -> str:
    """Return what opening the URL raises, as text; it is raised within the connect timeout and hides the password."""
    client = bus.make(url)
    begun = time.monotonic()
    with pytest.raises(TransportUnavailable) as caught:
        client.open()
    assert time.monotonic() - begun < client.transport.connect_timeout + 2.0  # what a busy machine adds
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    assert caught.value.url == str(client.transport.url)
    return str(caught.value)


def round_trip(client: Client) -> None:
    for address in (direct("trip"), anycast("trip"), fanout("trip")):
        client.listen(address)
        client.mark(address, client)


class Mute:
    """A server that accepts and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def __enter__(self) -> Mute:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


class TestHandOver:
    def test_a_broker_prepared_the_usual_way_is_enough(self, server: RabbitServer, bus: Bus) -> None:
        url = over_oslo(server.url_for("testing", "test"))
        with Node(url, bus=bus.name, services=[Echo("echo")]) as one, Node(url, bus=bus.name) as two:
            assert two.call("echo", "echo", {"text": "hello"}, timeout=10) == "hello"
            assert one.node_id != two.node_id

    def test_of_a_configuration_file(self, server: RabbitServer, bus: Bus, tmp_path: Path) -> None:
        path = tmp_path / "app.conf"
        path.write_text(
            f"[DEFAULT]\ntransport_url = {server.url_for('testing', 'test')}\n"
            "[oslo_messaging_rabbit]\nheartbeat_timeout_threshold = 20\nkombu_compression = gzip\n"
        )
        client = bus.open(f"oslo://?conf={path}")
        assert client.transport.heartbeat == 20.0
        round_trip(client)
        client.send(direct("nobody"), b"comes back " * 1000)
        client.wait_returned(direct("nobody"), b"comes back " * 1000)

    def test_of_an_object_that_oslo_messaging_uses_as_well(self, server: RabbitServer, bus: Bus) -> None:
        conf = cfg.ConfigOpts()
        conf([], project="app")
        theirs = oslo_messaging.get_rpc_transport(conf, server.url_for("testing", "test"))
        conf.set_override("transport_url", server.url_for("testing", "test"))
        client = bus.open(oslo_url(conf))
        round_trip(client)
        assert conf.oslo_messaging_rabbit.amqp_auto_delete is False, "the application's own configuration was changed"
        target = oslo_messaging.Target(topic=f"app-{secrets.token_hex(4)}")
        theirs._send(target, {}, {"method": "anything"}, retry=0)
        theirs.cleanup()
        round_trip(client)

    def test_with_quorum_queues(self, server: RabbitServer, bus: Bus) -> None:
        url = over_oslo(server.url_for("testing", "test")) + "?rabbit_quorum_queue=true&rabbit_transient_queues_ttl=2"
        one, two = bus.open(url), bus.open(url)
        assert not one.transport.capabilities.undeliverable
        for address in (direct(), anycast(), fanout()):
            two.listen(address)
            one.mark(address, two)
        one.close()
        two.close()
        eventually(lambda: not server.leftovers(bus.name), "nothing is left")


class TestRefusal:
    def test_of_a_wrong_password(self, bus: Bus, server: RabbitServer) -> None:
        url = over_oslo(server.url_for("guest", SECRET))
        assert "refuses the user name or password" in refusal(bus, url)

    def test_a_right_password_of_odd_characters_is_taken(self, bus: Bus, server: RabbitServer) -> None:
        round_trip(bus.open(over_oslo(server.url_for("anna", SECRET))))

    def test_of_a_virtual_host_that_is_not_there(self, bus: Bus, server: RabbitServer) -> None:
        url = over_oslo(server.url_for("anna", SECRET, vhost="no %2F where"))
        assert "has no virtual host 'no %2F where'" in refusal(bus, url)

    def test_of_a_closed_port(self, bus: Bus) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            assert f"127.0.0.1:{port} refused the connection" in refusal(bus, f"oslo+rabbit://127.0.0.1:{port}")

    def test_of_an_unknown_host(self, bus: Bus) -> None:
        assert "is not a known host" in refusal(bus, "oslo+rabbit://no-such-host.invalid")

    @pytest.mark.parametrize("tls", ["", "&ssl=true"])
    def test_of_a_server_that_says_nothing(self, bus: Bus, tls: str) -> None:
        with Mute() as mute:
            said = refusal(bus, f"oslo+rabbit://127.0.0.1:{mute.port}?connect_timeout=0.5{tls}")
        assert "within 0.5 s" in said

    def test_of_tls_where_the_broker_has_none(self, bus: Bus, server: RabbitServer) -> None:
        assert "does not speak TLS" in refusal(bus, f"oslo+rabbit://127.0.0.1:{server.port}?ssl=true")

    def test_is_told_for_every_host(self, bus: Bus, server: RabbitServer) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            hosts = f"127.0.0.1:{server.port},127.0.0.1:{bound.getsockname()[1]}"
            said = refusal(bus, f"oslo+rabbit://guest:wrong@{hosts}")
        assert "refuses the user name or password" in said
        assert "refused the connection" in said

    def test_of_options_that_contradict_each_other(self, bus: Bus, server: RabbitServer) -> None:
        client = bus.make(f"oslo+{server.url}?rabbit_quorum_queue=1&rabbit_ha_queues=1")
        with pytest.raises(InvalidUrl, match="both enabled"):
            client.open()


class TestSeveralHosts:
    def test_a_hung_and_a_closed_host_are_passed_over(self, bus: Bus, server: RabbitServer) -> None:
        with Mute() as mute, socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            hosts = f"127.0.0.1:{mute.port},127.0.0.1:{bound.getsockname()[1]},127.0.0.1:{server.port}"
            for _ in range(3):  # the order is random
                client = bus.open(f"oslo+rabbit://{hosts}?connect_timeout=6")
                round_trip(client)
                client.close()


class TestAlarm:
    def test_send_fails_at_once_and_deliveries_go_on(self, bus: Bus, server: RabbitServer) -> None:
        sender, listener = (bus.open(over_oslo(server.url)) for _ in range(2))
        listener.listen(direct())
        sender.mark(direct(), listener)
        server.evaluate(ALARM)
        try:
            with pytest.raises(TransportUnavailable, match="memory or disk"):
                _until(lambda: sender.send(direct(), b"during"))
            begun = time.monotonic()
            with pytest.raises(TransportUnavailable):
                sender.send(direct(), b"more")
            assert time.monotonic() - begun < 0.5
            listener.listen(anycast("made during an alarm"))
        finally:
            server.evaluate(ALL_CLEAR)
        _until(lambda: _is_sent(sender))
        listener.wait_frame(direct(), b"after")
        assert sender.states == listener.states == [ConnectionState.CONNECTED]


def _until(attempt: Callable[[], bool | None]) -> None:
    """Try again until the attempt returns True or raises."""
    eventually(lambda: bool(attempt()), "the attempt succeeds", 10.0)


def _is_sent(client: Client) -> bool:
    try:
        client.send(direct(), b"after")
    except TransportUnavailable:
        return False
    return True


class TestOperator:
    @pytest.mark.parametrize("kind", [":node:", ":f_fanout_", ":a:"])
    def test_a_queue_that_is_deleted_comes_back(self, bus: Bus, server: RabbitServer, kind: str) -> None:
        client = bus.open(over_oslo(server.url))
        client.listen(anycast())
        names = [line.removeprefix("queue ") for line in server.leftovers(bus.name) if line.startswith("queue ")]
        name = next(name for name in names if kind in name)
        server.evaluate(
            f'Q = rabbit_misc:r(<<"/">>, queue, <<"{name}">>), {{ok, R}} = rabbit_amqqueue:lookup(Q), '
            'rabbit_amqqueue:delete(R, false, false, <<"test">>).'
        )
        client.wait_state(ConnectionState.CONNECTED, times=2)
        assert "cancelled a consumer" in str(client.states[1].cause)
        round_trip(client)

    def test_connections_say_whose_they_are(self, bus: Bus, server: RabbitServer) -> None:
        client = bus.open(over_oslo(server.url))
        assert [line for line in server.leftovers(bus.name) if line.startswith("connection ")]
        client.close()
        eventually(lambda: not server.leftovers(bus.name), "nothing is left")

    def test_an_outage_is_told_in_dses_words_and_without_the_password(
        self, bus: Bus, server: RabbitServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = bus.open(over_oslo(server.url_for("anna", SECRET)) + "?heartbeat=1&connect_timeout=1")
        with caplog.at_level(logging.INFO):
            server.stop()
            client.wait_state(ConnectionState.DISCONNECTED)
            with pytest.raises(TransportUnavailable) as caught:
                client.send(direct(), b"lost")
            eventually(lambda: "attempt 2 to reconnect failed" in caplog.text, "it tries again")
            server.start()
            client.wait_state(ConnectionState.CONNECTED, times=2)
        round_trip(client)
        assert SECRET not in caplog.text + str(caught.value)
        loud = [r for r in caplog.records if r.levelno >= logging.WARNING and not r.name.startswith("dse")]
        assert not loud, "a library speaks up"

    def test_a_process_that_is_killed_leaves_nothing(self, bus: Bus, server: RabbitServer) -> None:
        code = (
            "import sys, time\n"
            "from dse.testing.contract.recorder import Client\n"
            "from dse.core.transport import Address, Delivery\n"
            "from dse.transports.oslo import OsloTransport\n"
            "client = Client(OsloTransport, sys.argv[1], sys.argv[2]); client.open()\n"
            "client.listen(*(Address(delivery, 'x') for delivery in Delivery))\n"
            "print('ready', flush=True); time.sleep(60)\n"
        )
        command = [sys.executable, "-W", "error", "-c", code, over_oslo(server.url), bus.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert server.leftovers(bus.name)
            process.send_signal(signal.SIGKILL)
            assert process.stderr is not None
            assert process.stderr.read() == ""
        eventually(lambda: not server.leftovers(bus.name), "nothing is left", 60.0)


class TestSharedQueues:
    def test_may_be_more_than_the_channels(
        self, bus: Bus, server: RabbitServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "_MOST_CHANNELS", 4)
        client = bus.open(over_oslo(server.url))
        addresses = [anycast(f"service {n}") for n in range(12)]
        client.transport.listen_all(addresses)
        client.unlisten(*addresses[::2])
        for address in addresses:
            client.send(address, address.name.encode())
        for number, address in enumerate(addresses):
            wait = client.wait_frame if number % 2 else client.wait_returned
            wait(address, address.name.encode())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files_for("localhost", tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_port(certificates: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": f"{certificates}/ca.pem",
        "ssl_options.certfile": f"{certificates}/cert.pem",
        "ssl_options.keyfile": f"{certificates}/key.pem",
    }
    with RabbitServer(config=config):
        yield port


class TestTls:
    def test_carries_everything(self, bus: Bus, tls_port: int, certificates: Path) -> None:
        client = bus.open(f"oslo+rabbit://localhost:{tls_port}?ssl=true&ssl_ca_file={certificates}/ca.pem")
        round_trip(client)
        largest = secrets.token_bytes(client.transport.capabilities.max_frame)
        client.send(direct("trip"), largest)
        client.wait_frame(direct("trip"), largest)

    def test_reports_of_what_is_undeliverable_come_at_once(self, bus: Bus, tls_port: int, certificates: Path) -> None:
        client = bus.open(f"oslo+rabbit://localhost:{tls_port}?ssl=true&ssl_ca_file={certificates}/ca.pem")
        for number in range(30):
            for part in range(10):
                client.send(direct("nobody"), b"%d.%d" % (number, part))
            client.wait_for(lambda count=10 * (number + 1): len(client.all_returned()) == count, "reports", 2.0)  # type: ignore[misc]

    def test_many_threads(self, bus: Bus, tls_port: int, certificates: Path) -> None:
        client = bus.open(f"oslo+rabbit://localhost:{tls_port}?ssl=true&ssl_ca_file={certificates}/ca.pem")
        client.listen(fanout("all"))

        def work(me: int) -> None:
            for n in range(50):
                client.send(fanout("all"), b"%d %d" % (me, n))
                client.listen(direct(f"own {me}"))
                client.unlisten(direct(f"own {me}"))

        workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        client.wait_count(400, fanout("all"))
        assert client.states == [ConnectionState.CONNECTED]

    def test_an_unknown_authority_is_refused(self, bus: Bus, tls_port: int, certificates: Path) -> None:
        url = f"oslo+rabbit://localhost:{tls_port}?ssl=true&ssl_ca_file={certificates}/other.pem"
        assert "not trusted" in refusal(bus, url)

    def test_the_host_name_is_checked(self, bus: Bus, tls_port: int, certificates: Path) -> None:
        url = f"oslo+rabbit://127.0.0.1:{tls_port}?ssl=true&ssl_ca_file={certificates}/ca.pem"
        assert "not trusted" in refusal(bus, url)
