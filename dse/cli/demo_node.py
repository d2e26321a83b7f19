"""One of the demo's nodes as a process: ``python -m dse.cli.demo_node ROLE``; started by `dse.cli.demo`.

The plan comes as one line of JSON on stdin (a URL with a password is seen by nobody there), events go out as lines of
JSON on stdout. The end of stdin is the order to leave: it comes when the parent closes the pipe, and as well when the
parent dies, however it dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from dse.cli.demo_nodes import ROLES, Event, LogEvents, Plan, make_node
from dse.cli.main import FAILED, MISUSED, describe
from dse.errors import DseError

__all__ = ["main"]

LEAVE_PATIENCE = 5.0
"""Seconds from the order to leave until the process ends, come what may."""


def main(role: str) -> int:
    """Run the node until stdin ends; return the exit code."""
    stop = threading.Event()
    outgoing = _Outgoing(stop)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    plan = Plan(**json.loads(_read_line()))
    node_id = plan.node_id(role)
    LogEvents(outgoing.emit, node_id).install()
    threading.Thread(target=_await_order, args=(stop,), name="order", daemon=True).start()
    try:
        with make_node(role, plan, outgoing.emit) as node:
            while not stop.wait(1.0):
                node.status()  # raises when the node had to stop
    except DseError as error:
        if stop.is_set():
            return 0
        outgoing.emit({"kind": "failed", "node": node_id, "text": describe(error)})
        return MISUSED
    return 0


# Stdin is read past Python's buffer, whose lock must not be held by a waiting thread when the interpreter ends.


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(MISUSED)
        line += byte
    return line


def _await_order(stop: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    stop.set()
    time.sleep(LEAVE_PATIENCE)
    os._exit(FAILED)


class _Outgoing:
    """Writes events as lines. A parent that no longer reads is the order to leave. Lock: ``_lock``, for whole lines."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        # A stray print must not come between the events: it goes to stderr, whose end the parent reports.
        self._pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def emit(self, event: Event) -> None:
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            try:
                self._pipe.write(line)
                self._pipe.flush()
            except OSError:
                self._stop.set()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.exit(f"usage: python -m dse.cli.demo_node {'|'.join(ROLES)}")
    sys.exit(main(sys.argv[1]))
