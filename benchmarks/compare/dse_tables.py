"""What tables cost: changes, replacements, first syncs, memory, idle nodes, many services; and the floors beside them.

dse_tables.py OPERATIONS URL NAME     (publish, follow, alone, idle, idle_reader, floor_send, floor_receive, many, …)
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from worker import ARGS, obey, one_at_a_time, resident, rows_of

from dse import DataService, Node, ReplicaState, Table, rpc

MILLION = 1_000_000


def rows(count: int) -> set[tuple[Any, ...]]:
    """Return so many rows of four columns."""
    return {(number, f"name-{number}", number * 7, number % 2 == 0) for number in range(count)}


class Big(DataService):
    """A table for each size."""

    items = Table("id", "name", "size", "flag")
    small = Table("id", "name", "size", "flag")
    middle = Table("id", "name", "size", "flag")
    large = Table("id", "name", "size", "flag")


def alone(url: str, bus: str) -> None:
    """Tables of a started node that nobody follows."""
    service = Big("big")
    with Node(url, bus=bus, services=[service]):
        fresh = iter(range(2 * MILLION, 1 << 60))

        def change(table: Any, size: int) -> Callable[[], object]:
            def job() -> object:
                return table.apply([(next(fresh), "new", 1, False) for _ in range(size)])

            return job

        def by_table_size(rounds: int) -> dict[str, list[float]]:
            """Ten new rows in tables of a thousand rows to a million, in turns."""
            tables = {1000: service.small, 10_000: service.middle, 100_000: service.large, MILLION: service.items}
            for size, table in tables.items():
                table.replace(rows(size))
            took: dict[str, list[float]] = {str(size): [] for size in tables}
            for _ in range(rounds):
                for size, table in tables.items():
                    took[str(size)] += one_at_a_time(change(table, 10), 100)
                service.small.replace(rows(1000))
                service.middle.replace(rows(10_000))
            return took

        def by_change_size(rounds: int) -> dict[str, list[float]]:
            """One new row to a thousand in a table of a thousand, in turns."""
            took: dict[str, list[float]] = {str(size): [] for size in (1, 10, 100, 1000)}
            for _ in range(rounds):
                for size in (1, 10, 100, 1000):
                    service.small.replace(rows(1000))
                    took[str(size)] += one_at_a_time(change(service.small, size), 20)
            return took

        def replace(rounds: int) -> dict[str, list[float]]:
            """One row changed among a million, and one set difference of the same rows, in turns."""
            service.items.replace(rows(MILLION))
            wanted, known = rows(MILLION), rows(MILLION)
            took: dict[str, list[float]] = {"replace": [], "difference": []}
            for number in range(rounds):
                row = next(iter(wanted))
                wanted.remove(row)
                wanted.add((row[0], f"changed-{number}", row[2], row[3]))
                took["difference"] += one_at_a_time(lambda: wanted - known, 1)
                took["replace"] += one_at_a_time(lambda: service.items.replace(wanted), 1)
                took["difference"] += one_at_a_time(lambda: wanted - known, 1)
            return took

        obey(by_table_size=by_table_size, by_change_size=by_change_size, replace=replace)


def publish(url: str, bus: str) -> None:
    """Publish a million rows."""
    service = Big("big")
    with Node(url, bus=bus, services=[service]):
        service.items.replace(rows(MILLION))
        obey()


def follow(url: str, bus: str) -> None:
    """Follow the million rows again and again."""
    reader = DataService("reader")
    with Node(url, bus=bus, services=[reader]) as node:
        node.wait_for("big", 10)

        def sync() -> float:
            gc.collect()
            began = time.perf_counter()
            replica = reader.subscribe("big", "items")
            replica.wait(ReplicaState.LIVE, 120)
            took = time.perf_counter() - began
            assert len(replica) == MILLION
            reader.unsubscribe(replica)
            return took

        def memory() -> int:
            gc.collect()
            before = resident()
            replica = reader.subscribe("big", "items")
            replica.wait(ReplicaState.LIVE, 120)
            gc.collect()
            return resident() - before

        obey(sync=sync, memory=memory)


def floor_send(_url: str, _bus: str) -> None:
    """Send a million rows through a raw socket, packed."""
    listed = list(rows(MILLION))

    def send(port: int) -> bool:
        encode = msgspec.msgpack.Encoder().encode
        with socket.create_connection(("127.0.0.1", port)) as sock:
            for at in range(0, MILLION, 4000):
                packed = encode(listed[at : at + 4000])
                sock.sendall(len(packed).to_bytes(4, "big") + packed)
        return True

    obey(send=send)


def floor_receive(_url: str, _bus: str) -> None:
    """Receive a million rows through a raw socket, decode them and build the set."""
    server = socket.create_server(("127.0.0.1", 0))

    def receive() -> float:
        gc.collect()
        began = time.perf_counter()
        sock, _ = server.accept()
        decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode
        copy: set[Any] = set()
        with sock, sock.makefile("rb", 1 << 20) as file:
            while header := file.read(4):
                copy.update(decode(file.read(int.from_bytes(header, "big"))))
        assert len(copy) == MILLION
        return time.perf_counter() - began

    def memory() -> int:
        gc.collect()
        before = resident()
        kept = rows(MILLION)
        gc.collect()
        grown = resident() - before
        assert len(kept) == MILLION
        return grown

    obey(port=lambda: server.getsockname()[1], receive=receive, memory=memory)


def idle(url: str, bus: str, count: int) -> None:
    """A node with so many tables, all followed by others, on which nothing happens, or one change after the other."""
    tables = {f"t{number}": Table("number", "name", "message", "flag") for number in range(count)}
    service = type("Many", (DataService,), tables)("many")
    published = itertools.cycle(service.published_tables.values())
    numbers = itertools.count()
    with Node(url, bus=bus, services=[service]):

        def rest(seconds: float) -> float:
            """Return the share of one core that the node's process uses."""
            cpu, began = time.process_time(), time.monotonic()
            time.sleep(seconds)
            return (time.process_time() - cpu) / (time.monotonic() - began)

        def change(times: int) -> dict[str, Any]:
            """Return how long each of so many changes of ten rows took, and the processor time of one."""
            took: list[float] = []
            cpu = time.process_time()
            for _ in range(times):
                table, rows = next(published), rows_of(next(numbers))
                took += one_at_a_time(lambda table=table, rows=rows: table.insert(rows), 1)  # type: ignore[misc]
                time.sleep(0.002)  # so that each is sent by itself
            return {"took": took, "cpu": (time.process_time() - cpu) / times}

        obey(rest=rest, change=change)


def idle_reader(url: str, bus: str, count: int, nodes: int = 1) -> None:
    """Follow the tables, from so many nodes."""
    with contextlib.ExitStack() as stack:
        for _ in range(nodes):
            reader = DataService(f"reader{uuid.uuid4().hex}")
            stack.enter_context(Node(url, bus=bus, services=[reader])).wait_for("many", 10)
            replicas = [reader.subscribe("many", f"t{number}") for number in range(count)]
            for replica in replicas:
                replica.wait(ReplicaState.LIVE, 30)
        obey()


class Offer(DataService):
    """One of many services on a node."""

    first = Table("a", "b")
    second = Table("a", "b")

    @rpc
    def echo(self, pid: int, name: str, flag: bool) -> int:
        """Return the pid."""
        return pid


def many(url: str, bus: str, count: int = 500) -> None:
    """Host so many services with two tables each."""
    node = Node(url, bus=bus, services=[Offer(f"offer{number}") for number in range(count)])
    began = time.perf_counter()
    node.start()
    took = time.perf_counter() - began
    obey(started=lambda: took)


def many_caller(url: str, bus: str, count: int = 500) -> None:
    """Call them in turn; on the in-process driver, host them too."""
    took = 0.0
    if url.startswith("fake"):
        host = Node(url, bus=bus, services=[Offer(f"offer{number}") for number in range(count)])
        began = time.perf_counter()
        host.start()
        took = time.perf_counter() - began
    with Node(url, bus=bus) as node:
        node.wait_for(f"offer{count - 1}", 10)

        def calls(times: int) -> list[float]:
            numbers = iter(range(times))
            return one_at_a_time(lambda: node.call(f"offer{next(numbers) * 7 % count}", "echo", ARGS), times)

        obey(calls=calls, started=lambda: took)


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url, name, *map(int, sys.argv[4:]))
