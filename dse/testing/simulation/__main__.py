"""``python -m dse.testing.simulation``: many histories on all cores, or one of them again, with a trace."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter

from dse.testing.simulation.batch import run_batch
from dse.testing.simulation.history import History
from dse.testing.simulation.simulation import Simulation

__all__ = ["main"]

BATCH = 20  # histories that a worker is given at a time
PROGRESS = 10.0  # seconds between two lines that say how far it is
SHOWN = 10  # failures that are printed


def run_many(first: int, histories: int, workers: int) -> int:
    """Run histories on several processes, and print what happened; return the exit code."""
    began = shown_at = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    batches = [range(at, min(at + BATCH, first + histories)) for at in range(first, first + histories, BATCH)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, broken in pool.imap_unordered(run_batch, batches):
            counts.update(done)
            failures += broken
            if time.monotonic() - shown_at >= PROGRESS:
                shown_at = time.monotonic()
                print(f"{counts['histories']:,} histories, {len(failures)} failed", flush=True)
    return report(counts, failures, time.monotonic() - began)


def report(counts: Counter[str], failures: list[tuple[int, str]], seconds: float) -> int:
    """Print failures, each with the command that replays it, and what was counted; return the exit code."""
    for seed, what in sorted(failures)[:SHOWN]:
        print(f"\nFAILED: {what}\nreplay: python -m dse.testing.simulation --seed {seed} --trace")
    print()
    print_counts(counts, seconds)
    print(f"\n{len(failures)} of {counts['histories']:,} histories broke a rule")
    return 1 if failures else 0


def run_one(seed: int, trace: bool) -> int:
    """Run one history, and print what happened; return 1 if it failed."""
    print(History.of(seed))
    simulation = Simulation(seed, trace=print if trace else None)
    began = time.monotonic()
    failed = False
    try:
        simulation.run()
    except Exception as error:
        failed = True
        if trace:
            traceback.print_exc(file=sys.stdout)
        print(f"\nFAILED: {error}")
    print()
    print_counts(simulation.counts, time.monotonic() - began)
    print(f"\nseed {seed}: digest {simulation.digest}")
    return int(failed)


def print_counts(counts: Counter[str], seconds: float) -> None:
    """Print what was counted, and the seconds of wall clock it took."""
    for name in sorted(counts):
        print(f"{counts[name]:>14,}  {name}")
    print(f"{seconds:>14,.1f}  wall seconds")


def main(arguments: list[str] | None = None) -> int:
    """Run as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dse.testing.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--seed", type=int, help="run the history of this seed alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happens")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return run_one(options.seed, options.trace)
    return run_many(options.first, options.histories, options.workers)


if __name__ == "__main__":
    sys.exit(main())
