"""Policy service, source and broker are killed at any moment: violations end up right, no action runs twice.

The rule's tables change all the time. What the source publishes stands in files, so that what the rule must find is
worked out from them, independently of anything that was killed. `DSE_POLICY_ROUNDS` says how many faults; 3 if not set.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dse import DataService, Node, ReplicaState, rpc
from dse.testing.brokers import Broker, rabbit_broker, redis_broker
from dse.testing.contract.recorder import eventually
from dse.testing.piped import run_module

ROUNDS = int(os.environ.get("DSE_POLICY_ROUNDS", "3"))
PATIENCE = 30.0
JOIN = "SELECT s.port, p.name FROM host.sockets s JOIN host.processes p ON p.pid = s.pid"


class Pager(DataService):
    """Counts how often it was called for each row; in this process, which is never killed."""

    def __init__(self) -> None:
        super().__init__("pager")
        self.once: Counter[int] = Counter()
        self.retried: Counter[int] = Counter()
        self._lock = threading.Lock()

    @rpc
    def once_each(self, port: int, name: str) -> None:
        with self._lock:
            self.once[port] += 1

    @rpc
    def until_it_worked(self, port: int, name: str) -> None:
        with self._lock:
            self.retried[port] += 1


class Fleet:
    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.bus = f"policy-{uuid.uuid4().hex[:8]}"
        self.random = random.Random(self.bus)
        self.processes = {pid: f"process{pid}" for pid in range(5)}
        self.sockets: dict[int, int] = {}  # port -> pid; a port is never used again, so its violation is one row
        self.next_port = 1
        self._write("processes", sorted(self.processes.items()))
        self._write("sockets", [])
        self.children: dict[str, Any] = {}
        for kind in ("host", "policy"):
            self.spawn(kind)

    def spawn(self, kind: str) -> None:
        child = run_module("policy_child", kind, self.broker.direct_url, self.bus, str(self.folder))
        self.children[kind] = child

    def wait_ready(self, kind: str) -> None:
        assert self.children[kind].stdout.readline() == "ready\n"

    def kill(self, kind: str) -> None:
        child = self.children.pop(kind)
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()

    def change(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            if self.sockets and self.random.random() < 0.4:
                del self.sockets[self.random.choice(sorted(self.sockets))]
            else:
                self.sockets[self.next_port] = self.random.randrange(7)  # some have no process
                self.next_port += 1
        self._write("sockets", sorted(self.sockets.items()))

    def _write(self, name: str, rows: Any) -> None:
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(rows))
        part.rename(self.folder / f"{name}.json")

    @property
    def violations(self) -> set[Any]:
        return {(port, self.processes[pid]) for port, pid in self.sockets.items() if pid in self.processes}

    def close(self) -> None:
        for kind in list(self.children):
            self.kill(kind)


def _kind(name: str) -> Any:
    return pytest.param(name, marks=[getattr(pytest.mark, name), pytest.mark.xdist_group(f"policy-faults-{name}")])


@pytest.fixture(params=[_kind("redis"), _kind("rabbit")])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with (redis_broker if request.param == "redis" else rabbit_broker)() as broker:
        yield broker


@pytest.mark.timeout(240)
def test_violations_are_right_again_and_no_action_ran_twice(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # for policy_child
    fleet = Fleet(broker, tmp_path)
    pager, reader = Pager(), DataService("reader")
    try:
        with Node(broker.direct_url, bus=fleet.bus, services=[pager, reader], heartbeat_interval=0.3) as node:
            for child in ("host", "policy"):
                fleet.wait_ready(child)
            node.wait_for("policy", PATIENCE)
            node.call("policy", "create_policy", {"name": "security"})
            for name, method, retry in (("open_ports", "once_each", False), ("again", "until_it_worked", True)):
                action = {"service": "pager", "method": method, "retry": retry, "timeout": 2.0}
                rule = {"policy": "security", "name": name, "sql": JOIN, "action": action}
                node.call("policy", "insert_rule", rule)
            replica = reader.subscribe("security", "open_ports", patient=True)
            ever: set[int] = set()
            faults = ["policy", "host", "broker"] * ((ROUNDS + 2) // 3)
            for fault in fleet.random.sample(faults, ROUNDS):
                for turn in range(30):
                    fleet.change()
                    time.sleep(fleet.random.uniform(0.0, 0.03))  # how fast the world changes; nothing is waited for
                    if turn == 12:
                        if fault == "broker":
                            broker.restart()
                        else:
                            fleet.kill(fault)
                            fleet.spawn(fault)
                expected = fleet.violations

                def right(expected: set[Any] = expected) -> bool:
                    return replica.state is ReplicaState.LIVE and replica.rows == expected

                eventually(right, f"after {fault}: {len(expected)} rows in {replica}", PATIENCE)
                present = {port for port, _ in expected}
                ever |= present
                # What stays is called for: with retry for certain, without unless the call fell into the fault.

                def called(present: set[int] = present) -> bool:
                    return present <= pager.retried.keys()

                eventually(called, f"after {fault}: every row that stays is called for", PATIENCE)
            assert max(pager.once.values()) == 1
            assert len(ever & pager.once.keys()) >= len(ever) / 2
            assert ever <= pager.retried.keys()
    finally:
        fleet.close()
