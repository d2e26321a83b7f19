"""Who is on the bus: one node's view of its peers. Plain state, no I/O, no clock, no lock.

Rules:

1. A node JOINs by saying so (a heartbeat marked joining). Once it has heard that itself, and nobody objected for
   `JOIN_WINDOW` seconds after, it is JOINED, and says so with its catalogue. Every peer answers a joining node with its
   own, spread over as many seconds as keep the answers within `ANSWERS_PER_SECOND`.
2. A heartbeat promises when the next one comes. Silence of 3 promised intervals makes a peer SUSPECT, of 5 DEAD; being
   heard makes it what it was before. `Leave` makes it LEFT at once. DEAD and LEFT peers are listed for `REMEMBERED`
   seconds, then forgotten.
3. Ages are measured on the local monotonic clock alone. A node that is disconnected, or that was itself suspended (its
   tick came late), ages nobody: it cannot tell. Every peer then gets its silence counted anew.
4. A node receives about 200 messages a second at most, however large the bus: the interval grows with the number of
   nodes, so that `HEARTBEATS_PER_SECOND` are heartbeats; answers to a node that joins come on top; and what all nodes
   do at one time, as coming back after the broker was down, each does at a random time within an interval.
5. A catalogue has a version; who hears of a version it has not, asks for it, at most once an interval; not while all
   answer its joining. A catalogue says what a heartbeat says, and stands for one.
6. Two live nodes with one node_id: a joining node yields to a joined one. Between two that joined, or two that join,
   the one whose instance sorts first decides by age, alone, so that never both stop: the younger one is told, and
   stops. Ages less than `SAME_AGE` apart cannot be told apart through the bus; then the instance that sorts first
   stays. Messages take their time, and not all the same: who has decided against another never yields to it, and what
   was said to a joining node says nothing to one that has joined.
7. A new instance of a node_id that has JOINED proves that the old one is gone (rule 6 would have stopped it).
8. What a peer says is taken within `dse.core.limits`: so many peers, lives of one node_id, and bytes of catalogues. An
   instance belongs to the node_id that it was first heard with. Catalogues are sent to those who ask at a bounded rate,
   whoever asks; they are answered later, in the order that they asked.
9. A passive observer is not on the bus: it says nothing of itself, so that nobody knows it. It asks everybody for
   their catalogues, instead of joining, and ages its peers like any node. It is ready (to itself JOINED) when a node
   would have joined.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from dse.core import limits
from dse.core.effects import Effect, Send
from dse.core.messages import CONTROL, Catalogue, CatalogueRequest, Clash, Heartbeat, Leave, instance_address
from dse.core.pace import Pace

__all__ = ["Membership", "NodeState", "Peer", "PeerEvent"]

_encode = msgspec.msgpack.Encoder().encode

HEARTBEATS_PER_SECOND = 100
ANSWERS_PER_SECOND = 80
AT_ONCE = 50  # nodes that may all speak at one time
JOIN_WINDOW = 0.15
OFFER_WINDOW = 0.05  # seconds that a node which has joined waits for its services to start, before it says so without
JOIN_AGAIN = 0.5  # seconds until a joining node that did not hear itself says it again
SUSPECT_AFTER = 3
DEAD_AFTER = 5
REMEMBERED = 60.0
SAME_AGE = 2.0
MAX_TOLD = 1000
MAX_ANSWERS = 200  # catalogues that are sent to who asks, at once; then `ANSWERS_PER_SECOND`


class NodeState(StrEnum):
    """Where a node is in its life, as far as can be told from here."""

    JOINING = "JOINING"
    JOINED = "JOINED"
    SUSPECT = "SUSPECT"
    DEAD = "DEAD"
    LEFT = "LEFT"


@dataclass(slots=True)
class Peer:
    """One life of another node. Times are of the local monotonic clock."""

    node_id: str
    instance: str
    state: NodeState
    last_heard: float
    interval: float
    announced: int = 0  # the newest catalogue version heard of
    version: int = -1  # of the catalogue held
    services: list[dict[str, Any]] = field(default_factory=list)
    node_methods: list[str] = field(default_factory=list)
    asked_at: float = -math.inf
    gone_at: float = math.inf
    check_at: float = math.inf  # when its silence is looked at next
    weight: int = 0  # bytes of its catalogue

    @property
    def live(self) -> bool:
        """Whether the peer may still answer."""
        return self.state in (NodeState.JOINING, NodeState.JOINED, NodeState.SUSPECT)


@dataclass(slots=True, frozen=True)
class PeerEvent:
    """A peer's state changed (`before` None: it is new), or (`before` is its state) its catalogue did."""

    peer: Peer
    before: NodeState | None


@dataclass(slots=True)
class Membership:
    """See the rules at the top of this file. `catalogue` returns what this node offers: (services, node methods)."""

    node_id: str
    instance: str
    base_interval: float
    catalogue: Callable[[], tuple[list[dict[str, Any]], list[str]]]
    rng: random.Random = field(default_factory=random.Random)
    passive: bool = False
    state: NodeState = NodeState.JOINING
    clash: str | None = None  # the instance this node yields to
    version: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)  # by instance
    events: list[PeerEvent] = field(default_factory=list)  # taken by the runtime
    resumed: int = 0  # how often this node found that it had not run for a while
    _started: float = 0.0
    _heard_self: float = math.inf
    _beat_at: float = math.inf
    _asked_all: float = -math.inf  # when everybody was last asked for catalogues, by joining or as an observer
    _to_tell: bool = False  # the next heartbeat is to be the catalogue
    _told: set[str] = field(default_factory=set)  # instances that were told to stop, by their age
    _last_tick: float = 0.0
    _connected: bool = True
    _answers: list[tuple[float, str]] = field(default_factory=list)  # heap of (when it is answered, who is new)
    _to_answer: set[str] = field(default_factory=set)  # the instances in it
    _pace: Pace = field(default_factory=lambda: Pace(MAX_ANSWERS, ANSWERS_PER_SECOND))  # of catalogues to who asks
    _catalogues: int = 0  # bytes of all catalogues
    left_out: int = 0  # catalogues that were not kept, for there was no room
    _live: int = 0  # peers that are live
    _by_node: dict[str, set[str]] = field(default_factory=dict)  # node_id -> instances
    _checks: list[tuple[float, str]] = field(default_factory=list)  # heap of (check_at, instance); some are out of date

    # This node

    @property
    def interval(self) -> float:
        """Seconds between this node's heartbeats."""
        return max(self.base_interval, (1 + self._live) / HEARTBEATS_PER_SECOND)

    def start(self, now: float) -> list[Effect]:
        """Begin to join."""
        self._started = self._last_tick = now
        return self._beat(now)

    def changed(self, now: float) -> list[Effect]:
        """What this node offers changed: tell everybody."""
        self.version += 1
        return self._tell(now)

    def leave(self) -> list[Effect]:
        """Say that this node stops."""
        self.state = NodeState.LEFT
        return [] if self.passive else [Send(CONTROL, Leave(self.node_id, self.instance))]

    def disconnected(self) -> None:
        """This node's connection broke."""
        self._connected = False

    def connected(self, now: float) -> list[Effect]:
        """This node's connection is back."""
        self._connected = True
        self._forgive(now)
        if self.passive:
            return [self._ask_everybody(now)]  # who joined meanwhile
        # All that were on the broker are back now: each speaks, and later beats, at its own time.
        self._to_tell = True
        self._beat_at = now + self._spread(self._jittered())
        return self._beat(now) if self._beat_at <= now else []

    # What is heard

    def heartbeat(self, now: float, message: Heartbeat) -> list[Effect]:
        """Somebody lives; perhaps this node itself, which proves that it can be heard."""
        if message.instance == self.instance:
            self._heard_self = min(self._heard_self, now)
            return []
        effects = self._check_clash(now, message.node_id, message.instance, message.age, message.joining)
        peer = self._heard(now, message.node_id, message.instance, message.interval, message.joining)
        if peer is None:
            return effects
        peer.announced = max(peer.announced, message.catalogue)
        if message.joining:
            effects += self._answer_soon(now, message.instance)
        return effects + self._ask_catalogue(now, peer)

    def catalogue_of(self, now: float, message: Catalogue) -> list[Effect]:
        """What a peer offers."""
        if message.instance == self.instance:
            return []
        effects = self._check_clash(now, message.node_id, message.instance, message.age, False)
        peer = self._heard(now, message.node_id, message.instance, message.interval, False)
        if peer is not None and message.version > peer.version:
            peer.version = message.version
            peer.announced = max(peer.announced, message.version)
            self._keep_catalogue(peer, message)
            self.events.append(PeerEvent(peer, peer.state))
        return effects

    def catalogue_request(self, now: float, message: CatalogueRequest) -> list[Effect]:
        """Somebody wants this node's catalogue."""
        if message.instance == self.instance:
            self._heard_self = min(self._heard_self, now)
            return []
        if self.state is not NodeState.JOINED or self.passive:
            return []
        return self._answer_soon(now, message.instance, at_once=not message.everybody)

    def left(self, now: float, message: Leave) -> list[Effect]:
        """A peer said that it stops."""
        peer = self.peers.get(message.instance)
        if peer is not None and peer.live and peer.node_id == message.node_id:
            self._set_state(now, peer, NodeState.LEFT)
        return []

    def clashed(self, now: float, message: Clash) -> list[Effect]:
        """An older node has this node's id."""
        if message.node_id != self.node_id or message.winner == self.instance:
            return []  # nobody who knows better says that
        # What was said to a node that joins does not count any more: both may say it to each other's past.
        if message.loser == self.instance and not (message.joining and self.state is NodeState.JOINED):
            self.clash = message.winner
        return []

    # Time

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        at = self._beat_at
        if self._answers:
            at = min(at, max(self._answers[0][0], self._pace.next_at()))
        if self.state is NodeState.JOINING and self.clash is None:
            at = min(at, self._heard_self + JOIN_WINDOW)
        if self._connected and self._checks:
            at = min(at, self._checks[0][0])
        return at

    def tick(self, now: float) -> list[Effect]:
        """Beat, answer, and notice who is silent."""
        effects: list[Effect] = []
        if now - self._last_tick > max(1.0, self.interval) * 2:
            self._forgive(now)  # this node did not run: what it did not hear proves nothing
            self.resumed += 1
        self._last_tick = now
        if self.state is NodeState.JOINING and now >= self._heard_self + JOIN_WINDOW and self.clash is None:
            self.state = NodeState.JOINED
            self._to_tell = True
            self._beat_at = now if self.version else now + OFFER_WINDOW
        if now >= self._beat_at and self.state is not NodeState.LEFT:
            effects += self._beat(now)
        effects += self._answer(now)
        while self._connected and self._checks and self._checks[0][0] <= now:
            at, instance = heapq.heappop(self._checks)
            peer = self.peers.get(instance)
            if peer is not None and peer.check_at == at:
                self._check(now, peer)
        return effects

    # Inside

    def _check(self, now: float, peer: Peer) -> None:
        """Look at how long a peer has been silent, or gone."""
        # The same sums as in `_check_later`: a difference could round to just before, and the check never end.
        if not peer.live:
            if now >= peer.gone_at + REMEMBERED:
                self._forget(peer)
                return
        elif now >= peer.last_heard + DEAD_AFTER * peer.interval:
            self._set_state(now, peer, NodeState.DEAD)
        elif now >= peer.last_heard + SUSPECT_AFTER * peer.interval:
            self._set_state(now, peer, NodeState.SUSPECT)
        self._check_later(peer)

    def _check_later(self, peer: Peer) -> None:
        if not peer.live:
            peer.check_at = peer.gone_at + REMEMBERED
        else:
            periods = DEAD_AFTER if peer.state is NodeState.SUSPECT else SUSPECT_AFTER
            peer.check_at = peer.last_heard + periods * peer.interval
        heapq.heappush(self._checks, (peer.check_at, peer.instance))
        if len(self._checks) > 2 * len(self.peers) + 10:
            # Who promises another interval each time leaves an entry each time.
            self._checks = [(each.check_at, each.instance) for each in self.peers.values()]
            heapq.heapify(self._checks)

    def _keep_catalogue(self, peer: Peer, message: Catalogue) -> None:
        weight = len(_encode((message.services, message.node_methods)))
        self._catalogues -= peer.weight
        fits = self._catalogues + weight <= limits.CATALOGUES
        self.left_out += not fits
        peer.services, peer.node_methods = (message.services, message.node_methods) if fits else ([], [])
        peer.weight = weight if fits else 0
        self._catalogues += peer.weight

    def _forget(self, peer: Peer) -> None:
        del self.peers[peer.instance]
        self._catalogues -= peer.weight
        instances = self._by_node[peer.node_id]
        instances.discard(peer.instance)
        if not instances:
            del self._by_node[peer.node_id]

    def _jittered(self) -> float:
        # A little early, never late: the promised interval is kept.
        return self.interval * self.rng.uniform(0.85, 1.0)

    def _spread(self, seconds: float) -> float:
        """Return how long to wait with what all nodes do now: on a large bus a random time within some seconds."""
        return self.rng.random() * seconds if self._live > AT_ONCE else 0.0

    def _beat(self, now: float) -> list[Effect]:
        """Say that this node lives; or, passive, ask for what a joining node would be told."""
        joining = self.state is NodeState.JOINING
        self._beat_at = now + (JOIN_AGAIN if joining else self._jittered())
        if not self._connected:
            return []
        if self.passive:
            return [self._ask_everybody(now)] if joining else []
        if self._to_tell and not joining:
            return self._tell(now)
        if joining:
            self._asked_all = now
        return [self._heartbeat(now)]

    def _ask_everybody(self, now: float) -> Send:
        self._asked_all = now
        return Send(CONTROL, CatalogueRequest(self.instance, everybody=True))

    def _promised(self, now: float) -> float:
        # The interval may have become shorter since the next heartbeat was set.
        return max(self.interval, self._beat_at - now)

    def _heartbeat(self, now: float) -> Send:
        joining = self.state is NodeState.JOINING
        interval = self._promised(now)
        message = Heartbeat(self.node_id, self.instance, now - self._started, interval, self.version, joining)
        return Send(CONTROL, message, ttl=interval * SUSPECT_AFTER)

    def _tell(self, now: float) -> list[Effect]:
        """Send the catalogue to everybody: only a node that has joined does, for that is what a catalogue proves."""
        if not self._connected or self.state is not NodeState.JOINED or self.passive:
            return []
        self._to_tell = False
        self._beat_at = now + self._jittered()
        return [Send(CONTROL, self._catalogue(now))]

    def _catalogue(self, now: float) -> Catalogue:
        services, node_methods = self.catalogue()
        age = now - self._started
        interval = self._promised(now)
        return Catalogue(self.node_id, self.instance, age, interval, self.version, services, node_methods)

    def _forgive(self, now: float) -> None:
        for peer in self.peers.values():
            if peer.live:
                peer.last_heard = now

    def _heard(self, now: float, node_id: str, instance: str, interval: float, joining: bool) -> Peer | None:
        finite = interval if math.isfinite(interval) else 1.0
        interval = min(limits.LONGEST_INTERVAL, max(limits.LEAST_INTERVAL, finite))
        peer = self.peers.get(instance)
        if peer is None:
            if node_id == self.node_id or not self._make_room(now, node_id):
                return None
            state = NodeState.JOINING if joining else NodeState.JOINED
            peer = self.peers[instance] = Peer(node_id, instance, state, now, interval)
            self._by_node.setdefault(node_id, set()).add(instance)
            self._live += 1
            self._check_later(peer)
            self.events.append(PeerEvent(peer, None))
        elif peer.state is NodeState.LEFT:
            return None  # a straggler, sent before the goodbye
        elif peer.node_id != node_id:
            return None  # it says that it is somebody else now
        peer.last_heard = now
        peer.interval = interval
        self._set_state(now, peer, NodeState.JOINING if joining else NodeState.JOINED)
        if now + SUSPECT_AFTER * interval < peer.check_at:
            self._check_later(peer)  # it promises to be heard sooner than before
        if not joining and len(self._by_node[node_id]) > 1:
            for other in self._by_node[node_id] - {instance}:
                if self.peers[other].live:
                    self._set_state(now, self.peers[other], NodeState.DEAD)
        return peer

    def _make_room(self, now: float, node_id: str) -> bool:
        """Make room for another life of a node; say whether there is any."""
        lives = self._by_node.get(node_id, ())
        if len(lives) >= limits.INSTANCES:
            oldest = min((self.peers[each] for each in lives), key=lambda peer: (peer.live, peer.last_heard))
            self._set_state(now, oldest, NodeState.DEAD)
            self._forget(oldest)
        return len(self.peers) < limits.PEERS

    def _set_state(self, now: float, peer: Peer, state: NodeState) -> None:
        if peer.state is state:
            return
        before, was_live = peer.state, peer.live
        peer.state = state
        self._live += peer.live - was_live
        peer.gone_at = math.inf if peer.live else now
        self.events.append(PeerEvent(peer, before))

    def _ask_catalogue(self, now: float, peer: Peer) -> list[Effect]:
        if peer.announced <= peer.version or now - peer.asked_at < max(0.2, self.interval):
            return []
        if peer.state is NodeState.JOINING:
            return []  # it announces what it offers once it has joined
        if now - self._asked_all < max(self.base_interval, self._live / ANSWERS_PER_SECOND + JOIN_WINDOW):
            return []  # its answer is on the way
        peer.asked_at = now
        return [Send(instance_address(peer.instance), CatalogueRequest(self.instance))]

    def _answer_soon(self, now: float, instance: str, *, at_once: bool = False) -> list[Effect]:
        """Send the catalogue to one that is new here, or wants to know; a large bus spreads its answers to the new."""
        if instance in self._to_answer or self.passive or len(self._to_answer) >= limits.PEERS:
            return []
        self._to_answer.add(instance)
        at = now if at_once else now + self._spread(self._live / ANSWERS_PER_SECOND)
        heapq.heappush(self._answers, (at, instance))
        return self._answer(now)

    def _answer(self, now: float) -> list[Effect]:
        due = []
        while self._answers and self._answers[0][0] <= now and self._pace.take(now):
            due.append(heapq.heappop(self._answers)[1])
        self._to_answer.difference_update(due)
        if self.state is not NodeState.JOINED:
            return []
        return [Send(instance_address(instance), self._catalogue(now)) for instance in due]

    def _check_clash(self, now: float, node_id: str, instance: str, age: float, joining: bool) -> list[Effect]:
        if node_id != self.node_id or self.state is NodeState.LEFT:
            return []
        own_joining = self.state is NodeState.JOINING
        if own_joining != joining:
            loses = own_joining
        elif self.instance > instance:
            return []  # the other one decides
        else:
            difference = (now - self._started) - age
            loses = difference < -SAME_AGE and instance not in self._told
            if not loses and len(self._told) < MAX_TOLD:
                self._told.add(instance)
        if loses:
            self.clash = instance
            return []
        return [Send(instance_address(instance), Clash(node_id, instance, self.instance, joining))]
