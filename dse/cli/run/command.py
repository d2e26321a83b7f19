"""The subcommands ``dse run FILE`` and ``dse plugins``."""

from __future__ import annotations

import argparse
import math

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `dse`."""
    run = commands.add_parser(
        "run",
        help="a node from a file: its transport, bus, and services by plugin name",
        description=(
            "Run the node that a TOML file describes, with its services, until SIGTERM or Ctrl-C. The file is checked "
            "whole before anything starts. SIGHUP reads it again and restarts only what has changed. See docs/run.md."
        ),
        epilog=(
            "exit codes: 0 ended by SIGTERM or Ctrl-C (or the file is right, with --check); 1 failed on the way; "
            "2 the file is wrong, a package is missing, or the broker did not come within --wait"
        ),
    )
    run.add_argument("file", metavar="FILE")
    run.add_argument("--check", action="store_true", help="check the file, say all that is wrong with it, and end")
    run.add_argument(
        "--wait",
        type=_wait,
        metavar="SECONDS",
        help="how long to wait at the start for a broker that is not there; 0 is not at all (default: for ever)",
    )
    run.set_defaults(run=_run)

    plugins = commands.add_parser(
        "plugins",
        help="the installed service plugins, for `dse run`, and their options",
        description="The installed service plugins; or what one of them does, and what it can be told in a run file.",
        epilog="exit codes: 0 done; 2 no such plugin, or a missing package",
    )
    plugins.add_argument("plugin", metavar="PLUGIN", nargs="?")
    plugins.add_argument("--json", action="store_true", help="for programs: JSON")
    plugins.set_defaults(run=_plugins)


def _run(options: argparse.Namespace) -> int:
    # Not before it is needed: the other commands load no part of this.
    if options.check:
        return _check(options.file)
    from dse.cli.run.loop import MainLoop

    return MainLoop(options.file, wait=options.wait).run()


def _plugins(options: argparse.Namespace) -> int:
    from dse.cli.run.plugins import list_plugins

    return list_plugins(options)


def _check(path: str) -> int:
    from dse.cli.main import MISUSED, say_error
    from dse.cli.run.file import read_run_file
    from dse.cli.run.problems import FileError
    from dse.cli.text import clean

    try:
        file = read_run_file(path)
    except FileError as error:
        for line in error.lines:
            say_error(line)
        return MISUSED
    services = len(file.services)
    print(clean(f"{path}: all right: {services} service{'s' * (services != 1)} on {file.url}, bus {file.node.bus}"))
    return 0


def _wait(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value
