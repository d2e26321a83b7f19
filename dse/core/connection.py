"""What every driver with a broker behind it shares, written once.

A driver supplies a `Session`: one life of a connection. `BrokerTransport` owns the sessions: it opens the first,
watches it, replaces it after a loss with jittered exponential backoff, restores every listener before it says CONNECTED
again, stamps and checks ages, guards against fork, and tells its user what happened in the order in which it happened.

Threads: one *supervisor* a transport, which alone connects, disconnects and fires `state_changed`; and those a session
starts with `BrokerTransport.spawn` for receiving. `close` ends and joins all of them.

Lock: ``_changed`` protects every field that says so in ``__init__``. It is never held while a session, the client
library or an event handler is called.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import struct
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from dse.core.age import CLOCK_ID, STAMP, FrameAges
from dse.core.pace import Pace
from dse.core.receiving import Awaited, Turn
from dse.core.transport import Address, ConnectionState, Delivery, Transport, TransportEvents
from dse.core.url import TransportUrl
from dse.errors import ConfigError, FrameTooLarge, InvalidUrl, TransportError, TransportUnavailable

__all__ = ["JOIN_TIMEOUT", "OVERHEAD", "BrokerTransport", "Session", "backoff", "flag", "seconds", "wire_name"]

_log = logging.getLogger("dse.transport")

_LONGEST_WIRE_NAME = 200  # AMQP's short strings end at 255 bytes
_PLAIN = b"\x00"  # a frame without ttl; one with ttl begins with STAMP, whose first byte is 1
_pack_stamp, _unpack_stamp, _STAMP_SIZE = STAMP.pack, STAMP.unpack_from, STAMP.size
OVERHEAD = STAMP.size
"""Bytes that the data given to `Session.publish` is longer than the frame, at most: its age travels before it."""
JOIN_TIMEOUT = 10.0
"""Seconds that closing waits for a thread: an event handler that blocks longer is left behind."""


def seconds(text: str) -> float:
    """Read a URL option that is a positive time in seconds."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is not a positive number of seconds")
    return value


def flag(text: str) -> bool:
    """Read a URL option that is on or off."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def wire_name(bus: str, address: Address) -> str:
    """Return the name that stands for an address on a broker: plain ASCII, at most 200 characters, unambiguous.

    ``dse:<bus>:<d|a|f>:<name>``, both names %-encoded so that nothing in them can be taken for the broker's syntax; a
    name too long for that ends in its SHA-256 instead.
    """
    prefix = f"dse:{quote(bus, safe='', errors='surrogatepass')}:{address.delivery.value[0]}:"
    name = quote(address.name, safe="", errors="surrogatepass")
    if len(prefix) + len(name) > _LONGEST_WIRE_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()
        room = _LONGEST_WIRE_NAME - len(prefix) - len(digest) - 1
        if room < 0:
            raise ConfigError(f"the bus name {bus[:40]!r}… is too long")
        name = f"{name[:room]}!{digest}"  # "!" stands in no quoted name
    return prefix + name


def backoff(first: float = 0.05, factor: float = 2.0, longest: float = 2.0) -> Iterator[float]:
    """Yield delays in seconds that grow exponentially to `longest`, each drawn from its upper half (jitter).

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(longest, delay * factor)


class Session(ABC):
    """One life of a driver's connection; made by the driver, used and ended by `BrokerTransport`.

    A session reports through its transport: `BrokerTransport.deliver`, `.return_undelivered` and `.lost`.
    """

    lost_for: BaseException | None = None
    """The first cause for which it was reported as lost; set by the transport."""

    @abstractmethod
    def open(self) -> None:
        """Connect within the connect timeout, start the receiving threads; raise when that fails."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect, from any thread, at any time, any number of times; never raises.

        Makes a blocked `open`, `listen` or `publish` of another thread fail at once, leaves nothing on a broker that
        can be reached, and does not return before the session's threads have ended (but for the calling one).
        """

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: drop the inherited sockets without a byte or a shutdown on the wire."""

    @abstractmethod
    def listen(self, addresses: Sequence[Address]) -> None:
        """Return once what anybody sends to these addresses arrives; raise like `publish`."""

    @abstractmethod
    def unlisten(self, address: Address) -> None:
        """Return once nothing more is delivered for the address; raise like `publish`."""

    @abstractmethod
    def publish(self, address: Address, data: bytes, ttl: float | None) -> None:
        """Hand data to the broker, in order for each address, from any thread, in bounded time.

        data: the frame, and up to `OVERHEAD` bytes before it. ttl: seconds, for a broker that can be told; None is for
        ever. What arrives too late is dropped by `BrokerTransport.deliver` in any case. Raises one of
        `BrokerTransport.connection_errors` when the connection is at fault; the session is then replaced.
        """

    def turns(self) -> Sequence[Turn]:
        """Return who receives on each connection, the one on which answers come first; none if that never changes."""
        return ()


class _Listener:
    """One address in the registry: `ready` is set once its fate is known; `failed` says which."""

    __slots__ = ("failed", "ready")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.failed = False


class BrokerTransport(Transport):
    """Base of drivers with a broker: implement `session`, declare `capabilities`, and `options` if there are more.

    Every driver takes the URL options ``connect_timeout`` (seconds, 5) and ``heartbeat`` (seconds, 10): a broker that
    is silent for that long counts as lost.

    What a session may use: `url` and `bus`; `connect_timeout` and `heartbeat` (seconds); `given`, the values of the
    driver's own `options` that the URL has, by name; and `spawn`, `deliver`, `return_undelivered` and `lost`.
    """

    options: ClassVar[Mapping[str, Callable[[str], Any]]] = {}
    """URL options besides those of every driver: what reads the text, and raises `ValueError` where it cannot."""
    relieves: ClassVar[bool] = True
    """False where sessions have no `Session.turns`."""
    connection_errors: ClassVar[tuple[type[BaseException], ...]] = (OSError,)
    """What the client library raises when the connection is at fault."""

    def __init__(self, url: TransportUrl, *, bus: str, events: TransportEvents) -> None:
        super().__init__(url, bus=bus, events=events)
        if not bus or not isinstance(bus, str):
            raise ConfigError("a bus needs a name")
        wire_name(bus, Address(Delivery.DIRECT, "x" * _LONGEST_WIRE_NAME))
        given = url.read_options({"connect_timeout": seconds, "heartbeat": seconds, **self.options})
        self.connect_timeout: float = given.pop("connect_timeout", 5.0)
        self.heartbeat: float = given.pop("heartbeat", 10.0)
        self.given: dict[str, Any] = given
        self._losses: tuple[type[BaseException], ...] = (*self.connection_errors, TransportUnavailable)
        self._forked = False
        self._ages = FrameAges()
        self._log_pace = Pace(10, 1 / 6)  # of lines about what was dropped
        self._ages_lock = threading.Lock()  # protects _ages
        self._changed = threading.Condition()
        # All below: protected by _changed; _session may be read without it.
        self._session: Session | None = None  # the live one, whose listeners are all restored
        self._opening: Session | None = None  # the one the supervisor is connecting
        self._lost: tuple[Session, BaseException] | None = None
        self._last_cause: BaseException | None = None  # why the connection broke, until it is back
        self._listeners: dict[Address, _Listener] = {}
        self._closing = False
        self._supervisor: threading.Thread | None = None
        self._open_result: BaseException | bool | None = None
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    # What a driver implements

    @abstractmethod
    def session(self) -> Session:
        """Return a new, unopened session."""

    # What a session calls

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Start and return a thread of the driver, with a name that says whose it is; its session joins it."""
        thread = threading.Thread(target=target, name=f"dse-{self.url.driver}-{name}", daemon=True)
        with self._changed:
            self._threads.add(thread)
        thread.start()
        return thread

    def deliver(self, address: Address, data: bytes) -> bool:
        """Hand received data on, unless it is older than its ttl.

        Returns False when the address is not listened on any more: the driver may give the data to somebody else.
        """
        if self._closing or address not in self._listeners:
            return False
        arrived = time.monotonic()
        frame = self._unstamp(data, arrived)
        if frame is not None:
            believed: bool | None = False
            try:
                believed = self.events.received(address, frame)
            except Exception:
                _log.exception("%s: the handler of a frame to %s raised", self.url, address)
            if believed is not False and data[:1] != _PLAIN and data[1:9] != CLOCK_ID:
                _, clock, stamp, _ = _unpack_stamp(data)
                with self._ages_lock:
                    self._ages.believe(arrived, clock, stamp)
        return True

    def return_undelivered(self, address: Address, data: bytes) -> None:
        """Report that data this transport sent found no listener."""
        if self._closing:
            return
        frame = data[1:] if data[:1] == _PLAIN else data[STAMP.size :]
        try:
            self.events.undeliverable(address, frame)
        except Exception:
            _log.exception("%s: the handler of an undeliverable frame to %s raised", self.url, address)

    def lost(self, session: Session, cause: BaseException) -> None:
        """Report that a session's connection broke; from any thread, any number of times."""
        with self._changed:
            session.lost_for = session.lost_for or cause
            if session is self._session or session is self._opening:
                if self._lost is None:
                    self._lost = (session, cause)
                    self._last_cause = cause
                self._session = None
                self._changed.notify_all()

    # The SPI

    def open(self) -> None:
        self._refuse_fork()
        with self._changed:
            if self._supervisor is not None and self._closing:
                raise TransportUnavailable(f"{self.url}: the transport is being closed", url=str(self.url))
            first = self._supervisor is None
            if first:
                self._begin()
        result = self._wait_opened()
        if result is True:
            return
        if first:
            self.close()
        if isinstance(result, TransportError):
            raise result
        raise self._unavailable("cannot be reached", result if isinstance(result, BaseException) else None)

    def _begin(self) -> None:
        """Start the supervisor; `_changed` is held."""
        self._closing = False
        self._lost = self._last_cause = None
        self._open_result = None
        self._listeners = {}
        supervisor = threading.Thread(target=self._supervise, name=f"dse-{self.url.driver}", daemon=True)
        self._supervisor = supervisor
        self._threads.add(supervisor)
        _open_transports.add(self)
        supervisor.start()  # still locked: `close` must not find one that it cannot join yet

    def _wait_opened(self) -> BaseException | bool | None:
        with self._changed:
            # The supervisor keeps the connect timeout; the margin only guards against a driver that does not.
            self._changed.wait_for(lambda: self._open_result is not None, self.connect_timeout * 2 + 5)
            return self._open_result

    def close(self) -> None:
        if self._forked:
            return
        with self._changed:
            supervisor = self._supervisor
            if supervisor is None:
                return
            self._closing = True
            opening = self._opening
            own_thread = threading.current_thread() in self._threads
            self._changed.notify_all()
        if opening is not None:
            opening.close()
        if own_thread:
            return  # called from an event handler: the supervisor finishes after the handler has returned
        supervisor.join(JOIN_TIMEOUT)
        if supervisor.is_alive():
            _log.warning("%s: an event handler still blocks; closed without waiting for it", self.url)

    def listen(self, address: Address) -> None:
        self.listen_all((address,))

    def listen_all(self, addresses: Sequence[Address]) -> None:
        self._refuse_fork()
        for address in addresses:
            self._check(address)
        wanted = list(dict.fromkeys(addresses))
        while wanted:
            ours: dict[Address, _Listener] = {}
            others: dict[Address, _Listener] = {}
            with self._changed:
                session = self._session
                if session is None or self._closing:
                    raise self._unavailable("cannot listen", self._cause())
                for address in wanted:
                    listener = self._listeners.get(address)
                    if listener is None:
                        ours[address] = self._listeners[address] = _Listener()
                    else:
                        others[address] = listener
            if ours:
                self._listen(session, ours)
            for listener in others.values():
                listener.ready.wait()
            # Whoever was first failed: try for ourselves.
            wanted = [address for address, listener in others.items() if listener.failed]

    def _listen(self, session: Session, listeners: dict[Address, _Listener]) -> None:
        """Let the session listen; on failure the addresses leave the registry again."""
        failed: BaseException | None = None
        try:
            session.listen(list(listeners))
            with self._changed:
                # Lost since: the supervisor restores every address in the registry before it says CONNECTED.
                if self._session is not session:
                    failed = self._cause() or ConnectionResetError("connection lost")
                else:
                    for listener in listeners.values():
                        listener.ready.set()
        except BaseException as error:
            failed = _first_cause(session, error)
        if failed is None:
            return
        for address, listener in listeners.items():
            self._forget(address, listener)
        if not isinstance(failed, self._losses):
            raise failed
        self.lost(session, failed)
        raise self._unavailable("cannot listen", failed) from failed

    def unlisten(self, address: Address) -> None:
        self._refuse_fork()
        with self._changed:
            listener = self._listeners.get(address)
        if listener is None:
            return
        listener.ready.wait()
        with self._changed:
            if self._listeners.get(address) is not listener:
                return
            # A new entry holds back whoever wants to listen again until the broker has let go of the old one.
            leaving = self._listeners[address] = _Listener()
            session = self._session
        try:
            if session is not None:
                session.unlisten(address)
        except self._losses as error:
            assert session is not None
            self.lost(session, error)
        finally:
            self._forget(address, leaving)

    def send(self, address: Address, frame: bytes, *, ttl: float | None = None) -> None:
        if self._forked:
            self._refuse_fork()
        size = len(frame)
        if size > self.capabilities.max_frame:
            raise FrameTooLarge(
                f"{self.url}: a frame of {size:,} bytes to {address.name!r} is over this driver's limit of "
                f"{self.capabilities.max_frame:,}",
                size=size,
                limit=self.capabilities.max_frame,
            )
        if not address.name:
            self._check(address)
        session = self._session
        if session is None:
            raise self._unavailable("cannot send", self._cause())
        if ttl is None or ttl == math.inf:
            ttl, data = None, _PLAIN + frame
        elif ttl > 0:
            data = _pack_stamp(1, CLOCK_ID, time.monotonic(), ttl) + frame
        else:
            return
        try:
            session.publish(address, data, ttl)
        except self._losses as error:
            self.lost(session, error)
            raise self._unavailable("cannot send", error) from error

    def relieve(self, thread: int) -> bool:
        session = self._session
        return session is not None and any(turn.relieve(thread) for turn in session.turns())

    def wait(self, answer: Awaited, timeout: float) -> bool:
        session = self._session
        turns = session.turns() if session is not None else ()
        return turns[0].wait(answer, timeout) if turns else answer.wait(timeout)

    # The supervisor

    def _supervise(self) -> None:
        session = self._first_session()
        if session is None:
            self._finish(None)
            return
        while self._watch(session):
            # Told before the session is cleared away: a handler that blocks in it must not hold the news back.
            self._fire(ConnectionState.DISCONNECTED.because(self._cause()))
            self._end(session)
            again = self._reconnect()
            if again is None:
                break
            session = again
            self._fire(ConnectionState.CONNECTED)
        self._finish(session)

    def _first_session(self) -> Session | None:
        result: BaseException | bool
        session: Session | None = None
        try:
            session = self._connect()
            self._fire(ConnectionState.CONNECTED)
            result = True
        except BaseException as error:
            result = error
        with self._changed:
            self._open_result = result
            self._changed.notify_all()
        return session

    def _watch(self, session: Session) -> bool:
        """Wait until the session is lost (True) or the transport is to close (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._lost is not None)
            return not self._closing

    def _reconnect(self) -> Session | None:
        attempts = 0
        for delay in backoff():
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, delay):
                    return None
            try:
                session = self._connect()
            except Exception as error:
                if self._closing:
                    return None
                attempts += 1
                # The first failures and then every 16th: an outage of a night must not fill the disk.
                level = logging.WARNING if attempts <= 2 or attempts % 16 == 0 else logging.DEBUG
                _log.log(level, "%s: attempt %d to reconnect failed: %s", self.url, attempts, error)
            else:
                _log.info("%s: connected again", self.url)
                return session
        return None

    def _connect(self) -> Session:
        """Open a session, restore every listener and make it the live one."""
        session = self.session()
        with self._changed:
            if self._closing:
                raise self._unavailable("is being closed", None)
            self._opening = session
            self._lost = None
        try:
            session.open()
            restored: set[Address] = set()
            while True:
                with self._changed:
                    if self._lost is not None:
                        raise self._lost[1]
                    if self._closing:
                        raise self._unavailable("is being closed", None)
                    wanted = {a for a, listener in self._listeners.items() if listener.ready.is_set()}
                    missing = sorted(wanted - restored, key=lambda a: (a.delivery.value, a.name))
                    surplus = restored - wanted
                    if not missing and not surplus:
                        self._session, self._opening, self._last_cause = session, None, None
                        return session
                if missing:
                    session.listen(missing)
                for address in surplus:
                    session.unlisten(address)
                restored = (restored - surplus) | set(missing)
        except BaseException as raised:
            error = _first_cause(session, raised)
            with self._changed:
                self._opening = None
                self._lost = None
            self._end(session)
            if isinstance(error, TransportError | InvalidUrl) or not isinstance(error, Exception):
                raise error from error.__cause__
            raise self._unavailable("cannot be reached", error) from error

    def _finish(self, session: Session | None) -> None:
        with self._changed:
            self._session = None
        if session is not None:
            self._end(session)
            self._fire(ConnectionState.CLOSED)
        _open_transports.discard(self)
        with self._changed:
            for listener in self._listeners.values():
                listener.failed = True
                listener.ready.set()
            self._listeners = {}
            self._supervisor = None

    def _end(self, session: Session) -> None:
        try:
            session.close()
        except Exception:
            _log.exception("%s: a session could not be closed", self.url)

    def _fire(self, state: ConnectionState) -> None:
        try:
            self.events.state_changed(state)
        except Exception:
            _log.exception("%s: the handler of state %s raised", self.url, state)

    # Small parts

    def _check(self, address: Address) -> None:
        if not address.name or not isinstance(address.name, str):
            raise ConfigError("an address needs a name")

    def _forget(self, address: Address, listener: _Listener) -> None:
        with self._changed:
            if self._listeners.get(address) is listener:
                del self._listeners[address]
            listener.failed = True
            listener.ready.set()

    def _cause(self) -> BaseException | None:
        return self._last_cause

    def _unavailable(self, what: str, cause: BaseException | None) -> TransportUnavailable:
        why = f": {cause}" if cause is not None and str(cause) else f": {cause!r}" if cause is not None else ""
        if cause is None and what.startswith("cannot"):
            why = ": not connected" if self._supervisor is not None else ": not open"
        if isinstance(cause, TransportUnavailable):
            why = f": {str(cause).removeprefix(f'{self.url} ')}"
        return TransportUnavailable(f"{self.url} {what}{why}", url=str(self.url), cause=cause)

    def _unstamp(self, data: bytes, arrived: float) -> bytes | None:
        """Return the frame in received data, or None when it is too old or was not sent by a DSE transport."""
        if data[:1] == _PLAIN:
            return data[1:]
        try:
            kind, clock, stamp, ttl = _unpack_stamp(data)
        except struct.error:
            kind, clock, stamp, ttl = 0, b"", 0.0, 0.0
        if kind != 1 or not math.isfinite(stamp + ttl):
            if self._log_pace.take(time.monotonic()):
                _log.warning("%s: dropped %d bytes that no DSE transport sent", self.url, len(data))
            return None
        age = arrived - stamp
        if clock != CLOCK_ID:
            with self._ages_lock:
                age = self._ages.age(arrived, clock, stamp)
        return data[_STAMP_SIZE:] if age <= ttl else None

    def _refuse_fork(self) -> None:
        if self._forked:
            raise TransportUnavailable(
                f"{self.url}: this transport was opened in another process, before a fork; open one of your own",
                url=str(self.url),
            )

    def _abandon(self) -> None:
        # The threads that held the locks do not exist in the child: the fields are read without them.
        self._forked = True
        for session in (self._session, self._opening):
            if session is not None:
                session.abandon()


def _first_cause(session: Session, error: BaseException) -> BaseException:
    """Return what a session was lost for, where an error says only that it is lost."""
    cause = session.lost_for
    return cause if cause is not None and isinstance(error, ConnectionError) else error


_open_transports: weakref.WeakSet[BrokerTransport] = weakref.WeakSet()


def _abandon_all() -> None:
    for transport in list(_open_transports):
        transport._abandon()


os.register_at_fork(after_in_child=_abandon_all)
