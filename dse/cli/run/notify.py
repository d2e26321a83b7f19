"""What a supervisor is told of the process's state: the protocol of systemd's ``sd_notify(3)``.

A datagram of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names; without it nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

__all__ = ["Notifier"]

_log = logging.getLogger("dse.run")

_PATIENCE = 1.0  # seconds that a supervisor gets to take a datagram


class Notifier:
    """Tells a supervisor the process's state; one that does not listen is no error.

    address: a path, or ``@name`` in the abstract name space; None for no supervisor. watchdog: seconds within which the
    supervisor wants to hear of the process, None if it does not.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog if address is not None else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Return one for the supervisor that the environment names; its variables are removed: they are not for
        children of this process."""
        environment = os.environ if environment is None else environment
        watchdog = _watchdog(environment)
        address = environment.pop("NOTIFY_SOCKET", None)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(name, None)
        if address is not None and not address.startswith(("/", "@")):
            _log.warning("NOTIFY_SOCKET is neither a path nor @name: nothing is told to the supervisor")
            address = None
        return cls(address or None, watchdog)

    def ready(self, status: str) -> None:
        """It has started, or reloaded, and does its work."""
        self._send(READY="1", STATUS=status)

    def reloading(self, status: str) -> None:
        """It reloads; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(RELOADING="1", MONOTONIC_USEC=str(now), STATUS=status)

    def stopping(self, status: str) -> None:
        """It is about to end."""
        self._send(STOPPING="1", STATUS=status)

    def status(self, status: str, *, patience: float | None = None) -> None:
        """What it does, in words. patience: seconds from now on that it still needs to start, reload or stop."""
        extend = {} if patience is None else {"EXTEND_TIMEOUT_USEC": str(int(patience * 1e6))}
        self._send(STATUS=status, **extend)

    def alive(self) -> None:
        """It has not hung; to be said at least every `watchdog` seconds."""
        if self.watchdog is not None:
            self._send(WATCHDOG="1")

    def _send(self, **values: str) -> None:
        if self._address is None:
            return
        text = "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in values.items())
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(_PATIENCE)
                out.sendto(text.encode("utf-8", "replace"), address)
        except (OSError, ValueError) as error:
            _log.debug("the supervisor was not told %s: %s", text.partition("\n")[0], error)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the period in seconds, unless it is meant for another process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return None
    usable = microseconds.isascii() and microseconds.isdigit() and 0 < len(microseconds) < 20
    return int(microseconds) / 1e6 or None if usable else None
