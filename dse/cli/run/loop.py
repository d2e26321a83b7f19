"""The process of `dse run`: its signals, the steps that they lead to, its exit code.

The main thread only waits: for a signal, for the end of a step, for the supervisor's watchdog to be due. What takes
time (reading the file, starting, reloading, stopping) is a *step*, on a thread of its own, one at a time. So a signal
is heard whatever the process is doing. A step that hangs does not keep it from ending: after `STEP_PATIENCE` seconds
the node is stopped beside it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from dse.cli.main import FAILED, MISUSED, describe, say_error
from dse.cli.run.file import LogOptions
from dse.cli.run.logs import Logs
from dse.cli.run.mailbox import Mailbox
from dse.cli.run.notify import Notifier
from dse.cli.run.problems import FileError
from dse.cli.run.redact import Redactor
from dse.cli.run.requests import Requests
from dse.cli.run.runner import Runner, Stopped
from dse.core.node import STOP_PATIENCE
from dse.errors import ConfigError, DseError, InvalidUrl, MissingExtra, TransportUnavailable, UnknownTransport

__all__ = ["MainLoop"]

_log = logging.getLogger("dse.run")

STEP_PATIENCE = 10.0
"""Seconds that a step under way gets to see that the process was told to stop."""

STOP_LIMIT = 2 * STOP_PATIENCE + 5.0
"""Seconds that the node gets to stop, after which the process ends without it."""

_UNUSABLE = (ConfigError, InvalidUrl, MissingExtra, TransportUnavailable, UnknownTransport)


class MainLoop:
    """Runs a file until it is told to stop. path: the file. wait: seconds to wait for a broker; None for ever."""

    def __init__(self, path: str, *, wait: float | None = None) -> None:
        self._events: Mailbox[_Event] = Mailbox()
        self._requests = Requests()
        self._redact = Redactor()
        self._logs = Logs(self._redact)
        self._notifier = Notifier.from_environment()
        self._runner = Runner(
            path,
            self._redact,
            self._logs,
            self._notifier,
            self._requests,
            wait=wait,
            ended=lambda error: self._events.put(_Ended(error)),
        )
        self._step: threading.Thread | None = None
        self._alive_due = 0.0

    def run(self) -> int:
        """Run; return the exit code: 0 when it was told to stop, 1 when it failed, 2 when it could not start."""
        signals = _Signals(self._events)
        signals.install()
        try:
            self._logs.apply(LogOptions())
            code = self._run(signals)
            return self._stop(code)
        finally:
            signals.uninstall()
            self._logs.close()
            self._events.close()

    def _run(self, signals: _Signals) -> int:
        self._begin(self._runner.start)
        ends: float | None = None
        while True:
            event = self._next(ends)
            if isinstance(event, _Signal) and event.number == signal.SIGHUP and not signals.terminal_closed:
                self._requests.ask_reload()
            elif isinstance(event, _Signal):
                if not self._requests.stop:
                    _log.info("%s: stopping", event.number.name)
                    self._requests.ask_stop()
                    ends = time.monotonic() + STEP_PATIENCE
            elif isinstance(event, _Ended):
                if not self._requests.stop:
                    return self._failed(event.error)
            elif isinstance(event, _Done):
                self._join_step()
                if event.error is not None and not isinstance(event.error, Stopped) and not self._requests.stop:
                    return self._failed(event.error)
            else:
                _log.warning("what was under way did not end within %g s; stopping without it", STEP_PATIENCE)
                return 0
            if self._step is None:
                if self._requests.stop:
                    return 0
                if self._requests.take_reload():
                    self._begin(self._runner.reload)

    def _stop(self, code: int) -> int:
        self._notifier.stopping("stopping")
        self._begin(self._runner.stop)
        ends = time.monotonic() + STOP_LIMIT
        while not isinstance(event := self._next(ends), _Done) or event.step is not self._step:
            if event is None:
                _log.error("the node did not stop within %g s; ending without it", STOP_LIMIT)
                return code or FAILED
        self._join_step()
        if event.error is not None:
            _log.error("the node did not stop as it should", exc_info=event.error)
            return code or FAILED
        if code != MISUSED:
            _log.info("stopped")
        return code

    def _failed(self, error: BaseException) -> int:
        """Say what ended it, and return the exit code."""
        if isinstance(error, FileError):
            for line in error.lines:
                say_error(line)
            return MISUSED
        if isinstance(error, DseError):
            text = describe(error) if isinstance(error, _UNUSABLE) else f"{type(error).__name__}: {error}"
            _log.error("%s", text, exc_info=error.__cause__ if not isinstance(error, _UNUSABLE) else None)
            return MISUSED if isinstance(error, _UNUSABLE) else FAILED
        _log.error("failed", exc_info=error)
        return FAILED

    # Steps and events

    def _begin(self, work: Callable[[], None]) -> None:
        def step() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # also a plugin's sys.exit
                error = raised
            self._events.put(_Done(threading.current_thread(), error))

        self._step = threading.Thread(target=step, name="dse-run-step", daemon=True)
        self._step.start()

    def _join_step(self) -> None:
        if self._step is not None:
            self._step.join()
            self._step = None

    def _next(self, ends: float | None) -> _Event | None:
        """Return the next event, None at the time `ends`; meanwhile tell the supervisor that the process lives."""
        period = self._notifier.watchdog
        while True:
            now = time.monotonic()
            if ends is not None and now >= ends:
                return None
            waits = [] if ends is None else [ends - now]
            if period is not None:
                if now >= self._alive_due:
                    self._notifier.alive()
                    self._alive_due = now + period / 2
                waits.append(max(0.001, self._alive_due - now))
            event = self._events.get(min(waits) if waits else None)
            if event is not None:
                return event


class _Event:
    """What the main thread waits for."""


class _Signal(_Event):
    def __init__(self, number: signal.Signals) -> None:
        self.number = number


class _Ended(_Event):
    """The node stopped by itself."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Done(_Event):
    """A step has ended."""

    def __init__(self, step: threading.Thread, error: BaseException | None) -> None:
        self.step = step
        self.error = error


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _Signals:
    """Turns signals into events. The second Ctrl-C ends the process at once."""

    def __init__(self, events: Mailbox[_Event]) -> None:
        self._events = events
        self._before: dict[signal.Signals, object] = {}
        self._woken_before = -1
        self._interrupted = False
        self._terminal = False  # whether this process is to end with its terminal

    @property
    def terminal_closed(self) -> bool:
        """Whether SIGHUP means that the terminal was closed in which this was started, rather than *reload*."""
        return self._terminal and not _has_terminal()

    def install(self) -> None:
        """Take the signals, when called by the main thread; others cannot."""
        if threading.current_thread() is threading.main_thread():
            self._terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # as nohup does
            self._woken_before = self._events.wake_for_signals()
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)

    def uninstall(self) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._before:
            signal.set_wakeup_fd(self._woken_before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                os._exit(128 + number)
            self._interrupted = True
        self._events.put(_Signal(signal.Signals(number)))
