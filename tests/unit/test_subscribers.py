"""Who a publisher counts as its subscribers: rules 6 and 7 of tablelog.py."""

from __future__ import annotations

import pytest

from dse.core.effects import Send
from dse.core.messages import SyncRequest, Tip, instance_address, table_address
from dse.core.tablelog import LATE, LEASE, TIP_FIRST, TIP_LAST, TableLog

NOW = 1000.0


@pytest.fixture
def log() -> TableLog:
    log = TableLog("s", "t", ("a",), "pub/1", "epoch")
    log.apply(NOW, [(1,)], ())
    log.sync(NOW, SyncRequest("s", "t", "sub/1", 1))
    return log


def run(log: TableLog, until: float) -> list[tuple[float, Send]]:
    """Tick whenever it is due; return what was sent and when."""
    sent = []
    while log.wakeup <= until:
        now = log.wakeup
        sent += [(now, send) for send in log.tick(now)]
        assert log.wakeup > now
    return sent


def test_a_lease_that_nobody_renews_ends(log: TableLog) -> None:
    run(log, NOW + LEASE - 0.1)
    assert set(log.subscribers) == {"sub/1"}
    run(log, NOW + LEASE)
    assert not log.subscribers
    assert log.wakeup == float("inf")


def test_a_lease_is_renewed(log: TableLog) -> None:
    for turn in range(1, 10):
        run(log, NOW + 20 * turn)
        assert log.renew(NOW + 20 * turn, "sub/1", ("epoch", 1)) == []
    assert set(log.subscribers) == {"sub/1"}
    log.renew(NOW + 181, "sub/1", None)
    assert not log.subscribers


def test_whoever_was_taken_for_dead_and_is_heard_is_told_what_passed_it_by(log: TableLog) -> None:
    log.lapse(NOW + 5, "sub/1")
    assert not log.subscribers
    assert log.apply(NOW + 6, [(2,)], ())[1] == []  # nobody is there to be told
    (send,) = log.revive(NOW + 7, "sub/1")
    assert send.address == instance_address("sub/1")
    assert send.message == Tip("epoch", 2, log.digest, "s", "t")
    assert set(log.subscribers) == {"sub/1"}
    assert log.wakeup <= NOW + 7 + TIP_FIRST  # one tip may be lost
    assert log.revive(NOW + 8, "sub/1") == []


@pytest.mark.parametrize("why", ["it was no subscriber", "it said goodbye", "it came too late", "it asked itself"])
def test_nobody_else_is_revived(log: TableLog, why: str) -> None:
    who = "sub/2" if why == "it was no subscriber" else "sub/1"
    log.lapse(NOW + 5, who)
    if why == "it said goodbye":
        log.drop(who)
    if why == "it asked itself":
        log.sync(NOW + 6, SyncRequest("s", "t", who, 2, "epoch", 1))
    assert log.revive(NOW + 5 + (LEASE if why == "it came too late" else 2), who) == []


def test_the_dead_are_forgotten(log: TableLog) -> None:
    for number in range(1000):
        now = NOW + number
        log.sync(now, SyncRequest("s", "t", f"sub/{number}", 1))
        log.lapse(now, f"sub/{number}")
    assert len(log._lapsed) <= LEASE


def test_during_an_outage_no_lease_ends_and_after_it_the_tip_is_told_at_once(log: TableLog) -> None:
    log.disconnected()
    assert run(log, NOW + 10 * LEASE) == []
    log.apply(NOW + 500, [(2,)], ())
    back = NOW + 10 * LEASE
    (send,) = log.connected(back)
    assert send.address == table_address("pub/1", "s", "t")
    assert send.message == Tip("epoch", 2, log.digest)
    assert set(log.subscribers) == {"sub/1"}
    tips = [at - back for at, _ in run(log, back + 10)]
    assert tips == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_publisher_that_did_not_run_ends_no_lease(log: TableLog) -> None:
    run(log, NOW + 30)
    assert log.wakeup < NOW + 30 + TIP_LAST
    log.tick(NOW + 30 + TIP_LAST + LEASE + LATE)
    assert set(log.subscribers) == {"sub/1"}
