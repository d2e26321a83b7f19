"""What the tests of level 2 share: nodes on a bus of the test's own, here and in other processes."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from dse.core.node import Node
from dse.core.observer import Observer
from dse.core.service import DataService
from dse.core.transport import Transport
from dse.testing.contract.bus_peer import BusPeer, LocalPeer, PeerPool, ProcessPeer, make_node, node_threads
from dse.testing.contract.bus_services import Endpoint
from dse.testing.contract.recorder import DEADLINE, eventually, with_options

if TYPE_CHECKING:
    from dse.testing.brokers import Broker

__all__ = ["BEAT", "MARGIN", "Far", "Network", "network", "peer_pool", "together"]

BEAT = 0.2
"""The nodes' heartbeat interval in tests of what silence means."""

MARGIN = 0.7
"""Seconds a busy machine may take beyond what is promised."""

T = TypeVar("T")


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run jobs at the same time; return their results in order, or raise the first error."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(index: int, job: Callable[[], Any]) -> None:
        try:
            results[index] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=each, name="contract-together") for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE * 3)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "something does not end"
    return results


class Far:
    """One node in another process."""

    def __init__(self, peer: BusPeer, node_id: str) -> None:
        self.peer = peer
        self.node_id = node_id
        self.instance = ""

    def ask(self, service_id: str, method: str, *args: object) -> Any:
        """Call a plain method of a service there, past the bus."""
        return self.peer.ask(self.node_id, service_id, method, *args)

    def register(self, service_id: str, kind: type[DataService]) -> None:
        self.peer.register(self.node_id, service_id, kind)

    def unregister(self, service_id: str) -> None:
        self.peer.unregister(self.node_id, service_id)

    def stop(self) -> None:
        self.peer.stop(self.node_id)

    def kill(self) -> None:
        """Kill the process (SIGKILL), or what comes nearest to that."""
        self.peer.kill()

    def status(self) -> dict[str, str]:
        return self.peer.status(self.node_id)


class Network:
    """The nodes of one test on a bus of its own, here and in other processes; `close` ends them all.

    options: for every node, unless it says otherwise; `url_options` are added to the URL.
    """

    def __init__(
        self, broker: Broker, driver: type[Transport], bus: str, pool: PeerPool, keys: list[str] | None = None
    ) -> None:
        self.broker = broker
        self.bus = bus
        self.keys = keys
        self._driver = driver
        self._pool = pool
        self._lock = threading.Lock()  # protects _nodes and _peers
        self._nodes: list[Node] = []
        self._peers: list[BusPeer] = []
        self.url_options: dict[str, object] = {"heartbeat": 2, "connect_timeout": 2}

    @property
    def reports_undeliverable(self) -> bool:
        return self._driver.capabilities.undeliverable

    @property
    def url(self) -> str:
        return with_options(self.broker.url, **self.url_options)

    def make(self, services: Mapping[str, type[DataService]] | None = None, **options: Any) -> Node:
        """Make a node in this process, not started."""
        kinds = {service_id: kind.__name__ for service_id, kind in (services or {}).items()}
        usual: dict[str, Any] = {
            "node_id": _name("here"),
            "heartbeat_interval": 0.5,
            "node_endpoints": [Endpoint()],
            "keys": self.keys,
        }
        options = usual | options
        node = make_node(self._driver, self.url, options.pop("bus", self.bus), kinds, **options)
        with self._lock:
            self._nodes.append(node)
        return node

    def here(self, services: Mapping[str, type[DataService]] | None = None, **options: Any) -> Node:
        """Start a node in this process."""
        node = self.make(services, **options)
        node.start()
        return node

    def observer(self, **options: Any) -> Observer:
        """Start an observer in this process."""
        observer = Observer(self.url, bus=self.bus, keys=self.keys, **options)
        observer._driver = self._driver
        with self._lock:
            self._nodes.append(observer)
        observer.start()
        return observer

    def far(self, services: Mapping[str, type[DataService]], **options: Any) -> Far:
        """Start a node in another process."""
        usual: dict[str, Any] = {"node_id": _name("far"), "heartbeat_interval": 0.5, "keys": self.keys}
        options = usual | options
        with self._lock:
            peer = self._pool.take(self._driver) if self.broker.multiprocess else LocalPeer(self._driver)
            self._peers.append(peer)
        far = Far(peer, options.pop("node_id"))
        far.instance = peer.start(self.url, options.pop("bus", self.bus), far.node_id, services, **options)
        return far

    def pair(
        self, here: Mapping[str, type[DataService]], far: Mapping[str, type[DataService]], **options: Any
    ) -> tuple[Node, Far]:
        """Start a node here and one in another process, which know each other's services."""
        node, other = together(lambda: self.here(here, **options), lambda: self.far(far, **options))
        for service_id in far:
            self.meet(node, service_id, other)
        return node, other

    def meet(self, node: Node, service_id: str, *others: Far) -> None:
        """Wait until a node knows that others offer a service."""
        wanted = {other.instance for other in others}

        def known() -> bool:
            return wanted <= {member.instance for member in node.control_bus.replicas.get(service_id, ())}

        eventually(known, f"{node} knows that {sorted(wanted)} offer {service_id}")

    def close(self) -> None:
        """Stop everything."""
        together(*(node.stop for node in self._nodes), *(self._end(peer) for peer in self._peers))

    def _end(self, peer: BusPeer) -> Callable[[], None]:
        def end() -> None:
            if not isinstance(peer, ProcessPeer):
                peer.close()
            elif peer.alive:
                peer.close()
                self._pool.give_back(peer)

        return end


def _name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def peer_pool() -> Iterator[PeerPool]:
    """The processes that tests share, one test at a time."""
    pool = PeerPool()
    yield pool
    pool.close()


@pytest.fixture
def network(
    broker: Broker, transport_class: type[Transport], bus: str, peer_pool: PeerPool, keys: list[str] | None
) -> Iterator[Network]:
    """The test's nodes, all on its own bus; stopped at the end, and none of their threads may be left."""
    before = Counter(node_threads())
    network = Network(broker, transport_class, bus, peer_pool, keys)
    yield network
    network.close()
    eventually(lambda: not Counter(node_threads()) - before, f"the threads end: {node_threads()}", 5.0)
