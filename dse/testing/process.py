"""Server processes for tests: on a port that is ours, with a folder of their own, and ended for certain."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["BrokerError", "PortHold", "ServerProcess", "find_program", "make_folder"]

_GUARD = Path(__file__).with_name("_guard.py")
_LOG_LINES = 25


class BrokerError(RuntimeError):
    """A broker for tests could not be had; the message says why and what to do."""


def find_program(name: str, *, package: str, places: Sequence[str] = ()) -> str:
    """Return the path of the program `name`, looked up in PATH and then in `places`.

    Raises `BrokerError` that names the distribution's `package` to install.
    """
    found = shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)
    if found is None:
        raise BrokerError(
            f"{name} is not installed: install it (`apt-get install {package}`, or `make brokers`), or name a running "
            "broker in DSE_TEST_REDIS_URL / DSE_TEST_RABBIT_URL; `make test-fake` needs no broker"
        )
    return found


class PortHold:
    """A loopback port that no other program is given while this object lives.

    The socket is bound but does not listen: connecting is refused, and a server that binds with SO_REUSEADDR (all do)
    can listen there. So a server that was killed finds its port free when it comes back, and two test runs never race
    for one.
    """

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    @classmethod
    def with_offset(cls, offset: int) -> tuple[PortHold, PortHold]:
        """Hold a port and the one `offset` above it (Redis Cluster's bus port is 10000 above the port)."""
        for _ in range(200):
            with contextlib.suppress(OSError):
                low = cls(random.randrange(20000, 65535 - offset))
                try:
                    return low, cls(low.port + offset)
                except OSError:
                    low.close()
        raise BrokerError(f"found no two free ports {offset} apart")

    def close(self) -> None:
        self._socket.close()


class ServerProcess:
    """One server: started, killed, paused, started again in the same folder.

    command: program and arguments. ready: called until it returns true; may raise OSError while the server is not
    there yet. deadline: seconds until a start counts as failed. The log is ``<folder>/server.log``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        deadline: float = 60.0,
    ) -> None:
        self.name = name
        self.folder = folder
        self._command = list(command)
        self._env = dict(env) if env is not None else None
        self._ready = ready
        self._deadline = deadline
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self.pid: int | None = None
        _LIVE.add(self)

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; raise `BrokerError` with its last log lines if it does not."""
        for attempts_left in (2, 1, 0):
            try:
                self._start()
                return
            except BrokerError as error:
                self.kill()
                text = str(error).lower()
                if not attempts_left or ("already in use" not in text and "eaddrinuse" not in text):
                    raise
                time.sleep(0.3)  # the killed predecessor's socket is still going away

    def _start(self) -> None:
        if self.running:
            return
        log_file = self.folder / "server.log"
        log_start = log_file.stat().st_size if log_file.exists() else 0
        arguments = [str(os.getpid()), str(log_file), str(self.folder), *self._command]
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd=self.folder,
            env=self._env,
        )
        assert self._guard.stdout is not None
        with self._guard.stdout as pipe:
            self.pid = int(pipe.readline() or 0) or None
        until = time.monotonic() + self._deadline
        while True:
            with contextlib.suppress(OSError):
                if self._ready():
                    return
            if not self.running:
                raise BrokerError(f"{self.name} ended while it started:\n{self._log_tail(log_file, log_start)}")
            if time.monotonic() > until:
                tail = self._log_tail(log_file, log_start)
                raise BrokerError(f"{self.name} did not answer within {self._deadline:g} s:\n{tail}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server at once (SIGKILL) and return when it is gone."""
        if self._guard is None or self._owner != os.getpid():
            return
        self.signal(signal.SIGKILL)
        try:
            self._guard.wait(10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait(10)
        self._guard = None
        self.pid = None

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def pause(self) -> None:
        """Stop the process in its tracks: its sockets stay open, nothing answers once this has returned."""
        self.signal(signal.SIGSTOP)
        # A thread that runs on the other processor stops a moment later, and may answer until then.
        until = time.monotonic() + 5.0
        while self.running and not self._stands_still() and time.monotonic() < until:
            time.sleep(0.001)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def _stands_still(self) -> bool:
        try:
            states = [
                task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{self.pid}/task").glob("*/stat")
            ]
        except (OSError, IndexError):
            return False  # a thread ended at this moment
        return set(states) <= {"T", "t"}

    @staticmethod
    def _log_tail(log_file: Path, start: int) -> str:
        try:
            text = log_file.read_bytes()[start:].decode(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-_LOG_LINES:]) or "(the log is empty)"


# Ended at exit, in the process that started them. (A process that is killed cannot do this: _guard.py does it then.)
_LIVE: weakref.WeakSet[ServerProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for server in list(_LIVE):
        if server._owner == os.getpid():
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)


def make_folder(name: str) -> Path:
    """A new folder for a server's data, short enough for a socket path."""
    return Path(tempfile.mkdtemp(prefix=f"dse-{name}-"))
