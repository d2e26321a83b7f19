"""What traces cost: calls and changes on ``fake://`` with another tree of DSE beside this one, turn by turn.

    git archive main dse | tar -x -C /tmp/before
    python benchmarks/traces.py --before /tmp/before [--launches 3] [--rounds 60]

Each way has a process of its own; they take turns, so that what else the machine does meets all alike. What is shown is
the processor time of all threads, median of all turns of all launches. ``again``: the other tree a second time, which
shows what such a ratio is worth. ``base``: no OpenTelemetry is imported; ``api``: its API is, and no provider is set;
``sdk``: the SDK makes all spans, and drops them; changes are published within one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WAYS = {"before": "", "again": "", "base": "", "api": "api", "sdk": "sdk"}
CALLS, CHANGES = 300, 600


def child(way: str) -> None:
    if way == "api":
        import opentelemetry.propagate
        import opentelemetry.trace  # noqa: F401
    span: Any = nullcontext
    if way == "sdk":
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        tracer = trace.get_tracer("benchmark")

        def span() -> Any:
            return tracer.start_as_current_span("benchmark")

    from dse import DataService, Node, Table, rpc

    class Echo(DataService):
        @rpc
        def echo(self, data: str) -> str:
            return data

    class Source(DataService):
        numbers = Table("number", "text")

    url = f"fake://{uuid.uuid4().hex}"
    seen = 0

    def count(change: Any) -> None:
        nonlocal seen
        seen += 1

    source, follower = Source("source"), DataService("follower")
    with Node(url, services=[Echo("echo"), source]), Node(url, services=[follower]) as node:
        replica = follower.subscribe("source", "numbers", count, patient=True)
        node.wait_for("echo")
        replica.wait(lambda each: each.state.value == "LIVE")
        number = 0
        for _ in sys.stdin:
            began = time.process_time()
            for _ in range(CALLS):
                node.call("echo", "echo", {"data": "x"})
            called = time.process_time()
            with span():
                for _ in range(CHANGES):
                    number += 1
                    source.numbers.apply([(number, "text")], [(number - 1, "text")])
            replica.wait(partial(_holds, (number, "text")), 60)
            heard = time.process_time()
            print((called - began) / CALLS, (heard - called) / CHANGES, flush=True)


def _holds(row: tuple[Any, ...], replica: Any) -> bool:
    return row in replica


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a directory in which another tree's dse/ is")
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    took: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(options.launches):
        launch(options.before, options.rounds, took)
    print(f"{'us':8} {'call':>15} {'change':>15}   (processor time, and its ratio to before)")
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in took.items()}
    for way, row in medians.items():
        cells = [f"{m * 1e6:8.1f} {m / b:6.3f}" for m, b in zip(row, medians["before"], strict=True)]
        print(f"{way:8} {'  '.join(cells)}")


def launch(before: Path, rounds: int, took: dict[str, list[list[float]]]) -> None:
    with ExitStack() as stack:
        processes = {}
        for way, kind in WAYS.items():
            process = subprocess.Popen(
                [sys.executable, __file__, "--before", before, "--child", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(before if way in ("before", "again") else ROOT)},
            )
            processes[way] = stack.enter_context(process)
        for turn in range(rounds + 3):
            for way in sorted(WAYS, key=lambda each: (turn + list(WAYS).index(each)) % len(WAYS)):
                stdin, stdout = processes[way].stdin, processes[way].stdout
                assert stdin is not None
                assert stdout is not None
                stdin.write("\n")
                stdin.flush()
                seconds = [float(each) for each in stdout.readline().split()]
                if turn >= 3:  # the first turns warm up
                    took[way].append(seconds)


if __name__ == "__main__":
    main()
