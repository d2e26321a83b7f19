"""A replica and publishers that refuse it, let it in and refuse it again, on a clock of the test's own."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from dse.core.effects import Effect, Listen, Send, Unlisten
from dse.core.messages import (
    CatchUp,
    ChangeMessage,
    NoTable,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotCredit,
    SyncRequest,
    Tip,
    decode,
    encode,
    frame_of,
    instance_address,
    table_address,
)
from dse.core.replica import REFUSED, ReplicaMachine, ReplicaState
from dse.core.tablelog import TableLog
from dse.core.transport import Address


class World:
    """One replica, some publishers, and a bus that delivers at once, in order."""

    def __init__(self, *publishers: str) -> None:
        self.now = 100.0
        self.replica = ReplicaMachine("s", "t", "me", 1 << 32)
        self.logs = {name: TableLog("s", "t", ("v",), name, f"epoch-{name}") for name in publishers}
        self.allowed = dict.fromkeys(publishers, False)
        self.live: list[str] = []
        self.listens: set[Address] = set()
        self.asked: list[str] = []  # whom it asked
        self.told: set[Any] = set()

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Listen):
                self.listens.add(effect.address)
                name = effect.address.name.split("/")[1]
                self.carry_out(self.replica.listening(self.now, name))
            elif isinstance(effect, Unlisten):
                self.listens.discard(effect.address)
            else:
                self.send(effect)

    def send(self, send: Send) -> None:
        body = send.message
        message: Any = decode(frame_of(body) if isinstance(body, bytes) else encode(body))
        if send.address == instance_address("me"):
            self.answer(message)
        elif send.address in self.listens and isinstance(message, ChangeMessage):
            self.take(*self.replica.change(self.now, message))
        elif send.address in self.listens and isinstance(message, Tip):
            self.carry_out(self.replica.tip(self.now, message))
        elif isinstance(message, SyncRequest):
            name = send.address.name.removeprefix("node/")
            self.asked.append(name)
            if name not in self.live:
                return
            if not self.allowed[name]:
                self.answer(NoTable(message.request, f"{name} says no"))
            else:
                self.sends(self.logs[name].sync(self.now, message))
        elif isinstance(message, SnapshotCredit):
            log = self.logs[send.address.name.removeprefix("node/")]
            self.sends(log.credit(self.now, message.instance, message.request, message.received))

    def sends(self, sends: list[Send]) -> None:
        for each in sends:
            self.send(each)

    def answer(self, message: Any) -> None:
        machine, now = self.replica, self.now
        if isinstance(message, NoTable):
            self.carry_out(machine.no_table(now, message))
        elif isinstance(message, Tip):
            self.carry_out(machine.tip(now, message))
        elif isinstance(message, CatchUp):
            self.take(*machine.catch_up(now, message))
        elif isinstance(message, SnapshotBegin):
            self.take(*machine.snapshot_begin(now, message))
        elif isinstance(message, SnapshotChunk):
            self.take(*machine.snapshot_chunk(now, message))

    def take(self, deltas: list[Any], effects: list[Effect]) -> None:
        for delta in deltas:
            assert not delta.added & self.told
            assert delta.removed <= self.told
            self.told = (self.told - delta.removed) | delta.added
        self.carry_out(effects)

    def publish(self, *live: str) -> None:
        self.live = list(live)
        self.carry_out(self.replica.publishers(self.now, list(live)))

    def change(self, name: str, row: Any) -> None:
        self.sends(self.logs[name].apply(self.now, [row], [])[1])

    def allow(self, name: str, allowed: bool, *, tells: bool = True) -> None:
        """Other rules apply at a publisher; it tells whom that concerns, unless word is lost."""
        before, self.allowed[name] = self.allowed[name], allowed
        if before and not allowed:
            followed = "me" in self.logs[name].subscribers
            self.logs[name].drop("me")
            if followed and tells and self.replica.hears(name):
                self.answer(NoTable(0, f"{name} says no any more", "s", "t"))
        elif allowed and not before and tells and self.replica.hears(name):
            self.sends(self.logs[name].invite("me"))

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := min(self.replica.wakeup, self._tips())) <= until:
            self.now = max(self.now, due)
            for log in self.logs.values():
                if log.wakeup <= self.now and log.instance in self.live:
                    self.sends(log.tick(self.now))
            if self.replica.wakeup <= self.now:
                self.carry_out(self.replica.tick(self.now))
        self.now = until

    def _tips(self) -> float:
        return min((log.wakeup for name, log in self.logs.items() if name in self.live), default=math.inf)


def test_one_that_is_refused_asks_twice_a_minute_and_listens_to_nobody() -> None:
    world = World("p")
    world.publish("p")
    assert (world.replica.untrusted, world.replica.state) == ("p says no", ReplicaState.SYNCING)
    assert world.listens == set()
    world.advance(600.0)
    assert len(world.asked) == 1 + 600 / REFUSED
    assert (world.replica.untrusted, world.replica.state) == ("p says no", ReplicaState.SYNCING)
    for _ in range(100):  # whoever publishes and leaves elsewhere does not make it ask
        world.publish("p")
    assert len(world.asked) == 1 + 600 / REFUSED


def test_all_publishers_are_asked_once_before_it_gives_up() -> None:
    world = World("p", "q", "r")
    world.publish("p", "q", "r")
    assert world.asked == ["p", "q", "r"]
    assert world.replica.untrusted == "r says no"
    world.advance(REFUSED)
    assert world.asked == ["p", "q", "r"] * 2


def test_it_follows_the_one_that_does_not_refuse_and_one_that_comes_later() -> None:
    world = World("p", "q")
    world.allowed["q"] = True
    world.change("q", (1,))
    world.publish("p", "q")
    assert (world.replica.state, world.told, world.asked) == (ReplicaState.LIVE, {(1,)}, ["p", "q"])
    world.publish("p")
    assert world.replica.state is ReplicaState.STALE
    assert world.replica.untrusted == "p says no"
    world.publish("p", "q")
    assert (world.replica.state, world.replica.untrusted) == (ReplicaState.LIVE, "")


@pytest.mark.parametrize("tells", [True, False])
def test_it_comes_back_when_the_rules_have_changed_whether_it_is_told_or_not(tells: bool) -> None:
    world = World("p")
    world.allowed["p"] = True
    world.publish("p")
    world.change("p", (1,))
    world.allow("p", False)
    world.change("p", (2,))
    assert (world.replica.state, world.told) == (ReplicaState.STALE, {(1,)})
    world.allow("p", True, tells=tells)
    world.advance(0.0 if tells else REFUSED)
    assert (world.replica.state, world.told, world.replica.untrusted) == (ReplicaState.LIVE, {(1,), (2,)}, "")


def test_a_refusal_to_an_earlier_question_is_none() -> None:
    world = World("p")
    world.allowed["p"] = True
    world.publish("p")
    world.answer(NoTable(world.replica.request - 1, "no"))
    world.answer(NoTable(world.replica.request, "no"))  # which has been answered
    assert world.replica.state is ReplicaState.LIVE


def test_a_text_that_is_no_line_is_shown_as_one() -> None:
    world = World("p")
    world.publish("p")
    world.replica._asking = True
    world.answer(NoTable(world.replica.request, "no\n2026 CRITICAL"))
    assert "\n" not in world.replica.untrusted


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_rules_were_in_between_it_ends_in_step_with_one_that_lets_it(seed: int) -> None:
    rng = Random(seed)
    world = World("p", "q", "r")
    names, rows = list(world.logs), 0
    for _ in range(150):
        what = rng.randrange(6)
        name = rng.choice(names)
        if what == 0:
            world.publish(*rng.sample(names, rng.randint(0, 3)))
        elif what == 1:
            world.allow(name, rng.random() < 0.5, tells=rng.random() < 0.7)
        elif what == 2 and name in world.live:
            rows += 1
            world.change(name, (rows,))
        elif what == 3:
            world.advance(rng.choice([0.1, 1.0, 7.0, 40.0]))
        elif what == 4:
            world.replica.disconnected()
            world.listens.clear()
            world.replica._listening = False
            world.advance(rng.choice([0.0, 5.0]))
            world.carry_out(world.replica.connected(world.now))
        elif what == 5:
            world.carry_out(world.replica.publishers(world.now, list(world.live)))
        if world.replica.untrusted and not world.replica._asking:
            assert not world.replica._listening
        if world.replica.publisher is not None and world.replica._listening:
            assert world.listens == {table_address(world.replica.publisher, "s", "t")}
        assert world.told == set(world.replica._rows)
    for name in names:
        world.allow(name, name == "q", tells=rng.random() < 0.5)
    world.publish(*names)
    world.advance(2 * REFUSED + 40.0)  # a lost word of an end is found when the tip or a renewal is
    if world.replica.publisher != "q":
        # It follows one that has not told it that it may not any more: its renewal is refused, as a node's is.
        assert world.replica.publisher is not None
        world.answer(NoTable(0, "no", "s", "t"))
        world.advance(REFUSED + 5.0)
    assert (world.replica.publisher, world.replica.state) == ("q", ReplicaState.LIVE)
    assert set(world.replica._rows) == set(world.logs["q"]._rows)
