"""The caller's side of RPC: calls that wait for an answer. Plain state, no I/O, no clock, no lock.

Rules:

1. A call ends exactly once: with the answer, with a failure that the callee sent, because its frame found nobody,
   because the callee's node is gone, or at its deadline.
2. `instance` is the node that has the request, as soon as that is known: from the start for a call to one node, from
   `Accepted` for a call that the bus gave to any replica.
3. A call that waits long asks its node whether it still has the request (a probe, first after `PROBE_FIRST` seconds or
   half its timeout). The bus keeps order between two nodes, so *unknown* means that the request or its answer was lost.
   A call is not asked about before its request is `sent`: the question would overtake a large one.
4. How far a call got is known at any time, for `CallTimeout` to say it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dse.core.effects import Send
from dse.core.messages import Probe, instance_address

__all__ = ["Call", "PendingCalls"]

PROBE_FIRST = 0.5
PROBE_LAST = 10.0


@dataclass(slots=True, eq=False)
class Call:
    """One call that waits. `handle` is the runtime's own."""

    id: int
    service: str | None
    method: str
    started: float
    deadline: float
    instance: str | None
    node_id: str | None
    handle: Any
    accepted: bool = False
    sent: bool = False
    probe_delay: float = PROBE_FIRST

    def progress(self) -> str:
        """How far the call got."""
        what = f"{self.service}.{self.method}" if self.service is not None else f"{self.method}"
        if self.accepted:
            return f"{what} was accepted by node {self.node_id!r}, which has not answered"
        if self.instance is not None:
            return f"{what} was sent to node {self.node_id!r}, which has not confirmed it"
        return f"{what} was sent to the bus, and no node has accepted it"


@dataclass(slots=True)
class PendingCalls:
    """See the rules at the top of this file. `instance` is the calling node's."""

    instance: str
    calls: dict[int, Call] = field(default_factory=dict)
    _timers: list[tuple[float, int]] = field(default_factory=list)  # one entry a call; stale ones fall out in time

    def add(self, call: Call) -> None:
        """A request is about to be sent."""
        self.calls[call.id] = call
        heapq.heappush(self._timers, (_next(call, call.started), call.id))

    def take(self, call_id: int) -> Call | None:
        """The call has ended: return it, or None when it had ended before."""
        return self.calls.pop(call_id, None)

    def accepted(self, call_id: int, instance: str, node_id: str) -> None:
        """The callee has the request."""
        call = self.calls.get(call_id)
        if call is not None:
            call.accepted = True
            call.instance, call.node_id = instance, node_id

    def unknown(self, call_id: int, instance: str) -> Call | None:
        """The callee has no such request: return the call that has ended by it, if any."""
        call = self.calls.get(call_id)
        if call is None or call.instance != instance:
            return None
        return self.calls.pop(call_id)

    def gone(self, instances: Iterable[str]) -> list[Call]:
        """These nodes are gone: return the calls that have ended by it."""
        lost = set(instances)
        ended = [call for call in self.calls.values() if call.instance in lost]
        for call in ended:
            del self.calls[call.id]
        return ended

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        while self._timers and self._timers[0][1] not in self.calls:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    def tick(self, now: float) -> tuple[list[Call], list[Send]]:
        """Return the calls whose deadline has passed, and the probes to send."""
        expired, probes = [], []
        while self.wakeup <= now:
            _, call_id = heapq.heappop(self._timers)
            call = self.calls[call_id]
            if now >= call.deadline:
                del self.calls[call_id]
                expired.append(call)
                continue
            if call.instance is not None and call.sent:
                probes.append(Send(instance_address(call.instance), Probe(call_id, self.instance)))
            call.probe_delay = min(PROBE_LAST, call.probe_delay * 2)
            heapq.heappush(self._timers, (_next(call, now), call_id))
        return expired, probes


def _next(call: Call, now: float) -> float:
    left = call.deadline - now
    if left <= 0.02:
        return call.deadline
    return now + (call.probe_delay if call.probe_delay < left / 2 else left / 2)
