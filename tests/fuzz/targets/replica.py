"""The subscriber's machine, told anything at any time: it never raises, keeps within its bounds, asks with patience.

The sum of what it reports is always its rows; it is LIVE only where the rows have the digest that was announced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dse.core import limits
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    Changes,
    NoTable,
    SnapshotBegin,
    SnapshotChunk,
    SyncRequest,
    Tip,
)
from dse.core.replica import ASKS, ASKS_PER_SECOND, ReplicaMachine, ReplicaState
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([start + 13 * step & 255 for step in range(150)]) for start in range(0, 256, 20)]


def run(data: bytes) -> None:
    draw = Draw(data, ["p/1", "q/1", "epoch", "epoch", "s", "t"])
    machine = ReplicaMachine("s", "t", "me/1", 5 << 32)
    now, asked = 0.0, 0
    rows: set[Any] = set()
    effects = machine.publishers(now, ["p/1"])
    effects += machine.listening(now, "p/1")
    try:
        while True:
            now += draw.choice((0.0, 0.0, 0.0, 0.01, 0.1, 1.0, 20.0))
            deltas, effects = _step(machine, now, draw)
            asked += sum(isinstance(getattr(effect, "message", None), SyncRequest) for effect in effects)
            assert asked <= ASKS + ASKS_PER_SECOND * now + 1
            for delta in deltas:
                assert rows.isdisjoint(delta.added - rows)
                assert delta.removed <= rows
                assert not (delta.added & rows)
                rows -= delta.removed
                rows |= delta.added
            assert rows == machine.view()
            assert machine._buffered <= limits.WAITING_BYTES
            assert not math.isnan(machine.wakeup)
            if machine.state is ReplicaState.LIVE:
                assert machine.publisher is not None
                assert machine._loading is None
    except Exhausted:
        pass


def _step(machine: ReplicaMachine, now: float, draw: Draw) -> tuple[list[Any], list[Any]]:
    what = draw.below(24)
    number = machine.request if draw.byte() < 200 else draw.int()
    epoch = machine.epoch if draw.flag() else draw.name()
    tell: dict[int, Callable[[], tuple[list[Any], list[Any]]]] = {
        **dict.fromkeys((0, 1, 2), lambda: machine.change(now, _change(machine, draw, epoch))),
        3: lambda: machine.changes(now, [_change(machine, draw, epoch, step) for step in range(draw.below(4) + 1)]),
        4: lambda: machine.changes(now, draw.message([Changes]).changes or [draw.change()]),  # type: ignore[union-attr]
        **dict.fromkeys((5, 6), lambda: ([], machine.tip(now, Tip(epoch, _near(machine, draw), draw.int())))),
        **dict.fromkeys((7, 8, 9), lambda: machine.catch_up(now, _catch_up(machine, draw, number, epoch))),
        **dict.fromkeys((10, 11, 12), lambda: machine.snapshot_begin(now, _begin(draw, number, epoch))),
        **dict.fromkeys((13, 14, 15), lambda: machine.snapshot_chunk(now, _chunk(machine, draw, number))),
        16: lambda: ([], machine.no_table(now, NoTable(number, draw.name() if draw.flag() else ""))),
        **dict.fromkeys((17, 18, 19), lambda: ([], machine.tick(now))),
    }
    if what in tell:
        return tell[what]()
    if what == 20:
        return [], machine.publishers(now, [draw.name()] if draw.flag() else [])
    if what == 21:
        return [], machine.listening(now, machine.publisher or "")
    if what == 22:
        machine.disconnected()
        return [], []
    return [], machine.connected(now)


def _near(machine: ReplicaMachine, draw: Draw) -> int:
    return machine.seq + draw.below(4) - 1 if draw.flag() else draw.int()


def _change(machine: ReplicaMachine, draw: Draw, epoch: str, step: int = 0) -> ChangeMessage:
    made = draw.change()
    seq = machine.seq + 1 + step if draw.byte() < 200 else draw.int()
    return type(made)(epoch, seq, made.added, made.removed, made.plus, made.minus)


def _catch_up(machine: ReplicaMachine, draw: Draw, number: int, epoch: str) -> CatchUp:
    made = draw.message([CatchUp])
    assert isinstance(made, CatchUp)
    digest = machine.digest if draw.flag() else made.digest
    return CatchUp(number, epoch, made.columns, made.changes, _near(machine, draw), digest)


def _begin(draw: Draw, number: int, epoch: str) -> SnapshotBegin:
    return SnapshotBegin(number, epoch, draw.columns(), draw.int(), draw.int(), draw.int())


def _chunk(machine: ReplicaMachine, draw: Draw, number: int) -> SnapshotChunk:
    loading = machine._loading
    index = loading.chunks if loading is not None and draw.byte() < 220 else draw.int()
    return SnapshotChunk(number, index, draw.rows())
