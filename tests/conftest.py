"""The brokers that tests share: one of a kind a worker, started when the first test asks for it.

A test that uses one (or sits in a file named after it) gets the mark ``redis`` or ``rabbit``, so that it can be left
out where no broker is, and an xdist group: the tests of one file that use a broker run one after the other, in a worker
that has its broker to itself, for some of them stop it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dse.testing.brokers import Broker, rabbit_broker, redis_broker

_FIXTURES = {"redis": "redis_server", "rabbit": "rabbit_server"}


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Broker]:
    """A Redis server, up and mended; a test that fails it puts it right again."""
    with redis_broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[Broker]:
    """A RabbitMQ server, up and mended; a test that fails it puts it right again."""
    with rabbit_broker() as broker:
        yield broker


# Before xdist's own hook, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for kind, fixture in _FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()) or item.path.name.startswith(f"test_{kind}"):
                item.add_marker(kind)
                if item.get_closest_marker("xdist_group") is None:
                    item.add_marker(pytest.mark.xdist_group(f"{kind}-{item.path.stem}"))
