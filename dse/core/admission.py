"""Whose word is taken on a bus with keys, and from when on. Plain state, no I/O, no clock, no lock.

A seal proves who sealed a frame, and for which address, but not when. What is sent to one node is sent to its instance,
so it was sealed in the life of that node, and counts. What is sent to all may be a recording: of somebody who lives,
from before this node did; or of somebody who is long dead.

Rules:

1. A sender is *proved* once something that it sent to this node's own instance has come, with number n: what it sealed
   with greater numbers was sealed in this node's life, and each number counts once (`Window`).
2. Something sent to all by a stranger, who is not proved, or with a number that the proof does not cover, is *held*,
   and the stranger is greeted (`Greet`, with the seconds that this node has lived). It answers with the number from
   which on all it sealed is younger than this node (`Greeted`). What was held above that number is handed on, in order;
   all else is a recording, now and for good. Greeting proves who greets, so two frames prove both sides.
3. Who does not answer within `PATIENCE` is not listened to for a while, which doubles from `QUIET` to `LONGEST_QUIET`:
   a recording of the dead costs this node a greeting now and then. A greeting that reached nobody counts as no answer.
4. Greetings are limited in all: strangers whose stamps say that they spoke within `TIMELY` seconds have `QUICK` of
   their own, all others share `SLOW`; recordings of many who are dead do not keep anybody from being greeted whose
   clock is right, nor a node whose clock is wrong from being greeted in the end.
5. On a bus of more than `AT_ONCE` nodes each greets at a random time within as many seconds as keep the greetings
   that a new node gets within `GREETINGS_PER_SECOND`.
6. Of senders that are silent for long the greatest number is remembered, and nothing else; of very many not even that.
   Then what a sender that is not known says to this node alone waits as well, and counts only if it was sealed after
   the greeting came.
7. What is held is bounded for each stranger and in all; what does not fit is dropped.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from dse.core.transport import Address

__all__ = ["Admission", "Held", "Limits", "Window"]

AT_ONCE = 50
GREETINGS_PER_SECOND = 80
PATIENCE = 5.0
QUIET = 1.0
LONGEST_QUIET = 600.0
TIMELY = 60.0
QUICK = (200.0, 500.0)  # greetings a second, and at once
SLOW = (20.0, 100.0)
AGAIN = 0.2  # seconds until a greeting that was too many is tried again
MOST_QUIET = 50_000  # strangers that are not listened to, remembered

SEEN = 4096
"""Numbers that a window remembers for certain; it forgets them at twice as many, or after two sweeps."""


class Window:
    """The numbers of one sender's frames to one address that have come: each counts once.

    A transport keeps order, but a thread may draw a number and be kept from sending for long: so that such a frame is
    not lost, the window goes by the count of frames that overtake it, 4096 at least, and not by their numbers.
    """

    __slots__ = ("_limit", "_seen", "_top", "floor")

    def __init__(self, floor: int) -> None:
        self.floor = floor  # what is not above has come, or is too old
        self._top = floor  # the greatest number at the last sweep
        self._seen: set[int] = set()  # of those above the floor
        self._limit = SEEN  # of them, before the next sweep

    def take(self, number: int) -> bool:
        """Whether a number comes for the first time; it has come from now on."""
        seen = self._seen
        if number <= self.floor or number in seen:
            return False
        seen.add(number)
        if len(seen) >= self._limit:
            self.sweep()
        return True

    def sweep(self) -> bool:
        """Take nothing more from before the last sweep; return whether there is nothing left to remember."""
        self.floor = max(self.floor, self._top)
        self._seen = {number for number in self._seen if number > self.floor}
        self._top = max(self._seen, default=self.floor)
        self._limit = len(self._seen) + SEEN
        return not self._seen


@dataclass(slots=True, frozen=True)
class Held:
    """A frame that waits for its sender to be proved: what it holds, opened and not decoded."""

    address: Address
    number: int
    content: bytes = field(repr=False)


@dataclass(slots=True, frozen=True)
class Limits:
    """How much is held: frames and bytes, for one stranger and in all."""

    frames: int = 256
    size: int = 1 << 20
    frames_in_all: int = 4096
    size_in_all: int = 16 << 20


class _Budget:
    """How many may go: so many a second, and so many at once."""

    def __init__(self, rate: tuple[float, float]) -> None:
        self._rate, self._most = rate
        self._left = self._most
        self._at = -math.inf

    def take(self, now: float) -> bool:
        if now > self._at:
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class _Stranger:
    """Somebody who spoke and is not proved. `greet_at`: inf once greeted; `ends_at`: when it has not answered."""

    greet_at: float
    ends_at: float
    timely: bool
    token: int
    greeted: bool = False
    size: int = 0
    held: deque[Held] = field(default_factory=deque)


@dataclass(slots=True)
class Admission:
    """See the rules at the top of this file. Who is to be greeted gathers in `to_greet`: (instance, token)."""

    rng: random.Random = field(default_factory=random.SystemRandom)
    limits: Limits = Limits()
    to_greet: list[tuple[str, int]] = field(default_factory=list)  # taken by the runtime
    strangers: dict[str, _Stranger] = field(default_factory=dict)
    _frames: int = 0
    _size: int = 0
    _quiet: OrderedDict[str, tuple[float, float]] = field(
        default_factory=OrderedDict
    )  # until when, and how long it was
    _timers: list[tuple[float, str]] = field(default_factory=list)  # heap; some are out of date
    _quick: _Budget = field(default_factory=lambda: _Budget(QUICK))
    _slow: _Budget = field(default_factory=lambda: _Budget(SLOW))

    def hold(self, now: float, instance: str, held: Held, timely: bool, live: int) -> bool:
        """A frame that no proof covers came: hold it, and have its sender greeted; return False if it is dropped.

        timely: its stamp is about now. live: how many nodes are on the bus, as far as is known.
        """
        stranger = self.strangers.get(instance)
        if stranger is None:
            quiet = self._quiet.get(instance)
            if quiet is not None and now < quiet[0]:
                return False
            spread = live / GREETINGS_PER_SECOND if live > AT_ONCE else 0.0
            greet_at = now + spread * self.rng.random()
            if greet_at <= now and not self._may_greet(now, timely):
                return False
            stranger = _Stranger(greet_at, now + PATIENCE + spread, timely, self.rng.getrandbits(63))
            self.strangers[instance] = stranger
            if greet_at <= now:
                self._greet(instance, stranger)
            else:
                heapq.heappush(self._timers, (greet_at, instance))
            heapq.heappush(self._timers, (stranger.ends_at, instance))
        size, limits = len(held.content), self.limits
        if (
            len(stranger.held) >= limits.frames
            or stranger.size + size > limits.size
            or self._frames >= limits.frames_in_all
            or self._size + size > limits.size_in_all
        ):
            return False
        stranger.held.append(held)
        stranger.size += size
        self._frames += 1
        self._size += size
        return True

    def answers(self, instance: str, token: int) -> bool:
        """Whether this is the answer to a greeting that is under way."""
        stranger = self.strangers.get(instance)
        return stranger is not None and stranger.greeted and stranger.token == token

    def take(self, instance: str) -> list[Held]:
        """The sender is proved: return what is held of it, in order; an empty list says that it is no stranger now."""
        self._quiet.pop(instance, None)
        stranger = self.strangers.get(instance)
        if stranger is None:
            return []
        if not stranger.held:
            del self.strangers[instance]
            return []
        return self._unhold(stranger)

    def unreachable(self, now: float, instance: str) -> list[Held]:
        """A greeting found nobody: return what was held."""
        stranger = self.strangers.get(instance)
        return self._give_up(now, instance, stranger) if stranger is not None and stranger.greeted else []

    @property
    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        return self._timers[0][0] if self._timers else math.inf

    def tick(self, now: float) -> dict[str, list[Held]]:
        """Greet whose turn it is; return what was held of those who did not answer."""
        silent: dict[str, list[Held]] = {}
        while self._timers and self._timers[0][0] <= now:
            _, instance = heapq.heappop(self._timers)
            stranger = self.strangers.get(instance)
            if stranger is None:
                continue
            if now >= stranger.ends_at:
                silent[instance] = self._give_up(now, instance, stranger)
            elif now >= stranger.greet_at:
                if self._may_greet(now, stranger.timely):
                    self._greet(instance, stranger)
                else:
                    stranger.greet_at = now + AGAIN * (0.5 + self.rng.random())
                    heapq.heappush(self._timers, (stranger.greet_at, instance))
        return silent

    # Inside

    def _may_greet(self, now: float, timely: bool) -> bool:
        return (timely and self._quick.take(now)) or self._slow.take(now)

    def _greet(self, instance: str, stranger: _Stranger) -> None:
        stranger.greeted, stranger.greet_at = True, math.inf
        self.to_greet.append((instance, stranger.token))

    def _give_up(self, now: float, instance: str, stranger: _Stranger) -> list[Held]:
        del self.strangers[instance]
        if not stranger.greeted:
            return self._unhold(stranger)  # it was not asked: that proves nothing against it
        quiet = min(LONGEST_QUIET, self._quiet.pop(instance, (0.0, QUIET / 2))[1] * 2)
        self._quiet[instance] = (now + quiet, quiet)
        while len(self._quiet) > MOST_QUIET:
            self._quiet.popitem(last=False)
        return self._unhold(stranger)

    def _unhold(self, stranger: _Stranger) -> list[Held]:
        held = list(stranger.held)
        self._frames -= len(held)
        self._size -= stranger.size
        stranger.held.clear()
        stranger.size = 0
        return held


def above(floor: int, held: Iterable[Held]) -> list[Held]:
    """Return what is held with numbers above a floor."""
    return [each for each in held if each.number > floor]
