"""The demo's door: a service that opens and closes a port, and declares which ports it may have."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading

from dse.core.methods import rpc
from dse.core.service import DataService
from dse.core.table import Table

__all__ = ["DECLARED", "Door"]

DECLARED = range(23000, 24000)
"""The ports that the door declares. Below those that systems give to whoever asks for any."""

_TRIES = 100


class Door(DataService):
    """Opens and closes a listening port of its own, one at a time.

    Its table `declared` says which process it is and which ports that may listen on, both ends included; it does not
    always keep to that. Lock: ``_lock`` protects ``_listener``.
    """

    declared = Table("pid", "first_port", "last_port")

    def __init__(self, service_id: str) -> None:
        super().__init__(service_id)
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None

    def on_start(self) -> None:
        self.declared.replace([(os.getpid(), DECLARED[0], DECLARED[-1])])

    @rpc
    def open(self, declared: bool = True) -> int:
        """Listen on a free loopback port, one that is declared or one that is not, instead of the last; return it."""
        listener = _listen(declared)
        with self._lock:
            before, self._listener = self._listener, listener
        if before is not None:
            before.close()
        port: int = listener.getsockname()[1]
        return port

    @rpc
    def close(self) -> bool:
        """Close the port; say whether one was open."""
        with self._lock:
            before, self._listener = self._listener, None
        if before is not None:
            before.close()
        return before is not None

    def on_stop(self) -> None:
        self.close()


def _listen(declared: bool) -> socket.socket:
    for _ in range(_TRIES):
        try:
            listener = socket.create_server(("127.0.0.1", random.choice(DECLARED) if declared else 0))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if (listener.getsockname()[1] in DECLARED) is declared:
            return listener
        listener.close()
    which = "from" if declared else "outside of"
    raise OSError(errno.EADDRINUSE, f"no free port was found {which} {DECLARED[0]} to {DECLARED[-1]}")
