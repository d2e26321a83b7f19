"""The rules of a node where they are enforced: asked, counted and logged; `dse.core.permissions` decides.

Who is asked about is whom the key proves (`dse.core.sender.Sender`), never what a message says of itself. A remote
caller is told that it may not, and not by which rule: that is in this node's log.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from dse.core.figures import FIGURES, ROWS, TYPES
from dse.core.permissions import FIGURES_SERVICE, NODE, Action, Permissions
from dse.core.sender import Sender
from dse.errors import Untrusted

__all__ = ["DENIALS", "Guard", "require_own"]

_log = logging.getLogger("dse.node")

DENIALS = ("denied_calls", "denied_subscriptions", "denied_publishers", "denied_frames")
"""The counters of what was denied: requests; subscriptions; services and table frames; other frames of who may not
join."""

LOG_EVERY = 60.0
"""Seconds between two log lines about the denials of one kind to one node."""

MOST_LINES = 20
"""Log lines about denials within `LOG_EVERY` seconds."""

_SHOWN = 60  # characters of a name that a peer gave

_COUNTED: dict[str, str] = {
    "join": "denied_frames",
    "call": "denied_calls",
    "publish": "denied_publishers",
    "subscribe": "denied_subscriptions",
}
_DOES: dict[str, str] = {
    "join": "be on the bus",
    "call": "call",
    "publish": "publish",
    "subscribe": "subscribe to",
}


_NOBODY = Sender("", "", "")  # whose frames no key proves: what the rules say of everybody goes for it, too


class Guard:
    """Enforces the rules of one node; without rules it allows everything.

    `rules` is replaced as a whole and read without a lock. Lock: ``_lock`` protects what is counted, ``_logged``,
    ``_lines`` and ``_since``.
    """

    def __init__(
        self, node_id: str, rules: Permissions | None, counters: Counter[str], now: Callable[[], float]
    ) -> None:
        self.rules = rules
        self._node_id = node_id
        self._counters = counters
        self._now = now
        self._lock = threading.Lock()
        self._logged: set[tuple[str, str, str]] = set()  # who was denied what, of those that the log named
        self._lines = 0
        self._since = -LOG_EVERY

    # Each says whether it is allowed; what is not was counted and logged when it returns.

    def joins(self, who: Sender | None) -> bool:
        """Whether a node may be on the bus."""
        rules, who = self.rules, who or _NOBODY
        if rules is None or rules.joins(who.key_id, who.node_id):
            return True
        self._denied(rules, "join", who)
        return False

    def calls(self, who: Sender | None, service: str | None, method: str) -> bool:
        """Whether a method may be called; service None is the node itself."""
        rules, who = self.rules, who or _NOBODY
        if rules is None:
            return True
        if service is None:
            if method == ROWS:
                return True  # to see rows of a table is to follow it: asked where the table is known
            service = FIGURES_SERVICE if method in (FIGURES, TYPES) else NODE
        if rules.allows("call", who.key_id, who.node_id, service, method):
            return True
        self._denied(rules, "call", who, service, method)
        return False

    def subscribes(self, who: Sender | None, service: str, table: str) -> bool:
        """Whether a table of this node may be followed."""
        return self._is_let("subscribe", who, service, table)

    def publishes(self, who: Sender | None, service: str, table: str | None = None) -> bool:
        """Whether a service may be offered, or a table of it published."""
        return self._is_let("publish", who, service, table)

    def _is_let(self, action: Action, who: Sender | None, service: str, table: str | None) -> bool:
        rules, who = self.rules, who or _NOBODY
        if rules is None or rules.allows(action, who.key_id, who.node_id, service, table):
            return True
        self._denied(rules, action, who, service, table)
        return False

    # The same, but nothing is counted and logged.

    def may_subscribe(self, who: Sender, service: str, table: str) -> bool:
        """Whether a table may be followed."""
        rules = self.rules
        return rules is None or rules.allows("subscribe", who.key_id, who.node_id, service, table)

    def may_publish(self, who: Sender, service: str, table: str | None = None) -> bool:
        """Whether a service may be offered, or a table of it published."""
        rules = self.rules
        return rules is None or rules.allows("publish", who.key_id, who.node_id, service, table)

    def refusal(self, action: Action, who: Sender | None, service: str | None, name: str) -> str:
        """Return what the other side is told."""
        who = who or _NOBODY
        what = f"its method {_short(name)}" if service is None else _what(service, name)
        return (
            f"node {self._node_id!r} does not let node {_short(who.node_id)!r} (key {_short(who.key_id)!r}) "
            f"{_DOES[action]} {what}"
        )

    def _denied(
        self, rules: Permissions, action: Action, who: Sender, service: str = "", name: str | None = None
    ) -> None:
        kind = _COUNTED[action]
        now = self._now()
        key = (action, who.key_id, who.node_id)
        with self._lock:
            self._counters[kind] += 1
            count = self._counters[kind]
            if now - self._since >= LOG_EVERY:
                self._since, self._lines = now, 0
                self._logged.clear()
            if key in self._logged or self._lines >= MOST_LINES:
                return
            self._logged.add(key)
            self._lines += 1
        what = "" if action == "join" else f" {_what(service, name)}"
        _log.warning(
            "node %r: denied: node %r (key %r) may not %s%s: %s (%s: %d since the start)",
            self._node_id, _short(who.node_id), _short(who.key_id), _DOES[action], what,
            rules.explain(action, who.key_id, who.node_id, service, name), kind, count,
        )  # fmt: skip


def _what(service: str, name: str | None) -> str:
    return _short(service) if name is None else f"{_short(service)}.{_short(name)}"


def _short(name: str | None) -> str:
    """Return a name that a peer gave, fit for a line of text."""
    name = name or ""
    if len(name) > _SHOWN:
        name = f"{name[:_SHOWN]}…"
    return name if name.isprintable() else ascii(name)[1:-1]


def require_own(rules: Permissions | None, node_id: str, key_id: str, service: str, tables: Iterable[str]) -> None:
    """Raise `Untrusted` when a node's own rules deny it a service, or one of its tables."""
    if rules is None:
        return
    for table in (None, *tables):
        why = rules.explain("publish", key_id, node_id, service, table)
        if why:
            who, what = f"node {node_id!r} (key {key_id!r})", _what(service, table)
            raise Untrusted(f"{who} may not publish {what} by its own permissions: {why}")
