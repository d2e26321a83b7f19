"""What the process was asked to do, for whoever is at work to see."""

from __future__ import annotations

import threading

__all__ = ["Requests"]


class Requests:
    """Asked for by the main thread, seen by the thread at work.

    Lock: ``_changed`` protects ``stop`` and ``_reload``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.stop = False
        self._reload = False

    def ask_stop(self) -> None:
        """Leave as soon as may be."""
        with self._changed:
            self.stop = True
            self._changed.notify_all()

    def ask_reload(self) -> None:
        """Read the file again; asked several times before it is taken, once is enough."""
        with self._changed:
            self._reload = True
            self._changed.notify_all()

    def take_reload(self) -> bool:
        """Return whether a reload was asked for; it is the caller's from now on."""
        with self._changed:
            asked, self._reload = self._reload, False
            return asked

    def wait(self, seconds: float) -> None:
        """Wait so long, or until something is asked for."""
        with self._changed:
            self._changed.wait_for(lambda: self.stop or self._reload, seconds)
