"""`dse describe`: what the services on a bus offer, written down."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from dse.cli.bus import CODES, bus_options, observing, print_json
from dse.cli.text import clean
from dse.errors import ConfigError

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `dse`."""
    parser = commands.add_parser(
        "describe",
        help="write down what the services of a bus offer: Markdown, AsyncAPI, a typed client",
        description="Describe the services of a bus: tables with their columns and the types found in them, methods "
        "with arguments and documentation. With --client, write a typed Python client of one service instead.",
        epilog=CODES,
    )
    parser.add_argument("services", metavar="SERVICE", nargs="*", help="these services only (default: all)")
    parser.add_argument(
        "--format", choices=("markdown", "asyncapi"), default="markdown", help="default: markdown; asyncapi is 3.0"
    )
    parser.add_argument("--client", metavar="SERVICE", help="a Python module with a typed client of this service")
    parser.add_argument("--async", dest="asynchronous", action="store_true", help="with --client: methods to await")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to this file (default: stdout)")
    bus_options(parser)
    parser.set_defaults(run=_describe)


def _describe(options: argparse.Namespace) -> int:
    from dse.describe import asyncapi, client_module, describe, markdown

    if options.client and (options.services or options.json or options.format != "markdown"):
        raise ConfigError("--client SERVICE goes without other services, --format and --json")
    if options.asynchronous and not options.client:
        raise ConfigError("--async is of --client")
    with observing(options) as observer:
        offered = describe(observer, [options.client] if options.client else options.services)
    if options.client:
        text = client_module(offered.services[0], asynchronous=options.asynchronous)
    elif options.json:
        if options.output is None:
            print_json(offered.to_dict())
            return 0
        text = json.dumps(offered.to_dict(), indent=2) + "\n"
    elif options.format == "asyncapi":
        text = json.dumps(asyncapi(offered), indent=2) + "\n"
    else:
        text = markdown(offered)
    if options.output is None:
        sys.stdout.write(text)
    else:
        _write(options.output, text)
    if not offered.services:
        print(f"no services on the bus {clean(options.bus)}", file=sys.stderr)
    return 0


def _write(path: Path, text: str) -> None:
    """Put the file there whole, or leave what was there."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as new:
            try:
                new.write(text)
                new.flush()
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(new.name, 0o666 & ~umask)
                os.replace(new.name, path)
            except BaseException:
                os.unlink(new.name)
                raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
