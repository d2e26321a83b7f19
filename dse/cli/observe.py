"""Looking at a bus without being on it: `dse status`, `services`, `tables`, `watch`, `call`; and `dse transports`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dse.cli.text import clean
from dse.core.info import DataServiceInfo
from dse.core.observer import Observer
from dse.core.plugins import installed_transports, load_transport
from dse.core.replica import ReplicaState
from dse.core.table import Change
from dse.core.url import TransportUrl
from dse.errors import ConfigError, DseError, InvalidUrl

__all__ = ["add_commands"]

FAILED = 1
CODES = "exit codes: 0 done; 1 it failed on the way; 2 wrong arguments, no broker, or a missing package"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `dse`."""
    transports = commands.add_parser("transports", help="the installed drivers and their guarantees", epilog=CODES)
    _json_option(transports)
    transports.set_defaults(run=_transports)

    status = commands.add_parser("status", help="the nodes of a bus and how they are", epilog=CODES)
    _bus_options(status)
    status.set_defaults(run=_status)

    services = commands.add_parser("services", help="the services of a bus, their methods and tables", epilog=CODES)
    _bus_options(services)
    services.set_defaults(run=_services)

    tables = commands.add_parser(
        "tables", help="the tables of a bus: columns, who publishes, who follows", epilog=CODES
    )
    _bus_options(tables)
    tables.set_defaults(run=_tables)

    watch = commands.add_parser(
        "watch",
        help="the rows of a table as they come and go",
        description="The rows of a table, then each row that comes (+) or goes (-), until Ctrl-C.",
        epilog=CODES,
    )
    watch.add_argument("table", metavar="SERVICE:TABLE")
    watch.add_argument("--seconds", type=_positive, metavar="N", help="end by itself after N seconds")
    _bus_options(watch)
    watch.set_defaults(run=_watch)

    call = commands.add_parser(
        "call",
        help="call a method of a service",
        description="Call a method of any replica of a service and print its result.",
        epilog=f"A value is JSON if it can be read as such (5, true, null, [1]), text if not. {CODES}",
    )
    call.add_argument("service", metavar="SERVICE")
    call.add_argument("method", metavar="METHOD")
    call.add_argument("args", metavar="key=value", nargs="*", type=_argument)
    call.add_argument("--timeout", type=_positive, default=10.0, metavar="N", help="seconds (default: 10)")
    call.add_argument("--node", metavar="ID", help="the replica on this node")
    _bus_options(call)
    call.set_defaults(run=_call)


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: JSON")


def _bus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--transport",
        metavar="URL",
        default=os.environ.get("DSE_TRANSPORT"),
        help="the broker, as in redis://localhost (default: $DSE_TRANSPORT)",
    )
    parser.add_argument(
        "--bus", metavar="NAME", default=os.environ.get("DSE_BUS", "dse"), help="the bus (default: $DSE_BUS or dse)"
    )
    _json_option(parser)


@contextlib.contextmanager
def _observer(options: argparse.Namespace) -> Iterator[Observer]:
    if not options.transport:
        raise ConfigError("which broker? Say --transport URL, or set DSE_TRANSPORT")
    if TransportUrl.parse(options.transport).driver == "fake":
        raise InvalidUrl("fake:// is the bus within one process: there is nothing on it to see from here")
    with Observer(options.transport, bus=options.bus) as observer:
        yield observer


# What is installed


def _transports(options: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []
    for name in installed_transports():
        try:
            capabilities = load_transport(TransportUrl.parse(f"{name}://")).capabilities
        except DseError as error:
            found.append({"name": name, "problem": str(error)})
            continue
        found.append(
            {
                "name": name,
                "undeliverable": capabilities.undeliverable,
                "max_frame": capabilities.max_frame,
                "survives_broker_restart": capabilities.survives_broker_restart,
            }
        )
    if options.json:
        _print_json(found)
        return 0
    rows = [
        (each["name"], "cannot be used:", each["problem"], "")
        if "problem" in each
        else (
            each["name"],
            "reported" if each["undeliverable"] else "not reported",
            f"{each['max_frame'] / 2**20:g} MiB",
            "yes" if each["survives_broker_restart"] else "no",
        )
        for each in found
    ]
    _print_table(("transport", "undeliverable frames", "largest frame", "survives a restart of the broker"), rows)
    return 0


# The bus


def _status(options: argparse.Namespace) -> int:
    with _observer(options) as observer:
        status = observer.status()
    nodes = sorted(status.peers.values(), key=lambda node: node.node_id)
    if options.json:
        _print_json(
            {
                "bus": status.bus,
                "transport": status.transport,
                "connected": status.connected,
                "nodes": [
                    {
                        "node_id": node.node_id,
                        "instance": node.instance,
                        "state": node.state.value,
                        "last_heard": round(node.last_heard, 3),
                        "services": [info.service_id for info in node.services],
                    }
                    for node in nodes
                ],
            }
        )
        return 0
    print(clean(f"bus {status.bus} on {status.transport}: {len(nodes)} node{'s' * (len(nodes) != 1)}"))
    rows = [
        (
            node.node_id,
            node.state.value,
            f"{node.last_heard:.1f} s ago",
            ", ".join(info.service_id for info in node.services),
        )
        for node in nodes
    ]
    if rows:
        _print_table(("node", "state", "last heard", "services"), rows)
    return 0


def _infos(options: argparse.Namespace) -> list[DataServiceInfo]:
    with _observer(options) as observer:
        infos = [info for node in observer.status().peers.values() for info in node.services]
    return sorted(infos, key=lambda info: (info.service_id, info.node_id))


def _services(options: argparse.Namespace) -> int:
    infos = _infos(options)
    if options.json:
        _print_json([info.to_dict() for info in infos])
        return 0
    for info in infos:
        print(clean(f"{info.service_id} on {info.node_id}"))
        for name, columns in sorted(info.published_tables.items()):
            print(clean(f"  table  {name}({', '.join(columns)})"))
        for name, method in sorted(info.rpc_methods.items()):
            doc = method.doc.partition("\n")[0]
            print(clean(f"  method {name}{method.signature}{'  ' + doc if doc else ''}"))
        for service, table in info.subscribed_tables:
            print(clean(f"  follows {service}:{table}"))
    if not infos:
        print(f"no services on the bus {clean(options.bus)}", file=sys.stderr)
    return 0


def _tables(options: argparse.Namespace) -> int:
    infos = _infos(options)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for info in infos:
        for name, columns in info.published_tables.items():
            entry = {"table": f"{info.service_id}:{name}", "columns": list(columns), "publishers": [], "followers": []}
            found.setdefault((info.service_id, name), entry)["publishers"].append(info.node_id)
    for info in infos:
        for key in info.subscribed_tables:
            if key in found:
                found[key]["followers"].append(f"{info.service_id} on {info.node_id}")
    entries = [found[key] for key in sorted(found)]
    if options.json:
        _print_json(entries)
        return 0
    rows = [
        (each["table"], ", ".join(each["columns"]), ", ".join(each["publishers"]), ", ".join(each["followers"]))
        for each in entries
    ]
    if rows:
        _print_table(("table", "columns", "published by", "followed by"), rows)
    else:
        print(f"no tables on the bus {clean(options.bus)}", file=sys.stderr)
    return 0


def _watch(options: argparse.Namespace) -> int:
    service_id, colon, table = options.table.partition(":")
    if not (colon and service_id and table):
        raise ConfigError(f"a table is named SERVICE:TABLE, as in host:sockets, not {options.table!r}")
    ends = time.monotonic() + options.seconds if options.seconds else None
    with _observer(options) as observer:
        columns: tuple[str, ...] = ()

        def show(change: Change) -> None:
            nonlocal columns
            columns = columns or replica.columns
            for sign, rows in (("-", change.removed), ("+", change.added)):
                for row in sorted(rows, key=repr):
                    _show_row(sign, columns, row, as_json=options.json)

        state: ReplicaState | None = None
        replica = observer.subscribe(service_id, table, show)
        with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
            while ends is None or time.monotonic() < ends:
                if replica.state is not state:
                    state = replica.state
                    what = {
                        ReplicaState.SYNCING: "waiting for it" if not replica.columns else "catching up",
                        ReplicaState.LIVE: f"live, {len(replica)} rows",
                        ReplicaState.STALE: "stale: its publisher is gone, or the connection; these are the last rows",
                    }[state]
                    print(clean(f"{options.table}: {what}"), file=sys.stderr, flush=True)
                left = 1.0 if ends is None else min(1.0, max(0.01, ends - time.monotonic()))
                with contextlib.suppress(TimeoutError):
                    replica.wait(lambda replica, was=state: replica.state is not was, left)  # type: ignore[misc]
        observer.unsubscribe(replica)
        if state is ReplicaState.SYNCING and not replica.columns:
            print(clean(f"{options.table}: nobody published it"), file=sys.stderr)
            return FAILED
    return 0


def _show_row(sign: str, columns: Sequence[str], row: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        _print_json({"change": sign, "row": dict(zip(columns, row, strict=False))}, lines=True)
    else:
        cells = " ".join(f"{column}={_cell(cell)}" for column, cell in zip(columns, row, strict=False))
        print(clean(f"{sign} {cells}"), flush=True)


def _cell(cell: object) -> str:
    return cell if isinstance(cell, str) and cell and " " not in cell else repr(cell)


def _call(options: argparse.Namespace) -> int:
    with _observer(options) as observer:
        try:
            result = observer.call(
                options.service, options.method, dict(options.args), timeout=options.timeout, node_id=options.node
            )
        except DseError as error:
            print(clean(f"dse call: {type(error).__name__}: {error}"), file=sys.stderr)
            return FAILED
    if options.json or not isinstance(result, str):
        _print_json(result)
    else:
        print("\n".join(clean(line) for line in result.splitlines()))
    return 0


# Text in and out


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _print_json(value: object, *, lines: bool = False) -> None:
    print(json.dumps(value, default=_plain, indent=None if lines else 2), flush=lines)


def _plain(value: object) -> object:
    """Return what JSON has for a value that it has not."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return str(value)


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns; the last is as wide as it likes."""
    lines = [list(heads), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
