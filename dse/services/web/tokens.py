"""Tokens: who may ask for what. The file has their digests, so that reading it lets nobody in.

A line is ``NAME SCOPE[,SCOPE…] SHA256``, the token's digest in hexadecimal; ``#`` begins a comment. Scopes: `SCOPES`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from dse.errors import ConfigError

__all__ = ["SCOPES", "Token", "Tokens", "make_token"]

SCOPES = ("read", "call", "metrics")
"""read: status, rows and changes. call: the methods that the configuration allows. metrics: ``/metrics``."""

_PREFIX = "dse_"  # so that a token that turns up in a log or a repository is known for what it is


@dataclass(frozen=True, slots=True)
class Token:
    """Whose it is, and what for."""

    name: str
    scopes: frozenset[str]


class Tokens:
    """The tokens of a file, by digest."""

    def __init__(self, by_digest: dict[str, Token]) -> None:
        self._by_digest = by_digest

    def __len__(self) -> int:
        return len(self._by_digest)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read the file; raise `ConfigError` that names the line and what is wrong."""
        try:
            text = path.read_text("utf-8")
            mode = os.stat(path).st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise ConfigError(f"the tokens in {path} cannot be read: {reason}", key=("tokens",)) from None
        if mode & stat.S_IWOTH:
            raise ConfigError(f"{path} can be written by everybody: chmod o-w {path}", key=("tokens",))
        found: dict[str, Token] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            where = f"{path}, line {number}"
            if len(words) != 3:
                raise ConfigError(f"{where}: a line is NAME SCOPE[,SCOPE] SHA256", key=("tokens",))
            name, scopes, digest = words[0], frozenset(words[1].split(",")), words[2].lower()
            if not scopes <= set(SCOPES):
                unknown = ", ".join(sorted(scopes - set(SCOPES)))
                raise ConfigError(f"{where}: no scope {unknown}; there are: {', '.join(SCOPES)}", key=("tokens",))
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise ConfigError(f"{where}: a SHA256 has 64 hexadecimal digits", key=("tokens",))
            if digest in found:
                raise ConfigError(f"{where}: the token of {found[digest].name} again", key=("tokens",))
            found[digest] = Token(name, scopes)
        if not found:
            raise ConfigError(f"there is no token in {path}", key=("tokens",))
        return cls(found)

    def find(self, token: str) -> Token | None:
        """Return whose token that is. What is looked up is its digest: how long that takes tells nothing of a token."""
        return self._by_digest.get(_digest(token))


def make_token(name: str, scopes: str) -> tuple[str, str]:
    """Return a new token, and the line for the file; raise `ConfigError` for a name or scope that cannot be one."""
    if not name or name.split() != [name] or "#" in name or not name.isprintable():
        raise ConfigError(f"a token's name is a word without blanks and #, not {name[:60]!a}")
    wanted = scopes.split(",")
    if not set(wanted) <= set(SCOPES):
        raise ConfigError(f"scopes are {', '.join(SCOPES)}, with commas between them, not {scopes[:60]!a}")
    token = _PREFIX + secrets.token_urlsafe(32)
    return token, f"{name} {','.join(wanted)} {_digest(token)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
