"""Wall clocks may jump: nothing on the bus is measured with one."""

from __future__ import annotations

import ast
import itertools
import random
import time
import uuid
from pathlib import Path

import pytest

import dse
from dse import CallTimeout, DataService, Node, NodeState, ReplicaState, Table, rpc

WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
PARTS = [path for part in ("core", "transports") for path in sorted((Path(dse.__file__).parent / part).glob("*.py"))]


def wall_clocks(source: str) -> list[str]:
    """Return what code calls that reads a wall clock."""
    called = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    imported = [
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]
    return [name for name in called + imported if any(name.endswith(clock) for clock in WALL_CLOCKS)]


EXCEPTIONS = {"seal.py": ["time.time"]}  # its stamps say who is looked at first, and prove nothing: its rule 3


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_no_part_of_the_bus_reads_a_wall_clock(path: Path) -> None:
    assert wall_clocks(path.read_text()) == EXCEPTIONS.get(path.name, [])


def test_wall_clocks_are_found() -> None:
    assert wall_clocks("import time\nnow = time.time()")
    assert wall_clocks("from time import time")
    assert wall_clocks("import datetime\nnow = datetime.datetime.now()")
    assert not wall_clocks("import time\nnow = time.monotonic()")


class Clock(DataService):
    ticks = Table("turn")

    @rpc
    def echo(self, value: int) -> int:
        return value

    @rpc
    def sleep(self) -> None:
        time.sleep(0.3)


def test_a_bus_does_not_notice_that_wall_clocks_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, random.Random(1)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.choice([-1e8, -3600.0, 0.0, 3600.0, 1e8]))
    url, bus = f"fake://{uuid.uuid4().hex}", "jumps"
    clock, watcher = Clock("clock"), DataService("watcher")
    states: set[NodeState] = set()
    with (
        Node(url, bus=bus, heartbeat_interval=0.3, services=[clock]),
        Node(url, bus=bus, heartbeat_interval=0.3, services=[watcher]) as node,
    ):
        replica = watcher.subscribe("clock", "ticks")
        until = time.monotonic() + 1.5
        for turn in itertools.count():
            clock.ticks.replace([(turn,)])
            assert node.call("clock", "echo", {"value": turn}, timeout=5) == turn
            states |= {peer.state for peer in node.status().peers.values()}
            if time.monotonic() > until:
                break
        replica.wait(lambda replica: replica.state is ReplicaState.LIVE and (turn,) in replica, 5)
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            node.call("clock", "sleep", timeout=0.1)
        assert time.monotonic() - began < 1.0
    assert NodeState.DEAD not in states
