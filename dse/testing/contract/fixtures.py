"""What the contract's tests share: the base class, the capabilities a test needs, and the fixtures.

A driver's test file gives the fixture ``broker``; it may replace ``transport_class`` too.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeVar

import pytest

from dse.core.keys import new_key
from dse.core.plugins import load_transport
from dse.core.transport import Delivery, Transport
from dse.core.url import TransportUrl
from dse.testing.contract.peer import Peer
from dse.testing.contract.recorder import PROMPT, Client, with_options

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = [
    "ANYCAST",
    "DELIVERIES",
    "DIRECT",
    "FANOUT",
    "Connect",
    "Contract",
    "StartPeer",
    "bounded",
    "bus",
    "connect",
    "each_delivery",
    "failing",
    "keys",
    "needs",
    "pytest_generate_tests",
    "start_peer",
    "transport_class",
    "within",
]

DIRECT, ANYCAST, FANOUT = Delivery.DIRECT, Delivery.ANYCAST, Delivery.FANOUT
DELIVERIES = tuple(Delivery)
each_delivery = pytest.mark.parametrize("delivery", DELIVERIES, ids=lambda delivery: delivery.value)

_KEYED = {"no": [False], "yes": [True], "both": [False, True]}

_Test = TypeVar("_Test", bound=Callable[..., object])

_DRIVER_NEEDS = {
    "undeliverable": "driver does not claim undeliverable",
    "survives_broker_restart": "driver does not claim survives_broker_restart",
    "relieves": "driver does not relieve its threads",
}
_BROKER_NEEDS = {
    "multiprocess": "broker is in this process only",
    "can_fail": "broker cannot be stopped from here",
    "can_look": "broker cannot be looked into from here",
}


def needs(*what: str) -> Callable[[_Test], _Test]:
    """Say what a test needs of the driver (a name in `Capabilities`) or of the broker: without, it is skipped."""
    for name in what:
        if name not in _DRIVER_NEEDS | _BROKER_NEEDS:
            raise ValueError(f"nothing is called {name!r}")

    def mark(test: _Test) -> _Test:
        test.contract_needs = what  # type: ignore[attr-defined]
        return test

    return mark


class Contract:
    """Base of the contract's classes; each proves one guarantee, which its docstring says."""

    guarantee: ClassVar[int]

    @pytest.fixture(autouse=True)
    def _applies(
        self,
        request: pytest.FixtureRequest,
        broker: Broker,
        transport_class: type[Transport],
        record_property: Callable[[str, object], None],
    ) -> None:
        if hasattr(self, "guarantee"):
            record_property("guarantee", self.guarantee)
        for need in getattr(request.function, "contract_needs", ()):
            claims = transport_class if need == "relieves" else transport_class.capabilities
            if need in _DRIVER_NEEDS and not getattr(claims, need):
                pytest.skip(_DRIVER_NEEDS[need])
            if need in _BROKER_NEEDS and not getattr(broker, need, True):
                pytest.skip(_BROKER_NEEDS[need])


class Connect(Protocol):
    """Makes a client on the test's bus, opened and closed for the test."""

    def __call__(
        self, url: str | None = None, *, bus: str | None = None, opened: bool = True, **options: object
    ) -> Client:
        """url: of the broker, if not the usual one. options: added to the URL."""


class StartPeer(Protocol):
    """Starts another process with a transport on the test's bus."""

    def __call__(self, *, bus: str | None = None, **options: object) -> Peer: ...


@pytest.fixture
def transport_class(broker: Broker) -> type[Transport]:
    """The driver under test: the one installed for the broker's URL."""
    return load_transport(broker.url)


@pytest.fixture
def bus() -> str:
    """A bus of the test's own."""
    return f"contract-{uuid.uuid4().hex[:12]}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of whole buses on buses without keys and with.

    ``DSE_TEST_KEYS``, or else ``contract_keys`` in a driver's test file, is ``no``, ``yes`` or ``both`` (the default).
    """
    if "keys" in metafunc.fixturenames:
        wanted = os.environ.get("DSE_TEST_KEYS") or getattr(metafunc.module, "contract_keys", "both")
        if wanted not in _KEYED:
            raise pytest.UsageError(f"DSE_TEST_KEYS is one of {', '.join(_KEYED)}, not {wanted!r}")
        metafunc.parametrize("keys", _KEYED[wanted], ids=lambda keys: "keys" if keys else "no-keys", indirect=True)


@pytest.fixture
def keys(request: pytest.FixtureRequest) -> list[str] | None:
    """The keys of the test's bus, if it has any."""
    if not request.param:
        return None
    pytest.importorskip("cryptography", reason="keys need the extra 'security'")
    return [new_key("contract")]


@pytest.fixture
def connect(broker: Broker, transport_class: type[Transport], bus: str) -> Iterator[Connect]:
    """Makes clients; closes them all at the end, and fails if a thread of the driver is left."""
    before = set(threading.enumerate())
    clients: list[Client] = []
    usual_bus = bus

    def connect(url: str | None = None, *, bus: str | None = None, opened: bool = True, **options: object) -> Client:
        client = Client(transport_class, with_options(url or broker.url, **options), bus or usual_bus)
        clients.append(client)
        if opened:
            client.open()
        return client

    yield connect
    for client in clients:
        client.close()
    prefix = f"dse-{TransportUrl.parse(broker.url).driver}"
    until = time.monotonic() + PROMPT
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(prefix)]
    for thread in left:
        thread.join(max(0.0, until - time.monotonic()))
    assert not [thread.name for thread in left if thread.is_alive()], "threads left after close"


@pytest.fixture
def start_peer(broker: Broker, transport_class: type[Transport], bus: str) -> Iterator[StartPeer]:
    """Starts peers; kills those that are left at the end."""
    peers: list[Peer] = []
    usual_bus = bus

    def start(*, bus: str | None = None, **options: object) -> Peer:
        peer = Peer(transport_class, with_options(broker.url, **options), bus or usual_bus)
        peers.append(peer)
        return peer

    yield start
    for peer in peers:
        peer.kill()


@pytest.fixture
def failing(broker: Broker) -> Iterator[Broker]:
    """The broker, in a test that breaks it; sound again at the end."""
    yield broker
    broker.resume()
    broker.mend()
    broker.start()


def bounded(seconds: float, what: str, job: Callable[[], object]) -> None:
    """Do a job that must end, or raise, within some seconds; a job that hangs fails the test and is left behind."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name=f"contract: {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"{what} takes more than {seconds:g} s"
    if failures:
        raise failures[0]


class within:
    """A block that is sure to end, and must do so within some seconds; for what may hang there is `bounded`."""

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds = seconds
        self.what = what
        self.elapsed = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.elapsed = time.monotonic() - self._began
        if kind is None:
            assert self.elapsed <= self.seconds, f"{self.what} took {self.elapsed:.2f} s, more than {self.seconds:g} s"
