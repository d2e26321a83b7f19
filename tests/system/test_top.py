"""`dse top` in a terminal, in a pipe and for programs, against real brokers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
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

HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


class Mill(DataService):
    flour = Table("kind", "kilos")

    @rpc
    def grind(self, kilos: int) -> int:
        return kilos


class Busy:
    """Calls, fails and changes a table all the time."""

    def __init__(self, node: Node, mill: Mill) -> None:
        self._stop = threading.Event()
        self._node, self._mill = node, mill
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _work(self) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            with contextlib.suppress(Exception):
                self._node.call("mill", "grind", {"kilos": number if number % 5 else "much"}, timeout=2)
            self._mill.flour.replace([("rye", number)])


@pytest.fixture(params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("redis", "rabbit")])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Broker, list[str], Mill]]:
    """A busy bus of two nodes, and the options that lead there."""
    broker: Broker = request.getfixturevalue(f"{request.param}_server")
    bus, mill = f"bus-{uuid.uuid4().hex[:8]}", Mill("mill")
    with (
        Node(broker.url, bus=bus, node_id="miller", services=[mill]),
        Node(broker.url, bus=bus, node_id="baker") as baker,
    ):
        baker.wait_for("mill", 10)
        with Busy(baker, mill):
            yield broker, ["--transport", broker.url, "--bus", bus, "--interval", "0.5"], mill


pytestmark = pytest.mark.xdist_group("top")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli.main", "top", *arguments], capture_output=True, text=True, timeout=60
    )


def test_programs_get_rates_latencies_tables_and_queues(site: tuple[Broker, list[str], Mill]) -> None:
    _, where, mill = site
    follower = ["watch", "mill:flour", *where[:4]]
    with subprocess.Popen(
        [sys.executable, "-m", "dse.cli.main", *follower],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as watching:
        try:
            assert watching.stdout is not None
            watching.stdout.readline()
            assert mill.flour.subscribers == 1
            done = run("--once", "--json", *where)
        finally:
            watching.terminate()
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["connected"] is True
    nodes = {node["node_id"]: node for node in told["nodes"]}
    assert set(nodes) == {"miller", "baker"}
    miller, baker = nodes["miller"], nodes["baker"]
    assert miller["services"] == ["mill"]
    assert miller["rates"]["calls_served"] > 5
    assert miller["rates"]["serve_errors"] > 0
    assert miller["rates"]["changes"] > 5
    assert baker["rates"]["calls_made"] > 5
    assert baker["rates"]["call_errors"] > 0
    assert baker["rates"]["messages_out"] > 5
    assert 0 < miller["median"] <= miller["p99"] < 5
    assert (miller["waiting"], miller["reconnects"]) == (0, 0)
    (table,) = told["tables"]
    assert (table["table"], table["node_id"], table["rows"], table["followers"]) == ("mill:flour", "miller", 1, 1)
    assert table["changes"] > 5


def test_json_is_a_line_a_look(site: tuple[Broker, list[str], Mill]) -> None:
    _, where, _ = site
    done = run("--json", "--seconds", "4", *where)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) >= 2
    times = [each["at"] for each in told]
    assert times == sorted(times)


def test_a_pipe_gets_plain_lines(site: tuple[Broker, list[str], Mill]) -> None:
    _, where, _ = site
    done = run("--once", "--sort", "served/s", *where)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert "2 nodes" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["node", "miller", "baker"]
    assert any(line.startswith("mill:flour") for line in lines)


def test_a_pipe_whose_reader_leaves_ends_it_quietly(site: tuple[Broker, list[str], Mill]) -> None:
    _, where, _ = site
    with subprocess.Popen(
        [sys.executable, "-m", "dse.cli.main", "top", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("how", "code"),
    [("q", 0), ("\x03", 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_a_terminal_is_left_as_it_was(site: tuple[Broker, list[str], Mill], how: str | int, code: int) -> None:
    _, where, _ = site
    with PseudoTerminal("top", *where) as terminal:
        terminal.wait_for("mill:flour")
        assert terminal.mode != terminal.before
        if isinstance(how, str):
            terminal.type(how)
        else:
            terminal.process.send_signal(how)
        assert terminal.ended() == code
        assert terminal.mode == terminal.before
        shown = terminal.shown
    assert shown.rfind(LEFT) > shown.rfind(ENTERED) >= 0
    assert shown.rfind(SHOWN) > shown.rfind(HIDDEN) >= 0
    assert "Traceback" not in shown


def test_an_exception_leaves_the_terminal_as_it_was(site: tuple[Broker, list[str], Mill]) -> None:
    """A terminal that says it cannot be asked for its size while the view is drawn."""
    _, where, _ = site
    code = (
        "import sys; from dse.cli import top; from dse.cli.main import main; real = top.draw; count = []\n"
        "def draw(*args):\n"
        "    count.append(1)\n"
        "    if len(count) > 1: raise RuntimeError('cannot draw')\n"
        "    return real(*args)\n"
        "top.draw = draw; sys.exit(main(sys.argv[1:]))"
    )
    with PseudoTerminal("top", *where, program=[sys.executable, "-c", code]) as terminal:
        terminal.wait_for("cannot draw")
        assert terminal.ended() == 1
        assert terminal.mode == terminal.before
        assert terminal.shown.rfind(LEFT) > terminal.shown.rfind(ENTERED) >= 0


def test_keys_sort_and_a_new_size_is_drawn_at_once(site: tuple[Broker, list[str], Mill]) -> None:
    _, where, _ = site
    where = [*where[:-1], "3600"]  # but for the first two, no sample comes: what is drawn is for the key or the size
    with PseudoTerminal("top", *where, size=(160, 40)) as terminal:
        place = terminal.wait_for("sort by: node  r reverse")
        terminal.wait_for("reconn")
        terminal.type("r")
        place = terminal.wait_for("sort by: node, reversed", place)
        terminal.type(">")
        place = terminal.wait_for("sort by: state, reversed", place)
        terminal.type("\x1b[D")
        place = terminal.wait_for("sort by: node, reversed", place)
        terminal.resize(40, 12)
        place = terminal.wait_for("q quit  < > sort by: node, reversed", place)
        assert "reconn" not in terminal.shown[place:]
        terminal.type("q")
        assert terminal.ended() == 0


def test_a_hung_node_does_not_hold_up_the_view(site: tuple[Broker, list[str], Mill]) -> None:
    broker, where, _ = site
    bus = where[3]
    code = (
        "import sys, dse\n"
        "with dse.Node(sys.argv[1], bus=sys.argv[2], node_id='hung'):\n"
        "    print('up', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, broker.url, bus], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as hung:
        assert hung.stdin is not None
        assert hung.stdout is not None
        try:
            hung.stdout.readline()
            with subprocess.Popen(
                [sys.executable, "-m", "dse.cli.main", "top", "--json", *where], stdout=subprocess.PIPE, text=True
            ) as looking:
                try:
                    nodes = _until(looking, lambda nodes: nodes.get("hung", {}).get("uptime") is not None)
                    os.kill(hung.pid, signal.SIGSTOP)
                    began = time.monotonic()
                    nodes = _until(looking, lambda nodes: nodes["hung"]["uptime"] is None)
                    assert time.monotonic() - began < 10
                    assert nodes["miller"]["rates"]["calls_served"] > 0
                    _until(looking, lambda nodes: nodes["hung"]["state"] in ("SUSPECT", "DEAD"))
                    os.kill(hung.pid, signal.SIGCONT)
                    _until(looking, lambda nodes: nodes["hung"]["uptime"] is not None)
                finally:
                    looking.terminate()
        finally:
            os.kill(hung.pid, signal.SIGCONT)
            hung.stdin.close()
            hung.wait(30)


def test_a_broker_that_goes_and_comes_back_is_shown(site: tuple[Broker, list[str], Mill]) -> None:
    broker, where, _ = site
    with PseudoTerminal("top", *where) as terminal:
        terminal.wait_for("mill:flour")
        broker.cut()
        try:
            terminal.wait_for("NOT CONNECTED")
        finally:
            broker.mend()
        place = len(terminal.shown)
        terminal.wait_for(r"2 nodes, [1-9][0-9]* calls/s", place)
        terminal.type("q")
        assert terminal.ended() == 0


def test_a_broker_that_hangs_holds_up_neither_keys_nor_the_end(site: tuple[Broker, list[str], Mill]) -> None:
    broker, where, _ = site
    with PseudoTerminal("top", *where) as terminal:
        place = terminal.wait_for("mill:flour")
        broker.pause()
        try:
            terminal.type("r")
            terminal.wait_for("node, reversed", place)
            terminal.type("q")
            assert terminal.ended() == 0
            assert terminal.mode == terminal.before
        finally:
            broker.resume()


def _until(looking: subprocess.Popen[str], right: Any) -> dict[str, Any]:
    assert looking.stdout is not None
    deadline = time.monotonic() + 40
    nodes: dict[str, Any] = {}
    for line in looking.stdout:
        nodes = {node["node_id"]: node for node in json.loads(line)["nodes"]}
        if right(nodes):
            return nodes
        if time.monotonic() > deadline:
            break
    raise AssertionError(f"never came: {nodes}")
