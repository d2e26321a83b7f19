"""Histories one after the other: what a worker process does. Spawned processes cannot find it in ``__main__``."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable

from dse.testing.simulation.simulation import Simulation

__all__ = ["run_batch"]


def run_batch(seeds: Iterable[int]) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Run histories; return what was counted, and (seed, what went wrong) of those that failed."""
    counts: Counter[str] = Counter()
    failures = []
    gc.disable()  # a history's garbage is collected in one go
    try:
        for seed in seeds:
            simulation = Simulation(seed)
            try:
                simulation.run()
            except Exception as error:
                failures.append((seed, str(error)))
            counts.update(simulation.counts)
    finally:
        gc.enable()
        gc.collect()
    return counts, failures
