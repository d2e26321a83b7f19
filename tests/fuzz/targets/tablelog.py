"""The publisher's machine, asked anything at any time: it never raises, keeps within its bounds, publishes what is."""

from __future__ import annotations

import math
from typing import Any

from dse.core import limits
from dse.core.messages import SyncRequest
from dse.core.rows import digest
from dse.core.tablelog import Sizes, TableLog
from dse.errors import RowError
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([start + 11 * step & 255 for step in range(150)]) for start in range(0, 256, 25)]


def run(data: bytes) -> None:
    draw = Draw(data, ["p/1", "q/1", "r/1", "epoch", "s", "t"])
    log = TableLog("s", "t", ("a", "b"), "me/1", "epoch", Sizes(1 << 12, 1 << 9, 1 << 7, 2))
    now = 0.0
    try:
        while True:
            now += draw.choice((0.0, 0.0, 0.1, 0.5, 5.0, 100.0))
            sends = _step(log, now, draw)
            assert len(sends) <= 3 + 2 * max(1, len(log.subscribers))
            assert len(log.subscribers) <= limits.SUBSCRIBERS
            assert set(log._snapshots) <= set(log.subscribers)
            assert log._log_bytes <= 1 << 9
            assert log.digest == digest("t", log.columns, log.view())
            assert not math.isnan(log.wakeup)
    except Exhausted:
        pass
    for _ in range(5):
        if log.wakeup < math.inf:
            now = max(now, log.wakeup)
            log.tick(now)
            assert log.wakeup > now


def _step(log: TableLog, now: float, draw: Draw) -> list[Any]:
    what = draw.below(16)
    if what < 4:
        request = SyncRequest("s", "t", draw.name(), draw.int(), draw.name(), draw.int())
        return log.sync(now, request)
    if what < 7:
        return log.credit(now, draw.name(), draw.int(), draw.int())
    if what < 9:
        return log.renew(now, draw.name(), (draw.name(), draw.int()) if draw.flag() else None)
    if what < 11:
        try:
            if draw.flag():
                return log.replace(now, draw.rows())[1]
            return log.apply(now, draw.rows(), draw.rows())[1]
        except RowError:
            return []
    if what == 11:
        log.drop(draw.name())
    elif what == 12:
        log.lapse(now, draw.name())
    elif what == 13:
        return log.revive(now, draw.name())
    elif what == 14:
        if draw.flag():
            log.disconnected()
        else:
            return log.connected(now)
    return log.tick(now)
