"""Whether this process makes OpenTelemetry traces, and how a trace crosses the bus.

Nothing here imports OpenTelemetry: without a tracer provider `active` is None, and that is all that a call or a change
looks at. `look` is called when a node starts. What is done with a provider is in `dse.core.spans`.

A trace crosses the bus as a *carrier*: the headers that the propagators of `opentelemetry.propagate` write, as
``traceparent`` and ``tracestate``. It is whatever a peer says: one that is longer than any that is honest is ignored.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from dse.core.spans import Spans

__all__ = ["active", "current", "evaluating", "fits", "look", "use", "within"]

_log = logging.getLogger("dse.trace")

MOST_HEADERS = 16
MOST_CHARACTERS = 10_000  # of names and values together: baggage may have 8,192 bytes, tracestate has 512
_FROM_ENVIRONMENT = "OTEL_PYTHON_TRACER_PROVIDER"  # by which the API loads a provider that nobody has set

active: Spans | None = None
"""Makes the spans; None where nobody wants any. Written by `look` and `use` alone."""

_given = False  # `use` said so: `look` changes nothing


def look() -> None:
    """Make traces from now on if the process has a tracer provider by now; else do not."""
    global active
    if _given or ("opentelemetry.trace" not in sys.modules and _FROM_ENVIRONMENT not in os.environ):
        return
    try:
        from dse.core.spans import spans_of_process
    except ImportError as error:
        _log.warning("no traces are made: %s; pip install 'dse[traces]'", error)
        return
    active = spans_of_process()


def use(provider: TracerProvider | None) -> None:
    """Make traces with this provider instead of the process's; None: go by that again. For tests, and for embedding."""
    global active, _given
    if provider is None:
        active, _given = None, False
        look()
        return
    from dse.core.spans import Spans

    active, _given = Spans(provider), True


def fits(carrier: Mapping[str, str]) -> bool:
    """Whether a carrier is one that an honest peer may send."""
    if len(carrier) > MOST_HEADERS:
        return False
    return sum(len(name) + len(value) for name, value in carrier.items()) <= MOST_CHARACTERS


def current() -> Context | None:
    """Return what runs now, for `within` on another thread; None outside of any trace."""
    return active.current() if active is not None else None


def within(context: Context | None) -> AbstractContextManager[Any]:
    """Make what is published and called meanwhile part of a trace; None: leave things as they are."""
    if active is None or context is None:
        return nullcontext()
    return active.within(context)


def evaluating(what: str, causes: Sequence[Context]) -> AbstractContextManager[Any]:
    """A span around what follows from several causes: it belongs to the trace of the first, and links to the others."""
    if active is None or not causes:
        return nullcontext()
    return active.evaluating(what, causes)
