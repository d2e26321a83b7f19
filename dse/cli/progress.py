"""A progress bar on stderr, for what takes long: only where stderr is a terminal and rich is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

from dse.cli.text import clean

__all__ = ["Bar", "progress"]


class Bar(Protocol):
    """Shows how far something is."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """Show how far something is, from the first call of the bar on, until this is left; then nothing of it remains."""
    try:
        if not sys.stderr.isatty():
            raise OSError
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except (ImportError, OSError, ValueError):
        yield lambda what, done, total: None
        return
    shown = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True, highlight=False, markup=False, emoji=False),
        transient=True,
        auto_refresh=False,
    )
    task = shown.add_task("", total=None)
    started = False

    def bar(what: str, done: int, total: int) -> None:
        nonlocal started
        if not started:
            started = True
            shown.start()
        shown.update(task, description=clean(what, 60), completed=done, total=total, refresh=True)

    try:
        yield bar
    finally:
        if started:
            shown.stop()
