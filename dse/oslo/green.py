"""The driver for programs that eventlet has monkey-patched.

What such a program calls a thread is a coroutine on one real thread, and the standard library's sockets, locks and
clocks are eventlet's. DSE's transports need the real ones: they receive on threads of their own, and sleep in system
calls. So they get them:

- DSE's core and its transports are imported a second time, with the standard library as it was before it was patched.
  That copy is private to this module; the program's own modules stay as they are.
- What a transport tells, from its real threads, goes through a pipe to a coroutine, which tells the driver.
- What may wait for the broker runs on eventlet's real threads (`eventlet.tpool`), so that other coroutines go on.

All else of the driver runs in the program's coroutines, on eventlet's locks, and knows nothing of this. Such a program
may have real threads nevertheless, as those of `concurrent.futures` are: what they ask of the driver is done by a
coroutine of the thread that made it.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import eventlet
from eventlet import hubs, patcher, tpool

from dse.oslo import port
from dse.oslo.driver import DseDriver
from dse.oslo.port import Port, PortEvents

if TYPE_CHECKING:
    from types import ModuleType

    from dse.core.receiving import Awaited
    from dse.core.transport import Address, ConnectionState

__all__ = ["GreenDriver", "GreenPort"]

_log = logging.getLogger(__name__)

_UNPATCHED = ("os", "select", "socket", "_thread", "threading", "queue", "time")
_REIMPORTED = ("ssl", "selectors", "subprocess")  # they take what they use from those above when they are imported

_os = patcher.original("os")
_threading = patcher.original("threading")


class _Native:
    """The private copies of modules, which see the standard library unpatched."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `make` returned when it was called for this name, with the private copies in place."""
        if name not in self._made:
            with self._in_place():
                self._made[name] = make(*arguments)
        return self._made[name]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        if not self._modules:
            self._modules = {name: patcher.original(name) for name in _UNPATCHED}
        before = dict(sys.modules)
        # A package has its modules as attributes, and may keep what it took from them.
        packages = [(module, dict(vars(module))) for module in before.values() if hasattr(module, "__path__")]
        for name in before:
            if name.partition(".")[0] == "dse" or name in _REIMPORTED:
                del sys.modules[name]
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if before.get(name) is module or name in self._modules:
                    continue
                # A module in C cannot be had twice, and uses nothing that is patched.
                if str(getattr(module, "__file__", "")).endswith(".py"):
                    self._modules[name] = module
                    _post_logs(module)
            for name in self._modules:
                sys.modules.pop(name, None)
            sys.modules.update(before)
            for module, attributes in packages:
                for name in vars(module).keys() - attributes.keys():
                    delattr(module, name)


_native = _Native()


class GreenPort(Port):
    """See the top of this file, and `dse.oslo.port.Port`."""

    def __init__(self, url: Any, bus: str, events: PortEvents) -> None:
        super().__init__(url, bus, events)
        self._home = _threading.get_ident()
        self._bridge = _Bridge()
        self._bridge.start()

    def at_home(self, do: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Do something in the thread that made the port, and return or raise what it does."""
        if _threading.get_ident() == self._home:
            return do(*arguments, **keywords)
        done = _threading.Event()
        outcome: list[Any] = [None, None]

        def run() -> None:
            try:
                outcome[0] = do(*arguments, **keywords)
            except BaseException as error:
                outcome[1] = error
            finally:
                done.set()

        self._bridge.post(eventlet.spawn, run)
        done.wait()
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def open(self) -> None:
        self._bridge.start()
        self._try(tpool.execute, self._transport.open)

    def close(self) -> None:
        tpool.execute(self._transport.close)
        self._bridge.stop()

    def listen(self, addresses: Sequence[str]) -> None:
        self._try(tpool.execute, self._transport.listen_all, [self._address(text) for text in addresses])

    def unlisten(self, address: str) -> None:
        tpool.execute(self._transport.unlisten, self._address(address))
        self._bridge.flush()

    def wait(self, answer: Awaited, timeout: float) -> bool:
        return answer.wait(timeout)

    # From the transport's threads

    def received(self, address: Address, frame: bytes) -> None:
        self._bridge.post(super().received, address, frame)

    def undeliverable(self, address: Address, frame: bytes) -> None:
        self._bridge.post(super().undeliverable, address, frame)

    def state_changed(self, state: ConnectionState) -> None:
        self._bridge.post(super().state_changed, state)

    def _core(self) -> Any:
        return _native.once("", port.spi)

    def _load(self, url: Any) -> Any:
        return _native.once(url.driver, super()._load, url)


class GreenDriver(DseDriver):
    """See the top of this file, and `dse.oslo.driver.DseDriver`."""

    port_class = GreenPort

    def send(self, *arguments: Any, **keywords: Any) -> Any:
        return self._at_home(super().send, *arguments, **keywords)

    def send_notification(self, *arguments: Any, **keywords: Any) -> None:
        self._at_home(super().send_notification, *arguments, **keywords)

    def listen(self, *arguments: Any, **keywords: Any) -> Any:
        return self._at_home(super().listen, *arguments, **keywords)

    def listen_for_notifications(self, *arguments: Any, **keywords: Any) -> Any:
        return self._at_home(super().listen_for_notifications, *arguments, **keywords)

    def cleanup(self) -> None:
        self._at_home(super().cleanup)

    def _at_home(self, do: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        port = self._connection.port
        assert isinstance(port, GreenPort)
        return port.at_home(do, *arguments, **keywords)


class _Bridge:
    """From real threads to a coroutine: what is posted is called there, in order."""

    def __init__(self) -> None:
        self._items: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._ends: tuple[int, ...] = ()
        self._coroutine: Any = None
        self._signalled = False

    def start(self) -> None:
        if self._coroutine is None:
            self._ends = _os.pipe()
            for end in self._ends:
                _os.set_blocking(end, False)
            self._coroutine = eventlet.spawn(self._run, self._ends[0])

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Let it be called; from any thread."""
        self._items.append((call, arguments))
        if not self._signalled:
            self._signalled = True
            try:
                _os.write(self._ends[1], b"\0")
            except (OSError, IndexError):  # full, and so heard; or stopped
                pass

    def flush(self) -> None:
        """Return once all that was posted before has been called."""
        if self._coroutine is not None and eventlet.getcurrent() is not self._coroutine:
            done = eventlet.Event()
            self.post(done.send)
            done.wait(timeout=30)

    def stop(self) -> None:
        """Call what is left, and end the coroutine."""
        self.flush()
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.kill()
        ends, self._ends = self._ends, ()
        for end in ends:
            _os.close(end)

    def _run(self, end: int) -> None:
        while True:
            hubs.trampoline(end, read=True)
            try:
                _os.read(end, 512)
            except BlockingIOError:
                pass
            self._signalled = False  # before a look at what was posted, which is there before a look at this
            while self._items:
                call, arguments = self._items.popleft()
                try:
                    call(*arguments)
                except Exception:
                    _log.exception("what came over the bus could not be handled")


class _PostedLogger:
    """A logger for real threads: a program's handlers have eventlet's locks, which are no locks between threads."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def _log(self, level: int, text: str, *arguments: Any) -> None:
        _logs.post(self._logger.log, level, text, *arguments)

    def debug(self, text: str, *arguments: Any) -> None:
        self._log(logging.DEBUG, text, *arguments)

    def info(self, text: str, *arguments: Any) -> None:
        self._log(logging.INFO, text, *arguments)

    def warning(self, text: str, *arguments: Any) -> None:
        self._log(logging.WARNING, text, *arguments)

    def error(self, text: str, *arguments: Any) -> None:
        self._log(logging.ERROR, text, *arguments)

    def log(self, level: int, text: str, *arguments: Any) -> None:
        self._log(level, text, *arguments)

    def exception(self, text: str, *arguments: Any) -> None:
        failure = sys.exc_info()
        _logs.post(lambda: self._logger.error(text, *arguments, exc_info=failure))


_logs = _Bridge()


def _post_logs(module: ModuleType) -> None:
    """Let the loggers of a private copy post what they log."""
    _logs.start()
    for name, value in list(vars(module).items()):
        if isinstance(value, logging.Logger):
            setattr(module, name, _PostedLogger(value))
