"""What `dse top` shows: rates out of what nodes told at two times. No I/O, no clock.

What a node tells is another program's word: whatever is not a number where one belongs counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dse.core.figures import quantile
from dse.core.info import BusStatus, NodeStatus

__all__ = ["Board", "NodeLine", "TableLine", "Trouble"]

_RATES = (
    "calls_served",
    "serve_errors",
    "calls_made",
    "call_errors",
    "changes",
    "messages_in",
    "messages_out",
)
_QUEUES = ("requests_waiting", "callbacks_waiting", "control_waiting")


@dataclass(frozen=True)
class Trouble:
    """A row of a service's table `status` that says DEGRADED."""

    service: str
    table: str
    reason: str


@dataclass(frozen=True)
class NodeLine:
    """A node: rates are per second, times in seconds; None is what is not known."""

    node_id: str
    state: str
    last_heard: float
    services: list[str]
    instance: str
    uptime: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    median: float | None = None
    p99: float | None = None
    waiting: int | None = None
    pending: int | None = None
    reconnects: int | None = None
    denied: int | None = None


@dataclass(frozen=True)
class TableLine:
    """A table on the node that publishes it."""

    table: str
    node_id: str
    rows: int
    changes: float | None
    followers: int


@dataclass(frozen=True)
class _Heard:
    """What a node told, and when."""

    at: float
    figures: Mapping[str, Any]


class Board:
    """The lines as of the latest `update`."""

    def __init__(self) -> None:
        self.connected = True
        self.nodes: list[NodeLine] = []
        self.tables: list[TableLine] = []
        self.troubles: list[Trouble] = []
        self._heard: dict[str, _Heard] = {}  # instance -> the latest

    def update(
        self,
        at: float,
        status: BusStatus,
        figures: Mapping[str, Mapping[str, Any] | None],
        troubles: Sequence[Trouble] = (),
    ) -> None:
        """Take what the bus and its nodes told at a time of the monotonic clock."""
        self.connected = status.connected
        self.troubles = list(troubles)
        self.nodes, self.tables = [], []
        heard: dict[str, _Heard] = {}
        for node in sorted(status.peers.values(), key=lambda node: node.node_id):
            said = figures.get(node.node_id)
            before = self._heard.get(node.instance)
            if said is not None:
                now = heard[node.instance] = _Heard(at, said)
                self.nodes.append(_told(node, before, now))
                self.tables += _tables(node.node_id, before, now)
            else:
                if before is not None:
                    heard[node.instance] = before
                self.nodes.append(_silent(node))
        self._heard = heard

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts, for JSON."""
        return {
            "connected": self.connected,
            "nodes": [_rounded(asdict(line)) for line in self.nodes],
            "tables": [_rounded(asdict(line)) for line in self.tables],
            "degraded": [asdict(trouble) for trouble in self.troubles],
        }


def _silent(node: NodeStatus) -> NodeLine:
    services = sorted(info.service_id for info in node.services)
    return NodeLine(node.node_id, node.state.value, node.last_heard, services, node.instance)


def _told(node: NodeStatus, before: _Heard | None, now: _Heard) -> NodeLine:
    gauges, counters = now.figures["gauges"], now.figures["counters"]
    rates: dict[str, float] = {}
    served = _counts(now.figures)
    if before is not None and now.at > before.at:
        seconds = now.at - before.at
        old = before.figures["counters"]
        rates = {name: max(0.0, number(counters, name) - number(old, name)) / seconds for name in _RATES}
        past = _counts(before.figures)
        served = {place: count - past.get(place, 0) for place, count in served.items()}
    return NodeLine(
        node.node_id,
        node.state.value,
        node.last_heard,
        sorted(info.service_id for info in node.services),
        node.instance,
        uptime=number(gauges, "uptime"),
        rates=rates,
        median=quantile(served, 0.5),
        p99=quantile(served, 0.99),
        waiting=int(sum(number(gauges, name) for name in _QUEUES)),
        pending=int(number(gauges, "calls_pending")),
        reconnects=int(number(counters, "disconnects")),
        denied=int(number(counters, "denied")),
    )


def _tables(node_id: str, before: _Heard | None, now: _Heard) -> list[TableLine]:
    lines = []
    for name, told in now.figures["tables"].items():
        if not isinstance(told, dict):
            continue
        changes = None
        if before is not None and now.at > before.at:
            past = before.figures["tables"].get(name)
            # A table that is new, or began anew, has made all its changes since.
            since = number(past, "changes") if isinstance(past, dict) else 0.0
            made = number(told, "changes")
            changes = (made - since if made >= since else made) / (now.at - before.at)
        rows, followers = int(number(told, "rows")), int(number(told, "followers"))
        lines.append(TableLine(str(name), node_id, rows, changes, followers))
    return sorted(lines, key=lambda line: line.table)


def number(told: Mapping[Any, Any], name: str) -> float:
    """Return a number that a node told, 0 for anything else."""
    value = told.get(name)
    if isinstance(value, int | float) and abs(value) < 1e18 and math.isfinite(value):
        return float(value)
    return 0.0


def _counts(figures: Mapping[str, Any]) -> dict[int, int]:
    """Return the histogram that a node told, without what cannot be of one."""
    return {
        place: count
        for place, count in figures["served"].items()
        if type(place) is int and type(count) is int and 0 <= place < 1000 and 0 < count < 1 << 60
    }


def _rounded(value: dict[str, Any]) -> dict[str, Any]:
    def short(each: Any) -> Any:
        if isinstance(each, float):
            return round(each, 6)
        return {name: round(rate, 3) for name, rate in each.items()} if isinstance(each, dict) else each

    return {name: short(each) for name, each in value.items()}
