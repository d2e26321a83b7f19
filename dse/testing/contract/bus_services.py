"""The services that level 2 of the contract runs, on the test's nodes and on those of other processes.

Their RPC methods are called over the bus. Their plain methods are for the test itself, which reaches them past the bus
(`dse.testing.contract.bus_peer`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

from dse.core.methods import call_context, rpc
from dse.core.replica import ReplicaState
from dse.core.rpc import register_error
from dse.core.service import DataService
from dse.core.table import Change, Replica, Table
from dse.testing.contract.recorder import DEADLINE, eventually

__all__ = ["Endpoint", "Followed", "KnownError", "Sink", "Source", "Worker", "sorted_rows"]


@register_error
class KnownError(Exception):
    """An exception that both sides know."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what, number)
        self.what = what
        self.number = number


class Worker(DataService):
    """Methods of every kind, and a memory of which calls were run."""

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self._ran: list[str] = []
        self._gate = threading.Event()
        self.kept: list[Any] = []

    @rpc
    def echo(self, value: Any) -> Any:
        return value

    @rpc
    def typed(self, count: int, name: str = "nobody", tags: list[str] | None = None) -> list[Any]:
        """Take what is annotated, and nothing else."""
        self._ran.append("typed")
        return [count, name, tags]

    @rpc
    def mark(self, key: str) -> str:
        self._ran.append(key)
        return self.node.node_id

    @rpc
    async def amark(self, key: str, seconds: float = 0.0) -> str:
        """Return after some seconds, or once `let_go` was called."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._gate.is_set():
            await asyncio.sleep(0.01)
        self._ran.append(key)
        return self.node.node_id

    @rpc
    def hold(self, key: str) -> str:
        """Return once `let_go` was called."""
        self._ran.append(key)
        self._gate.wait(DEADLINE)
        return key

    @rpc(idempotent=True)
    def steady(self, key: str) -> str:
        self._ran.append(key)
        self._gate.wait(DEADLINE)
        return self.node.node_id

    @rpc(idempotent=True)
    def again(self, key: str) -> str:
        return key

    @rpc
    def fail(self, text: str) -> None:
        raise LookupError(text)

    @rpc
    def fail_known(self, what: str, number: int) -> None:
        raise KnownError(what, number)

    @rpc
    def refuse(self) -> None:
        raise TypeError("raised by the method itself")

    @rpc
    def unsendable(self) -> Any:
        return object()

    @rpc
    def big(self, size: int) -> bytes:
        return bytes(size)

    @rpc
    def length(self, data: bytes) -> int:
        return len(data)

    @rpc
    def caller(self) -> str:
        context = call_context()
        return context.node_id if context is not None else ""

    @rpc
    def relay(self, service_id: str, method: str, args: dict[str, Any]) -> Any:
        """Call another service from within a call."""
        return self.call(service_id, method, args)

    @rpc
    def keep(self, value: list[Any]) -> list[Any]:
        """Return the very object that is kept."""
        self.kept = value
        return value

    # For the test

    def ran(self) -> list[str]:
        return list(self._ran)

    def wait_ran(self, key: str, times: int = 1) -> None:
        eventually(lambda: self._ran.count(key) >= times, f"{key} was run {times} times")

    def let_go(self) -> None:
        self._gate.set()

    def close_gate(self) -> None:
        self._gate.clear()

    def wait_service(self, service_id: str) -> None:
        self.node.wait_for(service_id, DEADLINE)


class Endpoint:
    """What a node answers itself."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ping(self, text: str) -> str:
        self.heard.append(text)
        return f"pong {text}"


class Source(DataService):
    """Publishes tables; remembers whether anybody subscribes."""

    items = Table("key", "value")
    others = Table("a", "b", "c")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self._hooks: list[str] = []
        self._churning: threading.Thread | None = None
        self._ended = threading.Event()

    def on_first_subscriber(self, table: str) -> None:
        self._hooks.append(f"first {table}")

    def on_last_unsubscribe(self, table: str) -> None:
        self._hooks.append(f"last {table}")

    # For the test

    def replace(self, rows: list[list[Any]], table: str = "items") -> None:
        self.published_tables[table].replace(rows)

    def insert(self, rows: list[list[Any]], table: str = "items") -> None:
        self.published_tables[table].insert(rows)

    def delete(self, rows: list[list[Any]], table: str = "items") -> None:
        self.published_tables[table].delete(rows)

    def apply(self, added: list[list[Any]], removed: list[list[Any]]) -> None:
        self.items.apply(added, removed)

    def fill(self, count: int) -> None:
        """Hold so many rows, each about 100 bytes."""
        self.items.replace((key, f"value of {key} ".ljust(90, ".")) for key in range(count))

    def churn(self) -> None:
        """Change the table again and again until `settle`."""
        self._ended.clear()

        def run() -> None:
            turn = 0
            while not self._ended.wait(0.002):
                turn += 1
                latest = [(key, f"turn {turn}") for key in range(-5, 0)]
                before = [(key, f"turn {turn - 1}") for key in range(-5, 0)]
                self.items.apply(latest, [*before, (-5 - turn, "brief")])
                self.items.insert([(-6 - turn, "brief")])

        self._churning = threading.Thread(target=run, name="contract-churn", daemon=True)
        self._churning.start()

    def settle(self) -> None:
        """Change the table no more."""
        self._ended.set()
        if self._churning is not None:
            self._churning.join(DEADLINE)

    def rows(self, table: str = "items") -> list[list[Any]]:
        return sorted_rows(self.published_tables[table].rows)

    def epoch(self) -> str:
        return self.items.version[0]

    def hooks(self) -> list[str]:
        return list(self._hooks)

    def wait_hooks(self, *hooks: str) -> None:
        until = time.monotonic() + DEADLINE
        while tuple(self._hooks) != hooks:
            assert time.monotonic() < until, f"the hooks were {self._hooks}, not {list(hooks)}"
            time.sleep(0.005)


class Followed:
    """A replica with everything that its callback was told."""

    def __init__(self, service: DataService, service_id: str, table: str) -> None:
        self._changed = threading.Condition()
        self.changes: list[Change] = []
        self.replica: Replica = service.subscribe(service_id, table, self._note)

    def _note(self, change: Change) -> None:
        with self._changed:
            self.changes.append(change)
            self._changed.notify_all()

    def total(self) -> set[Any]:
        """Return what the changes add up to; fail if a row came or went that had come or gone before."""
        rows: set[Any] = set()
        with self._changed:
            changes = list(self.changes)
        versions: dict[str, int] = {}
        for change in changes:
            assert not change.added & rows, "a row came twice"
            assert change.removed <= rows, "a row went that was not there"
            epoch, seq = change.version
            assert seq >= versions.get(epoch, 0), "changes come out of order"
            versions[epoch] = seq
            rows = (rows - change.removed) | change.added
        return rows

    def wait_equal(self, rows: Any, timeout: float = DEADLINE) -> None:
        """Wait until the replica is LIVE with these rows, and its callback has been told all of it."""
        wanted = {tuple(row) for row in rows}
        until = time.monotonic() + timeout
        self.replica.wait(lambda r: r.state is ReplicaState.LIVE and r.rows == wanted, timeout)
        with self._changed:
            told = self._changed.wait_for(lambda: self.total() == wanted, max(0.1, until - time.monotonic()))
        assert told, f"the changes add up to {len(self.total())} rows, not {len(wanted)}"


class Sink(DataService):
    """Subscribes to what it is told to."""

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self._followed: dict[str, Followed] = {}

    def follow(self, service_id: str, table: str = "items") -> Followed:
        return Followed(self, service_id, table)

    # For a test in another process

    def begin(self, service_id: str, table: str = "items") -> None:
        self._followed[table] = self.follow(service_id, table)
        self._followed[table].replica.wait(ReplicaState.LIVE, DEADLINE)

    def end(self, table: str = "items") -> None:
        self.unsubscribe(self._followed.pop(table).replica)

    def wait_rows(self, rows: list[list[Any]], table: str = "items") -> None:
        self._followed[table].wait_equal(rows)


def sorted_rows(rows: Any) -> list[list[Any]]:
    """Return rows as lists, in an order that does not depend on chance."""
    return sorted((list(row) for row in rows), key=repr)


KINDS: Mapping[str, type[DataService]] = {kind.__name__: kind for kind in (Worker, Source, Sink)}
