"""A runtime folder of the tests' own, and servers that they share."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dse.testing.contract.peer import Peer
from dse.testing.contract.recorder import Client
from dse_nats import NatsTransport
from dse_nats.testing import NatsServer

# How long an example takes says more of what else the machine does.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(autouse=True, scope="session")
def runtime() -> Iterator[Path]:
    """A short path, for a Unix socket's has a limit; `dse_nats.local` puts its folder there."""
    folder = Path(tempfile.mkdtemp(prefix="dse-nats-test-"))
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[NatsServer]:
    """A server that nobody stops."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Client]]:
    """Makes clients on a bus of the test's own, by default opened; closes them at the end."""
    bus, clients = f"test-{uuid.uuid4().hex[:12]}", list[Client]()

    def make(url: str, *, opened: bool = True) -> Client:
        client = Client(NatsTransport, url, bus)
        clients.append(client)
        if opened:
            client.open()
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def start() -> Iterator[Callable[[str], Peer]]:
    """Starts processes with a transport on one bus; kills those that are left."""
    bus, peers = f"test-{uuid.uuid4().hex[:12]}", list[Peer]()

    def start(url: str) -> Peer:
        peers.append(Peer(NatsTransport, url, bus))
        return peers[-1]

    yield start
    for peer in peers:
        peer.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("nats")
