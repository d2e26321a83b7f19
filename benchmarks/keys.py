"""What keys cost: the same calls and changes on two buses of one broker, one with keys and one without, turn by turn.

    python benchmarks/keys.py [--drivers fake,redis,rabbit] [--rounds 40] [--calls 250]

Callers and publishers are in this process, services and replicas in another (with ``fake``, all in one). Turns
alternate, so that what else the machine does meets both alike; the ratio is of the medians of all calls. The brokers
are private ones.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack

from dse import DataService, Node, Table, rpc
from dse.core.keys import new_key
from dse.testing.brokers import rabbit_broker, redis_broker
from dse.testing.piped import PipedProcess

SIZES = (0, 1000, 50_000)
CHANGES = 3000
TEXT = "some text, as rows have it"
first = itertools.count(0, CHANGES)


class Echo(DataService):
    @rpc
    def echo(self, data: str) -> str:
        return data


class Source(DataService):
    numbers = Table("number", "text")


class Follower(DataService):
    def on_start(self) -> None:
        self.replica = self.subscribe("source", "numbers", patient=True)

    @rpc
    def wait(self, last: int) -> int:
        self.replica.wait(lambda replica: (last, TEXT) in replica, 60)
        return len(self.replica)


def there(url: str, bus: str, keys: list[str] | None) -> Node:
    node = Node(url, bus=bus, keys=keys, services=[Echo("echo"), Follower("follower")])
    node.start()
    return node


def child(url: str, bus: str, key: str) -> None:
    nodes = [there(url, f"{bus}-plain", None), there(url, f"{bus}-keys", [key])]
    print("ready", flush=True)
    sys.stdin.readline()
    for node in nodes:
        node.stop()


def measure_calls(
    plain: Callable[[], float], keyed: Callable[[], float], rounds: int, calls: int
) -> list[tuple[float, float]]:
    """Return the median, and the tenth that was quickest at the most, without keys and with."""
    times: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            call = (plain, keyed)[which]
            times[which].extend([call() for _ in range(calls)])
    return [(statistics.median(each), statistics.quantiles(each, n=10)[0]) for each in times]


def caller(node: Node, data: str) -> Callable[[], float]:
    args = {"data": data}

    def call() -> float:
        began = time.perf_counter()
        node.call("echo", "echo", args, timeout=30)
        return time.perf_counter() - began

    return call


def changes(node: Node) -> float:
    """Publish changes one by one; return how many a second were in the replica at the end."""
    numbers = node.service("source").numbers  # type: ignore[attr-defined]
    numbers.replace([])
    start = next(first)
    began = time.perf_counter()
    for number in range(start, start + CHANGES):
        numbers.insert([(number, TEXT)])
    node.call("follower", "wait", {"last": start + CHANGES - 1}, timeout=90)
    return CHANGES / (time.perf_counter() - began)


def measure(driver: str, rounds: int, calls: int) -> None:
    bus, key = f"keys-{uuid.uuid4().hex[:8]}", new_key("k1")
    with ExitStack() as stack:
        if driver == "fake":
            url = f"fake://{bus}"
            stack.callback(there(url, f"{bus}-plain", None).stop)
            stack.callback(there(url, f"{bus}-keys", [key]).stop)
        else:
            broker = stack.enter_context(redis_broker() if driver == "redis" else rabbit_broker())
            url = broker.direct_url
            process = PipedProcess(__spec__.name if __spec__ else "keys", "--child", url, bus, key)
            process.answer(30)
            stack.callback(process.kill)
        plain = stack.enter_context(Node(url, bus=f"{bus}-plain", services=[Source("source")]))
        keyed = stack.enter_context(Node(url, bus=f"{bus}-keys", services=[Source("source")], keys=[key]))
        for node in (plain, keyed):
            node.wait_for("echo", 10)
            node.wait_for("follower", 10)
        for size in SIZES:
            data = "x" * size
            for node in (plain, keyed):
                [caller(node, data)() for _ in range(300)]
            gc.collect()
            most = max(20, calls if size < 10_000 else calls // 5)
            (a, quick), (b, quick_keyed) = measure_calls(caller(plain, data), caller(keyed, data), rounds, most)
            print(
                f"{driver:7} call, {size:6} characters  {a * 1e6:8.1f} us  {b * 1e6:8.1f} us  {b / a - 1:+7.1%}"
                f"   {quick * 1e6:8.1f} us  {quick_keyed * 1e6:8.1f} us  {quick_keyed / quick - 1:+7.1%}",
                flush=True,
            )
        rates: tuple[list[float], list[float]] = [], []
        for _ in range(max(3, rounds // 4)):
            rates[0].append(changes(plain))
            rates[1].append(changes(keyed))
        a, b = (statistics.median(each) for each in rates)
        print(f"{driver:7} changes, one by one   {a:9.0f} /s {b:9.0f} /s  {b / a - 1:+7.1%}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drivers", default="fake,redis,rabbit")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=250)
    options = parser.parse_args()
    print(f"{'':7} {'':23} {'median: no keys':>11}  {'keys':>8}  {'more':>7}   {'10th percentile':>11}  {'keys':>8}")
    for driver in options.drivers.split(","):
        measure(driver, options.rounds, options.calls)
    return None


if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0])
    main()
