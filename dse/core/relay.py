"""What a bridge is made of: a node that passes calls on to its bus, and services that stand in for those of another.

Rules:

1. A catalogue says of a stand-in that it is one, and for an instance of what (`dse.core.info.STAND_IN`). A service that
   nobody stands in for is *native* to the bus.
2. A relay node calls and follows natives only, so what was carried over one bridge is carried over no second one.
3. A request that was relayed says so; a stand-in that gets one (its caller knew an older catalogue) does not run it.
4. A call is relayed once. What is known not to have run is answered with `NoSuchService`, so that the caller tries
   another replica; where it may have run, with `NodeLost` or `CallTimeout`. What the callee says is passed on as it is.
5. A bridge has one name on both of its buses. So its like between the same two are known: of those that stand in for
   a service, the one whose instance sorts first relays a broadcast, as long as it is not known to be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from dse.core.info import DataServiceInfo, MethodInfo
from dse.core.inline import Briefness
from dse.core.messages import Failure, Request, broadcast_address, instance_address
from dse.core.methods import Method, current_request, set_current_request
from dse.core.node import CAST_TTL, Node
from dse.core.relayed import RelayedFailure
from dse.core.service import DataService
from dse.core.table import PublishedTable
from dse.errors import CallTimeout, DseError, NodeLost, NoSuchService, Overloaded, TransportUnavailable

__all__ = ["Native", "RelayNode", "StandIn"]

_log = logging.getLogger("dse.bridge")

MOST_RELAYED = 1000
"""Calls that one node relays at a time; beyond, they are answered with `Overloaded`."""

_EARLIER = 0.1  # seconds, at most, by which a relayed call ends before its caller gives up: it then says how far it got
_SHARE = 0.05  # ... and the share of the time left


@dataclass(frozen=True, slots=True)
class Native:
    """A service as its own bus offers it: an instance that does, and what its replicas offer together."""

    origin: str
    nodes: tuple[str, ...]
    tables: Mapping[str, tuple[str, ...]]
    methods: Mapping[str, MethodInfo]

    @classmethod
    def of(cls, offers: Mapping[str, tuple[str, DataServiceInfo]]) -> Native:
        """Put together what replicas offer: instance -> (node_id, info)."""
        tables: dict[str, tuple[str, ...]] = {}
        methods: dict[str, MethodInfo] = {}
        for _, info in offers.values():
            for table, columns in info.published_tables.items():
                tables.setdefault(table, tuple(columns))
            for name, method in info.rpc_methods.items():
                known = methods.setdefault(name, method)
                if known.idempotent and not method.idempotent:  # whoever gets the call may not be one that bears two
                    methods[name] = method
        return cls(min(offers), tuple(sorted(node_id for node_id, _ in offers.values())), tables, methods)


class RelayNode(Node):
    """A bridge's node on one of its buses.

    peers_changed: called when nodes come, go or offer something else, by threads that receive: it must not block.

    Lock: ``_idle`` protects ``_relayed``.
    """

    natives_only: ClassVar[bool] = True

    def __init__(self, url: str, *, on_peers: Callable[[], None], **options: Any) -> None:
        self._on_peers = on_peers
        self._idle = threading.Condition()
        self._relayed = 0  # calls from another bus under way on this one
        super().__init__(url, **options)

    @property
    def where(self) -> str:
        """How messages call this side."""
        return f"bus {self.bus!r} at {self.url}"

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""
        return self.runtime.connected

    def peers_changed(self) -> None:
        """Tell the bridge."""
        self._on_peers()

    def natives(self) -> dict[str, Native]:
        """Return the services of this bus that are its own, by service_id; the bridge's are none."""
        return {
            service_id: Native.of({m.instance: (m.node_id, m.services[service_id]) for m in members})
            for service_id, members in self.control_bus.replicas.items()
        }

    async def relay(self, service_id: str, method: MethodInfo, request: Request, args: msgspec.Raw) -> msgspec.Raw:
        """Pass a call on to this bus; return the result as it comes. Raises `RelayedFailure` for whatever else."""
        if not self.connected and not method.idempotent:  # one that may be repeated waits for the connection
            raise self._refused(NoSuchService(f"{service_id!r} cannot be called: its broker is not reached now"))
        left = request.timeout - min(_EARLIER, _SHARE * request.timeout)
        try:
            with self._one_more():
                future: Future[msgspec.Raw] = self.runtime.client.relay(service_id, request.method, args, left)
                return await asyncio.wrap_future(future)
        except DseError as error:
            raise self._refused(error) from None

    def relay_cast(self, service_id: str, request: Request, args: msgspec.Raw) -> None:
        """Pass a cast on to one native replica, as far as there is one."""
        client = self.runtime.client
        try:
            with self._one_more():
                member = client.pick(service_id)
                if member is None:
                    raise NoSuchService(f"no node offers the service {service_id!r}")
                address = instance_address(member.instance)
                client.cast(service_id, request.method, args, address, request.timeout, relayed=True)
        except DseError as error:
            _log.warning("dropped a cast of %s.%s to %s: %s", service_id, request.method, self.where, error)

    def relay_broadcast(self, service_id: str, request: Request) -> None:
        """Pass a broadcast on to all native replicas."""
        address = broadcast_address(service_id)
        ttl = min(CAST_TTL, request.timeout)
        try:
            with self._one_more():
                self.runtime.client.cast(service_id, request.method, request.args, address, ttl, relayed=True)
        except DseError as error:
            _log.warning("dropped a broadcast of %s.%s to %s: %s", service_id, request.method, self.where, error)

    def retire(self) -> None:
        """Offer nothing any more; calls under way go on."""
        runtime = self.runtime
        runtime.server.stop()
        runtime.retired = True
        runtime.announce()

    def drain(self, deadline: float) -> None:
        """Wait until no relayed call is under way, or the time of the monotonic clock has come."""
        with self._idle:
            self._idle.wait_for(lambda: not self._relayed, max(0.0, deadline - time.monotonic()))

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        with self._idle:
            if self._relayed >= MOST_RELAYED:
                raise Overloaded(f"the bridge {self.node_id!r} has {MOST_RELAYED} calls under way to {self.where}")
            self._relayed += 1
        try:
            yield
        finally:
            with self._idle:
                self._relayed -= 1
                if not self._relayed:
                    self._idle.notify_all()

    def _refused(self, error: DseError) -> RelayedFailure:
        """Say what kept a call from being answered, in words for somebody on the other bus."""
        if isinstance(error, RelayedFailure):
            return error
        kind = type(error)
        said = f"beyond the bridge {self.node_id!r}, on {self.where}: {error}"
        if isinstance(error, TransportUnavailable):
            # It broke while the request was sent: it may have got through.
            kind, said = NodeLost, f"{said}; whether the call ran is not known"
        code = kind.__name__ if kind in (NoSuchService, NodeLost, CallTimeout, Overloaded) else "RemoteError"
        return RelayedFailure(Failure(0, code, said, f"dse.errors.{kind.__name__}"))


class _RelayMethod(Method):
    """A method of a service on another bus: arguments and result pass through as they are."""

    def __init__(self, stand_in: StandIn, name: str, info: MethodInfo) -> None:
        self.name, self.owner, self.info = name, stand_in.service_id, info
        self.is_async, self.briefness = True, Briefness()
        self.function = self._relay
        self._stand_in = stand_in

    def bind(self, args: msgspec.Raw) -> dict[str, Any]:
        return {"args": args}

    def takes_broadcast(self, request: Request) -> bool:
        self._stand_in.broadcast(request)
        return False

    async def _relay(self, args: msgspec.Raw) -> msgspec.Raw | None:
        request = current_request()
        assert request is not None
        return await self._stand_in.relay(self.info, request, args)


class StandIn(DataService):
    """Stands in on one bus for a service that is native to another.

    source: the bridge's node on that bus.

    Lock: ``_counting`` protects ``calls`` and ``failed``.
    """

    def __init__(self, service_id: str, source: RelayNode, native: Native) -> None:
        super().__init__(service_id)
        self.source = source
        self.calls = 0
        """Calls, casts and broadcasts that were passed on."""
        self.failed = 0
        """Of these, those that came back without a result."""
        self._counting = threading.Lock()
        self._offer(native)

    def update(self, native: Native) -> None:
        """The service offers something else."""
        if self._offer(native) and (host := self._host) is not None and host.status == "running":
            host.runtime.announce()

    def _offer(self, native: Native) -> bool:
        """Offer these methods; say whether anything is new."""
        known = {name: method.info for name, method in self.methods.items()}
        if known == dict(native.methods) and self._stands_in_for == native.origin:
            return False
        self._stands_in_for = native.origin
        self.methods = MappingProxyType(
            {
                name: self.methods[name] if known.get(name) == info else _RelayMethod(self, name, info)
                for name, info in native.methods.items()
            }
        )
        return True

    def set_table(self, name: str, table: PublishedTable | None) -> None:
        """Publish a table in place of the one of that name, whose subscribers it takes over; None: only take it away.

        Calls for one name come one after the other.
        """
        with self._tables_lock:
            old = self.published_tables.get(name)
            rest = {each: published for each, published in self.published_tables.items() if each != name}
            self.published_tables = MappingProxyType(rest if table is None else {**rest, name: table})
            host = self._host
        if host is None or old is table:
            return
        if old is not None:
            host.runtime.publisher.remove(old)
        if table is not None:
            host.publish(table)
        else:
            host.tables_changed()

    async def relay(self, method: MethodInfo, request: Request, args: msgspec.Raw) -> msgspec.Raw | None:
        """Run a request that came for this service on this bus."""
        if request.relayed:
            message = f"node {request.node_id!r} relayed the call to a bus where {self.service_id!r} is relayed, too"
            raise RelayedFailure(Failure(0, "NoSuchService", message))
        self._count()
        if not request.id:
            self.source.relay_cast(self.service_id, request, args)
            return None
        try:
            return await self.source.relay(self.service_id, method, request, args)
        except RelayedFailure as failure:
            self._count(failed=True)
            _log.debug("%s.%s: %s", self.service_id, request.method, failure)
            raise

    def broadcast(self, request: Request) -> None:
        """Pass on what all replicas of the service on this bus have, unless another stand-in does."""
        host = self._host
        if request.relayed or host is None or not self._is_first(host.runtime.instance):
            return
        self._count()

        async def relay() -> None:
            set_current_request(request)  # its trace goes on
            self.source.relay_broadcast(self.service_id, request)

        with contextlib.suppress(RuntimeError):  # the node is stopping
            host.runtime.loop.submit(relay())

    def _is_first(self, own: str) -> bool:
        if self.service_id in self.node.control_bus.replicas:
            return False  # this bus has it, too, now
        beyond = {member.node_id for member in self.source.control_bus.members.values()}
        return not any(
            member.instance < own and self.service_id in member.stand_ins and member.node_id in beyond
            for member in self.node.control_bus.members.values()
        )

    def _count(self, *, failed: bool = False) -> None:
        with self._counting:
            if failed:
                self.failed += 1
            else:
                self.calls += 1
