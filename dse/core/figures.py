"""What a node counts of itself, for whoever looks: monotonic counters, gauges, and how long its calls took.

Rules:

1. Counting is a plain ``+= 1`` without a lock, on whichever thread is there: a lost count does no harm, a lock on the
   way of every message would. Tables count nothing: the number of a table's changes is its seq. How long a call took is
   noted; the histogram is made of it when somebody looks.
2. Nothing is computed until somebody asks (`FIGURES`, a method that every node answers, on the thread that received the
   question: busy workers do not keep a node from telling that they are busy).
3. Who asks makes rates out of two answers; that the instance is another one says that the counters began anew.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = [
    "BUILTINS",
    "EDGES",
    "FIGURES",
    "MOST_CELLS",
    "MOST_FIRST_ROWS",
    "MOST_TABLES",
    "ROWS",
    "TYPES",
    "FirstRows",
    "Traffic",
    "is_figures",
    "is_types",
    "quantile",
]

FIGURES = "_dse_figures"
"""The node method that answers with the figures; no endpoint can clash with it, for theirs do not begin with ``_``."""

TYPES = "_dse_types"
"""The node method that answers which types the columns of its tables hold, by a look at some rows of each."""

ROWS = "_dse_rows"
"""The node method that answers with some rows of a table and their number: a first look, without following it."""

BUILTINS = frozenset((FIGURES, TYPES, ROWS))
"""The methods of every node, by which tools look at it: no calls of the application, so no traces are made of them."""

MOST_FIRST_ROWS = 1_000


class FirstRows(msgspec.Struct, frozen=True):
    """What `ROWS` is asked: `most` rows of a table."""

    service: str
    table: str
    most: int


MOST_CELLS = 20_000
"""Cells that a node looks at to tell the types of its columns: it does so on the thread that received the question."""

MOST_TABLES = 500
"""Tables of which a node tells one by one; the counters include the others."""

RECENT = 4096
"""Calls between two looks whose times are known: of more, the latest."""

_LEAST, _MOST = -20, 7  # powers of two of seconds, about 1 us and 128 s
EDGES = tuple(math.ldexp(4 + step, power - 2) for power in range(_LEAST, _MOST) for step in range(4))
"""Seconds at which a bucket of the histogram ends and the next begins, four from one power of two to the next.

The first bucket holds all below, the last all above."""


class Traffic:
    """The counters of one life of a node that nothing else keeps."""

    def __init__(self) -> None:
        self.messages_in = self.messages_out = 0
        self.calls_made = self.call_errors = 0
        self.serve_errors = self.refused = 0
        self.calls_served = 0
        self.took: deque[float] = deque(maxlen=RECENT)
        """Seconds that calls took to serve, since somebody last looked: appended to in place."""
        self._served = [0] * (len(EDGES) + 1)
        self._seconds = 0.0  # of all that is in _served
        self._lock = threading.Lock()  # protects _served and _seconds

    def served(self) -> dict[int, int]:
        """Return the histogram of the seconds that calls took, by the places of its buckets that hold something."""
        with self._lock:
            for _ in range(len(self.took)):
                seconds = self.took.popleft()
                self._seconds += seconds
                self._served[bisect(EDGES, seconds)] += 1
            return {place: count for place, count in enumerate(self._served) if count}

    @property
    def seconds(self) -> float:
        """The seconds that the calls in the histogram took together, as `served` last returned it."""
        return self._seconds

    def counters(self) -> dict[str, int]:
        """Return the counters by name."""
        return {
            "calls_served": self.calls_served,
            "serve_errors": self.serve_errors,
            "refused": self.refused,
            "calls_made": self.calls_made,
            "call_errors": self.call_errors,
            "messages_in": self.messages_in,
            "messages_out": self.messages_out,
        }


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """Return the seconds within which this share (0 to 1) of what was counted lies; None when nothing was.

    counts: of a histogram by `EDGES`, by place; may be the difference of two. Within a bucket it is interpolated.
    """
    placed = sorted((place, count) for place, count in counts.items() if count > 0 and 0 <= place <= len(EDGES))
    left = share * sum(count for _, count in placed)
    for place, count in placed:
        if count >= left:
            lower = EDGES[place - 1] if place else 0.0
            upper = EDGES[min(place, len(EDGES) - 1)]
            return lower + (upper - lower) * left / count
        left -= count
    return EDGES[-1] if placed else None


def is_figures(answer: Any) -> bool:
    """Whether this is an answer to `FIGURES`: a peer may say anything."""
    return isinstance(answer, dict) and all(
        isinstance(answer.get(part), dict) for part in ("counters", "gauges", "served", "tables")
    )


def is_types(name: Any, columns: Any) -> bool:
    """Whether this is what `TYPES` says of one table: a peer may say anything."""
    return (
        isinstance(name, str)
        and isinstance(columns, list)
        and all(isinstance(types, list) and all(isinstance(each, str) for each in types) for types in columns)
    )
