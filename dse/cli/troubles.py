"""Which services say of themselves that something is wrong: rows of their tables `status` that are DEGRADED.

Such a table has exactly the columns `STATUS_COLUMNS`, as those of the sources in `dse.services.sources` have.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from dse.cli.top_model import Trouble
from dse.core.info import DataServiceInfo
from dse.core.observer import Observer
from dse.core.replica import ReplicaState
from dse.core.table import Replica
from dse.errors import DseError

__all__ = ["STATUS_COLUMNS", "Troubles"]

STATUS = "status"
STATUS_COLUMNS = ("table", "state", "reason")
DEGRADED = "DEGRADED"
MOST = 100  # services that are followed


class Troubles:
    """Follows the tables `status` of the services that an observer sees. Ends with the observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._replicas: dict[str, Replica] = {}

    def follow(self, infos: Iterable[DataServiceInfo]) -> None:
        """Follow those of these services that have such a table, and no more those that are not among them."""
        wanted = sorted({info.service_id for info in infos if info.published_tables.get(STATUS) == STATUS_COLUMNS})
        for service_id in self._replicas.keys() - wanted:
            self._observer.unsubscribe(self._replicas.pop(service_id))
        for service_id in wanted[:MOST]:
            if service_id not in self._replicas:
                try:
                    self._replicas[service_id] = self._observer.subscribe(service_id, STATUS, patient=True)
                except DseError:
                    continue  # a name that is none

    def wait(self, timeout: float) -> None:
        """Wait until all are there, for so many seconds at most in all."""
        deadline = time.monotonic() + timeout
        for replica in self._replicas.values():
            try:
                replica.wait(ReplicaState.LIVE, max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return

    def found(self) -> list[Trouble]:
        """Return what is wrong, as far as it has been heard."""
        rows = [(service_id, row) for service_id, replica in self._replicas.items() for row in replica.rows]
        return sorted(
            (Trouble(service_id, str(row[0]), str(row[2])) for service_id, row in rows if row[1:2] == (DEGRADED,)),
            key=lambda trouble: (trouble.service, trouble.table),
        )
