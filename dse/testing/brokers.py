"""Brokers for tests: private ones, started and ended by the test, or the one that an environment variable names.

    with redis_broker() as broker:                 # or rabbit_broker()
        node = Node(broker.url, bus="test")
        broker.cut()                               # also: stop, start, restart, pause, resume, mend
        ...
        assert not broker.leftovers("test")        # what is left on the broker, seen by its own administration

A private broker listens on a free loopback port, keeps its data in a folder of its own, and is gone when the test
process is, whatever ended that. Several can run at once.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import urllib.request
import uuid
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from dse.testing.broker import Broker, bus_prefix
from dse.testing.process import BrokerError
from dse.testing.proxy import CutProxy
from dse.testing.rabbit_server import RabbitServer
from dse.testing.redis_server import RedisCluster, RedisSentinelSet, RedisServer, redis_leftovers

__all__ = [
    "Broker",
    "BrokerError",
    "ExternalBroker",
    "ExternalRabbit",
    "ExternalRedis",
    "OsloFakeBroker",
    "RabbitServer",
    "RedisCluster",
    "RedisSentinelSet",
    "RedisServer",
    "bus_prefix",
    "over_oslo",
    "rabbit_broker",
    "redis_broker",
]


def redis_broker() -> Broker:
    """The Redis server that ``DSE_TEST_REDIS_URL`` names, behind a proxy, or a private one."""
    url = os.environ.get("DSE_TEST_REDIS_URL")
    return ExternalRedis(url) if url else RedisServer()


def rabbit_broker() -> Broker:
    """The RabbitMQ server that ``DSE_TEST_RABBIT_URL`` names, behind a proxy, or a private one.

    Its management API is the second door when ``DSE_TEST_RABBIT_API`` names it (``http://user:password@host:15672``).
    """
    url = os.environ.get("DSE_TEST_RABBIT_URL")
    return ExternalRabbit(url, os.environ.get("DSE_TEST_RABBIT_API")) if url else RabbitServer()


def over_oslo(broker: Broker) -> Broker:
    """Return the same broker with URLs for the driver ``oslo``: ``oslo+rabbit://`` for ``rabbit://``."""
    same = copy.copy(broker)
    same.url, same.direct_url = f"oslo+{broker.url}", f"oslo+{broker.direct_url}"
    return same


class OsloFakeBroker(Broker):
    """oslo.messaging's in-process broker: it has no way to fail, and no administration but its lists."""

    multiprocess = False
    can_fail = False

    def __init__(self, url: str = "") -> None:
        self.url = self.direct_url = url or f"oslo+fake://test-{uuid.uuid4().hex[:12]}"

    @classmethod
    def at(cls, url: str) -> Broker:
        return cls(url)

    def leftovers(self, bus: str) -> set[str]:
        from dse.transports._oslo_library import impl_fake

        prefix, found = bus_prefix(bus), set()
        for name, exchange in list(impl_fake.FakeExchangeManager._exchanges.items()):
            if name.startswith(prefix):
                found.add(f"exchange {name}")
                found |= {f"queue {topic}.{server}" for topic, server in list(exchange._server_queues)}
                found |= {f"queue {topic}" for topic, _ in list(exchange._topic_queues)}
        return found

    def stop(self) -> None: ...

    def start(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cut(self) -> None: ...

    def mend(self) -> None: ...

    def close(self) -> None: ...


class ExternalBroker(Broker):
    """A running broker that is not ours: never stopped; its failures are played by the proxy in front of it."""

    def __init__(self, url: str, default_port: int) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port or default_port
        except ValueError:
            host = None
        if not parts.scheme or not host:
            raise BrokerError("a broker for tests is named by a URL with one host, as in redis://localhost:6379/0")
        self.direct_url = url
        self._proxy = CutProxy((host, port))
        userinfo = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.url = urlunsplit(parts._replace(netloc=f"{userinfo}127.0.0.1:{self._proxy.port}"))

    def stop(self) -> None:
        self._proxy.refuse()

    def start(self) -> None:
        self._proxy.mend()

    def pause(self) -> None:
        self._proxy.stall()

    def resume(self) -> None:
        self._proxy.mend()

    def cut(self) -> None:
        self._proxy.cut()

    def mend(self) -> None:
        self._proxy.mend()

    def close(self) -> None:
        self._proxy.close()


class ExternalRedis(ExternalBroker):
    """A running Redis server."""

    def __init__(self, url: str) -> None:
        super().__init__(url, 6379)

    def leftovers(self, bus: str) -> set[str]:
        import redis

        # What follows the ? is for the driver.
        client = redis.Redis.from_url(self.direct_url.partition("?")[0], socket_timeout=5, socket_connect_timeout=5)
        try:
            return redis_leftovers(bus, client.execute_command)
        finally:
            client.close()


class ExternalRabbit(ExternalBroker):
    """A running RabbitMQ server. api: the URL of its management API; without it nobody can look (`can_look`)."""

    def __init__(self, url: str, api: str | None = None) -> None:
        super().__init__(url, 5671 if url.startswith("amqps:") else 5672)
        self._api = api
        self.can_look = api is not None

    def leftovers(self, bus: str) -> set[str]:
        prefix = bus_prefix(bus)
        found = {f"{kind[:-1]} {o['name']}" for kind in ("queues", "exchanges") for o in self._ask(kind)}
        found |= {
            f"binding {b['source']} -> {b['destination']} key {b['routing_key']}"
            for b in self._ask("bindings")
            if b["source"] and any(b[k].startswith(prefix) for k in ("source", "destination", "routing_key"))
        }
        names = (c.get("client_properties", {}).get("connection_name", "") for c in self._ask("connections"))
        found |= {f"connection {name}" for name in names}
        return {what for what in found if what.startswith("binding ") or what.partition(" ")[2].startswith(prefix)}

    def _ask(self, kind: str) -> list[dict[str, Any]]:
        if self._api is None:
            raise BrokerError("DSE_TEST_RABBIT_API does not name the management API of the broker")
        parts = urlsplit(self._api)
        user = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        vhost = unquote(urlsplit(self.direct_url).path[1:]) or "/"
        path = f"/api/{kind}" if kind == "connections" else f"/api/{kind}/{quote(vhost, safe='')}"
        request = urllib.request.Request(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as response:
            answer: list[dict[str, Any]] = json.load(response)
        return answer
