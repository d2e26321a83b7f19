"""`DataService`: the unit of data and logic that users write."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from dse.core import tracing
from dse.core.info import DataServiceInfo, identifier
from dse.core.methods import Method
from dse.core.replica import ReplicaState
from dse.core.table import Change, PublishedTable, Replica, Table, is_async
from dse.core.threads import Timer
from dse.errors import ConfigError, DseError, NoSuchTable, TableError

if TYPE_CHECKING:
    from dse.core.node import Node
    from dse.core.runtime import Runtime

__all__ = ["DataService"]

_log = logging.getLogger("dse.service")

_SET_BY_INIT = frozenset({"_host", "_tables_lock", "published_tables", "methods", "service_id"})
_HOOKS = frozenset({"on_start", "on_stop", "on_first_subscriber", "on_last_unsubscribe"})


class DataService:
    """Publishes tables, subscribes to tables, offers RPC methods.

    Declare tables with `Table`, methods with `rpc`, periodic work with `every` and subscriptions with `on_change` in
    the body of a subclass. Callbacks (changes and hooks) run one at a time, in order; RPC methods run concurrently.

    A declaration whose name would hide an attribute of this class is refused with `ConfigError` where the subclass is
    defined, unless it is a method that overrides a hook; a table of such a name can be published with `add_table`.

    service_id: an identifier; several nodes may host the same id.
    """

    _declared: ClassVar[dict[str, Table]] = {}
    _rpc_names: ClassVar[tuple[str, ...]] = ()
    _periodic_names: ClassVar[tuple[str, ...]] = ()
    _change_names: ClassVar[tuple[str, ...]] = ()
    _stands_in_for: str = ""  # an instance on another bus that offers the service, if this is a bridge's stand-in

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        tables: dict[str, Table] = {}
        marked: dict[str, dict[str, None]] = {"rpc": {}, "every": {}, "on_change": {}}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                tables.pop(name, None)
                for kind, names in marked.items():
                    names.pop(name, None)
                    if hasattr(value, f"__dse_{kind}__"):
                        names[name] = None
                if isinstance(value, Table):
                    tables[name] = value
        for name in tables:
            _refuse_hiding(cls, "Table", name, f"or publish it with add_table({name!r}, …)")
        for kind, names in marked.items():
            for name in names:
                if name not in _HOOKS:
                    _refuse_hiding(cls, f"@{kind} method", name)
        cls._declared = tables
        cls._rpc_names = tuple(marked["rpc"])
        cls._periodic_names = tuple(marked["every"])
        cls._change_names = tuple(marked["on_change"])

    def __init__(self, service_id: str) -> None:
        self._runtime(identifier("service_id", service_id))

    def _runtime(self, service_id: str) -> None:
        self.service_id = service_id
        self._tables_lock = threading.Lock()  # protects what published_tables is bound to; the mappings never change
        self.published_tables: Mapping[str, PublishedTable] = MappingProxyType(
            {
                name: PublishedTable(service_id, name, table.columns, table.pending)
                for name, table in self._declared.items()
            }
        )
        self.methods: Mapping[str, Method] = MappingProxyType(
            {name: Method(service_id, getattr(self, name)) for name in self._rpc_names}
        )
        self._host: _Host | None = None

    def __getattr__(self, name: str) -> Any:
        if name in _SET_BY_INIT:
            raise ConfigError(f"{type(self).__name__}.__init__ must call super().__init__(service_id) first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.service_id!r} {self.status}>"

    # For users

    @property
    def node(self) -> Node:
        """The node the service runs on; raises `ConfigError` when it is on none."""
        return self._running().node

    @property
    def status(self) -> str:
        """``stopped``, ``starting``, ``running`` or ``stopping``."""
        return self._host.status if self._host is not None else "stopped"

    @property
    def info(self) -> DataServiceInfo:
        """What the service offers, as the control bus tells it."""
        host = self._host
        return DataServiceInfo(
            service_id=self.service_id,
            node_id=host.node.node_id if host is not None else "",
            published_tables={name: table.columns for name, table in self.published_tables.items()},
            subscribed_tables=tuple(host.subscribed()) if host is not None else (),
            rpc_methods={name: method.info for name, method in self.methods.items()},
        )

    def on_start(self) -> None:
        """Hook: the service starts; it is announced to the bus afterwards. May be ``async def``."""

    def on_stop(self) -> None:
        """Hook: the service stops; its node is still connected. May be ``async def``."""

    def on_first_subscriber(self, table: str) -> None:
        """Hook: somebody subscribes to the published table, and nobody did before."""

    def on_last_unsubscribe(self, table: str) -> None:
        """Hook: nobody subscribes to the published table any more, the dead included."""

    def call(
        self,
        service_id: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        node_id: str | None = None,
    ) -> Any:
        """Call a method of a service; see `Node.call`."""
        return self.node.call(service_id, method, args, timeout=timeout, node_id=node_id)

    def cast(
        self, service_id: str, method: str, args: Mapping[str, Any] | None = None, *, node_id: str | None = None
    ) -> None:
        """Call without an answer; see `Node.cast`."""
        self.node.cast(service_id, method, args, node_id=node_id)

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None = None,
        *,
        on_state: Callable[[ReplicaState], Any] | None = None,
        patient: bool = False,
    ) -> Replica:
        """Follow a table of another service (or of this one); `callback` gets each `Change`, in order.

        on_state: gets each new state of the replica, in order with the changes: LIVE comes after the rows that made it
        complete. patient: wait for the table, too, as for a service that is not there yet; otherwise `NoSuchTable` is
        raised when the service is there, on every known node, without such a table.

        Whether this node may follow the table its publisher decides, a moment later: `Replica.wait` raises `Untrusted`
        then, and `Replica.error` is one.
        """
        return self._running().subscribe(service_id, table, callback, on_state, patient)

    def unsubscribe(self, replica: Replica) -> None:
        """Follow a table no more; its callback is not called again (one that runs may end later)."""
        self._running().unsubscribe(replica)

    def add_table(self, name: str, *columns: str, rows: Iterable[Any] = (), pending: bool = False) -> PublishedTable:
        """Publish one more table, while the service runs too; return it.

        For tables that are known only at run time; those that are known earlier are declared as `Table`, which says
        what `pending` means. `rows` are in it before anybody sees it. Raises `ConfigError` for a name or column that is
        no identifier, `RowError`, `TableError` when there is a table of that name, and `Untrusted` when the node's own
        permissions deny it.
        """
        declared = Table(*columns)
        if self._host is not None:
            self._host.node.require_publish(self.service_id, [name])
        table = PublishedTable(self.service_id, identifier("table name", name), declared.columns, pending)
        table.insert(rows)
        with self._tables_lock:
            if name in self.published_tables:
                raise TableError(f"the service {self.service_id!r} has a table {name!r} already")
            self.published_tables = MappingProxyType({**self.published_tables, name: table})
            host = self._host
        if host is not None:
            host.publish(table)
        return table

    def remove_table(self, name: str) -> None:
        """Publish a table no more; its subscribers keep the last rows, STALE.

        Raises `NoSuchTable` when there is none of that name, and `TableError` for one that the class declares.
        """
        with self._tables_lock:
            table = self.published_tables.get(name)
            if table is None:
                known = ", ".join(sorted(self.published_tables)) or "none"
                raise NoSuchTable(f"the service {self.service_id!r} has no table {name!r}; it has: {known}")
            if name in self._declared:
                raise TableError(f"the table {name!r} is declared by {type(self).__name__}: it stays")
            rest = {each: published for each, published in self.published_tables.items() if each != name}
            self.published_tables = MappingProxyType(rest)
            host = self._host
        if host is not None:
            host.withdraw(table)

    def _running(self) -> _Host:
        if self._host is None:
            raise ConfigError(f"the service {self.service_id!r} is not running on a node")
        return self._host


def _refuse_hiding(cls: type, what: str, name: str, instead: str = "") -> None:
    if name in _SET_BY_INIT or hasattr(DataService, name):
        advice = f"choose another name{', ' if instead else ''}{instead}"
        raise ConfigError(f"{cls.__name__}.{name}: this {what} would hide DataService.{name}: {advice}")


class _Host:
    """Runs one service on a node.

    Lock: ``_lock`` protects ``_replicas``, ``_timers``, ``_running_tasks`` and ``_early``.
    """

    def __init__(self, node: Node, runtime: Runtime, service: DataService) -> None:
        self.node = node
        self.runtime = runtime
        self.service = service
        self.status = "starting"
        self.callbacks = runtime.engine.queue()
        self._lock = threading.Condition()
        self._replicas: list[Replica] = []
        self._timers: list[Timer] = []
        self._running_tasks = 0
        self._early: list[Callable[[], None]] | None = []  # hooks that wait for on_start to end
        self._released = False  # set once, before the tables are taken off the node

    # Life

    def start(self) -> None:
        """Attach tables, run the hook, subscribe, start periodic work; undo all when the hook raises."""
        service = self.service
        service._host = self
        try:
            for table in service.published_tables.values():
                self.runtime.publisher.add(table)
            if type(service).on_start is not DataService.on_start or "on_start" in vars(service):
                self.callbacks.run(lambda: self._invoke(service.on_start), timeout=60.0)
            with self._lock:
                early, self._early = self._early or [], None
                for job in early:
                    self.callbacks.put(job)
            for name in service._change_names:
                callback = getattr(service, name)
                for service_id, table_name in callback.__dse_on_change__:
                    self._follow(service_id, table_name, callback)
        except BaseException:
            self._release()
            raise
        self.status = "running"
        for name in service._periodic_names:
            self._schedule_periodic(getattr(service, name))

    def stop(self, deadline: float) -> None:
        """Stop periodic work, run the hook, unsubscribe, detach tables."""
        self.status = "stopping"
        with self._lock:
            timers, self._timers = self._timers, []
        for timer in timers:
            self.runtime.timers.cancel(timer)
        own = self.callbacks.thread is threading.current_thread()
        with self._lock:
            self._lock.wait_for(
                lambda: self._running_tasks == 0, max(0.0, deadline - time.monotonic()) if not own else 0
            )
        try:
            self.callbacks.run(
                lambda: self._invoke(self.service.on_stop), timeout=max(0.1, deadline - time.monotonic())
            )
        except Exception:
            _log.exception("%s: on_stop failed", self.service.service_id)
        self._release()

    def _release(self) -> None:
        self._released = True
        with self._lock:
            replicas, self._replicas = self._replicas, []
        for replica in replicas:
            self.runtime.hub.unsubscribe(replica)
        for table in self.service.published_tables.values():
            self.runtime.publisher.remove(table)
        self.status = "stopped"
        self.service._host = None

    # Tables that come and go while the service runs

    def publish(self, table: PublishedTable) -> None:
        """Publish a table, unless it has been removed, or the service stopped, meanwhile."""
        self.runtime.publisher.add(table)
        if self._released or self.service.published_tables.get(table.name) is not table:
            self.runtime.publisher.remove(table)
        self.tables_changed()

    def withdraw(self, table: PublishedTable) -> None:
        """Publish a table no more."""
        self.runtime.publisher.remove(table)
        self.tables_changed()

    def tables_changed(self) -> None:
        """Which tables there are has changed."""
        if self.status == "running":  # before, nothing is offered yet; afterwards, nothing is any more
            self.runtime.announce()
            self.runtime.hub.published()

    # Subscriptions

    def subscribed(self) -> list[tuple[str, str]]:
        """Return what the service subscribes to."""
        with self._lock:
            return sorted({(replica.service_id, replica.table) for replica in self._replicas})

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None,
        on_state: Callable[[ReplicaState], Any] | None = None,
        patient: bool = False,
    ) -> Replica:
        """Follow a table; raise `NoSuchTable` when its service is known to have none of that name."""
        identifier("service_id", service_id)
        identifier("table name", table)
        if not patient:
            self.runtime.check_table(service_id, table)
        return self._follow(service_id, table, callback, on_state)

    def _follow(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None,
        on_state: Callable[[ReplicaState], Any] | None = None,
    ) -> Replica:
        replica = self.runtime.hub.subscribe(service_id, table, callback, on_state, self.callbacks.put, self._guard)
        with self._lock:
            self._replicas.append(replica)
        self.runtime.announce()
        return replica

    def unsubscribe(self, replica: Replica) -> None:
        """Follow a table no more."""
        with self._lock:
            if replica not in self._replicas:
                return
            self._replicas.remove(replica)
        self.runtime.hub.unsubscribe(replica)
        self.runtime.announce()

    def subscribers_changed(self, table: str, first: bool) -> None:
        """Call the hook in turn, after ``on_start``."""
        hook = self.service.on_first_subscriber if first else self.service.on_last_unsubscribe

        def job() -> None:
            self._guard(hook, table)

        with self._lock:
            if self._early is not None:
                self._early.append(job)
            else:
                self.callbacks.put(job)

    # Running user code

    def _guard(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self._invoke(function, *args)
        except Exception as error:
            if tracing.active is not None:
                tracing.active.failed(error)
            _log.exception("%s: %s failed", self.service.service_id, getattr(function, "__name__", function))

    def _invoke(self, function: Callable[..., Any], *args: Any) -> None:
        if is_async(function):
            future: Future[Any] = self.runtime.loop.submit(function(*args))
            future.result()
        else:
            result = function(*args)
            if inspect.iscoroutine(result):
                self.runtime.loop.submit(result).result()

    def _schedule_periodic(self, function: Callable[[], Any]) -> None:
        period: float = function.__dse_every__  # type: ignore[attr-defined]
        timers = self.runtime.timers

        def run() -> None:
            with self._lock:
                if self.status != "running":
                    return
                self._running_tasks += 1
            began = time.monotonic()
            try:
                self._guard(function)
            finally:
                with self._lock:
                    self._running_tasks -= 1
                    self._lock.notify_all()
            # Kept to the beat while it can be; a run that took longer than a period is followed by one at once.
            timers.set(timer, max(time.monotonic(), began + period))

        timer = timers.timer(lambda: self._submit(run))
        with self._lock:
            self._timers.append(timer)
        timers.set(timer, time.monotonic())

    def _submit(self, job: Callable[[], None]) -> None:
        if not self.runtime.pool.submit(job):
            raise DseError("the node has stopped")
