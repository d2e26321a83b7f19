"""Traces of calls and changes over the bus, with OpenTelemetry's own SDK; the nodes are in one process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as contexts
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from dse import Change, DataService, Node, RemoteError, Table, call_context, on_change, rpc
from dse.core import tracing
from dse.core.messages import Request
from dse.core.methods import encode_args
from dse.core.replica import ReplicaState
from dse.services.bridge import Bridge
from dse.services.policy import ActionOptions, Policy, RuleOptions
from dse.testing.faults import FakeServer

PATIENCE = 20.0


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def find(self, name: str, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if (span.name, span.kind) == (name, kind)]

    def one(self, name: str, kind: SpanKind) -> ReadableSpan:
        """Wait for the only span of that name."""
        wait(lambda: self.find(name, kind), lambda: [s.name for s in self.exporter.get_finished_spans()])
        (span,) = self.find(name, kind)
        return span


def wait(until: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE
    event = threading.Event()
    while not until():
        assert time.monotonic() < deadline, what()
        event.wait(0.005)


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.context is not None
    assert parent.context is not None
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    tracing.use(spans.provider)
    try:
        yield spans
    finally:
        tracing.use(None)
        spans.provider.shutdown()


REDIS = pytest.param("redis", marks=[pytest.mark.redis, pytest.mark.xdist_group("redis-traces")])


@pytest.fixture(params=["fake", REDIS])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "fake":
        return f"fake://{uuid.uuid4().hex}"
    broker = request.getfixturevalue("redis_server")
    return str(broker.url)


@pytest.fixture
def start(url: str) -> Iterator[Callable[..., Node]]:
    bus = uuid.uuid4().hex[:8]
    with ExitStack() as stack:
        yield lambda *services, **more: stack.enter_context(Node(url, bus=bus, services=services, **more))


class Back(DataService):
    numbers = Table("number")

    def __init__(self) -> None:
        super().__init__("back")
        self.noted: list[tuple[int, Any]] = []

    @rpc
    def double(self, number: int) -> int:
        context = call_context()
        self.noted.append((number, dict(context.trace) if context else None))
        self.numbers.insert([(number,)])
        return 2 * number

    @rpc
    async def adouble(self, number: int) -> int:
        return 2 * int(await self.node.acall("back", "double", {"number": number}))

    @rpc
    def fail(self) -> None:
        raise KeyError("nothing of that name")


class Front(DataService):
    """Calls on, and follows what comes of it."""

    def __init__(self) -> None:
        super().__init__("front")
        self.seen: list[tuple[Change, int]] = []
        self.told = threading.Event()

    @rpc
    def relay(self, number: int) -> int:
        return int(self.call("back", "double", {"number": number}))

    @rpc
    def told_of(self) -> None:
        self.told.set()

    @on_change("back", "numbers")
    def numbers_changed(self, change: Change) -> None:
        self.seen.append((change, trace.get_current_span().get_span_context().trace_id))
        self.cast("front", "told_of")

    def live(self) -> bool:
        assert self._host is not None
        return all(replica.state is ReplicaState.LIVE for replica in self._host._replicas)


def test_a_call_that_calls_on_and_publishes_is_one_trace(start: Callable[..., Node], spans: Spans) -> None:
    front = Front()
    start(Back())
    start(front)
    caller = start()
    caller.wait_for("front")
    wait(front.live)

    with spans.tracer.start_as_current_span("user"):
        assert caller.call("front", "relay", {"number": 7}) == 14

    user = spans.one("user", SpanKind.INTERNAL)
    calls = {}
    for path, parent in (("front/relay", user), ("back/double", None)):
        client = spans.one(path, SpanKind.CLIENT)
        server = spans.one(path, SpanKind.SERVER)
        assert is_child(client, parent or calls["front/relay"])
        assert is_child(server, client)
        calls[path] = server
    client = spans.one("front/relay", SpanKind.CLIENT)
    assert dict(client.attributes or {}) == {
        "rpc.system": "dse",
        "rpc.service": "front",
        "rpc.method": "relay",
        "server.address": next(n.node_id for n in caller.control_bus.replicas["front"]),
    }
    sent = spans.one("send back.numbers", SpanKind.PRODUCER)
    received = spans.one("process back.numbers", SpanKind.CONSUMER)
    cast = spans.one("send front/told_of", SpanKind.PRODUCER)
    ran = spans.one("process front/told_of", SpanKind.CONSUMER)
    assert is_child(sent, calls["back/double"])
    assert is_child(received, sent)
    assert is_child(cast, received)
    assert is_child(ran, cast)
    assert front.told.wait(PATIENCE)
    attributes = dict(received.attributes or {})
    assert attributes["messaging.destination.name"] == "back.numbers"
    assert attributes["messaging.operation.type"] == "process"


def test_methods_of_the_event_loop_and_of_the_own_node_belong_to_the_trace(spans: Spans) -> None:
    with Node(f"fake://{uuid.uuid4().hex}", services=[Back()]) as node:
        assert node.call_async("back", "adouble", {"number": 1}).result(PATIENCE) == 4
        outer, inner = (spans.one(f"back/{name}", SpanKind.CLIENT) for name in ("adouble", "double"))
        assert is_child(inner, spans.one("back/adouble", SpanKind.SERVER))
        assert outer.parent is None
        assert (outer.attributes or {})["server.address"] == node.node_id


def test_an_error_is_recorded_on_both_sides(spans: Spans) -> None:
    with Node(f"fake://{uuid.uuid4().hex}", services=[Back()]) as node:
        with pytest.raises(RemoteError):
            node.call("back", "fail")
        server, client = spans.one("back/fail", SpanKind.SERVER), spans.one("back/fail", SpanKind.CLIENT)
        for span, error in ((server, "KeyError"), (client, "dse.errors.RemoteError")):
            assert span.status.status_code is StatusCode.ERROR
            assert (span.attributes or {})["error.type"] == error
            assert [event.name for event in span.events] == ["exception"]
        with pytest.raises(Exception, match="no method"):
            node.call("back", "nothing")
        assert spans.one("back/nothing", SpanKind.CLIENT).status.status_code is StatusCode.ERROR
        assert not spans.find("back/nothing", SpanKind.SERVER)


def test_each_replica_that_is_called_is_a_child(start: Callable[..., Node], spans: Spans) -> None:
    start(Back(), node_id="one")
    start(Back(), node_id="two")
    caller = start()
    wait(lambda: len(caller.control_bus.replicas.get("back", ())) == 2)
    with spans.tracer.start_as_current_span("user"):
        caller.call_all("back", "double", {"number": 1})
        caller.broadcast("back", "double", {"number": 2})
    user = spans.one("user", SpanKind.INTERNAL)
    wait(lambda: len(spans.find("back/double", SpanKind.CLIENT)) == 2)
    clients = spans.find("back/double", SpanKind.CLIENT)
    assert {(client.attributes or {})["server.address"] for client in clients} == {"one", "two"}
    assert all(is_child(client, user) for client in clients)
    wait(lambda: len(spans.find("process back/double", SpanKind.CONSUMER)) == 2)
    sent = spans.one("send back/double", SpanKind.PRODUCER)
    assert all(is_child(each, sent) for each in spans.find("process back/double", SpanKind.CONSUMER))


def test_baggage_crosses_the_bus(spans: Spans) -> None:
    found = []

    class Bag(DataService):
        @rpc
        def look(self) -> None:
            found.append(baggage.get_baggage("tenant"))

    with Node(f"fake://{uuid.uuid4().hex}", services=[Bag("bag")]) as node:
        for value in ("acme", "x" * 9000):  # more than the propagator itself lets through
            token = contexts.attach(baggage.set_baggage("tenant", value))
            try:
                node.call("bag", "look")
            finally:
                contexts.detach(token)
    assert found == ["acme", None]


def test_what_tools_ask_of_a_node_makes_no_span(spans: Spans) -> None:
    with Node(f"fake://{uuid.uuid4().hex}") as node:
        assert node.figures() == {}
        node.runtime.client.call(None, "_dse_figures", encode_args("", None), 5.0, node.node_id)
    assert not spans.exporter.get_finished_spans()


# What a peer says


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "\x00\ud7ff" * 20},
        {"traceparent": "00-" + "f" * 200_000},
        {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "baggage": "a=" + "b" * 200_000},
        {f"h{n}": "x" for n in range(60)} | {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
    ],
)
def test_a_trace_that_is_wrong_or_huge_is_ignored(said: dict[str, str], spans: Spans) -> None:
    back = Back()
    with Node(f"fake://{uuid.uuid4().hex}", services=[back]) as node:
        request = Request(0, "x/1", "x", "back", "double", encode_args("", {"number": 3}), 5.0, trace=said)
        node.runtime.wire.send(node.runtime.wire.own_address, request)
        span = spans.one("process back/double", SpanKind.CONSUMER)
    assert span.parent is None
    assert [number for number, _ in back.noted] == [3]


def test_a_huge_trace_is_not_passed_on_either() -> None:
    """Also where no traces are made: what one peer says is not carried to others."""
    front, back = Front(), Back()
    with Node(f"fake://{uuid.uuid4().hex}", services=[front, back]) as node:
        for number, said in enumerate(({"traceparent": "t"}, {"traceparent": "t" * 20_000})):
            request = Request(0, "x/1", "x", "front", "relay", encode_args("", {"number": number}), 5.0, trace=said)
            node.runtime.wire.send(node.runtime.wire.own_address, request)
        wait(lambda: len(back.noted) == 2)
    assert sorted(back.noted) == [(0, {"traceparent": "t"}), (1, {})]


# Changes


def test_a_change_outside_of_a_trace_is_the_same_bytes_and_makes_no_span(spans: Spans) -> None:
    front, back = Front(), Back()
    with Node(f"fake://{uuid.uuid4().hex}", services=[front, back]):
        wait(front.live)
        back.numbers.insert([(1,)])
        wait(lambda: front.seen)
    assert not [span for span in spans.exporter.get_finished_spans() if "back.numbers" in span.name]
    (body,) = back.numbers._log._log
    assert len(msgspec.msgpack.decode(body)) == 7  # the message's number, epoch, seq, added, removed and their digests


def test_a_change_that_changes_nothing_is_not_told(spans: Spans) -> None:
    back = Back()
    back.numbers.insert([(1,)])
    with spans.tracer.start_as_current_span("user"):
        assert not back.numbers.insert([(1,)])
        assert back.numbers.insert([(2,)])
    assert len(spans.find("send back.numbers", SpanKind.PRODUCER)) == 1


def test_what_a_snapshot_brings_has_no_trace(spans: Spans) -> None:
    front, back = Front(), Back()
    with spans.tracer.start_as_current_span("user"):
        back.numbers.insert([(1,)])
    with Node(f"fake://{uuid.uuid4().hex}", services=[back, front]):
        wait(lambda: front.seen)
    assert front.seen[0][1] == 0
    assert not spans.find("process back.numbers", SpanKind.CONSUMER)


def test_each_of_many_changes_in_one_frame_keeps_its_own_trace(start: Callable[..., Node], spans: Spans) -> None:
    front, back = Front(), Back()
    start(back)
    start(front)
    wait(front.live)
    for number in range(300):
        with spans.tracer.start_as_current_span("user"):
            back.numbers.insert([(number,)])
    wait(lambda: len(front.seen) == 300)
    sent = {
        int((span.attributes or {})["messaging.message.id"].rpartition("/")[2]): span.context.trace_id
        for span in spans.find("send back.numbers", SpanKind.PRODUCER)
    }
    assert len(set(sent.values())) == 300
    assert {change.version[1]: trace_id for change, trace_id in front.seen} == sent


def test_an_error_of_a_callback_is_recorded(spans: Spans) -> None:
    class Clumsy(DataService):
        @on_change("back", "numbers")
        def numbers_changed(self, change: Change) -> None:
            raise ValueError("cannot cope")

        def live(self) -> bool:
            assert self._host is not None
            return self._host._replicas[0].state is ReplicaState.LIVE

    back, clumsy = Back(), Clumsy("clumsy")
    with Node(f"fake://{uuid.uuid4().hex}", services=[back, clumsy]):
        wait(clumsy.live)
        with spans.tracer.start_as_current_span("user"):
            back.numbers.insert([(1,)])
        span = spans.one("process back.numbers", SpanKind.CONSUMER)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ValueError"


# Policy


class Source(DataService):
    ports = Table("port", "state")


class Pager(DataService):
    @rpc
    def page(self, port: int) -> None: ...


def alarm() -> Policy:
    rules: dict[str, str | RuleOptions] = {
        "open": "SELECT p.port AS port FROM source.ports p WHERE p.state = 'open'",
        "low": RuleOptions(
            sql="SELECT o.port AS port FROM security.open o WHERE o.port < 1024",
            action=ActionOptions(service="pager", method="page"),
        ),
    }
    return Policy("policy", policies={"security": rules})


def test_a_change_a_row_of_a_policy_and_its_action_are_one_trace(start: Callable[..., Node], spans: Spans) -> None:
    source = Source("source")
    start(source)
    start(Pager("pager"))
    node = start(alarm())
    node.wait_for("pager", PATIENCE)  # else the action is tried again: one more span
    source.ports.insert([(22, "closed")])

    def ready() -> bool:
        return all(rule["state"] == "OK" for rule in node.call("policy", "list_rules"))

    wait(ready)
    spans.exporter.clear()

    with spans.tracer.start_as_current_span("scan"):
        source.ports.insert([(22, "open")])

    chain = [
        ("scan", SpanKind.INTERNAL),
        ("send source.ports", SpanKind.PRODUCER),
        ("process source.ports", SpanKind.CONSUMER),
        ("evaluate security.low", SpanKind.INTERNAL),
        ("pager/page", SpanKind.CLIENT),
        ("pager/page", SpanKind.SERVER),
    ]
    found = [spans.one(*each) for each in chain]
    for parent, child in pairwise(found):
        assert is_child(child, parent), (parent.name, child.name)
    for rule in ("open", "low"):
        evaluated = spans.one(f"evaluate security.{rule}", SpanKind.INTERNAL)
        assert is_child(evaluated, found[2])
        assert is_child(spans.one(f"send security.{rule}", SpanKind.PRODUCER), evaluated)


def test_changes_that_lead_to_a_row_together_are_linked(spans: Spans) -> None:
    """The evaluator takes several changes at once: the row belongs to the trace of the first, and names the others."""
    traces = []
    for _ in range(3):
        with spans.tracer.start_as_current_span("user"):
            traces.append(tracing.current())
    ids = [trace.get_current_span(context).get_span_context() for context in traces]
    with tracing.evaluating("security.open", [each for each in traces if each is not None]):
        pass
    span = spans.one("evaluate security.open", SpanKind.INTERNAL)
    assert span.parent == ids[0]
    assert [link.context for link in span.links] == ids[1:]


# Without


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


NODE = """
import sys
from dse import DataService, Node, rpc
from dse.core import tracing
class Echo(DataService):
    @rpc
    def echo(self, what: str) -> str:
        return what
def run():
    with Node("fake://", services=[Echo("echo")]) as node:
        assert node.call("echo", "echo", {"what": "x"}) == "x"
"""


def test_a_process_without_a_provider_imports_nothing_of_it() -> None:
    assert python(f"{NODE}\nrun()\nprint(tracing.active, 'opentelemetry' in sys.modules)") == "None False\n"


def test_the_api_without_a_provider_makes_no_traces() -> None:
    assert python(f"import opentelemetry.trace\n{NODE}\nrun()\nprint(tracing.active)") == "None\n"


def test_the_provider_of_the_process_is_used() -> None:
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name} {span.kind}\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
run()
"""
    assert python(NODE + code) == "echo/echo SpanKind.SERVER\necho/echo SpanKind.CLIENT\n"


def test_a_trace_goes_on_beyond_a_bridge(spans: Spans) -> None:
    """Calls, broadcasts and changes of tables; what a bridge passes on is no call of its own."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(closing(FakeServer())).url for _ in range(2))
        front, back = Front(), Back()
        stack.enter_context(Node(near, services=[back]))
        node = stack.enter_context(Node(far, services=[front]))
        stack.enter_context(Bridge(near, far))
        node.wait_for("back", PATIENCE)
        wait(front.live)
        with spans.tracer.start_as_current_span("user"):
            assert node.call("back", "double", {"number": 4}) == 8
            node.broadcast("back", "fail")
        wait(lambda: front.seen)
        wait(lambda: spans.find("process back/fail", SpanKind.CONSUMER))
        user = spans.one("user", SpanKind.INTERNAL)
        assert user.context is not None
        assert front.seen[0][1] == user.context.trace_id
        for name, kind, count in (
            ("back/double", SpanKind.CLIENT, 1),
            ("back/double", SpanKind.SERVER, 2),  # at the bridge, and beyond it
            ("send back/fail", SpanKind.PRODUCER, 1),
            ("process back/fail", SpanKind.CONSUMER, 1),
            ("send back.numbers", SpanKind.PRODUCER, 2),
        ):
            found = spans.find(name, kind)
            assert len(found) == count, name
            assert {each.context.trace_id for each in found} == {user.context.trace_id}, name
