"""Reads the machine through psutil: a function a table, each returning its rows."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

import psutil

__all__ = [
    "process_name",
    "read_addresses",
    "read_connections",
    "read_disks",
    "read_interfaces",
    "read_processes",
    "read_sockets",
    "read_users",
    "text",
]

# The kernel appends to a worker's name what it works on just now, which is no more its name.
_KERNEL_WORKER = re.compile(r"(kworker/u?\d+:\d+H?)[-+].*", re.DOTALL)
_FAMILIES = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_STEP = 5  # percent, to which the use of a disk is rounded

Owner = Callable[[int | None], tuple[str | None, str | None]]


def read_processes() -> set[tuple[int, str | None, str | None, float | None]]:
    """Return a row for each process: pid, name, user, start time (seconds since 1970)."""
    rows = set()
    # Attributes that may not be read are None; a process that ends meanwhile is left out.
    for process in psutil.process_iter(["pid", "name", "username", "create_time"]):
        info = process.info
        started = info["create_time"]
        started = round(started, 2) if started is not None else None
        rows.add((info["pid"], process_name(info["name"]), text(info["username"]), started))
    return rows


def read_sockets() -> set[tuple[int, str, str, int | None, str | None, str | None]]:
    """Return a row for each listening TCP socket and each UDP socket without a peer."""
    rows = set()
    owner = _owners()
    for connection, pid in _connections():
        tcp = connection.type == socket.SOCK_STREAM
        if not connection.laddr or connection.status != (psutil.CONN_LISTEN if tcp else psutil.CONN_NONE):
            continue
        if not tcp and connection.raddr:
            continue
        rows.add((connection.laddr.port, connection.laddr.ip, "tcp" if tcp else "udp", pid, *owner(pid)))
    return rows


def read_connections() -> set[tuple[str, int, str, int, int | None, str | None, str | None]]:
    """Return a row for each established TCP connection, from either end's side where both are here."""
    owner = _owners()
    return {
        (c.laddr.ip, c.laddr.port, c.raddr.ip, c.raddr.port, pid, *owner(pid))
        for c, pid in _connections()
        if c.status == psutil.CONN_ESTABLISHED and c.laddr and c.raddr
    }


def read_users() -> set[tuple[str | None, str | None, str | None, float]]:
    """Return a row for each login: user, terminal, the host it came from, when (seconds since 1970)."""
    return {
        (text(user.name), text(user.terminal) or None, text(user.host) or None, user.started) for user in psutil.users()
    }


def read_interfaces() -> set[tuple[str | None, str | None, int, bool]]:
    """Return a row for each network interface: name, MAC address, MTU (bytes), whether it is up."""
    macs = {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == psutil.AF_LINK
    }
    return {(text(name), macs.get(name), each.mtu, each.isup) for name, each in psutil.net_if_stats().items()}


def read_addresses() -> set[tuple[str | None, str, str, str | None]]:
    """Return a row for each IP address of an interface: interface, ipv4 or ipv6, address, netmask."""
    return {
        (text(name), _FAMILIES[address.family], address.address, address.netmask)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family in _FAMILIES
    }


def read_disks() -> set[tuple[str | None, str | None, str, int | None, int | None, bool]]:
    """Return a row for each mounted disk: mount, device, type, size (bytes), used (percent), whether read-only.

    used goes in steps of 5: it would be another row every second otherwise. What may not be looked at is None.
    """
    rows = set()
    for part in psutil.disk_partitions(all=False):
        size = used = None
        try:
            usage = psutil.disk_usage(part.mountpoint)
        except OSError:
            pass
        else:
            size, used = usage.total, int(usage.percent // _STEP) * _STEP
        read_only = "ro" in part.opts.split(",")
        rows.add((text(part.mountpoint), text(part.device), part.fstype, size, used, read_only))
    return rows


def process_name(value: str | None) -> str | None:
    """Return a process's name without what is not always part of it."""
    worker = _KERNEL_WORKER.fullmatch(value or "")
    return worker[1] if worker else text(value)


def text(value: str | None) -> str | None:
    """Return text that is valid Unicode: a process may name itself with any bytes."""
    if value is None:
        return None
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _owners() -> Owner:
    """Return a function from a pid to the name and user of its process, each looked up once."""
    known: dict[int, tuple[str | None, str | None]] = {}

    def owner(pid: int | None) -> tuple[str | None, str | None]:
        if pid is None:
            return None, None
        if pid not in known:
            try:
                found = psutil.Process(pid).as_dict(["name", "username"])
                known[pid] = process_name(found["name"]), text(found["username"])
            except psutil.Error:
                known[pid] = None, None
        return known[pid]

    return owner


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
