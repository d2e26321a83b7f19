"""A running site moves from RabbitMQ to Redis, process by process, with `dse bridge` between the two.

Under 100 changes and 20 calls a second no change is lost, and no call runs twice. `make test` runs it briefly; `make
move` at length, several times (`RUNS`), and prints the counts (`DSE_MOVE` names the file that collects them).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from dse.testing.brokers import Broker

sys.path.insert(0, str(Path(__file__).parent))

from move.mover import ORDER, Mover, Pace
from move.verdict import judge

RESULTS = os.environ.get("DSE_MOVE")
RUNS = int(os.environ.get("DSE_MOVE_RUNS", "1"))
PACE = Pace(dwell=4.0, interval=1.0) if RESULTS else Pace(dwell=0.3, interval=0.5)

pytestmark = [pytest.mark.timeout(300), pytest.mark.redis, pytest.mark.rabbit]


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("killed", [False, True], ids=["bridge stays", "bridge is killed"])
def test_a_site_moves(killed: bool, run: int, redis_server: Broker, rabbit_server: Broker, tmp_path: Path) -> None:
    mover = Mover(rabbit_server.direct_url, redis_server.direct_url, tmp_path, PACE)
    try:
        mover.start()
        mover.start_bridge()
        mover.wait_carried()
        for number, name in enumerate(ORDER):
            mover.move(name)
            mover.dwell()
            if killed and number == len(ORDER) // 2 - 1:
                mover.kill_bridge()
                mover.wait_whole()
                mover.dwell()
        ended = mover.end_bridge()
        mover.dwell()
        verdict = judge(mover, mover.finish())
    finally:
        mover.close()
    if RESULTS:
        with open(RESULTS, "a") as file:
            print(json.dumps({"killed": killed} | asdict(verdict)), file=file)
    print(verdict)
    assert not verdict.broken, "\n".join(verdict.broken[:20])
    assert ended == 0
