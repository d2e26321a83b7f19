"""How a change carries its trace: in its frame, through the machines, and to a callback."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from dse.core.effects import Send
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    Changes,
    decode,
    encode_body,
    encode_change,
    encode_changes,
    frame_of,
)
from dse.core.replica import Delta, ReplicaMachine, ReplicaState
from dse.core.table import Change, Replica
from dse.core.tablelog import TableLog

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def change(seq: int, trace: dict[str, str] | None) -> ChangeMessage:
    return ChangeMessage("e", seq, frozenset({(seq,)}), frozenset(), 1, 2, trace)


def test_a_change_without_a_trace_costs_no_byte() -> None:
    class Before(msgspec.Struct, array_like=True, tag=21):
        epoch: str
        seq: int
        added: frozenset[tuple[Any, ...]]
        removed: frozenset[tuple[Any, ...]]
        plus: int | None = None
        minus: int | None = None

    earlier = Before("e", 1, frozenset({(1,)}), frozenset(), 1, 2)
    assert encode_change(change(1, None)) == msgspec.msgpack.encode(earlier)
    received = decode(frame_of(msgspec.msgpack.encode(earlier)))
    assert isinstance(received, ChangeMessage)
    assert received.trace is None
    assert encode_change(received) == encode_change(change(1, None))
    assert msgspec.msgpack.decode(encode_change(change(1, TRACE)), type=Before) == earlier


def test_each_change_of_a_frame_has_its_own() -> None:
    changes = [change(1, None), change(2, TRACE), change(3, {"traceparent": "x"})]
    message = decode(frame_of(encode_changes([encode_change(each) for each in changes])))
    assert isinstance(message, Changes)
    assert [each.trace for each in message.changes] == [None, TRACE, {"traceparent": "x"}]


def test_a_large_one_has_its_own_too() -> None:
    rows = frozenset((number, "x" * 10) for number in range(10_000))
    message = decode(frame_of(encode_change(ChangeMessage("e", 1, rows, frozenset(), 1, 2, TRACE))))
    assert isinstance(message, ChangeMessage)
    assert message.trace == TRACE
    assert message.added == rows


def test_what_is_caught_up_has_none() -> None:
    log = TableLog("s", "t", ("a",), "publisher/1", "e")
    replica = ReplicaMachine("s", "t", "subscriber/1")
    replica.publishers(0.0, ["publisher/1"])

    def ask() -> list[Delta]:
        (request,) = replica.listening(0.0, "publisher/1")
        assert isinstance(request, Send)
        (answer, *_) = log.sync(0.0, request.message)  # type: ignore[arg-type]
        if isinstance(answer.message, CatchUp):
            return replica.catch_up(0.0, answer.message)[0]
        return replica.snapshot_begin(0.0, answer.message)[0]  # type: ignore[arg-type]

    assert ask() == []
    log.trace = TRACE
    heard, sends = log.apply(0.0, [(1,)], ())
    assert heard is not None
    assert heard.trace == TRACE
    assert [each.message for each in sends] == [encode_body(heard)]
    assert [each.trace for each in ask()] == [None]
    assert replica.state is ReplicaState.LIVE
    heard, _ = log.apply(0.0, [(2,)], ())
    assert heard is not None
    assert [each.trace for each in replica.change(0.0, heard)[0]] == [TRACE]


def test_what_is_merged_for_a_slow_callback_has_the_first() -> None:
    class Shared:
        changed = threading.Condition()

    jobs = []
    seen: list[Change] = []
    replica = Replica("s", "t", Shared(), seen.append, None, jobs.append, lambda run, *args: run(*args))  # type: ignore[arg-type]
    for seq in range(1, 1001):
        replica.deliver(Delta(frozenset({(seq,)}), frozenset(), ("e", seq)))
    for seq, trace in ((1001, TRACE), (1002, None), (1003, {"traceparent": "x"})):
        replica.deliver(Delta(frozenset({(seq,)}), frozenset(), ("e", seq), trace))
    last = replica._waiting[-1]
    assert isinstance(last, Delta)
    assert last.trace == TRACE
    assert last.added == {(1000,), (1001,), (1002,), (1003,)}
