"""Draws the protocol's state machines from the machines themselves: `python tools/machines.py` writes docs/concepts/.

Nobody writes down the transitions. Each machine of `dse.core` is driven through random histories of what may happen to
it, and every change of its state is noted with what caused it. The page and the drawings are what was seen; a test
(tests/unit/test_docs.py) draws them anew and fails when they differ.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path

from dse.core.calls import Call, PendingCalls
from dse.core.membership import Membership, NodeState
from dse.core.messages import Catalogue, CatchUp, Clash, Heartbeat, Leave, NoTable, SnapshotBegin, SnapshotChunk, Tip
from dse.core.replica import ReplicaMachine, ReplicaState
from dse.core.rows import digest

HISTORIES = 400
STEPS = 40
NEW = "(unknown)"
ENDED = "(ended)"

Seen = Counter[tuple[str, str, str]]  # before, after, cause -> how often


def own_node() -> Seen:
    """This node's own state."""
    seen: Seen = Counter()
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        machine = Membership("a", "a/1", 1.0, lambda: ([], []), rng)
        now = 0.0
        machine.start(now)

        def note(before: str, cause: str, machine: Membership = machine) -> str:
            after = ENDED if machine.clash is not None else machine.state.value
            if after != before:
                seen[before, after, cause] += 1
            return after

        state = note(NEW, "start()")
        for _ in range(STEPS):
            now += rng.choice((0.05, 0.2, 1.0))
            what = rng.randrange(4)
            if what == 0:
                machine.heartbeat(now, Heartbeat("a", "a/1", now, 1.0, 0, True))
                state = note(state, "its own heartbeat is heard")
            elif what == 1:
                machine.tick(now)
                state = note(state, "nobody objected for 150 ms")
            elif what == 2 and rng.random() < 0.1:
                machine.clashed(now, Clash("a", "a/1", "a/0", machine.state is NodeState.JOINING))
                state = note(state, "an older node of its name: NodeIdClash")
            elif what == 3 and rng.random() < 0.1 and state == "JOINED":
                machine.leave()
                state = note(state, "stop()")
            if state in (ENDED, "LEFT"):
                break
    return seen


def peer() -> Seen:
    """A peer, as a node sees it."""
    seen: Seen = Counter()
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        machine = Membership("a", "a/1", 1.0, lambda: ([], []), rng)
        now = 0.0
        machine.start(now)
        machine.heartbeat(now, Heartbeat("a", "a/1", 0.0, 1.0, 0, True))
        now = 1.0
        machine.tick(now)
        state = NEW

        def note(cause: str, before: str, machine: Membership = machine) -> str:
            found = machine.peers.get("b/1")
            after = found.state.value if found is not None else NEW
            if after != before:
                seen[before, after, cause] += 1
            return after

        for _ in range(STEPS):
            what = rng.randrange(12)
            if what < 3:
                machine.heartbeat(
                    now, Heartbeat("b", "b/1", now, 1.0, 0, joining=state in (NEW, "JOINING") and rng.random() < 0.5)
                )
                state = note("a heartbeat", state)
            elif what == 3:
                machine.catalogue_of(now, Catalogue("b", "b/1", now, 1.0, 1, []))
                state = note("a catalogue", state)
            elif what == 4 and rng.random() < 0.5:
                machine.left(now, Leave("b", "b/1"))
                state = note("it says that it leaves", state)
            elif what == 5 and rng.random() < 0.5:
                machine.heartbeat(now, Heartbeat("b", "b/2", 0.1, 1.0, 0))
                state = note("a new life of its name has joined", state)
                machine.left(now, Leave("b", "b/2"))
            else:
                for _ in range(rng.choice((1, 1, 4, 70))):
                    now += 1.0
                    machine.tick(now)
                    silent = {"SUSPECT": "silence of 3 intervals", "DEAD": "silence of 5 intervals", NEW: "60 s later"}
                    found = machine.peers.get("b/1")
                    state = note(silent.get(found.state.value if found is not None else NEW, "time"), state)
    return seen


def replica() -> Seen:
    """A replica of a table."""
    seen: Seen = Counter()
    columns = ("n",)
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        machine = ReplicaMachine("s", "t", "me/1")
        now = 0.0

        def note(cause: str, before: str, machine: ReplicaMachine = machine) -> str:
            after = machine.state.value
            if after != before:
                seen[before, after, cause] += 1
            return after

        state = note("subscribe()", NEW)
        for _ in range(STEPS):
            now += 0.1
            what = rng.randrange(9)
            if what <= 1:
                live = [[], ["p/1"], ["p/2"], ["p/1", "p/2"]][rng.randrange(4)]
                had = machine.publisher
                machine.publishers(now, live)
                cause = (
                    "its publisher is gone, there is no other"
                    if machine.publisher is None
                    else "follows another publisher"
                )
                state = note(cause if had is not None else "there is a publisher", state)
            elif what == 2 and not machine._listening:
                machine.listening(now, machine.publisher or "")
                state = note("listens", state)
            elif what == 3:
                machine.disconnected()
                state = note("the connection to the broker is lost", state)
            elif what == 4:
                machine.connected(now)
                state = note("the connection is back", state)
            elif what <= 6 and machine.publisher is not None:
                rows = {(rng.randrange(9),) for _ in range(3)}
                total = digest("s.t", columns, rows)
                machine.snapshot_begin(
                    now, SnapshotBegin(machine.request, machine.publisher, columns, 1, len(rows), total)
                )
                machine.snapshot_chunk(now, SnapshotChunk(machine.request, 0, frozenset(rows)))
                state = note("all its rows have come", state)
            elif what == 7 and machine.publisher is not None:
                machine.catch_up(
                    now, CatchUp(machine.request, machine.epoch, columns, [], machine.version[1], machine.digest)
                )
                state = note("what was missing has come", state)
            elif what == 8:
                machine.tip(
                    now, Tip(machine.epoch, machine.version[1] + rng.randrange(2), machine.digest + rng.randrange(2))
                )
                state = note("a gap, or a wrong digest", state)
            if rng.random() < 0.03:
                machine.no_table(now, NoTable(machine.request))
                state = note("its publisher has no such table", state)
            if rng.random() < 0.03 and machine.publisher is not None:
                machine.no_table(now, NoTable(machine.request, "no"))
                state = note("its publisher may not be followed", state)
    return seen


def call() -> Seen:
    """A call that waits for its answer."""
    seen: Seen = Counter()
    names = {(False, False): "sent to the bus", (True, False): "sent to a node", (True, True): "accepted"}
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        calls = PendingCalls("me/1")
        waiting = Call(1, "s", "m", 0.0, 5.0, *(("b/1", "b") if rng.random() < 0.5 else (None, None)), None)
        waiting.sent = True
        calls.add(waiting)
        now = 0.0

        def where(waiting: Call = waiting, calls: PendingCalls = calls) -> str:
            return names[waiting.instance is not None, waiting.accepted] if 1 in calls.calls else ENDED

        state = where()
        seen[NEW, state, "call()" if waiting.instance is None else "call(), a replica is known"] += 1
        while state != ENDED:
            now += rng.choice((0.1, 1.0, 5.0))
            steps: list[tuple[str, Callable[[], object]]] = [
                ("the callee says that it has it", partial(calls.accepted, 1, "b/1", "b")),
                ("the answer, or a failure", partial(calls.take, 1)),
                ("the callee's node died or left: NodeLost", partial(calls.gone, ["b/1"])),
                ("asked, the callee knows it not: NodeLost", partial(calls.unknown, 1, "b/1")),
                ("the deadline: CallTimeout", partial(calls.tick, now)),
            ]
            cause, step = steps[rng.randrange(len(steps))]
            step()
            after = where()
            if after != state:
                seen[state, after, cause] += 1
            state = after
    return seen


MACHINES: list[tuple[str, str, str, Callable[[], Seen], list[str]]] = [
    ("node", "This node", "dse/core/membership.py", own_node, [NEW, "JOINING", "JOINED", "LEFT", ENDED]),
    ("peer", "A peer, as a node sees it", "dse/core/membership.py", peer, [NEW, *(s.value for s in NodeState)]),
    ("replica", "A replica of a table", "dse/core/replica.py", replica, [NEW, *(s.value for s in ReplicaState)]),
    (
        "call",
        "A call that waits",
        "dse/core/calls.py",
        call,
        [NEW, "sent to the bus", "sent to a node", "accepted", ENDED],
    ),
]


def transitions(seen: Seen) -> dict[tuple[str, str], list[str]]:
    """Return what leads from a state to another."""
    found: dict[tuple[str, str], list[str]] = {}
    for before, after, cause in sorted(seen):
        found.setdefault((before, after), []).append(cause)
    return found


def drawing(title: str, states: list[str], edges: dict[tuple[str, str], list[str]]) -> str:
    """Return an SVG: the states on a circle, and an arrow for each transition; causes are numbered as in the table."""
    size, radius, middle = 560, 190, 280
    places = {
        state: (
            middle + radius * math.sin(2 * math.pi * index / len(states)),
            middle - radius * math.cos(2 * math.pi * index / len(states)),
        )
        for index, state in enumerate(states)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{size}" height="{size}" fill="#fff"/>',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#1f6f68"/></marker></defs>',
    ]
    for number, (before, after) in enumerate(sorted(edges), 1):
        (x1, y1), (x2, y2) = places[before], places[after]
        length = math.hypot(x2 - x1, y2 - y1)
        ux, uy = (x2 - x1) / length, (y2 - y1) / length
        # Bent to the right, so that an arrow and its way back lie side by side.
        bx, by = (x1 + x2) / 2 - uy * 34, (y1 + y2) / 2 + ux * 34
        sx, sy = x1 + ux * 46 - uy * 12, y1 + uy * 28 + ux * 12
        ex, ey = x2 - ux * 50 - uy * 12, y2 - uy * 30 + ux * 12
        parts.append(
            f'<path d="M{sx:.0f} {sy:.0f}Q{bx:.0f} {by:.0f} {ex:.0f} {ey:.0f}" fill="none" stroke="#1f6f68" '
            f'stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        mx, my = (sx + 2 * bx + ex) / 4, (sy + 2 * by + ey) / 4
        parts.append(f'<circle cx="{mx:.0f}" cy="{my:.0f}" r="10" fill="#fff" stroke="#1f6f68"/>')
        parts.append(f'<text x="{mx:.0f}" y="{my + 5:.0f}" text-anchor="middle" font-size="12">{number}</text>')
    for state, (x, y) in places.items():
        width = 30 + 8 * len(state)
        parts.append(
            f'<rect x="{x - width / 2:.0f}" y="{y - 19:.0f}" width="{width}" height="38" rx="19" '
            f'fill="#eef5f4" stroke="#333"/>'
        )
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(state)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def pages() -> dict[str, str]:
    """Return what is to stand in docs/concepts/, by file name."""
    files: dict[str, str] = {}
    lines = [
        "# The state machines",
        "",
        "Drawn by `python tools/machines.py` from the machines in `dse/core/` themselves: each was driven through "
        f"{HISTORIES} random\nhistories, and every change of state that was seen is here with what caused it. "
        "The rules in words stand at the top of each file.",
    ]
    for name, title, source, explore, states in MACHINES:
        edges = transitions(explore())
        used = [state for state in states if any(state in edge for edge in edges)]
        files[f"{name}.svg"] = drawing(title, used, edges)
        lines += [
            "",
            f"## {title}",
            "",
            f"`{source}`",
            "",
            f"![{title}]({name}.svg)",
            "",
            "| | from | to | when |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {number} | {before} | {after} | {'; '.join(edges[before, after])} |"
            for number, (before, after) in enumerate(sorted(edges), 1)
        ]
    files["machines.md"] = "\n".join(lines) + "\n"
    return files


def main() -> int:
    """Write the files."""
    into = Path(__file__).parent.parent / "docs" / "concepts"
    into.mkdir(exist_ok=True)
    for name, text in pages().items():
        (into / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
