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
from pathlib import Path
from typing import Any

import pytest

from dse import DataService, Node, Table, rpc
from dse.testing.brokers import Broker

sys.path.insert(0, str(Path(__file__).parent))

from pseudo_terminal import PseudoTerminal

WATCH_QUIETLY = [
    sys.executable,
    "-c",
    "import io, sys; from dse.cli.main import main; sys.stdout = io.StringIO(); sys.exit(main(sys.argv[1:]))",
]
"""A `dse` whose stdout goes nowhere, so that the terminal shows its stderr."""


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
        (
            ("door", "rin"),
            "methods of door; did you mean 'ring'?\n  fail() -> None\n  ring(times: int, who: str = 'nobody')",
        ),
        (("dor", "ring", "times=1"), "there are the services: door; did you mean 'door'?"),
        (("door", "ring", "times=1", "--node", "hous"), "there are the nodes: house; did you mean 'house'?"),
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


def test_watching_a_service_that_is_not_there_says_so_and_waits(redis_server: Broker) -> None:
    bus = f"bus-{uuid.uuid4().hex[:8]}"
    where = ["--transport", redis_server.url, "--bus", bus]
    with (
        Node(redis_server.url, bus=bus, node_id="house", services=[Door("dor")]),
        PseudoTerminal("watch", "door:openings", *where) as terminal,
    ):
        terminal.wait_for("no node offers the service 'door' now, waiting for one; there are: dor; did you mean 'dor'")
        terminal.wait_for("door:openings: waiting for it")
        late = Door("door")
        late.openings.insert([(1, "anna")])
        with Node(redis_server.url, bus=bus, node_id="annexe", services=[late]):
            terminal.wait_for(r"\+ number=1 who=anna")
            terminal.wait_for("live, 1 rows")
        terminal.wait_for("stale: its publisher is gone")
        terminal.type("\x03")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


def test_a_table_that_its_service_has_not_is_met_with_those_it_has(door: tuple[Door, list[str]]) -> None:
    _, where = door
    done = dse("watch", "door:opening", *where)
    assert done.returncode == 1
    assert "it publishes: openings; did you mean 'openings'?" in done.stderr


def test_a_large_table_comes_with_a_bar_and_leaves_none(door: tuple[Door, list[str]]) -> None:
    service, where = door
    service.openings.replace([(number, "x" * 50) for number in range(300_000)])
    with PseudoTerminal("watch", "door:openings", *where, program=WATCH_QUIETLY) as terminal:
        terminal.wait_for(r"door:openings: rows.*[0-9]+/300000")
        terminal.wait_for("live, 300000 rows")
        terminal.process.terminate()
        assert terminal.ended() == 143
        assert terminal.shown.rfind("\x1b[?25h") > terminal.shown.rfind("\x1b[?25l") >= 0
        assert terminal.mode == terminal.before


def test_check_shows_how_far_it_is(redis_server: Broker) -> None:
    with PseudoTerminal("check", redis_server.url) as terminal:
        terminal.wait_for(r"round trip.*[0-9]+/[0-9]+")
        terminal.wait_for("ok   opens again")
        assert terminal.ended() == 0


@pytest.mark.parametrize("command", [("services",), ("tables",), ("status",), ("watch", "door:openings")])
def test_a_reader_that_has_seen_enough_ends_it_quietly(door: tuple[Door, list[str]], command: tuple[str, ...]) -> None:
    service, where = door
    service.openings.replace([(number, "x" * 100) for number in range(20_000)])
    with subprocess.Popen(
        [sys.executable, "-m", "dse.cli.main", *command, *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if command[0] == "watch":
            process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(30) == 0
    assert [line for line in stderr.splitlines() if not line.startswith("door:openings: ")] == []


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\u202egnp.exe\x9b31m\x00" + "界" * 40


def test_what_comes_from_the_bus_cannot_reach_the_terminal(redis_server: Broker) -> None:
    bus = f"bus-{uuid.uuid4().hex[:8]}"
    where = ["--transport", redis_server.url, "--bus", bus]
    service = Door("door")
    service.openings.insert([(1, HOSTILE), (2, "y" * 1_000_000)])
    service.add_table("status", "table", "state", "reason", rows=[(HOSTILE, "DEGRADED", HOSTILE)])
    many = [Door(f"door{number}") for number in range(300)]
    with Node(redis_server.url, bus=bus, node_id="house" + "界" * 60, services=[service, *many]):
        for command in (
            ("status",),
            ("services",),
            ("tables",),
            ("top", "--once"),
            ("watch", "door:openings", "--seconds", "2"),
            ("call", "door", "ring", "times=1", f"who={HOSTILE[:-41]}"),
        ):
            done = dse(*command, *where)
            assert done.returncode == 0, (command, done.stderr)
            text = done.stdout + done.stderr
            assert all(line.isprintable() for line in text.split("\n")), command
            assert max(map(len, text.split("\n"))) < 5000, command
        shown = dse("status", *where).stdout
        assert "DEGRADED door:\\x1b[2J" in shown
        (trouble,) = answer("status", *where)["degraded"]
        assert trouble == {"service": "door", "table": HOSTILE, "reason": HOSTILE}
        with PseudoTerminal("top", *where, size=(80, 24)) as terminal:
            terminal.wait_for("and [0-9]+ more")
            terminal.type("q")
            assert terminal.ended() == 0
            assert "owned\x07" not in terminal.shown


def test_a_source_that_recovers_is_degraded_no_more(door: tuple[Door, list[str]]) -> None:
    service, where = door
    status = service.add_table(
        "status", "table", "state", "reason", rows=[("openings", "DEGRADED", "the door is stuck"), ("other", "OK", "")]
    )
    assert "DEGRADED door:openings: the door is stuck\n" in dse("status", *where).stdout
    assert "DEGRADED door:openings: the door is stuck\n" in dse("top", "--once", *where).stdout
    status.replace([("openings", "OK", "")])
    assert "DEGRADED" not in dse("status", *where).stdout


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
