"""TLS on ``amqps://``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.testing.brokers import RabbitServer
from dse.testing.contract.tls import TestTls, TlsBroker, tls_client
from dse.testing.process import PortHold
from dse.transports.rabbit import RabbitTransport

__all__ = ["TestTls", "tls_client"]


class RabbitTls(TlsBroker):
    driver = RabbitTransport
    scheme, plain = "amqps", "amqp"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._hold = PortHold()
        self.port = self._hold.port
        config = {
            "listeners.ssl.1": f"127.0.0.1:{self.port}",
            "ssl_options.cacertfile": str(self.wanted),
            "ssl_options.certfile": str(self.shown.certificate),
            "ssl_options.keyfile": str(self.shown.key),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true",
        }
        self._server = RabbitServer(config=config)
        self.plain_port = self._server.port

    def reload(self) -> None:
        self._server.evaluate("ssl:clear_pem_cache().")

    def restart(self) -> None:
        self._server.restart()

    def close(self) -> None:
        self._server.close()
        self._hold.close()


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitTls]:
    with RabbitTls(tmp_path_factory.mktemp("tls")) as broker:
        yield broker
