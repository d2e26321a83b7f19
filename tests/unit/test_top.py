"""What `dse top` makes of what nodes tell, whatever they tell, and how it is drawn in any terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from dse.cli.hints import among, did_you_mean
from dse.cli.top_model import Board, Trouble
from dse.cli.top_view import NODES, Order, age, count, draw, lines, span
from dse.core.info import BusStatus, NodeStatus
from dse.core.membership import NodeState

HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \n:boom: \u202egnp.exe 界界界"


def figures(served: int = 0, changes: int = 0, rows: int = 3, **counters: Any) -> dict[str, Any]:
    return {
        "counters": {"calls_served": served, "changes": changes, **counters},
        "gauges": {"uptime": 60.0, "requests_waiting": 2, "callbacks_waiting": 1},
        "served": {40: served} if served else {},
        "tables": {"shop:stock": {"rows": rows, "changes": changes, "followers": 1}},
    }


def status(*names: str, state: NodeState = NodeState.JOINED, life: str = "1", connected: bool = True) -> BusStatus:
    own = NodeStatus("observer", "observer/1", NodeState.LEFT, 0.0)
    peers = {name: NodeStatus(name, f"{name}/{life}", state, 0.5) for name in names}
    return BusStatus("dse", "redis://h", connected, own, peers, {})


def test_rates_are_what_was_added_by_the_seconds_between() -> None:
    board = Board()
    board.update(100.0, status("n"), {"n": figures(served=10, changes=5)})
    assert board.nodes[0].rates == {}
    assert board.tables[0].changes is None
    board.update(102.0, status("n"), {"n": figures(served=30, changes=9)})
    (node,), (table,) = board.nodes, board.tables
    assert (node.rates["calls_served"], node.rates["changes"], table.changes) == (10.0, 2.0, 2.0)
    assert node.waiting == 3
    assert node.median is not None
    board.update(104.0, status("n"), {"n": figures(served=30, changes=9)})
    assert (board.nodes[0].rates["calls_served"], board.nodes[0].median) == (0.0, None)


def test_a_node_that_missed_a_look_has_the_rates_of_the_longer_time_and_a_new_life_begins_anew() -> None:
    board = Board()
    board.update(100.0, status("n"), {"n": figures(served=10)})
    board.update(102.0, status("n", state=NodeState.SUSPECT), {"n": None})
    assert (board.nodes[0].state, board.nodes[0].uptime, board.nodes[0].rates) == ("SUSPECT", None, {})
    board.update(104.0, status("n"), {"n": figures(served=50)})
    assert board.nodes[0].rates["calls_served"] == 10.0
    board.update(106.0, status("n", life="2"), {"n": figures(served=1)})
    assert board.nodes[0].rates == {}
    board.update(108.0, status(), {})
    assert (board.nodes, board.tables) == ([], [])


@pytest.mark.parametrize("junk", [None, "many", [], float("nan"), float("inf"), 10**400, -1, True])
def test_what_is_no_number_counts_as_nothing(junk: Any) -> None:
    told = {
        "counters": {"calls_served": junk, "changes": junk, "disconnects": junk},
        "gauges": {"uptime": junk, "requests_waiting": junk},
        "served": {junk if isinstance(junk, str) else 3: junk, "x": 5, 10**9: 5},
        "tables": {"a:b": junk, "c:d": {"rows": junk, "changes": junk, "followers": junk}},
    }
    board = Board()
    for at in (1.0, 2.0):
        board.update(at, status("n"), {"n": told})
    json.dumps(board.to_dict(), allow_nan=False)
    assert lines(board, Order())


@pytest.mark.parametrize(("width", "height"), [(200, 50), (120, 40), (80, 24), (40, 10), (20, 4), (5, 2), (1, 1)])
def test_the_screen_fits_every_terminal(width: int, height: int) -> None:
    board = Board()
    names = [HOSTILE, *(f"node-{number:03}" for number in range(100))]
    for at in (1.0, 2.0):
        board.update(
            at, status(*names), {name: figures(served=int(at)) for name in names}, [Trouble(HOSTILE, HOSTILE, HOSTILE)]
        )
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=False)
    console.print(draw(board, HOSTILE, Order(), width, height), end="")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown.splitlines()) <= height
    from rich.cells import cell_len

    assert max(map(cell_len, shown.splitlines())) <= width
    if height >= 10 and width >= 40:
        assert "more" in shown


def test_nodes_are_sorted_by_any_column() -> None:
    board = Board()
    board.update(1.0, status("a", "b", "c"), {"a": figures(served=1), "b": figures(served=1)})
    board.update(2.0, status("a", "b", "c"), {"a": figures(served=5), "b": figures(served=9)})
    order = Order(next(place for place, column in enumerate(NODES) if column.head == "served/s"))
    assert [node.node_id for node in order.apply(board.nodes)] == ["b", "a", "c"]
    assert order.key("r")
    assert [node.node_id for node in order.apply(board.nodes)] == ["c", "a", "b"]
    for _ in NODES:
        assert order.key(">")
        assert len(order.apply(board.nodes)) == 3
    assert not order.key("x")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0"), (0.26, "0.3"), (7, "7"), (999, "999"), (1234, "1.2k"), (99_960, "100k"), (5e6, "5.0M")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert count(value) == shown


def test_all_numbers_fit_their_columns() -> None:
    for power in range(-9, 19):
        for digit in (1, 9.99, 9.4):
            value = digit * 10.0**power
            assert len(count(value)) <= 5, value
            assert len(age(value)) <= 5 or value > 8e8, value
            assert len(span(value)) <= 7 or value > 8e8, value


def test_hints() -> None:
    assert did_you_mean("Sokets", ["sockets", "processes"]) == "; did you mean 'sockets'?"
    assert did_you_mean("xyz", ["sockets"]) == ""
    assert did_you_mean("a" * 100_000, ["sockets"]) == ""
    assert among([]) == "none"
    assert among(str(number) for number in range(30)).endswith(", … and 10 more")
