"""What the rules of `dse.core.membership` make of a bus of `nodes` nodes: rates a second, times in seconds.

With n nodes, H = `HEARTBEATS_PER_SECOND`, A = `ANSWERS_PER_SECOND` and a base interval b. docs/scale.md has them beside
what is measured.
"""

from __future__ import annotations

import math

from dse.core.membership import (
    ANSWERS_PER_SECOND,
    AT_ONCE,
    DEAD_AFTER,
    HEARTBEATS_PER_SECOND,
    JOIN_WINDOW,
    SUSPECT_AFTER,
)

__all__ = [
    "busiest",
    "dead",
    "interval",
    "join",
    "joiner_catalogues",
    "joiner_knows_all",
    "joiner_messages",
    "leave",
    "reconnect_messages",
    "start_messages",
    "steady_messages",
    "suspect",
]

JITTER = 0.925  # of the interval passes between two heartbeats, in the mean
LATENCY = 0.005  # seconds that the bus may take


def interval(nodes: int, base: float = 1.0) -> float:
    """Seconds that a heartbeat promises: max(b, n / H)."""
    return max(base, nodes / HEARTBEATS_PER_SECOND)


def steady_messages(nodes: int) -> float:
    """Heartbeats that a node receives in a second, its own included: n / (0.925 interval), at most H / 0.925."""
    return nodes / (JITTER * interval(nodes))


def joiner_catalogues(nodes: int) -> float:
    """Catalogues that a joining node receives in its first second: all n at once up to 50 nodes, else A a second."""
    return nodes if nodes <= AT_ONCE else min(nodes, ANSWERS_PER_SECOND)


def joiner_messages(nodes: int) -> float:
    """What a joining node receives in its first second: heartbeats, answers, and its own joining."""
    return steady_messages(nodes) + joiner_catalogues(nodes) + 2


def reconnect_messages(nodes: int) -> float:
    """After an outage all speak once, spread over an interval as their heartbeats are; up to 50 nodes all at once."""
    return max(min(nodes, AT_ONCE), steady_messages(nodes))


def start_messages(nodes: int, seconds: float) -> float:
    """All n start within some seconds: three messages a start, and what a joining node receives.

    Two messages say that it joins and what it offers; its first heartbeat comes at the pace of a small bus, for it does
    not know everybody yet.
    """
    return 3 * nodes / seconds + joiner_messages(nodes)


def busiest(rate: float) -> float:
    """The busiest second of many when messages come at random at a mean rate: three standard deviations more."""
    return rate + 3 * math.sqrt(rate)


def join(nodes: int) -> float:
    """Until all know a newcomer and what it offers: it hears itself, waits `JOIN_WINDOW`, tells. Of any size."""
    return JOIN_WINDOW + 2 * LATENCY


def joiner_knows_all(nodes: int) -> float:
    """Until a newcomer knows all and what they offer: n / A, at once up to 50 nodes."""
    return 2 * LATENCY if nodes <= AT_ONCE else nodes / ANSWERS_PER_SECOND + 2 * LATENCY


def leave(nodes: int) -> float:
    """Until all know that a node left: one message."""
    return LATENCY


def suspect(nodes: int) -> float:
    """Until all take a killed node for SUSPECT, at the latest: 3 intervals; at the soonest 2."""
    return SUSPECT_AFTER * interval(nodes)


def dead(nodes: int) -> float:
    """Until all take a killed node for DEAD, at the latest: 5 intervals; at the soonest 4."""
    return DEAD_AFTER * interval(nodes)
