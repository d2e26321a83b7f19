"""Six node processes on one bus, each behind its own proxy, under load; what can be done to them, and how they stand.

Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dse.testing.broker import Broker, ServerBroker
from dse.testing.contract.recorder import with_options
from dse.testing.piped import PipedProcess
from dse.testing.proxy import CutProxy
from faults.books import read_book

__all__ = ["FULL", "SHORT", "Fleet", "Member", "Plan", "Scale"]

PROCESSES = 6
TABLES = 20
CHANGE_RATE = 200.0  # a second, over all processes
CALL_RATE = 50.0
ALLOWED = 10.0  # seconds after the end of a fault in which everything is whole again
_ANSWER = 60.0  # seconds within which a process answers
_POLL = 0.1


@dataclass(frozen=True)
class Scale:
    """How long things take, in seconds. A node is suspended for longer than 5 intervals: it is taken for dead.

    interval: between a node's heartbeats. heartbeat: the driver's, after which silence of the broker is a loss.
    """

    name: str
    interval: float
    heartbeat: float
    warm_up: float  # load before the fault
    down: float  # a killed broker
    hung: float  # a suspended broker
    cut: float
    suspended: float  # a node, for less than the driver's heartbeat
    dead: float  # from a node's death until another takes its place
    flood_heartbeat: float
    flood: float

    @property
    def full(self) -> bool:
        return self.name == "full"


FULL = Scale("full", 1.0, 10.0, 5.0, 3.0, 10.0, 12.0, 7.0, 8.0, 5.0, 15.0)
SHORT = Scale("short", 0.5, 4.0, 0.5, 1.0, 4.5, 5.0, 3.2, 3.5, 2.0, 6.0)


@dataclass
class Plan:
    """What one process is; `sources` is service_id -> tables."""

    place: int
    node_id: str
    url: str
    bus: str
    options: dict[str, Any]
    seed: str
    sources: dict[str, list[str]]
    subscriptions: list[tuple[str, str]]
    work: list[str]
    targets: list[tuple[str, str | None]]
    change_rate: float
    call_rate: float


@dataclass
class Member:
    """One process of the fleet; asked by one thread at a time."""

    plan: Plan
    process: PipedProcess
    alive: bool = True
    suspended_at: float | None = None
    suspensions: list[tuple[float, float]] = field(default_factory=list)

    @property
    def node_id(self) -> str:
        return self.plan.node_id

    def tell(self, name: str, **arguments: Any) -> Any:
        """Have the process do something; return what it answers."""
        ok, answer = json.loads(self.process.ask(json.dumps([name, arguments]), _ANSWER))
        assert ok, f"{self.node_id}: {name}: {answer}"
        return answer

    def kill(self) -> None:
        """Kill the process without warning."""
        self.alive = False
        self.process.kill()

    def suspend(self) -> None:
        """Stop the process in its tracks."""
        self.suspended_at = time.monotonic()
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.suspended_at is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.suspensions.append((self.suspended_at, time.monotonic()))
        self.suspended_at = None


class Fleet:
    """The processes, from `start` to `close`. heartbeat: the driver's, if it is not the scale's."""

    def __init__(self, broker: Broker, scale: Scale, folder: Path, heartbeat: float | None = None) -> None:
        self.broker = broker
        self.scale = scale
        self.folder = folder
        self.bus = f"faults-{uuid.uuid4().hex[:12]}"
        self.members: list[Member] = []  # by place
        self.former: list[Member] = []
        self.loaded_from = self.loaded_until = 0.0
        self._heartbeat = heartbeat or scale.heartbeat
        # A server of our own is killed and hung itself; what stands for one that is not ours is its proxy.
        upstream = urlsplit(broker.direct_url if isinstance(broker, ServerBroker) else broker.url)
        self.proxies = [CutProxy((upstream.hostname or "", upstream.port or 0)) for _ in range(PROCESSES)]
        self._upstream = upstream
        self._pool = ThreadPoolExecutor(PROCESSES)
        self._plans = self._make_plans()

    # Life

    def start(self) -> None:
        """Start all, wait until every replica is LIVE and all know each other, and begin the load."""
        for plan in self._plans:
            self.members.append(self._launch(plan))
        self.tell_all("start")
        self.wait_whole(time.monotonic() + 30.0)
        self.tell_all("begin")
        self.loaded_from = time.monotonic()
        time.sleep(self.scale.warm_up)

    def replace(self, place: int, node_id: str | None = None) -> Member:
        """Start a process in the place of one that was killed, under its old node_id or another; it joins the load."""
        old = self.members[place]
        assert not old.alive
        self.former.append(old)
        plan = old.plan if node_id is None else Plan(**vars(old.plan) | {"node_id": node_id})
        member = self._launch(plan)
        member.tell("start")
        member.tell("begin")
        self.members[place] = member
        return member

    def close(self) -> None:
        """End all processes."""
        for member in self.members:
            member.kill()
        for proxy in self.proxies:
            proxy.close()
        self._pool.shutdown()

    def _launch(self, plan: Plan) -> Member:
        with (self.folder / f"{plan.node_id}.log").open("a") as log:
            process = PipedProcess("faults.process", str(self.folder), json.dumps(asdict(plan)), stderr=log)
        return Member(plan, process)

    def _make_plans(self) -> list[Plan]:
        draw = random.Random(self.bus)
        tables = [(f"data{number % PROCESSES}", f"table{number}") for number in range(TABLES)]
        plans = []
        for place in range(PROCESSES):
            others = [number for number in range(PROCESSES) if number != place]
            targets = [("pool", None)] * 5 + [(f"work{number}", None) for number in others]
            address = self._upstream.netloc.rpartition("@")[0]
            netloc = f"{address}@127.0.0.1" if address else "127.0.0.1"
            url = urlunsplit(self._upstream._replace(netloc=f"{netloc}:{self.proxies[place].port}"))
            plans.append(
                Plan(
                    place=place,
                    node_id=f"n{place}",
                    url=with_options(url, heartbeat=self._heartbeat),
                    bus=self.bus,
                    options={"heartbeat_interval": self.scale.interval},
                    seed=self.bus,
                    sources={f"data{place}": [table for service, table in tables if service == f"data{place}"]},
                    subscriptions=[],
                    work=[f"work{place}"] + (["pool"] if place < PROCESSES // 2 else []),
                    targets=[*targets, *((f"work{number}", f"n{number}") for number in others[::2])],
                    change_rate=CHANGE_RATE / PROCESSES,
                    call_rate=CALL_RATE / PROCESSES,
                )
            )
        for number, (service, table) in enumerate(tables):
            elsewhere = [plan for plan in plans if plan.place != number % PROCESSES]
            for plan in draw.sample(elsewhere, draw.choice((2, 3))):
                plan.subscriptions.append((service, table))
        return plans

    # Telling and asking

    @property
    def running(self) -> list[Member]:
        return [member for member in self.members if member.alive and member.suspended_at is None]

    def tell_all(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Have all processes that run do something at the same time; return their answers by node_id."""
        members = self.running
        answers = self._pool.map(lambda member: member.tell(name, **arguments), members)
        return dict(zip((member.node_id for member in members), answers, strict=True))

    # What can be broken

    @contextmanager
    def cut(self, *places: int) -> Iterator[None]:
        """Lose everything that these processes and the broker send each other; their connections stay up."""
        proxies = [self.proxies[place] for place in places]
        for proxy in proxies:
            proxy.cut()
        try:
            yield
        finally:
            for proxy in proxies:
                proxy.mend()

    # How it stands

    def missing(self, before: Iterable[Any], now: dict[str, Any]) -> list[str]:
        """Say what is not whole in the answers to `versions`: who is not LIVE, behind, or not known to be on the bus.

        before: where the tables stood a little earlier; a replica that is not there yet is behind.
        """
        wrong = []
        tables = {(service, table, epoch): seq for service, table, epoch, seq in before}
        for node_id, answer in now.items():
            for service, table, state, epoch, seq in answer["replicas"]:
                published = tables.get((service, table, epoch))
                if state != "LIVE" or published is None or seq < published:
                    wrong.append(f"{node_id}: {service}.{table} is {state} at {epoch}/{seq}, published is {published}")
            peers = {name for name, state in answer["nodes"].items() if state == "JOINED"}
            wrong += [f"{node_id} does not list {name} as JOINED" for name in sorted(now.keys() - peers)]
            strangers = {n for n in peers if n not in now}
            wrong += [f"{node_id} lists {name} as JOINED" for name in sorted(strangers)]
        return wrong

    def wait_whole(self, until: float) -> float:
        """Wait, under load, until every replica is LIVE and up to date and all know each other; return when it was."""
        before: list[Any] = []
        while True:
            asked = time.monotonic()
            now = self.tell_all("versions")
            wrong = self.missing(before, now) if before else ["nothing is known yet"]
            if not wrong:
                return asked
            assert asked < until, "not whole in time:\n  " + "\n  ".join(wrong)
            before = [row for answer in now.values() for row in answer["tables"]]
            time.sleep(_POLL)

    def differences(self) -> list[str]:
        """Compare all: tables with their ledgers, replicas with tables and with the sums of their changes."""
        wrong = []
        answers = self.tell_all("contents")
        tables = {}
        for node_id, answer in answers.items():
            for service, table, epoch, seq, rows, ledger in answer["tables"]:
                tables[service, table, epoch] = (seq, rows)
                if rows != ledger:
                    wrong.append(f"{node_id}: {service}.{table} is not what its ledger says")
        for node_id, answer in answers.items():
            wrong += [f"{node_id}: {what}" for what in answer["wrong"]]
            for service, table, state, epoch, seq, rows, added_up in answer["replicas"]:
                name = f"{node_id}: {service}.{table}"
                published = tables.get((service, table, epoch))
                if state != "LIVE" or published is None:
                    wrong.append(f"{name} is {state} at {epoch}/{seq}, nobody publishes that")
                elif (seq, rows) != published:
                    wrong.append(f"{name} at seq {seq} is not what is published at {published[0]}")
                if added_up != rows:
                    wrong.append(f"{name} is not the sum of its changes")
        return wrong

    def wait_equal(self, until: float) -> None:
        """Wait, the changes halted, until nothing differs."""
        self.wait(until, self.differences)

    def wait(self, until: float, wrong: Callable[[], list[str]]) -> None:
        """Wait until nothing is wrong."""
        while found := wrong():
            assert time.monotonic() < until, "not equal in time:\n  " + "\n  ".join(found)
            time.sleep(_POLL)

    # The books

    def calls(self) -> list[dict[str, Any]]:
        """All calls that ended."""
        return list(read_book(self.folder / "calls.jsonl"))

    def ran(self) -> list[tuple[str, str, str]]:
        """All (method, key, node_id) that ran."""
        return [(method, key, node_id) for method, key, node_id in read_book(self.folder / "ran.jsonl")]

    def accepted(self) -> int:
        """How many changes were accepted after the one that filled each table, by processes now dead too."""
        return sum(path.read_bytes().count(b"\n") - 1 for path in self.folder.glob("ledger-*.jsonl"))
