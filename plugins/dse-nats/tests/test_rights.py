"""DSE with no more rights on a NATS server than docs/security.md says, and what it says when one is missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dse import DataService, Node, Table, rpc
from dse.core.transport import Delivery
from dse.errors import TransportUnavailable
from dse.testing.contract.recorder import Client, address, eventually
from dse_nats import NatsTransport
from dse_nats.testing import NatsServer

PASSWORD = "Tr0ub4dor"
DOCS = (Path(__file__).parents[3] / "docs" / "security.md").read_text()


def rules(**changes: str) -> str:
    found = re.search(r"^```nats\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = found[1].replace("PASSWORD", PASSWORD)
    for old, new in changes.items():
        assert f"{old}: [" in text
        text = re.sub(rf"{old}: \[[^]]*\]", f"{old}: [{new}]", text)
    return text


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Starts servers, and returns the URL of the user there."""
    servers: list[NatsServer] = []

    def start(config: str) -> str:
        servers.append(NatsServer(config=config))
        return f"nats://dse:{PASSWORD}@127.0.0.1:{servers[-1].port}?heartbeat=2&connect_timeout=3"

    yield start
    for server in servers:
        server.close()


class Sensor(DataService):
    """A table, and a method."""

    values = Table("name", "value")

    @rpc
    def read(self) -> int:
        return len(self.values.rows)


class Watcher(DataService):
    """Follows the table, calls the method."""


def test_the_rules_suffice(serve: Callable[[str], str]) -> None:
    url = serve(rules())
    sensor, watcher = Sensor("sensor"), Watcher("watcher")
    with Node(url, bus="prod", services=[sensor]), Node(url, bus="prod", services=[watcher]) as node:
        node.wait_for("sensor", timeout=10)
        replica = watcher.subscribe("sensor", "values")
        sensor.values.insert([("a", 1), ("b", 2)])
        replica.wait(lambda rows: len(rows) == 2, 10)
        assert node.call("sensor", "read") == 2


def test_without_one_of_them_it_says_which(serve: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    heard = Client(NatsTransport, serve(rules(subscribe='"other.>"')), "prod")
    with pytest.raises(
        TransportUnavailable, match=r"does not permit the user what DSE needs: .*Subscription"
    ) as caught:
        heard.open()
    heard.close()
    assert PASSWORD not in str(caught.value)

    sender = Client(NatsTransport, serve(rules(publish='"other.>"')), "prod")
    with caplog.at_level(logging.WARNING, "dse.transport"):
        sender.open()
        sender.send(address(Delivery.DIRECT), b"x")
        words = "does not permit what DSE needs: Permissions Violation for Publish"
        eventually(lambda: words in caplog.text, "the refusal is logged")
        sender.close()
    assert PASSWORD not in caplog.text


def test_nobody_gets_at_another_bus(serve: Callable[[str], str]) -> None:
    client = Client(NatsTransport, serve(rules()), "other")
    with pytest.raises(TransportUnavailable, match="does not permit the user what DSE needs"):
        client.open()
    client.close()
