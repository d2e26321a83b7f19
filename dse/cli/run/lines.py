"""Where the keys of a TOML document stand: tomllib reads it, but keeps no positions.

`find_lines` walks a document that tomllib has accepted, so it need not judge: it only has to see where each key, header
and element begins. What it cannot follow it leaves out; a place that is not known is that of the table around it.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping

__all__ = ["Key", "Lines", "find_lines"]

Key = tuple[str | int, ...]
"""The way to a value: names of keys and indices of elements."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[^\s.=\[\]{}\"'#,]+")
_SCALAR = re.compile(r"[^,\]}\r\n#]*")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class Lines:
    """The line (from 1) of each key path of a document."""

    def __init__(self, lines: Mapping[Key, int]) -> None:
        self.known = lines

    def __getitem__(self, key: Key) -> int:
        """Return the line of a key; of the nearest table around it when it does not stand in the document."""
        while key:
            if key in self.known:
                return self.known[key]
            key = key[:-1]
        return 1


def find_lines(text: str) -> Lines:
    """Return where the keys of a valid TOML document stand. Never raises."""
    scanner = _Scanner(text)
    try:
        scanner.scan()
    except (_Lost, IndexError, RecursionError, ValueError, OverflowError):
        pass  # what was found until there is true
    return Lines(scanner.lines)


class _Lost(Exception):
    """The document is not what the scanner knows."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[Key, int] = {}
        self._text = text
        self._at = 0
        self._ends = [found.start() for found in re.finditer("\n", text)]
        self._arrays: dict[Key, int] = {}  # the index of the last table of each array of tables

    def scan(self) -> None:
        table: Key = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _header(self) -> Key:
        line = self._line()
        array = self._text.startswith("[[", self._at)
        self._at += 2 if array else 1
        names = self._key()
        self._take("]]" if array else "]")
        path: Key = ()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            if array and number == len(names):
                self._arrays[path] = self._arrays.get(path, -1) + 1
                self.lines.setdefault(path, line)
                path = (*path, self._arrays[path])
                self.lines[path] = line
            elif path in self._arrays:
                path = (*path, self._arrays[path])
            elif number == len(names):
                self.lines[path] = line  # rather than the first header of a table in it
            else:
                self.lines.setdefault(path, line)
        return path

    def _pair(self, table: Key) -> None:
        line = self._line()
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self._take("=")
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            names.append(self._name())
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _name(self) -> str:
        if self._text[self._at] in "\"'":
            return self._string()
        found = _BARE_KEY.match(self._text, self._at)
        if found is None:
            raise _Lost
        self._at = found.end()
        return found[0]

    def _value(self, path: Key) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._list(path)
        elif first == "{":
            self._inline_table(path)
        else:
            before = self._at
            self._skip(_SCALAR)
            if self._at == before:
                raise _Lost  # no value: a list would go on for ever

    def _list(self, path: Key) -> None:
        self._at += 1
        index = 0
        self._skip(_BLANK)
        while self._text[self._at] != "]":
            self.lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _inline_table(self, path: Key) -> None:
        self._at += 1
        self._skip(_BLANK)
        while self._text[self._at] != "}":
            self._pair(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _string(self) -> str:
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            return self._long_string(quote * 3)
        end = self._at + 1
        while self._text[end] != quote:
            end += 2 if quote == '"' and self._text[end] == "\\" else 1
        inner = self._text[self._at + 1 : end]
        self._at = end + 1
        return _ESCAPE.sub(_unescape, inner) if quote == '"' else inner

    def _long_string(self, quotes: str) -> str:
        end = self._at + 3
        while not self._text.startswith(quotes, end):
            if end >= len(self._text):
                raise _Lost
            end += 2 if quotes[0] == '"' and self._text[end] == "\\" else 1
        inner = self._text[self._at + 3 : end]
        end += 3
        for _ in range(2):  # up to two quotes more belong to the text
            if self._text.startswith(quotes[0], end):
                end += 1
        self._at = end
        return inner

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _take(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise _Lost
        self._at += len(text)

    def _line(self) -> int:
        return bisect.bisect_left(self._ends, self._at) + 1


def _unescape(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)) if code else _ESCAPED.get(found[4], found[4])
