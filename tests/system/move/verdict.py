"""Whether a move lost a change or ran a call twice, by what the processes wrote down."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from faults.books import read_book

from move.mover import TABLES, Mover
from move.site import WINDOW

__all__ = ["Verdict", "judge"]

NOT_RUN = {"NoSuchService", "Overloaded"}
"""What says that the call did not run."""

UNKNOWN = {"NodeLost", "CallTimeout", "TransportUnavailable"}
"""What says that it may have."""


@dataclass
class Verdict:
    """The counts of one move; times in seconds.

    changes: published. seen: rows that came, over all subscribers and their lives; merged: callbacks that told of more
    than one change. failed: calls by error; not_run: of these, those that are known not to have run; unknown: those of
    which it is not known, and unknown_ran: how many of these did. slowest: call that succeeded. down: how long each
    process was, from being told to stop until the next one had started. said: how often whom a call of which service
    failed with which message. broken: the promises that were.
    """

    seconds: float
    changes: int
    seen: int
    callbacks: int
    merged: int
    calls: int
    succeeded: int
    ran_twice: int
    failed: dict[str, int]
    not_run: int
    unknown: int
    unknown_ran: int
    slowest: float
    down: dict[str, float]
    bridge_down: list[float]
    said: dict[str, int]
    broken: list[str] = field(default_factory=list)


def judge(mover: Mover, held: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Read the books of a site that has come to rest. held: watcher -> table -> ranges of rows at the end."""
    broken: list[str] = []
    latest = {f"{service}.{table}": mover.latest(service, table) for service, table in TABLES}
    for watcher, tables in held.items():
        for table, ranges in tables.items():
            wanted = [[latest[table] - WINDOW + 1, latest[table]]]
            if ranges != wanted:
                broken.append(f"{watcher} holds {ranges} of {table}, not {wanted}")
    seen, callbacks, merged = _judge_changes(mover, latest, broken)
    calls = list(read_book(mover.folder / "calls.jsonl"))
    ran = Counter(key for key, _, _ in read_book(mover.folder / "ran.jsonl"))
    broken += [f"{key} ran {times} times" for key, times in ran.items() if times > 1]
    for call in calls:
        error = call["error"]
        if not error and not call["right"]:
            broken.append(f"a call got another's result: {call}")
        if not error and not ran[call["key"]]:
            broken.append(f"a call that did not run has a result: {call}")
        if error in NOT_RUN and ran[call["key"]]:
            broken.append(f"a call ran, and it was said that it did not: {call}")
        if error and (not call["typed"] or error not in NOT_RUN | UNKNOWN):
            broken.append(f"a call failed for another reason: {call}")
    if mover.notes.hanging:
        broken.append(f"{mover.notes.hanging} calls hang")
    good = [call for call in calls if not call["error"]]
    lost = [call for call in calls if call["error"] in UNKNOWN]
    return Verdict(
        seconds=round(mover.notes.ended - mover.notes.began, 1),
        changes=sum(latest.values()) - WINDOW * len(latest),
        seen=seen,
        callbacks=callbacks,
        merged=merged,
        calls=len(calls),
        succeeded=len(good),
        ran_twice=sum(1 for times in ran.values() if times > 1),
        failed=dict(Counter(call["error"] for call in calls if call["error"]).most_common()),
        not_run=sum(1 for call in calls if call["error"] in NOT_RUN),
        unknown=len(lost),
        unknown_ran=sum(1 for call in lost if ran[call["key"]]),
        slowest=round(max((call["seconds"] for call in good), default=0.0), 2),
        down={name: round(until - since, 2) for name, since, until in mover.notes.down},
        bridge_down=[round(until - since, 2) for since, until in mover.notes.bridge_down],
        said=dict(Counter(_said(call) for call in calls if call["error"])),
        broken=broken,
    )


def _said(call: dict[str, Any]) -> str:
    return f"{call['life']}, {call['service']}: {call['error']}: {call['message'].partition('; known')[0]}"


def _judge_changes(mover: Mover, latest: Mapping[str, int], broken: list[str]) -> tuple[int, int, int]:
    """Every life of a watcher has seen every row of a table come once, in order, from its first state on; the next life
    goes on where it ended, and the last one has seen the last row. Rows have gone once, in order, too."""
    lives: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for life, table, added, removed, _, _ in read_book(mover.folder / "changes.jsonl"):
        lives[life, table].append((added, removed))
    seen = callbacks = merged = 0
    upto: dict[tuple[str, str], int] = {}  # watcher, table -> the last row that its lives so far have seen
    for (life, table), changes in lives.items():
        where = f"{life} of {table}"
        came = gone = 0
        for number, (added, removed) in enumerate(changes):
            callbacks += 1
            if len(added) != 1 or len(removed) > 1:
                broken.append(f"{where}: not one piece: came {added}, went {removed}")
                break
            first, last = added[0]
            seen += last - first + 1
            if number == 0:
                watcher = life.partition("@")[0], table
                if removed or last - first + 1 != WINDOW:
                    broken.append(f"{where}: began with {added}, and {removed} went")
                if first > upto.get(watcher, first) + 1:
                    broken.append(f"{where}: began with {first}, after {upto[watcher]}")
                came, gone = last, first - 1
                continue
            merged += last != first
            if first != came + 1 or (removed and removed[0][0] != gone + 1):
                broken.append(f"{where}: after {came} came {added}, after {gone} went {removed}")
                break
            came = last
            gone = removed[0][1] if removed else gone
            if came - gone != WINDOW:
                broken.append(f"{where}: {gone + 1} to {came} is no state of the table")
                break
        upto[life.partition("@")[0], table] = came
    watchers = {life.partition("@")[0] for life, _ in lives}
    for watcher in watchers:
        for table, last in latest.items():
            if upto.get((watcher, table)) != last:
                broken.append(f"{watcher} has seen {table} up to {upto.get((watcher, table))}, not {last}")
    return seen, callbacks, merged
