"""The ratios that a run must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["RATIOS", "Ratio", "Verdict", "judge"]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two figures: at most `most`, or at least `least`. `value` takes it from the results."""

    what: str
    part: str
    value: Callable[[dict[str, Any]], float]
    most: float = float("inf")
    least: float = 0.0

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"at least {self.least:g}" if self.least else f"at most {self.most:g}"


@dataclass(frozen=True)
class Verdict:
    """What came of one ratio; `value` None: it could not be measured."""

    ratio: Ratio
    value: float | None

    @property
    def good(self) -> bool:
        """Whether it was measured and reached."""
        return self.value is not None and self.ratio.least <= self.value <= self.ratio.most


def _rpc(contestant: str, other: str, what: str) -> Callable[[dict[str, Any]], float]:
    return lambda rpc: float(rpc[contestant][what] / rpc[other][what])


def _fanout(contestant: str, other: str) -> Callable[[dict[str, Any]], float]:
    return lambda fanout: float(fanout[contestant]["8"] / fanout[other]["8"])


def _quotient(*path: str, by: tuple[str, ...]) -> Callable[[dict[str, Any]], float]:
    def value(part: dict[str, Any]) -> float:
        first: Any = part
        for key in path:
            first = first[key]
        second: Any = part
        for key in by:
            second = second[key]
        return float(first / second)

    return value


RATIOS = [
    Ratio("RPC, redis: median, to redis-py by hand", "rpc", _rpc("DSE redis", "redis-py by hand", "median"), most=1.6),
    Ratio("RPC, rabbit: median, to py-amqp by hand", "rpc", _rpc("DSE rabbit", "py-amqp by hand", "median"), most=1.5),
    Ratio(
        "RPC, redis, 16 at once: rate, to redis-py by hand",
        "rpc",
        _rpc("DSE redis", "redis-py by hand", "threads 16"),
        least=0.8,
    ),
    Ratio(
        "RPC, rabbit, 16 at once: rate, to py-amqp by hand",
        "rpc",
        _rpc("DSE rabbit", "py-amqp by hand", "threads 16"),
        least=0.6,
    ),
    Ratio(
        "RPC, rabbit, 16 at once: rate, to oslo.messaging",
        "rpc",
        _rpc("DSE rabbit", "oslo.messaging rabbit", "threads 16"),
        least=6,
    ),
    Ratio(
        "RPC, redis, 16 at once: rate, to FastStream",
        "rpc",
        _rpc("DSE redis", "FastStream redis", "threads 16"),
        least=5,
    ),
    Ratio("RPC, fake: median in microseconds", "rpc", lambda rpc: float(rpc["DSE fake"]["median"] * 1e6), most=60),
    Ratio(
        "RPC, fake: times faster than oslo.messaging's",
        "rpc",
        _rpc("oslo.messaging fake", "DSE fake", "median"),
        least=500,
    ),
    Ratio(
        "fan-out to 8, redis: rate, to redis-py by hand", "fanout", _fanout("DSE redis", "redis-py by hand"), least=0.8
    ),
    Ratio(
        "fan-out to 8, rabbit: rate, to py-amqp by hand", "fanout", _fanout("DSE rabbit", "py-amqp by hand"), least=0.7
    ),
    Ratio(
        "fan-out to 8, rabbit: rate, to oslo.messaging",
        "fanout",
        _fanout("DSE rabbit", "oslo.messaging rabbit"),
        least=8,
    ),
    Ratio(
        "10-row change, table of 1,000,000 to one of 1,000 rows",
        "changes",
        _quotient("by table size", "1000000", "median", by=("by table size", "1000", "median")),
        most=1.3,
    ),
    Ratio(
        "replace of one row in 1,000,000, to a set difference",
        "changes",
        _quotient("replace", by=("difference",)),
        most=1.3,
    ),
    Ratio("first sync of 1,000,000 rows, redis: to by hand", "sync", _quotient("DSE redis", by=("by hand",)), most=2.5),
    Ratio(
        "memory of a replica, to the set of its rows",
        "sync",
        _quotient("memory of a replica", by=("memory of a set",)),
        most=1.25,
    ),
    *(
        Ratio(
            f"idle node with 100 tables, {broker}: percent of a core",
            "idle",
            lambda idle, broker=broker: float(idle[broker]["100"] * 100),  # type: ignore[misc]
            most=0.3,
        )
        for broker in ("redis", "rabbit")
    ),
    *(
        Ratio(
            f"500 services, {broker}: start in seconds",
            "services",
            lambda s, b=broker: float(s[b]["slowest start"]),
            most=3,
        )  # type: ignore[misc]
        for broker in ("fake", "redis", "rabbit")
    ),
    *(
        Ratio(
            f"500 services, {broker}: call, to one service",
            "services",
            _quotient(broker, "call, 500 services", by=(broker, "call, one service")),
            most=1.2,
        )
        for broker in ("fake", "redis", "rabbit")
    ),
]


def judge(results: dict[str, Any]) -> list[Verdict]:
    """Return a verdict on every ratio of the parts that were run."""
    verdicts = []
    for ratio in RATIOS:
        if ratio.part not in results:
            continue
        try:
            value: float | None = ratio.value(results[ratio.part])
        except (KeyError, ZeroDivisionError):
            value = None
        verdicts.append(Verdict(ratio, value))
    return verdicts
