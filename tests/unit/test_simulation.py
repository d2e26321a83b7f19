"""The simulation: histories end well, are the same for the same seed, and notice machines that break a rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dse.testing.simulation.checks import RuleBroken
from dse.testing.simulation.history import History, Step
from dse.testing.simulation.simulation import Simulation

sys.path.insert(0, str(Path(__file__).parent))

from broken_machines import BROKEN

BATCHES, BATCH = 8, 12
SEEDS = 400


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_histories_end_well(batch: int) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        Simulation(seed).run()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_machine_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[name](monkeypatch)
    with pytest.raises(RuleBroken):
        for seed in range(SEEDS):
            Simulation(seed).run()


def test_a_seed_is_the_same_history_in_every_process() -> None:
    code = (
        "from dse.testing.simulation.simulation import Simulation\n"
        "for seed in range(6):\n"
        "    simulation = Simulation(seed)\n"
        "    simulation.run()\n"
        "    print(simulation.digest)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(set(next(iter(outputs)).split())) == 6


def test_a_history_can_be_written_by_hand() -> None:
    steps = [Step(2.0, "change", count=5), Step(3.0, "cut", place=1, seconds=4.0), Step(4.0, "change", count=5)]
    told: list[str] = []
    simulation = Simulation(1, History(1, follows=[(1, 0, 0)], steps=steps), trace=told.append)
    counts = simulation.run()
    assert counts["cuts"] == counts["disconnects"] == 1
    assert counts["nodes"] == 4
    assert any("n1 is cut off" in line for line in told)


def test_a_failure_prints_the_command_that_replays_it() -> None:
    code = (
        "import sys\n"
        "from dse.core.replica import ReplicaMachine\n"
        "from dse.testing.simulation.__main__ import report\n"
        "from dse.testing.simulation.batch import run_batch\n"
        "ReplicaMachine.tip = lambda *_: []\n"
        "ReplicaMachine.disconnected = lambda *_: None\n"
        "counts, failures = run_batch(range(40))\n"
        "sys.exit(report(counts, failures, 1.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "FAILED: " in done.stdout
    assert "replay: python -m dse.testing.simulation --seed " in done.stdout
