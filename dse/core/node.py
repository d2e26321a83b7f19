"""`Node`: an addressable member of the bus, hosting services."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, ClassVar, Self

from dse.core import limits, tracing
from dse.core.controlbus import ControlBus
from dse.core.figures import FIGURES, ROWS, TYPES, is_figures, is_types
from dse.core.guard import require_own
from dse.core.info import BusStatus, identifier
from dse.core.keys import parse_keys
from dse.core.messages import CONTROL, broadcast_address, instance_address, service_address
from dse.core.methods import Method, encode_args, endpoint_methods
from dse.core.permissions import Permission, Permissions
from dse.core.plugins import load_transport
from dse.core.rpc import Outcome
from dse.core.runtime import Runtime
from dse.core.service import DataService, _Host
from dse.core.threads import Engine
from dse.core.transport import Address, Transport, TransportUrl
from dse.errors import (
    ConfigError,
    DseError,
    InvalidArguments,
    MissingExtra,
    NodeIdClash,
    NoSuchMethod,
    NoSuchService,
    ServiceExists,
    TransportUnavailable,
)

__all__ = ["Node", "Proxy"]

_log = logging.getLogger("dse.node")

STOP_PATIENCE = 10.0
"""Seconds that `Node.stop` gives running calls and hooks, in all."""

JOIN_PATIENCE = 10.0


class Node:
    """A member of the bus.

    url: which transport. node_id: unique on the bus; host name and a random part if None. bus: the name space on the
    broker. services: registered at start. heartbeat_interval: seconds. workers: threads that run RPC methods.
    max_pending: requests that may wait for them. keys: of the bus, each ``id:base64`` as ``dse keygen`` prints them;
    the first seals what this node sends, what is sealed with any of them is read, and nothing else; None for a bus
    without. permissions: who may do what, enforced by this node (``docs/permissions.md``); None allows everything to
    who has a key. node_endpoints: objects whose public methods `call_node` reaches.

    Raises `InvalidUrl`, `UnknownTransport`, `MissingExtra` or `ConfigError` for what cannot work; touches no broker
    before `start`. May be stopped and started again; every start is a new *instance*.

    Lock: ``_lock`` protects ``_services``, ``_hosts`` and ``_runtime``.
    """

    passive: ClassVar[bool] = False
    """Whether it only observes: the bus does not know it then."""

    natives_only: ClassVar[bool] = False
    """Whether what it calls and follows is never a stand-in for a service on another bus."""

    def __init__(
        self,
        url: str | TransportUrl,
        *,
        node_id: str | None = None,
        bus: str = "dse",
        services: Sequence[DataService] = (),
        heartbeat_interval: float = 1.0,
        workers: int = 32,
        max_pending: int = 1000,
        keys: Sequence[str] | None = None,
        permissions: Sequence[Permission] | None = None,
        node_endpoints: Sequence[object] = (),
    ) -> None:
        self.url = TransportUrl.parse(url)
        self._driver = self._load_driver()
        self.node_id = _node_id(node_id)
        self.bus = bus
        if not (isinstance(heartbeat_interval, int | float) and 0.01 <= heartbeat_interval <= 3600):
            raise ConfigError(f"heartbeat_interval is 0.01 to 3600 seconds, not {heartbeat_interval!r}")
        if workers < 1 or max_pending < 1:
            raise ConfigError("workers and max_pending are at least 1")
        self._keys = parse_keys(keys) if keys is not None else ()
        if self._keys:
            _check_security()
        self.heartbeat_interval = float(heartbeat_interval)
        self.workers = workers
        self.max_pending = max_pending
        self._rules = self._read_rules(permissions)
        self._endpoints: Mapping[str, Method] = endpoint_methods(list(node_endpoints))
        self._lock = threading.RLock()
        self._services: dict[str, DataService] = {}
        self._hosts: dict[str, _Host] = {}
        self._runtime: Runtime | None = None
        self._clash: NodeIdClash | None = None
        self.counters: Counter[str] = Counter()
        self.distrusted = threading.Event()
        """Set once a frame was dropped because its seal, or that it has one or none, is not to be believed."""
        self._driver(self.url, bus=bus, events=_Nobody())  # refuses an option it does not know
        for service in services:
            self._admit(service)

    def __repr__(self) -> str:
        return f"<Node {self.node_id!r} on {self.url}, bus {self.bus!r}>"

    # Life

    def start(self) -> None:
        """Connect, join the bus and start the services; returns once the node has joined and they run.

        Raises `TransportUnavailable` when the broker cannot be reached, `NodeIdClash` when a live node has this node's
        id, and what a service's ``on_start`` raises; the node is stopped then.
        """
        with self._lock:
            if self._runtime is not None:
                return
            self._clash = None
            tracing.look()
            runtime = self._runtime = self._make_runtime()
        self._warn_of_keys()
        try:
            runtime.open()
            if not runtime.control_bus.wait_joined(JOIN_PATIENCE + self.url_timeout()):
                self._raise_clash()
                raise DseError(f"node {self.node_id!r} did not hear itself on the bus within {JOIN_PATIENCE:g} s")
            for service in list(self._services.values()):
                self._start_service(service)
            runtime.wait_offered()
            self._raise_clash()
        except BaseException:
            self.stop()
            raise

    def url_timeout(self) -> float:
        """Seconds that connecting may take, by the URL's option or the default."""
        try:
            return float(self.url.options.get("connect_timeout", 5.0))
        except ValueError:
            return 5.0

    def stop(self) -> None:
        """Let running calls finish (within `STOP_PATIENCE` seconds), stop the services, say goodbye, disconnect.

        Idempotent. No thread, socket, queue or key of the node is left when it returns.
        """
        deadline = time.monotonic() + STOP_PATIENCE
        with self._lock:
            runtime = self._runtime
            if runtime is None:
                return
            first, runtime.closing = not runtime.closing, True
        if not first:
            runtime.closed.wait(STOP_PATIENCE * 2)
            return
        try:
            runtime.close(deadline)
        finally:
            with self._lock:
                self._runtime, self._hosts = None, {}
            runtime.closed.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # Services

    def register(self, service: DataService) -> None:
        """Host a service; on a started node it starts at once.

        Raises `ServiceExists` for a second of its id, and `Untrusted` when the node's own permissions deny it.
        """
        self._admit(service)
        if self._runtime is not None and not self._runtime.closing:
            try:
                self._start_service(service).wait_offered()
            except BaseException:
                with self._lock:
                    if self._services.get(service.service_id) is service:
                        del self._services[service.service_id]
                raise

    def unregister(self, service_id: str) -> DataService:
        """Stop a service and host it no more; return it. Raises `NoSuchService` when the node has none of that id."""
        with self._lock:
            service = self._services.pop(service_id, None)
            host = self._hosts.pop(service_id, None)
            runtime = self._runtime
        if service is None:
            raise NoSuchService(f"node {self.node_id!r} has no service {service_id!r}; it has: {self._service_names()}")
        if host is not None and runtime is not None:
            runtime.withdraw(service_id)
            host.stop(time.monotonic() + STOP_PATIENCE)
        return service

    @property
    def services(self) -> tuple[DataService, ...]:
        """The services on this node."""
        with self._lock:
            return tuple(self._services.values())

    def service(self, service_id: str) -> DataService:
        """Return the service of that id on this node; raise `NoSuchService` when it has none."""
        try:
            return self._services[service_id]
        except KeyError:
            raise NoSuchService(
                f"node {self.node_id!r} has no service {service_id!r}; it has: {self._service_names()}"
            ) from None

    # Permissions

    @property
    def permissions(self) -> tuple[Permission, ...] | None:
        """The rules that this node enforces; None when it allows everything."""
        return self._rules.rules if self._rules is not None else None

    def set_permissions(self, permissions: Sequence[Permission] | None) -> None:
        """Enforce other rules from now on; None allows everything.

        What peers publish is looked at anew, subscribers that are not allowed any more are told so, and those that are
        now come back; a call that runs is let finish. Raises `ConfigError` for rules that cannot be used, and
        `Untrusted` when they deny this node its own services; nothing is changed then.
        """
        with self._lock:
            rules = self._read_rules(permissions)
            for service in self._services.values():
                require_own(rules, self.node_id, self._key_id, service.service_id, service.published_tables)
            if rules == self._rules:
                return
            self._rules, runtime = rules, self._runtime
            if runtime is not None:
                runtime.guard.rules = rules
        self._warn_of_keys()
        if runtime is not None and not runtime.closing:
            runtime.permissions_changed()

    @property
    def _key_id(self) -> str:
        return self._keys[0].id if self._keys else ""

    def require_publish(self, service_id: str, tables: Iterable[str] = ()) -> None:
        """Raise `Untrusted` when the node's own permissions deny it a service, or a table of it."""
        require_own(self._rules, self.node_id, self._key_id, service_id, tables)

    def _warn_of_keys(self) -> None:
        """Say which rules can never apply: what is sealed with a key that this node has not, it cannot open."""
        unheld = self._rules.unheld_keys(self.key_ids) if self._rules is not None else []
        if unheld:
            named = ", ".join(f"permissions[{index}] ({key_id})" for index, key_id in unheld[:10])
            more = f" and {len(unheld) - 10} more" if len(unheld) > 10 else ""
            _log.warning(
                "node %r: rules name keys that it has not, and so cannot apply: %s%s; it has: %s",
                self.node_id, named, more, ", ".join(self.key_ids),
            )  # fmt: skip

    def _read_rules(self, permissions: Sequence[Permission] | None) -> Permissions | None:
        if permissions is None:
            return None
        if not self._keys:
            raise ConfigError(
                "permissions need keys: without keys a frame proves nothing, and whoever reaches the broker could say "
                "that it is any node"
            )
        rules = Permissions(permissions)
        why = rules.explain("join", self._key_id, self.node_id)
        if why:
            raise ConfigError(f"permissions: node {self.node_id!r} (key {self._key_id!r}) may not join itself: {why}")
        return rules

    # Calls

    def call(
        self,
        service_id: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        node_id: str | None = None,
    ) -> Any:
        """Call a method of any replica of a service, or of the one on `node_id`, and return its result.

        A replica on this node is preferred. `timeout` is in seconds. Raises `NoSuchService`, `NoSuchMethod`,
        `InvalidArguments`, `Overloaded`, `Untrusted`, `NodeLost`, `CallTimeout`, `RemoteError` (or an exception that
        was registered with `register_error`), `TransportUnavailable`, `FrameTooLarge`.
        """
        encoded = self._check_call(service_id, method, args, timeout)
        return self.runtime.client.call(service_id, method, encoded, timeout, node_id)

    def call_async(
        self,
        service_id: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        node_id: str | None = None,
    ) -> Future[Any]:
        """Like `call`, but return a future at once; what `call` raises is the future's exception."""
        try:
            encoded = self._check_call(service_id, method, args, timeout)
            return self.runtime.client.call_async(service_id, method, encoded, timeout, node_id)
        except DseError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    async def acall(
        self,
        service_id: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        node_id: str | None = None,
    ) -> Any:
        """Like `call`, for asyncio."""
        import asyncio

        return await asyncio.wrap_future(self.call_async(service_id, method, args, timeout=timeout, node_id=node_id))

    def call_all(
        self, service_id: str, method: str, args: Mapping[str, Any] | None = None, *, timeout: float = 10.0
    ) -> dict[str, Outcome]:
        """Call every known replica of a service at once; return what each answered, by node_id.

        Raises `NoSuchService` when none is known; what goes wrong with one replica is in its `Outcome`.
        """
        encoded = self._check_call(service_id, method, args, timeout)
        client = self.runtime.client
        futures = {
            node_id: client.call_async(service_id, method, encoded, timeout, node_id)
            for node_id in self._replica_nodes(service_id)
        }
        outcomes = {}
        for node_id, future in futures.items():
            error = future.exception(timeout + 5.0)
            outcomes[node_id] = Outcome(node_id, None if error else future.result(), error)
        return outcomes

    def cast(
        self, service_id: str, method: str, args: Mapping[str, Any] | None = None, *, node_id: str | None = None
    ) -> None:
        """Call a method of one replica without waiting for an answer; nothing is known of how it went.

        Raises `NoSuchService` when no replica is known, and what keeps the request from being sent.
        """
        encoded = self._check_call(service_id, method, args, CAST_TTL)
        runtime = self.runtime
        if node_id is not None:
            address = self._instance_of(node_id, service_id)
        elif service_id in self._hosts:
            address = runtime.wire.own_address
        elif (member := runtime.client.pick(service_id)) is not None:
            address = instance_address(member.instance)
        elif runtime.reports_undeliverable and self._keys:
            # Nobody runs what the bus gave to just anybody: as a call it is sent on to whoever took it.
            runtime.client.call_async(service_id, method, encoded, CAST_TTL, None)
            return
        elif runtime.reports_undeliverable:
            address = service_address(service_id)
        else:
            raise NoSuchService(f"no node offers the service {service_id!r}")
        runtime.client.cast(service_id, method, encoded, address, CAST_TTL)

    def broadcast(self, service_id: str, method: str, args: Mapping[str, Any] | None = None) -> None:
        """Call a method of all replicas of a service, on this node too, without waiting for answers."""
        encoded = self._check_call(service_id, method, args, CAST_TTL)
        self.runtime.client.cast(service_id, method, encoded, broadcast_address(service_id), CAST_TTL)

    def call_node(
        self, node_id: str, method: str, args: Mapping[str, Any] | None = None, *, timeout: float = 10.0
    ) -> Any:
        """Call a method of a node's endpoints. Raises `NodeLost` when no such node is on the bus."""
        encoded = self._check_call(None, method, args, timeout)
        return self.runtime.client.call(None, method, encoded, timeout, node_id)

    def broadcast_nodes(self, method: str, args: Mapping[str, Any] | None = None) -> None:
        """Call a method of all nodes' endpoints, of this one's too, without waiting for answers."""
        encoded = self._check_call(None, method, args, CAST_TTL)
        self.runtime.client.cast(None, method, encoded, CONTROL, CAST_TTL)

    def figures(self, timeout: float = 1.0) -> dict[str, dict[str, Any] | None]:
        """Ask all live nodes at once for what they count; return what each said within `timeout` seconds, by node_id.

        None stands for a node that did not answer, or has nothing to tell (of an earlier release). What is in an
        answer: `dse.core.runtime.Runtime.figures`. Raises `TransportUnavailable` when the broker is gone.
        """
        return {
            node_id: answer if is_figures(answer) else None for node_id, answer in self._ask(FIGURES, timeout).items()
        }

    def column_types(self, timeout: float = 1.0) -> dict[tuple[str, str], list[set[str]]]:
        """Ask all live nodes which types the columns of their tables hold; return them by (service_id, table).

        Types are the names of Python's, ``None`` for no value, as found in some rows of each table; a column of which
        nothing is known has none. What did not answer within `timeout` seconds is left out. Raises
        `TransportUnavailable` when the broker is gone.
        """
        found: dict[tuple[str, str], list[set[str]]] = {}
        for answer in self._ask(TYPES, timeout).values():
            for name, columns in answer.items() if isinstance(answer, dict) else ():
                if not is_types(name, columns):
                    continue  # a peer may say anything
                service_id, _, table = name.partition(":")
                known = found.setdefault((service_id, table), [set() for _ in columns])
                for types, more in zip(known, columns, strict=False):
                    types.update(more)
        return found

    def first_rows(
        self, service_id: str, table: str, most: int, timeout: float = 1.0
    ) -> tuple[list[tuple[Any, ...]], int] | None:
        """Ask a publisher for some rows of a table and how many there are, without following it; at most 1,000 rows.

        None: it is a release that cannot tell, or not known to anybody. Raises what `call_node` raises.
        """
        replicas = self.runtime.control_bus.replicas.get(service_id, ())
        node_id = next((each.node_id for each in replicas if table in each.services[service_id].published_tables), None)
        if node_id is None:
            return None
        encoded = encode_args(ROWS, {"service": service_id, "table": table, "most": most})
        try:
            said = self.runtime.client.call(None, ROWS, encoded, timeout, node_id)
        except NoSuchMethod:
            return None
        if not (isinstance(said, dict) and isinstance(said.get("rows"), list) and isinstance(said.get("count"), int)):
            return None  # a peer may say anything
        rows = [tuple(row) for row in said["rows"] if isinstance(row, list)]
        return rows, said["count"]

    def clashes(self) -> list[tuple[str, str]]:
        """Return (node_id, instance) of nodes that came while another of their name was there, the latest last."""
        return list(self.runtime.control_bus.clashes)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have something called after each change of the peers, their services and this node's connection.

        It is called from DSE's threads and has to return at once. Returns what ends it.
        """
        return self.runtime.control_bus.watch(callback)

    def _ask(self, method: str, timeout: float) -> dict[str, Any]:
        """Ask all live nodes at once; return what each answered within `timeout` seconds, or None, by node_id."""
        deadline = time.monotonic() + timeout
        client, none = self.runtime.client, encode_args(method, None)
        futures = {
            member.node_id: client.call_async(None, method, none, timeout, member.node_id)
            for member in list(self.control_bus.members.values())
        }
        wait(futures.values(), max(0.0, deadline - time.monotonic()) + 0.1)
        said: dict[str, Any] = {}
        for node_id, future in futures.items():
            error = future.exception() if future.done() else None
            said[node_id] = future.result() if future.done() and error is None else None
            if isinstance(error, TransportUnavailable):
                raise error
        return said

    def proxy(self, service_id: str, timeout: float = 10.0) -> Proxy:
        """Return an object whose methods are calls: ``node.proxy("host").kill(pid=42)``."""
        return Proxy(self, identifier("service_id", service_id), timeout)

    def wait_for(self, service_id: str, timeout: float = 10.0) -> None:
        """Wait until a live replica of the service is known; raise `TimeoutError` after `timeout` seconds."""
        self.runtime.control_bus.wait_for(identifier("service_id", service_id), timeout)
        self._raise_clash()

    def status(self) -> BusStatus:
        """Return this node's state and what it knows of its peers."""
        runtime = self.runtime
        own, peers = runtime.control_bus.statuses()
        counters, untrusted = dict(self.counters), runtime.hub.untrusted()
        return BusStatus(self.bus, str(self.url), runtime.connected, own, peers, counters, untrusted)

    @property
    def control_bus(self) -> ControlBus:
        """How this node knows the others."""
        return self.runtime.control_bus

    # The runtime's side

    @property
    def runtime(self) -> Runtime:
        """The running node's parts; raises `DseError` when it is not started, `NodeIdClash` when it had to stop."""
        runtime = self._runtime
        if runtime is None:
            self._raise_clash()
            raise DseError(f"node {self.node_id!r} is not started")
        return runtime

    @property
    def endpoints(self) -> Mapping[str, Method]:
        """The methods of the node's own endpoints."""
        return self._endpoints

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of this node's keys, the one that seals first; () without keys."""
        return tuple(key.id for key in self._keys)

    @property
    def hosts(self) -> Mapping[str, _Host]:
        """The running services."""
        return self._hosts

    def _load_driver(self) -> Callable[..., Transport]:
        return load_transport(self.url)

    def _make_runtime(self) -> Runtime:
        return Runtime(self, Engine(f"dse-{self.node_id}", self.workers))

    def peers_changed(self) -> None:
        """Others came, went, or offer something else; for subclasses, which must not block here."""

    def clashed(self, other: str) -> None:
        """An older node has this node's id: stop, from a thread of its own."""
        self._clash = NodeIdClash(
            f"node {self.node_id!r}: an older live node on bus {self.bus!r} has the same node_id "
            f"(its instance is {other}); this one has stopped",
            instance=other,
        )
        _log.error("%s", self._clash)
        runtime = self._runtime
        if runtime is not None and runtime.joined:
            threading.Thread(target=self.stop, name=f"dse-{self.node_id}-clash", daemon=True).start()

    def _raise_clash(self) -> None:
        if self._clash is not None:
            raise self._clash

    def _admit(self, service: DataService) -> None:
        if not isinstance(service, DataService):
            raise ConfigError(f"a service is a DataService, not {type(service).__name__}")
        with self._lock:
            if service.service_id in self._services:
                raise ServiceExists(f"node {self.node_id!r} hosts a service {service.service_id!r} already")
            if service.status != "stopped":
                raise ServiceExists(f"the service {service.service_id!r} runs on another node")
            self.require_publish(service.service_id, service.published_tables)
            if len(self._services) >= limits.SERVICES:
                raise ConfigError(f"node {self.node_id!r} hosts at most {limits.SERVICES:,} services")
            self._services[service.service_id] = service

    def _start_service(self, service: DataService) -> Runtime:
        runtime = self.runtime
        host = _Host(self, runtime, service)
        host.start()
        with self._lock:
            if self._runtime is not runtime or runtime.closing:
                late = True
            else:
                late = False
                self._hosts[service.service_id] = host
        if late:
            host.stop(time.monotonic() + 1.0)
            raise DseError(f"node {self.node_id!r} was stopped")
        runtime.offer(service.service_id)
        return runtime

    def _service_names(self) -> str:
        return ", ".join(sorted(self._services)) or "none"

    def _check_call(self, service_id: str | None, method: str, args: Mapping[str, Any] | None, timeout: float) -> Any:
        if service_id is not None and (type(service_id) is not str or not service_id.isidentifier()):
            identifier("service_id", service_id)
        if type(method) is not str or not method.isidentifier():
            identifier("method name", method)
        if not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
            raise InvalidArguments(f"timeout is a positive number of seconds, not {timeout!r}")
        return encode_args(f"{service_id}.{method}" if service_id is not None else method, args)

    def _replica_nodes(self, service_id: str) -> list[str]:
        members = self.runtime.control_bus.replicas.get(service_id, ())
        nodes = {member.node_id for member in members if service_id not in member.stand_ins}
        if service_id in self._hosts:
            nodes.add(self.node_id)
        if not nodes:  # another bus is one replica, however many bridges lead there
            bridges = {member.stand_ins[service_id]: member.node_id for member in members}
            nodes.update(bridges.values())
        if not nodes:
            raise NoSuchService(f"no node offers the service {service_id!r}")
        return sorted(nodes)

    def _instance_of(self, node_id: str, service_id: str) -> Address:
        if node_id == self.node_id:
            return self.runtime.wire.own_address
        member = self.runtime.control_bus.member(node_id)
        if member is None:
            raise NoSuchService(f"{service_id}: node {node_id!r} is not on the bus")
        self.runtime.client.require_published(member, service_id)
        return instance_address(member.instance)


CAST_TTL = 60.0
"""Seconds within which a request without an answer must have been delivered."""


class Proxy:
    """Calls the methods of a service as if they were its own: keyword arguments in, the result out."""

    def __init__(self, node: Node, service_id: str, timeout: float) -> None:
        self._node = node
        self._service_id = service_id
        self._timeout = timeout

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("__"):
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:
            if args:
                raise InvalidArguments(f"{self._service_id}.{method}: RPC arguments go by name")
            return self._node.call(self._service_id, method, kwargs, timeout=self._timeout)

        return call

    def __repr__(self) -> str:
        return f"<Proxy of {self._service_id!r}>"


class _Nobody:
    """Hears nothing: for a transport that is only made to check its URL."""

    def received(self, address: Address, frame: bytes) -> None: ...
    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: object) -> None: ...


def _check_security() -> None:
    try:
        import dse.core.seal  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"keys need a package that is not installed ({error.name or error}): pip install 'dse[security]'",
            extra="security",
        ) from error


def _node_id(given: str | None) -> str:
    if given is None:
        return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    if not isinstance(given, str) or not given or len(given) > 200 or not given.isprintable():
        raise ConfigError(f"a node_id is printable text of 1 to 200 characters, not {ascii(given)[:60]}")
    return given
