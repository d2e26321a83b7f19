"""A node at work beside an honest one, and a way to hand it any frame as if the bus had delivered it.

Used by the fuzzer `node` and by the long run. What a thread of the node raises is kept in `Site.raised`.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from dse import DataService, Node, Table, rpc
from dse.core.messages import CONTROL, broadcast_address, instance_address, service_address, table_address
from dse.core.replica import ReplicaState
from dse.core.transport import Address

__all__ = ["Site"]

PATIENCE = 5.0
"""Seconds within which the honest node is served whatever the fuzzed one is told."""


class Fuzzed(DataService):
    """What is offered to whoever speaks: a table, and methods of several kinds."""

    t = Table("a", "b")

    @rpc
    def ping(self, x: int = 0) -> int:
        return x

    @rpc
    def s(self, s: Any = None) -> Any:
        return s

    @rpc
    async def later(self, x: int = 0) -> int:
        return x


class Honest(DataService):
    u = Table("a", "b")


class _Raised(logging.Handler):
    """Keeps what a job, a handler or a timer of a node raised."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.into) < 100:
            self.into.append(self.format(record))


class Site:
    """A fuzzed node that follows an honest one's table, and is called by it."""

    def __init__(self) -> None:
        self.raised: list[str] = []
        self._handler = _Raised(self.raised)
        root = logging.getLogger("dse")
        self._log_before = root.level, root.propagate
        root.addHandler(self._handler)
        root.setLevel(logging.ERROR)
        root.propagate = False
        url = f"fake://fuzz-{uuid.uuid4().hex}"
        self.fuzzed = Node(url, node_id="under-test", services=[Fuzzed("s")], heartbeat_interval=60.0, max_pending=100)
        self.honest = Node(url, node_id="honest", services=[Honest("h")], heartbeat_interval=60.0)
        self.honest.start()
        self.fuzzed.start()
        self.fuzzed.service("s").t.insert([(number, "x") for number in range(50)])
        self.honest.service("h").u.insert([(number, "y") for number in range(50)])
        self.fuzzed.wait_for("h", 10)
        self.honest.wait_for("s", 10)
        self.replica = self.fuzzed.service("s").subscribe("h", "u")
        self.replica.wait(ReplicaState.LIVE, 10)
        self.runtime = self.fuzzed.runtime
        self.addresses: tuple[Address, ...] = (
            CONTROL,
            instance_address(self.runtime.instance),
            service_address("s"),
            broadcast_address("s"),
            table_address(self.honest.runtime.instance, "h", "u"),
        )

    def tell(self, which: int, frame: bytes) -> None:
        """Deliver a frame to one of the addresses that the node listens on."""
        self.runtime.received(self.addresses[which % len(self.addresses)], frame)

    def check(self) -> None:
        """Assert that the node serves who is honest, knows it, and has raised nothing."""
        if self.raised:
            raise AssertionError(self.raised[0])
        number = time.monotonic_ns() % 1000
        assert self.honest.call("s", "ping", {"x": number}, timeout=PATIENCE, node_id="under-test") == number
        assert "honest" in self.fuzzed.status().peers

    def settle(self) -> None:
        """Assert that what the honest node publishes now arrives."""
        table = self.honest.service("h").u
        table.replace([(number, f"{time.monotonic_ns()}") for number in range(20)])
        rows = table.rows
        self.replica.wait(lambda replica: replica.rows == rows, 30)

    def close(self) -> None:
        """Stop both nodes."""
        self.fuzzed.stop()
        self.honest.stop()
        root = logging.getLogger("dse")
        root.removeHandler(self._handler)
        level, root.propagate = self._log_before
        root.setLevel(level)
