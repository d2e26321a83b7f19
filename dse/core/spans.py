"""The spans of calls and changes, through OpenTelemetry's API. Imported only where a tracer provider is set.

Names and attributes follow OpenTelemetry's conventions for RPC (calls) and for messaging (what asks for no answer, and
changes of tables); docs/traces.md lists them. No failure of a propagator or of a processor reaches the caller: the API
promises that of spans, and what it does not promise is caught here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Status, StatusCode, TracerProvider

from dse.core.tracing import fits

if TYPE_CHECKING:
    from dse.core.messages import Request

__all__ = ["Sent", "Spans", "spans_of_process"]

_log = logging.getLogger("dse.trace")

_W3C = ("traceparent", "tracestate")
_MOST_LINKS = 32
_MOST_TEXT = 1_000  # characters of an error's text

Attributes = dict[str, str]


def spans_of_process() -> Spans | None:
    """Return what makes spans with the provider that the process has set; None when it has none but the API's own."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Spans(provider)


class Sent:
    """The span of something that this node sends, and the carrier that goes with it."""

    __slots__ = ("_span", "carrier")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.carrier = _carrier(span)

    def end(self, *, node_id: str | None = None, error: BaseException | None = None, message_id: str = "") -> None:
        """It was sent, or answered by a node, or failed."""
        if node_id is not None:
            self._span.set_attribute("server.address", node_id)
        if message_id:
            self._span.set_attribute("messaging.message.id", message_id)
        if error is not None:
            _failed(self._span, error)
        self._span.end()


class Spans:
    """Makes spans with one tracer provider; from any thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("dse", _version())

    # What is sent

    def calling(self, service: str | None, method: str) -> Sent:
        """A call begins: it lasts until its answer."""
        span = self._tracer.start_span(_path(service, method), kind=SpanKind.CLIENT, attributes=_rpc(service, method))
        return Sent(span)

    def casting(self, service: str | None, method: str) -> Sent:
        """A request that asks for no answer is sent."""
        attributes = {**_rpc(service, method), **_messaging("send", _path(service, method))}
        name = f"send {_path(service, method)}"
        return Sent(self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes))

    def sending(self, service: str, table: str) -> Sent | None:
        """A change of a table is about to be made; None outside of a trace.

        The span of one that turns out to change nothing is not ended, and so never exported.
        """
        if not trace.get_current_span().get_span_context().is_valid:
            return None
        name = f"{service}.{table}"
        return Sent(
            self._tracer.start_span(f"send {name}", kind=SpanKind.PRODUCER, attributes=_messaging("send", name))
        )

    # What is received

    @contextmanager
    def serving(self, request: Request) -> Iterator[None]:
        """A method runs for a request, with what it calls and publishes; what it raises is recorded."""
        path, attributes = _path(request.service, request.method), _rpc(request.service, request.method)
        name, kind = path, SpanKind.SERVER
        if not request.id:
            name, kind = f"process {path}", SpanKind.CONSUMER
            attributes |= _messaging("process", path)
        attributes["network.peer.address"] = request.node_id
        with self._running(name, kind, attributes, _parent(request.trace)):
            yield

    @contextmanager
    def processing(self, service: str, table: str, carrier: Mapping[str, str]) -> Iterator[None]:
        """A callback runs for a change that came with a carrier."""
        name = f"{service}.{table}"
        with self._running(f"process {name}", SpanKind.CONSUMER, _messaging("process", name), _parent(carrier)):
            yield

    def failed(self, error: BaseException) -> None:
        """What runs now raised an error that goes no further."""
        _failed(trace.get_current_span(), error)

    # Between threads

    def current(self) -> Context | None:
        """Return what runs now, without the span itself, which may be large; None outside of a trace."""
        span = trace.get_current_span().get_span_context()
        return trace.set_span_in_context(NonRecordingSpan(span)) if span.is_valid else None

    @contextmanager
    def within(self, context: Context) -> Iterator[None]:
        """Run what follows in a context that `current` returned."""
        token = contexts.attach(context)
        try:
            yield
        finally:
            contexts.detach(token)

    @contextmanager
    def evaluating(self, what: str, causes: Sequence[Context]) -> Iterator[None]:
        """See `dse.core.tracing.evaluating`."""
        links = [Link(trace.get_current_span(cause).get_span_context()) for cause in causes[1 : 1 + _MOST_LINKS]]
        with self._running(f"evaluate {what}", SpanKind.INTERNAL, {}, causes[0], links):
            yield

    @contextmanager
    def _running(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: Context, links: Sequence[Link] = ()
    ) -> Iterator[None]:
        span = self._tracer.start_span(name, parent, kind, attributes, links)
        token = contexts.attach(trace.set_span_in_context(span, parent))
        try:
            yield
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            contexts.detach(token)
            span.end()


def _version() -> str | None:
    try:
        return metadata.version("dse")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return None


def _path(service: str | None, method: str) -> str:
    return method if service is None else f"{service}/{method}"


def _rpc(service: str | None, method: str) -> Attributes:
    attributes = {"rpc.system": "dse", "rpc.method": method}
    if service is not None:
        attributes["rpc.service"] = service
    return attributes


def _messaging(operation: str, destination: str) -> Attributes:
    return {
        "messaging.system": "dse",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
    }


def _carrier(span: Span) -> dict[str, str] | None:
    carrier: dict[str, str] = {}
    try:
        propagate.inject(carrier, trace.set_span_in_context(span))
    except Exception:
        _log.exception("the propagator of traces failed")
        return None
    if not fits(carrier):  # the application's baggage is more than anybody takes
        carrier = {name: carrier[name] for name in _W3C if name in carrier}
    return carrier or None


def _parent(carrier: Mapping[str, str] | None) -> Context:
    """What a peer says its trace is. Never what runs on this thread: it may be receiving in the midst of a call."""
    if not carrier or not fits(carrier):
        return Context()
    try:
        return propagate.extract(carrier, Context())
    except Exception:
        _log.debug("a trace could not be read", exc_info=True)
        return Context()


def _failed(span: Span, error: BaseException) -> None:
    if span.is_recording():
        span.record_exception(error)
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {error}"[:_MOST_TEXT]))
