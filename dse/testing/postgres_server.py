"""A private PostgreSQL server for tests: on loopback, with a password, without durability."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from dse.testing.process import BrokerError, PortHold, ServerProcess, find_program, make_folder

__all__ = ["PostgresServer"]

_SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "max_connections=50",
    "listen_addresses=127.0.0.1",
)
_INIT_TIMEOUT = 60.0


class PostgresServer:
    """One server on a free port; its superuser is ``dse`` with a random password.

    PostgreSQL refuses to run as root: then it runs as the user ``postgres``. Raises `BrokerError` when it is not
    installed or not up in time.
    """

    def __init__(self) -> None:
        places = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        program = find_program("postgres", package="postgresql", places=[f"{place}/postgres" for place in places])
        self.password = secrets.token_hex(8)
        self.folder = make_folder("postgres")
        self._hold = PortHold()
        self._log_start = 0  # where in the log the present start begins
        self.port = self._hold.port
        try:
            self._as_user = _as_user(self.folder)
            self._init(program)
            settings = [
                word for setting in (*_SETTINGS, f"unix_socket_directories={self.folder}") for word in ("-c", setting)
            ]
            self._server = ServerProcess(
                "postgres",
                [*self._as_user, program, "-D", str(self.folder / "data"), "-p", str(self.port), *settings],
                folder=self.folder,
                ready=self._answers,
            )
            self._server.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, with the password."""
        return f"postgresql+psycopg://dse:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it again after `stop`."""
        if self._server.running:
            return
        self._log_start = (self.folder / "server.log").stat().st_size
        self._server.start()

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self.resume()
        children = self._processes()
        self._server.kill()
        for pid in children:
            # A server process that outlived its master holds the data folder for a moment more.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its folder."""
        if hasattr(self, "_server"):
            self.stop()
        self._hold.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _init(self, program: str) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # the folder is closed to others
        initdb = Path(program).with_name("initdb")
        command = [*self._as_user, str(initdb), "-D", str(self.folder / "data"), "-U", "dse", "--no-sync"]
        command += [f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=_INIT_TIMEOUT, check=False
        )
        if done.returncode:
            raise BrokerError(f"initdb failed: {done.stderr[-500:]}")

    def _answers(self) -> bool:
        # An SSLRequest is answered with one byte as soon as connections are taken.
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as line:
            line.sendall(bytes.fromhex("0000000804d2162f"))
            answered = line.recv(1) in (b"N", b"S")
        return answered and "ready to accept connections" in self._log()

    def _log(self) -> str:
        return (self.folder / "server.log").read_bytes()[self._log_start :].decode(errors="replace")

    def _processes(self) -> list[int]:
        """Its master and the processes the master made, the master first."""
        try:
            master = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        except (OSError, IndexError, ValueError):
            return []
        return [master, *map(int, children)]


def _as_user(folder: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise BrokerError("PostgreSQL does not run as root, and there is no user postgres") from None
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
