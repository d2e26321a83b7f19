"""The `host` source: what this machine really has, as tables. Needs psutil: ``pip install 'dse[host]'``."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from dse.core.methods import rpc
from dse.errors import ConfigError, MissingExtra
from dse.services.sources.base import Feed, Reading, Source, SourceState

try:
    import psutil

    from dse.services.sources import hosttables as read
except ImportError as error:
    raise MissingExtra(
        "the host source lacks its package (psutil cannot be imported); install it with: pip install 'dse[host]'",
        extra="host",
    ) from error

__all__ = ["TABLES", "Host"]

# name -> columns, reader, how many intervals from one look to the next: what seldom changes is looked at less often.
TABLES: dict[str, tuple[tuple[str, ...], Callable[[], Iterable[tuple[Any, ...]]], int]] = {
    "sockets": (("port", "address", "protocol", "pid", "process", "user"), read.read_sockets, 1),
    "connections": (
        ("address", "port", "remote_address", "remote_port", "pid", "process", "user"),
        read.read_connections,
        1,
    ),
    "processes": (("pid", "name", "user", "started"), read.read_processes, 1),
    "users": (("name", "terminal", "host", "started"), read.read_users, 5),
    "interfaces": (("name", "mac", "mtu", "up"), read.read_interfaces, 5),
    "addresses": (("interface", "family", "address", "netmask"), read.read_addresses, 5),
    "disks": (("mount", "device", "type", "size", "used", "read_only"), read.read_disks, 5),
}


class Host(Source):
    """Publishes what this machine has; docs/sources.md says what each table holds.

    interval: seconds from one look to the next; users, interfaces, addresses and disks are looked at every fifth time.
    tables: those wanted, by name; None: all. lazy: look only at what somebody subscribes to. max_backoff: as for
    `Source`. Raises `ConfigError`.

    What the user that runs it may not see is None in a row: without privileges, the owner of another user's socket.
    Columns hold what stays the same while a process, socket or disk is there; what keeps changing is asked for by RPC.
    """

    def __init__(
        self,
        service_id: str = "host",
        *,
        interval: float = 1.0,
        tables: Sequence[str] | None = None,
        lazy: bool = False,
        max_backoff: float = 60.0,
    ) -> None:
        wanted = list(TABLES) if tables is None else list(tables)
        for name in wanted:
            if name not in TABLES:
                raise ConfigError(f"there is no table {name[:60]!r}; there are: {', '.join(TABLES)}", key=("tables",))
        if not wanted or len(set(wanted)) < len(wanted):
            raise ConfigError("tables are to be one at least, each named once", key=("tables",))
        if not interval > 0:
            raise ConfigError(f"interval is a positive number of seconds, not {interval!r}", key=("interval",))
        super().__init__(service_id, [_Look(name, interval) for name in wanted], lazy=lazy, max_backoff=max_backoff)

    @rpc(idempotent=True)
    def summary(self) -> dict[str, Any]:
        """Return the machine's name, system, processors, memory (bytes), load (1 minute), and how much runs on it."""
        memory = psutil.virtual_memory()
        return {
            "host": read.text(socket.gethostname()),
            "system": f"{platform.system()} {platform.release()}",
            "cpus": psutil.cpu_count() or 0,
            "load": round(os.getloadavg()[0], 2),
            "memory": memory.total,
            "available": memory.available,
            "processes": len(self._rows("processes")),
            "sockets": len(self._rows("sockets")),
        }

    @rpc(idempotent=True)
    def listeners(self, port: int) -> list[dict[str, Any]]:
        """Return the rows of `sockets` with that port, as mappings of column to value."""
        columns = TABLES["sockets"][0]
        return [dict(zip(columns, row, strict=True)) for row in self._rows("sockets") if row[0] == port]

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
            "name": read.process_name(found["name"]),
            "user": read.text(found["username"]),
            "status": found["status"],
            "memory": memory.rss if memory else None,
            "cpu": round(cpu.user + cpu.system, 2) if cpu else None,
            "threads": found["num_threads"],
        }

    def _rows(self, table: str) -> Collection[tuple[Any, ...]]:
        """Return the rows of a table: those that are published, or of now where nobody wanted it so far."""
        worker = self._workers.get(table)
        if worker is not None and worker.state is SourceState.RUNNING:
            return worker.table.rows
        return set(TABLES[table][1]())


class _Look(Feed):
    """Looks at one of the tables."""

    def __init__(self, name: str, interval: float) -> None:
        columns, self._read, times = TABLES[name]
        super().__init__(name, columns, interval=interval * times)

    def read(self) -> Reading:
        return Reading(set(self._read()))
