"""What a bridge carries one way: who is native to the one bus and not to the other gets a stand-in there.

Rules:

1. Only natives are carried: not what stands in for a service of another bus, so nothing goes round in a ring.
2. Native wins: where both buses have the service, there is no stand-in; one that is there goes.
3. The bridge's own service is on both buses by itself.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from dse.core.relay import Native
from dse.errors import DseError, NoSuchService
from dse.services.bridge.carried import CarriedService
from dse.services.bridge.filters import Filters
from dse.services.bridge.side import Side

__all__ = ["Direction", "Row"]

_log = logging.getLogger("dse.bridge")

LOOK = 1.0
"""Seconds between two looks at what there is, besides those when something has changed."""

_JOIN = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """A service, and whether it is carried."""

    service: str
    state: str
    reason: str = ""
    calls: int = 0
    failed: int = 0
    changes: int = 0
    followed: int = 0


class Direction:
    """Carries services from one side of a bridge to the other, on a thread of its own.

    Lock: ``_lock`` protects ``_carried`` and ``_others``.
    """

    def __init__(self, source: Side, target: Side, filters: Filters, settle: float) -> None:
        self._source = source
        self._target = target
        self._filters = filters
        self._settle = settle  # seconds from the start in which the buses tell what there is
        self._lock = threading.Lock()
        self._carried: dict[str, CarriedService] = {}
        self._others: dict[str, Row] = {}  # what is not carried
        self._failures: dict[str, str] = {}  # the thread's own: what was logged of services that cannot be carried
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"dse-{target.node.node_id}-carries", daemon=True)

    def start(self) -> None:
        """Begin to carry."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to carry nothing more. A thread that waits for a broker ends with the nodes; `close` is for then."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN)

    def release(self) -> None:
        """Follow no table any more."""
        with self._lock:
            carried = list(self._carried.values())
        for stand_in in carried:
            stand_in.close()

    def close(self) -> None:
        """The nodes have stopped: so does the thread."""
        if self._thread.ident is not None:
            self._thread.join(_JOIN)
        with self._lock:
            carried, self._carried = self._carried, {}
        for service_id in carried:
            self._target.node.unregister(service_id)

    def look(self) -> None:
        """Something may have changed; from any thread, does not block."""
        self._woken.set()

    def rows(self) -> list[Row]:
        """Return what there is to carry, and what became of it."""
        with self._lock:
            carried, others = dict(self._carried), dict(self._others)
        cut_off = not self._source.node.connected
        rows = list(others.values())
        for service_id, each in carried.items():
            state, reason = ("cut off", f"{self._source.where} is not reached") if cut_off else ("carried", "")
            lanes = each.lanes
            changes, followed = sum(lane.changes for lane in lanes), sum(lane.following for lane in lanes)
            rows.append(Row(service_id, state, reason, each.calls, each.failed, changes, followed))
        return rows

    # The thread

    def _run(self) -> None:
        self._stopping.wait(self._settle)
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self._carry()
            except DseError as error:
                _log.warning("%s to %s: %s", self._source.where, self._target.where, error)
            except Exception:
                _log.exception("%s to %s failed; it is tried again", self._source.where, self._target.where)
            self._woken.wait(LOOK)

    def _carry(self) -> None:
        """Make the stand-ins those that there should be."""
        natives, there = self._source.node.natives(), self._target.node.natives()
        own = self._target.service.service_id
        wanted: dict[str, Native] = {}
        others: dict[str, Row] = {}
        for service_id, native in natives.items():
            if service_id == own:
                continue
            if reason := self._filters.against(service_id):
                others[service_id] = Row(service_id, "left out", reason)
            elif service_id in there:
                nodes = ", ".join(there[service_id].nodes[:5])
                others[service_id] = Row(service_id, "on both", f"{self._target.where} has its own, on {nodes}")
            else:
                wanted[service_id] = native
        self._tell(others)
        for service_id in [each for each in self._carried if each not in wanted]:
            if service_id not in natives:
                # What was published last is on its way through this process: the followers are to have it.
                self._carried[service_id].await_last_changes()
                reason = f"{self._source.where} has it no more"
            else:
                reason = others[service_id].reason
            self._withdraw(service_id, reason)
        for service_id, native in wanted.items():
            if self._stopping.is_set():
                return
            if (stand_in := self._carried.get(service_id)) is not None:
                stand_in.update(native)
                for lane in stand_in.lanes:
                    lane.look()
            else:
                self._offer(service_id, native)

    def _offer(self, service_id: str, native: Native) -> None:
        source, target = self._source, self._target
        stand_in: CarriedService | None = None
        try:
            stand_in = CarriedService(service_id, source.node, native, source.service, self._filters)
            target.node.register(stand_in)
        except Exception as error:  # also a catalogue in which nothing is what it should be
            if stand_in is not None:
                stand_in.close()
            self._not_offered(service_id, f"{type(error).__name__}: {error}")
            return
        self._failures.pop(service_id, None)
        with self._lock:
            self._carried[service_id] = stand_in
        _log.info(
            "%s of %s, on %s, is carried to %s", service_id, source.where, ", ".join(native.nodes[:5]), target.where
        )

    def _not_offered(self, service_id: str, reason: str) -> None:
        with self._lock:
            self._others[service_id] = Row(service_id, "failed", reason)
        if self._failures.get(service_id) != reason and not self._stopping.is_set():
            self._failures[service_id] = reason
            what = ascii(service_id)[:60]
            _log.warning("%s of %s is not carried to %s: %s", what, self._source.where, self._target.where, reason)

    def _withdraw(self, service_id: str, reason: str) -> None:
        with self._lock:
            stand_in = self._carried.pop(service_id)
        try:
            self._target.node.unregister(service_id)
        except NoSuchService as error:
            _log.debug("%s", error)
        stand_in.close()
        _log.info("%s is carried to %s no more: %s", service_id, self._target.where, reason)

    def _tell(self, others: dict[str, Row]) -> None:
        with self._lock:
            before, self._others = self._others, others
        for service_id, row in others.items():
            old = before.get(service_id)
            if old is None or old.state != row.state:
                _log.info("%s of %s is not carried to %s: %s: %s", service_id, self._source.where, self._target.where,
                          row.state, row.reason)  # fmt: skip
