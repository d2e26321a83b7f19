"""What a fault did, judged by the books: counts, and everything that broke a promise."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from faults.fleet import Fleet, Member

__all__ = ["LATE", "Verdict", "judge"]

# Seconds after its timeout in which a call has ended: the promise at full length, where nothing else runs; the short
# runs share two cores with the rest of the suite, and six processes wait for their turn.
LATE = 1.0 if os.environ.get("DSE_FAULTS") else 4.0


@dataclass
class Verdict:
    """The counts of one fault on one broker; times in seconds.

    recovered: from the end of the fault until every replica was LIVE and up to date, under load. latest: how long after
    its timeout the last call that failed ended (below 0: before). notes: what this fault alone has to say. broken: the
    promises that were.
    """

    fault: str
    broker: str
    seconds: float
    recovered: float
    changes: int
    replicas: int
    callbacks: int
    calls: int
    succeeded: int
    failed: dict[str, int]
    ran_twice: int
    repeated: int
    latest: float | None
    slowest_change: float
    disconnects: int
    notes: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def judge(fleet: Fleet, fault: str, broker: str, recovered: float, hung: Iterable[str]) -> Verdict:
    """Read the books of a fleet that has come to rest."""
    answers = fleet.tell_all("contents")
    now = fleet.tell_all("versions")
    calls = fleet.calls()
    ran = Counter(key for method, key, _ in fleet.ran() if method != "again")
    again = Counter(key for method, key, _ in fleet.ran() if method == "again")
    twice = [key for key, times in ran.items() if times > 1]
    failed = [call for call in calls if call["error"]]
    members = {str(member.process.pid): member for member in (*fleet.members, *fleet.former)}
    late = [(_lateness(call, members[call["key"].split(":")[1]]), call) for call in calls]
    broken = [f"{key} ran {ran[key]} times" for key in twice]
    broken += [f"{key} hangs" for key in hung]
    broken += [f"a call failed untyped: {call}" for call in failed if not call["typed"]]
    broken += [f"a call got another's result: {call}" for call in calls if not call["error"] and not call["right"]]
    broken += [f"a call ended {over:.2f} s after its timeout: {call}" for over, call in late if over > LATE]
    return Verdict(
        fault=fault,
        broker=broker,
        seconds=round(fleet.loaded_until - fleet.loaded_from, 1),
        recovered=round(recovered, 2),
        changes=fleet.accepted(),
        replicas=sum(len(answer["replicas"]) for answer in answers.values()),
        callbacks=sum(answer["callbacks"] for answer in answers.values()),
        calls=len(calls),
        succeeded=len(calls) - len(failed),
        failed=dict(Counter(call["error"] for call in failed).most_common()),
        ran_twice=len(twice),
        repeated=sum(1 for times in again.values() if times > 1),
        latest=max((round(over, 2) for over, call in late if call["error"]), default=None),
        slowest_change=round(max(answer["slowest_change"] for answer in answers.values()), 2),
        disconnects=sum(answer["disconnects"] for answer in now.values()),
        broken=broken,
    )


def _lateness(call: dict[str, Any], caller: Member) -> float:
    """Return how long after its timeout a call ended, or after its caller, which was suspended then, went on."""
    due = call["began"] + call["timeout"]
    for since, until in caller.suspensions:
        if since <= due + LATE and call["began"] < until:
            due = max(due, until)
    return float(call["began"] + call["seconds"] - due)
