"""What every process under measurement shares: it is told over stdin what to do, and measures itself.

Run by the Python of the contestant's own environment, so nothing but the standard library is imported here. A request
is a line of JSON, ``[operation, arguments]``; so is the answer, ``[true, result]`` or ``[false, error]``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

ARGS = {"pid": 42, "name": "x" * 180, "flag": True}
"""What every call carries: about 200 bytes."""

TEN = 10  # rows of a message that is fanned out


def rows_of(message: int) -> list[tuple[Any, ...]]:
    """Return the ten rows of a message."""
    return [(message * TEN + row, f"name-{row}", message, True) for row in range(TEN)]


def one_at_a_time(call: Callable[[], object], calls: int) -> list[float]:
    """Return how long each of so many calls took, in seconds."""
    clock = time.perf_counter
    took = []
    for _ in range(calls):
        began = clock()
        call()
        took.append(clock() - began)
    return took


def by_threads(calls_of: Callable[[int], Callable[[], object]], calls: int, threads: int) -> float:
    """Return the seconds that so many calls take from several threads; `calls_of` gives each thread its call."""
    each = calls // threads
    ready = threading.Barrier(threads + 1)
    failures: list[BaseException] = []

    def work(call: Callable[[], object]) -> None:
        ready.wait()
        try:
            for _ in range(each):
                call()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(calls_of(number),)) for number in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return (time.perf_counter() - began) * calls / (each * threads)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def obey(**operations: Callable[..., Any]) -> None:
    """Do what stdin asks for until it ends, then end the process at once."""
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps([True, "ready"]), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [True, operations[name](**arguments)]
        except Exception as error:
            traceback.print_exc()
            answer = [False, f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)
