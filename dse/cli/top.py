"""`dse top`: what the nodes of a bus do, as it happens.

A thread asks all nodes at once what they count, every `--interval` seconds; the main thread draws, and hears the keys.
A node or a broker that hangs holds up the asking, never the drawing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dse.cli.terminal import Keys
from dse.cli.top_model import Board, Trouble
from dse.cli.top_view import NODES, Order, draw, lines
from dse.cli.troubles import Troubles
from dse.core.info import BusStatus
from dse.core.observer import Observer
from dse.errors import DseError, MissingExtra, TransportUnavailable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleDimensions

__all__ = ["run_top"]

ANSWER = 1.0  # seconds that nodes have to answer, at most
FIRST = 1.0  # seconds between the first two samples, at most: rates come soon


class _Sampler:
    """Asks, and tells when there is something new. Lock: ``changed`` protects all that is public, and ``_stopped``."""

    def __init__(self, observer: Observer, interval: float) -> None:
        self.changed = threading.Condition()
        self.board = Board()
        self.samples = 0
        self.at = 0.0
        self.error: DseError | None = None
        self.notify: Callable[[], None] = lambda: None  # called after each sample
        self._observer = observer
        self._interval = interval
        self._stopped = False
        self._troubles = Troubles(observer)
        self._thread = threading.Thread(target=self._run, name="dse-top", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self.changed:
            self._stopped = True
            self.changed.notify_all()
        self._thread.join(ANSWER * 2)

    def wait(self, samples: int, timeout: float) -> bool:
        """Wait until there are so many samples; raise what ended the sampling."""
        with self.changed:
            self.changed.wait_for(lambda: self.samples >= samples or self.error is not None, timeout)
            if self.error is not None:
                raise self.error
            return self.samples >= samples

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            try:
                self._sample()
            except DseError as error:
                with self.changed:
                    self.error = error
                    self.changed.notify_all()
                self.notify()
                return
            due = max(due + (self._interval if self.samples > 1 else min(FIRST, self._interval)), time.monotonic())
            with self.changed:
                if self.changed.wait_for(lambda: self._stopped, due - time.monotonic()):
                    return

    def _sample(self) -> None:
        at = time.monotonic()
        figures = {}
        try:
            figures = self._observer.figures(min(ANSWER, max(0.2, self._interval)))
        except TransportUnavailable:
            pass  # the status says so
        status = self._observer.status()
        troubles = self._what_is_wrong(status)
        with self.changed:
            self.board.update(at, status, figures, troubles)
            self.at = time.time()
            self.samples += 1
            self.changed.notify_all()
        self.notify()

    def _what_is_wrong(self, status: BusStatus) -> list[Trouble]:
        self._troubles.follow(info for node in status.peers.values() for info in node.services)
        return self._troubles.found()


def run_top(options: argparse.Namespace, observer: Observer) -> int:
    """Show what the nodes do until it is ended; return the exit code."""
    order = Order(next(place for place, column in enumerate(NODES) if column.head == options.sort))
    title = f"dse top  {options.bus} on {observer.url}"
    console = None if options.json or options.once else _console()
    ends = time.monotonic() + options.seconds if options.seconds else float("inf")
    sampler = _Sampler(observer, options.interval)
    sampler.start()
    try:
        if console is None:
            _write(sampler, options, title, order, ends)
        else:
            _live(sampler, console, title, order, ends)
    finally:
        sampler.close()
    return 0


def _write(sampler: _Sampler, options: argparse.Namespace, title: str, order: Order, ends: float) -> None:
    """Write each sample: JSON in a line, or lines; the first two make one, for rates need two."""
    seen = 1
    while time.monotonic() < ends:
        if not sampler.wait(seen + 1, min(3600.0, ends - time.monotonic())):
            continue
        with sampler.changed:
            seen = sampler.samples
            at = sampler.at
            told = sampler.board.to_dict() if options.json else lines(sampler.board, order)
        if isinstance(told, dict):
            print(json.dumps({"at": round(at, 3), "bus": options.bus, **told}), flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {told[0]}", *told[1:], "", sep="\n", flush=True)
        if options.once:
            return


def _live(sampler: _Sampler, console: Console, title: str, order: Order, ends: float) -> None:
    """Draw each sample, and at once what a key or a new size changes, until q, Ctrl-C or the end."""
    from rich.live import Live

    drawn: tuple[object, ...] = ()
    with (
        Keys() as keys,
        contextlib.closing(sampler),  # it wakes the keys, so it ends before them
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        sampler.notify = keys.wake
        while (now := time.monotonic()) < ends:
            sampler.wait(0, 0.0)
            size = console.size = _size(console)
            looks = (sampler.samples, order.place, order.reverse, size)
            if looks != drawn:
                with sampler.changed:
                    screen = draw(sampler.board, title, order, size.width, size.height)
                live.update(screen, refresh=True)
                drawn = looks
            pressed = keys.wait(min(3600.0, ends - now))
            if pressed in ("q", "Q", "\x1b", "\x04"):
                return
            order.key(pressed)


def _size(console: Console) -> ConsoleDimensions:
    """Return the terminal's size as it is now: $COLUMNS and $LINES, which rich prefers, do not follow it."""
    from rich.console import ConsoleDimensions

    try:
        return ConsoleDimensions(*os.get_terminal_size(console.file.fileno()))
    except (OSError, ValueError):
        return console.size


def _console() -> Console | None:
    """Return the terminal to draw on; None for what is none. Raises `MissingExtra` when rich is missing."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtra(
            "the live view lacks its package (rich cannot be imported); install it with: pip install 'dse[cli]', "
            "or pipe the output through cat for plain lines",
            extra="cli",
        ) from error
    console = Console(highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else console
