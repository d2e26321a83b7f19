"""TLS on ``nats+tls://``."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.testing.contract.tls import TestTls, TlsBroker, tls_client
from dse_nats import NatsTransport
from dse_nats.testing import NatsServer

__all__ = ["TestTls", "tls_client"]


class NatsTls(TlsBroker):
    driver = NatsTransport
    scheme, plain = "nats+tls", "nats"
    hello = b"INFO %b\r\n" % json.dumps({"tls_required": True, "headers": True, "max_payload": 1048576}).encode()
    no_tls = "offers no TLS"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        files = f'cert_file: "{self.shown.certificate}", key_file: "{self.shown.key}", ca_file: "{self.wanted}"'
        self._server = NatsServer(config=f"tls {{ {files}, verify: true }}")
        self._other = NatsServer()
        self.port, self.plain_port = self._server.port, self._other.port

    def reload(self) -> None:
        self._server.signal(signal.SIGHUP)

    def restart(self) -> None:
        self._server.restart()

    def close(self) -> None:
        self._server.close()
        self._other.close()


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsTls]:
    with NatsTls(tmp_path_factory.mktemp("tls")) as broker:
        yield broker
