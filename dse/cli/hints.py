"""Which name may have been meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["among", "did_you_mean"]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'sockets'?`` for a name that one of these is like, else nothing."""
    by_folded = {each.casefold(): each for each in sorted(names)}
    close = difflib.get_close_matches(name.casefold()[:200], by_folded, 1, 0.6)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else ""


def among(names: Iterable[str], most: int = 20) -> str:
    """Return names as a list in a line, cut where there are many; ``none`` where there is none."""
    every = sorted(set(names))
    if not every:
        return "none"
    return ", ".join(every[:most]) + (f", … and {len(every) - most} more" if len(every) > most else "")
