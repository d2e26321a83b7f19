"""Looking at a bus without being on it: `dse status`, `services`, `tables`, `call`; and `dse transports`.

`dse watch` and `dse top` are in modules of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from dse.cli.bus import CODES, FAILED, bus_options, json_option, observing, positive, print_json, print_table
from dse.cli.hints import among, did_you_mean
from dse.cli.text import clean
from dse.cli.top_view import NODES
from dse.cli.troubles import Troubles
from dse.core.info import DataServiceInfo, MethodInfo
from dse.core.observer import Observer
from dse.core.plugins import installed_transports, load_transport
from dse.core.url import TransportUrl
from dse.errors import ConfigError, DseError, NoSuchMethod, NoSuchService

__all__ = ["add_commands"]

HEARD = 0.5  # seconds that services have to say what is wrong with them


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `dse`."""
    transports = commands.add_parser("transports", help="the installed drivers and their guarantees", epilog=CODES)
    json_option(transports)
    transports.set_defaults(run=_transports)

    status = commands.add_parser("status", help="the nodes of a bus and how they are", epilog=CODES)
    bus_options(status)
    status.set_defaults(run=_status)

    services = commands.add_parser("services", help="the services of a bus, their methods and tables", epilog=CODES)
    bus_options(services)
    services.set_defaults(run=_services)

    tables = commands.add_parser(
        "tables", help="the tables of a bus: columns, who publishes, who follows", epilog=CODES
    )
    bus_options(tables)
    tables.set_defaults(run=_tables)

    watch = commands.add_parser(
        "watch",
        help="the rows of a table as they come and go",
        description="The rows of a table, then each row that comes (+) or goes (-), until Ctrl-C.",
        epilog=CODES,
    )
    watch.add_argument("table", metavar="SERVICE:TABLE")
    watch.add_argument("--seconds", type=positive, metavar="N", help="end by itself after N seconds")
    bus_options(watch)
    watch.set_defaults(run=_watch)

    top = commands.add_parser(
        "top",
        help="a live view of nodes, rates, latencies and tables",
        description="What the nodes do, as it happens: a live view in a terminal, plain lines in a pipe. "
        "Keys: < and > choose the column that nodes are sorted by, r reverses, q quits.",
        epilog=CODES,
    )
    top.add_argument("--interval", type=positive, default=2.0, metavar="N", help="seconds between looks (default: 2)")
    top.add_argument("--once", action="store_true", help="one look, as plain lines, and end")
    top.add_argument("--seconds", type=positive, metavar="N", help="end by itself after N seconds")
    heads = [column.head for column in NODES]
    top.add_argument("--sort", choices=heads, default="node", metavar="COLUMN", help=f"one of: {', '.join(heads)}")
    bus_options(top)
    top.set_defaults(run=_top)

    call = commands.add_parser(
        "call",
        help="call a method of a service",
        description="Call a method of any replica of a service and print its result.",
        epilog=f"A value is JSON if it can be read as such (5, true, null, [1]), text if not. {CODES}",
    )
    call.add_argument("service", metavar="SERVICE")
    call.add_argument("method", metavar="METHOD")
    call.add_argument("args", metavar="key=value", nargs="*", type=_argument)
    call.add_argument("--timeout", type=positive, default=10.0, metavar="N", help="seconds (default: 10)")
    call.add_argument("--node", metavar="ID", help="the replica on this node")
    bus_options(call)
    call.set_defaults(run=_call)


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
        print_json(found)
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
    print_table(("transport", "undeliverable frames", "largest frame", "survives a restart of the broker"), rows)
    return 0


# The bus


def _status(options: argparse.Namespace) -> int:
    with observing(options) as observer:
        status = observer.status()
        troubles = Troubles(observer)
        troubles.follow(info for node in status.peers.values() for info in node.services)
        troubles.wait(HEARD)
        degraded = troubles.found()
    nodes = sorted(status.peers.values(), key=lambda node: node.node_id)
    if options.json:
        print_json(
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
                        "stand_ins": sorted(node.stand_ins),
                    }
                    for node in nodes
                ],
                "degraded": [asdict(trouble) for trouble in degraded],
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
        print_table(("node", "state", "last heard", "services"), rows)
    for trouble in degraded:
        print(clean(f"DEGRADED {trouble.service}:{trouble.table}: {trouble.reason}"))
    return 0


def _infos(options: argparse.Namespace) -> tuple[list[DataServiceInfo], set[tuple[str, str]]]:
    """Return what is offered, and which (service_id, node_id) of it are stand-ins."""
    with observing(options) as observer:
        peers = observer.status().peers.values()
    infos = [info for node in peers for info in node.services]
    stand_ins = {(service_id, node.node_id) for node in peers for service_id in node.stand_ins}
    return sorted(infos, key=lambda info: (info.service_id, info.node_id)), stand_ins


def _services(options: argparse.Namespace) -> int:
    infos, stand_ins = _infos(options)
    if options.json:
        print_json([info.to_dict() for info in infos])
        return 0
    for info in infos:
        carried = (info.service_id, info.node_id) in stand_ins
        print(clean(f"{info.service_id} on {info.node_id}{', which carries it from another bus' if carried else ''}"))
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
    infos, _ = _infos(options)
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
        print_json(entries)
        return 0
    rows = [
        (each["table"], ", ".join(each["columns"]), ", ".join(each["publishers"]), ", ".join(each["followers"]))
        for each in entries
    ]
    if rows:
        print_table(("table", "columns", "published by", "followed by"), rows)
    else:
        print(f"no tables on the bus {clean(options.bus)}", file=sys.stderr)
    return 0


def _watch(options: argparse.Namespace) -> int:
    from dse.cli.watch import run_watch

    return run_watch(options)


def _top(options: argparse.Namespace) -> int:
    from dse.cli.top import run_top

    with observing(options) as observer:
        return run_top(options, observer)


def _call(options: argparse.Namespace) -> int:
    with observing(options) as observer:
        try:
            result = observer.call(
                options.service, options.method, dict(options.args), timeout=options.timeout, node_id=options.node
            )
        except ConfigError:
            raise  # a name that cannot be one
        except DseError as error:
            print(clean(f"dse call: {type(error).__name__}: {error}", 20_000), file=sys.stderr)
            _say_what_there_is(options, observer, error)
            return FAILED
    if options.json or not isinstance(result, str):
        print_json(result)
    else:
        print("\n".join(clean(line) for line in result.splitlines()))
    return 0


def _say_what_there_is(options: argparse.Namespace, observer: Observer, error: DseError) -> None:
    """Help whoever named what is not there."""
    peers = observer.status().peers
    infos = [info for node in peers.values() for info in node.services]
    if isinstance(error, NoSuchMethod):
        methods: dict[str, MethodInfo] = {}
        for info in infos:
            if info.service_id == options.service:
                methods.update(info.rpc_methods)
        hint = did_you_mean(options.method, methods)
        lines = [f"methods of {options.service}{hint or ':'}"]
        lines += [f"  {name}{method.signature}" for name, method in sorted(methods.items())]
    elif isinstance(error, NoSuchService) and options.node is not None and options.node not in peers:
        lines = [f"there are the nodes: {among(peers)}{did_you_mean(options.node, peers)}"]
    elif isinstance(error, NoSuchService):
        services = {info.service_id for info in infos}
        lines = [f"there are the services: {among(services)}{did_you_mean(options.service, services)}"]
    else:
        return
    print("\n".join(map(clean, lines)), file=sys.stderr)


# Text in


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value
