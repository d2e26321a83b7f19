"""Nodes somewhere else: in another process where the broker can be reached from one, else in this one.

`Site` holds the nodes of one process and does what it is told by name. `ProcessPeer` tells a site in a process of its
own, over pipes; `LocalPeer` one in this process. A test cannot tell them apart: both speak msgpack.
`dse.testing.contract.bus_child` is the other end of the pipes.

A request is one line of base64 on the child's stdin, its answer one on the child's stdout. The child's stderr is the
test's own.
"""

from __future__ import annotations

import base64
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from dse.core.node import Node
from dse.core.service import DataService
from dse.core.transport import Transport
from dse.testing.contract.bus_services import KINDS, Endpoint, Worker
from dse.testing.contract.peer import class_name
from dse.testing.contract.recorder import DEADLINE
from dse.testing.piped import PipedProcess

__all__ = ["BusPeer", "LocalPeer", "PeerPool", "ProcessPeer", "Site", "make_node", "node_threads"]

_PATIENCE = DEADLINE * 2 + 10

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def make_node(driver: type[Transport], url: str, bus: str, services: Mapping[str, str], **options: Any) -> Node:
    """Make a node that runs on the driver under test; services: service_id -> class of `bus_services`."""
    hosted = [KINDS[kind](service_id) for service_id, kind in services.items()]
    node = Node(url, bus=bus, services=hosted, **options)
    node._driver = driver  # the one under test, which need not be the one installed for the URL
    return node


def node_threads() -> list[str]:
    """Return the names of the threads that nodes and drivers have started and not ended."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("dse-"))


class Site:
    """The nodes of one process, by node_id; every public method is something a test may ask for."""

    def __init__(self, driver: type[Transport]) -> None:
        self._driver = driver
        self._nodes: dict[str, Node] = {}

    def carry_out(self, request: bytes) -> bytes:
        """Do what an encoded request says, and encode what came of it."""
        name, kwargs = _decode(request)
        try:
            return _encode(["result", getattr(self, name)(**kwargs)])
        except BaseException as error:
            return _encode(["failed", type(error).__name__, str(error)])

    def start(self, url: str, bus: str, node_id: str, services: dict[str, str], options: dict[str, Any]) -> str:
        node = make_node(self._driver, url, bus, services, node_id=node_id, node_endpoints=[Endpoint()], **options)
        node.start()
        self._nodes[node_id] = node
        return node.runtime.instance

    def stop(self, node_id: str) -> None:
        self._nodes.pop(node_id).stop()

    def register(self, node_id: str, service_id: str, kind: str) -> None:
        self._nodes[node_id].register(KINDS[kind](service_id))

    def unregister(self, node_id: str, service_id: str) -> None:
        self._nodes[node_id].unregister(service_id)

    def ask(self, node_id: str, service_id: str, method: str, args: list[Any]) -> Any:
        """Call a plain method of a service."""
        return getattr(self._service(node_id, service_id), method)(*args)

    def status(self, node_id: str) -> dict[str, str]:
        return {name: status.state.value for name, status in self._nodes[node_id].status().nodes.items()}

    def close(self) -> list[str]:
        """Stop all nodes; return the names of threads that are left."""
        nodes, self._nodes = self._nodes, {}
        for service in (service for node in nodes.values() for service in node.services):
            if isinstance(service, Worker):
                service.let_go()
        stopping = [threading.Thread(target=node.stop, name="contract-stop") for node in nodes.values()]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(DEADLINE)
        return node_threads()

    def crash(self) -> None:
        """Be as silent as a killed process is: the connections are gone, and no goodbye was said."""
        for node in self._nodes.values():
            node.runtime.transport.close()

    def _service(self, node_id: str, service_id: str) -> DataService:
        return self._nodes[node_id].service(service_id)


class BusPeer(ABC):
    """Another process (or what stands for one) with nodes; its methods fail the test when they fail."""

    def start(
        self, url: str, bus: str, node_id: str, services: Mapping[str, type[DataService]], **options: object
    ) -> str:
        """Start a node with these services; return its instance."""
        kinds = {service_id: kind.__name__ for service_id, kind in services.items()}
        instance: str = self._do("start", url=url, bus=bus, node_id=node_id, services=kinds, options=options)
        return instance

    def stop(self, node_id: str) -> None:
        self._do("stop", node_id=node_id)

    def register(self, node_id: str, service_id: str, kind: type[DataService]) -> None:
        self._do("register", node_id=node_id, service_id=service_id, kind=kind.__name__)

    def unregister(self, node_id: str, service_id: str) -> None:
        self._do("unregister", node_id=node_id, service_id=service_id)

    def ask(self, node_id: str, service_id: str, method: str, *args: object) -> Any:
        """Call a plain method of a service over there, past the bus."""
        return self._do("ask", node_id=node_id, service_id=service_id, method=method, args=args)

    def status(self, node_id: str) -> dict[str, str]:
        """Return the states of the nodes that the node knows, itself included."""
        states: dict[str, str] = self._do("status", node_id=node_id)
        return states

    def close(self) -> None:
        """Stop the nodes; fail if a thread of theirs is left."""
        left = self._do("close")
        assert not left, f"threads left in the other process: {left}"

    @abstractmethod
    def kill(self) -> None:
        """End without a goodbye."""

    @abstractmethod
    def _carry_out(self, request: bytes) -> bytes: ...

    def _do(self, name: str, **kwargs: object) -> Any:
        answer = _decode(self._carry_out(_encode([name, kwargs])))
        assert answer[0] == "result", f"in the other process: {answer[1]}: {answer[2]}"
        return answer[1]


class LocalPeer(BusPeer):
    """In this process, for brokers that no other reaches."""

    def __init__(self, driver: type[Transport]) -> None:
        self._site = Site(driver)

    def kill(self) -> None:
        self._site.crash()

    def close(self) -> None:
        self._site.close()  # the threads of this process are the test's to count

    def _carry_out(self, request: bytes) -> bytes:
        return self._site.carry_out(request)


class ProcessPeer(BusPeer):
    """In a process of its own, which serves one test after the other until it is killed."""

    def __init__(self, driver: type[Transport]) -> None:
        self.driver = driver
        self.alive = True
        self._process = PipedProcess("dse.testing.contract.bus_child", class_name(driver))

    def kill(self) -> None:
        """Kill the process (SIGKILL), and wait until it is gone."""
        self.alive = False
        self._process.kill()

    def _carry_out(self, request: bytes) -> bytes:
        try:
            return base64.b64decode(self._process.ask(base64.b64encode(request).decode(), _PATIENCE))
        except AssertionError:
            self.alive = False
            raise


class PeerPool:
    """Processes that wait to be somebody's peer: starting one takes longer than most tests."""

    def __init__(self) -> None:
        self._idle: list[ProcessPeer] = []
        self._all: list[ProcessPeer] = []

    def take(self, driver: type[Transport]) -> ProcessPeer:
        """Return a process for the driver."""
        fitting = [peer for peer in self._idle if peer.driver is driver]
        if not fitting:
            fitting = [self._start(driver)]
        peer = fitting[0]
        if peer in self._idle:
            self._idle.remove(peer)
        if len(fitting) < 2:
            self._idle.append(self._start(driver))  # ready when the next is asked for
        return peer

    def give_back(self, peer: ProcessPeer) -> None:
        """The test is over."""
        if peer.alive:
            self._idle.append(peer)

    def close(self) -> None:
        for peer in self._all:
            peer.kill()

    def _start(self, driver: type[Transport]) -> ProcessPeer:
        peer = ProcessPeer(driver)
        self._all.append(peer)
        return peer
