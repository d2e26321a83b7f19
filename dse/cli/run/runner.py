"""The node of a run file and its services: started, changed where the file has changed, stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from dse.cli.run.file import RunFile, read_run_file
from dse.cli.run.logs import Logs
from dse.cli.run.notify import Notifier
from dse.cli.run.problems import FileError
from dse.cli.run.redact import Redactor
from dse.cli.run.reload import Changes, find_changes
from dse.cli.run.requests import Requests
from dse.cli.run.services import ServiceSpec
from dse.core.connection import backoff
from dse.core.node import Node
from dse.core.plugins import open_transport
from dse.core.transport import Address, ConnectionState
from dse.errors import DseError, NodeIdClash, TransportUnavailable

__all__ = ["Runner", "ServiceFailed", "Stopped"]

_log = logging.getLogger("dse.run")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0  # seconds between two attempts to reach a broker
_START_PATIENCE = 30.0  # seconds, beyond the wait, that a supervisor is asked for while a broker is waited for
_SERVICE_PATIENCE = 150.0  # ... while a service starts: its hook may take 60 s, to be offered 60 s more


class Stopped(Exception):
    """It was asked to stop before it was done."""


class _FileChanged(Exception):
    """It was asked to reload while it waited for a broker."""


class ServiceFailed(DseError):
    """A service could not be started."""

    def __init__(self, service_id: str, cause: BaseException) -> None:
        super().__init__(f"the service {service_id!r} did not start: {type(cause).__name__}: {cause}")


class Runner:
    """Runs what a file says. Its methods are for one thread at a time, but for `stop` beside one that hangs.

    wait: seconds to wait for a broker that is not there; None for ever. ended: called, from a thread of its own, when
    the node stops by itself, with what it stopped for.
    """

    def __init__(
        self,
        path: str,
        redact: Redactor,
        logs: Logs,
        notifier: Notifier,
        requests: Requests,
        *,
        wait: float | None,
        ended: Callable[[BaseException], None],
    ) -> None:
        self._path = path
        self._redact = redact
        self._logs = logs
        self._notifier = notifier
        self._requests = requests
        self._wait = wait
        self._ended = ended
        self._file: RunFile | None = None
        self._node: Node | None = None
        self._watch: threading.Thread | None = None
        self._name: str | None = None  # the node's, where the file gives none: drawn once, kept when the node restarts
        self._leaving = False  # the node is stopped by us
        self._running: dict[str, ServiceSpec] = {}

    def start(self) -> None:
        """Read the file and start all that it says.

        Raises `FileError` when it is wrong, `TransportUnavailable` when the broker did not come in time, `NodeIdClash`,
        `ServiceFailed`, and `Stopped`.
        """
        file = read_run_file(self._path, redact=self._redact)
        self._logs.apply(file.log)
        self._begin(file)
        self._notifier.ready(self._summary())

    def reload(self) -> None:
        """Read the file again, and change what runs where it has changed; a wrong file changes nothing.

        Raises `Stopped`, and whatever keeps the node from running at all.
        """
        assert self._file is not None
        self._notifier.reloading(f"reloading {self._path}")
        file = self._read_again()
        if file is not None:
            self._logs.apply(file.log)
            changes = find_changes(self._running, self._file.node, file.services, file.node)
            if not changes:
                _log.info("reloaded %s: the node and its services are as before", self._path)
                self._file = file
            elif changes.node:
                self._restart_node(file, changes.node)
            else:
                self._change_services(file, changes)
        self._notifier.ready(self._summary() + ("" if file is not None else f"; {self._path} is wrong, see the log"))

    def stop(self) -> None:
        """Stop the services and the node; nothing of them is left."""
        node, watch = self._node, self._watch
        self._leaving = True
        if node is not None:
            node.stop()
        if watch is not None and watch is not threading.current_thread():
            watch.join()
        self._node, self._watch = None, None
        self._running = {}

    # The node

    def _begin(self, file: RunFile) -> None:
        """Start a node and its services; takes the file as it is by then when it has to wait for the broker."""
        while True:
            self._file = file
            self._leaving = False
            self._node = node = file.node.make(self._name)
            self._name = node.node_id if file.node.node_id is None else self._name
            try:
                self._connect(node, file)
                break
            except _FileChanged:
                file = self._read_again() or file
                self._logs.apply(file.log)
        self._watch = threading.Thread(target=self._await_end, args=(node,), name="dse-run-watch", daemon=True)
        self._watch.start()
        for spec in file.services.values():
            self._check_stop()
            self._host(spec)
        _log.info("ready: %s", self._summary())

    def _connect(self, node: Node, file: RunFile) -> None:
        gives_up = None if self._wait is None else time.monotonic() + self._wait
        for delay in backoff(_FIRST_WAIT, longest=_LONGEST_WAIT):
            self._check_stop()
            try:
                node.start()
                return
            except TransportUnavailable as error:
                left = delay if gives_up is None else gives_up - time.monotonic()
                if left <= 0:
                    raise
                delay = min(delay, left)
                _log.warning("%s; waiting for the broker, next attempt in %.1f s", error, delay)
            self._notifier.status(f"waiting for {file.url}", patience=delay + _START_PATIENCE)
            self._requests.wait(delay)
            self._check_stop()
            if self._requests.take_reload():
                raise _FileChanged

    def _await_end(self, node: Node) -> None:
        error = DseError(f"node {node.node_id!r} was stopped by one of its services")
        try:
            node.runtime.closed.wait()
            node.runtime  # noqa: B018  raises what it stopped for
        except NodeIdClash as clash:
            error = clash
        except DseError:
            pass
        if not self._leaving:
            self._ended(error)

    def _restart_node(self, file: RunFile, names: Iterable[str]) -> None:
        assert self._file is not None
        before = replace(self._file, services=dict(self._running))
        _log.warning("reload: %s changed: the node restarts, with all its services", ", ".join(names))
        if file.node.transport != before.node.transport:
            try:
                open_transport(file.node.transport, bus=file.node.bus, events=_Nobody()).close()
            except DseError as error:
                _log.error("reload: %s; nothing is changed, the node stays where it is", error)
                return
        self.stop()
        try:
            self._begin(file)
        except Stopped:
            raise
        except Exception as error:
            said = str(error) if isinstance(error, DseError) else f"{type(error).__name__}: {error}"
            _log.error("reload: the node did not start: %s; it comes back as it was", said, exc_info=error.__cause__)
            self.stop()
            self._logs.apply(before.log)
            self._begin(before)

    # The services

    def _host(self, spec: ServiceSpec) -> None:
        assert self._node is not None
        self._notifier.status(f"starting {spec.service_id}", patience=_SERVICE_PATIENCE)
        try:
            self._node.register(spec.make())
        except (Exception, SystemExit) as error:  # a plugin is anybody's code
            raise ServiceFailed(spec.service_id, error) from error
        self._running[spec.service_id] = spec
        _log.info("the service %r (plugin %r) runs", spec.service_id, spec.plugin)

    def _unhost(self, service_id: str) -> None:
        assert self._node is not None
        self._running.pop(service_id, None)
        self._node.unregister(service_id)
        _log.info("the service %r has stopped", service_id)

    def _change_services(self, file: RunFile, changes: Changes) -> None:
        assert self._node is not None
        failed: list[str] = []
        for spec in file.services.values() if changes.permissions else ():
            if why := file.node.denied(spec.service_id, spec.cls._declared, self._node.node_id):
                _log.error("reload: %s; nothing is changed", why)
                return
        for service_id in changes.removed:
            self._check_stop()
            self._unhost(service_id)
        if changes.permissions and not self._apply_permissions(file):
            failed.append("permissions")
            assert self._file is not None
            file = replace(file, node=replace(file.node, permissions=self._file.node.permissions))
        for service_id in changes.changed:
            self._check_stop()
            before = self._running[service_id]
            self._unhost(service_id)
            if not self._try_host(file.services[service_id], "it comes back as it was"):
                failed.append(service_id)
                self._try_host(before, "it does not run; the next reload tries it again")
        for service_id in changes.added:
            self._check_stop()
            if not self._try_host(file.services[service_id], "the next reload tries it again"):
                failed.append(service_id)
        self._file = file
        parts = [
            f"{what} {', '.join(ids)}"
            for what, ids in (
                ("stopped", changes.removed),
                ("restarted", [each for each in changes.changed if each not in failed]),
                ("started", [each for each in changes.added if each not in failed]),
                ("enforces other", ["permissions"] if changes.permissions and "permissions" not in failed else []),
                ("failed:", failed),
            )
            if ids
        ]
        _log.log(logging.ERROR if failed else logging.INFO, "reloaded %s: %s", self._path, "; ".join(parts))

    def _apply_permissions(self, file: RunFile) -> bool:
        assert self._node is not None
        try:
            self._node.set_permissions(file.node.permissions)
        except DseError as error:
            _log.error("reload: %s; the permissions stay as they were", error)
            return False
        return True

    def _try_host(self, spec: ServiceSpec, otherwise: str) -> bool:
        try:
            self._host(spec)
        except ServiceFailed as error:
            _log.error("reload: %s; %s", error, otherwise, exc_info=error.__cause__)
            return False
        return True

    # What it says

    def _read_again(self) -> RunFile | None:
        try:
            return read_run_file(self._path, redact=self._redact)
        except FileError as error:
            for line in error.lines:
                _log.error("%s", line)
            _log.error("%s is wrong: what runs goes on as it is", self._path)
        except Exception:  # no file may end what runs
            _log.exception("%s cannot be checked: what runs goes on as it is", self._path)
        return None

    def _check_stop(self) -> None:
        if self._requests.stop:
            raise Stopped

    def _summary(self) -> str:
        assert self._node is not None
        assert self._file is not None
        ids = ", ".join(self._running) or "none"
        return f"node {self._node.node_id} on {self._file.url}, bus {self._file.node.bus}; services: {ids}"


class _Nobody:
    """Hears nothing: for a transport that is only opened to see that it can be."""

    def received(self, address: Address, frame: bytes) -> None: ...
    def undeliverable(self, address: Address, frame: bytes) -> None: ...
    def state_changed(self, state: ConnectionState) -> None: ...
