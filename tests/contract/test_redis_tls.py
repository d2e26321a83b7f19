"""TLS on ``rediss://``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.core.url import TransportUrl
from dse.testing.brokers import RedisServer
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
        self._files = {
            "tls-cert-file": str(self.shown.certificate),
            "tls-key-file": str(self.shown.key),
            "tls-ca-cert-file": str(self.wanted),
        }
        self._server = RedisServer(config={"tls-port": str(self.port), **self._files})
        self.plain_port = TransportUrl.parse(self._server.direct_url).hosts[0][1] or 0

    def reload(self) -> None:
        self._server.command("CONFIG", "SET", *(word for pair in self._files.items() for word in pair))

    def restart(self) -> None:
        self._server.restart()

    def close(self) -> None:
        self._server.close()
        self._hold.close()


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisTls]:
    with RedisTls(tmp_path_factory.mktemp("tls")) as broker:
        yield broker
