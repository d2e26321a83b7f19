"""What is wrong with a run file, found all at once, each with its line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from dse.cli.run.lines import Key, Lines
from dse.cli.text import clean
from dse.errors import ConfigError

__all__ = ["BAD", "FileError", "Problem", "Problems", "known_names", "shown_key"]

BAD: Any = type("Bad", (), {"__repr__": lambda _: "BAD"})()
"""Stands for a value that cannot be used; why has been said."""

_MOST_SHOWN = 50
_MOST_NAMES = 40
_LONGEST = 2000  # characters of one line
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. line: 0 where it concerns the file as a whole. key: in dotted form, '' if none does."""

    line: int
    key: str
    message: str


class FileError(ConfigError):
    """A run file cannot be used. problems: everything that is wrong with it, in order of lines."""

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        lines = [_shown(path, problem) for problem in self.problems[:_MOST_SHOWN]]
        if len(self.problems) > _MOST_SHOWN:
            lines.append(f"{path}: and {len(self.problems) - _MOST_SHOWN} more")
        self.lines = [clean(line, _LONGEST) for line in lines]
        super().__init__("\n".join(self.lines))


class Problems:
    """Collects what is wrong."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.found: list[Problem] = []

    def add(self, key: Key, message: str) -> None:
        """Say what is wrong with the value at a key, or missing in the table at a key."""
        self.found.append(Problem(self._lines[key], shown_key(key), message))

    def aside(self) -> Problems:
        """Return an empty collection for the same document."""
        return Problems(self._lines)

    def __len__(self) -> int:
        return len(self.found)


def shown_key(key: Key) -> str:
    """Return a key path as TOML writes it: ``services.inventory.tables[0]``."""
    shown = ""
    for part in key:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            part = part if _BARE.match(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
            shown += f".{part}" if shown else part
    return shown


def known_names(unknown: str, known: Collection[str]) -> str:
    """Return a hint: the known name that the unknown one may have meant, and all that are known."""
    if not known:
        return "there are none"
    names = sorted(known)
    close = difflib.get_close_matches(unknown[:100], names, n=1)
    listed = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return f"did you mean {close[0]!r}? Known are {listed}" if close else f"known are {listed}"


def _shown(path: str, problem: Problem) -> str:
    where = f"{path}:{problem.line}: " if problem.line else f"{path}: "
    return f"{where}{problem.key}: {problem.message}" if problem.key else f"{where}{problem.message}"
