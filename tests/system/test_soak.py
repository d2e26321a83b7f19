"""A soak in small: what comes and goes leaves nothing behind. `make soak` is the long one, which also judges memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dse import DataService, Node, Table
from dse.testing.contract.recorder import eventually

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


class Passing(DataService):
    """A service that comes and goes."""

    items = Table("key")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "driver",
    [
        pytest.param("fake", marks=pytest.mark.xdist_group("soak")),
        pytest.param("redis", marks=[pytest.mark.redis, pytest.mark.xdist_group("soak")]),
        pytest.param("rabbit", marks=[pytest.mark.rabbit, pytest.mark.xdist_group("soak")]),
    ],
)
def test_threads_descriptors_and_broker_objects_are_back_where_they_began(driver: str) -> None:
    command = [sys.executable, str(SOAK), "--seconds", "20", "--rounds", "1", "--drivers", driver]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_node_keeps_nothing_of_services_and_subscriptions_that_are_gone() -> None:
    with Node(f"fake://{uuid.uuid4().hex}", services=[Passing("lasting")]) as node:
        (lasting,) = node.services

        def come_and_go(times: int) -> None:
            for _ in range(times):
                passing = Passing(f"passing_{uuid.uuid4().hex}")
                node.register(passing)
                replica = lasting.subscribe(passing.service_id, "items")
                replica.wait(lambda r: r.columns)
                lasting.unsubscribe(replica)
                node.unregister(passing.service_id)

        come_and_go(20)
        before = objects()
        come_and_go(200)
        # Addresses are remembered, some thousands at most; timers that were cancelled until they would have been due.
        eventually(lambda: objects() - before < 300, f"200 have gone and left {objects() - before} objects", 30.0)


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())
