"""A virtual broker and the connections to it: delay, loss, partitions, outages, half-open connections.

It keeps what every driver guarantees (`dse.core.transport`): ready on return, order from one sender to one address,
no duplicates, time to live, undeliverable reports. A lossy network loses frames beyond what drivers promise.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol
from zlib import crc32

from dse.core.messages import Heartbeat, Message, decode
from dse.core.transport import Address, Capabilities, ConnectionState, Delivery, Transport, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import TransportUnavailable
from dse.testing.simulation.clock import Clock, Process

__all__ = ["URL", "Link", "Network"]

RECONNECT = (0.02, 1.5)  # seconds until a driver connects again, or tries to
REPORT = (0.0005, 0.3)  # seconds until an undeliverable frame is reported
URL = TransportUrl.parse("fake://simulation")
NOTICE = 0.05  # seconds in which a connection that was reset is noticed


class Receiver(TransportEvents, Protocol):
    """Who is at the end of a link: takes messages that are decoded already, once for all receivers of a frame."""

    def deliver(self, address: Address, message: Message) -> None: ...


class Session:
    """One connection as the broker has it; the frames under way to it are lost when it ends."""

    __slots__ = ("addresses", "cut", "latest", "link", "not_before", "open")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.open = True
        self.cut = False  # half open: nothing goes through, and nobody knows
        self.addresses: dict[Address, None] = {}
        self.latest: dict[Address, float] = {}  # when the latest frame to an address arrives: order is kept
        self.not_before = 0.0  # when the latest frame to a slow receiver arrives


Flight = tuple[Address, bytes, Sequence[Session], float]


class Network:
    """The broker, and the ways to it.

    delays: seconds, least and most, that a frame is under way. heartbeat: seconds within which a driver notices that
    its connection is dead. loss: probability that a frame is lost.
    """

    def __init__(
        self, clock: Clock, rng: random.Random, delays: tuple[float, float], heartbeat: float, undeliverable: bool
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.delays = delays
        self.heartbeat = heartbeat
        self.undeliverable = undeliverable
        self.loss = 0.0
        self.down = False
        self.groups: dict[int, int] = {}  # place -> side of the partition
        self.counts: Counter[str] = Counter()
        self.digest = 0
        self.trace: Callable[[str], None] | None = None
        self._listeners: dict[Address, dict[Session, None]] = {}

    # Faults

    def stop(self, hung: bool) -> None:
        """The broker dies; drivers notice at once, or only (`hung`) by their heartbeat."""
        self.down = True
        sessions = list(dict.fromkeys(s for listening in self._listeners.values() for s in listening))
        for session in sessions:
            self.end(session)
            session.link.notice(self.heartbeat if hung else NOTICE)

    def start(self) -> None:
        """The broker is back, and knows nobody."""
        self.down = False

    def end(self, session: Session) -> None:
        """The broker forgets a connection."""
        session.open = False
        for address in session.addresses:
            listening = self._listeners[address]
            del listening[session]
            if not listening:
                del self._listeners[address]
        session.addresses.clear()

    # Traffic

    def listen(self, session: Session, address: Address) -> None:
        """A session listens on an address from now on."""
        session.addresses[address] = None
        self._listeners.setdefault(address, {})[session] = None

    def unlisten(self, session: Session, address: Address) -> None:
        """A session listens on an address no more."""
        if address in session.addresses:
            del session.addresses[address]
            listening = self._listeners[address]
            del listening[session]
            if not listening:
                del self._listeners[address]

    def send(self, sender: Session, address: Address, frame: bytes, ttl: float | None) -> None:
        """A frame has left its sender."""
        clock, counts = self.clock, self.counts
        now = clock.now
        counts["frames"] += 1
        self.digest = crc32(frame, self.digest ^ hash(now) & 0xFFFFFFFF)
        if not sender.open or sender.cut or self.down:
            counts["lost"] += 1
            return
        targets: Sequence[Session] = tuple(self._listeners.get(address, ()))
        if address.delivery is not Delivery.FANOUT:
            if not targets:
                if self.undeliverable:
                    clock.at(now + self.rng.uniform(*REPORT), self._report, (sender, address, frame))
                return
            if len(targets) > 1:
                targets = (targets[self.rng.randrange(len(targets))],)
        if self.loss or self.groups:
            targets = self._survivors(sender, targets)
        low, high = self.delays
        arrival = now + low + (high - low) * self.rng.random()
        arrival = sender.latest[address] = max(arrival, sender.latest.get(address, 0.0))
        late = [s for s in targets if s.link.lag or s.not_before > arrival]
        if late:
            targets = [s for s in targets if s not in late]
        if targets:
            clock.at(arrival, self._arrive, (address, frame, targets, now + ttl if ttl is not None else 1e18))
        for session in late:
            session.not_before = max(session.not_before, arrival + session.link.lag)
            flight = (address, frame, (session,), now + ttl if ttl is not None else 1e18)
            clock.at(session.not_before, self._arrive, flight)

    def _survivors(self, sender: Session, targets: Sequence[Session]) -> list[Session]:
        side = self.groups.get(sender.link.place, 0)
        rng, loss, groups = self.rng, self.loss, self.groups
        kept = [s for s in targets if groups.get(s.link.place, 0) == side and not (loss and rng.random() < loss)]
        self.counts["lost"] += len(targets) - len(kept)
        return kept

    def _arrive(self, flight: Flight) -> None:
        address, frame, targets, expires = flight
        message = decode(frame)
        counts, trace, now = self.counts, self.trace, self.clock.now
        for session in targets:
            link = session.link
            if not session.open or session.cut or address not in session.addresses:
                counts["lost"] += 1
                continue
            counts["received"] += 1
            process = link.process
            if trace is not None and not isinstance(message, Heartbeat):
                trace(f"{link.name} hears {_short(message)}")
            if process.suspended:
                process.held.append(self._held(link, address, message, expires))
            elif process.alive and now <= expires:
                link.receiver.deliver(address, message)

    def _held(self, link: Link, address: Address, message: Message, expires: float) -> Callable[[], None]:
        def deliver() -> None:
            if self.clock.now <= expires and not link.closed:
                link.receiver.deliver(address, message)

        return deliver

    def _report(self, what: tuple[Session, Address, bytes]) -> None:
        session, address, frame = what
        if session.open and not session.cut:
            self.counts["undeliverable"] += 1
            session.link.process.run(lambda: session.link.events.undeliverable(address, frame))


class Link(Transport):
    """One node's connection. `place` says where the node is, for partitions; `lag` makes it slow, in seconds."""

    capabilities = Capabilities(undeliverable=True, max_frame=1 << 23, survives_broker_restart=True)

    def __init__(self, network: Network, place: int, name: str, process: Process, receiver: Receiver) -> None:
        super().__init__(URL, bus="simulation", events=receiver)
        self.receiver = receiver
        self.network = network
        self.place = place
        self.name = name
        self.process = process
        self.lag = 0.0
        self.unplugged = False
        self.closed = False
        self.up = False  # what the node believes
        self._wanted: dict[Address, None] = {}
        self._session = Session(self)
        self._session.open = False

    # Transport

    def open(self) -> None:
        if self.network.down or self.unplugged:
            raise TransportUnavailable("the broker cannot be reached")
        self._connect()

    def close(self) -> None:
        self.closed = True
        self.up = False
        self._drop()

    def listen(self, address: Address) -> None:
        session = self._session
        if not self.up or not session.open or session.cut:
            self._lost(session)  # a driver that is not answered takes the connection for lost
            raise TransportUnavailable("not connected")
        self._wanted[address] = None
        self.network.listen(session, address)

    def unlisten(self, address: Address) -> None:
        self._wanted.pop(address, None)
        self.network.unlisten(self._session, address)

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        if not self.up:
            raise TransportUnavailable("not connected")
        self.network.send(self._session, address, frame, ttl)

    # Faults

    def cut(self, seconds: float) -> None:
        """Nothing goes through for some time; the driver, and the broker, notice by their heartbeats, if it lasts."""
        self.unplugged = True
        session = self._session
        session.cut = True
        clock = self.network.clock
        self._lose(session, clock.now + self.network.rng.uniform(0.1, 1.0) * self.network.heartbeat)
        clock.at(clock.now + self.network.rng.uniform(0.1, 2.0) * self.network.heartbeat, self._forget, session)
        clock.at(clock.now + seconds, self._mended, session)

    def plug(self) -> None:
        """Whatever was cut is whole."""
        self._mended(self._session)

    def notice(self, within: float) -> None:
        """The connection broke: the driver notices within some seconds."""
        self._lose(self._session, self.network.clock.now + self.network.rng.random() * within)

    def vanish(self, lingering: float) -> None:
        """The process is dead: the broker knows after some seconds."""
        session = self._session
        if lingering:
            session.cut = True
        self.network.clock.at(self.network.clock.now + lingering, self._forget, session)

    def reset(self) -> None:
        """The broker ends the connection of a client that is too quiet."""
        self._drop()
        self._lose(self._session, self.network.clock.now)

    # Inside

    def _connect(self) -> None:
        session = self._session = Session(self)
        for address in self._wanted:
            self.network.listen(session, address)
        self.up = True
        self.events.state_changed(ConnectionState.CONNECTED)

    def _drop(self) -> None:
        if self._session.open:
            self.network.end(self._session)

    def _forget(self, session: Session) -> None:
        if session.open and (session.cut or not self.process.alive):
            self.network.end(session)

    def _mended(self, session: Session) -> None:
        self.unplugged = False
        session.cut = False
        if not session.open:
            self._lose(session, self.network.clock.now)  # the broker does not know the connection any more

    def _lose(self, session: Session, at: float) -> None:
        self.network.clock.at(at, lambda _: self.process.run(lambda: self._lost(session)))

    def _lost(self, session: Session) -> None:
        if session is not self._session or not self.up or (session.open and not session.cut):
            return
        self.up = False
        self._drop()
        self.network.counts["disconnects"] += 1
        self.events.state_changed(ConnectionState.DISCONNECTED)
        self._again(None)

    def _again(self, _: None) -> None:
        clock, rng = self.network.clock, self.network.rng
        clock.at(clock.now + rng.uniform(*RECONNECT), lambda _: self.process.run(self._reconnect))

    def _reconnect(self) -> None:
        if self.closed or self.up:
            return
        if self.network.down or self.unplugged:
            self._again(None)
        else:
            self._connect()


def _short(message: Message) -> str:
    text = repr(message)
    return text if len(text) <= 300 else text[:300] + "…"
