"""`Bridge`: joins two buses, so that services and tables of each appear on the other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from dse.core.info import identifier
from dse.errors import ConfigError, DseError, NodeIdClash
from dse.services.bridge.direction import Direction
from dse.services.bridge.filters import Filters
from dse.services.bridge.side import Side

__all__ = ["Bridge"]

_log = logging.getLogger("dse.bridge")

SETTLE = 1.0
"""Seconds after the start until something is carried: both buses are to tell first what they have."""

TELL = 1.0
"""Seconds between two looks at how the bridge is, for its own service."""

PATIENCE = 10.0
"""Seconds that calls under way have to end when the bridge does."""


class Bridge:
    """Joins two buses: a service that one of them has and the other has not appears there under its own name, with its
    tables and methods; what is called, cast and followed there goes to the bus that has it.

    url, to: the two brokers. bus, to_bus: the names of the buses; `to_bus` is `bus` if None. name: what the bridge is
    called on both, as a node and as a service that tells what is carried; an identifier, its own among all bridges.
    only, leave_out: patterns (`Filters`). one_way: carry services from the first bus to the second only. keys, to_keys:
    those of the buses, as `Node` takes them; `to_keys` is `keys` if None, and empty for a bus without keys.

    Raises what `Node` raises for a URL, and `ConfigError` for a name or pattern that cannot be one.

    Lock: ``_lock`` protects ``_running``.
    """

    def __init__(
        self,
        url: str,
        to: str,
        *,
        bus: str = "dse",
        to_bus: str | None = None,
        name: str = "bridge",
        only: Iterable[str] = (),
        leave_out: Iterable[str] = (),
        one_way: bool = False,
        keys: Sequence[str] | None = None,
        to_keys: Sequence[str] | None = None,
        heartbeat_interval: float = 1.0,
        settle: float = SETTLE,
    ) -> None:
        self.name = identifier("bridge's name", name)
        filters = Filters.of(only, leave_out)
        options: dict[str, Any] = {"name": name, "on_peers": self._look, "heartbeat_interval": heartbeat_interval}
        if to_keys is None:
            to_keys = keys
        self.one = Side(url, bus=bus, keys=keys or None, **options)
        self.other = Side(to, bus=to_bus if to_bus is not None else bus, keys=to_keys or None, **options)
        self.failed: DseError | None = None
        """What ended the bridge, when nobody asked it to end."""
        self._one_way = one_way
        self._filters = filters
        self._settle = settle
        self._directions: tuple[Direction, ...] = ()
        self._lock = threading.Lock()
        self._running = False
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Bridge {self.name!r} between {self.one.where} and {self.other.where}>"

    # Life

    def start(self) -> None:
        """Join both buses, and begin to carry.

        Raises what `Node.start` raises, as `NodeIdClash` where another bridge of this name is on one of them, and
        `ConfigError` when both are the same bus.
        """
        with self._lock:
            if self._running:
                return
            self._running = True
        try:
            self.one.node.start()
            self._join_other()
        except BaseException:
            self._stop_nodes()
            with self._lock:
                self._running = False
            raise
        self._ended.clear()
        self.failed = None
        directions = [Direction(self.one, self.other, self._filters, self._settle)]
        if not self._one_way:
            directions.append(Direction(self.other, self.one, self._filters, self._settle))
        self._directions = tuple(directions)
        for direction in directions:
            direction.start()
        self._teller = threading.Thread(target=self._tell, name=f"dse-{self.name}-tells", daemon=True)
        self._teller.start()
        _log.info("the bridge %r joins %s and %s", self.name, self.one.where, self.other.where)

    def _join_other(self) -> None:
        own = self.one.node.runtime.instance
        try:
            self.other.node.start()
        except NodeIdClash as error:
            if error.instance == own:
                raise ConfigError(
                    f"{self.one.where} and {self.other.where} are the same bus: "
                    "a bridge joins two brokers, or two buses (--bus, --to-bus) of one"
                ) from None
            raise

    def stop(self) -> None:
        """Take the stand-ins away, let calls under way end (within `PATIENCE` seconds), and leave both buses.

        Idempotent.
        """
        with self._lock:
            if not self._running:
                return
            self._running = False
        self._ended.set()
        if self._teller is not None and self._teller is not threading.current_thread():
            self._teller.join()
        for direction in self._directions:
            direction.stop()
        nodes = self.one.node, self.other.node
        deadline = time.monotonic() + PATIENCE
        try:
            # Both offer nothing any more before either goes: calls under way need both.
            for node in nodes:
                node.retire()
            for node in nodes:
                node.drain(deadline)
            for direction in self._directions:
                direction.release()
        except DseError as error:  # one of them had to stop before
            _log.debug("%s", error)
        self._stop_nodes()
        for direction in self._directions:
            direction.close()
        _log.info("the bridge %r has ended", self.name)

    def _stop_nodes(self) -> None:
        self.other.node.stop()
        self.one.node.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the bridge has ended; say whether it has. Afterwards `failed` says what ended it, if anything."""
        return self._ended.wait(timeout)

    # What it is like

    def carried(self) -> list[tuple[Any, ...]]:
        """Return the rows of the table `BridgeService.carried`."""
        found: list[tuple[Any, ...]] = []
        ways = ((self.one, self.other), (self.other, self.one))
        for direction, (source, target) in zip(self._directions, ways, strict=False):
            for row in direction.rows():
                counts = (row.calls, row.failed, row.changes, row.followed)
                found.append((row.service, source.where, target.where, row.state, *counts, row.reason))
        return found

    def _look(self) -> None:
        for direction in self._directions:
            direction.look()

    def _tell(self) -> None:
        """Tell both buses how the bridge is, and notice when one of its nodes had to stop."""
        while not self._ended.wait(TELL):
            try:
                rows = self.carried()
                cut_off = [side for side in (self.one, self.other) if not side.node.connected]
                for side in (self.one, self.other):
                    side.service.tell(rows, [f"{each.where} is not reached" for each in cut_off])
            except DseError as error:
                if not self._ended.is_set():
                    self.failed = error
                    _log.error("the bridge %r ends: %s", self.name, error)
                    self._ended.set()
            except Exception:
                _log.exception("the bridge %r cannot tell how it is", self.name)
