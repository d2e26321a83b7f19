"""DSE, on any driver.

dse_worker.py serve|call|pair|follow|publish|spread URL NAME
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections import deque
from concurrent.futures import Future
from typing import Any

from worker import ARGS, by_threads, obey, one_at_a_time, rows_of

from dse import DataService, Node, Replica, Table, rpc


class Echo(DataService):
    """Answers with a part of what it got."""

    @rpc
    def echo(self, pid: int, name: str, flag: bool) -> int:
        """Return the pid."""
        return pid


class Source(DataService):
    """Publishes the rows that are fanned out."""

    rows = Table("number", "name", "message", "flag")


def serve(url: str, bus: str) -> None:
    """Host the service."""
    with Node(url, bus=bus, services=[Echo("echo")]):
        obey()


def call(url: str, bus: str) -> None:
    """Call it from another process."""
    with Node(url, bus=bus) as node:
        node.wait_for("echo", 10)
        obey(**_calls(node))


def pair(url: str, bus: str) -> None:
    """Call it within one process, over the in-process driver."""
    url = f"fake://{uuid.uuid4().hex}"
    with Node(url, bus=bus, services=[Echo("echo")]), Node(url, bus=bus) as node:
        node.wait_for("echo", 10)
        obey(**_calls(node))


def _calls(node: Node) -> dict[str, Any]:
    def echo() -> Any:
        return node.call("echo", "echo", ARGS)

    def window(calls: int, at_once: int) -> float:
        under_way: deque[Future[Any]] = deque()
        began = time.perf_counter()
        for _ in range(calls):
            if len(under_way) >= at_once:
                under_way.popleft().result()
            under_way.append(node.call_async("echo", "echo", ARGS))
        while under_way:
            under_way.popleft().result()
        return time.perf_counter() - began

    return {
        "one": lambda calls: one_at_a_time(echo, calls),
        "threads": lambda calls, at_once: by_threads(lambda _: echo, calls, at_once),
        "window": window,
    }


def _follow(stack: contextlib.ExitStack, url: str, bus: str, receivers: int) -> list[Replica]:
    replicas = []
    for _ in range(receivers):
        reader = DataService("reader" + uuid.uuid4().hex)
        node = stack.enter_context(Node(url, bus=bus, services=[reader]))
        node.wait_for("source", 10)
        replicas.append(reader.subscribe("source", "rows"))
    return replicas


def follow(url: str, bus: str, receivers: int = 4) -> None:
    """Hold several replicas, a node each; say when all have the last change."""
    with contextlib.ExitStack() as stack:
        replicas = _follow(stack, url, bus, receivers)

        def reached(message: int) -> bool:
            for replica in replicas:
                replica.wait(lambda replica: replica.version[1] > message, 60.0)  # each message is one change
            return True

        obey(reached=reached)


def publish(url: str, bus: str) -> None:
    """Publish changes of ten rows."""
    source = Source("source")
    said = iter(range(1 << 60))

    def messages(count: int) -> int:
        number = 0
        for _ in range(count):
            number = next(said)
            source.rows.insert(rows_of(number))
        return number

    with Node(url, bus=bus, services=[source]):
        obey(messages=messages)


def spread(url: str, bus: str, receivers: int = 8) -> None:
    """Publish and follow within one process, over the in-process driver."""
    url = f"fake://{uuid.uuid4().hex}"
    source = Source("source")
    said = iter(range(1 << 60))
    with Node(url, bus=bus, services=[source]), contextlib.ExitStack() as stack:
        replicas = _follow(stack, url, bus, receivers)
        lock = threading.Lock()

        def messages(count: int) -> int:
            with lock:
                number = 0
                for _ in range(count):
                    number = next(said)
                    source.rows.insert(rows_of(number))
                return number

        def reached(message: int) -> bool:
            for replica in replicas:
                replica.wait(lambda replica: replica.version[1] > message, 60.0)
            return True

        obey(messages=messages, reached=reached)


if __name__ == "__main__":
    role, url, name = sys.argv[1:4]
    globals()[role](url, name, *map(int, sys.argv[4:]))
