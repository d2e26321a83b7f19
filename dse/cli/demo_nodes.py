"""The demo's four nodes. What they have to show they tell as events: dicts that JSON can carry.

| event | from | keys |
| --- | --- | --- |
| change | auditor | service, table, added, removed, seq |
| violation | auditor | rule (policy.rule), columns, came, went: the rows of the rule's table that came and went |
| page | pager, on the auditor's node | rule, columns, row: the policy called it for that row |
| status | auditor | connected, nodes, tables |
| call | caller | call, result, ok, ms |
| log | any | node, text |
| failed | any, in a process of its own | node, text |
| exit | the parent, of a child | node, code, text |
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dse.cli.demo_door import Door
from dse.cli.text import clean
from dse.core.info import DataServiceInfo
from dse.core.methods import every, on_change, rpc
from dse.core.node import Node
from dse.core.service import DataService
from dse.core.table import Change, Replica
from dse.errors import DseError, MissingExtra

try:
    from dse.cli.demo_policy import POLICY, RULE, make_policy
    from dse.services.sources.host import Host
except (MissingExtra, ModuleNotFoundError) as error:
    lacking = getattr(error.__cause__ or error, "name", None)
    raise MissingExtra(
        f"the demo lacks a package ({lacking} cannot be imported); install it with: pip install 'dse[demo]'",
        extra="demo",
    ) from error

__all__ = ["ROLES", "Auditor", "Caller", "Emit", "Event", "LogEvents", "Pager", "Plan", "make_node"]

Event = dict[str, Any]
Emit = Callable[[Event], None]

ROLES = ("host", "policy", "auditor", "caller")

LOOK = 0.5
"""Seconds from one look at the machine to the next: a violation is to be seen within a second."""


@dataclass(frozen=True)
class Plan:
    """What all nodes of one demo agree on. token: makes its node_ids differ from another demo's on the same bus."""

    url: str
    bus: str
    token: str

    def node_id(self, role: str) -> str:
        return f"{role}-{self.token}"


def make_node(role: str, plan: Plan, emit: Emit) -> Node:
    """Return the node of that role, not started."""
    services: dict[str, Callable[[], list[DataService]]] = {
        "host": lambda: [Host("host", tables=["sockets", "processes"], interval=LOOK), Door("door")],
        "policy": lambda: [make_policy("policy")],
        "auditor": lambda: [Auditor("auditor", emit), Pager("pager", emit)],
        "caller": lambda: [Caller("caller", emit, plan.node_id("host"))],
    }
    return Node(plan.url, node_id=plan.node_id(role), bus=plan.bus, services=services[role](), workers=4)


class Auditor(DataService):
    """Follows the host's tables and the policy's rule, and tells what comes and goes and who is on the bus."""

    def __init__(self, service_id: str, emit: Emit) -> None:
        super().__init__(service_id)
        self._emit = emit
        self._replicas: list[Replica] = []

    def on_start(self) -> None:
        # For their state; subscribers on one node share one copy, so this costs nothing beside the callback's.
        self._replicas = [self.subscribe("host", "sockets"), self.subscribe("host", "processes")]
        # A rule's table is there once the policy knows those it reads.
        self._found = self.subscribe(POLICY, RULE, self.judged, patient=True)
        self._replicas.append(self._found)

    @on_change("host", "sockets")
    @on_change("host", "processes")
    def changed(self, change: Change) -> None:
        """Tell the rows that came and went."""
        self._emit(
            {
                "kind": "change",
                "service": change.service_id,
                "table": change.table,
                "added": _sorted_rows(change.added),
                "removed": _sorted_rows(change.removed),
                "seq": change.version[1],
            }
        )

    def judged(self, change: Change) -> None:
        """Tell the violations that came and went."""
        self._emit(
            {
                "kind": "violation",
                "rule": f"{change.service_id}.{change.table}",
                "columns": list(self._found.columns),
                "came": _sorted_rows(change.added),
                "went": _sorted_rows(change.removed),
            }
        )

    @every(0.5)
    def look(self) -> None:
        """Tell the state of the bus, as seen from here."""
        status = self.node.status()
        self._emit(
            {
                "kind": "status",
                "connected": status.connected,
                "nodes": [
                    {
                        "node_id": node.node_id,
                        "state": node.state.value,
                        "heard": round(node.last_heard, 2),
                        "services": [_service(info) for info in node.services],
                    }
                    for node in status.nodes.values()
                ],
                "tables": [
                    {
                        "name": f"{replica.service_id}.{replica.table}",
                        "state": replica.state.value,
                        "rows": len(replica),
                        "epoch": replica.version[0],
                        "seq": replica.version[1],
                    }
                    for replica in self._replicas
                ],
            }
        )


class Pager(DataService):
    """What the policy calls for each violation, once."""

    def __init__(self, service_id: str, emit: Emit) -> None:
        super().__init__(service_id)
        self._emit = emit

    @rpc
    def page(self, rule: str, port: int, process: str | None, pid: int, started: float | None) -> None:
        """Tell somebody about a row of a rule."""
        row = {"port": port, "process": process, "pid": pid, "started": started}
        self._emit({"kind": "page", "rule": rule, "columns": list(row), "row": list(row.values())})


class Caller(DataService):
    """Calls the host node in turn: open a port, ask about it, close it, ask about the machine.

    The first port is not one that the door has declared, the next one is, and so on.
    """

    def __init__(self, service_id: str, emit: Emit, host_node: str) -> None:
        super().__init__(service_id)
        self._emit = emit
        self._host_node = host_node
        self._port = 0
        self._turn = 0

    @every(1.0)
    def call_next(self) -> None:
        """Make the next call."""
        if self._turn == 0 and not self._host_is_there():
            return
        turn, declared = self._turn % 4, self._turn % 8 >= 4
        self._turn += 1
        if turn == 0:
            self._port = self._timed("door", "open", {"declared": declared}) or 0
        elif turn == 1 and self._port:
            self._timed("host", "listeners", {"port": self._port})
        elif turn == 2:
            self._timed("door", "close", {})
        else:
            self._timed("host", "summary", {})

    def _host_is_there(self) -> bool:
        try:
            self.node.wait_for("door", timeout=0.9)
            self.node.wait_for("host", timeout=0.1)
        except TimeoutError:
            return False
        return True

    def _timed(self, service_id: str, method: str, args: Mapping[str, Any]) -> Any:
        began = time.perf_counter()
        result: Any = None
        ok = True
        try:
            result = self.call(service_id, method, args, timeout=3.0, node_id=self._host_node)
            text = show_value(result)
        except (DseError, TimeoutError) as error:
            ok, text = False, f"{type(error).__name__}: {error}"
        took = (time.perf_counter() - began) * 1000
        shown = ", ".join(f"{name}={show_value(value)}" for name, value in args.items())
        self._emit(
            {"kind": "call", "call": f"{service_id}.{method}({shown})", "result": clean(text), "ok": ok, "ms": took}
        )
        return result


class LogEvents(logging.Handler):
    """Tells warnings of the toolkit as events: the terminal belongs to the view."""

    def __init__(self, emit: Emit, node: str = "") -> None:
        super().__init__(logging.WARNING)
        self._emit_event = emit
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._emit_event({"kind": "log", "node": self._node, "text": clean(text)})

    def install(self) -> None:
        """Take over what the package logs."""
        logger = logging.getLogger("dse")
        logger.addHandler(self)
        logger.propagate = False

    def uninstall(self) -> None:
        """Let logging be as it was."""
        logger = logging.getLogger("dse")
        logger.removeHandler(self)
        logger.propagate = True


def show_value(value: object) -> str:
    """Return a result in short: a mapping's items, a list's entries, numbers without noise."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(show_value, value)) + "]"
    return str(value)


def _service(info: DataServiceInfo) -> Event:
    return {
        "service_id": info.service_id,
        "tables": list(info.published_tables),
        "follows": [f"{service}.{table}" for service, table in info.subscribed_tables],
        "methods": list(info.rpc_methods),
    }


def _sorted_rows(rows: frozenset[tuple[Any, ...]]) -> list[list[Any]]:
    # Numbers by their value, anything else as text: a cell may be None.
    return [
        list(row) for row in sorted(rows, key=lambda row: [str(v).zfill(20) if type(v) is int else str(v) for v in row])
    ]
