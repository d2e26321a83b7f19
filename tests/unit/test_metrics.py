"""What nodes count, as Prometheus reads it: by its own parser."""

from __future__ import annotations

import json
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dse import DataService, Node, Table, rpc
from dse.core.info import BusStatus
from dse.errors import ConfigError
from dse.services.metrics import Metrics, exposition
from dse.services.web import Web


class Shop(DataService):
    stock = Table("article")

    @rpc
    def price(self, article: str) -> float:
        if article == "gold":
            raise ValueError("too dear")
        return 1.5


class Samples:
    """The samples of a scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]


@pytest.fixture
def shop() -> Iterator[tuple[Node, Shop, Metrics]]:
    service, metrics = Shop("shop"), Metrics(port=0)
    with Node(f"fake://{uuid.uuid4().hex}", bus="prod", node_id="n1", services=[service, metrics]) as node:
        yield node, service, metrics


def scrape(url: str) -> Samples:
    answer = httpx.get(url, timeout=20)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return Samples(answer.text)


def test_calls_changes_tables_and_peers_are_counted(shop: tuple[Node, Shop, Metrics]) -> None:
    node, service, metrics = shop
    service.stock.replace([("pear",), ("fig",)])
    with Node(str(node.url), bus="prod", node_id="n2") as other:
        other.wait_for("shop", 10)
        for _ in range(5):
            other.call("shop", "price", {"article": "pear"})
        with pytest.raises(Exception, match="too dear"):
            other.call("shop", "price", {"article": "gold"})
        samples = scrape(metrics.url)
    here = {"node_id": "n1", "bus": "prod"}
    assert samples.value("rpc_server_calls_total", **here) == 6
    assert samples.value("rpc_server_errors_total", **here) == 1
    assert samples.value("rpc_server_call_duration_seconds_bucket", le="+Inf", **here) == 6
    assert samples.value("rpc_server_call_duration_seconds_count", **here) == 6
    assert 0 < samples.value("rpc_server_call_duration_seconds_sum", **here) < 10
    assert samples.value("dse_changes_total", **here) == 1
    assert samples.value("dse_table_rows", service="shop", table="stock", **here) == 2
    assert samples.value("dse_peers", bus="prod", state="JOINED") == 2
    assert samples.value("dse_connected", bus="prod") == 1
    assert samples.value("messaging_client_sent_messages_total", messaging_system="fake", **here) > 0
    assert samples.value("dse_queue_length", queue="requests", **here) == 0


def test_buckets_of_the_histogram_only_grow(shop: tuple[Node, Shop, Metrics]) -> None:
    node, _, metrics = shop
    with Node(str(node.url), bus="prod", node_id="n2") as other:
        for _ in range(50):
            other.call("shop", "price", {"article": "pear"})
        family = scrape(metrics.url).families["rpc_server_call_duration_seconds"]
    counts = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == 50


def test_the_gateway_tells_of_all_nodes(shop: tuple[Node, Shop, Metrics]) -> None:
    node, _, _ = shop
    web = Web(port=0)
    with Node(str(node.url), bus="prod", node_id="n2", services=[web]):
        samples = scrape(f"{web.url}metrics")
    assert samples.value("dse_uptime_seconds", node_id="n1", bus="prod") > 0
    assert samples.value("dse_silent_nodes", bus="prod") == 0


@pytest.mark.parametrize(
    "figures",
    [
        None,
        {},
        {"counters": 5},
        {"served": {"x": 1, 3: "many", -1: 2, 10**9: 1}},
        {"tables": {'a\n"b': {"rows": 1}, 7: {}}},
    ],
)
def test_whatever_a_peer_says_the_scrape_can_be_read(figures: object) -> None:
    with Node(f"fake://{uuid.uuid4().hex}", node_id="n1") as node:
        status: BusStatus = node.status()
    Samples(exposition(status, {'evil"\n\\': figures}).decode())  # type: ignore[dict-item]


def test_nothing_is_left_when_it_stops(shop: tuple[Node, Shop, Metrics]) -> None:
    node, _, metrics = shop
    address = ("127.0.0.1", int(metrics.url.split(":")[2].split("/")[0]))
    idle = socket.create_connection(address, 5)
    node.unregister("metrics")
    idle.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dse-metrics"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, 5)


def test_a_port_that_is_taken_is_said(shop: tuple[Node, Shop, Metrics]) -> None:
    port = int(shop[2].url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=f"nothing can listen on 127.0.0.1, port {port}"):
        shop[0].register(Metrics("second", port=port))


def test_other_paths_are_refused(shop: tuple[Node, Shop, Metrics]) -> None:
    assert httpx.get(shop[2].url.replace("/metrics", "/rows"), timeout=20).status_code == 404


def test_the_dashboard_asks_for_metrics_that_there_are(shop: tuple[Node, Shop, Metrics]) -> None:
    node, service, metrics = shop
    service.stock.replace([("pear",)])
    with Node(str(node.url), bus="prod", node_id="n2") as other:
        other.call("shop", "price", {"article": "pear"})
        names = {sample.name for family in scrape(metrics.url).families.values() for sample in family.samples}
    dashboard = (Path(__file__).parents[2] / "docs" / "metrics" / "grafana.json").read_text()
    asked = set(re.findall(r"\b(?:dse|rpc|messaging)_[a-z_]+", dashboard)) - {"dse_bus"}
    assert asked <= names, asked - names
    assert len(json.loads(dashboard)["panels"]) >= 10
