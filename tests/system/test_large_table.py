"""A large table reaches a replica in bounded chunks, while it changes, and while other tables stay live.

`make large` does it with a million rows; `DSE_LARGE_ROWS` says how many.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from dse import Change, DataService, Node, ReplicaState, Table
from dse.core.tablelog import Sizes
from dse.core.transport import Address
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import eventually
from dse.testing.piped import PipedProcess

ROWS = int(os.environ.get("DSE_LARGE_ROWS", "100000"))
DEADLINE = 60 + ROWS / 10_000
LONGEST_SILENCE = 2.0  # seconds between two changes of the other table, which come 50 times a second


class Archive(DataService):
    """A large table and a lively one, which both change all the time."""

    large = Table("number", "name", "value")
    lively = Table("turn")

    def __init__(self) -> None:
        super().__init__("archive")
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._change), threading.Thread(target=self._live)]

    def on_start(self) -> None:
        self.large.replace((number, f"name of {number}", number * 2) for number in range(ROWS))
        for thread in self._threads:
            thread.start()

    def settle(self) -> None:
        """Change nothing any more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _change(self) -> None:
        turn = 0
        while not self._ended.wait(0.01):
            turn += 1
            self.large.apply([(ROWS + turn, "new", 0)], [(turn, f"name of {turn}", turn * 2)])

    def _live(self) -> None:
        turn = 0
        while not self._ended.wait(0.02):
            turn += 1
            self.lively.replace([(turn,)])


def main(url: str, bus: str) -> None:
    """Publish until told to settle; then say what the large table holds."""
    archive = Archive()
    with Node(url, bus=bus, services=[archive]):
        print("ready", flush=True)
        for _ in sys.stdin:
            archive.settle()
            print(json.dumps([*archive.large.version, len(archive.large), archive.large._log.digest]), flush=True)


class Watcher(DataService):
    """Follows both tables, and notes when the lively one was heard and how large the frames are."""

    def __init__(self) -> None:
        super().__init__("watcher")
        self.heard: list[float] = []
        self.added = self.removed = self.callbacks = 0
        self.rows: set[tuple[object, ...]] = set()
        self.longest_frame = 0

    def spy(self, received: Callable[[Address, bytes], None]) -> Callable[[Address, bytes], None]:
        def look(address: Address, frame: bytes) -> None:
            self.longest_frame = max(self.longest_frame, len(frame))
            received(address, frame)

        return look

    def on_lively(self, _: Change) -> None:
        self.heard.append(time.monotonic())

    def on_large(self, change: Change) -> None:
        assert not change.added & self.rows
        assert change.removed <= self.rows
        self.callbacks += 1
        self.rows -= change.removed
        self.rows |= change.added


def follow(url: str) -> dict[str, float]:
    """Follow the tables of a process that is started for it; return the figures."""
    bus, watcher = f"large-{uuid.uuid4().hex[:8]}", Watcher()
    process = PipedProcess(__name__, url, bus)
    try:
        process.answer(DEADLINE)
        with Node(url, bus=bus, services=[watcher]) as node:
            node.runtime.received = watcher.spy(node.runtime.received)  # type: ignore[method-assign]
            node.wait_for("archive", DEADLINE)
            lively = watcher.subscribe("archive", "lively", watcher.on_lively)
            lively.wait(ReplicaState.LIVE, DEADLINE)
            began = time.monotonic()
            large = watcher.subscribe("archive", "large", watcher.on_large)
            large.wait(ReplicaState.LIVE, DEADLINE)
            took = time.monotonic() - began
            eventually(lambda: watcher.callbacks > 50, "changes go on", DEADLINE)
            seen = [began, *(at for at in watcher.heard if began <= at <= began + took), began + took]
            epoch, seq, count, digest = json.loads(process.ask("settle", DEADLINE))
            large.wait(lambda replica: replica.version == (epoch, seq), DEADLINE)
            eventually(lambda: watcher.rows == large.rows, "the callbacks add up to the rows", DEADLINE)
            machine = large._shared.machine  # type: ignore[attr-defined]
            assert (len(large), machine.digest, large.state) == (count, digest, ReplicaState.LIVE)
            assert count == ROWS
            return {
                "seconds": took,
                "longest_silence": max(later - earlier for earlier, later in itertools.pairwise(seen)),
                "longest_frame": watcher.longest_frame,
                "resyncs": machine.resyncs,
                "heard": len(seen) - 2,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
    finally:
        process.kill()


def check(broker: Broker, kind: str) -> None:
    figures = follow(broker.url)
    print(f"{kind}: {ROWS:,} rows:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    assert figures["longest_frame"] <= 2 * Sizes().chunk + 4096
    assert figures["longest_silence"] < LONGEST_SILENCE
    assert figures["resyncs"] < 3, "it began again and again"


@pytest.mark.timeout(60 + 2 * DEADLINE)
def test_a_large_table_comes_in_chunks_over_redis(redis_server: Broker) -> None:
    check(redis_server, "redis")


@pytest.mark.timeout(60 + 2 * DEADLINE)
def test_a_large_table_comes_in_chunks_over_rabbit(rabbit_server: Broker) -> None:
    check(rabbit_server, "rabbit")


if __name__ == "__main__":
    main(*sys.argv[1:])
