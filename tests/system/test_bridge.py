"""`dse bridge` as an operator runs it: a process between a RabbitMQ and a Redis server, and what is seen of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dse import DataService, DseError, Node, NodeLost, NoSuchService, ReplicaState, Table, rpc
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import eventually

PATIENCE = 30.0
COMMAND = [sys.executable, "-m", "dse.cli.main"]
LIVE, STALE = ReplicaState.LIVE, ReplicaState.STALE


class Shop(DataService):
    stock = Table("number", "item")
    prices = Table("item", "price")

    def __init__(self) -> None:
        super().__init__("shop")
        self.gate, self.began = threading.Event(), threading.Event()
        self.sold: list[str] = []

    @rpc
    def sell(self, item: str) -> str:
        """Sell one."""
        self.sold.append(item)
        return f"sold {item}"

    @rpc
    def deliver(self, item: str) -> str:
        self.sold.append(item)
        self.began.set()
        self.gate.wait(PATIENCE)
        return item


class Clerk(DataService):
    def __init__(self) -> None:
        super().__init__("clerk")
        self.came: list[Any] = []
        self.went: list[Any] = []

    def follow(self, table: str = "stock") -> Any:
        return self.subscribe("shop", table, self.seen, patient=True)

    def seen(self, change: Any) -> None:
        self.came += change.added
        self.went += change.removed


class Bridged:
    """A shop on the one broker, a clerk on the other, and bridges in processes of their own between the two."""

    def __init__(self, one: Broker, other: Broker, folder: Path) -> None:
        self.one, self.other = one, other
        self.bus = f"bridge-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.shop, self.clerk = Shop(), Clerk()
        self.near = Node(one.url, bus=self.bus, node_id="near", services=[self.shop], heartbeat_interval=0.5)
        self.far = Node(other.url, bus=self.bus, node_id="far", services=[self.clerk], heartbeat_interval=0.5)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self.near.start()
        self.far.start()

    def bridge(self, *options: str, one: str | None = None) -> subprocess.Popen[str]:
        urls = [one or self.one.url, self.other.url]
        with (self.folder / f"bridge{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen([*COMMAND, "bridge", *urls, "--bus", self.bus, *options], stderr=log, text=True)
        self.processes.append(process)
        return process

    def log(self, place: int = 0) -> str:
        return (self.folder / f"bridge{place}.log").read_text()

    def cli(self, *arguments: str) -> str:
        where = ["--transport", self.other.url, "--bus", self.bus]
        done = subprocess.run([*COMMAND, *arguments, *where], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reach(self) -> None:
        self.far.wait_for("shop", PATIENCE)

    def close(self) -> None:
        self.shop.gate.set()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.far.stop()
        self.near.stop()


@pytest.fixture
def bridged(rabbit_server: Broker, redis_server: Broker, tmp_path: Path) -> Iterator[Bridged]:
    bridged = Bridged(rabbit_server, redis_server, tmp_path)
    try:
        bridged.start()
        yield bridged
    finally:
        bridged.close()


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(PATIENCE)


def error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(DseError) as caught:
        call()
    return caught.value


def test_what_is_carried_is_seen_from_the_command_line(bridged: Bridged) -> None:
    process = bridged.bridge("--name", "link", "--except", "shop:prices")
    bridged.reach()
    services = bridged.cli("services")
    assert "shop on link, which carries it from another bus" in services
    assert "method sell(item: str) -> str  Sell one." in services
    assert "shop:prices" not in services
    assert "table  stock(number, item)" in services
    assert bridged.far.call("shop", "sell", {"item": "tea"}) == "sold tea"
    (link,) = [node for node in json.loads(bridged.cli("status", "--json"))["nodes"] if node["node_id"] == "link"]
    assert (link["state"], link["services"], link["stand_ins"]) == ("JOINED", ["link", "shop"], ["shop"])
    carried = bridged.clerk.subscribe("link", "carried")
    carried.wait(lambda replica: any(row[0] == "shop" and row[3:5] == ("carried", 1) for row in replica.rows), PATIENCE)
    assert ended(process) == 0
    assert f"shop of bus '{bridged.bus}' at rabbit://" in bridged.log()
    assert "has ended" in bridged.log()
    assert "guest@" not in bridged.log()
    assert "Traceback" not in bridged.log()


def test_a_large_table_crosses(bridged: Bridged) -> None:
    """100,000 rows, and the memory of the bridge is bounded by what it holds of them."""
    rows = 100_000
    bridged.shop.stock.replace((number, f"item {number}") for number in range(rows))
    process = bridged.bridge()
    bridged.reach()
    replica = bridged.clerk.follow()
    replica.wait(lambda replica: len(replica) == rows, 60.0)
    bridged.shop.stock.apply([(rows, "new")], [(0, "item 0")])
    replica.wait(lambda replica: (rows, "new") in replica and (0, "item 0") not in replica, PATIENCE)
    assert psutil.Process(process.pid).memory_info().rss < 400e6


def test_a_bridge_that_is_killed_and_started_again(bridged: Bridged) -> None:
    """The call that it had is lost, runs once, and followers converge on what there is."""
    bridged.shop.stock.replace([(1, "tea"), (2, "milk")])
    first = bridged.bridge()
    bridged.reach()
    replica = bridged.clerk.follow()
    replica.wait(LIVE, PATIENCE)
    held = bridged.far.call_async("shop", "deliver", {"item": "held"}, timeout=PATIENCE)
    assert bridged.shop.began.wait(PATIENCE)
    first.kill()
    first.wait()
    bridged.shop.stock.replace([(2, "milk"), (3, "bread")])
    assert isinstance(error_of(lambda: bridged.far.call("shop", "sell", {"item": "x"}, timeout=5.0)), NoSuchService)
    bridged.bridge()
    assert isinstance(held.exception(PATIENCE), NodeLost)
    replica.wait(lambda replica: set(replica.rows) == {(2, "milk"), (3, "bread")}, PATIENCE)
    replica.wait(LIVE, PATIENCE)
    eventually(lambda: len(bridged.clerk.came) == 3 and len(bridged.clerk.went) == 1, "the callbacks", PATIENCE)
    assert sorted(bridged.clerk.came) == [(1, "tea"), (2, "milk"), (3, "bread")]
    assert bridged.clerk.went == [(1, "tea")]
    assert bridged.far.call("shop", "sell", {"item": "y"}, timeout=PATIENCE) == "sold y"
    assert bridged.shop.sold == ["held", "y"]


@pytest.mark.parametrize("fault", ["stop", "pause"])
def test_the_broker_of_one_side_fails(bridged: Bridged, fault: str) -> None:
    """It is named, in bounded time, and all comes back by itself."""
    bridged.shop.stock.replace([(1, "tea")])
    bridged.bridge("--to-bus", bridged.bus, one=bridged.one.url + "?heartbeat=2")
    bridged.reach()
    replica = bridged.clerk.follow()
    replica.wait(LIVE, PATIENCE)
    getattr(bridged.one, fault)()
    try:
        replica.wait(STALE, PATIENCE)
        assert set(replica.rows) == {(1, "tea")}

        def refused() -> bool:
            began = time.monotonic()
            error = error_of(lambda: bridged.far.call("shop", "sell", {"item": "x"}, timeout=3.0))
            assert time.monotonic() - began < 5.0
            return isinstance(error, NoSuchService) and "its broker is not reached now" in str(error)

        eventually(refused, "the call is refused at once, by the side", PATIENCE)
    finally:
        getattr(bridged.one, {"stop": "start", "pause": "resume"}[fault])()
    replica.wait(LIVE, PATIENCE)
    bridged.shop.stock.insert([(2, "milk")])
    replica.wait(lambda replica: set(replica.rows) == {(1, "tea"), (2, "milk")}, PATIENCE)
    eventually(lambda: len(bridged.clerk.came) == 2, "each row once", PATIENCE)
    eventually(lambda: _sells(bridged), "calls go through again", PATIENCE)
    assert bridged.clerk.went == []
    assert len(bridged.shop.sold) == len(set(bridged.shop.sold))


def _sells(bridged: Bridged) -> bool:
    try:
        bridged.far.call("shop", "sell", {"item": uuid.uuid4().hex}, timeout=2.0)
    except DseError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{redis}", "{redis}?heartbeat=7"], "are the same bus"),
        (["{redis}", "redis://127.0.0.1:1"], "is the broker running there"),
        (["{redis}", "{rabbit}", "--only", "a b"], "'a b' is no pattern"),
        (["{redis}", "{rabbit}", "--name", "a b"], "bridge's name is an identifier"),
        (["{redis}", "fake://x"], "the bus within one process"),
        (["{redis}", "rabbbit://x"], "rabbbit"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, redis_server: Broker, rabbit_server: Broker) -> None:
    urls = {"redis": redis_server.url, "rabbit": rabbit_server.url}
    words = [each.format(**urls) for each in arguments]
    done = subprocess.run([*COMMAND, "bridge", *words, "--bus", f"b{uuid.uuid4().hex[:8]}"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_is_taken(bridged: Bridged) -> None:
    bridged.bridge()
    bridged.reach()
    second = bridged.bridge()
    assert second.wait(PATIENCE) == 2
    assert "give each bridge a --name of its own" in bridged.log(1)


def test_it_ends_by_ctrl_c_and_leaves_nothing(bridged: Bridged) -> None:
    process = bridged.bridge()
    bridged.reach()
    replica = bridged.clerk.follow()
    replica.wait(LIVE, PATIENCE)
    assert ended(process, signal.SIGINT) == 0
    replica.wait(STALE, PATIENCE)
    bridged.far.stop()
    bridged.near.stop()
    for broker in (bridged.one, bridged.other):
        eventually(lambda: not broker.leftovers(bridged.bus), "nothing is left", PATIENCE)  # noqa: B023


def test_a_bridge_in_a_run_file(bridged: Bridged) -> None:
    file = bridged.folder / "link.toml"
    file.write_text(
        f"""
transport = "{bridged.other.url}"
bus = "{bridged.bus}"

[services.link]
plugin = "bridge"
url = "{bridged.one.url}"
to = "{bridged.other.url}"
bus = "{bridged.bus}"
leave_out = ["shop:prices"]
"""
    )
    with (bridged.folder / "bridge0.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "run", str(file)], stderr=log, text=True, env=dict(os.environ))
    bridged.processes.append(process)
    bridged.reach()
    assert bridged.far.call("shop", "sell", {"item": "tea"}) == "sold tea"
    assert ended(process) == 0, bridged.log()
    file.write_text(file.read_text().replace("leave_out", "leave_in"))
    done = subprocess.run([*COMMAND, "run", "--check", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "unknown option of 'bridge'" in done.stderr
