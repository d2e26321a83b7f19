"""Text from elsewhere, made safe to show in a terminal."""

from __future__ import annotations

__all__ = ["clean"]


def clean(text: object, longest: int = 1000) -> str:
    """Return text in one line: what cannot be printed (escapes, line ends, bidi marks) is shown as code.

    longest: characters, beyond which the text ends in an ellipsis.
    """
    shown = str(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
