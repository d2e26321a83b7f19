"""oslo.messaging over the other drivers of DSE: any that is installed can be reached, and does the whole of it."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.testing.contract.bus_peer import node_threads
from dse.transports._oslo_library import oslo_messaging

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from oslo_programs import Audience, Endpoint, Programs, soon


@pytest.fixture(
    params=[
        pytest.param("rabbit", marks=[pytest.mark.rabbit, pytest.mark.xdist_group("rabbit-test_oslo_drivers")]),
        pytest.param("nats", marks=pytest.mark.nats),
    ]
)
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    server = None
    if request.param == "rabbit":
        url = request.getfixturevalue("rabbit_server").url
    else:
        from dse_nats.testing import NatsServer

        server = NatsServer()
        url = server.url
    made = Programs(f"dse+{url}?bus=test-{secrets.token_hex(4)}")
    try:
        yield made
    finally:
        made.close()
        if server is not None:
            server.close()
    soon(lambda: not node_threads())


def test_calls_casts_failures_and_notifications(programs: Programs) -> None:
    client = programs.client()
    client.cast({}, "tell", what="early")
    endpoints = [Endpoint("a"), Endpoint("b")]
    programs.server(endpoints[0], "a")
    assert endpoints[0].told.get(timeout=10) == "early"
    programs.server(endpoints[1], "b")
    assert {client.call({}, "who") for _ in range(40)} == {"a", "b"}
    assert {client.prepare(server="b").call({}, "who") for _ in range(5)} == {"b"}
    client.prepare(fanout=True).cast({}, "tell", what="all")
    assert [endpoint.told.get(timeout=10) for endpoint in endpoints] == ["all", "all"]
    with pytest.raises(ValueError, match="no such value"):
        client.call({}, "fail", error="value")
    with pytest.raises(oslo_messaging.MessagingTimeout, match="no server has listened"):
        client.prepare(topic="nowhere", timeout=0.5).call({}, "who")
    mandatory = programs.client(topic="nowhere", transport_options=oslo_messaging.TransportOptions(at_least_once=True))
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        mandatory.call({}, "who")
    programs.listener(plain := Audience())
    programs.listener(pooled := Audience(), pool="p")
    notifier = programs.notifier()
    for number in range(10):
        notifier.info({}, "event", number)
    soon(lambda: len(plain.heard) == len(pooled.heard) == 10)
