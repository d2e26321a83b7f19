"""Faults on demand for the broker ``fake://name``: seeded, repeatable, and gone when the ``with`` block ends.

    with Faults("lab", seed=7) as faults:
        faults.drop(0.2, match=lambda sent: sent.address.delivery is Delivery.FANOUT)
        faults.delay(0.01, 0.1)
        faults.cut(node)

A lossy network breaks the guarantee that nothing is lost; all the others hold under every fault: order, at most once,
ttl, a connection that is noticed to be dead. The draws come from one ``random.Random(seed)`` in the order in which the
broker routes frames: the same sends in the same order meet the same faults.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from dse.core.age import STAMP
from dse.core.transport import Address, Transport
from dse.errors import ConfigError
from dse.testing.broker import Broker
from dse.transports.fake import FakeBroker, FakeTransport, Parcel

__all__ = ["FakeServer", "Faults", "InFlight"]


@dataclass(frozen=True, slots=True)
class InFlight:
    """One delivery that a rule may choose. A FANOUT frame is one for each receiver; an ANYCAST frame has none yet."""

    bus: str
    address: Address
    frame: bytes
    sender: FakeTransport
    receiver: FakeTransport | None


Match = Callable[[InFlight], bool]
"""Chooses deliveries; called with the broker locked, so it looks at its argument and calls nothing that sends."""


class HasTransport(Protocol):
    """A node, for instance."""

    @property
    def transport(self) -> Transport: ...


@dataclass(frozen=True, slots=True)
class _Rule:
    low: float
    high: float
    match: Match | None


@dataclass(slots=True)
class _Channel:
    """What is delayed between a sender's transport and one receiver for one address: it stays in order."""

    due: float
    count: int = 0


_Key = tuple[FakeTransport, Address, Any]


@dataclass(order=True, slots=True)
class _Delayed:
    due: float
    number: int
    deliver: Callable[[], None]
    channel: _Key | None


class Faults:
    """Controls the broker ``fake://name``; a context manager that leaves the broker sound.

    `dropped`, `delayed` and `duplicated` count deliveries so treated.
    """

    def __init__(self, name: str = "", seed: int = 0) -> None:
        self.broker = FakeBroker.named(name)
        # All below: protected by broker.lock.
        self.dropped = 0
        self.delayed = 0
        self.duplicated = 0
        self._random = random.Random(seed)
        self._drops: list[_Rule] = []
        self._delays: list[_Rule] = []
        self._duplicates: list[_Rule] = []
        self._numbers = itertools.count()
        self._later: list[_Delayed] = []  # a heap
        self._channels: dict[_Key, _Channel] = {}
        self._timer: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every fault; the broker runs and answers."""
        self.clear()
        self.mend()
        self.resume()
        self.start()

    # A lossy network

    def drop(self, rate: float, match: Match | None = None) -> None:
        """Lose a share (0 to 1) of the deliveries, or of those that match."""
        self._add(self._drops, _Rule(_share(rate), 0, match))

    def delay(self, low: float, high: float, match: Match | None = None) -> None:
        """Deliver `low` to `high` seconds late, in order still for each sender, address and receiver.

        The first rule that matches counts. One thread delivers what is late, until `clear`.
        """
        if not 0 <= low <= high:
            raise ConfigError(f"a delay of {low} to {high} seconds")
        self._add(self._delays, _Rule(low, high, match))
        with self.broker.lock:
            if self._timer is not None:
                return
            timer = self._timer = threading.Thread(target=self._deliver_late, name="dse-fake-delay", daemon=True)
            timer.start()

    def duplicate(self, rate: float, match: Match | None = None) -> None:
        """Have the broker attempt a share of the deliveries twice; the driver lets none through twice."""
        self._add(self._duplicates, _Rule(_share(rate), 0, match))

    def clear(self) -> None:
        """End drop, delay and duplicate; what is late arrives now."""
        with self.broker.lock:
            for rules in (self._drops, self._delays, self._duplicates):
                rules.clear()
            if self.broker.interfere == self._interfere:
                self.broker.interfere = None
            timer, self._timer = self._timer, None
            while self._later and not self.broker.stopped:
                heapq.heappop(self._later).deliver()
            self._forget_late()
            self.broker.changed.notify_all()
        self.broker.report()
        if timer is not None:
            timer.join()

    # Connections

    def cut(self, whom: Transport | HasTransport | Callable[[FakeTransport], bool]) -> None:
        """Cut off a transport, a node, or all transports of now and later that a predicate chooses.

        Half-open, like a lost TCP peer: it hears nothing, what it sends vanishes, until its heartbeat notices; it
        cannot connect again before `mend`.
        """
        self.broker.cut(_chooser(whom))

    def mend(self) -> None:
        """End every cut. A connection that lost something meanwhile and has not noticed is reset."""
        self.broker.mend()

    # The broker

    def stop(self) -> None:
        """Let the broker die: all connections break at once, its queues are gone, nobody can connect."""
        with self.broker.lock:
            self._forget_late()
        self.broker.stop()

    def start(self) -> None:
        """Let the broker run again."""
        self.broker.start()

    def pause(self) -> None:
        """Hang the broker: nothing is answered or delivered; a bounded backlog is accepted."""
        self.broker.pause()

    def resume(self) -> None:
        """Let a hung broker go on; what it accepted meanwhile is delivered where its ttl allows."""
        self.broker.resume()

    # With the broker's lock held

    def _add(self, rules: list[_Rule], rule: _Rule) -> None:
        with self.broker.lock:
            if self.broker.interfere not in (None, self._interfere):
                raise ConfigError(f"another Faults object controls the broker {self.broker.name!r}")
            self.broker.interfere = self._interfere
            rules.append(rule)

    def _interfere(self, parcel: Parcel, receiver: Any) -> None:
        sender = parcel.sender.transport
        skip = 1 if parcel.data[:1] == b"\x00" else STAMP.size
        heard_by = receiver.transport if receiver is not None else None
        sent = InFlight(sender.bus, parcel.address, parcel.data[skip:], sender, heard_by)
        if self._strikes(self._drops, sent):
            self.dropped += 1
            return

        def deliver() -> None:
            self.broker.attempt(parcel, receiver)

        rule = next((rule for rule in self._delays if rule.match is None or rule.match(sent)), None)
        again = self._strikes(self._duplicates, sent)
        self.duplicated += again
        key = (sender, parcel.address, receiver)
        channel = self._channels.get(key)
        if rule is None and channel is None:
            deliver()
            if again:
                deliver()
            return
        due = monotonic()
        if rule is not None:
            due += self._random.uniform(rule.low, rule.high)
            self.delayed += 1
        if channel is None:
            channel = self._channels[key] = _Channel(due)
        channel.due = max(channel.due, due)
        channel.count += 1
        heapq.heappush(self._later, _Delayed(channel.due, next(self._numbers), deliver, key))
        if again:
            # Out of order on purpose, among the frames that follow; never before the first attempt.
            late = channel.due + self._random.uniform(0, rule.high if rule is not None else 0)
            heapq.heappush(self._later, _Delayed(late, next(self._numbers), deliver, None))
        self.broker.changed.notify_all()

    def _strikes(self, rules: list[_Rule], sent: InFlight) -> bool:
        return any((rule.match is None or rule.match(sent)) and self._random.random() < rule.low for rule in rules)

    def _forget_late(self) -> None:
        self._later.clear()
        self._channels.clear()

    # The timer thread

    def _deliver_late(self) -> None:
        this = threading.current_thread()
        while True:
            with self.broker.lock:
                if self._timer is not this:
                    return
                wait = None
                if self._later and not self.broker.paused:
                    wait = self._later[0].due - monotonic()
                if wait is None or wait > 0:
                    self.broker.changed.wait(wait)
                    continue
                late = heapq.heappop(self._later)
                late.deliver()
                if late.channel is not None:
                    channel = self._channels[late.channel]
                    channel.count -= 1
                    if not channel.count:
                        del self._channels[late.channel]
            self.broker.report()


class FakeServer(Broker):
    """A private ``fake://`` broker for the contract suite, broken as a real one would be.

    Transports on `url` can be cut off; those on `direct_url` reach the same broker whatever is cut.
    """

    multiprocess = False

    def __init__(self, name: str = "") -> None:
        name = name or f"server-{uuid.uuid4().hex}"
        self.faults = Faults(name)
        self.url = f"fake://{name}"
        self.direct_url = f"fake://{name}?link=direct"

    def stop(self) -> None:
        self.faults.stop()

    def start(self) -> None:
        self.faults.start()

    def pause(self) -> None:
        self.faults.pause()

    def resume(self) -> None:
        self.faults.resume()

    def cut(self) -> None:
        self.faults.cut(lambda transport: transport.link != "direct")

    def mend(self) -> None:
        self.faults.mend()

    def leftovers(self, bus: str) -> set[str]:
        return self.faults.broker.leftovers(bus)

    def close(self) -> None:
        self.faults.close()
        self.faults.stop()


def _share(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ConfigError(f"a rate is from 0 to 1, not {rate}")
    return rate


def _chooser(whom: Transport | HasTransport | Callable[[FakeTransport], bool]) -> Callable[[FakeTransport], bool]:
    if isinstance(whom, Transport):
        return lambda transport: transport is whom
    if callable(whom):
        return whom
    return lambda transport: transport is whom.transport
