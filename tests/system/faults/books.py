"""Files that outlive the process that writes them: one line an entry, written at once, by any number of processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Book", "at_rate", "read_book"]


class Book:
    """Appends entries to a file. A process that is killed loses none that `write` returned from."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, entry: Any) -> None:
        # One write of a short line to a file opened for appending is never torn apart by another's.
        os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def read_book(path: Path) -> Iterator[Any]:
    """Return the entries of a file, none if there is no file."""
    if path.exists():
        with path.open() as lines:
            yield from map(json.loads, lines)


class at_rate:
    """Iterate at `rate` turns a second, which may be changed, until `stop`; a delay is made up for, up to a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.running = True

    def stop(self) -> None:
        self.running = False

    def __iter__(self) -> Iterator[None]:
        due = time.monotonic()
        while self.running:
            yield
            due = max(due + 1 / self.rate, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))
