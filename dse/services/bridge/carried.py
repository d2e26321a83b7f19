"""A service on its way from its own bus to the other one: the stand-in there, with a lane for each table."""

from __future__ import annotations

import threading
import time

from dse.core.relay import Native, RelayNode, StandIn
from dse.core.service import DataService
from dse.core.table import PublishedTable
from dse.services.bridge.filters import Filters
from dse.services.bridge.lane import Lane

__all__ = ["CarriedService"]

LAST_CHANGES = 1.0
"""Seconds that the last changes of a service that went have to be passed on before its stand-in goes, too."""


class CarriedService(StandIn):
    """Stands in for a service of the bus of `source`; `follower` is the bridge's own service there.

    Lock: ``_lanes_lock`` protects ``_lanes`` and ``_closed``.
    """

    def __init__(
        self, service_id: str, source: RelayNode, native: Native, follower: DataService, filters: Filters
    ) -> None:
        super().__init__(service_id, source, native)
        self._follower = follower
        self._filters = filters
        self._lanes_lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._closed = False
        self._set_lanes(native)

    def update(self, native: Native) -> None:
        """The service offers something else: methods, tables, or columns of a table."""
        self._set_lanes(native)
        super().update(native)

    @property
    def lanes(self) -> list[Lane]:
        """The tables that are carried."""
        with self._lanes_lock:
            return list(self._lanes.values())

    def on_first_subscriber(self, table: str) -> None:
        """Follow the table on its own bus."""
        if (lane := self._lane(table)) is not None:
            lane.first_subscriber()

    def on_last_unsubscribe(self, table: str) -> None:
        """Follow the table no more."""
        if (lane := self._lane(table)) is not None:
            lane.last_unsubscribe()

    def await_last_changes(self) -> None:
        """Wait, a moment at most, until the last changes of publishers that are gone have been passed on."""
        deadline = time.monotonic() + LAST_CHANGES
        for lane in self.lanes:
            if lane.following:
                lane.stale.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Follow no table any more, and publish none."""
        with self._lanes_lock:
            self._closed = True
        for lane in self.lanes:
            lane.close()

    def _lane(self, table: str) -> Lane | None:
        with self._lanes_lock:
            return self._lanes.get(table)

    def _set_lanes(self, native: Native) -> None:
        wanted = {
            name: columns
            for name, columns in native.tables.items()
            if self._filters.carries_table(self.service_id, name)
        }
        with self._lanes_lock:
            if self._closed:
                return
            gone = [self._lanes.pop(name) for name in list(self._lanes) if name not in wanted]
            kept = list(self._lanes.values())
            new = [self._new_lane(name, columns) for name, columns in wanted.items() if name not in self._lanes]
            self._lanes |= {lane.name: lane for lane in new}
        for lane in gone:
            lane.close()
        for lane in kept:
            lane.columns_are(wanted[lane.name])
        for lane in new:
            lane.open()

    def _new_lane(self, name: str, columns: tuple[str, ...]) -> Lane:
        def show(table: PublishedTable | None) -> None:
            self.set_table(name, table)

        return Lane(self.service_id, name, columns, self._follower, show)
