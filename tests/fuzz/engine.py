"""What an input may cost, and what is left of one that costs more: used by every fuzzer.

An input is a finding when it makes a target raise, or takes more than `LONGEST` of its thread's time twice. Time of the
thread, not of the clock: what else the machine does is no finding.
"""

from __future__ import annotations

import hashlib
import importlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

__all__ = ["CORPUS", "LONGEST", "NAMES", "Finding", "Slow", "Watched", "corpus_of", "load", "name_of"]

LONGEST = 0.1
"""Seconds that an input may take."""

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that broke something once, a folder a target."""

NAMES = sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[a-z]*.py"))
"""The targets."""


def load(name: str) -> ModuleType:
    """Return a target."""
    return importlib.import_module(f"fuzz.targets.{name}")


def corpus_of(name: str) -> list[bytes]:
    """Return the inputs that broke the target once."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def name_of(data: bytes) -> str:
    """Return the file name of an input."""
    return hashlib.sha256(data).hexdigest()[:16]


class Slow(AssertionError):
    """An input took too long."""


class Finding(Exception):
    """An input broke a promise; `data` is the input."""

    def __init__(self, data: bytes, why: str) -> None:
        super().__init__(why)
        self.data = data
        self.why = why


class Watched:
    """Runs a target, counts, and keeps the slowest input. longest: seconds that one may take."""

    def __init__(self, run: Callable[[bytes], None], longest: float = LONGEST) -> None:
        self._run = run
        self._longest = longest
        self.inputs = 0
        self.slowest = 0.0

    def __call__(self, data: bytes) -> None:
        """Run one input; raise `Finding`."""
        self.inputs += 1
        took = self._time(data)
        if took > self._longest:
            took = min(took, self._time(data))  # the garbage collector may have been at work
            if took > self._longest:
                raise Finding(data, f"took {took * 1000:.0f} ms")
        self.slowest = max(self.slowest, took)

    def _time(self, data: bytes) -> float:
        began = time.thread_time()
        try:
            self._run(data)
        except Exception as error:
            raise Finding(data, "".join(traceback.format_exception(error))) from None
        return time.thread_time() - began
