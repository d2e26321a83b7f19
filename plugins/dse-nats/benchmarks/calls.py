"""Calls over NATS beside calls over Redis, on private servers of this machine: ``python benchmarks/calls.py``.

Caller and callee are two processes. The drivers take turns, so that what else the machine does meets all alike; it
prints the best round of each, which was disturbed least, and the median of all.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import uuid

from dse import DataService, Node, rpc
from dse.testing.brokers import RedisServer
from dse_nats.testing import LocalServer, NatsServer

ROUNDS = 10
CALLS = 800
AT_ONCE = 16
ARGS = {"pid": 42, "name": "x" * 180, "flag": True}


class Echo(DataService):
    """Answers with a part of what it got."""

    @rpc
    def echo(self, pid: int, name: str, flag: bool) -> int:
        """Return the pid."""
        return pid


def serve(url: str, bus: str) -> None:
    with Node(url, bus=bus, services=[Echo("echo")]):
        sys.stdin.read()


def one_at_a_time(node: Node) -> float:
    """Return the median time of a call in microseconds."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        node.call("echo", "echo", ARGS)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def at_once(node: Node) -> float:
    """Return the calls per second of several threads together."""

    def work() -> None:
        for _ in range(CALLS // AT_ONCE):
            node.call("echo", "echo", ARGS)

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CALLS / (time.perf_counter() - began)


def main() -> None:
    with RedisServer() as redis, NatsServer() as nats, LocalServer() as local:
        servers = {"redis://": redis.direct_url, "nats://": nats.direct_url, "nats+local://": local.direct_url}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, url in servers.items():
                bus = uuid.uuid4().hex[:8]
                callee = subprocess.Popen([sys.executable, __file__, url, bus], stdin=subprocess.PIPE)
                with Node(url, bus=bus) as node:
                    node.wait_for("echo", 20)
                    for _ in range(500):
                        node.call("echo", "echo", ARGS)
                    figures[name].append((one_at_a_time(node), at_once(node)))
                callee.communicate()
    print(f"| driver | a call, median (best round) | {AT_ONCE} at once, calls/s (best round) |\n| --- | --- | --- |")
    for name, rounds in figures.items():
        alone, together = zip(*rounds, strict=True)
        single = f"{statistics.median(alone):.0f} us ({min(alone):.0f} us)"
        print(f"| `{name}` | {single} | {statistics.median(together):,.0f} ({max(together):,.0f}) |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1], sys.argv[2])
    else:
        main()
