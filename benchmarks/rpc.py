"""RPC between two processes, side by side on private local brokers: how long one call takes, and how many a second.

    python benchmarks/rpc.py [--calls 2000] [URL ...]

Without a URL it starts a private Redis and RabbitMQ server. One process hosts the service, this one calls it with about
200 bytes of arguments: one at a time, then from 16 threads at once. The drivers take turns in short rounds, so that a
noisy machine is as noisy for each. `fake://` has both nodes in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import threading
import time
import uuid
from multiprocessing.connection import Connection

from dse import DataService, Node, rpc
from dse.testing.brokers import rabbit_broker, redis_broker

ARGS = {"pid": 42, "name": "x" * 180, "flag": True}


class Echo(DataService):
    """Answers with what it got."""

    @rpc
    def echo(self, pid: int, name: str, flag: bool) -> int:
        """Return the pid."""
        return pid


def serve(url: str, bus: str, pipe: Connection) -> None:
    """Host the service until the pipe says stop."""
    with Node(url, bus=bus, services=[Echo("echo")]):
        pipe.send("ready")
        pipe.recv()


class Pair:
    """A calling node here, and the service's node in a process of its own (on fake://: here, too)."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.latencies: list[float] = []
        self.rates: list[float] = []
        self._stack = contextlib.ExitStack()
        bus = f"bench-{uuid.uuid4().hex}"
        if url.startswith("fake"):
            self._stack.enter_context(Node(url, bus=bus, services=[Echo("echo")]))
        else:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(url, bus, theirs), daemon=True)
            process.start()
            self._stack.callback(process.join, 20)
            self._stack.callback(ours.send, "stop")
            if not ours.poll(20):
                raise TimeoutError(f"{name}: the service's process did not start")
            ours.recv()
        self._node = self._stack.enter_context(Node(url, bus=bus))
        self._node.wait_for("echo", 10)

    def one_at_a_time(self, calls: int) -> None:
        """Add the latency of each of so many calls, in seconds."""
        call, clock = self._node.call, time.perf_counter
        for _ in range(calls):
            began = clock()
            call("echo", "echo", ARGS)
            self.latencies.append(clock() - began)

    def at_once(self, calls: int, threads: int = 16) -> None:
        """Add the rate of so many calls from several threads, in calls a second."""
        each = calls // threads

        def work() -> None:
            for _ in range(each):
                self._node.call("echo", "echo", ARGS)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.rates.append(each * threads / (time.perf_counter() - began))

    def close(self) -> None:
        """Stop both nodes."""
        self._stack.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("urls", nargs="*", metavar="URL")
    parser.add_argument("--calls", type=int, default=2000, help="in all, of each kind (default 2000)")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        urls = {url.partition(":")[0]: url for url in options.urls}
        if not urls:
            redis, rabbit = stack.enter_context(redis_broker()), stack.enter_context(rabbit_broker())
            urls = {"fake": f"fake://{uuid.uuid4().hex}", "redis": redis.direct_url, "rabbit": rabbit.direct_url}
        pairs = []
        for name, url in urls.items():
            pair = Pair(url, name)
            stack.callback(pair.close)
            pair.one_at_a_time(200)
            pair.latencies.clear()
            pairs.append(pair)
        for _ in range(options.rounds):
            for pair in pairs:
                pair.one_at_a_time(options.calls // options.rounds)
            for pair in pairs:
                pair.at_once(options.calls // options.rounds)
        print(f"{'driver':8} {'median us':>10} {'p99 us':>10} {'calls/s':>10} {'16 at once/s':>13}")
        for pair in pairs:
            latencies = sorted(pair.latencies)
            median, p99 = statistics.median(latencies), latencies[int(len(latencies) * 0.99)]
            rate = len(latencies) / sum(latencies)
            print(
                f"{pair.name:8} {median * 1e6:10.0f} {p99 * 1e6:10.0f} {rate:10.0f} "
                f"{statistics.median(pair.rates):13.0f}"
            )


if __name__ == "__main__":
    main()
