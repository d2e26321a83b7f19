"""The commands that look at a bus, against a real broker, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from dse import DataService, Node, Table, rpc
from dse.testing.brokers import Broker


class Door(DataService):
    openings = Table("number", "who")

    @rpc
    def ring(self, times: int, who: str = "nobody") -> str:
        """Ring the bell."""
        return f"{who} rang {times} times"

    @rpc
    def fail(self) -> None:
        raise ValueError("the bell is broken")


@pytest.fixture
def door(redis_server: Broker) -> Iterator[tuple[Door, list[str]]]:
    """A service on a bus of its own, and the options that lead there."""
    bus = f"bus-{uuid.uuid4().hex[:8]}"
    service = Door("door")
    with Node(redis_server.url, bus=bus, node_id="house", services=[service]):
        yield service, ["--transport", redis_server.url, "--bus", bus]


def dse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def answer(*arguments: str) -> Any:
    done = dse(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_status_shows_the_nodes_and_not_the_one_who_asks(door: tuple[Door, list[str]]) -> None:
    _, where = door
    (node,) = answer("status", *where)["nodes"]
    assert (node["node_id"], node["state"], node["services"]) == ("house", "JOINED", ["door"])
    assert "house  JOINED" in dse("status", *where).stdout


def test_services_and_tables(door: tuple[Door, list[str]]) -> None:
    _, where = door
    (service,) = answer("services", *where)
    assert service["rpc_methods"]["ring"]["doc"] == "Ring the bell."
    assert "method ring(times: int, who: str = 'nobody') -> str  Ring the bell." in dse("services", *where).stdout
    (table,) = answer("tables", *where)
    assert table == {
        "table": "door:openings",
        "columns": ["number", "who"],
        "publishers": ["house"],
        "followers": [],
    }


def test_the_broker_may_come_from_the_environment(door: tuple[Door, list[str]]) -> None:
    _, (_, url, _, bus) = door
    done = dse("status", DSE_TRANSPORT=url, DSE_BUS=bus)
    assert "house" in done.stdout, done.stderr


def test_call_takes_json_and_text(door: tuple[Door, list[str]]) -> None:
    _, where = door
    done = dse("call", "door", "ring", "times=3", "who=the cat", *where)
    assert (done.returncode, done.stdout) == (0, "the cat rang 3 times\n")
    assert answer("call", "door", "ring", "times=1", *where) == "nobody rang 1 times"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("door", "fail"), "the bell is broken"),
        (("door", "ring", "times=often"), "InvalidArguments"),
        (("door", "knock"), "it has: fail, ring"),
        (("window", "ring", "times=1"), "known services: door"),
    ],
)
def test_a_call_that_fails_says_why(door: tuple[Door, list[str]], arguments: tuple[str, ...], said: str) -> None:
    _, where = door
    done = dse("call", *arguments, *where)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr.partition("\n")[0]


def test_watch_shows_rows_as_they_come_and_go(door: tuple[Door, list[str]]) -> None:
    service, where = door
    service.openings.insert([(1, "anna")])
    watching = subprocess.Popen(
        [sys.executable, "-m", "dse.cli.main", "watch", "door:openings", "--json", "--seconds", "30", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    heard: list[Any] = []
    came = threading.Condition()

    def listen() -> None:
        assert watching.stdout is not None
        for line in watching.stdout:
            with came:
                heard.append(json.loads(line))
                came.notify_all()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        with came:
            assert came.wait_for(lambda: len(heard) == 1, 20)
        service.openings.apply([(2, "bert")], [(1, "anna")])
        with came:
            assert came.wait_for(lambda: len(heard) == 3, 20)
    finally:
        watching.terminate()
        watching.wait(20)
        listener.join(20)
        assert watching.stdout is not None
        watching.stdout.close()
    assert heard == [
        {"change": "+", "row": {"number": 1, "who": "anna"}},
        {"change": "-", "row": {"number": 1, "who": "anna"}},
        {"change": "+", "row": {"number": 2, "who": "bert"}},
    ]


def test_watching_a_table_that_nobody_publishes_fails(door: tuple[Door, list[str]]) -> None:
    _, where = door
    done = dse("watch", "window:panes", "--seconds", "0.5", *where)
    assert done.returncode == 1
    assert "nobody published it" in done.stderr


def test_a_broker_that_is_not_there_is_said_in_one_line_and_soon() -> None:
    began = time.monotonic()
    done = dse("status", "--transport", "redis://127.0.0.1:1")
    assert done.returncode == 2
    assert "refused the connection" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status",), "DSE_TRANSPORT"),
        (("status", "--transport", "fake://x"), "within one process"),
        (("watch", "sockets", "--transport", "redis://h"), "SERVICE:TABLE"),
        (("call", "a", "b", "nonsense", "--transport", "redis://h"), "key=value"),
        (("watch", "a:b", "--seconds", "-1", "--transport", "redis://h"), "positive number"),
    ],
)
def test_misuse_is_explained(arguments: tuple[str, ...], said: str) -> None:
    done = dse(*arguments, DSE_TRANSPORT="")
    assert done.returncode == 2
    assert said in done.stderr


def test_transports_are_listed_with_their_guarantees() -> None:
    listed = {each["name"]: each for each in answer("transports")}
    assert listed["redis"]["undeliverable"] is True
    assert {"fake", "redis", "rabbit"} <= set(listed)
