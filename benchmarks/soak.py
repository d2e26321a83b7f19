"""A soak: nodes, services and subscriptions come and go for minutes on every driver, and what is held must stay flat.

    python benchmarks/soak.py [--seconds 600] [--drivers fake,redis,rabbit] [--report docs/soak] [--trace]

On a private broker of each kind, side by side: two processes (on fake:// one) with a node each that stays, while
changes and calls go on, and nodes, services under new names, and subscriptions come and go. Visitors in processes of
their own are killed, and the connections to the broker are cut, once a round. Between rounds everything that came goes
again; then threads, descriptors and broker objects must be what they were before the first round. Memory must not grow:
see `soak_report.verdict`. Exits 1 when something is not flat, and says what.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import soak_report
import soak_site

from dse.testing.brokers import Broker, RabbitServer, RedisServer
from dse.testing.contract.recorder import with_options
from dse.testing.faults import FakeServer

RESIDENTS = ("anna", "bert")
STEP = 2.5  # seconds between two measurements
STILL = 4  # measurements, a second apart, that must be equal before a quiet phase counts as quiet
CUT = 1.5  # seconds
SETTLE = 60.0  # seconds until a quiet phase must have become quiet
# Else the C library gives each new thread a heap of its own, 16 on two processors; they take many minutes to find their
# sizes, and hide a leak of that size.
os.environ["MALLOC_ARENA_MAX"] = "1"
os.environ["PYTHONMALLOC"] = "malloc"  # so that the C library's count of what is in use counts Python's objects too
_SPAWN = multiprocessing.get_context("spawn")

_RABBIT_COUNTS = (
    "{length(rabbit_amqqueue:list()), length(rabbit_binding:list_explicit()), length(rabbit_exchange:list()),"
    " length(rabbit_networking:connections()), length(rabbit_channel:list()), erlang:memory(total)}."
)
_RABBIT_NAMES = ("queues", "bindings", "exchanges", "connections", "channels", "memory")


class Process:
    """A long-lived process, seen from here."""

    def __init__(self, url: str, bus: str, names: tuple[str, ...]) -> None:
        self.name = "+".join(names)
        self._pipe, theirs = _SPAWN.Pipe()
        args = (url, bus, names, RESIDENTS, theirs)
        self._process = _SPAWN.Process(target=soak_site.serve, args=args, daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, *args: object) -> Any:
        """Let it do something; return or raise what came of it."""
        self._pipe.send((what, args))
        if not self._pipe.poll(120.0):
            raise TimeoutError(f"{self.name} does not answer {what}{args}")
        answer, error = self._pipe.recv()
        if error is not None:
            raise RuntimeError(f"{self.name}: {error}")
        return answer

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(20)
        self._process.kill()


class InProcess(Process):
    """Stands for a process where the broker is reached from this one only."""

    def __init__(self, url: str, bus: str, names: tuple[str, ...]) -> None:
        self.name = "+".join(names)
        self._site = soak_site.Site([soak_site.Resident(url, bus, name, RESIDENTS) for name in names])

    def ask(self, what: str, *args: object) -> Any:
        return getattr(self._site, what)(*args)

    def end(self) -> None:
        """There is none to end."""


class Soak:
    """The soak of one driver."""

    def __init__(self, driver: str, broker: Broker, seconds: float, rounds: int, trace: bool) -> None:
        self.driver = driver
        self._broker = broker
        self._bus = f"soak-{uuid.uuid4().hex[:8]}"
        self._url = with_options(broker.url, heartbeat=2, connect_timeout=2)
        self._churning = seconds / rounds - 12.0 if seconds > 60 else seconds / rounds - 4.0
        self._until = seconds
        self._trace = trace
        self._kind = Process if broker.multiprocess else InProcess
        self._processes: list[Process] = []
        self._client: Any = None
        self._began = time.monotonic()
        self.record: dict[str, Any] = {"driver": driver, "samples": [], "quiet": [], "events": [], "failures": []}

    def run(self) -> None:
        """Go through all rounds; what goes wrong is in the record."""
        try:
            self._run()
        except Exception:
            self.record["failures"].append(traceback.format_exc())
        finally:
            for process in self._processes:
                process.end()
            if self._client is not None:
                self._client.close()

    def _run(self) -> None:
        groups = [(name,) for name in RESIDENTS] if self._broker.multiprocess else [RESIDENTS]
        self._processes = [self._kind(self._url, self._bus, names) for names in groups]
        for step in ("start", "warm_up"):
            self._together("each", step)
        self._broker.cut()  # what is restored after an outage may be laid out otherwise, on fewer channels for instance
        time.sleep(CUT)
        self._broker.mend()
        self._began = time.monotonic()
        self._settle()
        while self._now() < self._until - self._churning / 2:
            self._together("each", "churn")
            self._round(time.monotonic() + self._churning)
            self._together("each", "quiet")
            self._settle()
            if self._trace and len(self.record["quiet"]) == 2:
                self._together("trace")
        if self._trace:
            for process in self._processes:
                print(f"\n{self.driver} {process.name}: where memory grew\n", "\n".join(process.ask("trace")))
        self._count()
        self._together("each", "stop")
        if left := self._broker.leftovers(self._bus):
            self.record["failures"].append(f"left on the broker at the end: {sorted(left)}")

    def _round(self, until: float) -> None:
        """Measure, and let a visitor be killed and the connections be cut on the way."""
        length = until - time.monotonic()
        doings = [(0.05, self._visit), (0.35, self._kill), (0.55, self._cut), (0.55 + CUT / length, self._mend)]
        began, self._visitor = time.monotonic(), None
        while time.monotonic() < until:
            if doings and time.monotonic() - began >= doings[0][0] * length:
                doings.pop(0)[1]()
            self._measure()
            time.sleep(min(STEP, length / 8))
        for _, do in doings:
            do()

    def _visit(self) -> None:
        if self._broker.multiprocess:
            keepers = tuple(f"keeper_{name}" for name in RESIDENTS)
            args = (self._url, self._bus, keepers)
            self._visitor = _SPAWN.Process(target=soak_site.visit, args=args, daemon=True)
            self._visitor.start()

    def _kill(self) -> None:
        if self._visitor is not None:
            self._visitor.kill()
            self._visitor.join()
            self._event("kill")

    def _cut(self) -> None:
        self._broker.cut()
        self._event("cut")

    def _mend(self) -> None:
        self._broker.mend()

    def _event(self, what: str) -> None:
        self.record["events"].append([self._now(), what])

    def _now(self) -> float:
        return time.monotonic() - self._began

    # Measuring

    def _measure(self) -> None:
        processes = {process.name: process.ask("measure", False) for process in self._processes}
        self.record["samples"].append({"at": self._now(), "processes": processes, "broker": self._objects()})

    def _settle(self) -> None:
        """Wait until nothing changes any more, and note what is there."""
        everybody = [sorted(set(RESIDENTS) - {name}) for name in RESIDENTS]
        deadline = time.monotonic() + SETTLE
        last: list[Any] = []
        while len(last) < STILL:
            time.sleep(1.0)
            processes = {process.name: process.ask("measure", True) for process in self._processes}
            objects = self._objects()
            whole = [known for held in processes.values() for known in held["knows"]] == everybody
            levels = [_levels(held) for held in processes.values()] + [_levels(objects)]
            last = [*last, levels] if whole and levels == (last or [levels])[0] else []
            if time.monotonic() > deadline:
                known = {name: held["knows"] for name, held in processes.items()}
                names = {process.name: process.ask("thread_names") for process in self._processes}
                failure = f"not quiet after {SETTLE:g} s: {levels}; known: {known}; threads: {names}"
                self.record["failures"].append(failure)
                break
        for process in self._processes:
            processes[process.name]["kinds"] = process.ask("kinds")
        self.record["quiet"].append({"at": self._now(), "processes": processes, "broker": objects})

    def _objects(self) -> dict[str, int]:
        """Return what is on the broker, counted with the broker's own means."""
        if isinstance(self._broker, RabbitServer):
            numbers = [int(number) for number in re.findall(r"\d+", self._broker.evaluate(_RABBIT_COUNTS))]
            return dict(zip(_RABBIT_NAMES, numbers, strict=True))
        if isinstance(self._broker, RedisServer):
            if self._client is None:
                import redis

                self._client = redis.Redis.from_url(self._broker.direct_url)
            info = self._client.info()
            return {
                "channels": len(self._client.pubsub_channels()),
                "keys": self._client.dbsize(),
                "connections": info["connected_clients"],
                "memory": info["used_memory"],
            }
        kinds = Counter(what.partition(" ")[0] for what in self._broker.leftovers(self._bus))
        return {kind: kinds[kind] for kind in sorted(kinds)}

    def _count(self) -> None:
        done, refused, unexpected = Counter[str](), Counter[str](), []
        for process in self._processes:
            counts = process.ask("counts")
            done.update(counts[0])
            refused.update(counts[1])
            unexpected += counts[2]
        self.record |= {"done": done, "refused": refused}
        self.record["failures"] += unexpected

    def _together(self, what: str, *args: object) -> None:
        threads = [threading.Thread(target=self._guard, args=(p, what, *args)) for p in self._processes]
        failures = len(self.record["failures"])
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(self.record["failures"]) > failures:
            raise RuntimeError(f"{what} {args} failed")

    def _guard(self, process: Process, what: str, *args: object) -> None:
        try:
            process.ask(what, *args)
        except Exception:
            self.record["failures"].append(traceback.format_exc())


def _levels(held: dict[str, Any]) -> dict[str, Any]:
    return {name: held[name] for name in held if name not in ("rss", "in_use", "objects", "memory", "knows")}


def _fake(seconds: float, rounds: int, trace: bool, pipe: Connection) -> None:
    """Soak fake:// in a process of its own, so that nothing else is measured with it."""
    with FakeServer() as broker:
        soak = Soak("fake", broker, seconds, rounds, trace)
        soak.run()
        pipe.send(soak.record)


def soak_driver(driver: str, seconds: float, rounds: int, trace: bool) -> dict[str, Any]:
    """Soak one driver on a private broker; return the record."""
    if driver == "fake":
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_fake, args=(seconds, rounds, trace, theirs))
        process.start()
        theirs.close()
        try:
            record: dict[str, Any] = ours.recv()
        except EOFError:
            record = {"driver": driver, "samples": [], "quiet": [], "events": [], "failures": ["its process died"]}
        process.join()
        return record
    with RedisServer() if driver == "redis" else RabbitServer() as broker:
        soak = Soak(driver, broker, seconds, rounds, trace)
        soak.run()
        return soak.record


def main() -> int:
    """Soak, print what came of it, and return the status to exit with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default 600)")
    parser.add_argument("--rounds", type=int, default=0, help="of churn; default: one for each minute, at least one")
    parser.add_argument("--drivers", default="fake,redis,rabbit")
    parser.add_argument("--report", type=Path, help="folder for the plots; the page is written beside it")
    parser.add_argument("--record", type=Path, help="file for all measurements, as JSON")
    parser.add_argument("--trace", action="store_true", help="print where memory grew (slow; no verdict on memory)")
    options = parser.parse_args()
    rounds = options.rounds or max(1, round(options.seconds / 60))
    records: list[dict[str, Any]] = []

    def run(driver: str) -> None:
        records.append(soak_driver(driver, options.seconds, rounds, options.trace))

    drivers = options.drivers.split(",")
    threads = [threading.Thread(target=run, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records.sort(key=lambda record: drivers.index(record["driver"]))
    if options.record is not None:
        options.record.write_text(json.dumps(records))
    verdicts = {record["driver"]: soak_report.verdict(record) for record in records}
    print(soak_report.text(records, verdicts))
    if options.report is not None:
        soak_report.write(options.report, records, verdicts, options.seconds)
    flat = len(records) == len(drivers) and all(line.ok for lines in verdicts.values() for line in lines)
    return 0 if flat else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
