"""The process that keeps the server of ``nats+local://name``: started by the first who uses it, owned by nobody.

Run as a script, with the standard library alone: ``python -I -S _keeper.py FOLDER NAME PROGRAM``. It says on stdout, as
JSON, that the server is up, that another keeper was there already, or what is wrong.

Rules:

1. Whoever uses the server is connected to the keeper's Unix socket, ``FOLDER/NAME.sock``. The kernel closes that
   connection when its process ends, however it ends: so the keeper always knows who is left. Over it goes what is
   needed to connect to the server: its port, and a token that is in no command line and in no environment.
2. While nobody has been connected for `_LINGER` seconds, server and keeper end.
3. When the keeper ends, however it ends, the kernel ends the server (PR_SET_PDEATHSIG). When the server ends, so does
   the keeper. Those who use it notice as they would with any server, and start the next one.
4. Starting and ending are done with ``FOLDER/NAME.lock`` locked, for that time only; the kernel unlocks it when its
   holder ends. So there is at most one keeper that can be connected to, and a socket that nobody listens on is stale.
5. Another user cannot enter the folder, and is turned away besides.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import secrets
import select
import signal
import socket
import struct
import sys
import time

_LINGER = 1.0  # seconds without anybody
_FIRST_LINGER = 5.0  # until the one who started us has connected
_START_TIMEOUT = 20.0
_MAX_PAYLOAD = 8 * 2**20 + 1024  # bytes: the largest frame in one piece
_PR_SET_PDEATHSIG = 1
# A user whose handler blocks is cut off for what waits (64 MiB), not for how long it waits.
_CONFIG = """\
host: 127.0.0.1
port: -1
max_payload: {max_payload}
write_deadline: "120s"
authorization {{ token: "{token}" }}
"""
_LISTENS = re.compile(rb"Listening for client connections on 127\.0\.0\.1:(\d+)")
_READY = b"Server is ready"


def main(folder: str, name: str, program: str) -> None:
    """Keep the server, in a process that is nobody's child, until nobody uses it."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    signal.alarm(int(_START_TIMEOUT) + 10)  # ends us while we wait for the lock, or for a server that never comes up
    try:
        keeper = Keeper(os.path.join(folder, name), program)
        said: dict[str, object] = {"started": True} if keeper.start() else {"there": True}
    except Exception as error:
        said = {"failed": str(error) or repr(error)}
    _say(said)
    signal.alarm(0)
    if "started" in said:
        keeper.keep()


def _say(what: dict[str, object]) -> None:
    try:
        os.write(1, json.dumps(what).encode() + b"\n")
    except OSError:
        pass  # who started us has gone; if nobody else comes, so shall we
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


class Keeper:
    """One server and those who use it. base: the path of its files, without their endings."""

    def __init__(self, base: str, program: str) -> None:
        self._base, self._program = base, program
        self._path = f"{base}.sock"
        self._lock = -1
        self._token = secrets.token_urlsafe(32)
        self._port = 0
        self._server = 0  # process id
        self._log = -1  # what the server says; at its end when the server is
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._inode = 0  # of the listener's file
        self._users: dict[int, socket.socket] = {}  # by file descriptor

    def start(self) -> bool:
        """Start the server, unless somebody else has: then False."""
        self._take_lock()
        try:
            if self._somebody_listens():
                return False
            _unlink(self._path)
            self._start_server()
            self._listener.bind(self._path)
            self._inode = os.stat(self._path).st_ino
            self._listener.listen(128)
            self._listener.setblocking(False)
            return True
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def keep(self) -> None:
        """Serve until nobody is left, or the server has ended."""
        linger = _FIRST_LINGER
        while True:
            poll = select.poll()
            for fd in (self._log, self._listener.fileno(), *self._users):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(None if self._users else linger * 1000)]
            if self._log in ready and not os.read(self._log, 65536):
                self._end()
                return
            for fd in ready:
                if fd == self._listener.fileno():
                    linger = _LINGER
                    self._take_in()
                elif fd in self._users and not self._still_there(fd):
                    linger = _LINGER
            if not ready and not self._users and self._leave():
                return

    def _take_lock(self) -> None:
        """Lock the file that is there now, for a keeper removes its own; wait for whoever starts or ends."""
        while True:
            if self._lock < 0:
                self._lock = os.open(f"{self._base}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self._lock_is_there():
                return
            os.close(self._lock)
            self._lock = -1

    def _lock_is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(f"{self._base}.lock"), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    # Those who use the server

    def _somebody_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._path)
            except OSError:
                return False
            return True

    def _take_in(self) -> None:
        """Tell everybody who waits how to connect to the server."""
        while True:
            try:
                user, _ = self._listener.accept()
            except OSError:
                return
            user.setblocking(False)
            try:
                _, uid, _ = struct.unpack("3i", user.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid != os.geteuid():
                    raise PermissionError
                user.send(json.dumps({"port": self._port, "token": self._token}).encode() + b"\n")
            except OSError:
                user.close()
            else:
                self._users[user.fileno()] = user

    def _still_there(self, fd: int) -> bool:
        try:
            if self._users[fd].recv(1024):
                return True
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._users.pop(fd).close()
        return False

    # The server

    def _start_server(self) -> None:
        config = f"{self._base}.conf"
        file = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, _CONFIG.format(max_payload=_MAX_PAYLOAD, token=self._token).encode())
            os.close(file)
            self._log, write = os.pipe()
            keeper = os.getpid()
            self._server = os.fork()
            if self._server == 0:
                self._become_server(keeper, write, config)
            os.close(write)
            self._port = self._wait_ready()
        except BaseException:
            if self._server:
                os.kill(self._server, signal.SIGKILL)
            raise
        finally:
            _unlink(config)

    def _become_server(self, keeper: int, log: int, config: str) -> None:
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == keeper:
                # One processor: a message then needs no second thread of the server to be woken up, which takes a
                # third off a call. It serves one machine's processes, and they are slower than it.
                os.execve(self._program, [self._program, "-c", config], {**os.environ, "GOMAXPROCS": "1"})
        except BaseException as error:
            os.write(2, f"{self._program} cannot be run: {error}".encode())
        finally:
            os._exit(127)

    def _wait_ready(self) -> int:
        """Return the port once the server can be connected to."""
        said, deadline = b"", time.monotonic() + _START_TIMEOUT
        while _READY not in said:
            if not select.select([self._log], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"nats-server was not ready within {_START_TIMEOUT:g} s")
            more = os.read(self._log, 65536)
            if not more:
                last = said.decode(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"nats-server ended while it started: {''.join(last) or 'it said nothing'}")
            said += more
        found = _LISTENS.search(said)
        if found is None:
            raise RuntimeError("nats-server does not say where it listens")
        return int(found[1])

    # Ending

    def _leave(self) -> bool:
        """End, unless somebody came at this moment or is just starting."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # who starts a keeper finds us, and comes
        self._take_in()
        if self._users:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            return False
        self._clear_away()
        return True

    def _end(self) -> None:
        """The server is gone: all who used it notice, and start the next one."""
        self._listener.close()
        signal.alarm(30)
        self._take_lock()
        self._clear_away()

    def _clear_away(self) -> None:
        """Remove what others find us by, and end the server; the lock is held, and let go of by ending."""
        self._listener.close()
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
            if self._lock_is_there():
                os.unlink(f"{self._base}.lock")
        except OSError:
            pass  # the folder was cleared
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
