"""`Observer`: sees the bus without being on it."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any, ClassVar

from dse.core.figures import FIGURES, is_figures
from dse.core.methods import encode_args
from dse.core.node import STOP_PATIENCE, Node
from dse.core.replica import ReplicaState
from dse.core.service import DataService, _Host
from dse.core.table import Change, Replica
from dse.core.transport import TransportUrl
from dse.errors import ConfigError, DseError, TransportUnavailable

__all__ = ["Observer"]


class Observer(Node):
    """Looks at a bus from outside: for command-line tools, monitors and tests.

    It sends no heartbeat, is in nobody's `status`, offers nothing and clashes with nobody; it comes and goes without a
    trace. It asks all nodes what they offer when it starts, hears everything said to all, and ages its peers as a node
    does. It can call services and nodes, and follow tables: the publisher counts it as a subscriber then, and forgets
    one that was killed when its lease ends (75 s), for no heartbeat tells.

        with Observer("redis://localhost/0", bus="prod") as observer:
            for node_id, peer in observer.status().peers.items():
                print(node_id, peer.state, [info.service_id for info in peer.services])

    Raises what `Node` raises. In its own `status` it is ``LEFT``, and not among the ``nodes``.
    """

    passive: ClassVar[bool] = True

    def __init__(
        self,
        url: str | TransportUrl,
        *,
        bus: str = "dse",
        heartbeat_interval: float = 1.0,
        keys: Sequence[str] | None = None,
    ) -> None:
        node_id = f"observer-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        super().__init__(url, node_id=node_id, bus=bus, heartbeat_interval=heartbeat_interval, keys=keys)
        self._follower: _Host | None = None

    def start(self) -> None:
        """Connect, and wait until nodes had the time to answer; raises what `Node.start` raises."""
        if self._follower is not None:
            return
        super().start()
        follower = _Host(self, self.runtime, DataService("observer"))
        try:
            follower.start()
        except BaseException:
            self.stop()
            raise
        self._follower = follower

    def stop(self) -> None:
        """Follow no more tables and disconnect; idempotent."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.stop(time.monotonic() + STOP_PATIENCE)
        super().stop()

    def register(self, service: DataService) -> None:
        """Refuse: an observer is not on the bus. Raises `ConfigError`."""
        raise ConfigError("an Observer hosts no services: use a Node")

    def subscribe(
        self,
        service_id: str,
        table: str,
        callback: Callable[[Change], Any] | None = None,
        *,
        on_state: Callable[[ReplicaState], Any] | None = None,
        patient: bool = False,
    ) -> Replica:
        """Follow a table; `callback`, `on_state` and `patient` are those of `DataService.subscribe`.

        Raises `NoSuchTable`, `ConfigError`.
        """
        return self._following.subscribe(service_id, table, callback, on_state, patient)

    def unsubscribe(self, replica: Replica) -> None:
        """Follow a table no more."""
        self._following.unsubscribe(replica)

    def figures(self, timeout: float = 1.0) -> dict[str, dict[str, Any] | None]:
        """Ask all live nodes at once for what they count; return what each said within `timeout` seconds, by node_id.

        None stands for a node that did not answer, or has nothing to tell (of an earlier release). What is in an
        answer: `dse.core.runtime.Runtime.figures`. Raises `TransportUnavailable` when the broker is gone.
        """
        deadline = time.monotonic() + timeout
        client, none = self.runtime.client, encode_args(FIGURES, None)
        futures = {
            member.node_id: client.call_async(None, FIGURES, none, timeout, member.node_id)
            for member in list(self.control_bus.members.values())
        }
        wait(futures.values(), max(0.0, deadline - time.monotonic()) + 0.1)
        said: dict[str, dict[str, Any] | None] = {}
        for node_id, future in futures.items():
            error = future.exception() if future.done() else None
            answer = future.result() if future.done() and error is None else None
            said[node_id] = answer if is_figures(answer) else None
            if isinstance(error, TransportUnavailable):
                raise error
        return said

    @property
    def _following(self) -> _Host:
        if self._follower is None:
            raise DseError("the observer is not started")
        return self._follower
