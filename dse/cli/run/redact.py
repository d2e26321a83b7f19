"""Keeps secrets out of text: what came from the environment, and the password of the transport's URL."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

__all__ = ["SECRET_NAME", "Redactor"]

SECRET_NAME = re.compile(r"pass|secret|token|key(?!s?_?file$)|credential", re.IGNORECASE)
"""Finds the names of options whose values are nobody's business; the path of a file with a key is none of these."""

MASK = "***"
SHORTEST = 4
"""Characters: what is shorter is no secret, and would blot out half of every text."""

_WORD = 8  # characters below which a secret is looked for as a whole word only


class Redactor:
    """Replaces secrets in text.

    Lock: ``_lock`` protects ``_secrets``; ``_pattern`` is replaced as a whole.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def add(self, secrets: Iterable[str]) -> None:
        """Replace these, too, from now on; also where they are written quoted, %-encoded or line by line."""
        with self._lock:
            for secret in secrets:
                for text in (secret, *(line.strip() for line in secret.splitlines())):
                    if len(text) >= SHORTEST:
                        self._secrets.update(_spellings(text))
            ordered = sorted(self._secrets, key=lambda text: (-len(text), text))
            self._pattern = re.compile("|".join(map(_pattern, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """Return the text with every secret replaced."""
        return self._pattern.sub(MASK, text) if self._pattern is not None else text


def _spellings(text: str) -> set[str]:
    encoded = text.encode("utf-8", "surrogatepass")
    return {
        text,
        repr(text)[1:-1],
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        text.encode("unicode_escape").decode("ascii"),
        quote(encoded, safe=""),
        quote(encoded),
        quote_plus(encoded),
    }


def _pattern(text: str) -> str:
    return re.escape(text) if len(text) >= _WORD else rf"(?<!\w){re.escape(text)}(?!\w)"
