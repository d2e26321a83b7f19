"""What systems of this kind are known to flake on: the first call, and the first broadcast, right after a node joined.

Four scenarios: a call between every pair of nodes, a broadcast to all nodes, a call to every service from every node, a
broadcast to all replicas of a service. A run starts four fresh nodes (two here and two in another process, where the
broker is reached from one) beside one that has been there all the time, one after the other or all at once, and begins
at once: nothing waits for anything but `Node.start`. Each call must return from the right node, each broadcast must
arrive everywhere once.

`make scenarios` makes 500 runs of each on each driver; `DSE_SCENARIO_RUNS` says how many. The number of a run, which a
failure names, says in which order its nodes start and call. With ``DSE_TEST_KEYS=yes`` the buses have keys.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dse import DataService, Node, rpc
from dse.core.keys import new_key
from dse.core.messages import CONTROL
from dse.errors import NodeLost
from dse.testing.brokers import Broker
from dse.testing.contract.bus_network import together
from dse.testing.contract.recorder import DEADLINE, eventually
from dse.testing.faults import Faults

RUNS = int(os.environ.get("DSE_SCENARIO_RUNS", "5"))
BATCH = 25  # runs a test, so that workers can share the runs
WORKERS = {"fake": 4, "redis": 4, "rabbit": 2}
RESIDENT, FRESH = "n0", ("n1", "n2", "n3", "n4")  # the first and the last two are in this process
NODES = (RESIDENT, *FRESH)
SHARED = "shared"


class Ear:
    """What a node was told how often."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.heard: Counter[str] = Counter()  # only ever counted up, under the lock
        self.lock = threading.Lock()

    def hear(self, key: str) -> str:
        with self.lock:
            self.heard[key] += 1
        return self.node_id


class Voice(DataService):
    """A service that every node has of its own (`own_n1`), or one that all have (`shared`)."""

    def __init__(self, service_id: str, ear: Ear) -> None:
        super().__init__(service_id)
        self._ear = ear

    @rpc
    def hear(self, key: str) -> str:
        return self._ear.hear(key)


class Site:
    """The nodes of one process, and what a test does with them."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._ears: dict[str, Ear] = {}

    def start(self, url: str, bus: str, node_id: str, keys: list[str] | None) -> None:
        heard = Ear(node_id)
        services = [Voice(f"own_{node_id}", heard), Voice(SHARED, heard)]
        node = Node(url, bus=bus, node_id=node_id, services=services, node_endpoints=[Endpoint(heard)], keys=keys)
        node.start()
        self._nodes[node_id], self._ears[node_id] = node, heard

    def stop(self, node_id: str) -> None:
        self._nodes.pop(node_id).stop()

    def call_nodes(self, node_id: str, others: Sequence[str], key: str) -> list[str]:
        """Call nodes one after the other; return who answered."""
        return [self._nodes[node_id].call_node(other, "hear", {"key": key}) for other in others]

    def call_services(self, node_id: str, services: Sequence[str], key: str) -> list[str]:
        return [self._nodes[node_id].call(service, "hear", {"key": key}) for service in services]

    def broadcast_nodes(self, node_id: str, key: str) -> None:
        self._nodes[node_id].broadcast_nodes("hear", {"key": key})

    def broadcast_shared(self, node_id: str, key: str) -> None:
        self._nodes[node_id].broadcast(SHARED, "hear", {"key": key})

    def heard(self, node_id: str, count: int) -> dict[str, int]:
        """Return what the node heard how often, once it has heard so many things (or when that takes too long)."""
        ear = self._ears[node_id]
        until = time.monotonic() + DEADLINE
        while sum(ear.heard.values()) < count and time.monotonic() < until:
            time.sleep(0.001)
        with ear.lock:
            heard, ear.heard = dict(ear.heard), Counter()
        return heard

    def knows(self, node_id: str) -> str:
        """Say whom the node knows, for a failure."""
        peers = self._nodes[node_id].status().peers.values()
        known = (f"{p.node_id} {p.state} heard {p.last_heard:.2f} s ago, {len(p.services)} services" for p in peers)
        return f"{node_id} knows {'; '.join(sorted(known)) or 'nobody'}"

    def close(self) -> None:
        together(*(node.stop for node in self._nodes.values()))
        self._nodes.clear()


class Endpoint:
    """What a node answers itself."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear

    def hear(self, key: str) -> str:
        return self._ear.hear(key)


class FarSite:
    """A site in another process, told over pipes; many threads may ask at once."""

    def __init__(self) -> None:
        path = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._lock = threading.Lock()  # protects _answers and writing
        self._answers: dict[int, queue.SimpleQueue[list[Any]]] = {}
        threading.Thread(target=self._read, name="scenario-answers", daemon=True).start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: self._ask(name, args)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE)

    def _ask(self, name: str, args: Sequence[Any]) -> Any:
        answers: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        with self._lock:
            number = len(self._answers)
            self._answers[number] = answers
            print(json.dumps([number, name, args]), file=self._process.stdin, flush=True)
        result, error = answers.get(timeout=DEADLINE * 3)
        assert error is None, f"in the other process: {error}"
        return result

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                number, *answer = json.loads(line)
                self._answers[number].put(answer)
        for answers in self._answers.values():
            answers.put([None, "it ended"])


def serve() -> None:
    """Be the other process: carry out each line of stdin, all at once."""
    logging.basicConfig(level=logging.ERROR)
    site, lock = Site(), threading.Lock()

    def carry_out(number: int, name: str, args: list[Any]) -> None:
        try:
            answer = [number, getattr(site, name)(*args), None]
        except BaseException as error:
            answer = [number, None, f"{type(error).__name__}: {error}"]
        with lock:
            print(json.dumps(answer), flush=True)

    for line in sys.stdin:
        threading.Thread(target=carry_out, args=json.loads(line)).start()


class Bus:
    """The nodes of one batch of runs."""

    def __init__(self, url: str, far: FarSite | None) -> None:
        self._url = url
        self._bus = f"scenario-{uuid.uuid4().hex[:12]}"
        self._keys = [new_key("scenario")] if os.environ.get("DSE_TEST_KEYS") == "yes" else None
        self._near = Site()
        self._sites: dict[str, Any] = dict.fromkeys(NODES, self._near)
        if far is not None:
            self._sites |= dict.fromkeys(FRESH[2:], far)
        self._running: list[str] = []

    def start(self, *nodes: str) -> Callable[[], Any]:
        """Return the starting of nodes, one after the other."""

        def start() -> None:
            for node_id in nodes:
                self._sites[node_id].start(self._url, self._bus, node_id, self._keys)
                self._running.append(node_id)

        return start

    def stop(self, *nodes: str) -> None:
        together(*(lambda n=node_id: self._sites[n].stop(n) for node_id in nodes if node_id in self._running))
        self._running = [node_id for node_id in self._running if node_id not in nodes]

    def at(self, node_id: str, what: str, *args: object) -> Any:
        """Do something at a node's site."""
        return getattr(self._sites[node_id], what)(node_id, *args)

    def heard(self, count: int) -> dict[str, dict[str, int]]:
        return {node_id: self.at(node_id, "heard", count) for node_id in NODES}

    def knowledge(self) -> str:
        return "\n".join(self.at(node_id, "knows") for node_id in self._running)


def calls_between_nodes(bus: Bus, order: Sequence[str]) -> None:
    """Each node calls each, itself too."""
    answers = together(*(lambda n=node_id: bus.at(n, "call_nodes", order, f"by {n}") for node_id in order))
    assert answers == [list(order)] * len(order)
    everybody = {f"by {node_id}": 1 for node_id in NODES}
    assert bus.heard(len(NODES)) == dict.fromkeys(NODES, everybody)


def calls_to_services(bus: Bus, order: Sequence[str]) -> None:
    """Each node calls the service of each, and the one that all have."""
    services = [f"own_{node_id}" for node_id in order] + [SHARED]
    answers = together(*(lambda n=node_id: bus.at(n, "call_services", services, f"by {n}") for node_id in order))
    assert [answer[:-1] for answer in answers] == [list(order)] * len(order)
    expected = {node_id: Counter(f"by {caller}" for caller in NODES) for node_id in NODES}
    for caller, answer in zip(order, answers, strict=True):
        expected[answer[-1]][f"by {caller}"] += 1
    heard = {node_id: bus.at(node_id, "heard", sum(expected[node_id].values())) for node_id in NODES}
    assert heard == expected


def _broadcasts(bus: Bus, order: Sequence[str], what: str) -> None:
    together(*(lambda n=node_id: bus.at(n, what, f"by {n}") for node_id in order))
    once = {f"by {node_id}": 1 for node_id in NODES}
    first = bus.heard(len(NODES))
    assert first == dict.fromkeys(NODES, once)
    # Whatever arrives a second time has arrived before what was sent after it.
    for node_id in order:
        bus.at(node_id, what, f"after {node_id}")
    afterwards = {f"after {node_id}": 1 for node_id in NODES}
    assert bus.heard(len(NODES)) == dict.fromkeys(NODES, afterwards)


def broadcast_to_nodes(bus: Bus, order: Sequence[str]) -> None:
    """Each node tells all nodes, itself too."""
    _broadcasts(bus, order, "broadcast_nodes")


def broadcast_to_replicas(bus: Bus, order: Sequence[str]) -> None:
    """Each node tells all replicas of the service that all have."""
    _broadcasts(bus, order, "broadcast_shared")


SCENARIOS = (calls_between_nodes, broadcast_to_nodes, calls_to_services, broadcast_to_replicas)
_SHARES = [range(first, min(first + BATCH, RUNS)) for first in range(0, RUNS, BATCH)]


def play(bus: Bus, scenario: Callable[[Bus, Sequence[str]], None], number: int) -> None:
    """One run: the number says who starts when, and who begins."""
    rng = random.Random(number)
    order, starting = rng.sample(NODES, len(NODES)), rng.sample(FRESH, len(FRESH))
    cut = rng.randrange(len(FRESH) + 1)  # so many one after the other, and the others all at once
    bus.start(*starting[:cut])()
    together(*(bus.start(node_id) for node_id in starting[cut:]))
    try:
        scenario(bus, order)
    except BaseException as error:
        error.add_note(f"run {number}: {starting[:cut]}, then at once {starting[cut:]}; calls by {order}")
        error.add_note(bus.knowledge())
        raise
    bus.stop(*FRESH)


@pytest.fixture(scope="session")
def far_site() -> Iterator[FarSite]:
    """The other process, shared by all tests of a worker."""
    site = FarSite()
    yield site
    site.end()


def _cases() -> list[Any]:
    cases = []
    for driver, share in itertools.product(WORKERS, _SHARES):
        for index, scenario in enumerate(SCENARIOS):
            # Each group is one worker's, with a broker of its own; RabbitMQ is too large for one a worker.
            group = (share.start // BATCH * len(SCENARIOS) + index) % WORKERS[driver]
            marks = [pytest.mark.xdist_group(f"scenarios-{group}")]
            if driver != "fake":
                marks.append(getattr(pytest.mark, driver))
            cases.append(
                pytest.param(driver, scenario, share, id=f"{driver}-{scenario.__name__}-{share.start}", marks=marks)
            )
    return cases


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("driver", "scenario", "runs"), _cases())
def test_it_works_right_after_start(
    request: pytest.FixtureRequest,
    driver: str,
    scenario: Callable[[Bus, Sequence[str]], None],
    runs: range,
    record_property: Callable[[str, object], None],
) -> None:
    if driver == "fake":
        bus = Bus(f"fake://{uuid.uuid4().hex}", None)
    else:
        server: Broker = request.getfixturevalue(f"{driver}_server")
        bus = Bus(server.direct_url, request.getfixturevalue("far_site"))
    done = 0
    try:
        bus.start(RESIDENT)()
        for number in runs:
            play(bus, scenario, number)
            done += 1
    finally:
        record_property("scenario", [driver, scenario.__name__, done, len(runs)])
        bus.stop(*NODES)
    eventually(lambda: not _threads(), f"the threads end: {_threads()}", 5.0)


def test_a_node_that_has_started_is_called_although_word_of_it_is_late() -> None:
    name = uuid.uuid4().hex
    with Faults(name) as faults, Node(f"fake://{name}", node_id="old") as old:
        faults.delay(0.3, 0.3, lambda sent: sent.receiver is old.runtime.transport and sent.address == CONTROL)
        with Node(f"fake://{name}", node_id="new", node_endpoints=[Endpoint(Ear("new"))]):
            assert "new" not in old.status().peers
            assert old.call_node("new", "hear", {"key": "early"}) == "new"


def test_a_node_that_is_back_under_its_name_is_called_although_its_death_is_not_known() -> None:
    name = uuid.uuid4().hex
    with Faults(name) as faults, Node(f"fake://{name}", node_id="old") as old:
        first = Node(f"fake://{name}", node_id="phoenix", node_endpoints=[Endpoint(Ear("first"))])
        first.start()
        assert old.call_node("phoenix", "hear", {"key": "before"}) == "first"
        first.runtime.transport.close()  # as silent as a killed one
        faults.delay(0.3, 0.3, lambda sent: sent.receiver is old.runtime.transport and sent.address == CONTROL)
        with Node(f"fake://{name}", node_id="phoenix", node_endpoints=[Endpoint(Ear("second"))]):
            assert old.call_node("phoenix", "hear", {"key": "after"}) == "second"
        first.stop()


def test_a_call_to_a_node_that_never_was_fails_long_before_its_timeout() -> None:
    with Node(f"fake://{uuid.uuid4().hex}") as node:
        began = time.monotonic()
        with pytest.raises(NodeLost, match="nobody"):
            node.call_node("nobody", "hear", {"key": "x"}, timeout=30.0)
        assert time.monotonic() - began < 3.0


def _threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("dse-"))


if __name__ == "__main__":
    serve()
