"""`Simulation`: lets a history happen, and judges it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from dse.core.info import DataServiceInfo
from dse.core.membership import DEAD_AFTER, JOIN_AGAIN, JOIN_WINDOW, NodeState
from dse.core.replica import ASK_LAST, ReplicaState
from dse.core.table import Replica
from dse.core.tablelog import LEASE, TIP_LAST
from dse.core.tables import RENEW
from dse.errors import DseError, TransportUnavailable
from dse.testing.simulation.checks import ROWS, Follower, Ledger, LogWatch, RuleBroken
from dse.testing.simulation.clock import Clock
from dse.testing.simulation.history import History, Step
from dse.testing.simulation.network import RECONNECT, Link, Network
from dse.testing.simulation.node import VirtualNode, VirtualRuntime, VirtualService, service_class

__all__ = ["Simulation"]

AUDIT = 1.0  # seconds between two looks at everything
LATE = 0.2  # seconds after its deadline in which a call must have ended, besides what threads are sluggish
LOOK = 0.5  # seconds between two looks whether all is well again, at first; later they are rarer
START_AGAIN = 0.5  # seconds until a node that could not join is started again
WHILE_JOINING = ("crash", "suspend", "cut", "lag")
TIMEOUTS = (0.4, 2.0, 6.0)


@dataclass(slots=True)
class Place:
    """Where a node runs, and what belongs there, whichever life of the node it is."""

    number: int
    node_id: str
    services: dict[int, VirtualService | None] = field(default_factory=dict)
    follows: dict[tuple[int, int], int] = field(default_factory=dict)  # (service, table) -> how many handles
    node: VirtualNode | None = None
    reader: VirtualService | None = None
    handles: list[tuple[tuple[int, int], Replica, Follower]] = field(default_factory=list)
    wanted: bool = True  # a node is to run here in the end


@dataclass(slots=True)
class _Call:
    token: int
    node: VirtualNode
    idempotent: bool
    deadline: float
    runs: int = 0
    outcome: str = ""


class Simulation:
    """One history on a virtual bus. Everything follows from the history and its seed.

    seed: of the history, when none is given. trace: is told what happens, line by line.

    `run` raises `RuleBroken` when the history broke a rule. `counts` says what happened; `digest` is the same for two
    runs in which the same frames were sent at the same times.
    """

    def __init__(self, seed: int, history: History | None = None, trace: Callable[[str], None] | None = None) -> None:
        self.history = history or History.of(seed)
        self.random = random.Random(self.history.seed ^ 0x5EED)
        self.clock = Clock()
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger()
        self.network = Network(
            self.clock, self.random, self.history.delays, self.history.heartbeat, self.history.undeliverable
        )
        self._trace = trace
        self._began = self.clock.now
        if trace is not None:
            self.network.trace = self._tell
        self.places = [Place(number, f"n{number}") for number in range(self.history.places)]
        for service, hosts in enumerate(self.history.hosts):
            for place in hosts:
                self.places[place].services[service] = None
        for place, service, table in self.history.follows:
            follows = self.places[place].follows
            follows[service, table] = follows.get((service, table), 0) + 1
        self._first_rows = self._number_tables()
        self._calls: dict[int, _Call] = {}
        self._lives: dict[str, VirtualNode] = {}  # by instance
        self._capabilities = replace(Link.capabilities, undeliverable=self.history.undeliverable)
        self._healed = False

    # Running

    @property
    def digest(self) -> str:
        """What stands for all that was sent."""
        return f"{crc32(repr(sorted(self.counts.items())).encode(), self.network.digest):08x}"

    def run(self) -> Counter[str]:
        """Let it happen, and return what was counted; raise `RuleBroken` if a rule was broken."""
        with LogWatch() as watch:
            self._watch = watch
            try:
                self._run()
            except Exception as error:
                what = str(error) if isinstance(error, RuleBroken) else f"{type(error).__name__}: {error}"
                raise RuleBroken(f"{what} (at {self._time():.3f} s)") from error
            finally:
                self.counts.update(self.network.counts)
                self.counts["virtual seconds"] = round(self.clock.now - self._began)
        return self.counts

    def _run(self) -> None:
        history = self.history
        self.counts["histories"] = 1
        self.counts["nodes"] = history.places
        self.counts["tables"] = sum(history.tables)
        for place in self.places:
            self.clock.at(self._began + self.random.random() * 0.5, self._start, place)
        for step in history.steps:
            self.clock.at(self._began + step.at, self._step, step)
        end = self._began + history.seconds
        while self.clock.now < end:
            self._pass(min(end, self.clock.now + AUDIT))
        self._heal()
        self._converge()

    def _pass(self, until: float) -> None:
        self.clock.run(until)
        if self._watch.first is not None:
            raise self._watch.first
        for node in self.running():
            node.check()

    def running(self) -> list[VirtualNode]:
        """The nodes that are up and have joined."""
        return [p.node for p in self.places if p.node is not None and p.node.ready and not p.node.process.suspended]

    def _time(self) -> float:
        return self.clock.now - self._began

    def _tell(self, what: str) -> None:
        if self._trace is not None:
            self._trace(f"{self._time():9.3f} {what}")

    # Nodes

    def link(self, node: VirtualNode, events: Any) -> Link:
        """A connection for a node."""
        link = Link(self.network, node.place, node.node_id, node.process, events)
        link.capabilities = self._capabilities  # type: ignore[misc]
        return link

    def _start(self, place: Place) -> None:
        if place.node is not None or not place.wanted:
            return
        node = VirtualNode(self, place.number, place.node_id)
        for number in place.services:
            service = self._make_service(number)
            place.services[number] = service
            node._admit(service)
        place.reader = service_class(0)(f"reader{place.number}")
        place.reader.simulation = self
        node._admit(place.reader)
        place.node = node
        try:
            node.begin()
        except TransportUnavailable:
            self.start_failed(node)
            return
        self.counts["lives"] += 1
        self._lives[node.runtime.instance] = node
        node.instance = node.runtime.instance
        self._tell(f"{place.node_id} starts at place {place.number} as {node.instance}")

    def _make_service(self, number: int) -> VirtualService:
        service = service_class(self.history.tables[number])(f"s{number}")
        service.simulation = self
        for table_number, table in enumerate(service.published_tables.values()):
            table.replace(self.random.sample(ROWS, self._first_rows[number, table_number]))
        return service

    def _number_tables(self) -> dict[tuple[int, int], int]:
        tables = [(service, table) for service, count in enumerate(self.history.tables) for table in range(count)]
        rows = self.history.rows
        return {key: rows[index % len(rows)] for index, key in enumerate(tables)}

    def started(self, node: VirtualNode) -> None:
        """A node has joined and its services run."""
        place = self.places[node.place]
        for service in place.services.values():
            if service is not None:
                self._began_service(service)
        for key, count in list(place.follows.items()):
            for _ in range(count):
                self._follow(place, key)

    def _began_service(self, service: VirtualService) -> None:
        for table in service.published_tables.values():
            epoch, seq = table.version
            assert seq == 0
            self.ledger.begin(epoch, table.rows)

    def start_failed(self, node: VirtualNode) -> None:
        """A node could not join: what runs it tries again, unless its node_id is taken."""
        place = self.places[node.place]
        if node._clash is not None:
            self.clashed(node)
            return
        self._over(node, "leave")
        self.clock.at(self.clock.now + START_AGAIN, lambda _: self._start(place))

    def clashed(self, node: VirtualNode) -> None:
        """A node yields to an older one of its node_id."""
        if node.ended or not node.process.alive:
            return
        self._tell(f"{node.node_id} {node.instance} yields to {node.clash_winner}")
        self.counts["clashes"] += 1
        self._over(node, "clash")
        self.places[node.place].wanted = False
        seen = [node]
        while (winner := self._lives.get(seen[-1].clash_winner)) is not None and winner.ended == "clash":
            if winner in seen:
                raise RuleBroken(f"all nodes named {node.node_id} stopped, each for another")
            seen.append(winner)
        if winner is None:
            raise RuleBroken(f"{node.node_id} yields to {seen[-1].clash_winner}, which never was")

    def _over(self, node: VirtualNode, why: str) -> None:
        place = self.places[node.place]
        node.ended = why
        node.ready = False
        place.node = None
        place.reader = None
        if why == "crash":
            node.process.alive = False
        else:
            node.stop()
        for _, _, follower in place.handles:
            follower.closed = True
        place.handles.clear()
        place.services = dict.fromkeys(place.services)

    # Subscriptions

    def _follow(self, place: Place, key: tuple[int, int]) -> None:
        assert place.reader is not None
        service, table = key
        follower = Follower(self.ledger, f"{place.node_id} on s{service}.t{table}")
        handle = place.reader.subscribe(f"s{service}", f"t{table}", follower)
        place.handles.append((key, handle, follower))

    # Calls

    def _call(self, node: VirtualNode, service: int) -> None:
        token = len(self._calls) + 1
        idempotent = self.random.random() < 0.3
        timeout = self.random.choice(TIMEOUTS)
        node_id = None
        if self.random.random() < 0.4:
            hosts = self.history.hosts[service]
            node_id = self.places[self.random.choice(hosts)].node_id
        call = self._calls[token] = _Call(token, node, idempotent, self.clock.now + timeout)
        method = "again" if idempotent else "work"
        future = node.call_async(f"s{service}", method, {"token": token}, timeout=timeout, node_id=node_id)
        self.counts["calls"] += 1

        def ended(future: Future[Any]) -> None:
            if call.outcome:
                raise RuleBroken(f"call {token} ended twice")
            error = future.exception()
            if error is None:
                call.outcome = "ok"
                if future.result() != token or not call.runs:
                    raise RuleBroken(f"call {token} was answered with {future.result()} after {call.runs} runs")
            elif isinstance(error, DseError):
                call.outcome = type(error).__name__
            else:
                raise RuleBroken(f"call {token} raised {error!r}")
            self.counts[f"calls: {call.outcome}"] += 1

        future.add_done_callback(ended)
        self.clock.at(call.deadline + LATE + 2 * self.history.sluggish, self._check_call, call)

    def worked(self, token: int) -> int:
        """A method runs."""
        call = self._calls[token]
        call.runs += 1
        if call.runs > 1 and not call.idempotent:
            # Raised here, it would be the method's own failure, and go to the caller.
            self._watch.first = self._watch.first or RuleBroken(f"call {token} ran {call.runs} times")
        return token

    def _check_call(self, call: _Call) -> None:
        process = call.node.process
        if call.outcome or not process.alive or call.node.ended:
            return
        patience = LATE + 2 * self.history.sluggish
        if process.suspended or self.clock.now < process.resumed_at + patience:
            self.clock.at(self.clock.now + 1.0, self._check_call, call)
            return
        raise RuleBroken(f"call {call.token} of {call.node.node_id} has not ended {patience:g} s after its deadline")

    # Steps

    def _step(self, step: Step) -> None:
        if self._healed:
            return
        place = self.places[step.place % len(self.places)]
        node = place.node
        if step.kind in ("change", "replace"):
            self._change(step)
        elif step.kind in ("outage", "partition", "loss", "twin"):
            getattr(self, f"_do_{step.kind}")(step, place)
        elif node is not None and not node.process.suspended and (node.ready or step.kind in WHILE_JOINING):
            getattr(self, f"_do_{step.kind}")(step, place, node)

    def _change(self, step: Step) -> None:
        hosts = [p for p in self.places if p.services.get(step.service) is not None and p.node and p.node.ready]
        hosts = [p for p in hosts if p.node is not None and not p.node.process.suspended]
        if not hosts:
            return
        service = hosts[self.random.randrange(len(hosts))].services[step.service]
        assert service is not None
        table = service.published_tables[f"t{step.table}"]
        size = max(4, 2 * self._first_rows[step.service, step.table])
        for _ in range(step.count):
            before = set(table.rows)
            some = ROWS[: size * 2] + ROWS[600:]
            if step.kind == "replace":
                after = set(self.random.sample(some, min(size, len(some)) // 2))
                added, removed = after - before, before - after
                change = table.replace(after)
            else:
                give = set(self.random.sample(some, self.random.randint(0, 4)))
                take = set(self.random.sample(some, self.random.randint(0, 4)))
                added, removed = give - before, (take & before) - give
                change = table.apply(give, take)
            if change.added != added or change.removed != removed:
                raise RuleBroken(f"{table!r}: a change is not the difference it made")
            if change:
                self.counts["changes"] += 1
                self.ledger.changed(change, added, removed)

    def _do_call(self, step: Step, place: Place, node: VirtualNode) -> None:
        for _ in range(step.count):
            self._call(node, step.service)

    def _do_subscribe(self, step: Step, place: Place, node: VirtualNode) -> None:
        key = (step.service, step.table)
        place.follows[key] = place.follows.get(key, 0) + 1
        self._follow(place, key)

    def _do_unsubscribe(self, step: Step, place: Place, node: VirtualNode) -> None:
        if not place.handles or place.reader is None:
            return
        key, handle, follower = place.handles.pop(self.random.randrange(len(place.handles)))
        place.follows[key] -= 1
        follower.closed = True
        place.reader.unsubscribe(handle)

    def _do_register(self, step: Step, place: Place, node: VirtualNode) -> None:
        if place.services.get(step.service) is not None:
            return
        if self.random.random() < 0.5:
            # A publisher that comes back: those who followed it are remembered.
            gone = [n for n, s in place.services.items() if s is None]
            number = gone[0] if gone else step.service
        else:
            number = step.service
        service = place.services[number] = self._make_service(number)
        if place.number not in self.history.hosts[number]:
            self.history.hosts[number].append(place.number)
        node.register(service)
        self._tell(f"{place.node_id} registers s{number}")
        self._began_service(service)

    def _do_reload(self, step: Step, place: Place, node: VirtualNode) -> None:
        """A service is replaced by a new one of its id, and goes on changing its tables."""
        running = [number for number, service in place.services.items() if service is not None]
        if running:
            number = running[step.service % len(running)]
            self._tell(f"{place.node_id} reloads s{number}")
            node.unregister(f"s{number}")
            service = place.services[number] = self._make_service(number)
            node.register(service)
            self._began_service(service)
            for table in range(self.history.tables[number]):
                self._change(replace(step, kind="change", service=number, table=table))

    def _do_unregister(self, step: Step, place: Place, node: VirtualNode) -> None:
        running = [number for number, service in place.services.items() if service is not None]
        if running:
            number = running[step.service % len(running)]
            self._tell(f"{place.node_id} unregisters s{number}")
            place.services[number] = None
            node.unregister(f"s{number}")

    def _do_crash(self, step: Step, place: Place, node: VirtualNode) -> None:
        self.counts["crashes"] += 1
        self._tell(f"{place.node_id} crashes")
        self._over(node, "crash")
        node.link.vanish(self.random.random() * self.history.heartbeat * 2 if step.hard else 0.0)
        self._back(step, place)

    def _do_leave(self, step: Step, place: Place, node: VirtualNode) -> None:
        self.counts["leaves"] += 1
        self._tell(f"{place.node_id} leaves")
        self._over(node, "leave")
        self._back(step, place)

    def _back(self, step: Step, place: Place) -> None:
        if step.seconds < 0:
            place.wanted = False
        else:
            self.clock.at(self.clock.now + step.seconds, lambda _: self._start(place))

    def _do_suspend(self, step: Step, place: Place, node: VirtualNode) -> None:
        self.counts["suspensions"] += 1
        self._tell(f"{place.node_id} is suspended")
        node.process.suspended = True
        node.process.suspended_at = self.clock.now
        if step.hard:
            link = node.link
            patience = self.history.heartbeat * 2

            def too_quiet(_: None) -> None:
                if node.process.suspended:
                    link.reset()

            self.clock.at(self.clock.now + patience, too_quiet)
        self.clock.at(self.clock.now + step.seconds, lambda _: self._resume(node))

    def _resume(self, node: VirtualNode) -> None:
        process = node.process
        if not process.suspended or not process.alive:
            return
        self._tell(f"{node.node_id} runs again")
        process.suspended = False
        process.resumed_at = self.clock.now
        if self.clock.now - process.suspended_at > 2 * max(1.0, node.runtime.control_bus._machine.interval):
            assert isinstance(node.runtime, VirtualRuntime)
            node.runtime.blind_until = self.clock.now
        held, process.held = process.held, []
        if self.random.random() < 0.5:
            # The threads wake up in any order: here the timers before what was received, or the other way round.
            held.reverse()
            held.sort(key=lambda job: job.__qualname__)
            frames = [job for job in held if "_held" in job.__qualname__][::-1]
            held = [job for job in held if "_held" not in job.__qualname__] + frames
        for job in held:
            self.clock.soon(lambda job=job: process.run(job))  # type: ignore[misc]

    def _do_cut(self, step: Step, place: Place, node: VirtualNode) -> None:
        self.counts["cuts"] += 1
        self._tell(f"{place.node_id} is cut off for {step.seconds:.1f} s")
        node.link.cut(step.seconds)

    def _do_lag(self, step: Step, place: Place, node: VirtualNode) -> None:
        self.counts["lags"] += 1
        link = node.link
        link.lag = step.amount
        self.clock.at(self.clock.now + step.seconds, lambda _: setattr(link, "lag", 0.0))

    def _do_outage(self, step: Step, place: Place) -> None:
        self.counts["outages"] += 1
        self._tell(f"the broker {'hangs' if step.hard else 'dies'} for {step.seconds:.1f} s")
        self.network.stop(step.hard)
        self.clock.at(self.clock.now + step.seconds, lambda _: self.network.start())

    def _do_partition(self, step: Step, place: Place) -> None:
        self.counts["partitions"] += 1
        groups = {number: step.place >> number & 1 for number in range(len(self.places))}
        self._tell(f"the bus falls apart for {step.seconds:.1f} s: {groups}")
        self.network.groups = groups
        self.clock.at(self.clock.now + step.seconds, lambda _: self.network.groups.clear())

    def _do_loss(self, step: Step, place: Place) -> None:
        self.counts["lossy phases"] += 1
        self._tell(f"{step.amount:.0%} of all frames are lost for {step.seconds:.1f} s")
        self.network.loss = step.amount
        self.clock.at(self.clock.now + step.seconds, lambda _: setattr(self.network, "loss", 0.0))

    def _do_twin(self, step: Step, place: Place) -> None:
        if len(self.places) >= 16:
            return
        self.counts["twins"] += 1
        twin = Place(len(self.places), place.node_id)
        twin.follows = dict(list(place.follows.items())[:2])
        self.places.append(twin)
        self._start(twin)

    # The end

    def _heal(self) -> None:
        self._healed = True
        self._tell("everything heals")
        self.network.start()
        self.network.loss = 0.0
        self.network.groups = {}
        for place in self.places:
            if place.node is not None:
                place.node.link.lag = 0.0
                place.node.link.plug()
                self._resume(place.node)
            elif place.wanted:
                self.clock.at(self.clock.now + START_AGAIN, self._start, place)

    @property
    def bound(self) -> float:
        """Seconds after healing within which all must be well again.

        Driver and node notice and are connected again; a node joins (and yields to another); whoever is silent is
        dead, catalogues were asked for; a lost change is found by a tip or a renewal, and asked for; the lease of a
        subscriber that could not say goodbye ends.
        """
        history = self.history
        connected = 2 * history.heartbeat + RECONNECT[1] + START_AGAIN + 4 * history.delays[1] + 5 * history.sluggish
        known = JOIN_AGAIN + JOIN_WINDOW + (DEAD_AFTER + 2) * history.interval
        equal = max(TIP_LAST, RENEW) + 2 * ASK_LAST
        return connected + known + max(equal, LEASE + 1) + max(TIMEOUTS)

    def _converge(self) -> None:
        healed = self.clock.now
        while True:
            self._pass(self.clock.now + max(LOOK, (self.clock.now - healed) / 10))
            wrong = next(self._problems(), None)
            if wrong is None:
                break
            if self.clock.now > healed + self.bound:
                everything = list(self._problems())
                raise RuleBroken(f"not well {self.bound:.0f} s after all faults: {'; '.join(everything[:6])}")
        self.counts["resyncs"] += sum(s.machine.resyncs for n in self.running() for s in n.runtime.hub._shared.values())

    def _problems(self) -> Any:
        """What is not as it should be after a quiet time."""
        nodes = []
        for place in self.places:
            if place.wanted and (place.node is None or not place.node.ready):
                yield f"{place.node_id} does not run"
            elif place.node is not None:
                nodes.append(place.node)
        names = Counter(node.node_id for node in nodes)
        for name, count in names.items():
            if count > 1:
                yield f"{count} nodes are named {name}"
        offers = {n.instance: {h.service.service_id: h.service.info for h in n.hosts.values()} for n in nodes}
        for node in nodes:
            yield from self._peer_problems(node, nodes, offers)
        for node in nodes:
            yield from self._replica_problems(node, nodes)
        for node in nodes:
            yield from self._publisher_problems(node, nodes)
        for node in nodes:
            if node.runtime.client._pending.calls:
                yield f"{node.node_id} waits for answers"

    def _peer_problems(
        self, node: VirtualNode, nodes: list[VirtualNode], offers: dict[str, dict[str, DataServiceInfo]]
    ) -> Any:
        runtime = node.runtime
        if not runtime.connected or runtime.control_bus.state is not NodeState.JOINED:
            yield f"{node.node_id} is not connected"
        members = runtime.control_bus.members
        others = {other.instance: other for other in nodes if other is not node}
        if members.keys() != others.keys():
            yield f"{node.node_id} knows {sorted(members)}, not {sorted(others)}"
            return
        for instance, other in others.items():
            member = members[instance]
            if member.state is not NodeState.JOINED:
                yield f"{node.node_id} takes {other.node_id} for {member.state}"
            if member.services != offers[instance]:
                yield f"{node.node_id} knows not what {other.node_id} offers"

    def _replica_problems(self, node: VirtualNode, nodes: list[VirtualNode]) -> Any:
        place = self.places[node.place]
        wanted = {key for key, count in place.follows.items() if count}
        shared = node.runtime.hub._shared
        if {(f"s{s}", f"t{t}") for s, t in wanted} != shared.keys():
            yield f"{node.node_id} follows {sorted(shared)}"
        for key, handle, follower in place.handles:
            publishers = {n.instance: n for n in nodes if f"s{key[0]}" in n.hosts}
            machine = shared[handle.service_id, handle.table].machine
            what = f"{follower.name} (follows {machine.publisher})"
            if handle.rows != follower.rows:
                yield f"{what}: the changes do not add up to the rows"
            if publishers:
                if handle.state is not ReplicaState.LIVE or machine.publisher not in publishers:
                    yield f"{what} is {handle.state}"
                    continue
                table = publishers[machine.publisher].hosts[handle.service_id].service.published_tables[handle.table]
                if table.version != handle.version or table.rows != handle.rows:
                    yield f"{what}: at {handle.version}, the publisher is at {table.version}"
            elif machine.publisher is not None:
                yield f"{what}: that publisher is gone"
            elif handle.state is not (ReplicaState.STALE if machine.epoch else ReplicaState.SYNCING):
                yield f"{what} is {handle.state} without a publisher"

    def _publisher_problems(self, node: VirtualNode, nodes: list[VirtualNode]) -> Any:
        for host in node.hosts.values():
            for table in host.service.published_tables.values():
                key = (table.service_id, table.name)
                true = {
                    other.instance
                    for other in nodes
                    if key in other.runtime.hub._shared
                    and other.runtime.hub._shared[key].machine.publisher == node.instance
                }
                counted = table._log.subscribers.keys()
                if counted != true:
                    yield f"{node.node_id} {key} counts {sorted(counted)} as subscribers, true are {sorted(true)}"
                service = host.service
                if isinstance(service, VirtualService) and service.watched.get(table.name, False) != bool(true):
                    yield f"{node.node_id} {key}: the hooks say otherwise about its subscribers"
