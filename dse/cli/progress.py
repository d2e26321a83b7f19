"""A progress bar on stderr, for what takes long: only where stderr is a terminal and rich is installed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dse.cli.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "progress"]


class Bar:
    """Shows how far something is, from the first time it is told on, until it is closed. From any thread.

    Lock: ``_lock`` protects ``_shown`` and ``_closed``. The bar that does nothing is one without `progress`.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._shown = False
        self._closed = progress is None
        self._task = progress.add_task("", total=None) if progress is not None else None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it."""
        with self._lock:
            if self._closed or self._progress is None or self._task is None:
                return
            self._progress.update(self._task, description=clean(what, 60), completed=done, total=total)
            if not self._shown:
                self._shown = True
                self._progress.start()
            self._progress.refresh()

    def close(self) -> None:
        """Show nothing any more; nothing of it remains. Something else may be printed then."""
        if self._closed:
            return
        with self._lock:
            self._closed = True
            if self._shown and self._progress is not None:
                self._progress.stop()


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """Return a bar, which does nothing where it cannot be shown, and close it in the end."""
    bar = _bar()
    try:
        yield bar
    finally:
        bar.close()


def _bar() -> Bar:
    try:
        if not sys.stderr.isatty():
            return Bar()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except (ImportError, ValueError):
        return Bar()
    return Bar(
        Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True, highlight=False, markup=False, emoji=False),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
    )
