"""What a node counts of itself, for whoever looks: monotonic counters, gauges, and how long its calls took.

Rules:

1. Counting is a plain ``+= 1`` without a lock, on whichever thread is there: a lost count does no harm, a lock on the
   way of every message would. Tables count nothing: the number of a table's changes is its seq.
2. Nothing is computed until somebody asks (`FIGURES`, a method that every node answers, on the thread that received the
   question: busy workers do not keep a node from telling that they are busy).
3. Who asks makes rates out of two answers; that the instance is another one says that the counters began anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["FIGURES", "MOST_TABLES", "Latencies", "Traffic", "is_figures", "quantile"]

FIGURES = "_dse_figures"
"""The node method that answers with the figures; no endpoint can clash with it, for theirs do not begin with ``_``."""

MOST_TABLES = 500
"""Tables of which a node tells one by one; the counters include the others."""

_STEPS = 4  # buckets from one power of two to the next
_LEAST = -20  # the first bucket ends above 2**-20 s, about 1 us
_BUCKETS = 28 * _STEPS  # the last one holds all above 128 s


class Latencies:
    """A histogram of seconds with buckets that grow by a quarter of a power of two: bounded, exact to about a tenth."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS

    def took(self, seconds: float) -> None:
        """Count one."""
        part, power = math.frexp(seconds)
        place = (power - _LEAST) * _STEPS + int(part * 8) - 4
        self.counts[place if 0 <= place < _BUCKETS else (0 if place < 0 else -1)] += 1

    def sparse(self) -> dict[int, int]:
        """Return the buckets that hold something, by their places."""
        return {place: count for place, count in enumerate(self.counts) if count}


class Traffic:
    """The counters of one life of a node that nothing else keeps."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "call_errors",
        "calls_made",
        "messages_in",
        "messages_out",
        "refused",
        "serve_errors",
        "served",
    )

    def __init__(self) -> None:
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        self.calls_made = self.call_errors = 0
        self.serve_errors = self.refused = 0
        self.served = Latencies()

    def counters(self) -> dict[str, int]:
        """Return the counters by name."""
        return {
            "calls_served": sum(self.served.counts),
            "serve_errors": self.serve_errors,
            "refused": self.refused,
            "calls_made": self.calls_made,
            "call_errors": self.call_errors,
            "messages_in": self.messages_in,
            "messages_out": self.messages_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }


def quantile(counts: dict[int, int] | Sequence[int], share: float) -> float | None:
    """Return the seconds within which this share (0 to 1) of what was counted lies; None when nothing was.

    counts: of `Latencies`, by place; may be the difference of two. Within a bucket it is interpolated.
    """
    placed = sorted(counts.items() if isinstance(counts, dict) else enumerate(counts))
    total = sum(count for _, count in placed if count > 0)
    if not total:
        return None
    wanted, before, upper = share * total, 0, 0.0
    for place, count in placed:
        if count <= 0:
            continue
        lower, upper = _edges(place)
        if before + count >= wanted:
            return lower + (upper - lower) * max(0.0, wanted - before) / count
        before += count
    return upper


def _edges(place: int) -> tuple[float, float]:
    power, step = divmod(place, _STEPS)
    unit: float = math.ldexp(1.0, power + _LEAST) / 8
    return (step + 4) * unit, (step + 5) * unit


def is_figures(answer: Any) -> bool:
    """Whether this is an answer to `FIGURES`: a peer may say anything."""
    return isinstance(answer, dict) and all(
        isinstance(answer.get(part), dict) for part in ("counters", "gauges", "served", "tables")
    )
