"""What a session does with its connection to a NATS server.

Writers send without waiting for anything. Whether a frame reached nobody is known later: the server answers a message
that has a reply subject and no subscriber with status 503, in the order published, to the sender's *inbox*. What was
sent is remembered until then (`_pending`).
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dse.core.outbox import Outbox
from dse.core.receiving import Turn
from dse.core.sockets import unavailable
from dse.core.transport import Address, Delivery
from dse_nats._claims import CLAIM, Claims
from dse_nats._parts import Assembly, is_part, split
from dse_nats._pending import Awaited, Pending
from dse_nats._wire import Endpoint, NotPossible, Refused, Wire
from dse_nats.protocol import (
    NO_RESPONDERS,
    PING,
    PONG,
    Event,
    Info,
    Message,
    Refusal,
    Signal,
    publish,
    subscribe,
    unsubscribe,
)

__all__ = ["Link"]

_log = logging.getLogger("dse.transport")

_INBOX_SID = b"0"
_GRANT = b"g"  # begins the last token of the subject that a large frame is granted
_CLAIM = b"c"  # begins that of the subject to which a grant is sent
_MOST_GRANTS = 1000  # remembered; a sender that died never uses its own
_SMALLEST_PAYLOAD = 1024
_REFUSED_SUBJECT = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]*)"')

HandOn = Callable[[Address, bytes], object]
Item = tuple[HandOn, Address, bytes]


class _Publish(NamedTuple):
    """A frame on its way: to which subject, and what for; `claim` where it is a claim for the frame."""

    subject: bytes
    address: Address
    data: bytes
    report: bool
    claim: int = 0


class Link:
    """The connection to one server.

    bus: what every subject begins with. heartbeat: seconds of silence that count as a loss. deliver: is handed what
    arrives, or says False when nobody takes it any more. undelivered: is handed what reached nobody. lost: told once
    when the connection is lost, in the reading thread.
    """

    def __init__(
        self,
        url: object,
        endpoint: Endpoint,
        *,
        bus: bytes,
        subject_of: Callable[[Address], bytes],
        heartbeat: float,
        deliver: Callable[[Address, bytes], bool],
        undelivered: HandOn,
        lost: Callable[[BaseException], None],
    ) -> None:
        self.wire = Wire(url, endpoint)
        self.turn: Turn | None = None  # once it is started
        self.failure: BaseException | None = None
        self._url = url
        self._heartbeat = heartbeat
        self._deliver, self._undelivered, self._lost = deliver, undelivered, lost
        self._subject_of = subject_of
        self._nonce = secrets.token_bytes(4)
        self.inbox = b"%br.%b." % (bus, secrets.token_hex(8).encode())
        self._room = 0  # bytes that a message may have
        self._closing = False
        self._refused = 0
        # Subscriptions: changed before subscribing and after unsubscribing, under wire.lock; read by who receives.
        self._sids: dict[Address, bytes] = {}
        self._addresses: dict[bytes, Address] = {}
        self._last_sid = 0
        self._outbox: Outbox[_Publish] = Outbox(self.wire.lock, self._write, heartbeat)
        self.wire.released = self._outbox.flush  # before it waits for what may be the answer to what was left there
        self._frames = 0  # frames in parts; under wire.lock
        self._pending = Pending()
        self._claims = Claims(heartbeat)
        # Receiving: whose turn it is.
        self._ahead: Event | None = None  # the next event that was received as a whole
        self._backlog: deque[Item] = deque()
        self._assembly = Assembly()
        self._grants: dict[bytes, Address] = {}  # by subject
        self._last_grant = 0
        self._silent = 0
        self._handling = False  # a handler runs, and nothing is read meanwhile; only a hint, for it may be relieved
        self._left = False  # no longer subscribed to anything, on the way to closing
        self._put_back: list[tuple[Address, bytes]] = []

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """The threads that receive, or were relieved of it and are still in a handler."""
        return self.turn.threads if self.turn is not None else ()

    def open(self, deadline: float) -> None:
        """Connect; raises `TransportUnavailable` that says in words what is wrong."""
        self.wire.open(deadline)
        self._room = int(self.wire.info.get("max_payload") or 0)
        if self._room < _SMALLEST_PAYLOAD:
            what = f"takes messages of {self._room} bytes only; DSE needs a max_payload of {_SMALLEST_PAYLOAD}"
            raise unavailable(self._url, f"{what} ({self.wire.endpoint})")
        try:
            self.wire.ask(deadline, subscribe(self.inbox + b"*", _INBOX_SID))
        except Refused as error:
            raise self._not_permitted(str(error), error) from error

    def start(self, spawn: Callable[[Callable[[], None], str], threading.Thread]) -> None:
        """Begin to receive."""
        self.wire.run(send_timeout=self._heartbeat, receive_timeout=self._heartbeat / 4)
        self.turn = Turn("receive", self._receive, self._fail, spawn, self.wire.lead)
        self.turn.start()

    # Sending, from any thread

    def publish(self, subject: bytes, address: Address, data: bytes) -> None:
        """Publish data to an address that has this subject."""
        claims = self._claims
        if address.delivery is Delivery.ANYCAST and (claims.any or len(data) > self._room):
            now = time.monotonic()
            try:
                claim = claims.begin(address, data, now, large=len(data) > self._room)
            except OverflowError as error:
                what = f"{self._url} cannot send to {address.name!r}: {error}"
                raise NotPossible(what, url=str(self._url), cause=error) from error
            if claim is None:
                return
            if claim:
                self._send(_Publish(subject, address, CLAIM, True, claim))
                return
        self._send(_Publish(subject, address, data, address.delivery is not Delivery.FANOUT))

    def _send(self, item: _Publish) -> None:
        if self._ahead is not None and self.turn is not None and self.turn.mine:
            self._outbox.keep(item, len(item.data))
        else:
            self._outbox.send(item, len(item.data))

    def _write(self, items: list[_Publish]) -> None:
        out: list[bytes] = []
        size = 0
        for subject, address, data, report, claim in items:
            reply = b""
            if claim:
                reply = b"%b%b%d" % (self.inbox, _CLAIM, claim)
            elif report:
                reply = b"%b%d" % (self.inbox, self._pending.sent(address, data))
            if len(data) <= self._room:
                out.append(publish(subject, data, reply))
            else:
                self._frames += 1
                frame_id = self._nonce + self._frames.to_bytes(4, "big")
                out += (publish(subject, part, reply) for part in split(data, self._room, frame_id))
            size += len(data)
        if self._pending.ping_due(len(items), size):
            out.append(self._ping(None))
        self.wire.send(out[0] if len(out) == 1 else b"".join(out))

    def _ping(self, awaited: Awaited | None) -> bytes:
        """Return a PING that proves what was sent before it; `wire.lock` is held."""
        self._pending.pinged(awaited)
        return PING

    # Subscriptions

    def subscribe(self, addresses: Mapping[Address, bytes]) -> None:
        """Return once what is published to these subjects arrives."""
        awaited = Awaited()
        with self.wire.lock:
            self._outbox.drain()
            commands = []
            for address, subject in addresses.items():
                self._last_sid += 1
                sid = b"%d" % self._last_sid
                self._sids[address], self._addresses[sid] = sid, address
                commands.append(subscribe(subject, sid, b"dse" if address.delivery is Delivery.ANYCAST else b""))
            self.wire.send(b"".join(commands) + self._ping(awaited))
        self._outbox.flush()
        try:
            self._await(awaited)
        except NotPossible:
            # Those that were permitted too: the caller listens to none of them.
            self._unsubscribe([sid for address in addresses if (sid := self._sids.pop(address, b""))])
            raise

    def mark(self, subject: bytes) -> bytes:
        """Subscribe to a subject for nothing but that it is known; return what ends that (`unmark`)."""
        with self.wire.lock:
            self._outbox.drain()
            self._last_sid += 1
            sid = b"%d" % self._last_sid
            self.wire.send(subscribe(subject, sid))
        self._outbox.flush()
        return sid

    def unmark(self, sid: bytes) -> None:
        """End what `mark` began."""
        with self.wire.lock:
            self._outbox.drain()
            self.wire.send(unsubscribe(sid))
        self._outbox.flush()

    def unsubscribe(self, address: Address) -> None:
        """Return once everything that still comes for the address has been handed on."""
        sid = self._sids.pop(address, None)
        if sid is None:
            return
        self._await(self._unsubscribe([sid]))
        self._addresses.pop(sid, None)

    def _unsubscribe(self, sids: Sequence[bytes]) -> Awaited:
        awaited = Awaited()
        with self.wire.lock:
            self._outbox.drain()
            self.wire.send(b"".join(map(unsubscribe, sids)) + self._ping(awaited))
        self._outbox.flush()
        return awaited

    def _await(self, awaited: Awaited) -> None:
        deadline = time.monotonic() + self._heartbeat
        turn = self.turn
        if turn is not None and turn.pin():
            # A handler waits, in the thread that alone could end the wait: read on, and hand on later.
            try:
                while not awaited.done and time.monotonic() < deadline:
                    item = self._step(None)
                    if item is not None:
                        self._backlog.append(item)
            finally:
                turn.unpin()
        else:
            awaited.wait(deadline - time.monotonic())
        if not awaited.done:
            raise TimeoutError(f"the server did not answer within {self._heartbeat:g} s")
        if awaited.failure is not None:
            raise awaited.failure

    # Receiving

    def _receive(self, timeout: float | None) -> bool:
        item = self._backlog.popleft() if self._backlog else self._step(timeout)
        if item is not None:
            self._handling = True
            item[0](item[1], item[2])
            self._handling = False
        return self._ahead is not None

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.wire.kill()
        with self.wire.lock:  # whoever comes later finds the connection dead
            waiting = self._pending.awaited
        for awaited in waiting:
            awaited.resolve(ConnectionResetError(str(error) or "connection lost"))
        if not self._closing:
            self._lost(error)

    def _step(self, timeout: float | None) -> Item | None:
        """Take one event off the connection, if one comes in `timeout` seconds; return what is to be handed on."""
        if self._claims.any:
            self._give_up_claims()
        event = self._ahead
        if event is None:
            self._outbox.flush()
            wire = self.wire
            if wire.receive(timeout):
                self._silent = 0
            elif timeout is not None:
                return None
            else:
                self._on_silence()
            self._outbox.flush()  # with TLS, receiving holds the lock
            event = wire.next()
            if event is None:
                return None
        self._ahead = self.wire.next()
        if type(event) is Message:
            return self._on_message(event)
        return self._on_control(event)

    def _on_silence(self) -> None:
        self._silent += 1
        if self._silent == 1:
            # A writer that holds the lock is a probe too: one must not wait for it here, but go on counting.
            if self.wire.lock.acquire(blocking=False):
                try:
                    self._outbox.drain()
                    self.wire.send(self._ping(None))
                finally:
                    self.wire.lock.release()
                self._outbox.flush()
        elif self._silent >= 4:
            raise TimeoutError(f"the server has been silent for {self._heartbeat:g} s")

    def _on_message(self, message: Message) -> Item | None:
        subject, sid, reply, status, data = message
        address = self._addresses.get(sid)
        if sid == _INBOX_SID:
            token = subject[len(self.inbox) :]
            address = self._grants.get(subject)
            if address is None:
                return self._on_answer(token, status, data)
        elif address is None:
            return None
        elif data == CLAIM and reply:
            self._grant(address, reply)
            return None
        if is_part(data):
            whole = self._assembly.add(subject, data)
            if whole is None:
                return None
            self._grants.pop(subject, None)
            data = whole
        return self._hand_on, address, data

    def _on_answer(self, token: bytes, status: int, data: bytes) -> Item | None:
        """Take what comes to the inbox: nobody is subscribed to what we sent, or a claim is granted."""
        if token[:1] == _CLAIM and token[1:].isdigit():
            claim = int(token[1:])
            if status:
                return self._give_up(claim)
            self._use_grant(claim, data)
            return None
        if status != NO_RESPONDERS or not token.isdigit():
            return None
        unheard = self._pending.reached_nobody(int(token))
        return None if unheard is None else (self._undelivered, *unheard)

    def _hand_on(self, address: Address, data: bytes) -> None:
        """Hand a frame on; one of many listeners that leaves gives back what came for it."""
        if self._deliver(address, data) or address.delivery is not Delivery.ANYCAST:
            return
        if self._closing and not self._left:
            self._put_back.append((address, data))  # it would only come back here
        elif len(data) > self._room:
            self.publish(self._subject_of(address), address, data)
        else:
            self._send(_Publish(self._subject_of(address), address, data, False))

    def _on_control(self, event: Event) -> Item | None:
        if event is Signal.PONG:
            self._pending.ponged()
        elif event is Signal.PING:
            with self.wire.lock:
                self._outbox.drain()
                self.wire.send(PONG)
            self._outbox.flush()
        elif isinstance(event, Refusal):
            return self._on_refusal(event.text)
        elif isinstance(event, Info):
            self.wire.info = dict(event.fields)
        return None

    def _on_refusal(self, text: str) -> Item | None:
        found = _REFUSED_SUBJECT.search(text)
        if found is None:
            raise Refused(f"the server ended the connection: {text}")
        if found[1] == "Subscription":
            for awaited in self._pending.awaited[:1]:  # its PING came right behind
                awaited.resolve(self._not_permitted(text, Refused(text)))
            return None
        # Every frame may be refused: the first and then every 1,000th is logged.
        if self._refused % 1000 == 0:
            _log.warning("%s: the server does not permit what DSE needs: %s", self._url, text)
        self._refused += 1
        subject = found[2].encode()
        unheard = self._pending.take(lambda address: self._subject_of(address) == subject)
        return None if unheard is None else (self._undelivered, *unheard)

    def _not_permitted(self, text: str, cause: BaseException) -> Exception:
        what = f"{self._url} does not permit the user what DSE needs: {text}"
        return NotPossible(what, url=str(self._url), cause=cause)

    # Large frames to one of many listeners; see `_claims`

    def _grant(self, address: Address, reply: bytes) -> None:
        self._last_grant += 1
        subject = b"%b%b%d" % (self.inbox, _GRANT, self._last_grant)
        self._grants[subject] = address
        if len(self._grants) > _MOST_GRANTS:
            del self._grants[next(iter(self._grants))]
        self._send(_Publish(reply, address, subject, False))

    def _use_grant(self, claim: int, subject: bytes) -> None:
        taken = self._claims.granted(claim)
        if taken is not None:
            self._send(_Publish(subject, *taken, True))
            self._go_on(taken[0])

    def _give_up(self, claim: int) -> Item | None:
        """Nobody took the claim."""
        taken = self._claims.untaken(claim)
        if taken is None:
            return None
        self._go_on(taken[0])
        return self._undelivered, *taken

    def _give_up_claims(self) -> None:
        for claim in self._claims.overdue(time.monotonic()):
            item = self._give_up(claim)
            if item is not None:
                self._backlog.append(item)

    def _go_on(self, address: Address) -> None:
        """Send what waited behind a large frame, up to the next large one."""
        subject = self._subject_of(address)
        while True:
            data, claim = self._claims.next(address, time.monotonic(), room=self._room)
            if data is None:
                return
            self._send(_Publish(subject, address, CLAIM if claim else data, True, claim))
            if claim:
                return

    # Ending

    def leave(self, timeout: float, handler_timeout: float) -> bool:
        """Unsubscribe, and give back what others could have; return whether the server has taken note.

        timeout: seconds that the server gets; where a handler keeps us from reading, that gets `handler_timeout`.
        """
        self._closing = True
        if self.turn is None or not self.wire.lock.acquire(timeout=0.2):
            self.wire.kill()
            return False
        self.wire.lock.release()
        try:
            awaited = self._unsubscribe(list(self._sids.values()))
            awaited.wait(timeout)
            if not awaited.done and self._handling:
                awaited.wait(handler_timeout)
            self._left = True
            for address, data in self._put_back:
                if len(data) > self._room:  # there is no time left for a claim
                    _log.warning("%s: a large frame to %s came too late to be handed on", self._url, address.name)
                else:
                    self._send(_Publish(self._subject_of(address), address, data, False))
            with self.wire.lock:
                self._outbox.drain()
        except OSError:
            self.wire.kill()
            return False
        return awaited.done and awaited.failure is None

    def kill(self) -> None:
        """End the connection at once, without a word."""
        self._closing = True
        self.wire.kill()
