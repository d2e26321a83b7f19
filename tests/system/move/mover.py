"""Starts a site on one broker and moves it, process by process, to another, with a bridge between the two.

Two processes publish, 100 changes a second together; two work; two follow all tables and make 20 calls a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.books import read_book

from dse import Observer
from dse.testing.piped import PipedProcess

__all__ = ["Mover", "Pace"]

CHANGE_RATE = 100.0
CALL_RATE = 20.0
PATIENCE = 30.0
_POLL = 0.05
TABLES = [("feed0", "a"), ("feed0", "b"), ("feed1", "a"), ("feed1", "b")]


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds. dwell: load between two steps. interval: between heartbeats."""

    dwell: float
    interval: float


@dataclass(frozen=True)
class Role:
    """A process of the site. overlaps: the next life starts before the one before it stops."""

    role: str
    feeds: tuple[str, ...] = ()
    work: tuple[str, ...] = ()
    watches: bool = False
    overlaps: bool = False


ROLES = (
    Role("pub0", feeds=("feed0",)),
    Role("pub1", feeds=("feed1",)),
    Role("work0", work=("pool", "solo")),
    Role("work1", work=("pool",), overlaps=True),
    Role("watch0", watches=True),
    Role("watch1", watches=True),
)
ORDER = ("watch0", "pub0", "work0", "pub1", "watch1", "work1")
"""In which they move: so that, at some time, each kind is on either side of each other kind."""


@dataclass
class Life:
    """One process, from start to stop."""

    role: Role
    name: str
    process: PipedProcess

    def tell(self, method: str, **arguments: Any) -> Any:
        ok, answer = json.loads(self.process.ask(json.dumps([method, arguments]), PATIENCE + 10.0))
        assert ok, f"{self.name}: {method}: {answer}"
        return answer


@dataclass
class Notes:
    """What happened besides, for the verdict."""

    began: float = 0.0
    ended: float = 0.0
    down: list[tuple[str, float, float]] = field(default_factory=list)  # a role was stopped: from, to
    bridge_down: list[tuple[float, float]] = field(default_factory=list)
    hanging: int = 0


class Mover:
    """The processes of the site and the bridge, from `start` to `close`."""

    def __init__(self, one: str, other: str, folder: Path, pace: Pace) -> None:
        self.urls = {"one": one, "other": other}
        self.folder = folder
        self.pace = pace
        self.bus = f"move-{uuid.uuid4().hex[:10]}"
        self.notes = Notes()
        self.lives: dict[str, Life] = {}
        self.bridge: subprocess.Popen[bytes] | None = None
        self._spawned: list[Life] = []
        self._log = (folder / "bridge.log").open("ab")

    # The site

    def start(self) -> None:
        """Start all on the one broker, and the load."""
        for life in [self._spawn(role, "one") for role in ROLES]:
            self._await_ready(life)
            life.tell("start")
            self.lives[life.role.role] = life
        self.wait_whole()
        for life in self.lives.values():
            life.tell("begin")
        self.notes.began = time.monotonic()
        self.dwell()

    def dwell(self) -> None:
        """Let the load go on for a while."""
        time.sleep(self.pace.dwell)

    def move(self, name: str) -> None:
        """Move one process to the other broker: its next life begins there, and this one ends."""
        old = self.lives[name]
        new = self._spawn(old.role, "other")
        self._await_ready(new)
        if old.role.overlaps:
            new.tell("start")
        began = time.monotonic()
        self.notes.hanging += old.tell("stop")
        old.process.kill()
        if not old.role.overlaps:
            new.tell("start")
            self.notes.down.append((name, began, time.monotonic()))
        new.tell("begin")
        self.lives[name] = new
        self.wait_whole()

    def wait_whole(self) -> None:
        """Wait until every replica is LIVE and has what was published when the wait began."""
        floor = {f"{service}.{table}": self.latest(service, table) for service, table in TABLES}

        def missing() -> list[str]:
            return [
                f"{life.name}: {table} is {state} at {highest} of {floor[table]}"
                for life in self.lives.values()
                if life.role.watches
                for table, (state, highest) in life.tell("standing").items()
                if state != "LIVE" or highest < floor[table]
            ]

        self.wait(missing)

    def latest(self, service: str, table: str) -> int:
        """The number of the row that was published last."""
        return max(read_book(self.folder / f"ledger-{service}-{table}.jsonl"), default=0)

    def finish(self) -> dict[str, dict[str, Any]]:
        """End the load; return what each watcher holds once it has everything."""
        for life in self.lives.values():
            life.tell("halt_changes")
            self.notes.hanging += life.tell("halt_calls")
        self.wait_whole()
        self.notes.ended = time.monotonic()
        held = {life.name: life.tell("contents") for life in self.lives.values() if life.role.watches}
        for life in self.lives.values():
            self.notes.hanging += life.tell("stop")
        return held

    def close(self) -> None:
        """End all processes."""
        for life in self._spawned:
            life.process.kill()
        if self.bridge is not None:
            self.bridge.kill()
            self.bridge.wait()
        self._log.close()

    @staticmethod
    def wait(wrong: Callable[[], list[str]]) -> None:
        """Wait until nothing is wrong any more."""
        deadline = time.monotonic() + PATIENCE
        while found := wrong():
            assert time.monotonic() < deadline, "\n".join(found)
            time.sleep(_POLL)

    # The bridge

    def start_bridge(self) -> None:
        """Start `dse bridge` between the two brokers, and wait until it carries."""
        command = [sys.executable, "-m", "dse.cli.main", "bridge", self.urls["one"], self.urls["other"]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.bridge = subprocess.Popen([*command, "--bus", self.bus], stderr=self._log, env=environment)
        with Observer(self.urls["other"], bus=self.bus) as observer:
            observer.wait_for("bridge", PATIENCE)

    def wait_carried(self) -> None:
        """Wait until the services that one bus has and the other has not are carried to the other."""
        with Observer(self.urls["one"], bus=self.bus) as one, Observer(self.urls["other"], bus=self.bus) as other:

            def missing() -> list[str]:
                found = []
                ids = [{info.service_id for node in bus.status().peers.values() if node.state == "JOINED"
                        for info in node.services} for bus in (one, other)]  # fmt: skip
                for service in ("feed0", "feed1", "pool", "solo"):
                    found += [f"{service} is not on {name}" for name, known in zip(self.urls, ids, strict=True)
                              if service not in known]  # fmt: skip
                return found

            self.wait(missing)

    def kill_bridge(self) -> None:
        """Kill the bridge without warning, and start it again."""
        assert self.bridge is not None
        self.bridge.kill()
        self.bridge.wait()
        killed = time.monotonic()
        self.start_bridge()
        self.wait_carried()
        self.notes.bridge_down.append((killed, time.monotonic()))

    def end_bridge(self) -> int:
        """Tell the bridge to end; return its exit code."""
        assert self.bridge is not None
        self.bridge.send_signal(signal.SIGTERM)
        return self.bridge.wait(PATIENCE)

    # Inside

    def _spawn(self, role: Role, broker: str) -> Life:
        name = f"{role.role}@{broker}"
        plan = {
            "role": role.role,
            "life": name,
            "url": self.urls[broker],
            "bus": self.bus,
            "interval": self.pace.interval,
            "feeds": role.feeds,
            "work": role.work,
            "follows": TABLES if role.watches else [],
            "calls": ["pool", "solo"],
            "change_rate": CHANGE_RATE / 2,
            "call_rate": CALL_RATE / 2,
        }
        with (self.folder / f"{name}.log").open("a") as log:
            life = Life(role, name, PipedProcess("move.site", str(self.folder), json.dumps(plan), stderr=log))
        self._spawned.append(life)
        return life

    def _await_ready(self, life: Life) -> None:
        assert json.loads(life.process.answer(PATIENCE)) == [True, "ready"]
