"""What the web gateway costs: viewers of changing tables, a first page of a large table, clients that stall.

    python benchmarks/web.py [--seconds 20] [--rows 1000000]

Each measurement has a private Redis, a publisher and `dse web` as processes of their own; this process plays the
viewers. The gateway's processor time and memory are the system's own figures of its process.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil

from dse.testing.brokers import redis_broker

PUBLISHER = """
import sys, time
from dse import DataService, Node
kind, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
service = DataService("load")
tables = [service.add_table(f"t{n}", "number", "text") for n in range(50 if kind == "many" else 1)]
with Node(url, node_id="load", services=[service]):
    if kind == "large":
        tables[0].replace((n, f"row {n}") for n in range(count))
    for each in tables:
        each.insert([(n, "x" * 40) for n in range(100)])
    print("ready", flush=True)
    began, n = time.monotonic(), 0
    while True:
        if kind == "large":
            sys.stdin.readline()
            break
        tables[n % len(tables)].replace([((n + row) % 1000, "x" * count) for row in range(100)])
        n += 1
        time.sleep(max(0.0, began + n / 100 - time.monotonic()))
"""


_counting = threading.Lock()


class Gateway:
    """`dse web` and a publisher on a broker of their own."""

    def __init__(self, kind: str, count: int) -> None:
        self._stack = contextlib.ExitStack()
        url = self._stack.enter_context(redis_broker()).url
        self.publisher = self._process([sys.executable, "-c", PUBLISHER, kind, url, str(count)], "stdout")
        self.process = self._process(
            [sys.executable, "-m", "dse.cli.main", "web", "--transport", url, "--port", "0"], "stderr"
        )
        self.port = int(self.line.split("127.0.0.1:")[1].split("/")[0])
        self.system = psutil.Process(self.process.pid)

    def _process(self, command: list[str], ready: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._stack.callback(process.communicate, timeout=30)
        self._stack.callback(process.kill)
        self.line = getattr(process, ready).readline()
        return process

    def get(self, path: str) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/api/{path}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def gateway(kind: str, count: int = 0) -> Iterator[Gateway]:
    made = Gateway(kind, count)
    try:
        yield made
    finally:
        made.close()


def follow(port: int, path: str, stop: threading.Event, seen: list[int]) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET /api/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connection.settimeout(0.5)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                count = connection.recv(1 << 16).count(b"event: change")
                with _counting:
                    seen[0] += count


def viewers(seconds: float) -> None:
    """50 tables, 100 changes a second in all; 10 viewers that each follow the bus and every table."""
    with gateway("many", 40) as made:
        stop, seen = threading.Event(), [0]
        paths = ["events", *(f"tables/load/t{n}/changes" for n in range(50))]
        threads = [
            threading.Thread(target=follow, args=(made.port, path, stop, seen)) for path in paths for _ in range(10)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.025)  # a gateway takes so many new clients of one address in a second
        time.sleep(2)
        began, spent, before = time.monotonic(), sum(made.system.cpu_times()[:2]), seen[0]
        time.sleep(seconds)
        took = time.monotonic() - began
        percent = (sum(made.system.cpu_times()[:2]) - spent) / took * 100
        print(
            f"10 viewers of 50 tables, {(seen[0] - before) / took:.0f} changes/s to them in all: "
            f"{percent:.1f} % of a core, {made.system.memory_info().rss / 2**20:.0f} MiB"
        )
        stop.set()
        for thread in threads:
            thread.join()


def first_page(rows: int) -> None:
    """The first page of a large table that nobody has looked at; then pages of it while it is here."""
    with gateway("large", rows) as made:
        for what, path in (
            ("first page, cold", "tables/load/t0?limit=100"),
            ("first page again", "tables/load/t0?limit=100"),
        ):
            began = time.monotonic()
            page = made.get(path)
            print(f"{what}: {time.monotonic() - began:.2f} s, {len(page['rows'])} of {page['total']:,} rows")
        began = time.monotonic()
        while not made.get("tables/load/t0?limit=1")["complete"]:
            time.sleep(0.05)
        print(f"the whole table is there after another {time.monotonic() - began:.1f} s")
        for what, path in (
            ("page, warm", "tables/load/t0?limit=100"),
            ("page, warm, sorted", "tables/load/t0?limit=100&sort=-number"),
            ("page, warm, filtered", "tables/load/t0?limit=100&filter=text:prefix:row%2099"),
        ):
            began = time.monotonic()
            page = made.get(path)
            print(f"{what}: {time.monotonic() - began:.2f} s, {page['matched']:,} matched")
        print(f"memory with {rows:,} rows: {made.system.memory_info().rss / 2**20:.0f} MiB")


def stalled(seconds: float) -> None:
    """500 clients that follow large changes and take nothing."""
    with gateway("many", 400) as made:
        time.sleep(2)
        before = made.system.memory_info().rss
        clients = []
        for n in range(500):
            client = socket.create_connection(("127.0.0.1", made.port), 10)
            client.sendall(f"GET /api/tables/load/t{n % 50}/changes HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            clients.append(client)
            time.sleep(0.02)
        most, until = 0, time.monotonic() + seconds
        slowest = 0.0
        while time.monotonic() < until:
            began = time.monotonic()
            made.get("status")
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, made.system.memory_info().rss)
            time.sleep(0.2)
        print(
            f"500 stalled clients of 50 tables with 100 changes/s of 80 KiB: {before / 2**20:.0f} MiB before, "
            f"{most / 2**20:.0f} MiB at most; another's request took {slowest * 1000:.0f} ms at most"
        )
        for client in clients:
            client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    viewers(options.seconds)
    first_page(options.rows)
    stalled(max(options.seconds, 40))


if __name__ == "__main__":
    main()
