"""The `dse` command."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence

from dse import __version__
from dse.cli import bridge, completion, keys, new_transport, observe
from dse.cli import describe as describing
from dse.cli.completion import complete
from dse.cli.run.command import add_commands as add_run_commands
from dse.cli.text import clean
from dse.cli.web import add_command as add_web_command
from dse.errors import ConfigError, DseError, InvalidUrl, MissingExtra, TransportUnavailable, UnknownTransport

__all__ = ["main"]

FAILED = 1
"""Something went wrong while it ran."""

MISUSED = 2
"""What was asked for cannot be done: wrong arguments, no broker, a missing package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process if None) and return its exit code."""
    parser = _parser()
    complete(parser)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return MISUSED
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except DseError as error:
        say_error(f"dse {options.command}: {describe(error)}")
        return MISUSED
    except KeyboardInterrupt:
        return 0 if options.command in ("demo", "watch", "top") else 130
    except BrokenPipeError:
        _let_go_of_stdout()
        return 0  # whoever read it has seen enough
    return code


def describe(error: DseError) -> str:
    """Return what went wrong and what to do about it, in one line."""
    if isinstance(error, TransportUnavailable):
        hint = "is the broker running there, and are host, port, user and password in the URL right?"
    elif isinstance(error, UnknownTransport):
        hint = "check the scheme of the URL, or install the plugin that brings it"
    elif isinstance(error, InvalidUrl | MissingExtra | ConfigError):
        hint = ""  # these say it themselves
    else:
        return clean(f"{type(error).__name__}: {error}")
    return clean(f"{error}; {hint}" if hint else str(error))


def say_error(line: str) -> None:
    """Write a line to stderr, whatever has become of stderr."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody reads it


def _let_go_of_stdout() -> None:
    """Let nothing that is still to be written at exit fail, for nobody reads it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dse", description="Data services that share one message bus.")
    parser.add_argument("--version", action="version", version=f"dse {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_demo(commands)
    add_run_commands(commands)
    _add_check(commands)
    keys.add_command(commands)
    observe.add_commands(commands)
    describing.add_command(commands)
    add_web_command(commands)
    new_transport.add_command(commands)
    bridge.add_command(commands)
    completion.add_command(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="four nodes on one bus, with this machine's own sockets and processes, and a policy over them",
        description=(
            "Four nodes on one bus: one publishes this machine's listening sockets and processes, one has a policy "
            "over them, one shows rows and violations come and go, one calls the first by RPC. A live view in a "
            "terminal, plain lines in a pipe. Ctrl-C ends it."
        ),
        epilog=(
            "exit codes: 0 ended by --seconds, Ctrl-C, SIGTERM or its reader; "
            "1 a node failed on the way; 2 it could not start"
        ),
    )
    demo.add_argument(
        "--transport",
        metavar="URL",
        default="fake://",
        help="the bus, as in redis://localhost or rabbit://localhost: each node in a process of its own over that "
        "broker (default: fake://, all in one process)",
    )
    demo.add_argument("--seconds", type=_seconds, metavar="N", help="end by itself after N seconds")
    demo.add_argument("--bus", metavar="NAME", help="the name of the bus (default: a new one)")
    demo.set_defaults(run=_run_demo)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check",
        help="is the broker there, how fast is it, and does it keep what DSE builds on",
        description="Connect, measure a round trip, and try each guarantee on a bus of its own; it disturbs nobody.",
        epilog="exit codes: 0 all is well; 1 a guarantee is broken; 2 no broker, a wrong URL, or a missing package",
    )
    said = "the broker, as in redis://localhost (default: $DSE_TRANSPORT, which no other user sees)"
    check.add_argument("url", metavar="URL", nargs="?", default=os.environ.get("DSE_TRANSPORT"), help=said)
    keys.keys_option(check)
    check.add_argument("--json", action="store_true", help="for programs: JSON")
    check.set_defaults(run=_run_check)


def _run_check(options: argparse.Namespace) -> int:
    from dse.cli.check import run_check

    return run_check(options)


def _run_demo(options: argparse.Namespace) -> int:
    from dse.cli.demo import run_demo

    return run_demo(options.transport, seconds=options.seconds, bus=options.bus)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
