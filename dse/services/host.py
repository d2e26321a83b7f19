"""The `host` service: what this machine really has, as tables. Needs psutil: ``pip install 'dse[demo]'``."""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Iterable
from typing import Any

from dse.core.info import identifier
from dse.core.methods import every, rpc
from dse.core.service import DataService
from dse.core.table import Table
from dse.errors import MissingExtra

try:
    import psutil
except ImportError as error:
    raise MissingExtra(
        "the host service lacks its package (psutil cannot be imported); install it with: pip install 'dse[demo]'",
        extra="demo",
    ) from error

__all__ = ["Host", "read_processes", "read_sockets"]

ProcessRow = tuple[int, str | None, str | None, float | None]
SocketRow = tuple[int, str, str, int | None, str | None, str | None]

# The kernel appends to a worker's name what it works on just now, which is no more its name.
_KERNEL_WORKER = re.compile(r"(kworker/u?\d+:\d+H?)[-+].*", re.DOTALL)


class Host(DataService):
    """Publishes the listening sockets and the processes of this machine, looked at every second.

    What the user that runs it may not see is None in a row: without privileges, the owner of another user's socket.
    Columns hold what stays the same while a process or socket lives; what keeps changing is asked for by RPC.
    """

    sockets = Table("port", "address", "protocol", "pid", "process", "user")
    processes = Table("pid", "name", "user", "started")

    def __init__(self, service_id: str = "host") -> None:
        super().__init__(identifier("service_id", service_id))

    @every(1.0)
    def poll(self) -> None:
        """Look at the machine and publish what is different."""
        processes = read_processes()
        self.processes.replace(processes)
        self.sockets.replace(read_sockets(processes))

    @rpc(idempotent=True)
    def summary(self) -> dict[str, Any]:
        """Return the machine's name, system, processors, memory (bytes), load (1 minute), and what the tables hold."""
        memory = psutil.virtual_memory()
        return {
            "host": _text(socket.gethostname()),
            "system": f"{platform.system()} {platform.release()}",
            "cpus": psutil.cpu_count() or 0,
            "load": round(os.getloadavg()[0], 2),
            "memory": memory.total,
            "available": memory.available,
            "processes": len(self.processes),
            "sockets": len(self.sockets),
        }

    @rpc(idempotent=True)
    def listeners(self, port: int) -> list[dict[str, Any]]:
        """Return the rows of `sockets` with that port, as mappings of column to value."""
        columns = self.sockets.columns
        return [dict(zip(columns, row, strict=True)) for row in self.sockets.rows if row[0] == port]

    @rpc(idempotent=True)
    def process(self, pid: int) -> dict[str, Any]:
        """Return what a process uses now: memory (bytes), cpu (seconds), threads; raise LookupError if there is none.

        The command line is left out: it may hold a password.
        """
        try:
            process = psutil.Process(pid)
            found = process.as_dict(["name", "username", "status", "memory_info", "cpu_times", "num_threads"])
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            raise LookupError(f"there is no process {pid}") from None
        memory, cpu = found["memory_info"], found["cpu_times"]
        return {
            "pid": pid,
            "name": _name(found["name"]),
            "user": _text(found["username"]),
            "status": found["status"],
            "memory": memory.rss if memory else None,
            "cpu": round(cpu.user + cpu.system, 2) if cpu else None,
            "threads": found["num_threads"],
        }


def read_processes() -> set[ProcessRow]:
    """Return a row for each process: pid, name, user, start time (seconds since 1970)."""
    rows: set[ProcessRow] = set()
    # Attributes that may not be read are None; a process that ends meanwhile is left out.
    for process in psutil.process_iter(["pid", "name", "username", "create_time"]):
        info = process.info
        started = info["create_time"]
        rows.add(
            (
                info["pid"],
                _name(info["name"]),
                _text(info["username"]),
                round(started, 2) if started is not None else None,
            )
        )
    return rows


def read_sockets(processes: Iterable[ProcessRow] = ()) -> set[SocketRow]:
    """Return a row for each listening TCP socket and each UDP socket without a peer.

    processes: rows of `read_processes`, for the names that belong to the pids.
    """
    owners = {pid: (name, user) for pid, name, user, _ in processes}
    rows: set[SocketRow] = set()
    for connection, pid in _connections():
        tcp = connection.type == socket.SOCK_STREAM
        if not connection.laddr or connection.status != (psutil.CONN_LISTEN if tcp else psutil.CONN_NONE):
            continue
        if not tcp and connection.raddr:
            continue
        name, user = owners.get(pid, (None, None)) if pid is not None else (None, None)
        rows.add((connection.laddr.port, connection.laddr.ip, "tcp" if tcp else "udp", pid, name, user))
    return rows


def _connections() -> list[tuple[Any, int | None]]:
    """Return every internet socket that may be seen, with the pid that has it (None when that may not be seen)."""
    try:
        return [(connection, connection.pid) for connection in psutil.net_connections("inet")]
    except psutil.AccessDenied:
        pass  # some systems show the whole machine to root only: then what our own processes have
    seen: list[tuple[Any, int | None]] = []
    for process in psutil.process_iter(["pid"]):
        try:
            seen.extend((connection, process.pid) for connection in process.net_connections("inet"))
        except psutil.Error:
            continue
    return seen


def _name(value: str | None) -> str | None:
    worker = _KERNEL_WORKER.fullmatch(value or "")
    return worker[1] if worker else _text(value)


def _text(value: str | None) -> str | None:
    """Return text that is valid Unicode: a process may name itself with any bytes."""
    if value is None:
        return None
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
