"""The long run: millions of frames, changed from real ones or made up, through decoding and a whole node's dispatch.

`make fuzz-frames`: 10 million, on as many processes as there are cores. Prints time, rate, the slowest frame and what
memory did; ends with 1 if a frame raised, took over 100 ms, or memory grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from dse import DataService, Node, NoSuchMethod, Table, rpc
from dse.core.messages import BadFrame, Clash, Leave, Message, decode
from dse.core.runtime import Runtime
from dse.core.transport import Address
from fuzz.__main__ import resident
from fuzz.engine import LONGEST
from fuzz.hostile import Site
from fuzz.recorded import FRAMES

GROWTH = 32 << 20
"""Bytes that a process may grow by, from a tenth of its frames to its end."""

_LOOK = 20_000  # frames between two looks whether all is well
_STRANGE = [bytes([byte]) for byte in b"\x00\xff\x7f\xc0\xc1\xde\xdd\xdb\xcf\xd3\xcb\x90\x80"]


class _Recorded(DataService):
    t = Table("a", "b")

    @rpc
    def ping(self, x: int = 0) -> int:
        return x

    @rpc
    async def slow(self) -> None:
        import asyncio

        await asyncio.sleep(0.7)

    @rpc
    def fail(self) -> None:
        raise ValueError("on purpose")


def record() -> list[bytes]:
    """Return the frames that nodes at work receive: joins, calls of every end, a table followed, lost and resumed."""
    heard: dict[bytes, None] = {}
    received = Runtime.received

    def keep(self: Runtime, address: Address, frame: bytes) -> None:
        heard[bytes(frame)] = None
        received(self, address, frame)

    Runtime.received = keep  # type: ignore[method-assign]
    try:
        url = f"fake://record-{os.getpid()}-{time.monotonic_ns()}"
        first = Node(url, node_id="peer-a", services=[_Recorded("s")], heartbeat_interval=0.2)
        with first, Node(url, node_id="peer-b", services=[_Recorded("q"), DataService("r")]) as second:
            second.wait_for("s", 5)
            first.wait_for("q", 5)
            table = first.service("s").t
            table.insert(
                [
                    (
                        number,
                        f"row {number}",
                    )
                    for number in range(3000)
                ]
            )
            replica = second.service("r").subscribe("s", "t")
            for number in range(40):
                first.call("q", "ping", {"x": number})
                table.apply([(number, b"bytes")], [(number, f"row {number}")])
            for method in ("fail", "no_such"):
                try:
                    first.call("q", method)
                except (Exception, NoSuchMethod):
                    pass
            first.call("q", "slow", timeout=2)
            table.replace([(number, "x" * 200) for number in range(3000)])
            replica.wait(lambda held: held.rows == table.rows, 10)
            second.service("r").unsubscribe(replica)
    finally:
        Runtime.received = received  # type: ignore[method-assign]
    return list(heard)


class Mutator:
    """Makes frames from real ones: bytes changed, taken out, put in, doubled, of two frames put together, or random."""

    def __init__(self, frames: list[bytes], seed: int) -> None:
        self._frames = frames
        self._random = random.Random(seed)

    def next(self) -> bytes:
        rng = self._random
        kind = rng.random()
        if kind < 0.05:
            return b"\x01\x01" + rng.randbytes(rng.randrange(80))
        frame = bytearray(rng.choice(self._frames))
        if kind < 0.15:
            return bytes(frame)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            at = rng.randrange(2, len(frame) + 1) if len(frame) > 2 else len(frame)
            change = rng.random()
            if change < 0.35 and at < len(frame):
                frame[at] = rng.randrange(256)
            elif change < 0.55 and at < len(frame):
                frame[at : at + 1] = rng.choice(_STRANGE)
            elif change < 0.7:
                frame[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
            elif change < 0.8:
                del frame[at : at + rng.choice((1, 2, 4, 30))]
            elif change < 0.9:
                other = rng.choice(self._frames)
                frame[at:] = other[rng.randrange(len(other)) :][:2000]
            else:
                frame[at:at] = frame[at : at + rng.choice((1, 8, 100))]
        return bytes(frame)


def work(count: int, seed: int) -> dict[str, Any]:
    """Run so many frames in this process."""
    recorded = record()
    kinds = Counter(type(decode(frame)).__name__ for frame in recorded)
    long = [frame for frame in recorded if len(frame) >= 3000]
    short = [frame for frame in recorded if len(frame) < 3000] + long[:9]
    mutator = Mutator(short + 5 * FRAMES, seed)
    site = Site()
    outcome: Counter[str] = Counter()
    slowest, findings = 0.0, []
    start = warm = 0
    began = time.monotonic()
    try:
        for number in range(count):
            frame = mutator.next()
            try:
                message: Message | None = decode(frame)
            except BadFrame:
                message = None
            outcome[type(message).__name__ if message is not None else "refused"] += 1
            if isinstance(message, Leave | Clash) and message.node_id in ("honest", "under-test"):
                continue
            took = tell(site, number, frame)
            if took > LONGEST:
                took = min(took, tell(site, number, frame))
                if took > LONGEST:
                    findings.append(f"took {took * 1000:.0f} ms: {frame[:200]!r}")
            slowest = max(slowest, took)
            if site.raised:
                findings.append(f"{site.raised.pop(0)}: {frame[:200]!r}")
            if number == count // 10:
                gc.collect()
                warm = resident()
            start = start or resident()
            if number % _LOOK == 0:
                site.check()
            if len(findings) > 20:
                break
        site.check()
        site.settle()
        gc.collect()
        end = resident()
        peers = len(site.runtime.control_bus._machine.peers)
    finally:
        site.close()
    if end - warm > GROWTH:
        findings.append(f"memory grew by {(end - warm) >> 20} MiB")
    return {
        "frames": count, "seconds": time.monotonic() - began, "slowest": slowest, "findings": findings, "start": start,
        "warm": warm, "end": end, "outcome": outcome, "recorded": kinds, "peers": peers,
    }  # fmt: skip


def tell(site: Site, which: int, frame: bytes) -> float:
    """Deliver a frame; return the seconds of this thread that it took."""
    began = time.thread_time()
    site.tell(which, frame)
    return time.thread_time() - began


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.frames", description="Millions of frames through a node.")
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(work(options.frames, options.seed)))
        return 0
    share = options.frames // options.jobs
    print(f"{options.frames:,} frames in {options.jobs} processes, seed {options.seed}", flush=True)
    began = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fuzz.frames", "--one", "--frames", str(share), "--seed", str(options.seed + job)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(options.jobs)
    ]
    parts = []
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            print(f"a process ended with {process.returncode}")
            return 1
        parts.append(json.loads(said.splitlines()[-1]))
    outcome = sum((Counter(part["outcome"]) for part in parts), Counter[str]())
    frames, seconds = sum(part["frames"] for part in parts), time.monotonic() - began
    print(f"{frames:,} frames in {seconds:,.0f} s, {frames / seconds:,.0f} a second")
    print(f"slowest: {max(part['slowest'] for part in parts) * 1000:.1f} ms")
    for part in parts:
        print(f"memory: {part['start'] / 2**20:.0f} MiB at the start, {part['warm'] / 2**20:.0f} after a tenth, "
              f"{part['end'] / 2**20:.0f} at the end; {part['peers']} peers known then")  # fmt: skip
    print("recorded:", ", ".join(f"{kind} {count}" for kind, count in sorted(parts[0]["recorded"].items())))
    print("decoded as:", ", ".join(f"{kind} {count:,}" for kind, count in outcome.most_common()))
    findings = [finding for part in parts for finding in part["findings"]]
    print(f"findings: {len(findings)}")
    for finding in findings:
        print(f"  {finding}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
