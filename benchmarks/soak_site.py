"""The processes of a soak: those that live long and churn, and visitors that are killed. See `soak.py`."""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
import threading
import time
import traceback
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psutil

import dse.core.threads
from dse import DataService, Node, Table, rpc
from dse.core.messages import instance_address, table_address
from dse.core.replica import ReplicaState
from dse.errors import DseError

KEYS = 200  # rows of a keeper's table
PATIENCE = 5.0

# Idle threads are kept for half a minute; a soak looks at how many are left more often than that.
dse.core.threads._IDLE = 2.0


class Endpoint:
    """What nodes answer themselves."""

    def ping(self, text: str) -> str:
        """Return the text."""
        return text


class Guest(DataService):
    """A service that comes and goes."""

    items = Table("key", "value")

    @rpc
    def echo(self, value: Any) -> Any:
        """Return the value."""
        return value


class Keeper(Guest):
    """A service that stays."""

    @rpc(idempotent=True)
    async def aecho(self, value: Any) -> Any:
        """Return the value, from the event loop."""
        return value

    @rpc
    def follow(self, service_id: str, seconds: float) -> int:
        """Subscribe to a table for some seconds; return how many rows it had at the end."""
        return follow(self, service_id, seconds)


def follow(service: DataService, service_id: str, seconds: float = 0.0) -> int:
    """Subscribe, wait until the replica is LIVE, wait some seconds, unsubscribe; return how many rows there were."""
    seen: list[int] = []
    replica = service.subscribe(service_id, "items", lambda change: seen.append(len(change.added)))
    try:
        replica.wait(ReplicaState.LIVE, PATIENCE)
        time.sleep(seconds)
        return len(replica)
    finally:
        service.unsubscribe(replica)


class Resident:
    """One node that lives as long as the soak, and everything that its process lets come and go."""

    def __init__(self, url: str, bus: str, name: str, everybody: tuple[str, ...]) -> None:
        self._url, self._bus, self.name = url, bus, name
        self._others = [other for other in everybody if other != name]
        self._keeper = Keeper(f"keeper_{name}")
        services = [self._keeper, Keeper("keepers")]
        self.node = Node(url, bus=bus, node_id=name, services=services, node_endpoints=[Endpoint()])
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._numbers = itertools.count()
        self._quiet = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the node."""
        self.node.start()

    def warm_up(self) -> None:
        """Do each thing once, so that what is made when first needed is there; fill what remembers up to a limit."""
        for number in range(5000):
            instance_address(f"nobody/{number}")
            table_address("nobody", f"nothing_{number}", "items")
            self._change()  # the log of changes
        for other in self._others:
            self.node.wait_for(f"keeper_{other}", 20.0)
            self.node.call(f"keeper_{other}", "aecho", {"value": 1})
        for job in (self._change, self._call, self._service, self._subscription, self._node):
            job()

    def churn(self) -> None:
        """Begin to change, call, and let nodes, services and subscriptions come and go."""
        self._quiet.clear()
        jobs: list[tuple[Callable[[], None], float]] = [
            (self._change, 0.04),
            (self._call, 0.04),
            (self._node, 0.8),
            (self._service, 0.5),
            (self._subscription, 0.4),
        ]
        self._threads = [threading.Thread(target=self._loop, args=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def quiet(self) -> None:
        """End what came; return when it has gone."""
        self._quiet.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def stop(self) -> None:
        """Stop the node."""
        self.node.stop()

    def _loop(self, job: Callable[[], None], period: float) -> None:
        rng = random.Random()
        while not self._quiet.wait(period * rng.uniform(0.5, 1.5)):
            try:
                job()
                self.done[job.__name__.strip("_")] += 1
            except (DseError, TimeoutError) as error:
                self.refused[type(error).__name__] += 1
            except Exception:
                self.unexpected.append(traceback.format_exc())

    def _change(self) -> None:
        number = next(self._numbers)
        old = [row for row in self._keeper.items.rows if row[0] == number % KEYS]
        self._keeper.items.apply([(number % KEYS, f"value {number}")], old)

    def _call(self) -> None:
        other = random.choice(self._others)
        node, args = self.node, {"value": "x" * random.randrange(500)}
        match next(self._numbers) % 5:
            case 0:
                node.call(f"keeper_{other}", "echo", args, timeout=PATIENCE)
            case 1:
                node.call("keepers", "aecho", args, timeout=PATIENCE)
            case 2:
                node.call_node(other, "ping", {"text": "x"}, timeout=PATIENCE)
            case 3:
                node.broadcast("keepers", "echo", args)
            case 4:
                node.call_all("keepers", "echo", args, timeout=PATIENCE)

    def _node(self) -> None:
        """A node comes, follows, is followed and called, and goes."""
        guest = Guest(f"guest_{uuid.uuid4().hex[:8]}")
        with Node(self._url, bus=self._bus, services=[guest], node_endpoints=[Endpoint()]) as node:
            guest.items.insert([(1, "one"), (2, "two")])
            follow(guest, f"keeper_{random.choice(self._others)}")
            self.node.call(guest.service_id, "echo", {"value": 1}, timeout=PATIENCE)
            self.node.call_node(node.node_id, "ping", {"text": "x"}, timeout=PATIENCE)
            follow(self._keeper, guest.service_id)

    def _service(self) -> None:
        """A service comes to the node that stays, is followed from another, and goes, sometimes before its follower."""
        guest = Guest(f"passing_{uuid.uuid4().hex[:8]}")
        self.node.register(guest)
        try:
            guest.items.insert([(1, "one")])
            args = {"service_id": guest.service_id, "seconds": random.choice((0.0, 0.5))}
            service_id = f"keeper_{random.choice(self._others)}"
            if random.random() < 0.5:
                self.node.cast(service_id, "follow", args)
                time.sleep(0.2)
            else:
                self.node.call(service_id, "follow", args, timeout=PATIENCE * 2)
        finally:
            self.node.unregister(guest.service_id)

    def _subscription(self) -> None:
        follow(self._keeper, f"keeper_{random.choice(self._others)}")

    def knows(self) -> list[str]:
        """Return the nodes that this one counts as live."""
        status = self.node.status()
        live = [peer.node_id for peer in status.peers.values() if peer.state == "JOINED"]
        return sorted(live) if status.connected else ["not connected"]


class Site:
    """The residents of one process, told over a pipe."""

    def __init__(self, residents: list[Resident]) -> None:
        self._residents = residents
        self._process = psutil.Process()
        self._first: tracemalloc.Snapshot | None = None

    def each(self, what: str) -> None:
        """Let each resident do something."""
        for resident in self._residents:
            getattr(resident, what)()

    def measure(self, collect: bool) -> dict[str, Any]:
        """Return what the process holds; collect: after collecting garbage and giving free pages back to the system.

        That says more, and disturbs more. Free pages would hide a leak: how many there are is the highest that was ever
        in use at once, and the peaks of random churn grow for hours.
        """
        if collect:
            gc.collect()
            _LIBC.malloc_trim(0)
        return {
            "rss": self._process.memory_info().rss,
            "threads": self._process.num_threads(),
            "descriptors": self._process.num_fds(),
            "objects": len(gc.get_objects()),
            "in_use": _in_use(),
            "knows": [resident.knows() for resident in self._residents],
        }

    def kinds(self) -> dict[str, int]:
        """Return how many Python objects of each type there are, of those that are many."""
        kinds = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
        return {kind: count for kind, count in kinds.items() if count >= 50}

    def thread_names(self) -> list[str]:
        """Return the names of all threads."""
        return sorted(thread.name for thread in threading.enumerate())

    def counts(self) -> tuple[Counter[str], Counter[str], list[str]]:
        """Return what was done, which errors users met (by type), and what should not have been met."""
        done, refused, unexpected = Counter[str](), Counter[str](), []
        for resident in self._residents:
            done.update(resident.done)
            refused.update(resident.refused)
            unexpected += resident.unexpected
        return done, refused, unexpected

    def trace(self) -> list[str]:
        """The first time: begin to trace allocations. After that: return where memory grew most since."""
        if self._first is None:
            tracemalloc.start(8)
            self._first = tracemalloc.take_snapshot()
            return []
        grown = tracemalloc.take_snapshot().compare_to(self._first, "traceback")
        return ["\n".join([str(each), *each.traceback.format()]) for each in grown[:12]]


def serve(url: str, bus: str, names: tuple[str, ...], everybody: tuple[str, ...], pipe: Connection) -> None:
    """Be a long-lived process: do what the pipe says."""
    site = Site([Resident(url, bus, name, everybody) for name in names])
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(site, what)(*args)
        except Exception:
            pipe.send((None, traceback.format_exc()))
        else:
            pipe.send((answer, None))


def visit(url: str, bus: str, keepers: tuple[str, ...]) -> None:
    """Be a process that is killed: host a service, follow everybody, call on and on."""
    node = Node(url, bus=bus, services=[Guest(f"visitor_{uuid.uuid4().hex[:8]}")])
    node.start()
    (guest,) = node.services
    for keeper in keepers:
        guest.subscribe(keeper, "items", lambda _: None)
    while True:
        try:
            node.call(random.choice(keepers), "echo", {"value": 1}, timeout=PATIENCE)
        except DseError:
            time.sleep(0.1)
        time.sleep(0.02)


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library (mallinfo(3)), all in bytes or counts."""

    _names_ = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names_.split()]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _Mallinfo


def _in_use() -> int:
    """Return the bytes that were allocated and not freed. All, as Python objects too come from malloc here."""
    info = _LIBC.mallinfo2()
    return int(info.uordblks + info.hblkhd)
