"""The brokers of DSE's own drivers as `pytest --dse-transport` finds them: the entry point group ``dse.brokers``.

Made without arguments, a private one, started for the run. `at` a URL, the one that runs there: never stopped; a proxy
in front of it plays the outages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from dse.core.url import TransportUrl
from dse.errors import InvalidUrl
from dse.testing.broker import Broker, RunningBroker
from dse.testing.brokers import ExternalRabbit, ExternalRedis, over_oslo
from dse.testing.faults import FakeServer
from dse.testing.rabbit_server import RabbitServer
from dse.testing.redis_server import RedisServer

__all__ = ["Fake", "OsloRabbit", "Rabbit", "Redis"]


class Fake(FakeServer):
    """An in-process broker, which does all that a test asks for."""

    @classmethod
    def at(cls, url: str) -> Broker:
        parsed = TransportUrl.parse(url)
        if parsed.options or len(parsed.hosts) != 1:
            raise InvalidUrl(f"{parsed}: the broker of a test has a name and no more, as in fake://lab")
        return FakeServer(parsed.hosts[0][0])


class Redis(RedisServer):
    """A Redis server."""

    @classmethod
    def at(cls, url: str) -> Broker:
        if not _has_one_host(url):
            return RunningBroker(url)
        broker = ExternalRedis(url)
        try:
            broker.leftovers("nobody")
        except Exception:  # its user may not look, or there is none: opening a transport tells
            broker.can_look = False
        return broker


class Rabbit(RabbitServer):
    """A RabbitMQ server; ``DSE_TEST_RABBIT_API`` names the management API of a running one, to look into it."""

    @classmethod
    def at(cls, url: str) -> Broker:
        if not _has_one_host(url):
            return RunningBroker(url)
        return ExternalRabbit(url, os.environ.get("DSE_TEST_RABBIT_API"))


class OsloRabbit(RabbitServer):
    """A RabbitMQ server for the driver ``oslo``."""

    def _build(self, config: Mapping[str, str]) -> None:
        super()._build(config)
        self.url, self.direct_url = f"oslo+{self.url}", f"oslo+{self.direct_url}"

    @classmethod
    def at(cls, url: str) -> Broker:
        if "ssl" in TransportUrl.parse(url).options:  # a certificate is for the server's name, not for the proxy's
            return RunningBroker(url)
        return over_oslo(Rabbit.at(url.removeprefix("oslo+")))


def _has_one_host(url: str) -> bool:
    return len(TransportUrl.parse(url).hosts) == 1
