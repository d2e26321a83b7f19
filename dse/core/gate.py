"""What stands between the transport and a node with keys: it opens frames, and hands on what is to be believed.

Whatever is not is counted by its reason and dropped before it is decoded; the log says so once a minute for each
reason. `seal` says what a frame is, `admission` whose word counts; here are their locks, counters and timers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag

from dse.core.admission import TIMELY, Admission, Held, Window
from dse.core.effects import Send
from dse.core.figures import Traffic
from dse.core.messages import SEALED, Greet, Greeted, encode, instance_address
from dse.core.seal import LONG, NONCE, BadSeal, KeyRing, Opener, Sealer, UnknownKey, clock, read_head
from dse.core.sender import Sender
from dse.core.threads import SerialQueue, Timers
from dse.core.transport import Address, ConnectionState, Delivery

__all__ = ["Gate", "Inside"]

_log = logging.getLogger("dse.node")

_LOG_EVERY = 60.0  # seconds between two log lines of one reason
_SWEEP_EVERY = 10.0
_AGAIN = "it came before, or long after others of its sender"
_DIRECT = Delivery.DIRECT
_UNUSUAL = (LookupError, InvalidTag, ValueError)
FORGET_AFTER = 900.0  # seconds of silence after which of a sender only its last number is remembered
MOST_GONE = 100_000  # senders of which that is remembered
_GREETINGS = tuple(encode(message)[3:4] for message in (Greet("", 0.0, 0), Greeted("", 0, 0, 0)))  # their tags


class Inside(Protocol):
    """What a gate needs of the node behind it."""

    traffic: Traffic

    @property
    def node_id(self) -> str: ...

    def take(self, address: Address, frame: bytes, sender: Sender, *, inline: bool = True) -> None:
        """Take a frame that was opened. inline: the calling thread is one that receives."""

    def undelivered(self, address: Address, frame: bytes) -> None:
        """Learn that a frame of this node, opened, found nobody."""

    def state_changed(self, state: ConnectionState) -> None:
        """Learn how the connection is."""

    def carry_out(self, sends: Sequence[Send]) -> None:
        """Send; never raises."""

    def distrust(self, kind: str) -> int:
        """Count a frame that is dropped; return how many there were of this kind."""

    def live(self) -> int:
        """Return how many nodes are on the bus, as far as is known."""


class _Place:
    """What one sender sends to one address. after: no frame with a number up to this needs no second look."""

    __slots__ = ("after", "bound", "delivery", "gone", "own", "window")

    def __init__(self, opener: Opener, address: Address, floor: int) -> None:
        self.bound = opener.bound(address)
        self.delivery = address.delivery
        # The address of a table names who publishes it: nobody else speaks there.
        self.own = address.delivery is not Delivery.FANOUT or (
            not address.name.startswith("table/") or address.name.startswith(f"table/{opener.sender.instance}/")
        )
        self.window = Window(floor)
        self.gone = False  # swept away: another one counts
        self.after: float = math.inf


class _Peer:
    """A sender whose seal was good. Lock: `lock` protects all that changes, and the windows in `places`.

    proof: only what was sent to all with a greater number counts; None before there is any. final: by its own answer.
    holding: what it sends to all waits. swept: the greatest number of places that are forgotten. gone: it is forgotten
    itself. idle: sweeps since anything came. met: a number that this node drew right after it heard of the peer.
    """

    __slots__ = (
        "decrypt",
        "final",
        "gone",
        "holding",
        "idle",
        "lock",
        "met",
        "mine",
        "opener",
        "places",
        "proof",
        "sender",
        "swept",
    )

    def __init__(self, opener: Opener, swept: int, met: int) -> None:
        self.opener = opener
        self.decrypt = opener.decrypt
        self.sender = opener.sender
        self.lock = threading.Lock()
        self.places: dict[Address, _Place] = {}
        self.mine: _Place | None = None  # of them, the one to this node alone
        self.swept = swept
        self.met = met
        self.proof: int | None = None
        self.final = False
        self.holding = False
        self.gone = False
        self.idle = 0

    def add_place(self, address: Address) -> _Place:
        with self.lock:
            return self.place(address)

    def place(self, address: Address) -> _Place:
        """Return what is known of an address (the lock is held)."""
        place = self.places.get(address)
        if place is None:
            place = self.places[address] = _Place(self.opener, address, self.swept)
            self._set_after(place)
            if address.delivery is Delivery.DIRECT:
                self.mine = place
        return place

    def changed(self) -> None:
        """Let the places know of a new proof, and whether frames are held, or all is forgotten (the lock is held)."""
        for place in self.places.values():
            self._set_after(place)

    def _set_after(self, place: _Place) -> None:
        if self.gone or place.gone or not place.own or (self.proof is None and place.delivery is not Delivery.ANYCAST):
            place.after = math.inf
        elif place.delivery is Delivery.FANOUT:
            place.after = math.inf if self.holding or self.proof is None else self.proof
        else:
            place.after = 0

    def forget(self, number: int) -> None:
        """Take nothing up to a number any more (the lock is held)."""
        self.swept = max(self.swept, number)
        for place in self.places.values():
            place.window.floor = max(place.window.floor, self.swept)


class Gate:
    """The `TransportEvents` of a node with keys.

    Lock: ``_lock`` protects ``_peers``, ``_instances``, ``_gone``, ``_forgot`` and ``_admission``. It may be taken
    while a peer's lock is held, never the other way round.
    """

    def __init__(self, ring: KeyRing, sealer: Sealer, inside: Inside, timers: Timers, control: SerialQueue) -> None:
        self._ring = ring
        self.sealer = sealer
        self._inside = inside
        self._traffic = inside.traffic
        self._take = inside.take
        self._timers = timers
        self._control = control
        self._born = clock()
        self._lock = threading.Lock()
        self._admission = Admission()
        self._timer = timers.timer(lambda: control.put(self._tick))
        self._sweeper = timers.timer(lambda: control.put(self._sweep))
        self._peers: dict[bytes, _Peer] = {}  # by head
        self._instances: dict[str, _Peer] = {}
        self._gone: dict[str, int] = {}  # instance -> its greatest number, of those not heard for long
        self._forgot = False  # of some not even that: they prove themselves by answering a greeting alone
        self._logged: dict[str, float] = {}
        me = _Peer(sealer.opener, 0, 0)
        me.proof, me.final = 0, True
        self._me = me
        self._peers[me.opener.head] = self._instances[me.sender.instance] = me
        timers.set(self._sweeper, timers.now() + _SWEEP_EVERY)

    # What the transport tells (`dse.core.transport.TransportEvents`)

    def received(self, address: Address, frame: bytes) -> bool:
        self._traffic.messages_in += 1
        # What nearly every frame is: of a known sender, at a known address, covered by its proof, for the first time.
        try:
            start = frame[1] << 8 | frame[2]
            peer = self._peers[frame[:start]]
            # All that is sent to one node comes to the same address.
            place = (address.delivery is _DIRECT and peer.mine) or peer.places[address]
            end = start + NONCE
            sealed = frame[end:] if len(frame) < LONG else memoryview(frame)[end:]
            content = peer.decrypt(frame[start:end], sealed, place.bound)
        except _UNUSUAL:
            return self._receive(address, frame)  # which says what is wrong with it, if anything
        number = int.from_bytes(frame[end - 8 : end], "big")
        with peer.lock:
            usual = number > place.after
            fresh = usual and place.window.take(number)
        if fresh:
            self._take(address, content, peer.sender)
            return True
        if usual:
            self.refuse("replayed", address, frame, _AGAIN)
            return False
        return self._receive(address, frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        try:
            if read_head(frame) != self._me.opener.head:
                return
            _, _, content = self._me.opener.open(self._me.opener.bound(address), frame)
        except BadSeal:
            return
        if content[3:4] == _GREETINGS[0] and address.delivery is Delivery.DIRECT:
            instance = address.name.removeprefix("node/")
            with self._lock:
                held = self._admission.unreachable(self._timers.now(), instance)
            self._silent(instance, held, "it is not on the bus (any more): a recording, or it just left")
        else:
            self._inside.undelivered(address, content)

    def state_changed(self, state: ConnectionState) -> None:
        self._inside.state_changed(state)

    # Opening

    def _receive(self, address: Address, frame: bytes) -> bool:
        """Take a frame, or refuse or hold it; return whether it was taken, which says that its sender lives."""
        try:
            if frame[0] != SEALED:
                self.refuse("unsealed", address, frame, "it is not sealed: whoever sent it has no keys")
                return False
            head = frame[: frame[1] << 8 | frame[2]]
            peer = self._peers.get(head)
            if peer is None:
                peer = self._meet(address, frame)
            place = peer.places.get(address)
            if place is None:
                place = peer.add_place(address)
            number, stamp, content = peer.opener.open(place.bound, frame)
        except IndexError:
            self.refuse("bad_seal", address, frame, f"{len(frame)} bytes are no sealed frame")
            return False
        except UnknownKey as error:
            self.refuse("unknown_key", address, frame, f"{error}; this node has: {', '.join(self._ring.ids)}")
            return False
        except BadSeal as error:
            self.refuse("bad_seal", address, frame, f"{error}: forged, damaged, or sealed with other bytes of that id")
            return False
        if not place.own:
            self.refuse("impostor", address, frame, f"{peer.sender.instance!a} does not publish that table")
            return False
        held = False
        with peer.lock:
            again = peer.gone or place.gone
            if not again:
                if place.delivery is Delivery.FANOUT:
                    held = peer.holding or (proof := peer.proof) is None or number <= proof
                elif peer.proof is None and place.delivery is Delivery.DIRECT:
                    held = not self._proved(peer, number, content)
                fresh = self._hold(peer, address, number, stamp, content) if held else place.window.take(number)
        if again:
            return self._receive(address, frame)  # swept away at this moment: it is met anew
        if held:
            self._send_greetings()
            if not fresh:
                if peer.final:
                    self.refuse("replayed", address, frame, "it is older than this node's life: a recording")
                else:
                    self._part(peer)
                    why = f"{peer.sender.instance!a} has not proved that it lives"
                    self.refuse("stranger", address, frame, why)
        elif fresh:
            self._take(address, content, peer.sender)
            if peer.proof is None:
                self._part(peer)  # what came to any replica proves nothing, and is not run
            return True
        else:
            self.refuse("replayed", address, frame, _AGAIN)
        return False

    def _meet(self, address: Address, frame: bytes) -> _Peer:
        """Return the peer with a new head, kept if its seal is good. Raises `UnknownKey` and `BadSeal`."""
        opener = self._ring.opener(read_head(frame))
        opener.open(opener.bound(address), frame)
        instance = opener.sender.instance
        with self._lock:
            known = self._instances.get(instance)
            if known is None:
                known = _Peer(opener, self._gone.get(instance, 0), self.sealer.draw())
                self._peers[opener.head] = self._instances[instance] = known
            elif known.opener.head != opener.head:
                raise BadSeal(f"{instance!a} seals with the key {known.sender.key_id!r}, not with this one")
        return known

    def _proved(self, peer: _Peer, number: int, content: bytes) -> bool:
        """A first frame to this node alone came (the peer's lock is held): say whether it may be taken."""
        if self._forgot and peer.swept == 0:
            return content[3:4] in _GREETINGS  # all else may be from before it was forgotten
        if number > peer.swept:
            peer.proof = number
            peer.changed()
        return True

    def _hold(self, peer: _Peer, address: Address, number: int, stamp: int, content: bytes) -> bool:
        """Let a frame wait until its sender is proved (the peer's lock is held); return False when it is dropped."""
        if peer.final and not peer.holding:
            return False
        timely = abs(self.sealer.wall() - stamp) <= TIMELY
        with self._lock:
            held = self._admission.hold(
                self._timers.now(),
                peer.sender.instance,
                Held(address, number, content),
                timely,
                self._inside.live(),
            )
            wakeup = self._admission.wakeup
        if held:
            peer.holding = True
            peer.changed()
            if wakeup < self._timer.queued_at:
                self._timers.set(self._timer, wakeup)
        return held

    def _part(self, peer: _Peer) -> None:
        """Forget somebody who is not proved, and of whom nothing is held."""
        with peer.lock:
            if peer.proof is None and not peer.holding and not peer.gone:
                self._forget(peer)

    def _forget(self, peer: _Peer) -> None:
        """Let go of a peer (its lock is held); of one whose frames were taken, its greatest number stays."""
        peer.gone = True
        peer.changed()
        with self._lock:
            self._peers.pop(peer.opener.head, None)
            if self._instances.get(peer.sender.instance) is peer:
                del self._instances[peer.sender.instance]
            if peer.proof is not None:
                self._gone.pop(peer.sender.instance, None)
                self._gone[peer.sender.instance] = peer.swept
                while len(self._gone) > MOST_GONE:
                    del self._gone[next(iter(self._gone))]
                    self._forgot = True

    # Greetings

    def greeted(self, message: Greeted, sender: Sender) -> None:
        """Somebody proves from which number on its frames are of this node's life."""
        with self._lock:
            answers = self._admission.answers(sender.instance, message.token)
            peer = self._instances.get(sender.instance)
        if not answers or peer is None:
            return
        with peer.lock:
            if peer.proof is None and self._forgot and not peer.swept:
                peer.forget(message.number)
            floor = max(0, message.floor)
            peer.proof = max(peer.swept, floor if peer.proof is None else min(floor, peer.proof))
            peer.final = True
            peer.changed()
        self._hand_on(peer)

    def greet(self, message: Greet, sender: Sender) -> None:
        """Somebody asks what of this node's frames is of its own life."""
        age = message.age if 0 <= message.age < 1e12 else 0.0
        number = self.sealer.draw()
        peer = self._instances.get(sender.instance)
        # Nobody's instance is known before its life: what was sealed since it was met was sealed in its life.
        floor = peer.met if peer is not None else number
        if clock() - age <= self.sealer.born:
            floor = 0  # this node is the younger one
        answer = Send(
            instance_address(sender.instance), Greeted(self._me.sender.instance, message.token, floor, number)
        )
        self._control.put(lambda: self._inside.carry_out([answer]))

    def _hand_on(self, peer: _Peer) -> None:
        """Take what was held of a peer, in order, until nothing is."""
        while True:
            with peer.lock:
                with self._lock:
                    held = self._admission.take(peer.sender.instance)
                if not held:
                    peer.holding = False
                    peer.changed()
                    return
            self._take_held(peer, held)

    def _take_held(self, peer: _Peer, held: Sequence[Held], *, inline: bool = True) -> None:
        for each in held:
            with peer.lock:
                place = peer.place(each.address)
                counts = each.address.delivery is not Delivery.FANOUT or (
                    peer.proof is not None and each.number > peer.proof
                )
                fresh = counts and place.window.take(each.number)
            if fresh:
                self._take(each.address, each.content, peer.sender, inline=inline)
            else:
                why = "it came before" if counts else "it is older than this node's life: a recording"
                self.refuse("replayed", each.address, each.content, why)

    def _send_greetings(self) -> None:
        if self._admission.to_greet:
            self._control.put(self._greet)

    def _greet(self) -> None:
        with self._lock:
            greetings, self._admission.to_greet = self._admission.to_greet, []
        me, age = self._me.sender.instance, clock() - self._born
        self._inside.carry_out(
            [Send(instance_address(instance), Greet(me, age, token), ttl=5.0) for instance, token in greetings]
        )

    def _tick(self) -> None:
        with self._lock:
            silent = self._admission.tick(self._timers.now())
            wakeup = self._admission.wakeup
        self._timers.set(self._timer, wakeup)
        for instance, held in silent.items():
            self._silent(instance, held, "it did not answer: a recording, or it died, or is slow")
        self._greet()

    def _silent(self, instance: str, held: Sequence[Held], why: str) -> None:
        """Somebody did not answer the greeting: what was held of it counts as far as it is proved otherwise."""
        peer = self._instances.get(instance)
        if peer is None:
            return
        with peer.lock:
            peer.holding = False
            peer.changed()
            proved = peer.proof is not None
        if proved:
            self._take_held(peer, held, inline=False)
            return
        self._part(peer)
        for each in held:
            self.refuse("stranger", each.address, each.content, f"{instance!a} spoke, and {why}")

    def _sweep(self) -> None:
        """Forget numbers of a while ago, and senders of long ago."""
        self.sealer.refresh()
        now = self._timers.now()
        self._timers.set(self._sweeper, now + _SWEEP_EVERY)
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            with peer.lock:
                for address, place in list(peer.places.items()):
                    if place.window.sweep():
                        peer.swept = max(peer.swept, place.window.floor)
                        place.gone, place.after = True, math.inf
                        del peer.places[address]
                        if place is peer.mine:
                            peer.mine = None
                peer.idle = 0 if peer.places or peer.holding else peer.idle + 1
                patience = FORGET_AFTER if peer.proof is not None else 0.0
                if peer.idle * _SWEEP_EVERY > patience and peer is not self._me and not peer.gone:
                    self._forget(peer)

    # What is dropped

    def refuse(self, reason: str, address: Address, frame: bytes, why: str) -> None:
        """Count a frame that is dropped, and say so in the log once a minute."""
        count = self._inside.distrust(f"untrusted_{reason}")
        now = self._timers.now()
        if now >= self._logged.get(reason, 0.0):
            self._logged[reason] = now + _LOG_EVERY
            _log.warning("node %r: dropped a frame of %d bytes to %s: %s (%d such since the start)",
                         self._inside.node_id, len(frame), address.name, why,
                         count)  # fmt: skip
