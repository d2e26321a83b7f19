"""Drivers that break one guarantee each, on purpose: what the contract suite must catch.

`BROKEN` names, for each, the class of the contract that must fail. All are the fake driver with one mistake, of a kind
that real drivers make.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from dse.core.connection import Session
from dse.core.transport import Address, Capabilities, ConnectionState, Delivery, Transport
from dse.errors import TransportUnavailable
from dse.testing.contract.recorder import eventually
from dse.transports.fake import FakeTransport, Parcel, _FakeSession

DIRECT, ANYCAST, FANOUT = Delivery.DIRECT, Delivery.ANYCAST, Delivery.FANOUT

BROKEN: dict[type[Transport], str] = {}


def breaks(contract: str) -> Any:
    """Register a driver as one that the class `contract` must catch."""

    def register(driver: type[Transport]) -> type[Transport]:
        BROKEN[driver] = contract
        return driver

    return register


class Wrapped:
    """Events between a broken driver and its user; each method passes on unless a subclass says otherwise."""

    def __init__(self, events: Any) -> None:
        self.events = events

    def received(self, address: Address, frame: bytes) -> None:
        self.events.received(address, frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        self.events.undeliverable(address, frame)

    def state_changed(self, state: ConnectionState) -> None:
        self.events.state_changed(state)


def wrapping(wrapper: type[Wrapped]) -> type[FakeTransport]:
    """Return a fake driver whose events go through a wrapper."""

    class Driver(FakeTransport):
        def __init__(self, url: Any, *, bus: str, events: Any) -> None:
            super().__init__(url, bus=bus, events=wrapper(events))

    return Driver


# 1 Ready


@breaks("TestReady")
class ListensLate(FakeTransport):
    """`listen` returns before it is in force: it does not wait for the broker's answer."""

    def listen(self, address: Address) -> None:
        timer = threading.Timer(0.01, self._really_listen, [address])
        timer.daemon = True
        timer.start()

    def _really_listen(self, address: Address) -> None:
        try:
            super().listen(address)
        except TransportUnavailable:
            pass


# 2 Delivery


@breaks("TestDelivery")
class AnycastToAll(FakeTransport):
    """ANYCAST goes through the same exchange as FANOUT."""

    def session(self) -> Session:
        return _AnycastToAll(self, super().session().broker)  # type: ignore[attr-defined]


class _AnycastToAll(_FakeSession):
    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        if address.delivery is ANYCAST:
            with self.broker.lock:
                place = self.bus.places.get(address)
                sessions = list(place.listeners) if place is not None else []
            for session in sessions:
                session.transport.deliver(address, data)
        else:
            super().publish(address, data, ttl)


@breaks("TestDelivery")
class FanoutNotToSelf(FakeTransport):
    """A sender that listens does not hear itself."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        listens = address.delivery is FANOUT and address in self._listeners
        if listens:
            self.unlisten(address)
        super().send(address, frame, ttl=ttl)
        if listens:
            self.listen(address)


@breaks("TestDelivery")
class NeverUnlistens(FakeTransport):
    """`unlisten` is forgotten."""

    def unlisten(self, address: Address) -> None:
        pass


# 3 Order


class _Swaps(Wrapped):
    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self._kept: tuple[Address, bytes] | None = None
        self._count = 0

    def received(self, address: Address, frame: bytes) -> None:
        self._count += 1
        if self._count % 50 == 0:
            self._kept = (address, frame)
            return
        super().received(address, frame)
        if self._kept is not None:
            kept, self._kept = self._kept, None
            super().received(*kept)


@breaks("TestOrder")
class Reorders(wrapping(_Swaps)):  # type: ignore[misc]
    """Now and then a frame overtakes another: a pool of receiving threads."""


@breaks("TestOrder")
class LargeFramesLate(FakeTransport):
    """Large frames are sent in the background."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        if len(frame) > 4096:
            threading.Timer(0.005, super().send, [address, frame]).start()
        else:
            super().send(address, frame, ttl=ttl)


# 4 At most once


@breaks("TestAtMostOnce")
class DropsEvery100th(FakeTransport):
    """One frame in a hundred is lost."""

    _sent = 0

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        self._sent += 1
        if self._sent % 100:
            super().send(address, frame, ttl=ttl)


@breaks("TestAtMostOnce")
class Duplicates(FakeTransport):
    """One frame in a hundred is sent again, as by a client that retries."""

    _sent = 0

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        self._sent += 1
        super().send(address, frame, ttl=ttl)
        if self._sent % 100 == 0:
            super().send(address, frame, ttl=ttl)


class _AnycastLeaks(_FakeSession):
    _fetched = 0

    def _deliver(self, parcel: Parcel) -> None:
        if parcel.attempted and not parcel.returned:  # fetched from the queue that listeners share
            self._fetched += 1
            if self._fetched % 50 == 0:
                return
        super()._deliver(parcel)


@breaks("TestAtMostOnce")
class AnycastLeaks(FakeTransport):
    """Of what a listener fetched from the shared queue, one frame in fifty never reaches its handler."""

    def session(self) -> Session:
        return _AnycastLeaks(self, super().session().broker)  # type: ignore[attr-defined]


# 5 Undeliverable


class _NoReports(Wrapped):
    def undeliverable(self, address: Address, frame: bytes) -> None:
        if address.delivery is not ANYCAST:
            super().undeliverable(address, frame)


@breaks("TestUndeliverable")
class LosesReports(wrapping(_NoReports)):  # type: ignore[misc]
    """What nobody hears at an ANYCAST address is lost silently."""


class _LateReports(Wrapped):
    def undeliverable(self, address: Address, frame: bytes) -> None:
        time.sleep(1.05)
        super().undeliverable(address, frame)


@breaks("TestUndeliverable")
class LateReports(wrapping(_LateReports)):  # type: ignore[misc]
    """Reports come after more than a second."""


# 6 TTL


@breaks("TestTtl")
class IgnoresTtl(FakeTransport):
    """Frames wait for ever."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        super().send(address, frame)


@breaks("TestTtl")
class TtlOnlyBeforeSending(FakeTransport):
    """A ttl is looked at by the sender alone."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        if ttl is None or ttl > 1e-6:
            super().send(address, frame)


# 7 Isolation


class _OneBus(FakeTransport):
    def __init__(self, url: Any, *, bus: str, events: Any) -> None:
        super().__init__(url, bus=bus[:21], events=events)  # what the contract's bus names have in common


@breaks("TestIsolation")
class MixesBuses(_OneBus):
    """Buses whose names begin alike are one."""


class _Mangled(FakeTransport):
    def mangle(self, name: str) -> str:
        return name

    def __init__(self, url: Any, *, bus: str, events: Any) -> None:
        self._given: dict[Address, Address] = {}
        driver = self

        class Restores(Wrapped):
            def received(self, address: Address, frame: bytes) -> None:
                super().received(driver._given.get(address, address), frame)

            def undeliverable(self, address: Address, frame: bytes) -> None:
                super().undeliverable(driver._given.get(address, address), frame)

        super().__init__(url, bus=bus, events=Restores(events))

    def _on_wire(self, address: Address) -> Address:
        wire = Address(address.delivery, self.mangle(address.name))
        self._given[wire] = address
        return wire

    def listen(self, address: Address) -> None:
        super().listen(self._on_wire(address))

    def unlisten(self, address: Address) -> None:
        super().unlisten(self._on_wire(address))

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        super().send(self._on_wire(address), frame, ttl=ttl)


@breaks("TestIsolation")
class CutsNames(_Mangled):
    """Names are cut at the 255 bytes that the broker takes."""

    def mangle(self, name: str) -> str:
        return name[:255]


@breaks("TestIsolation")
class StripsNames(_Mangled):
    """Names lose their white space."""

    def mangle(self, name: str) -> str:
        return name.strip() or name


@breaks("TestIsolation")
class PatternSubscribe(FakeTransport):
    """A name with a star matches others."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        super().send(address, frame, ttl=ttl)
        if address.name != "*":
            super().send(Address(address.delivery, "*"), frame, ttl=ttl)


# 8 Size


@breaks("TestSize")
class Truncates(FakeTransport):
    """What does not fit into 64 KiB is cut off."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        super().send(address, frame[: 1 << 16], ttl=ttl)


@breaks("TestSize")
class NoLimit(FakeTransport):
    """`max_frame` is declared and not kept."""

    capabilities = Capabilities(undeliverable=True, max_frame=1 << 20, survives_broker_restart=True)

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        limit, type(self).capabilities = self.capabilities, FakeTransport.capabilities
        try:
            super().send(address, frame, ttl=ttl)
        finally:
            type(self).capabilities = limit


# 9 Threads


class _DiesOnError(Wrapped):
    dead = False

    def received(self, address: Address, frame: bytes) -> None:
        if self.dead:
            return
        try:
            super().received(address, frame)
        except Exception:
            self.dead = True
            raise


@breaks("TestThreads")
class HandlerKillsDelivery(wrapping(_DiesOnError)):  # type: ignore[misc]
    """After a handler raised nothing is delivered any more."""


class _Swallows(Wrapped):
    def received(self, address: Address, frame: bytes) -> None:
        try:
            super().received(address, frame)
        except Exception:
            pass


@breaks("TestThreads")
class SwallowsErrors(wrapping(_Swallows)):  # type: ignore[misc]
    """What a handler raises is not logged."""


@breaks("TestThreads")
class OneLock(FakeTransport):
    """One lock for all transports, held while a handler runs."""

    _lock = threading.RLock()

    def deliver(self, address: Address, data: bytes) -> None:
        with self._lock:
            super().deliver(address, data)


@breaks("TestTurns")
class NobodyTakesOver(FakeTransport):
    """Says that a thread is relieved, and lets nobody receive in its place."""

    def relieve(self, thread: int) -> bool:
        session = self._session
        return session is not None and any(turn.holder == thread for turn in session.turns())


@breaks("TestTurns")
class TwoReceive(FakeTransport):
    """Lets the thread that was relieved go on receiving beside the other."""

    def relieve(self, thread: int) -> bool:
        relieved = super().relieve(thread)
        session = self._session
        if relieved and session is not None:
            for turn in session.turns():
                eventually(lambda turn=turn: turn.holder not in (0, thread), "somebody took over")  # type: ignore[misc]
                turn.holder = thread
        return relieved


# 10 Outage


class _NoDisconnected(Wrapped):
    def state_changed(self, state: ConnectionState) -> None:
        if state != ConnectionState.DISCONNECTED:
            super().state_changed(state)


@breaks("TestOutage")
class NoDisconnected(wrapping(_NoDisconnected)):  # type: ignore[misc]
    """The user never learns of the loss."""


class _ForgetfulSession(_FakeSession):
    def listen(self, addresses: Sequence[Address]) -> None:
        if self.transport._session is self:
            super().listen(addresses)


@breaks("TestOutage")
class ForgetsListeners(FakeTransport):
    """A new connection has no listeners."""

    def session(self) -> Session:
        return _ForgetfulSession(self, super().session().broker)  # type: ignore[attr-defined]


class _LateSession(_FakeSession):
    def listen(self, addresses: Sequence[Address]) -> None:
        if self.transport._session is self:
            super().listen(addresses)
        else:
            threading.Timer(0.02, super().listen, [addresses]).start()


@breaks("TestOutage")
class RestoresLate(FakeTransport):
    """CONNECTED fires before the listeners are back."""

    def session(self) -> Session:
        return _LateSession(self, super().session().broker)  # type: ignore[attr-defined]


@breaks("TestOutage")
class SendBlocks(FakeTransport):
    """Without a connection, `send` waits for one."""

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        while True:
            try:
                super().send(address, frame, ttl=ttl)
                return
            except TransportUnavailable:
                time.sleep(0.05)


@breaks("TestOutage")
class NeverReconnects(FakeTransport):
    """The first loss is the last."""

    def _reconnect(self) -> Session | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing)
        return None


# 11 Clean


class _LeavesListeners(_FakeSession):
    def close(self) -> None:
        with self.broker.lock:
            self.places = {}  # the broker is not told of them
        super().close()


@breaks("TestClean")
class LeavesListeners(FakeTransport):
    """`close` leaves its listeners on the broker."""

    def session(self) -> Session:
        return _LeavesListeners(self, super().session().broker)  # type: ignore[attr-defined]


@breaks("TestClean")
class EventsAfterClose(FakeTransport):
    """`close` does not wait for the last event."""

    def close(self) -> None:
        threading.Thread(target=super().close, name="late-close").start()


@breaks("TestClean")
class ClosesSlowly(FakeTransport):
    """`close` waits for a timeout to run out."""

    _slept = False

    def close(self) -> None:
        if self._supervisor is not None and not self._slept:
            self._slept = True
            time.sleep(4.5)
        super().close()


# 12 Fork and reopen


@breaks("TestForkAndReopen")
class WorksAfterFork(FakeTransport):
    """A child uses what it inherited."""

    def _refuse_fork(self) -> None:
        pass


@breaks("TestForkAndReopen")
class CannotReopen(FakeTransport):
    """Closed is closed."""

    _was_closed = False

    def open(self) -> None:
        if self._was_closed:
            raise TransportUnavailable("closed")
        super().open()

    def close(self) -> None:
        self._was_closed = True
        super().close()
