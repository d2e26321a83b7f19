"""The bridge as a service of a run file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from dse.core.service import DataService
from dse.services.bridge.bridge import Bridge

__all__ = ["BridgePlugin"]

_log = logging.getLogger("dse.bridge")


class BridgePlugin(DataService):
    """Joins two buses: what one of them has and the other has not appears there. See docs/bridge.md.

    url, to: the brokers. bus, to_bus: the buses there; the second is called as the first if nothing else is said. only,
    leave_out: patterns, SERVICE or SERVICE:TABLE. one_way: carry from the first to the second only. keys, to_keys: of
    the buses; the second has those of the first if nothing is said, and none if the list is empty. On both the bridge
    is a node and a service with this service's id.
    """

    def __init__(
        self,
        service_id: str,
        url: str,
        to: str,
        bus: str = "dse",
        to_bus: str | None = None,
        only: Sequence[str] = (),
        leave_out: Sequence[str] = (),
        one_way: bool = False,
        keys: Sequence[str] = (),
        to_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(service_id)
        self._bridge = Bridge(
            url,
            to,
            bus=bus,
            to_bus=to_bus,
            name=service_id,
            only=only,
            leave_out=leave_out,
            one_way=one_way,
            keys=keys,
            to_keys=to_keys,
        )
        self._watching: threading.Thread | None = None

    def on_start(self) -> None:
        """Join the buses."""
        self._bridge.start()
        self._watching = threading.Thread(target=self._watch, name=f"dse-{self.service_id}-watch", daemon=True)
        self._watching.start()

    def on_stop(self) -> None:
        """Leave them."""
        self._bridge.stop()
        if self._watching is not None:
            self._watching.join()

    def _watch(self) -> None:
        self._bridge.wait()
        if self._bridge.failed is not None:
            _log.error("%s carries nothing any more: %s", self.service_id, self._bridge.failed)
