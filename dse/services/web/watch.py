"""The bus as a whole: who is there now, what happened lately, and how much is going on.

The timeline is kept all the time, at the cost of a look at the peers after each change of them. Figures (rates,
latencies) are asked of all nodes every `_EVERY` seconds, and only while somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from dse.core.figures import quantile
from dse.core.info import BusStatus, NodeStatus
from dse.errors import DseError
from dse.services.web.cells import json_bytes
from dse.services.web.stream import KEEPALIVE, NOTHING_NEW
from dse.services.web.tables import Bus

__all__ = ["Watch", "status_body"]

_EVERY = 2.0  # seconds between two questions for figures
_PACE = 0.25  # seconds, at least, between two looks at the peers
_MOST = 500  # events that are remembered


def status_body(status: BusStatus) -> dict[str, Any]:
    """Return a status as JSON has it."""
    return {
        "bus": status.bus,
        "transport": status.transport,
        "connected": status.connected,
        "counters": dict(status.counters),
        "nodes": [_node_body(node) for _, node in sorted(status.nodes.items())],
    }


def _node_body(node: NodeStatus) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "instance": node.instance,
        "state": node.state.value,
        "last_heard": round(node.last_heard, 3),
        "services": [
            {
                "service_id": info.service_id,
                "tables": {name: list(columns) for name, columns in sorted(info.published_tables.items())},
                "follows": [list(pair) for pair in info.subscribed_tables],
                "methods": sorted(info.rpc_methods),
            }
            for info in sorted(node.services, key=lambda info: info.service_id)
        ],
    }


class Watch:
    """See the top of this file. Used on the event loop alone, but for what the bus calls."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._changed = asyncio.Event()
        self._timeline: deque[dict[str, Any]] = deque(maxlen=_MOST)
        self._number = 0
        self._before = bus.status()
        self._disconnects = self._before.counters.get("disconnects", 0)
        self._joined = {node_id: node.instance for node_id, node in self._before.nodes.items()}
        self._clashed = {instance for _, instance in bus.clashes()}  # that have been told
        self._viewers = 0
        self._came = asyncio.Event()  # a viewer
        self._figures: dict[str, Any] = {}
        self._body = b""  # what all viewers are told of the bus, encoded once after each change
        self._last: tuple[float, dict[str, dict[str, Any] | None]] | None = None
        self._unwatch = bus.watch(self._peers_changed)
        self._tasks = [self._loop.create_task(self._follow()), self._loop.create_task(self._ask())]

    async def close(self) -> None:
        """Look no more."""
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def timeline(self) -> list[dict[str, Any]]:
        """Return what happened lately, the oldest first."""
        return list(self._timeline)

    def _peers_changed(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._changed.set)

    # The timeline

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            status = self._bus.status()
            for event in self._differences(status):
                self._number += 1
                self._timeline.append({"number": self._number, "at": round(time.time(), 3), **event})
            self._before = status
            self._wake()
            await asyncio.sleep(_PACE)

    def _differences(self, status: BusStatus) -> list[dict[str, Any]]:
        before, now = self._before, status
        events: list[dict[str, Any]] = []
        outages = now.counters.get("disconnects", 0)
        if outages > self._disconnects or (before.connected and not now.connected):
            events.append({"kind": "outage", "text": "the connection to the broker was lost"})
        if now.connected and (not before.connected or outages > self._disconnects):
            events.append({"kind": "connected", "text": "the connection to the broker is back"})
        self._disconnects = outages
        clashes = self._bus.clashes()
        for node_id, instance in clashes:
            if instance not in self._clashed:
                events.append(_event("clash", node_id, "clash: a second node of this name comes while it is there"))
        self._clashed = {instance for _, instance in clashes}
        for node_id, node in now.nodes.items():
            old = before.nodes.get(node_id)
            same = old is not None and old.instance == node.instance
            if old is not None and not same and self._is_clash(node_id, node):
                continue
            if node.state.value == "JOINED":
                self._joined[node_id] = node.instance
            if old is not None and not same and self._is_clash(node_id, old):
                continue  # the one that was there before, seen again
            if old is None or not same:
                if old is not None and old.state.value in ("JOINED", "SUSPECT"):
                    events.append(_event("replaced", node_id, "was replaced by a new life of it"))
                if node.state.value in ("JOINING", "JOINED"):
                    events.append(_event("joined", node_id, "joined" if node.state.value == "JOINED" else "joins"))
                else:
                    events.append(_event(node.state.value.lower(), node_id, _STATES[node.state.value]))
            elif old.state is not node.state:
                kind = "joined" if node.state.value == "JOINED" else node.state.value.lower()
                back = node.state.value == "JOINED" and old.state.value in ("SUSPECT", "DEAD")
                events.append(
                    _event("back" if back else kind, node_id, "is back" if back else _STATES[node.state.value])
                )
            offered, offers = _services(old) if old is not None and same else set(), _services(node)
            came, went = offers - offered, offered - offers
            events += [_event("service", node_id, f"offers {name}", service=name) for name in sorted(came)]
            events += [
                _event("service", node_id, f"offers {name} no more", service=name)
                for name in sorted(went)
                if node.state.value in ("JOINED", "SUSPECT")
            ]
        return events

    def _is_clash(self, node_id: str, node: NodeStatus) -> bool:
        """Whether this is a second node of its name, which has not joined."""
        return node.state.value != "JOINED" and self._joined.get(node_id, node.instance) != node.instance

    # Figures

    async def _ask(self) -> None:
        while True:
            if not self._viewers:
                self._last, self._figures = None, {}
                self._came.clear()
                await self._came.wait()
            with contextlib.suppress(DseError):
                answers = await asyncio.to_thread(self._bus.figures)
                now = self._loop.time()
                if self._last is not None:
                    self._figures = _rates(self._last, (now, answers))
                self._last = (now, answers)
                self._wake()
            await asyncio.sleep(_EVERY)

    # Streams

    def _wake(self) -> None:
        self._body = b""
        self._event.set()
        self._event = asyncio.Event()

    async def events(self) -> AsyncIterator[bytes]:
        """Yield server-sent events: ``bus`` (status and rates, whole, after changes) and ``timeline`` (what is new)."""
        self._viewers += 1
        self._came.set()
        try:
            number = 0
            last = b""
            while True:
                event = self._event
                body = self._body = self._body or json_bytes(
                    {**status_body(self._bus.status()), "rates": self._figures}
                )
                new = [each for each in self._timeline if each["number"] > number]
                parts = [b"event: bus\ndata: " + body + b"\n\n"] if body != last else []
                parts += [b"event: timeline\ndata: " + json_bytes(each) + b"\n\n" for each in new]
                number = new[-1]["number"] if new else number
                last = body
                yield b"".join(parts) or NOTHING_NEW
                try:
                    await asyncio.wait_for(event.wait(), KEEPALIVE)
                except TimeoutError:
                    self._body = b""  # how long ago nodes were heard has changed
        finally:
            self._viewers -= 1


_STATES = {
    "JOINING": "joins",
    "JOINED": "joined",
    "SUSPECT": "is silent: SUSPECT",
    "DEAD": "is taken for DEAD",
    "LEFT": "left",
}


def _event(kind: str, node_id: str, text: str, **more: str) -> dict[str, Any]:
    return {"kind": kind, "node_id": node_id, "text": text, **more}


def _services(node: NodeStatus) -> set[str]:
    return {info.service_id for info in node.services}


_Answers = Mapping[str, Mapping[str, Any] | None]


def _rates(before: tuple[float, _Answers], now: tuple[float, _Answers]) -> dict[str, Any]:
    """Make rates of what the nodes counted at two times."""
    seconds = max(0.001, now[0] - before[0])
    nodes: dict[str, Any] = {}
    tables: dict[str, dict[str, float]] = {}
    for node_id, new in now[1].items():
        old = before[1].get(node_id)
        if new is None:
            nodes[node_id] = None
            continue
        if old is None or old.get("instance") != new.get("instance"):
            continue  # another life: its counters began anew
        nodes[node_id] = {
            "calls": _rate(old, new, "calls_served", seconds),
            "errors": _rate(old, new, "serve_errors", seconds),
            "made": _rate(old, new, "calls_made", seconds),
            "changes": _rate(old, new, "changes", seconds),
            "received": _rate(old, new, "messages_in", seconds),
            "sent": _rate(old, new, "messages_out", seconds),
            "p50": _latency(old, new, 0.5),
            "p99": _latency(old, new, 0.99),
            "waiting": _number(new.get("gauges", {}).get("requests_waiting")),
        }
        for name, figures in _tables(new).items():
            earlier = _tables(old).get(name, {})
            entry = tables.setdefault(name, {"rows": 0, "changes": 0.0, "followers": 0})
            entry["rows"] = max(entry["rows"], _number(figures.get("rows")))
            entry["followers"] += _number(figures.get("followers"))
            changes = (_number(figures.get("changes")) - _number(earlier.get("changes"))) / seconds
            entry["changes"] = round(entry["changes"] + max(0.0, changes), 2)
    return {"nodes": nodes, "tables": tables}


def _tables(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables = figures.get("tables")
    if not isinstance(tables, dict):
        return {}
    return {name: each for name, each in tables.items() if isinstance(name, str) and isinstance(each, dict)}


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _rate(old: Mapping[str, Any], new: Mapping[str, Any], name: str, seconds: float) -> float:
    counted = _number(new.get("counters", {}).get(name)) - _number(old.get("counters", {}).get(name))
    return round(max(0.0, counted / seconds), 2)


def _latency(old: Mapping[str, Any], new: Mapping[str, Any], share: float) -> float | None:
    before, now = old.get("served", {}), new.get("served", {})
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None
    counts = {
        place: int(_number(count) - _number(before.get(place)))
        for place, count in now.items()
        if isinstance(place, int)
    }
    seconds = quantile(counts, share)
    return round(seconds * 1000, 3) if seconds is not None else None
