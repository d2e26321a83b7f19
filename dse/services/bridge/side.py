"""One side of a bridge: its node on one bus, and the service by which it is known there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dse.core.relay import RelayNode
from dse.core.service import DataService
from dse.core.table import PublishedTable, Table

__all__ = ["BridgeService", "Side"]


class BridgeService(DataService):
    """A bridge as each of its two buses knows it: what it carries, and how it is.

    carried: a row for each service that the bridge knows of and direction. state: ``carried``, ``cut off`` (its bus is
    not reached), ``on both`` (each bus has its own), ``left out``, or ``failed``; reason says more. calls, failed and
    changes are counted since the service was carried. status: DEGRADED while one of the buses is not reached.
    """

    carried = Table("service", "source", "target", "state", "calls", "failed", "changes", "followed", "reason")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self._status: PublishedTable = self.add_table("status", "table", "state", "reason")

    def tell(self, rows: Iterable[tuple[Any, ...]], troubles: Iterable[str]) -> None:
        """Publish what is carried, and what is wrong."""
        self.carried.replace(rows)
        self._status.replace([("carried", "DEGRADED", trouble) for trouble in troubles] or [("carried", "OK", "")])


class Side:
    """One side of a bridge: see `RelayNode` for the arguments."""

    def __init__(self, url: str, *, name: str, on_peers: Callable[[], None], **options: Any) -> None:
        self.service = BridgeService(name)
        self.node = RelayNode(url, node_id=name, services=[self.service], on_peers=on_peers, **options)

    @property
    def where(self) -> str:
        """How messages call this side."""
        return self.node.where
