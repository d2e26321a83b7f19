"""TLS on ``rediss://``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from dse.core.transport import Delivery
from dse.core.url import TransportUrl
from dse.errors import TransportUnavailable
from dse.testing.brokers import RedisServer
from dse.testing.contract.recorder import Client, address, eventually, with_options
from dse.testing.contract.tls import TestTls, TlsBroker, tls_client
from dse.testing.process import PortHold
from dse.transports.redis import RedisTransport

__all__ = ["TestTls", "tls_client"]


class RedisTls(TlsBroker):
    driver = RedisTransport
    scheme, plain = "rediss", "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._hold = PortHold()
        self.port = self._hold.port
        self.files = {
            "tls-cert-file": str(self.shown.certificate),
            "tls-key-file": str(self.shown.key),
            "tls-ca-cert-file": str(self.wanted),
        }
        self._server = RedisServer(config={"tls-port": str(self.port), **self.files})
        self.plain_port = TransportUrl.parse(self._server.direct_url).hosts[0][1] or 0

    def reload(self) -> None:
        self._server.command("CONFIG", "SET", *(word for pair in self.files.items() for word in pair))

    def restart(self) -> None:
        self._server.restart()

    def close(self) -> None:
        self._server.close()
        self._hold.close()


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisTls]:
    with RedisTls(tmp_path_factory.mktemp("tls")) as broker:
        yield broker


class TestDiscovery:
    """Whoever says where the servers are is asked in TLS too, and the servers that he names are checked alike."""

    @pytest.fixture
    def holds(self) -> Iterator[ExitStack]:
        with ExitStack() as holds:
            yield holds

    def client(self, url: str, broker: RedisTls, **options: object) -> Client:
        more = {"ssl": "true", "ssl_ca_certs": broker.ours.file, "heartbeat": 2, "connect_timeout": 5, **options}
        more |= {"ssl_certfile": broker.client.certificate, "ssl_keyfile": broker.client.key}
        return Client(RedisTransport, with_options(url, **more), f"test-{uuid.uuid4().hex[:12]}")

    def check(self, url: str, broker: RedisTls) -> None:
        # The servers are found by number, and have a certificate for a name.
        wrong = self.client(url, broker)
        with pytest.raises(TransportUnavailable, match=r"certificate that is not trusted.*'127.0.0.1'"):
            wrong.open()
        wrong.close()
        client = self.client(url, broker, ssl_server_name="localhost")
        try:
            client.open()
            for delivery in Delivery:
                where = address(delivery)
                client.listen(where)
                client.send(where, b"over TLS")
                client.wait_frame(where, b"over TLS")
        finally:
            client.close()

    def test_by_a_member_of_a_cluster(self, tls_broker: RedisTls, holds: ExitStack) -> None:
        port, bus = holds.enter_context(closing(PortHold())), holds.enter_context(closing(PortHold()))
        config = {
            "cluster-enabled": "yes",
            "tls-cluster": "yes",
            "cluster-port": str(bus.port),
            "cluster-announce-ip": "127.0.0.1",
        }
        config |= {"tls-port": str(port.port), "cluster-announce-tls-port": str(port.port), **tls_broker.files}
        with RedisServer(config=config) as server:
            server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: b"cluster_state:ok" in _bytes(server.command("CLUSTER", "INFO")), "the cluster is up")
            self.check(f"redis+cluster://localhost:{port.port}", tls_broker)

    def test_by_a_sentinel(self, tls_broker: RedisTls, holds: ExitStack) -> None:
        port = holds.enter_context(closing(PortHold()))
        config = {"tls-port": str(port.port), "tls-replication": "yes", "sentinel resolve-hostnames": "yes"}
        sentinel = {"sentinel monitor": f"mymaster 127.0.0.1 {tls_broker.port} 1", **config, **tls_broker.files}
        with RedisServer(config=sentinel, sentinel=True):
            self.check(f"redis+sentinel://localhost:{port.port}/mymaster", tls_broker)


def _bytes(said: object) -> bytes:
    return said if isinstance(said, bytes) else str(said).encode()
