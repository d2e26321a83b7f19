"""The pending calls, told anything at any time: every call ends once, none is kept beyond its deadline."""

from __future__ import annotations

from dse.core.calls import Call, PendingCalls
from fuzz.draw import Draw, Exhausted

SEEDS = [bytes([start + 5 * step & 255 for step in range(100)]) for start in range(0, 256, 40)]


def run(data: bytes) -> None:
    draw = Draw(data, ["p/1", "q/1"])
    pending = PendingCalls("me/1")
    now, number = 0.0, 0
    open_calls: set[int] = set()
    try:
        while True:
            now += draw.choice((0.0, 0.01, 0.5, 5.0))
            what = draw.below(8)
            if what < 3:
                number += 1
                instance = draw.choice(["p/1", "q/1", None])
                timeout = draw.choice((0.0, 0.1, 1.0, 30.0))
                call = Call(number, "s", "m", now, now + timeout, instance, None, None, sent=draw.flag())
                pending.add(call)
                open_calls.add(number)
            elif what == 3:
                pending.accepted(draw.int(), draw.name(), draw.name())
            elif what == 4:
                _ended(open_calls, pending.unknown(draw.int(), draw.name()))
            elif what == 5:
                _ended(open_calls, pending.take(draw.int()))
            elif what == 6:
                for call in pending.gone([draw.name()]):
                    _ended(open_calls, call)
            expired, probes = pending.tick(now)
            assert len(probes) <= len(open_calls)
            for call in expired:
                _ended(open_calls, call)
            assert pending.calls.keys() == open_calls
            assert all(call.deadline > now for call in pending.calls.values())
            assert pending.wakeup > now
            for call in pending.calls.values():
                call.progress()
    except Exhausted:
        pass


def _ended(open_calls: set[int], call: Call | None) -> None:
    if call is not None:
        open_calls.remove(call.id)
