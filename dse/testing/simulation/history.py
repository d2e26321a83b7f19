"""What happens in a simulated history: the bus, what it is used for, and what goes wrong, all from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from dse.core.tablelog import Sizes

__all__ = ["History", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """Something happens at `at` seconds. `place` is a node by number; what else counts depends on the kind.

    Use of the bus: ``change`` (table: several changes, `count`), ``replace`` (table), ``call`` (service), ``subscribe``
    and ``unsubscribe`` (place, table), ``register``, ``unregister`` and ``reload`` (place, service).

    Faults: ``crash`` (place; back after `seconds`, below 0 never; with `hard` the broker notices late), ``leave``
    (place; back after `seconds`), ``suspend``, ``cut`` and ``lag`` (place, seconds), ``outage`` (seconds; with `hard`
    the broker hangs), ``partition`` (seconds; the bits of `place` say who is on the other side), ``loss`` (seconds;
    `amount` is the probability), ``twin`` (place: another node with its node_id starts, for good).
    """

    at: float
    kind: str
    place: int = 0
    service: int = 0
    table: int = 0
    seconds: float = 0.0
    amount: float = 0.0
    count: int = 1
    hard: bool = False


@dataclass(slots=True)
class History:
    """A bus and what happens to it until `seconds`; then everything heals.

    tables: how many tables each service has. hosts: on which places each service runs. follows: (place, service, table)
    that are subscribed to from the start. rows: how many rows each table has at first. delays: least and most, in
    seconds. sluggish: seconds that a thread may wait for the processor. heartbeat: seconds until a driver, or the
    broker, notices a dead connection. duration: seconds that an RPC method takes, at most.
    """

    seed: int
    places: int = 4
    interval: float = 1.0
    seconds: float = 10.0
    tables: list[int] = field(default_factory=lambda: [1])
    hosts: list[list[int]] = field(default_factory=lambda: [[0]])
    follows: list[tuple[int, int, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=lambda: [5])
    sizes: Sizes = field(default_factory=Sizes)
    delays: tuple[float, float] = (0.0005, 0.002)
    sluggish: float = 0.0
    heartbeat: float = 3.0
    undeliverable: bool = True
    duration: float = 0.2
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int) -> History:
        """Make up a history; the same for the same seed, wherever and whenever."""
        rng = random.Random(seed)
        places = rng.choices(range(4, 13), weights=(34, 25, 15, 9, 6, 4, 3, 2, 2))[0]
        wanted = rng.choices((rng.randint(1, 4), rng.randint(5, 10), rng.randint(11, 20)), weights=(50, 35, 15))[0]
        tables: list[int] = []
        while sum(tables) < wanted:
            tables.append(min(wanted - sum(tables), rng.randint(1, 5)))
        history = cls(
            seed,
            places=places,
            interval=rng.choice((1.0, 1.0, 1.5, 2.0)),
            seconds=rng.uniform(5, 14) if rng.random() < 0.94 else rng.uniform(30, 90),
            tables=tables,
            hosts=[rng.sample(range(places), rng.choice((1, 1, 2, 3))) for _ in tables],
            rows=[rng.choice((0, 3, 12)) if rng.random() < 0.95 else rng.choice((80, 400)) for _ in range(wanted)],
            sizes=rng.choice(
                (
                    Sizes(),
                    Sizes(log=0, chunk=40, window=1),
                    Sizes(log=200, chunk=150, window=2),
                    Sizes(largest=60, log=600, chunk=300, window=3),
                )
            ),
            delays=rng.choice(((0.0002, 0.002), (0.001, 0.02), (0.01, 0.25))),
            sluggish=rng.choice((0.0, 0.0, 0.02, 0.3)),
            heartbeat=rng.choice((1.0, 3.0, 8.0)),
            undeliverable=rng.random() < 0.8,
            duration=rng.choice((0.02, 0.5, 3.0)),
        )
        numbers = [(service, table) for service, count in enumerate(tables) for table in range(count)]
        for service, table in numbers:
            for place in rng.sample(range(places), rng.choice((0, 1, 1, 2, 3))):
                history.follows.append((place, service, table))
        history._use(rng, numbers)
        history._break(rng)
        history.steps.sort(key=lambda step: step.at)
        return history

    def _use(self, rng: random.Random, numbers: list[tuple[int, int]]) -> None:
        steps, seconds = self.steps, self.seconds
        for _ in range(int(seconds * rng.uniform(0.5, 2.5))):
            service, table = rng.choice(numbers)
            place, at = rng.randrange(self.places), rng.uniform(0, seconds)
            count = rng.choice((1, 1, 1, 2, 5, 12))
            kind = rng.choices(
                ("change", "replace", "call", "subscribe", "unsubscribe", "register", "unregister", "reload"),
                weights=(45, 5, 26, 6, 6, 4, 4, 4),
            )[0]
            steps.append(Step(at, kind, place, service, table, rng.choice((0.3, 2.0, 10.0)), 0.0, count))

    def _break(self, rng: random.Random) -> None:
        for _ in range(rng.choice((1, 2, 3, 4, 6))):
            at = rng.uniform(0.5, self.seconds)
            place = rng.randrange(self.places)
            kind = rng.choices(
                ("crash", "leave", "suspend", "cut", "lag", "outage", "partition", "loss", "twin"),
                weights=(20, 8, 13, 14, 6, 9, 10, 12, 8),
            )[0]
            seconds = rng.choice((rng.uniform(0.1, 3), rng.uniform(2, 12), rng.uniform(5, 60)))
            amount = 0.0
            if kind == "crash":
                seconds = rng.choice((0.0, 0.0, rng.uniform(0.1, 8), -1.0))
            elif kind == "partition":
                place = rng.randrange(1, 1 << self.places)
            elif kind == "loss":
                amount = rng.choice((0.01, 0.1, 0.4))
            elif kind == "lag":
                amount = rng.choice((0.3, 2.0))
            self.steps.append(Step(at, kind, place, 0, 0, seconds, amount, 1, rng.random() < 0.3))
            if rng.random() < 0.5:
                # What was under way when it went wrong, and what is asked for while it is.
                for _ in range(3):
                    service = rng.randrange(len(self.tables))
                    table = rng.randrange(self.tables[service])
                    then = at + rng.uniform(-0.5, 1.0)
                    self.steps.append(Step(then, "call", rng.randrange(self.places), service, count=4))
                    self.steps.append(Step(then, "change", 0, service, table, count=3))
