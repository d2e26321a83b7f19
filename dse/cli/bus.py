"""What the commands that look at a bus share: their options, the observer, and how they print."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from dse.cli.keys import keys_option, read_key_file, words_of_distrust
from dse.cli.terminal import ended_cleanly
from dse.cli.text import clean
from dse.core.observer import Observer
from dse.core.url import TransportUrl
from dse.errors import ConfigError, InvalidUrl

__all__ = [
    "CODES",
    "FAILED",
    "bus_options",
    "json_option",
    "observing",
    "positive",
    "print_json",
    "print_table",
    "quiet_log",
    "where_options",
]

FAILED = 1
HEARTBEAT = 1.2
"""Seconds within which a node of a small bus is heard."""

CODES = (
    "exit codes: 0 done; 1 it failed on the way, or what was named is not on the bus; "
    "2 wrong arguments, no broker, or a missing package"
)


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="for programs: JSON")


def bus_options(parser: argparse.ArgumentParser) -> None:
    """Add what leads to a bus, and `--json`."""
    where_options(parser)
    json_option(parser)


def where_options(parser: argparse.ArgumentParser) -> None:
    """Add what leads to a bus."""
    parser.add_argument(
        "--transport",
        metavar="URL",
        default=os.environ.get("DSE_TRANSPORT"),
        help="the broker, as in redis://localhost (default: $DSE_TRANSPORT)",
    )
    parser.add_argument(
        "--bus", metavar="NAME", default=os.environ.get("DSE_BUS") or "dse", help="the bus (default: $DSE_BUS or dse)"
    )
    keys_option(parser)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep DSE's log off stderr: the command itself says what is wrong, once, and a live view owns the terminal."""
    log, handler = logging.getLogger("dse"), logging.NullHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def observing(options: argparse.Namespace) -> Iterator[Observer]:
    """Look at the bus that the options lead to; SIGTERM ends it as cleanly as anything else."""
    if not options.transport:
        raise ConfigError("which broker? Say --transport URL, or set DSE_TRANSPORT")
    if TransportUrl.parse(options.transport).driver == "fake":
        raise InvalidUrl("fake:// is the bus within one process: there is nothing on it to see from here")
    keys = read_key_file(options.keys)
    with quiet_log(), ended_cleanly(), Observer(options.transport, bus=options.bus, keys=keys) as observer:
        try:
            yield observer
        finally:
            if not observer.status().peers:
                observer.distrusted.wait(HEARTBEAT)  # somebody may be there who is not understood
            said = words_of_distrust(observer.counters, keyed=keys is not None)
            if said:
                print(clean(f"dse {options.command}: {said}"), file=sys.stderr)


def positive(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def print_json(value: object, *, lines: bool = False) -> None:
    """Print JSON: for people to read, or in a line."""
    print(json.dumps(value, default=_plain, indent=None if lines else 2), flush=lines)


def _plain(value: object) -> object:
    """Return what JSON has for a value that it has not."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return str(value)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns; the last is as wide as it likes."""
    lines = [list(heads), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(cell_width(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        cells = (cell + " " * (width - cell_width(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def cell_width(text: str) -> int:
    """Return how many columns of a terminal text takes."""
    if text.isascii():
        return len(text)
    try:
        from rich.cells import cell_len
    except ImportError:
        return len(text)
    return cell_len(text)
