"""The in-process driver: ``fake://name``, one broker a name and process, for tests, simulations and single processes.

It keeps every guarantee of the SPI with the threads a real driver has: each session has one delivery thread and a
bounded inbox, and `FakeBroker.publish` puts a frame into the inboxes of those who listen. Nothing polls: a delivery
thread sleeps until a frame comes or the next heartbeat is due. `dse.testing.faults` breaks the broker on demand.

DIRECT: the inbox of the listener (of several, which is misuse, the latest). FANOUT: every listener's inbox. ANYCAST:
one queue an address, from which the listeners take in turn: what a listener that leaves has not taken goes to others.

Lock: ``FakeBroker.lock`` protects the broker, its places and the fields of `_FakeSession` that say so. It is never held
while a transport or an event handler is called: who is to be told collects in ``_casualties`` until `report`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from dse.core.connection import JOIN_TIMEOUT, BrokerTransport, Session, wire_name
from dse.core.receiving import Turn
from dse.core.transport import Address, Capabilities, Delivery, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import InvalidUrl
from dse.transports._fake_inbox import Inbox

__all__ = ["FakeBroker", "FakeTransport", "Parcel"]

_INBOX_FRAMES = 100_000  # a transport that lags further behind is disconnected, as Redis and RabbitMQ do
_INBOX_BYTES = 256 * 2**20
_SOCKET_FRAMES = 1000  # what a hung broker still accepts from a transport: the size of two socket buffers
_SOCKET_BYTES = 4 * 2**20
_MISSED = 3  # heartbeats without an answer after which the connection counts as lost
_SEEN = 4096  # (sender, address) pairs remembered before those of senders gone are forgotten


class FakeTransport(BrokerTransport):
    """``fake://name``: a connection to the in-process broker of that name (default '').

    The option ``link`` names the connection, so that faults can choose it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        undeliverable=True, max_frame=8 * 2**20, survives_broker_restart=True
    )
    options: ClassVar = {"link": str}

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        super().__init__(url, bus=bus, events=events)
        if url.variant or url.username or url.password is not None or url.path or len(url.hosts) > 1:
            raise InvalidUrl(f"{url}: the fake driver takes one broker name and options: fake://name?heartbeat=10")
        if any(port is not None for _, port in url.hosts):
            raise InvalidUrl(f"{url}: a broker of the fake driver has no port")
        self.broker_name = url.hosts[0][0] if url.hosts else ""
        self.link: str = self.given.get("link", "")
        # Taken under the broker's lock; goes on over reconnections, as the order of frames does.
        self.sequence = itertools.count(1)

    def session(self) -> Session:
        return _FakeSession(self, FakeBroker.named(self.broker_name))


class Parcel:
    """A frame on its way: `data` as published, `seq` its number among those of the sender's transport."""

    __slots__ = ("address", "attempted", "data", "place", "returned", "sender", "seq", "weight")

    def __init__(self, sender: _FakeSession, address: Address, data: bytes, seq: int) -> None:
        self.sender = sender
        self.address = address
        self.data = data
        self.seq = seq
        self.weight = len(data)  # what it adds to the bytes of an inbox
        self.place: _Place | None = None  # where it was routed to
        self.attempted = False  # ANYCAST: it is in the queue, or was
        self.returned = False  # undeliverable: it goes to its sender


class _Bus:
    """The addresses of one bus that are listened on; protected by the broker's lock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Address, _Place] = {}


class _Place:
    """An address while anybody listens on it; protected by the broker's lock."""

    __slots__ = ("address", "bytes", "listeners", "waiting")

    def __init__(self, address: Address) -> None:
        self.address = address
        # How many invitations each holds that it has not answered; ANYCAST: the next in turn is first.
        self.listeners: OrderedDict[_FakeSession, int] = OrderedDict()
        # ANYCAST: frames nobody has taken. Each has an invitation (this place) in some listener's inbox; whoever comes
        # first takes the oldest, so that an invitation too many does no harm.
        self.waiting: deque[Parcel] = deque()
        self.bytes = 0  # of `waiting`


class _FakeSession(Session):
    """One life of a transport's connection to a `FakeBroker`."""

    def __init__(self, transport: FakeTransport, broker: FakeBroker) -> None:
        self.transport = transport
        self.broker = broker
        self.inbox: Inbox[Parcel | _Place | Address | None] = Inbox()
        self.entered = 0  # bytes ever put into the inbox; protected by broker.lock
        self.taken = 0  # bytes ever taken out; only who has the turn writes it
        # Protected by broker.lock; `failure` and `leaving` may be looked at without it.
        self.bus = _Bus(transport.bus)
        self.established = False
        self.failure: Exception | None = None  # once set the session is dead, and off the broker
        self.places: dict[Address, _Place] = {}
        self.leaving: dict[Address, int] = {}  # unlistened, but frames from before are still in the inbox
        self.held = (0, 0)  # frames and bytes a hung broker has accepted
        self.cut = False
        self.holes = False  # something was lost while it was cut
        self._seen: dict[tuple[FakeTransport, _Place], int] = {}  # only who has the turn uses it
        self._seen_limit = _SEEN
        self._interval = transport.heartbeat / _MISSED
        self._ping_at = monotonic() + self._interval
        self._missed = 0
        self._turn = Turn("deliver", self._receive, self._fail, transport.spawn)

    def open(self) -> None:
        self.broker.attach(self, self.transport.connect_timeout)
        self._turn.start()

    def close(self) -> None:
        self.broker.detach(self)
        deadline = monotonic() + JOIN_TIMEOUT
        for thread in self._turn.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
        self.inbox.close()

    def abandon(self) -> None:
        self.inbox.abandon()  # all that the child has of it: the parent's brokers do not exist there

    def listen(self, addresses: Sequence[Address]) -> None:
        self.broker.listen(self, addresses, self.transport.heartbeat)

    def unlisten(self, address: Address) -> None:
        self.broker.unlisten(self, address, self.transport.heartbeat)

    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        self.broker.publish(self, address, data)

    def turns(self) -> Sequence[Turn]:
        return (self._turn,)

    def _receive(self, timeout: float | None) -> bool:
        """Deliver what comes in, and ask the broker for a sign of life every third of a heartbeat."""
        if self.failure is not None:
            raise self.failure
        now = monotonic()
        if now >= self._ping_at:
            self._ping_at = now + self._interval
            self._missed = 0 if self.broker.answers(self) else self._missed + 1
            if self._missed == _MISSED:
                raise TimeoutError(f"the broker was silent for {self.transport.heartbeat:g} s")
        left = self._ping_at - now
        inbox = self.inbox
        item = inbox.get(left if timeout is None or timeout > left else timeout)
        if type(item) is _Place:
            item = self.broker.take(self, item)
        if type(item) is Parcel:
            self._deliver(item)
        elif item is not None:
            assert isinstance(item, Address)
            self.broker.left(self, item)
        return len(inbox) > 0

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.transport.lost(self, error)

    def _deliver(self, parcel: Parcel) -> None:
        place = parcel.place
        if parcel.returned:
            self.taken += parcel.weight
            self.transport.return_undelivered(parcel.address, parcel.data)
        elif parcel.attempted:  # ANYCAST: was taken from the queue, which gives each frame once
            if not self.transport.deliver(parcel.address, parcel.data):
                self.broker.give_back(self, parcel)
        elif place is not None:
            self.taken += parcel.weight
            pair = (parcel.sender.transport, place)
            if parcel.seq <= self._seen.get(pair, 0):
                return  # a second attempt
            self._seen[pair] = parcel.seq
            if len(self._seen) > self._seen_limit:
                self._seen = self.broker.current(self, self._seen)
                self._seen_limit = max(_SEEN, 2 * len(self._seen))
            if self.leaving and place.address in self.leaving:
                return  # sent before the address was last left
            self.transport.deliver(place.address, parcel.data)


class FakeBroker:
    """One in-process broker. It lives as long as a session or `dse.testing.faults` uses it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        # Protected by lock.
        self.interfere: Callable[[Parcel, _FakeSession | None], None] | None = None
        """Called, with the lock held, instead of `attempt`; the receiver is None for ANYCAST."""
        self.stopped = False
        self.paused = False
        self.cuts: tuple[Callable[[FakeTransport], bool], ...] = ()
        self.sessions: set[_FakeSession] = set()
        self._buses: WeakValueDictionary[str, _Bus] = WeakValueDictionary()
        self._held: list[Parcel] = []  # accepted while paused
        self._casualties: list[_FakeSession] = []  # their transports are to be told
        self._sleepers: list[Inbox[Any]] = []  # whose receivers are to be woken up

    @classmethod
    def named(cls, name: str) -> FakeBroker:
        """Return the broker of that name in this process."""
        with _brokers_lock:
            broker = _brokers.get(name)
            if broker is None:
                broker = _brokers[name] = cls(name)
            return broker

    def leftovers(self, bus: str) -> set[str]:
        """Return what there is on a bus: its connections, its addresses with listeners, frames that wait."""
        with self.lock:
            found = {f"connection {id(s):x} on {bus}" for s in self.sessions if s.established and s.bus.name == bus}
            known = self._buses.get(bus)
            found |= {f"listeners of {wire_name(bus, address)}" for address in known.places} if known else set()
            return found | {f"frame to {wire_name(bus, p.address)}" for p in self._held if p.sender.bus.name == bus}

    # What sessions ask for

    def attach(self, session: _FakeSession, timeout: float) -> None:
        """Connect a session; raises `OSError` when the broker is down or does not answer."""
        with self.lock:
            self._check(session)
            if self.stopped:
                raise ConnectionRefusedError(f"the broker {self.name!r} is not running")
            self.sessions.add(session)
            session.bus = self._buses.setdefault(session.bus.name, session.bus)
        while True:
            cuts = self.cuts
            cut = any(cuts_off(session.transport) for cuts_off in cuts)
            with self.lock:
                if self.cuts is not cuts:
                    continue
                session.cut = cut
                self._await_answer(session, timeout)
                session.established = True
                return

    def detach(self, session: _FakeSession) -> None:
        """Disconnect a session, dead or alive; its thread ends."""
        with self.lock:
            if session.failure is None:
                session.failure = ConnectionAbortedError("the connection was closed")
            session.inbox.put(None)
            self._sleepers.append(session.inbox)
            self._drop(session)
            self.changed.notify_all()
        self.report()

    def listen(self, session: _FakeSession, addresses: Sequence[Address], timeout: float) -> None:
        """Register a session as a listener."""
        with self.lock:
            self._await_answer(session, timeout)
            for address in addresses:
                place = session.bus.places.get(address)
                if place is None:
                    place = session.bus.places[address] = _Place(address)
                place.listeners.setdefault(session, 0)
                session.places[address] = place

    def unlisten(self, session: _FakeSession, address: Address, timeout: float) -> None:
        """Take a session off an address; what is in its inbox from before is not delivered."""
        with self.lock:
            self._await_answer(session, timeout)
            place = session.places.pop(address, None)
            if place is not None:
                session.leaving[address] = session.leaving.get(address, 0) + 1
                session.inbox.put(address)
                self._sleepers.append(session.inbox)
                self._leave(session, place)
        self.report()

    def left(self, session: _FakeSession, address: Address) -> None:
        """Learn that a session has passed all that came before it left an address."""
        with self.lock:
            session.leaving[address] -= 1
            if not session.leaving[address]:
                del session.leaving[address]

    def publish(self, sender: _FakeSession, address: Address, data: bytes) -> None:
        """Route data to whoever listens."""
        with self.lock:
            if sender.failure is not None:
                self._check(sender)
            parcel = Parcel(sender, address, data, next(sender.transport.sequence))
            if sender.cut:
                sender.holes = True
            elif self.paused:
                self._hold(parcel)
            else:
                self._route(parcel)
            sleepers = self._sleepers
            if sleepers:
                self._sleepers = []
        for inbox in sleepers:
            inbox.wake()
        if self._casualties:
            self.report()

    def take(self, session: _FakeSession, place: _Place) -> Parcel | None:
        """Return the oldest frame that waits at an ANYCAST address, if the session still listens there."""
        with self.lock:
            if session not in place.listeners:
                return None  # its invitations went to the others when it left
            place.listeners[session] = max(0, place.listeners[session] - 1)
            if not place.waiting:
                return None
            parcel = place.waiting.popleft()
            place.bytes -= len(parcel.data)
            return parcel

    def give_back(self, session: _FakeSession, parcel: Parcel) -> None:
        """Pass on a frame whose taker is leaving the address at this moment: it is somebody else's now."""
        with self.lock:
            place = parcel.sender.bus.places.get(parcel.address)
            if place is None:
                self._return(parcel)
            else:
                place.waiting.appendleft(parcel)
                place.bytes += len(parcel.data)
                # Not the one that gives it back, which would take it again and again until it has left.
                other = next((listener for listener in place.listeners if listener is not session), session)
                if other in place.listeners:
                    place.listeners[other] += 1
                if other is not session:
                    self._put(other, place, 0)
        self.report()

    def answers(self, session: _FakeSession) -> bool:
        """Say whether the broker answers a heartbeat."""
        return not (self.paused or session.cut)

    def current(
        self, session: _FakeSession, seen: dict[tuple[FakeTransport, _Place], int]
    ) -> dict[tuple[FakeTransport, _Place], int]:
        """Return the part of `seen` that can still matter."""
        with self.lock:
            senders = {other.transport for other in self.sessions}
            return {key: seq for key, seq in seen.items() if key[0] in senders and session in key[1].listeners}

    # What faults ask for; with `lock` held, and `report` called after it was released

    def attempt(self, parcel: Parcel, receiver: _FakeSession | None) -> None:
        """Deliver a parcel to a session's inbox, or to its ANYCAST queue; a second attempt changes nothing."""
        if receiver is not None:
            self._put(receiver, parcel, parcel.weight)
            return
        place = parcel.sender.bus.places.get(parcel.address)
        if place is None:
            if not parcel.attempted:
                self._return(parcel)
            return
        if not parcel.attempted:
            parcel.attempted = True
            place.waiting.append(parcel)
            place.bytes += len(parcel.data)
        self._invite(place)

    def report(self) -> None:
        """Wake up who is to receive, and tell the transports of sessions that died; without the lock."""
        with self.lock:
            casualties, self._casualties = self._casualties, []
            sleepers, self._sleepers = self._sleepers, []
        for inbox in sleepers:
            inbox.wake()
        for session in casualties:
            assert session.failure is not None
            session.transport.lost(session, session.failure)

    def stop(self) -> None:
        """Die: every connection breaks, every queue is gone."""
        with self.lock:
            self.stopped, self.paused = True, False
            self._held = []
            for bus in list(self._buses.values()):
                for place in bus.places.values():
                    place.waiting.clear()
                    place.bytes = 0
                bus.places.clear()
            for session in list(self.sessions):
                if session.cut and session.established:
                    session.places, session.holes = {}, True  # the news does not reach it
                else:
                    self._lose(session, ConnectionResetError(f"the broker {self.name!r} went down"))
            self.changed.notify_all()
        self.report()

    def start(self) -> None:
        """Run again, empty."""
        with self.lock:
            self.stopped = False

    def pause(self) -> None:
        """Hang: answer nothing, deliver nothing, accept little."""
        with self.lock:
            self.paused = not self.stopped

    def resume(self) -> None:
        """Go on, beginning with what was accepted meanwhile."""
        with self.lock:
            self.paused = False
            held, self._held = self._held, []
            for session in self.sessions:
                session.held = (0, 0)
            for parcel in held:
                self._route(parcel)
            self.changed.notify_all()
        self.report()

    def cut(self, cuts_off: Callable[[FakeTransport], bool]) -> None:
        """Cut off the transports, of now and later, that the predicate chooses: a half-open connection."""
        with self.lock:
            self.cuts = (*self.cuts, cuts_off)
            sessions = list(self.sessions)
        chosen = [session for session in sessions if cuts_off(session.transport)]
        with self.lock:
            if cuts_off in self.cuts:
                for session in chosen:
                    session.cut = True

    def mend(self) -> None:
        """End every cut. A connection that has lost something meanwhile is reset: it must not go on with a gap."""
        with self.lock:
            self.cuts = ()
            for session in list(self.sessions):
                session.cut = False
                if session.holes:
                    self._lose(session, ConnectionResetError("the connection was cut"))
            self.changed.notify_all()
        self.report()

    # With the lock held

    def _check(self, session: _FakeSession) -> None:
        if session.failure is not None:
            raise ConnectionResetError(str(session.failure))

    def _await_answer(self, session: _FakeSession, timeout: float) -> None:
        answered = self.changed.wait_for(lambda: session.failure is not None or self.answers(session), timeout)
        self._check(session)
        if not answered:
            raise TimeoutError(f"the broker {self.name!r} did not answer within {timeout:g} s")

    def _hold(self, parcel: Parcel) -> None:
        frames, size = parcel.sender.held
        if frames >= _SOCKET_FRAMES or (frames and size + len(parcel.data) > _SOCKET_BYTES):
            raise TimeoutError(f"the broker {self.name!r} takes no more")
        parcel.sender.held = (frames + 1, size + len(parcel.data))
        self._held.append(parcel)

    def _route(self, parcel: Parcel) -> None:
        address = parcel.address
        place = parcel.place = parcel.sender.bus.places.get(address)
        deliver = self.interfere or self.attempt
        if address.delivery is Delivery.FANOUT:
            if place is not None:
                for receiver in tuple(place.listeners):
                    deliver(parcel, receiver)
        elif place is None:
            self._return(parcel)
        elif address.delivery is Delivery.ANYCAST:
            deliver(parcel, None)
        else:
            deliver(parcel, next(reversed(place.listeners)))

    def _return(self, parcel: Parcel) -> None:
        parcel.returned = True
        self._put(parcel.sender, parcel, parcel.weight)

    def _put(self, receiver: _FakeSession, item: Parcel | _Place, size: int) -> None:
        if receiver.failure is not None:
            return
        if receiver.cut:
            receiver.holes = True
            return
        receiver.entered += size
        backlog = receiver.entered - receiver.taken
        if len(receiver.inbox) >= _INBOX_FRAMES or backlog > _INBOX_BYTES:
            count = len(receiver.inbox)
            self._lose(receiver, ConnectionAbortedError(f"slow consumer: {count:,} frames, {backlog:,} bytes waited"))
        else:
            receiver.inbox.put(item)
            if receiver.inbox.waits:
                self._sleepers.append(receiver.inbox)

    def _invite(self, place: _Place) -> None:
        """Let the next listener in turn take a frame."""
        listener = next(iter(place.listeners))
        place.listeners.move_to_end(listener)
        place.listeners[listener] += 1
        if place.bytes > _INBOX_BYTES:
            self._lose(listener, ConnectionAbortedError(f"slow consumer: {place.bytes:,} bytes waited"))
        else:
            self._put(listener, place, 0)

    def _lose(self, session: _FakeSession, cause: Exception) -> None:
        if session.failure is None:
            session.failure = cause
            session.inbox.put(None)
            self._sleepers.append(session.inbox)
            self._casualties.append(session)
        self._drop(session)

    def _drop(self, session: _FakeSession) -> None:
        self.sessions.discard(session)
        places, session.places = session.places, {}
        for place in places.values():
            self._leave(session, place)

    def _leave(self, session: _FakeSession, place: _Place) -> None:
        """Take a listener off a place; what it was to take goes to the others, or back to the senders."""
        # Only the invitations it still held: more for every one that leaves would drown those that stay.
        invitations = place.listeners.pop(session, 0)
        for _ in range(min(invitations, len(place.waiting))):
            if not place.listeners:
                break
            self._invite(place)
        if not place.listeners:
            if session.bus.places.get(place.address) is place:
                del session.bus.places[place.address]
            waiting, place.waiting = place.waiting, deque()
            for parcel in waiting:
                # Past the bounds of the sender's inbox: a consumer that was slow, and left, must not cost the sender
                # its connection. They are as many as the consumer's bounds let wait.
                parcel.returned, parcel.weight = True, 0
                if parcel.sender.cut:
                    parcel.sender.holes = True
                else:
                    parcel.sender.inbox.put(parcel)
                    self._sleepers.append(parcel.sender.inbox)


_brokers: WeakValueDictionary[str, FakeBroker] = WeakValueDictionary()
_brokers_lock = threading.Lock()  # protects _brokers


def _forget_brokers() -> None:
    # A forked child has brokers of its own: the threads that hold the locks of these do not exist there.
    global _brokers, _brokers_lock
    _brokers, _brokers_lock = WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget_brokers)
