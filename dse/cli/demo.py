"""``dse demo``: four nodes on one bus, and a view of them.

On ``fake://`` the nodes share this process. On any other bus each has a process of its own, and this one is on no bus:
it starts them, shows what they tell through pipes, and ends them. They end with it, whatever ends it: a node's process
leaves when its stdin does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Protocol, TextIO

from dse.cli.demo_model import Entry, Model
from dse.cli.demo_node import LEAVE_PATIENCE
from dse.cli.demo_nodes import ROLES, Emit, Event, LogEvents, Plan, make_node
from dse.cli.demo_view import Unread, View, choose_view, show_entry, write_lines
from dse.cli.main import FAILED, MISUSED, say_error
from dse.cli.text import clean
from dse.core.node import Node
from dse.core.plugins import open_transport
from dse.core.transport import Address, ConnectionState
from dse.core.url import TransportUrl

__all__ = ["run_demo"]

_STOP: Event = {"kind": "stop"}
_STDERR_KEPT = 2000
_LAST_LINES = 0.3  # seconds that a child's last events get to arrive once it has ended


def run_demo(transport: str, *, seconds: float | None = None, bus: str | None = None) -> int:
    """Run the demo until its time is over or it is interrupted; return the exit code.

    seconds: None is until interrupted. bus: a new name if None. Raises `DseError` for what keeps it from starting.
    """
    url = TransportUrl.parse(transport)
    token = secrets.token_hex(2)
    plan = Plan(transport, bus or f"demo-{token}", token)
    events: SimpleQueue[Event] = SimpleQueue()
    with _Signals(events) as signals:
        nodes: Nodes = (InProcess if _in_process(url) else Processes)(plan, events.put)
        out = _stdout()
        try:
            title = clean(f"DSE demo: four nodes {nodes.where}, bus {plan.bus}, {url}")
            # Before a screen is taken, what cannot work says so in one line.
            Node(url, bus=plan.bus)
            if not _in_process(url):
                open_transport(url, bus=plan.bus, events=_Nobody()).close()
            view = choose_view(out, title)
            return _run(nodes, view, events, signals, out, seconds)
        except Unread:
            _forget_stdout()  # nobody reads it any more: no reason to complain
            return 0


def _run(
    nodes: Nodes, view: View, events: SimpleQueue[Event], signals: _Signals, out: TextIO, seconds: float | None
) -> int:
    model = Model()
    began = time.monotonic()
    try:
        signals.queued = True
        with view:
            nodes.start()
            _show(model, view, events, began, seconds)
    finally:
        signals.queued = True
        nodes.stop()
    if model.failed:
        say_error(f"dse demo: {model.failed}")
        return MISUSED
    write_lines(out, [show_entry(Entry(time.monotonic() - began, "end", model.summary()))])
    return FAILED if model.lost else 0


def _show(model: Model, view: View, events: SimpleQueue[Event], began: float, seconds: float | None) -> None:
    deadline = began + seconds if seconds is not None else None
    while not model.failed:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return
        waits = [w for w in (view.period, deadline - now if deadline is not None else None) if w is not None]
        news: list[Entry] = []
        try:
            event = events.get(timeout=min(waits) if waits else None)
            if event is _STOP:
                return
            news = model.apply(event, time.monotonic() - began)
        except Empty:
            pass
        view.show(model, news, time.monotonic() - began)
        if model.lost >= len(ROLES):
            return


class Nodes(Protocol):
    """The four nodes of a demo. where: in words."""

    where: str

    def start(self) -> None: ...
    def stop(self) -> None: ...


class InProcess:
    """All nodes in this process."""

    where = "in one process"

    def __init__(self, plan: Plan, emit: Emit) -> None:
        self._nodes = [make_node(role, plan, emit) for role in ROLES]
        self._log = LogEvents(emit, "log")

    def start(self) -> None:
        """Start the nodes, one after the other."""
        self._log.install()
        for node in self._nodes:
            node.start()

    def stop(self) -> None:
        """Stop those that were started, the last one first."""
        for node in reversed(self._nodes):
            node.stop()
        self._log.uninstall()


class Processes:
    """Each node in a process of its own."""

    where = "in four processes"

    def __init__(self, plan: Plan, emit: Emit) -> None:
        self._plan = plan
        self._emit = emit
        self._children: list[Child] = []

    def start(self) -> None:
        """Start the processes; what becomes of them is told as events."""
        for role in ROLES:
            self._children.append(Child(role, self._plan, self._emit))

    def stop(self) -> None:
        """Order all to leave, and wait until they have ended; end for certain the one that does not."""
        for child in self._children:
            child.order_to_leave()
        deadline = time.monotonic() + LEAVE_PATIENCE + 1.0
        for child in self._children:
            child.end(deadline)


class Child:
    """One node's process. Its events are passed on; its end, unless ordered, is told as an event."""

    def __init__(self, role: str, plan: Plan, emit: Emit) -> None:
        self._node_id = plan.node_id(role)
        self._emit = emit
        self._ordered = False
        self._failed = False
        self._errors = ""
        # -P: a file named like a module in the working directory is none of ours. A process group of its own: Ctrl-C in
        # the terminal is for the parent, which then has the nodes leave in order.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dse.cli.demo_node", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        # By the pipe, not the command line: a URL may hold a password.
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(vars(plan)).encode() + b"\n")
            self._process.stdin.flush()
        self._threads = [
            threading.Thread(target=target, name=f"{role}-{target.__name__.strip('_')}", daemon=True)
            for target in (self._read_events, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def order_to_leave(self) -> None:
        """Close the process's stdin."""
        self._ordered = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until the deadline, then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(_LAST_LINES)

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut short by its death
                self._failed = self._failed or event.get("kind") == "failed"
                self._emit(event)
        code = self._process.wait()
        self._threads[1].join(_LAST_LINES)
        if not self._ordered and not self._failed:
            self._emit({"kind": "exit", "node": self._node_id, "code": code, "text": self._obituary(code)})

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for line in pipe:
                self._errors = (self._errors + line.decode(errors="replace"))[-_STDERR_KEPT:]

    def _obituary(self, code: int) -> str:
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"its process was killed by {signal.Signals(-code).name}"
        last = (self._errors.strip().splitlines() or [""])[-1]
        return f"its process ended with code {code}" + (f": {last}" if last else "")


class _Signals:
    """Turns the signals that mean *leave* into an event, or before the view is there into `KeyboardInterrupt`.

    The second one ends the process at once; its children end with it.
    """

    def __init__(self, events: SimpleQueue[Event]) -> None:
        self._events = events
        self._before: dict[signal.Signals, object] = {}
        self._told = False
        self.queued = False

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if not self.queued:
            raise KeyboardInterrupt
        if self._told and number == signal.SIGINT:
            os._exit(128 + number)
        self._told = True
        self._events.put(_STOP)


class _Nobody:
    """Hears nothing: for a transport that is only opened to see that it can be."""

    def received(self, address: Address, frame: bytes) -> None: ...
    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: ConnectionState) -> None: ...


def _in_process(url: TransportUrl) -> bool:
    return "fake" in (url.driver, url.variant)


def _stdout() -> TextIO:
    out = sys.stdout
    if out is None:  # closed by whoever started us
        return open(os.devnull, "w")
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # a terminal that is not Unicode shows what it can
    return out


def _forget_stdout() -> None:
    """Keep Python's last flush from failing on a pipe that nobody reads."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
