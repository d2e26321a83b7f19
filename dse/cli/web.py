"""`dse web`: the bus over HTTP, and a page to look at it, from beside the bus."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from dse.cli.bus import CODES, observing, where_options

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `dse`."""
    parser = commands.add_parser(
        "web",
        help="the bus over HTTP: a page to look at it, rows and changes as JSON, calls if allowed",
        description="Serve the bus over HTTP until Ctrl-C: a page for people, JSON and server-sent events for programs "
        "(/api/openapi.json describes them). Without options it listens on this machine alone and allows no calls.",
        epilog=f"A token: dse web --make-token NAME --scope read,call >> tokens, then --tokens tokens. {CODES}",
    )
    where_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8420, metavar="N", help="default: 8420; 0 is any that is free")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a further name that requests may call it by"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="SERVICE.METHOD",
        help="a method that may be called; * stands for any part of a name; may be given several times",
    )
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="the tokens that it accepts")
    parser.add_argument("--make-token", metavar="NAME", help="make a token: print it, and the line for the file; end")
    parser.add_argument("--scope", default="read", metavar="SCOPE,…", help="of a new token: read, call, metrics")
    parser.set_defaults(run=_web)


def _web(options: argparse.Namespace) -> int:
    from dse.services.web import Gateway, Limits, make_token
    from dse.services.web.options import Options

    if options.make_token:
        token, line = make_token(options.make_token, options.scope)
        print(f"the token, shown this once: {token}", file=sys.stderr)
        print(line)
        return 0
    checked = Options(options.host, options.port, options.name, options.tokens, options.allow, Limits())
    ended = threading.Event()
    with observing(options) as observer, Gateway(observer, checked) as gateway:
        print(f"the bus {options.bus} is on {gateway.url} until Ctrl-C", file=sys.stderr, flush=True)
        _until_ended(ended)
    return 0


def _until_ended(ended: threading.Event) -> None:
    before = signal.signal(signal.SIGINT, lambda *_: ended.set())
    try:
        ended.wait()
    finally:
        signal.signal(signal.SIGINT, before)
