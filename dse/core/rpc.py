"""RPC at run time: the client, which sends requests and waits, and the server, which runs them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dse import errors
from dse.core import limits, tracing
from dse.core.calls import Call, PendingCalls
from dse.core.controlbus import ControlBus, Member
from dse.core.fairqueue import FairQueue
from dse.core.figures import BUILTINS
from dse.core.guard import Guard
from dse.core.inline import InlineRuns
from dse.core.membership import NodeState
from dse.core.messages import (
    Accepted,
    Failure,
    Probe,
    Reply,
    Request,
    UnknownCall,
    encode_reply,
    instance_address,
    service_address,
)
from dse.core.methods import Method, current_request, set_current_request
from dse.core.pace import Pace
from dse.core.relayed import RelayedFailure
from dse.core.sender import Sender
from dse.core.threads import AsyncLoop, Pool, SerialQueue, Timers
from dse.core.transport import Address
from dse.core.untrusted import decode_value
from dse.core.wire import Wire
from dse.errors import (
    CallTimeout,
    DseError,
    FrameTooLarge,
    InvalidArguments,
    NodeLost,
    NoSuchMethod,
    NoSuchService,
    NoSuchTable,
    Overloaded,
    RemoteError,
    TransportUnavailable,
    Untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Outcome", "RpcClient", "RpcServer", "register_error"]

_log = logging.getLogger("dse.node")
_encode = msgspec.msgpack.Encoder().encode

_REFUSALS: dict[str, type[DseError]] = {
    error.__name__: error
    for error in (NoSuchService, NoSuchMethod, NoSuchTable, InvalidArguments, Overloaded, Untrusted)
}
# What a bridge tells of a call that it passed on; others have no reason to say it.
_TOLD: dict[str, type[DseError]] = {**_REFUSALS, "NodeLost": NodeLost, "CallTimeout": CallTimeout}
_STOPPING = "Stopping"  # the request was not run, for the node is about to leave: somebody else may run it
_DIRECTLY = "Directly"  # the request was not run: on a bus with keys it is to be sent to this instance alone
_REMOTE = "RemoteError"
_ANYBODY = ""  # stands for the bus's choice among the instances that were tried
_RETRY = 0.1  # seconds until a request that found nobody is sent again, where somebody may come back
_FIND = 0.5  # seconds that somebody who is not known, or not reached, is waited for: it may just have started
_ASK_AGAIN = 0.5  # seconds until the bus is asked again who takes a request, then twice that, and so on
_SETTLE = 5.0  # seconds after an outage in which nodes that live may not be back on the bus yet
_MAX_TRACEBACK = 20_000
_MAX_MESSAGE = 20_000

_Args = TypeVar("_Args")

_registered: dict[str, type[BaseException]] = {}


def register_error(cls: type[BaseException], *, name: str | None = None) -> type[BaseException]:
    """Let an exception class cross the bus as itself instead of as `RemoteError`; may be used as a decorator.

    Register it on both sides. It is known by its module and qualified name, or by `name`; it is made anew from its
    ``args``, which must be of what messages can carry, or it comes as a `RemoteError`.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise errors.ConfigError(f"register_error takes an exception class, not {cls!r}")
    _registered[name or _type_name(cls)] = cls
    return cls


def _type_name(cls: type[BaseException]) -> str:
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return next((name for name, known in _registered.items() if known is cls), f"{cls.__module__}.{cls.__qualname__}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one replica answered: a `result`, or the `error` that its call would have raised."""

    node_id: str
    result: Any = None
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None

    def unwrap(self) -> Any:
        """Return the result or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


class _Answer:
    """Where a waiting thread finds its answer: cheaper than a Future, for one waiter.

    A thread that leads (`dse.core.receiving`) sees it `done` when it has received it; any other waits on a lock, which
    is made for that. It is there before `done` is looked at, and `done` is set before that is: nobody waits in vain.
    """

    done = False
    result: Any = None
    error: BaseException | None = None
    _ready: threading.Lock | None = None

    def set_result(self, result: Any) -> None:
        self.result = result
        self._set()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self._set()

    def wait(self, timeout: float) -> bool:
        ready = self._ready
        if ready is None:
            ready = threading.Lock()
            ready.acquire()
            self._ready = ready
        return self.done or ready.acquire(timeout=timeout)

    def _set(self) -> None:
        self.done = True
        ready = self._ready
        if ready is not None:
            ready.release()


class _CallFuture(Future[Any]):
    """A future whose callbacks run on the node's threads, never on the one that receives."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        def run(future: Future[Any]) -> None:
            def job() -> None:
                fn(future)

            if not self._pool.submit(job):
                job()

        super().add_done_callback(run)

    def cancel(self) -> bool:
        return False  # the request is with another node: it cannot be taken back


Handle = _Answer | Future[Any]


class _Waiting:
    """A call as the client holds it: what is needed to send it again.

    The `Call` has it as its handle, and it knows that one by number: two that know each other would be left to the
    garbage collector.
    """

    member: Member | None = None  # who was chosen last, as far as somebody was
    directly: Sender | None = None  # who took the request from the bus, and asked for it to be sent directly
    waits_for = ""  # why it is parked
    asked_again = 0  # how often the bus was asked who takes it, without an answer
    parked_until = 0.0
    relayed = False  # it came from another bus: the answer goes there as it is
    reached: str | None = None  # the node that was chosen last, by whomever

    def __init__(
        self,
        call_id: int,
        answer: Handle,
        service: str | None,
        method: str,
        args: msgspec.Raw,
        node_id: str | None,
        timeout: float,
        trace: dict[str, str] | None,
    ) -> None:
        self.call_id = call_id  # of the latest attempt
        self.answer = answer
        self.service = service
        self.method = method
        self.args = args
        self.node_id = node_id  # the caller insists on this node
        self.timeout = timeout
        self.trace = trace
        self.tried: set[str] = set()

    @property
    def idempotent(self) -> bool:
        """Whether the method may run twice, by what the node that was chosen last says of it."""
        offer = self.member.services.get(self.service or "") if self.member is not None else None
        info = offer.rpc_methods.get(self.method) if offer is not None else None
        return info is not None and info.idempotent


class RpcClient:
    """Sends requests, waits for answers, retries where that is safe.

    A request that cannot have run is sent to another replica. Where there is none, it is parked and tried again: one
    that may be repeated, and any right after an outage, as long as the control bus knows a live node that offers it;
    and any to a node by name, for `_FIND` seconds: that node may have started although word of it is still on its way.
    So is, on a bus that reports nothing undeliverable, any to a service that no node offers. On a bus with keys nobody
    runs what the bus gave to just anybody, but asks for it to be sent directly; where that question is lost, or taken
    by somebody who has no business with it, the call is tried again.

    Lock: ``_lock`` protects ``_pending``, ``_parked``, ``_retrying`` and ``_settled``.
    """

    def __init__(
        self,
        node_id: str,
        wire: Wire,
        control_bus: ControlBus,
        timers: Timers,
        control: SerialQueue,
        pool: Pool,
        inline: InlineRuns,
        local_service: Callable[[str], bool],
        undeliverable: bool,
        first_turn: int,
        guard: Guard,
        ids: Iterator[int],
        natives_only: bool = False,
    ) -> None:
        self._guard = guard
        self._inline = inline
        self._natives_only = natives_only
        self._node_id = node_id
        self._wire = wire
        self._control_bus = control_bus
        self._timers = timers
        self._timer = timers.timer(self._tick)
        self._control = control
        self._pool = pool
        self._has_local = local_service
        self._reports_undeliverable = undeliverable
        self._ids = ids  # an answer is taken from whoever knows the number: the callee alone does
        self._turn = itertools.count(first_turn)
        self._lock = threading.Lock()
        self._pending = PendingCalls(wire.instance)
        self._parked: dict[int, Call] = {}  # calls that wait for the connection, or somebody's, to come back
        self._retry_timer = timers.timer(lambda: control.put(self._retry))
        self._retrying = False  # the timer is set
        self._settled = 0.0  # when the latest outage is over for everybody
        self._closed: DseError | None = None

    # Calls

    def call(self, service: str | None, method: str, args: msgspec.Raw, timeout: float, node_id: str | None) -> Any:
        """Call and wait; the timeout is kept by the calling thread itself, whatever the others do."""
        self._inline.relieve_caller()
        answer = _Answer()
        spans = tracing.active
        if spans is None or method in BUILTINS:
            return self._wait(self._begin(service, method, args, timeout, node_id, answer, _passed_on()), answer)
        sent = spans.calling(service, method)
        call: Call | None = None
        error: BaseException | None = None
        try:
            call = self._begin(service, method, args, timeout, node_id, answer, sent.carrier)
            return self._wait(call, answer)
        except BaseException as raised:
            error = raised
            raise
        finally:
            sent.end(node_id=call.handle.reached if call is not None else node_id, error=error)

    def _wait(self, call: Call, answer: _Answer) -> Any:
        left = max(0.0, call.deadline - self._timers.now())
        # What comes from this very node does not come over the transport.
        over_the_bus = call.sent and call.instance != self._wire.instance
        if not (self._wire.transport.wait(answer, left) if over_the_bus else answer.wait(left)):
            with self._lock:
                call_id = call.handle.call_id
                taken = self._pending.take(call_id)
                self._parked.pop(call_id, None)
            if taken is not None:
                raise self._timed_out(taken)
            answer.wait(5.0)  # it is being answered at this moment
        if answer.error is not None:
            raise answer.error
        return answer.result

    def call_async(
        self, service: str | None, method: str, args: msgspec.Raw, timeout: float, node_id: str | None
    ) -> Future[Any]:
        """Call; the future gets the result or the error."""
        future = _CallFuture(self._pool)
        future.set_running_or_notify_cancel()
        spans = tracing.active
        sent = spans.calling(service, method) if spans is not None and method not in BUILTINS else None
        call: Call | None = None
        try:
            trace = sent.carrier if sent is not None else _passed_on()
            call = self._begin(service, method, args, timeout, node_id, future, trace)
        except Exception as error:
            future.set_exception(error)
        if sent is not None:
            span, reached = sent, call.handle if call is not None else None

            def end(done: Future[Any]) -> None:
                span.end(node_id=reached.reached if reached is not None else node_id, error=done.exception())

            future.add_done_callback(end)
        return future

    def relay(self, service: str, method: str, args: msgspec.Raw, timeout: float) -> Future[msgspec.Raw]:
        """Make a call that came from another bus.

        The future gets the result as it came, encoded, or as its exception a `RelayedFailure` with what the callee
        said, or what kept the call from being answered.
        """
        future = _CallFuture(self._pool)
        future.set_running_or_notify_cancel()
        try:
            self._begin(service, method, args, timeout, None, future, _passed_on(), relayed=True)
        except Exception as error:
            future.set_exception(error)
        return future

    def cast(
        self,
        service: str | None,
        method: str,
        args: msgspec.Raw,
        address: Address,
        ttl: float,
        *,
        relayed: bool = False,
    ) -> None:
        """Send a request that asks for no answer."""
        spans = tracing.active
        if spans is None or relayed:  # what a bridge passes on is no call of its own
            request = self._request(0, service, method, args, ttl, False, _passed_on(), relayed)
            self._wire.send(address, request, ttl=ttl)
            return
        sent, error = spans.casting(service, method), None
        try:
            self._wire.send(address, self._request(0, service, method, args, ttl, False, sent.carrier), ttl=ttl)
        except BaseException as raised:
            error = raised
            raise
        finally:
            sent.end(error=error)

    def pick(self, service: str, tried: Iterable[str] = ()) -> Member | None:
        """Choose a live replica on another node, in turn."""
        members: Sequence[Member] | None = self._control_bus.preferred.get(service)
        if not members:
            return None
        if tried:
            left = [member for member in self._control_bus.replicas.get(service, ()) if member.instance not in tried]
            members = [member for member in left if member.state is NodeState.JOINED] or left
            if not members:
                return None
        return members[next(self._turn) % len(members)]

    @property
    def pending(self) -> int:
        """Calls that wait for their answers."""
        return len(self._pending.calls)

    def _begin(
        self,
        service: str | None,
        method: str,
        args: msgspec.Raw,
        timeout: float,
        node_id: str | None,
        answer: Handle,
        trace: dict[str, str] | None,
        relayed: bool = False,
    ) -> Call:
        self._wire.traffic.calls_made += 1
        now = self._timers.now()
        number = next(self._ids)
        waiting = _Waiting(number, answer, service, method, args, node_id, timeout, trace)
        if relayed:
            waiting.relayed = True
        call = Call(number, service, method, now, now + timeout, None, None, waiting)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._pending.add(call)
            wakeup = self._pending.wakeup
        if wakeup < self._timer.queued_at:
            self._timers.set(self._timer, wakeup)
        try:
            self._dispatch(call)
        except BaseException as error:
            with self._lock:
                taken = self._pending.take(call.id)
                self._parked.pop(call.id, None)
            if taken is not None:
                raise
            _log.debug("call %d had ended when sending it failed: %s", call.id, error)
        return call

    def _dispatch(self, call: Call) -> None:
        """Choose who gets the request, and send it; raise when nobody can."""
        waiting: _Waiting = call.handle
        anycast = False
        if waiting.node_id is not None:
            if not self._is_known(waiting.node_id) and self._wait_for_somebody(call):
                return
            instance = self._instance_of(call, waiting.node_id)
            call.instance, call.node_id = instance, waiting.node_id
        elif call.service is None:
            raise NoSuchService("a call to a node names the node")
        elif self._wire.instance not in waiting.tried and self._has_local(call.service):
            call.instance, call.node_id = self._wire.instance, self._node_id
        elif waiting.directly is not None:
            call.instance, call.node_id = waiting.directly.instance, waiting.directly.node_id
            waiting.directly = None
        elif (member := self.pick(call.service, waiting.tried)) is not None:
            waiting.member = member
            call.instance, call.node_id = member.instance, member.node_id
        elif self._reports_undeliverable and not waiting.tried and not self._natives_only:
            anycast = True  # nobody known yet: the bus may know more than the control bus has told so far
            waiting.tried.add(_ANYBODY)
        elif not self._reports_undeliverable and self._wait_for_somebody(call):
            return  # nothing but the control bus can tell, and word may be on its way
        else:
            raise self._no_service(call)
        waiting.reached = call.node_id
        left = call.deadline - self._timers.now()
        if left <= 0:
            return
        request = self._request(
            call.id, call.service, call.method, waiting.args, left, anycast, waiting.trace, waiting.relayed
        )
        if anycast:
            assert call.service is not None
            address = service_address(call.service)
        else:
            assert call.instance is not None
            waiting.tried.add(call.instance)
            address = instance_address(call.instance)
        try:
            self._wire.send(address, request, ttl=left)
            call.sent = True
        except TransportUnavailable:
            if not waiting.idempotent:
                raise
            self._park(call, "the connection to the broker to come back")
        else:
            if anycast and self._wire.sender is not None:
                self._ask_again_later(call)

    def _request(
        self,
        call_id: int,
        service: str | None,
        method: str,
        args: msgspec.Raw,
        left: float,
        anycast: bool,
        trace: dict[str, str] | None,
        relayed: bool = False,
    ) -> Request:
        return Request(
            call_id, self._wire.instance, self._node_id, service, method, args, left, anycast, trace, relayed
        )

    def _is_known(self, node_id: str) -> bool:
        return node_id == self._node_id or self._control_bus.member(node_id) is not None

    def _instance_of(self, call: Call, node_id: str) -> str:
        if node_id == self._node_id:
            return self._wire.instance
        member = self._control_bus.member(node_id)
        if member is None:
            if call.service is None:
                raise NodeLost(f"node {node_id!r} is not on the bus")
            raise NoSuchService(f"{call.service}: node {node_id!r} is not on the bus")
        if call.service is not None and call.service in member.services:
            call.handle.member = member
        elif call.service is not None:
            self.require_published(member, call.service)
        return member.instance

    def _no_service(self, call: Call) -> NoSuchService:
        known = sorted(self._control_bus.replicas)
        members = self._control_bus.replicas.get(call.service or "", ())
        if members:
            nodes = ", ".join(member.node_id for member in members[:20])
            return NoSuchService(f"no node that offers {call.service!r} is reached by the bus now; known are: {nodes}")
        return NoSuchService(
            f"no node offers the service {call.service!r}; known services: {', '.join(known[:20]) or 'none'}"
            f"{', …' if len(known) > 20 else ''}"
        )

    # Answers

    def replied(self, message: Reply, sender: Sender | None = None) -> None:
        """A result came."""
        with self._lock:
            if sender is not None and not self._asked(message.id, sender):
                return
            call = self._pending.take(message.id)
        if call is None:
            return
        if call.handle.relayed:
            call.handle.answer.set_result(message.result)
            return
        try:
            result = decode_value(message.result)
        except Exception as error:
            call.handle.answer.set_exception(RemoteError("BadResult", f"the result cannot be decoded: {error}"))
        else:
            call.handle.answer.set_result(result)

    def failed(self, message: Failure, sender: Sender | None = None) -> None:
        """A failure came."""
        with self._lock:
            call = self._pending.calls.get(message.id)
            if call is None or (sender is not None and call.instance not in (None, sender.instance)):
                return
            denied = sender is not None and call.instance is None and not self._may_offer(call, sender)
            if message.code == _DIRECTLY and call.instance is None and not denied:
                call.handle.directly = sender
            not_run = message.code in (_STOPPING, "NoSuchService", _DIRECTLY) and call.handle.node_id is None
            if denied or not not_run:
                self._pending.take(message.id)
        if denied:
            assert sender is not None
            assert call.service is not None
            self._guard.publishes(sender, call.service)  # counts it
            self._wire.traffic.call_errors += 1
            call.handle.answer.set_exception(self._not_published(sender, call.service))
            return
        if not_run:
            self._again(call, NoSuchService(message.message))
            return
        self._wire.traffic.call_errors += 1
        call.handle.answer.set_exception(RelayedFailure(message) if call.handle.relayed else _error_of(message))

    def accepted(self, message: Accepted, sender: Sender | None = None) -> None:
        """The callee has a request."""
        with self._lock:
            if sender is None or self._asked(message.id, sender):
                self._pending.accepted(message.id, message.instance, message.node_id)

    def require_published(self, member: Member, service: str) -> None:
        """Raise `Untrusted` when a node may not offer a service, by the permissions of this one."""
        if not self._guard.may_publish(member.sender, service):
            raise self._not_published(member.sender, service)

    def _not_published(self, callee: Sender, service: str) -> Untrusted:
        return Untrusted(
            f"node {callee.node_id!r} (key {callee.key_id!r}) may not offer {service!r} by the permissions of node "
            f"{self._node_id!r}: its answer would not be taken"
        )

    def unknown(self, message: UnknownCall, sender: Sender | None = None) -> None:
        """The callee has no such request."""
        with self._lock:
            call = self._pending.unknown(message.id, message.instance)
        if call is not None:
            self._lost(call, f"node {call.node_id!r} does not have the request: it or its answer was lost in an outage")

    def undeliverable(self, message: Request) -> None:
        """A request found nobody, so it did not run: try somebody else."""
        with self._lock:
            call = self._pending.calls.get(message.id)
        if call is None:
            return
        if call.handle.node_id is None:
            self._again(call, self._no_service(call))
        elif not self._wait_for_somebody(call):
            with self._lock:
                ended = self._pending.take(call.id)
            if ended is not None:
                error = NodeLost(f"node {call.node_id!r} is not reached by the bus any more")
                ended.handle.answer.set_exception(error)

    def nodes_gone(self, gone: dict[str, str]) -> None:
        """Nodes died or left: instance -> how that is said."""
        with self._lock:
            ended = self._pending.gone(gone)
        for call in ended:
            assert call.instance is not None
            self._lost(call, f"node {call.node_id!r} {gone[call.instance]} before it answered {call.method!r}")

    def nodes_came(self) -> None:
        """Nodes have joined: somebody may wait for them."""
        if self._parked:
            self._control.put(self._retry)

    def connected(self) -> None:
        """The connection is back: send what waited for it, and ask about what was under way."""
        with self._lock:
            self._settled = self._timers.now() + _SETTLE
            calls = [call for call in self._pending.calls.values() if call.sent and call.instance]
            probes = [
                (instance_address(call.instance), Probe(call.id, self._wire.instance))
                for call in calls
                if call.instance
            ]
        self._retry()
        for address, probe in probes:
            try:
                self._wire.send(address, probe)
            except errors.TransportError:
                return

    def _retry(self) -> None:
        """Send what is parked."""
        now = self._timers.now()
        with self._lock:
            parked = [
                call
                for call in self._parked.values()
                if call.handle.parked_until <= now or call.service in self._control_bus.replicas
            ]
            for call in parked:
                del self._parked[call.id]
            self._retrying = False
            later = bool(self._parked)
        if later:
            self._retry_later()
        for call in parked:
            call.handle.tried.clear()
            call.handle.waits_for = ""
            self._again(call, None)

    def close(self, error: DseError) -> None:
        """End every call that waits."""
        self._timers.cancel(self._timer)
        self._timers.cancel(self._retry_timer)
        with self._lock:
            self._closed = error
            calls, self._pending.calls = list(self._pending.calls.values()), {}
            self._parked.clear()
        for call in calls:
            call.handle.answer.set_exception(error)

    # Inside

    def _asked(self, call_id: int, sender: Sender) -> bool:
        """Whether a call waits for this sender's answer, or that of the bus's choice (the lock is held)."""
        call = self._pending.calls.get(call_id)
        if call is None or call.instance is not None:
            return call is not None and call.instance == sender.instance
        return self._may_offer(call, sender)

    def _may_offer(self, call: Call, sender: Sender) -> bool:
        return call.service is None or self._guard.may_publish(sender, call.service)

    def _lost(self, call: Call, why: str) -> None:
        """The node that had the request is gone, or lost it: whether it ran is unknown."""
        error = NodeLost(why)
        if call.handle.idempotent and call.deadline > self._timers.now():
            with self._lock:
                call.instance, call.accepted = None, False
                self._pending.add(call)
            if call.handle.node_id is None:
                self._again(call, error)
                return
            with self._lock:
                self._pending.take(call.id)
        self._wire.traffic.call_errors += 1
        call.handle.answer.set_exception(error)

    def _again(self, call: Call, error: DseError | None) -> None:
        """Send a request that did not run to somebody else; where there is nobody, end the call with `error`."""
        # A request under a new number: a late answer to the old one is nobody's.
        fresh = Call(next(self._ids), call.service, call.method, call.started, call.deadline, None, None, call.handle)
        with self._lock:
            self._parked.pop(call.id, None)
            if self._pending.take(call.id) is None:
                return
            self._pending.add(fresh)
            call.handle.call_id = fresh.id
        try:
            self._dispatch(fresh)
        except Exception as reason:
            if isinstance(reason, NoSuchService) and self._wait_for_somebody(fresh):
                return
            with self._lock:
                taken = self._pending.take(fresh.id)
            if taken is not None:
                keep = error is not None and isinstance(reason, NoSuchService)
                call.handle.answer.set_exception(error if keep and error is not None else reason)

    def _wait_for_somebody(self, call: Call) -> bool:
        """Park a request that found nobody, where somebody may be there soon; say whether that is so."""
        waiting: _Waiting = call.handle
        now = self._timers.now()
        if waiting.node_id is not None and now < call.started + _FIND:
            self._park(call, f"node {waiting.node_id!r} to be on the bus")
        elif not self._reports_undeliverable and now < call.started + _FIND:
            self._park(call, "a node that offers it to be on the bus")
        elif (waiting.idempotent or now < self._settled) and self._is_offered(call):
            self._park(call, "a node that offers it to be back on the bus")
        else:
            return False
        self._retry_later()
        return True

    def _retry_later(self) -> None:
        with self._lock:
            first, self._retrying = not self._retrying, True
        if first:
            self._timers.set(self._retry_timer, self._timers.now() + _RETRY)

    def _ask_again_later(self, call: Call) -> None:
        """Try a request again that the bus was asked about, unless somebody answers; meanwhile the call goes on."""
        waiting: _Waiting = call.handle
        waiting.parked_until = self._timers.now() + _ASK_AGAIN * (1 << min(waiting.asked_again, 6))
        waiting.asked_again += 1
        with self._lock:
            if call.id in self._pending.calls:
                self._parked[call.id] = call
        self._retry_later()

    def _is_offered(self, call: Call) -> bool:
        waiting: _Waiting = call.handle
        if waiting.node_id is not None:
            return self._is_known(waiting.node_id)
        return call.service in self._control_bus.replicas

    def _park(self, call: Call, waits_for: str) -> None:
        call.handle.waits_for = waits_for
        call.handle.parked_until = 0.0
        with self._lock:
            if call.id in self._pending.calls:
                call.instance, call.sent = None, False  # nobody has it, so whoever dies now does not end it
                self._parked[call.id] = call

    def _tick(self) -> None:
        now = self._timers.now()
        with self._lock:
            expired, probes = self._pending.tick(now)
            for call in expired:
                self._parked.pop(call.id, None)
            wakeup = self._pending.wakeup
        self._timers.set(self._timer, wakeup)
        for call in expired:
            call.handle.answer.set_exception(self._timed_out(call))
        if probes:
            self._control.put(lambda: self._wire.carry_out(probes))

    def _timed_out(self, call: Call) -> CallTimeout:
        self._wire.traffic.call_errors += 1
        how_far = call.progress()
        if call.handle.waits_for:
            how_far = f"{call.service}.{call.method} waited for {call.handle.waits_for}"
        elif call.service is not None and call.instance is None and call.service not in self._control_bus.replicas:
            how_far += f"; no node has announced the service {call.service!r}"
        return CallTimeout(f"no answer within {call.handle.timeout:g} s: {how_far}")


def _error_of(failure: Failure) -> BaseException:
    refusal = _TOLD.get(failure.code)
    if refusal is not None:
        return refusal(failure.message)
    if failure.code == _STOPPING:
        return NodeLost(failure.message)
    registered = _registered.get(failure.type_name)
    if registered is not None and failure.args is not None:
        try:
            args = decode_value(failure.args)
            if isinstance(args, list):
                return registered(*args)
        except Exception as error:
            _log.debug("a remote %s could not be made anew: %s", failure.type_name, error)
    return RemoteError(failure.type_name, failure.message, failure.traceback)


def _passed_on() -> dict[str, str] | None:
    """Where no traces are made: what came with the request that runs goes on with what it calls."""
    running = current_request()
    return dict(running.trace) if running is not None and running.trace and tracing.fits(running.trace) else None


class RpcServer:
    """Runs requests: a brief method on the thread that received the request, any other on a worker thread or, for
    ``async def``, on the node's event loop.

    Requests that wait for a worker are served in turn by who sent them, and a node that sends them faster than they are
    served is refused before the others are (`dse.core.fairqueue`).

    Lock: ``_lock`` protects ``_active``, ``_queue``, ``_beginning``, ``_coroutines`` and ``_coroutines_of``.
    """

    def __init__(
        self,
        node_id: str,
        wire: Wire,
        pool: Pool,
        loop: AsyncLoop,
        inline: InlineRuns,
        max_pending: int,
        find: Callable[[str | None], tuple[str, Mapping[str, Method]] | None],
        now: Callable[[], float],
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._node_id = node_id
        self._wire = wire
        self._pool = pool
        self._loop = loop
        self._inline = inline
        self._max_pending = max_pending
        self._find = find
        self._now = now
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._active: set[tuple[str, int]] = set()
        self._queue: FairQueue[tuple[Request, Method, float]] = FairQueue(max_pending, limits.REQUESTS)
        self._beginning = 0  # coroutines that were accepted and have not begun
        self._coroutines = 0  # on the event loop, begun or not
        self._coroutines_of: dict[str, int] = {}  # by who sent the request
        self._stopping = False
        self._log_pace = Pace(10, 1 / 6)  # of lines about dropped casts: whoever sends them does not fill the log
        self._traffic = wire.traffic
        self.builtins: Mapping[str, Callable[[Request, Sender | None], None]] = {}  # methods of every node, run at once

    def stop(self) -> None:
        """Accept no more requests."""
        self._stopping = True

    def drain(self, deadline: float) -> None:
        """Wait until the methods that run have answered; those of the worker threads are the pool's to wait for."""
        self._inline.drain(deadline)
        if self._loop.is_current:
            return
        with self._lock:
            self._ended.wait_for(lambda: not self._coroutines, max(0.0, deadline - time.monotonic()))

    def requested(
        self, request: Request, sender: Sender | None = None, *, inline: bool = False, fanout: bool = False
    ) -> None:
        """Take a request from the bus; never blocks for long.

        inline: the calling thread may be relieved. fanout: all replicas of the service have it.
        """
        now = self._now()
        if not 0.0 <= request.timeout <= limits.LONGEST_TIMEOUT:
            longest = limits.LONGEST_TIMEOUT if request.timeout > 0.0 else 0.0
            request = msgspec.structs.replace(request, timeout=longest)
        deadline = now + request.timeout
        if self._guard.rules is not None and not self._guard.calls(sender, request.service, request.method):
            self._deny(request, sender)
            return
        if self._stopping:
            self._refuse(request, _STOPPING, f"node {self._node_id!r} is stopping")
            return
        found = self._find(request.service)
        if found is None:
            self._refuse(request, "NoSuchService", f"node {self._node_id!r} has no service {request.service!r}")
            return
        owner, methods = found
        method = methods.get(request.method)
        if method is None and request.service is None and request.method in self.builtins:
            self.builtins[request.method](request, sender)
            return
        if method is None:
            known = ", ".join(sorted(methods)) or "none"
            self._refuse(request, "NoSuchMethod", f"{owner} has no method {request.method!r}; it has: {known}")
            return
        if fanout and not method.takes_broadcast(request):
            return
        key = (request.instance, request.id)
        if inline and method.briefness.proved and self._pool.has_room and not (request.anycast or method.is_async):
            if request.id:
                self._active.add(key)
            self._inline.run(method.briefness, now, self._run, request, method, deadline)
            return
        with self._lock:
            refused = self._accept(request, method, deadline)
            if request.id:
                self._active.add(key)
        for each in refused:
            self._forget(each)
            self._refuse(each, "Overloaded", f"node {self._node_id!r} has {self._max_pending} requests waiting already")
            if each is request:
                return
        if request.anycast and request.id:
            self._answer(request, Accepted(request.id, self._wire.instance, self._node_id))
        if method.is_async:
            try:
                future = self._loop.submit(self._run_async(request, method, deadline))
                future.add_done_callback(lambda _: self._coroutine_ended(request))
            except RuntimeError:
                self._begun()
                self._coroutine_ended(request)
                self._refuse(request, _STOPPING, f"node {self._node_id!r} is stopping")
        elif not refused and not self._pool.submit(self._run_next):
            with self._lock:
                left = self._queue.take()
            if left is not None:
                self._refuse(left[0], _STOPPING, f"node {self._node_id!r} is stopping")

    def _accept(self, request: Request, method: Method, deadline: float) -> list[Request]:
        """Let a request wait; return those that are refused for it, perhaps the request itself (the lock is held)."""
        if not method.is_async:
            size = len(memoryview(request.args))
            return [each for each, _, _ in self._queue.put(request.instance, (request, method, deadline), size)]
        most = limits.COROUTINES * self._max_pending
        of_sender = self._coroutines_of.get(request.instance, 0)
        if self._beginning >= self._max_pending or self._coroutines >= most or of_sender >= most // 2:
            return [request]
        self._beginning += 1
        self._coroutines += 1
        self._coroutines_of[request.instance] = of_sender + 1
        return []

    def redirect(self, request: Request) -> None:
        """Do not run a request, and ask its caller to send it to this node alone."""
        if request.id:
            self._send(instance_address(request.instance), Failure(request.id, _DIRECTLY, "send it directly"))

    def probed(self, probe: Probe, sender: Sender | None = None) -> None:
        """Say whether a request is here."""
        with self._lock:
            here = (probe.instance, probe.id) in self._active
        answer: Accepted | UnknownCall
        if here:
            answer = Accepted(probe.id, self._wire.instance, self._node_id)
        else:
            answer = UnknownCall(probe.id, self._wire.instance)
        self._send(instance_address(probe.instance), answer)

    # Inside

    def _begun(self) -> None:
        with self._lock:
            self._beginning -= 1

    def _coroutine_ended(self, request: Request) -> None:
        with self._lock:
            self._coroutines -= 1
            of_sender = self._coroutines_of[request.instance] - 1
            if of_sender:
                self._coroutines_of[request.instance] = of_sender
            else:
                del self._coroutines_of[request.instance]
            self._ended.notify_all()

    def _run_next(self) -> None:
        with self._lock:
            next_one = self._queue.take()
        if next_one is not None:
            self._run(*next_one)

    def _run(self, request: Request, method: Method, deadline: float) -> None:
        began = self._now()
        if began >= deadline:
            self._forget(request)
            return
        set_current_request(request)
        answer: bytes | Failure
        spans = tracing.active
        try:
            if spans is None:
                answer = encode_reply(request.id, method.function(**method.bind(request.args)))
            else:
                with spans.serving(request):
                    answer = encode_reply(request.id, method.function(**method.bind(request.args)))
        except BaseException as error:
            answer = self._failure(request, method, error)
        finally:
            set_current_request(None)
        ended = self._now()
        method.briefness.took(ended - began)
        self._traffic.calls_served += 1
        self._traffic.took.append(ended - deadline + request.timeout)
        self._answer(request, answer)

    async def _run_async(self, request: Request, method: Method, deadline: float) -> None:
        self._begun()
        if self._now() >= deadline:
            self._forget(request)
            return
        set_current_request(request)
        answer: bytes | Failure
        spans = tracing.active
        try:
            if spans is None:
                answer = encode_reply(request.id, await method.function(**method.bind(request.args)))
            else:
                with spans.serving(request):
                    answer = encode_reply(request.id, await method.function(**method.bind(request.args)))
        except BaseException as error:
            answer = self._failure(request, method, error)
        self._traffic.calls_served += 1
        self._traffic.took.append(self._now() - deadline + request.timeout)
        self._answer(request, answer)

    def reply(self, request: Request, result: Any) -> None:
        """Answer a request that was run elsewhere."""
        self._answer(request, encode_reply(request.id, result))

    def run_builtin(self, request: Request, kind: type[_Args], method: Callable[[_Args], Any]) -> None:
        """Answer a request for a method of every node that takes arguments of a declared kind."""
        try:
            result = method(msgspec.msgpack.decode(request.args, type=kind))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            self._refuse(request, "InvalidArguments", f"{request.method}: {error}")
        except (NoSuchTable, Untrusted) as error:
            self._refuse(request, type(error).__name__, str(error))
        else:
            self.reply(request, result)

    @property
    def waiting(self) -> int:
        """Requests that were accepted and not begun."""
        return len(self._queue) + self._beginning

    def _failure(self, request: Request, method: Method, error: BaseException) -> Failure:
        if isinstance(error, RelayedFailure):
            return error.answer_to(request.id)
        self._wire.traffic.serve_errors += 1
        where = f"{method.owner}.{method.name}"
        if isinstance(error, InvalidArguments) and error.__traceback__ is not None and not _raised_by_method(error):
            _log.info("%s: refused a call by node %r: %s", where, request.node_id, error)
            return Failure(request.id, "InvalidArguments", str(error))
        _log.warning("%s raised for node %r: %s: %s", where, request.node_id, type(error).__name__, error)
        if isinstance(error, Untrusted):
            return Failure(request.id, "Untrusted", str(error)[:_MAX_MESSAGE])
        text = "".join(traceback.format_exception(error))
        name = _type_name(type(error))
        args = None
        if name in _registered:
            try:
                args = _encode(list(error.args))
            except Exception:
                _log.debug("%s: the arguments of %s cannot be sent", where, name)
        message, text = _sendable(str(error)[:_MAX_MESSAGE]), _sendable(text[-_MAX_TRACEBACK:])
        return Failure(request.id, _REMOTE, message, name, text, args)

    def _answer(self, request: Request, answer: bytes | Failure | Accepted) -> None:
        """Send an answer, or the frame of one."""
        if not request.id:
            return
        address, ttl = instance_address(request.instance), max(1.0, request.timeout)
        try:
            if isinstance(answer, bytes):
                self._wire.send_frame(address, answer, ttl=ttl)
            else:
                self._wire.send(address, answer, ttl=ttl)
        except FrameTooLarge as error:
            _log.warning("the result of %s.%s is too large: %s", request.service, request.method, error)
            self._send(address, Failure(request.id, _REMOTE, str(error), "dse.errors.FrameTooLarge"))
        except errors.TransportError as error:
            _log.info("the answer of %s.%s was not sent: %s", request.service, request.method, error)
        finally:
            if not isinstance(answer, Accepted):
                self._forget(request)

    def _refuse(self, request: Request, code: str, message: str) -> None:
        self._wire.traffic.refused += 1
        if request.id:
            self._send(instance_address(request.instance), Failure(request.id, code, message))
        elif self._log_pace.take(self._now()):
            _log.warning(
                "dropped a cast of %s.%s by node %r: %s", request.service, request.method, request.node_id, message
            )

    def _deny(self, request: Request, sender: Sender | None) -> None:
        """Answer one that is not allowed; the guard has counted and logged it."""
        self._wire.traffic.refused += 1
        if request.id:
            text = self._guard.refusal("call", sender, request.service, request.method)
            self._send(instance_address(request.instance), Failure(request.id, Untrusted.__name__, text))

    def _forget(self, request: Request) -> None:
        with self._lock:
            self._active.discard((request.instance, request.id))

    def _send(self, address: Address, message: Failure | Accepted | UnknownCall) -> None:
        try:
            self._wire.send(address, message)
        except errors.TransportError as error:
            _log.info("an answer was not sent: %s", error)


def _raised_by_method(error: BaseException) -> bool:
    """Whether an InvalidArguments came out of the method (a call it made) rather than out of its own arguments."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and tb.tb_frame.f_code is not Method.bind.__code__


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
