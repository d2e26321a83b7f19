"""What is measured, part by part. Every part returns plain figures: seconds, rates a second, bytes, shares."""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare.processes import Failed, Worker, python_of

__all__ = ["PARTS", "Bench"]

RPC = {  # contestant: (script, role that serves or "" where one process does both, role that calls, broker)
    "redis-py by hand": ("floor_redis", "serve", "call", "redis"),
    "DSE redis": ("dse_worker", "serve", "call", "redis"),
    "FastStream redis": ("peer_faststream", "serve", "call", "redis"),
    "py-amqp by hand": ("floor_rabbit", "serve", "call", "rabbit"),
    "DSE rabbit": ("dse_worker", "serve", "call", "rabbit"),
    "FastStream rabbit": ("peer_faststream", "serve", "call", "rabbit"),
    "oslo.messaging rabbit": ("peer_oslo", "serve", "call", "rabbit"),
    "nameko rabbit": ("peer_nameko", "serve", "call", "rabbit"),
    "DSE fake": ("dse_worker", "", "pair", "fake"),
    "oslo.messaging fake": ("peer_oslo", "", "pair", "fake"),
}
SLOW = {"oslo.messaging fake"}  # twenty calls a second: fewer of them
WAITING = {"oslo.messaging rabbit", "nameko rabbit", "oslo.messaging fake"}  # one thread has one call under way

FANOUT = {
    "redis-py by hand": ("floor_redis", "redis"),
    "DSE redis": ("dse_worker", "redis"),
    "py-amqp by hand": ("floor_rabbit", "rabbit"),
    "DSE rabbit": ("dse_worker", "rabbit"),
    "oslo.messaging rabbit": ("peer_oslo", "rabbit"),
}


@dataclass
class Bench:
    """One run: where the brokers are, how much is done, and what came of it.

    urls: by broker. environments: the folder with the peers' environments. scale: 1.0 is the full run.
    """

    urls: dict[str, str]
    environments: Path
    scale: float
    only: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # contestant: why it is not there

    def count(self, full: int, least: int = 1) -> int:
        """Return how often to do what a full run does so often."""
        return max(least, round(full * self.scale))

    def wants(self, contestant: str) -> bool:
        """Whether the contestant takes part."""
        return not self.only or self.only in contestant

    def worker(self, script: str, *arguments: object) -> Worker:
        """Start a process."""
        return Worker(python_of(script, self.environments), script, *arguments)


@contextlib.contextmanager
def _ended(workers: list[Worker]) -> Iterator[list[Worker]]:
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _name() -> str:
    return f"bench-{uuid.uuid4().hex[:12]}"


def rpc(bench: Bench) -> None:
    """Calls one at a time, and 1, 16 and 128 at once, from threads and from one thread."""
    latencies: dict[str, list[float]] = {}
    rates: dict[str, dict[str, list[float]]] = {}
    callers: dict[str, Worker] = {}
    with _ended([]) as workers:
        for name, (script, serves, calls, broker) in RPC.items():
            if not bench.wants(name):
                continue
            try:
                topic, url = _name(), bench.urls[broker]
                if serves:
                    workers.append(bench.worker(script, serves, url, topic))
                workers.append(bench.worker(script, calls, url, topic))
                workers[-1].ask("one", calls=5 if name in SLOW else 300)
                callers[name] = workers[-1]
            except Failed as failure:
                bench.absent[name] = str(failure)
        for _ in range(bench.count(20, 3)):
            for name, worker in callers.items():
                took = worker.ask("one", calls=2 if name in SLOW else 100)
                latencies.setdefault(name, []).extend(took)
        for _ in range(bench.count(8, 2)):
            for name, worker in callers.items():
                for mode in ("threads",) if name in WAITING else ("threads", "window"):
                    for at_once in (1, 16, 128):
                        calls = max(at_once * 4, 800) if name not in SLOW else at_once
                        try:
                            seconds = worker.ask(mode, calls=calls, at_once=at_once)
                        except Failed as failure:
                            bench.absent[f"{name}, {mode} {at_once}"] = str(failure)
                            continue
                        rates.setdefault(name, {}).setdefault(f"{mode} {at_once}", []).append(calls / seconds)
    bench.results["rpc"] = {
        name: {
            **_spread_of(took),
            **{what: statistics.median(measured) for what, measured in rates.get(name, {}).items()},
        }
        for name, took in latencies.items()
    }


def _spread_of(took: list[float]) -> dict[str, float]:
    return {"median": statistics.median(took), "p99": sorted(took)[int(len(took) * 0.99)]}


def fanout(bench: Bench) -> None:
    """Messages of ten rows to 1, 8 and 32 receivers, in two processes (one for a single receiver)."""
    results: dict[str, dict[str, float]] = {}
    for receivers in (1, 8, 32):
        with _ended([]) as workers:
            ready: dict[str, tuple[Worker, list[Worker]]] = {}
            for name, (script, broker) in FANOUT.items():
                if not bench.wants(name):
                    continue
                try:
                    topic, url = _name(), bench.urls[broker]
                    publisher = None
                    if script == "dse_worker":  # its receivers wait for the publisher
                        workers.append(publisher := bench.worker(script, "publish", url, topic))
                    followers = []
                    for _ in range(min(2, receivers)):
                        share = receivers // min(2, receivers)
                        workers.append(follower := bench.worker(script, "follow", url, topic, share))
                        followers.append(follower)
                    if publisher is None:
                        workers.append(publisher := bench.worker(script, "publish", url, topic))
                    _reach(publisher, followers, 100)
                    ready[name] = publisher, followers
                except Failed as failure:
                    bench.absent[f"{name}, fan-out"] = str(failure)
            rates: dict[str, list[float]] = {}
            for _ in range(bench.count(10, 3)):
                for name, (publisher, followers) in list(ready.items()):
                    messages = 100 if name.startswith("oslo") else 1600 // receivers // 100 * 100 + 200
                    try:
                        rates.setdefault(name, []).append(messages / _reach(publisher, followers, messages))
                    except Failed as failure:
                        bench.absent[f"{name}, fan-out to {receivers}"] = str(failure)
                        del ready[name]
            for name, measured in rates.items():
                if measured:
                    got = results.setdefault(name, {})
                    got[str(receivers)] = statistics.median(measured)
                    got[f"slowest to {receivers}"] = min(measured)
    bench.results["fanout"] = results


def _reach(publisher: Worker, followers: list[Worker], messages: int) -> float:
    """Return the seconds from the first message to its last receiver having the last."""
    began = time.perf_counter()
    newest = publisher.ask("messages", count=messages)
    for follower in followers:
        follower.tell("reached", message=newest)
    heard = [follower.hear(90.0) for follower in followers]  # all of them, or an answer is left over
    if not all(heard):
        raise Failed("not all messages arrived")
    return time.perf_counter() - began


def changes(bench: Bench) -> None:
    """What a change costs the publisher, by its size and by the table's; a replacement of one row in a million."""
    with _ended([bench.worker("dse_tables", "alone", f"fake://{_name()}", _name())]) as (worker,):
        by_table_size = worker.ask("by_table_size", rounds=bench.count(9, 3))
        replaced = worker.ask("replace", rounds=bench.count(7, 3))
        by_change_size = worker.ask("by_change_size", rounds=bench.count(9, 3))
        bench.results["changes"] = {
            "by table size": {size: _spread_of(took) for size, took in by_table_size.items()},
            "by size": {size: _spread_of(took) for size, took in by_change_size.items()},
            "replace": statistics.median(replaced["replace"]),
            "difference": statistics.median(replaced["difference"]),
        }


def load(bench: Bench) -> None:
    """What a change of ten rows costs its publisher, by the number of its tables and by the number of subscribers."""
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for broker in ("redis", "rabbit"):
        url = bench.urls[broker]
        with _ended([]) as workers:
            publishers: dict[tuple[str, str], Worker] = {}
            for what, tables, subscribers in (
                *(("tables", tables, 1) for tables in (1, 100, 1000)),
                *(("subscribers", 1, subscribers) for subscribers in (8, 32)),
            ):
                bus = _name()
                workers.append(publisher := bench.worker("dse_tables", "idle", url, bus, tables))
                workers.append(bench.worker("dse_tables", "idle_reader", url, bus, tables, subscribers))
                publishers[what, str(tables if what == "tables" else subscribers)] = publisher
            took: dict[tuple[str, str], list[float]] = {}
            cpu: dict[tuple[str, str], list[float]] = {}
            for _ in range(bench.count(8, 2)):
                for key, publisher in publishers.items():
                    measured = publisher.ask("change", times=100)
                    took.setdefault(key, []).extend(measured["took"])
                    cpu.setdefault(key, []).append(measured["cpu"])
        got = {key: {**_spread_of(took[key]), "cpu": statistics.median(cpu[key])} for key in publishers}
        figures[broker] = {
            what: {count: spread for (of, count), spread in got.items() if of == what}
            for what in ("tables", "subscribers")
        }
        figures[broker]["subscribers"]["1"] = got["tables", "1"]
    bench.results["load"] = figures


def sync(bench: Bench) -> None:
    """The first sync of a million rows, and a replica's memory, beside the same by hand."""
    figures: dict[str, Any] = {}
    with _ended([bench.worker("dse_tables", role, "-", "-") for role in ("floor_send", "floor_receive")]) as floor:
        sender, receiver = floor
        port = receiver.ask("port")
        ready: dict[str, Worker] = {}
        with _ended([]) as workers:
            for broker in ("redis", "rabbit"):
                bus, url = _name(), bench.urls[broker]
                workers.append(bench.worker("dse_tables", "publish", url, bus))
                workers.append(bench.worker("dse_tables", "follow", url, bus))
                ready[f"DSE {broker}"] = workers[-1]
            took: dict[str, list[float]] = {}
            for _ in range(bench.count(5, 2)):
                receiver.tell("receive")
                sender.ask("send", port=port)
                took.setdefault("by hand", []).append(receiver.hear())
                for name, worker in ready.items():
                    took.setdefault(name, []).append(worker.ask("sync"))
            figures = {name: statistics.median(measured) for name, measured in took.items()}
            # In processes that have done nothing before: memory that was freed would be used again.
            fresh_bus, url = _name(), bench.urls["redis"]
            with _ended([bench.worker("dse_tables", "publish", url, fresh_bus)]) as more:
                more.append(bench.worker("dse_tables", "follow", url, fresh_bus))
                more.append(bench.worker("dse_tables", "floor_receive", "-", "-"))
                figures["memory of a replica"] = more[1].ask("memory")
                figures["memory of a set"] = more[2].ask("memory")
    bench.results["sync"] = figures


def idle(bench: Bench) -> None:
    """What nodes with 1, 100 and 1,000 tables cost while nothing happens, each followed by another one."""
    shares: dict[str, dict[str, float]] = {}
    with _ended([]) as workers:
        idlers = []
        for broker in ("redis", "rabbit"):
            for tables in (1, 100, 1000):
                bus, url = _name(), bench.urls[broker]
                workers.append(idler := bench.worker("dse_tables", "idle", url, bus, tables))
                workers.append(bench.worker("dse_tables", "idle_reader", url, bus, tables))
                idlers.append((broker, str(tables), idler))
        time.sleep(20.0 * min(1.0, bench.scale))  # tips are announced at growing intervals
        for _, _, idler in idlers:
            idler.tell("rest", seconds=max(5.0, 60.0 * bench.scale))
        for broker, tables, idler in idlers:
            shares.setdefault(broker, {})[tables] = idler.hear()
    bench.results["idle"] = shares


def services(bench: Bench) -> None:
    """Five hundred services with a thousand tables on one node: its start, and calls beside those to a single one.

    From several processes each, in turns: what a call takes on the in-process driver depends on whether the system runs
    a process's threads on one core or on two, by more than anything else, and a process keeps to one way for long. The
    figure is the median over the processes of the median in each.
    """
    figures: dict[str, dict[str, float]] = {}
    for broker in ("fake", "redis", "rabbit"):
        with _ended([]) as workers:
            callers: list[tuple[int, Worker]] = []
            starts: list[float] = []
            for _ in range(bench.count(7 if broker == "fake" else 3, 2)):
                for count in (1, 500):
                    bus = _name()
                    url = f"fake://{_name()}" if broker == "fake" else bench.urls[broker]
                    host = None
                    if broker != "fake":
                        workers.append(host := bench.worker("dse_tables", "many", url, bus, count))
                    workers.append(caller := bench.worker("dse_tables", "many_caller", url, bus, count))
                    callers.append((count, caller))
                    if count == 500:
                        starts.append((host or caller).ask("started"))
                    caller.ask("calls", times=600)
            took: list[list[float]] = [[] for _ in callers]
            for _ in range(bench.count(12, 3)):
                for measured, (_, caller) in zip(took, callers, strict=True):
                    measured += caller.ask("calls", times=200)
        figures[broker] = {"start": statistics.median(starts), "slowest start": max(starts)}
        for count, name in ((1, "one service"), (500, "500 services")):
            mine = [_spread_of(measured) for measured, (of, _) in zip(took, callers, strict=True) if of == count]
            figures[broker][f"call, {name}"] = statistics.median(spread["median"] for spread in mine)
            figures[broker][f"p99, {name}"] = statistics.median(spread["p99"] for spread in mine)
    bench.results["services"] = figures


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (rpc, fanout, changes, load, sync, idle, services)
}
