"""`dse check`: what it proves of a good broker and finds in a bad one; what it says of one that cannot be used."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.cli import check
from dse.cli.main import main
from dse.core.transport import Address
from dse.testing.brokers import Broker
from dse.testing.certificates import Authority
from dse.testing.process import PortHold
from dse.testing.rabbit_server import RabbitServer
from dse.testing.redis_server import RedisServer
from dse.transports.fake import FakeTransport

KINDS = [pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("redis", "rabbit")]


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_a_good_broker_good_and_leaves_nothing(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker: Broker = request.getfixturevalue(f"{kind}_server")
    bus = f"check-{uuid.uuid4().hex}"
    monkeypatch.setattr(check, "new_bus", lambda: bus)
    assert main(["check", broker.url, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    kept = {finding["what"]: finding["kept"] for finding in checked["findings"]}
    not_tried = [what for what, _ in check.NOT_TRIED]
    assert [what for what, each in kept.items() if each is not True] == not_tried
    assert len(kept) >= 15 + len(not_tried)
    assert "us median" in next(each["seen"] for each in checked["findings"] if each["what"] == "round trip")
    assert broker.leftovers(bus) == broker.leftovers(f"{bus}-other") == set()


class Forgetful(FakeTransport):
    """Loses a frame now and then, and reports none."""

    def deliver(self, address: Address, data: bytes) -> bool:
        return True if data.endswith(b"7") else super().deliver(address, data)

    def return_undelivered(self, address: Address, data: bytes) -> None:
        pass


def test_check_says_what_a_bad_driver_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "load_transport", lambda url: Forgetful)
    monkeypatch.setattr(check, "PATIENCE", 0.3)
    assert main(["check", "fake://forgetful"]) == 1
    lines = capsys.readouterr().out.splitlines()
    broken = [line.split("NOT", 1)[1].split()[0] for line in lines if line.startswith("  NOT ")]
    assert broken == ["one", "order,", "undeliverable", "many", "nothing"]
    assert lines[-1] == "not kept, or not permitted to this user: 5 of what DSE builds on"


# What cannot be used


def said(url: str, code: int = 2) -> str:
    """What `dse check` says on stderr of a URL that cannot be used, within bounds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dse.cli.main", "check", url], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 30
    assert (done.returncode, done.stdout if code == 2 else "") == (code, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code == 2 else done.stdout


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """Where an HTTP server is."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody vouches for, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


def free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("scheme", ["redis", "rediss", "rabbit", "amqps"])
def test_nobody_listens(scheme: str) -> None:
    hold = PortHold()
    try:
        words = said(f"{scheme}://127.0.0.1:{hold.port}")
    finally:
        hold.close()
    assert f"127.0.0.1:{hold.port} refused the connection" in words or "refused the connection (127.0.0.1:" in words
    assert "nothing listens on that port: start the broker, or correct the port" in words


def test_the_broker_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSE_TRANSPORT", "fake://from-the-environment")
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("fake://from-the-environment\n")
    monkeypatch.delenv("DSE_TRANSPORT")
    assert main(["check"]) == 2
    assert "which broker? Say its URL, or set DSE_TRANSPORT" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["redis", "rabbit"])
def test_no_such_host(scheme: str) -> None:
    words = said(f"{scheme}://no-such-host.invalid")
    assert "no such host name: check its spelling, and the resolver (DNS) of this machine" in words


@pytest.mark.parametrize(
    ("scheme", "server"),
    [("redis", "a Redis server"), ("rabbit", "a RabbitMQ server (AMQP 0-9-1)"), ("amqps", "a RabbitMQ server")],
)
def test_an_http_server(scheme: str, server: str, web: str) -> None:
    assert f"{web}: this is an HTTP server, not {server}" in said(f"{scheme}://{web}")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "rabbit", "amqps"])
def test_a_server_that_hangs(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as mute:
        port = mute.getsockname()[1]
        words = said(f"{scheme}://127.0.0.1:{port}?connect_timeout=1")
    assert "did not answer within 1 s" in words
    assert "something accepts connections and says nothing: a broker that hangs" in words


@pytest.fixture(scope="module")
def redis(certificate: Path) -> Iterator[tuple[RedisServer, int]]:
    """A Redis server with a password, and its TLS port."""
    port = free_port()
    config = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate / "cert.pem"),
        "tls-key-file": str(certificate / "key.pem"),
        "tls-ca-cert-file": str(certificate / "cert.pem"),
        "tls-auth-clients": "no",
    }
    with RedisServer(password="right", config=config) as server:
        yield server, port


@pytest.mark.redis
@pytest.mark.xdist_group("check-redis")
class TestRedis:
    def test_passwords_and_databases(self, redis: tuple[RedisServer, int]) -> None:
        where = redis[0].url.split("@")[1].split("/")[0]
        assert "refuses the user name or password" in (words := said(f"redis://:wrong@{where}"))
        assert "the broker answers: what it refuses is said above" in words
        assert "wrong@" not in words
        assert "needs a password" in said(f"redis://{where}")
        assert "refuses the user name or password" in said(f"redis://somebody:right@{where}")
        assert "refuses database 99: ERR DB index is out of range" in said(f"redis://:right@{where}/99")

    def test_rights(self, redis: tuple[RedisServer, int]) -> None:
        where = redis[0].url.split("@")[1].split("/")[0]
        redis[0].command("ACL", "SETUSER", "few", "on", ">few", "~*", "&*", "+@all", "-publish")
        words = said(f"redis://few:few@{where}", code=1)
        assert "NOT  all listeners of a FANOUT address" in words
        assert "not kept, or not permitted to this user: " in words
        redis[0].command("ACL", "SETUSER", "less", "on", ">less", "~*", "resetchannels", "+@all")
        words = said(f"redis://less:less@{where}", code=1)
        assert "NOT  other buses are not heard" in words
        assert "does not permit the user what DSE needs: NOPERM" in words

    def test_tls_on_one_side_only(self, redis: tuple[RedisServer, int]) -> None:
        server, tls = redis
        where = server.url.split("@")[1].split("/")[0]
        assert "a server that speaks TLS: use rediss:// instead of redis://" in said(f"redis://:right@localhost:{tls}")
        words = said(f"rediss://:right@{where}?connect_timeout=1")
        assert "a Redis server without TLS: use redis:// instead of rediss://, or its TLS port" in words
        words = said(f"rediss://:right@localhost:{tls}")
        assert "certificate that is not trusted: self-signed certificate" in words
        assert "say whom to trust with ?ssl_ca_certs=FILE" in words

    def test_certificates(self, tmp_path: Path) -> None:
        ours, port = Authority(tmp_path), free_port()
        right, late = ours.issue("localhost"), ours.issue("localhost", days=(-3, -1))
        shown = right.copy(tmp_path / "shown")
        files = {"tls-cert-file": shown.certificate, "tls-key-file": shown.key, "tls-ca-cert-file": ours.file}
        config = {name: str(file) for name, file in files.items()}
        with RedisServer(config={"tls-port": str(port), **config}) as server:
            trust, own = f"ssl_ca_certs={ours.file}", f"ssl_certfile={right.certificate}&ssl_keyfile={right.key}"
            words = said(f"rediss://127.0.0.1:{port}?{trust}&{own}")
            assert "certificate is not valid for '127.0.0.1'" in words
            assert "use the host name that the certificate is for, or say with ?ssl_server_name=NAME" in words
            words = said(f"rediss://localhost:{port}?{trust}")
            assert "client certificate" in words
            assert "show one that the broker's authority has signed: ?ssl_certfile=FILE&ssl_keyfile=FILE" in words
            late.put(shown)
            server.command("CONFIG", "SET", *(word for pair in config.items() for word in pair))
            words = said(f"rediss://localhost:{port}?{trust}&{own}")
            assert "certificate that is not trusted: certificate has expired; here it is 20" in words
            assert "renew the certificate of the broker, or set the clock of this machine" in words
            words = said(f"rediss://localhost:{port}?{trust}&ssl_certfile={right.certificate}&ssl_keyfile={late.key}")
            assert f"the key in {late.key} does not belong to the certificate in {right.certificate}" in words

    def test_another_kind_of_broker(self, redis: tuple[RedisServer, int]) -> None:
        where = redis[0].url.split("@")[1].split("/")[0]
        words = said(f"rabbit://{where}?connect_timeout=1")
        assert "this is a Redis server, not a RabbitMQ server" in words


@pytest.fixture(scope="module")
def rabbit(certificate: Path) -> Iterator[tuple[RabbitServer, int]]:
    """A RabbitMQ server, and its TLS port."""
    port = free_port()
    config = {
        "listeners.ssl.default": str(port),
        "ssl_options.cacertfile": str(certificate / "cert.pem"),
        "ssl_options.certfile": str(certificate / "cert.pem"),
        "ssl_options.keyfile": str(certificate / "key.pem"),
    }
    with RabbitServer(users={"me": "right"}, config=config) as server:
        yield server, port


@pytest.mark.rabbit
@pytest.mark.xdist_group("check-rabbit")
class TestRabbit:
    def test_passwords_and_virtual_hosts(self, rabbit: tuple[RabbitServer, int]) -> None:
        server, _ = rabbit
        assert "refuses the user name or password" in (words := said(server.url_for("me", "wrong")))
        assert "the broker answers: what it refuses is said above" in words
        assert "wrong@" not in words
        assert "has no virtual host 'nowhere'" in said(server.url_for("me", "right", vhost="nowhere"))

    def test_rights(self, rabbit: tuple[RabbitServer, int]) -> None:
        server, _ = rabbit
        server.add_user("few", "few")
        may = 'rabbit_auth_backend_internal:set_permissions(<<"few">>,<<"/">>,<<"^$">>,<<"^$">>,<<"^$">>,<<"dse">>),ok.'
        server.evaluate(may)
        assert "ACCESS_REFUSED - access to queue" in said(server.url_for("few", "few"))
        server.evaluate('rabbit_auth_backend_internal:clear_permissions(<<"few">>,<<"/">>,<<"dse">>),ok.')
        assert "access to vhost '/' refused for user 'few'" in said(server.url_for("few", "few"))

    def test_tls_on_one_side_only(self, rabbit: tuple[RabbitServer, int]) -> None:
        server, tls = rabbit
        plain = server.url.split("@")[1].split("/")[0]
        words = said(f"rabbit://guest:guest@localhost:{tls}")
        assert "a server that speaks TLS: use amqps:// instead of rabbit://" in words
        words = said(f"amqps://guest:guest@{plain}")
        assert "a RabbitMQ server (AMQP 0-9-1) without TLS: use rabbit:// instead of amqps://" in words
        words = said(f"amqps://guest:guest@localhost:{tls}")
        assert "certificate that is not trusted: self-signed certificate" in words

    def test_another_kind_of_broker(self, rabbit: tuple[RabbitServer, int]) -> None:
        plain = rabbit[0].url.split("@")[1].split("/")[0]
        assert "this is a RabbitMQ server (AMQP 0-9-1), not a Redis server" in said(f"redis://{plain}")
