"""PendingCalls: a call ends once, at its time, and says how far it got; the rules of calls.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dse.core.calls import PROBE_FIRST, Call, PendingCalls
from dse.core.messages import Probe, instance_address


def call(number: int, timeout: float = 10.0, instance: str | None = "b/1", started: float = 0.0) -> Call:
    return Call(number, "s", "m", started, started + timeout, instance, "b" if instance else None, None, sent=True)


def test_a_call_ends_once() -> None:
    pending = PendingCalls("a/1")
    one = call(1)
    pending.add(one)
    assert pending.take(1) is one
    assert pending.take(1) is None
    assert pending.unknown(1, "b/1") is None
    assert pending.gone(["b/1"]) == []
    assert pending.tick(100.0) == ([], [])
    assert pending.wakeup == math.inf


def test_a_call_expires_at_its_deadline_and_not_before() -> None:
    pending = PendingCalls("a/1")
    one = call(1, timeout=3.0)
    pending.add(one)
    now = 0.0
    while True:
        assert pending.wakeup <= 3.0
        now = pending.wakeup
        expired, _ = pending.tick(now)
        if expired:
            break
        assert pending.wakeup > now
    assert expired == [one]
    assert now == 3.0
    assert not pending.calls


def test_a_long_call_is_asked_for_with_growing_patience() -> None:
    pending = PendingCalls("a/1")
    pending.add(call(1, timeout=60.0))
    times = []
    while pending.wakeup < 60.0:
        now = pending.wakeup
        expired, probes = pending.tick(now)
        assert not expired
        for probe in probes:
            assert (probe.address, probe.message) == (instance_address("b/1"), Probe(1, "a/1"))
            times.append(now)
    assert times[0] == PROBE_FIRST
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= 10.0
    assert 5 <= len(times) < 30


def test_a_call_that_nobody_has_yet_is_not_asked_for() -> None:
    pending = PendingCalls("a/1")
    pending.add(call(1, instance=None))
    _, probes = pending.tick(PROBE_FIRST)
    assert probes == []
    pending.accepted(1, "c/1", "c")
    _, probes = pending.tick(pending.wakeup)
    assert [probe.address for probe in probes] == [instance_address("c/1")]


def test_a_call_whose_request_is_still_being_sent_is_not_asked_for() -> None:
    pending = PendingCalls("a/1")
    large = call(1)
    large.sent = False
    pending.add(large)
    assert pending.tick(PROBE_FIRST) == ([], [])
    large.sent = True
    assert len(pending.tick(pending.wakeup)[1]) == 1


def test_an_unknown_call_has_ended_if_it_was_with_that_node() -> None:
    pending = PendingCalls("a/1")
    one, two = call(1), call(2, instance="c/1")
    pending.add(one)
    pending.add(two)
    assert pending.unknown(2, "b/1") is None
    assert pending.unknown(1, "b/1") is one
    assert list(pending.calls) == [2]


def test_the_calls_of_nodes_that_are_gone_have_ended() -> None:
    pending = PendingCalls("a/1")
    calls = [call(1), call(2, instance="c/1"), call(3, instance=None), call(4)]
    for each in calls:
        pending.add(each)
    assert pending.gone(["b/1", "x/1"]) == [calls[0], calls[3]]
    assert list(pending.calls) == [2, 3]


def test_how_far_a_call_got_is_known() -> None:
    pending = PendingCalls("a/1")
    nobody, sent = call(1, instance=None), call(2)
    pending.add(nobody)
    pending.add(sent)
    assert "no node has accepted it" in nobody.progress()
    assert "'b', which has not confirmed" in sent.progress()
    pending.accepted(1, "c/1", "c")
    assert "accepted by node 'c'" in nobody.progress()
    assert "s.m" in nobody.progress()
    assert "ping" in Call(3, None, "ping", 0.0, 1.0, None, None, None).progress()
    pending.accepted(99, "c/1", "c")  # one that has ended


steps = st.lists(
    st.tuples(st.sampled_from(["add", "take", "accept", "unknown", "gone", "wait"]), st.integers(0, 9)), max_size=60
)


@given(steps)
def test_whatever_happens_every_call_ends_exactly_once_and_no_later_than_its_deadline(steps: list[Any]) -> None:
    pending = PendingCalls("a/1")
    now = 0.0
    number = 0
    open_calls: dict[int, Call] = {}

    def ended(call: Call) -> None:
        assert open_calls.pop(call.id) is call

    for what, value in steps:
        if what == "add":
            number += 1
            open_calls[number] = call(number, 0.5 + value, None if value % 3 == 0 else f"i/{value % 4}", now)
            pending.add(open_calls[number])
        elif what == "take" and (taken := pending.take(number - value)) is not None:
            ended(taken)
        elif what == "accept":
            pending.accepted(number - value, f"i/{value % 4}", "n")
        elif what == "unknown" and (lost := pending.unknown(number - value, f"i/{value % 4}")) is not None:
            ended(lost)
        elif what == "gone":
            for gone in pending.gone([f"i/{value % 4}"]):
                ended(gone)
        elif what == "wait":
            now += value / 4
            for expired in pending.tick(now)[0]:
                ended(expired)
        assert pending.calls == open_calls
        assert all(each.deadline > now for each in open_calls.values()) or what != "wait"
        assert pending.wakeup <= min((each.deadline for each in open_calls.values()), default=math.inf)
    for expired in pending.tick(now + 100)[0]:
        ended(expired)
    assert not open_calls
    assert pending.wakeup == math.inf
