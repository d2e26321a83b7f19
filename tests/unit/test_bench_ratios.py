"""`make bench` fails when a ratio is missed, and when it could not be measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import compare.ratios

    yield compare.ratios
    for name in [name for name in sys.modules if name.partition(".")[0] == "compare"]:
        del sys.modules[name]


def fanout(redis: float, rabbit: float) -> dict[str, Any]:
    rates = {
        "DSE redis": redis, "redis-py by hand": 1000.0,
        "DSE rabbit": rabbit, "py-amqp by hand": 1000.0, "oslo.messaging rabbit": 100.0,
    }  # fmt: skip
    return {"fanout": {name: {"8": rate} for name, rate in rates.items()}}


def test_only_parts_that_were_run_are_judged(ratios: Any) -> None:
    assert {verdict.ratio.part for verdict in ratios.judge(fanout(900, 900))} == {"fanout"}
    assert ratios.judge({}) == []


def test_ratios_that_are_reached_are_good(ratios: Any) -> None:
    assert [verdict.good for verdict in ratios.judge(fanout(900, 900))] == [True, True, True]


def test_a_ratio_that_is_missed_is_not(ratios: Any) -> None:
    assert [verdict.good for verdict in ratios.judge(fanout(799, 750))] == [False, True, False]


def test_neither_is_one_that_could_not_be_measured(ratios: Any) -> None:
    results = fanout(900, 900)
    del results["fanout"]["oslo.messaging rabbit"]
    assert [verdict.good for verdict in ratios.judge(results)] == [True, True, False]


def test_a_change_is_judged_by_the_sizes_of_the_tables(ratios: Any) -> None:
    took = {size: {"median": seconds, "p99": 1.0} for size, seconds in (("1000", 10e-6), ("1000000", 12e-6))}
    results = {"changes": {"by table size": took, "replace": 0.5, "difference": 0.3}}
    verdicts = ratios.judge(results)
    assert [round(verdict.value, 2) for verdict in verdicts] == [1.2, 1.67]
    assert [verdict.good for verdict in verdicts] == [True, False]


def test_many_services_are_judged_by_their_slowest_start(ratios: Any) -> None:
    slow = {"start": 1.0, "slowest start": 3.5, "call, one service": 30e-6, "call, 500 services": 33e-6}
    verdicts = ratios.judge({"services": {"fake": slow, "redis": slow, "rabbit": slow}})
    assert [verdict.good for verdict in verdicts] == [False] * 3 + [True] * 3
