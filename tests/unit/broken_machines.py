"""Machines with one rule broken each: the simulation has to notice every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from dse.core import calls, membership, replica, rpc, table, tablelog, tables
from dse.core.membership import NodeState
from dse.core.replica import ReplicaMachine, ReplicaState
from dse.core.tablelog import TableLog

Break = Callable[[pytest.MonkeyPatch], None]
BROKEN: dict[str, Break] = {}


def broken(function: Break) -> Break:
    """Register a way to break a machine under the function's name."""
    BROKEN[function.__name__] = function
    return function


@broken
def tips_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaMachine, "tip", lambda self, now, tip: [])


@broken
def what_waited_in_the_buffer_is_dropped(patch: pytest.MonkeyPatch) -> None:
    live = ReplicaMachine._live

    def careless(self: Any, now: float, deltas: Any) -> Any:
        self.seq = max((seq for epoch, seq in self._buffer if epoch == self.epoch), default=self.seq)
        self._buffer.clear()
        return live(self, now, deltas)

    patch.setattr(ReplicaMachine, "_live", careless)


@broken
def a_gap_in_the_changes_is_ignored(patch: pytest.MonkeyPatch) -> None:
    change = ReplicaMachine.change

    def careless(self: Any, now: float, message: Any) -> Any:
        if not self._asking and self._loading is None and message.epoch == self.epoch and message.seq > self.seq:
            self.seq = message.seq - 1
        return change(self, now, message)

    patch.setattr(ReplicaMachine, "change", careless)


@broken
def an_old_change_is_applied_again(patch: pytest.MonkeyPatch) -> None:
    change = ReplicaMachine.change

    def careless(self: Any, now: float, message: Any) -> Any:
        if self._listening and not self._asking and self._loading is None and message.epoch == self.epoch:
            delta = self._apply(message)
            return ([delta] if delta else []), []
        return change(self, now, message)

    patch.setattr(ReplicaMachine, "change", careless)


@broken
def the_digest_is_wrong(patch: pytest.MonkeyPatch) -> None:
    send_tip = TableLog._send_tip

    def wrong(self: Any) -> Any:
        send = send_tip(self)
        return tablelog.Send(send.address, tablelog.Tip(self.epoch, self.seq, self.digest ^ 1))

    patch.setattr(TableLog, "_send_tip", wrong)


@broken
def a_resync_reports_every_row_again(patch: pytest.MonkeyPatch) -> None:
    loaded = ReplicaMachine._loaded

    def careless(self: Any, now: float) -> Any:
        deltas, effects = loaded(self, now)
        return [replica.Delta(frozenset(self._rows), d.removed, d.version) for d in deltas], effects

    patch.setattr(ReplicaMachine, "_loaded", careless)


@broken
def a_replica_stays_live_without_a_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaMachine, "disconnected", lambda self: None)


@broken
def nobody_asks_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaMachine, "tick", lambda self, now: setattr(self, "_ask_at", math.inf) or [])


@broken
def a_machine_is_due_again_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaMachine, "tick", lambda self, now: [])


@broken
def a_lease_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tablelog, "LEASE", 1e6)


@broken
def a_subscriber_that_died_is_never_taken_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tablelog, "LEASE", 1e6)
    patch.setattr(tables.Publisher, "nodes_died", lambda self, instances: None)


@broken
def who_is_heard_again_stays_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tables.Publisher, "nodes_heard", lambda self, instances: None)
    patch.setattr(tables.ReplicaHub, "renew", lambda self: None)


@broken
def the_first_subscriber_is_not_told(patch: pytest.MonkeyPatch) -> None:
    changed = tables.Publisher.subscribers_changed

    def careless(self: Any, table: table.PublishedTable, first: bool) -> None:
        if not first:
            changed(self, table, first)

    patch.setattr(tables.Publisher, "subscribers_changed", careless)


@broken
def both_nodes_of_one_name_yield(patch: pytest.MonkeyPatch) -> None:
    def inverted(self: Any, now: float, node_id: str, instance: str, age: float, joining: bool) -> Any:
        if node_id == self.node_id and self.state is not NodeState.LEFT:
            self.clash = instance
        return []

    patch.setattr(membership.Membership, "_check_clash", inverted)


@broken
def nodes_of_one_name_ignore_each_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(membership.Membership, "_check_clash", lambda *_: [])


@broken
def silence_is_never_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(membership, "DEAD_AFTER", 1000)


@broken
def peers_are_taken_for_dead_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(membership, "SUSPECT_AFTER", 0.5)
    patch.setattr(membership, "DEAD_AFTER", 1)


@broken
def a_node_that_was_suspended_blames_the_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(membership.Membership, "_forgive", lambda self, now: None)


@broken
def a_catalogue_that_was_missed_is_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(membership.Membership, "_ask_catalogue", lambda self, now, peer: [])


@broken
def a_deadline_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(calls.PendingCalls, "tick", lambda self, now: ([], []))
    patch.setattr(calls.PendingCalls, "wakeup", math.inf)


@broken
def a_call_whose_answer_was_lost_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    lost = rpc.RpcClient._lost

    def careless(self: Any, call: Any, why: str) -> None:
        call.handle.idempotent = True
        lost(self, call, why)

    patch.setattr(rpc.RpcClient, "_lost", careless)


@broken
def a_replica_without_publisher_stays_live(patch: pytest.MonkeyPatch) -> None:
    publishers = ReplicaMachine.publishers

    def careless(self: Any, now: float, live: Any) -> Any:
        state = self.state
        effects = publishers(self, now, live)
        if state is ReplicaState.LIVE and not live:
            self.state = state
        return effects

    patch.setattr(ReplicaMachine, "publishers", careless)
