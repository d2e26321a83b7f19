"""The terminal a command runs in: single keys, resizing, being ended; and leaving it as it was."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

__all__ = ["Keys", "ended_cleanly"]

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program, so that what is open is closed; the exit code is the shell's (143)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not break the clean-up
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Keys:
    """Reads single keys from a terminal while entered, and is woken when the terminal's size changes.

    A stdin that is no terminal gives no keys. The main thread's own.
    """

    def __init__(self, stdin: TextIO | None = None) -> None:
        self._stdin = stdin if stdin is not None else sys.stdin
        self._mode: list[Any] | None = None
        self._fd = -1

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._resized = signal.signal(signal.SIGWINCH, lambda number, frame: None)
        self._continued = signal.signal(signal.SIGCONT, lambda number, frame: self._unbuffer())
        with contextlib.suppress(Exception):  # closed, or replaced by something that is no file
            if self._stdin.isatty():
                self._fd = self._stdin.fileno()
        self._unbuffer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGWINCH, self._resized)
        signal.signal(signal.SIGCONT, self._continued)
        if self._mode is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._mode)
        os.close(self._reading)
        os.close(self._writing)

    def wait(self, timeout: float) -> str:
        """Wait for keys, a signal or the time to pass; return the keys, "" for none."""
        watched = [self._reading] + ([self._fd] if self._fd >= 0 else [])
        ready, _, _ = select.select(watched, [], [], max(0.0, timeout))
        if self._reading in ready:
            os.read(self._reading, 1000)
        if self._fd in ready:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self._fd, 100)
            if not data:
                self._fd = -1  # the terminal is gone
            return data.decode(errors="replace")
        return ""

    def wake(self) -> None:
        """Let `wait` return; from any thread, while entered."""
        with contextlib.suppress(OSError):
            os.write(self._writing, b"!")

    def _unbuffer(self) -> None:
        if self._fd < 0:
            return
        import termios
        import tty

        try:
            mode = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSADRAIN)
        except (OSError, termios.error):
            return
        if self._mode is None:
            self._mode = mode
