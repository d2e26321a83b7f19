"""The rules that a simulated bus is held to, checked as it goes along."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from typing import Any

from dse.core.messages import Row
from dse.core.table import Change

__all__ = ["ROWS", "Follower", "Ledger", "LogWatch", "RuleBroken"]

_MASK = (1 << 64) - 1

# Numbers only: their hashes, and so the order of sets of rows, are the same in every process. Some are equal though of
# another type: (3, 1) and (3.0, True) are one row.
ROWS: list[Row] = [*((n, n * 7 % 5) for n in range(600)), *((n / 4, True) for n in range(40))]
_random = random.Random(1)
_MARKS = {row: _random.getrandbits(64) for row in ROWS}


class RuleBroken(AssertionError):
    """A history broke a rule."""


class Ledger:
    """Every state that any published table was ever in, as sums of random numbers that stand for its rows."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], int] = {("", 0): 0}

    def sum(self, rows: Iterable[Row]) -> int:
        """Return the sum that stands for these rows."""
        return sum(_MARKS[row] for row in rows) & _MASK

    def begin(self, epoch: str, rows: Iterable[Row]) -> None:
        """A life of a table begins."""
        self._states[epoch, 0] = self.sum(rows)

    def changed(self, change: Change, added: Iterable[Row], removed: Iterable[Row]) -> None:
        """A table was changed by exactly these rows, and was then at the change's version."""
        epoch, seq = change.version
        before = self._states[epoch, seq - 1]
        self._states[epoch, seq] = (before + self.sum(added) - self.sum(removed)) & _MASK

    def check(self, who: str, version: tuple[str, int], total: int) -> None:
        """Raise `RuleBroken` unless some table was at that version with rows of that sum."""
        state = self._states.get(version)
        if state is None:
            raise RuleBroken(f"{who}: no publisher ever was at {version}")
        if state != total:
            raise RuleBroken(f"{who}: the publisher had other rows at {version}")


class Follower:
    """A subscriber's callback: adds up what it is told."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.name = name
        self.rows: set[Row] = set()
        self.closed = False
        self.told = 0
        self._ledger = ledger
        self._sum = 0

    def __call__(self, change: Change) -> None:
        if self.closed:
            raise RuleBroken(f"{self.name}: told of a change after it was unsubscribed")
        twice, missing = change.added & self.rows, change.removed - self.rows
        if twice:
            raise RuleBroken(f"{self.name}: told twice that rows came: {sorted(twice)[:5]} at {change.version}")
        if missing:
            raise RuleBroken(f"{self.name}: told that rows went which were not there: {sorted(missing)[:5]}")
        self.told += 1
        self.rows -= change.removed
        self.rows |= change.added
        ledger = self._ledger
        self._sum = (self._sum + ledger.sum(change.added) - ledger.sum(change.removed)) & _MASK
        ledger.check(self.name, change.version, self._sum)


class LogWatch(logging.Handler):
    """Turns what the product logs as an error into a broken rule: it catches what its own jobs and callbacks raise."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: BaseException | None = None
        self._saved: tuple[int, bool] = (0, True)

    def emit(self, record: logging.LogRecord) -> None:
        if self.first is None:
            error: Any = record.exc_info[1] if record.exc_info else None
            self.first = error if error is not None else RuleBroken(f"logged: {record.getMessage()}")

    def __enter__(self) -> LogWatch:
        logger = logging.getLogger("dse")
        self._saved = (logger.level, logger.propagate)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("dse")
        logger.removeHandler(self)
        logger.setLevel(self._saved[0])
        logger.propagate = self._saved[1]
