"""Six processes, 20 tables, 200 changes and 50 calls a second, on a broker that fails, and with nodes that do.

`make test` runs each fault for some seconds. `make faults` runs them at full length (`DSE_FAULTS` names the file that
collects the counts) and writes the table of ``docs/faults.md``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from dse.testing.brokers import Broker, RedisServer, rabbit_broker, redis_broker

sys.path.insert(0, str(Path(__file__).parent))

from faults.fleet import ALLOWED, FULL, PROCESSES, SHORT, Fleet, Scale
from faults.verdict import judge

RESULTS = os.environ.get("DSE_FAULTS")
SCALE = FULL if RESULTS else SHORT

pytestmark = pytest.mark.timeout(300 if SCALE.full else 90)

_BROKERS = {"redis": redis_broker, "rabbit": rabbit_broker}
VICTIM = 0  # the place of the process that faults of one process hit


def _kind(name: str) -> Any:
    # One worker for the faults of a broker, beside the one for the other's.
    return pytest.param(name, marks=[getattr(pytest.mark, name), pytest.mark.xdist_group(f"faults-{name}")])


@pytest.fixture(params=[_kind(name) for name in _BROKERS], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def broker(kind: str) -> Iterator[Broker]:
    with _BROKERS[kind]() as broker:
        yield broker


class Trial:
    """One fault: a fleet under load, what is done to it, and the verdict."""

    def __init__(self, name: str, kind: str, broker: Broker, folder: Path) -> None:
        self.name = name
        self.kind = kind
        self.broker = broker
        self.scale: Scale = SCALE
        self.folder = folder
        self.fleet: Fleet
        self.notes: dict[str, Any] = {}

    def run(
        self,
        fault: Callable[[Fleet], None],
        check: Callable[[Fleet], None] = lambda fleet: None,
        heartbeat: float | None = None,
    ) -> None:
        """Do the fault, which ends when the function does, under load; check all that must hold afterwards.

        check: what must hold besides, asked of the fleet at rest; may note what it found. heartbeat: the drivers'.
        """
        fleet = self.fleet = Fleet(self.broker, self.scale, self.folder, heartbeat)
        fleet.start()
        fault(fleet)
        ended = time.monotonic()
        whole = fleet.wait_whole(ended + ALLOWED)
        if self.scale.full:
            time.sleep(max(0.0, ended + ALLOWED - 1.0 - time.monotonic()))
        fleet.tell_all("halt_changes")
        fleet.wait_equal(max(ended + ALLOWED, time.monotonic() + 1.0))
        fleet.loaded_until = time.monotonic()
        hung = [key for keys in fleet.tell_all("end_calls").values() for key in keys]
        self._everybody_reaches_everybody()
        check(fleet)
        verdict = judge(fleet, self.name, self.kind, whole - ended, hung)
        verdict.notes = self.notes
        if RESULTS:
            with open(RESULTS, "a") as file:
                print(json.dumps(asdict(verdict)), file=file)
        else:
            print(verdict)
        assert not verdict.broken, "\n".join(verdict.broken[:20])
        for node_id, left in fleet.tell_all("stop").items():
            assert not left, f"{node_id} has left threads: {left}"

    def _everybody_reaches_everybody(self) -> None:
        for place in range(PROCESSES):
            for node_id, error in self.fleet.tell_all("call", service=f"work{place}", timeout=5.0).items():
                assert not error, f"{node_id} could not call work{place} afterwards: {error}"

    def close(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.close()
        self.broker.resume()
        self.broker.mend()
        self.broker.start()


@pytest.fixture
def trial(request: pytest.FixtureRequest, kind: str, broker: Broker, tmp_path: Path) -> Iterator[Trial]:
    name = request.function.__name__.removeprefix("test_").replace("_", " ")
    trial = Trial(name, kind, broker, tmp_path)
    yield trial
    trial.close()


def test_the_broker_is_killed_and_restarted(trial: Trial) -> None:
    def fault(fleet: Fleet) -> None:
        trial.broker.stop()
        time.sleep(trial.scale.down)
        trial.broker.start()

    trial.run(fault)


def test_the_broker_is_suspended(trial: Trial) -> None:
    def fault(fleet: Fleet) -> None:
        trial.broker.pause()
        time.sleep(trial.scale.hung)
        trial.broker.resume()

    trial.run(fault)


def test_all_connections_are_cut_silently(trial: Trial) -> None:
    def fault(fleet: Fleet) -> None:
        with fleet.cut(*range(PROCESSES)):
            time.sleep(trial.scale.cut)

    trial.run(fault)


def test_one_process_is_cut_off_silently(trial: Trial) -> None:
    def fault(fleet: Fleet) -> None:
        with fleet.cut(VICTIM):
            time.sleep(trial.scale.cut)

    trial.run(fault)


def test_a_slow_subscriber_is_dropped(trial: Trial) -> None:
    """Its process is suspended, and ten times the load published meanwhile; the callbacks of another sleep."""

    def fault(fleet: Fleet) -> None:
        victim, sleepy = fleet.members[VICTIM], fleet.members[VICTIM + 1]
        rate = victim.plan.change_rate
        sleepy.tell("doze", pause=0.02)
        accepted = fleet.accepted()
        victim.suspend()
        ports = fleet.proxies[VICTIM].upstream_ports

        def kept() -> list[str]:
            # Seen by the kernel, on the broker's side: the process that is suspended, and its proxy, read no end.
            held = {
                link.raddr.port for link in psutil.net_connections("tcp") if link.raddr and link.status == "ESTABLISHED"
            }
            return [] if ports - held else ["the broker keeps the slow subscriber"]

        began = time.monotonic()
        fleet.tell_all("flood", rate=rate * 10, note_length=2000)
        fleet.wait(began + 40.0, kept)
        trial.notes["dropped after"] = round(time.monotonic() - began, 1)
        time.sleep(max(0.0, began + trial.scale.flood - time.monotonic()))
        trial.notes["flood"] = round((fleet.accepted() - accepted) / (time.monotonic() - began))
        fleet.tell_all("flood", rate=rate, note_length=10)
        victim.resume()
        sleepy.tell("doze", pause=0.0)

    def check(fleet: Fleet) -> None:
        assert fleet.members[VICTIM].tell("versions")["disconnects"]

    if isinstance(trial.broker, RedisServer):
        trial.broker.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 4mb 2mb 3")
    trial.run(fault, check, trial.scale.flood_heartbeat)


def test_a_process_is_killed_and_another_takes_its_place(trial: Trial) -> None:
    """A call that was with the killed node, or comes right after, fails within 6 heartbeat intervals of the kill."""

    def fault(fleet: Fleet) -> None:
        callers = [member for member in fleet.members if member.plan.place != VICTIM]
        victim = fleet.members[VICTIM]
        call = {"service": f"work{VICTIM}", "method": "once", "timeout": 25.0}
        held = [
            member.tell("start_call", **call, node_id=None, pause=30.0, blocking=blocking, tag="held")
            for member in callers
            for blocking in (False, True)
        ]

        def not_running() -> list[str]:
            return sorted(set(held) - {key for _, key, _ in fleet.ran()})

        fleet.wait(time.monotonic() + 5.0, not_running)
        victim.kill()
        killed = trial.notes["killed"] = time.monotonic()
        for member in callers:
            for node_id in (None, victim.node_id):
                member.tell("start_call", **call, node_id=node_id, pause=0.0, blocking=False, tag="later")
        time.sleep(max(0.0, killed + trial.scale.dead - time.monotonic()))
        fleet.replace(VICTIM, node_id=f"n{VICTIM}b")

    def check(fleet: Fleet) -> None:
        killed = trial.notes.pop("killed")
        for tag in ("held", "later"):
            calls = [call for call in fleet.calls() if call["tag"] == tag]
            assert len(calls) == 2 * (PROCESSES - 1)
            if tag == "held":
                assert {call["error"] for call in calls} == {"NodeLost"}
            assert all(call["error"] for call in calls)
            slowest = trial.notes[tag] = round(max(call["began"] + call["seconds"] for call in calls) - killed, 2)
            assert slowest <= 6 * trial.scale.interval, f"a {tag} call failed {slowest} s after its node was killed"

    trial.run(fault, check)


def test_a_process_is_killed_and_restarted_at_once(trial: Trial) -> None:
    """Under its old node_id."""

    def fault(fleet: Fleet) -> None:
        fleet.members[VICTIM].kill()
        fleet.replace(VICTIM)

    trial.run(fault)


def _suspend(trial: Trial, seconds: float) -> None:
    def fault(fleet: Fleet) -> None:
        victim = fleet.members[VICTIM]
        victim.suspend()
        time.sleep(seconds)
        victim.resume()

    trial.run(fault)


def test_a_process_is_suspended(trial: Trial) -> None:
    """For long enough to be taken for dead, and too short for its connection to be given up."""
    _suspend(trial, trial.scale.suspended)


@pytest.mark.skipif(not SCALE.full, reason="takes a minute and a half; `make faults` runs it")
def test_a_process_is_suspended_for_a_minute(trial: Trial) -> None:
    _suspend(trial, 60.0)


def test_another_replica_takes_over(trial: Trial) -> None:
    """A service is unregistered, registered again later, and then the other replica goes."""

    def fault(fleet: Fleet) -> None:
        first, second = fleet.members[VICTIM], fleet.members[VICTIM + 1]
        service, tables = next(iter(first.plan.sources.items()))
        second.tell("add_source", service_id=service, tables=tables)
        fleet.wait_whole(time.monotonic() + ALLOWED)
        first.tell("unregister", service_id=service)
        fleet.wait_whole(time.monotonic() + ALLOWED)
        first.tell("register", service_id=service)
        fleet.wait_whole(time.monotonic() + ALLOWED)
        second.tell("unregister", service_id=service)

    trial.run(fault)
