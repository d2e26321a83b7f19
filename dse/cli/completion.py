"""Shell completion, by argcomplete: what is printed for the shell, and what is on the bus that the line leads to.

The shell runs `dse` itself, with ``_ARGCOMPLETE`` in its environment, to learn what may come next. Whatever goes wrong
then, nothing is said, and nothing offered.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dse.core.info import DataServiceInfo
from dse.errors import MissingExtra

__all__ = ["add_command", "complete"]

SHELLS = ("bash", "zsh", "fish")
PATIENCE = 0.9  # seconds that the bus has to tell what is on it, unless $DSE_COMPLETION_SECONDS says otherwise

Completer = Callable[..., Iterable[str]]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dse completion`."""
    completion = commands.add_parser(
        "completion",
        help="what lets a shell complete dse's command lines",
        description="Print what lets a shell complete the command lines of dse: commands, options, and the services, "
        "methods, tables and nodes of the bus that --transport or DSE_TRANSPORT leads to.",
        epilog='bash: eval "$(dse completion bash)" in ~/.bashrc; zsh: the same with zsh in ~/.zshrc, after compinit; '
        "fish: dse completion fish > ~/.config/fish/completions/dse.fish",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        import argcomplete.shell_integration
    except ImportError as error:
        raise MissingExtra(
            "shell completion lacks its package (argcomplete cannot be imported); install it with: "
            "pip install 'dse[cli]'",
            extra="cli",
        ) from error
    print(argcomplete.shell_integration.shellcode(["dse"], shell=options.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may come next, and exit; return at once when none does."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        raise SystemExit(1) from None
    logging.disable(logging.CRITICAL)
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        for action in command._actions:
            completer = _COMPLETERS.get((name, action.dest)) or _COMPLETERS.get(("", action.dest))
            if completer is not None:
                action.completer = completer
    argcomplete.autocomplete(parser, always_complete_options=False)


def _on_the_bus(options: argparse.Namespace) -> tuple[Sequence[DataServiceInfo], Sequence[str]]:
    """Return the services and the nodes, or none when they are not found in time."""
    found: list[Any] = [[], []]

    def look() -> None:
        from dse.cli.bus import observing

        try:
            with observing(options) as observer:
                peers = observer.status().peers
                found[:] = [info for node in peers.values() for info in node.services], sorted(peers)
                ready.set()
        except BaseException:  # nothing must be said in the middle of somebody's command line
            ready.set()

    ready = threading.Event()
    threading.Thread(target=look, name="dse-completion", daemon=True).start()
    ready.wait(_patience())
    return found[0], found[1]


def _patience() -> float:
    try:
        return min(60.0, max(0.0, float(os.environ["DSE_COMPLETION_SECONDS"])))
    except (KeyError, ValueError):
        return PATIENCE


def _services(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    return {info.service_id for info in _on_the_bus(parsed_args)[0]}


def _methods(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    infos = _on_the_bus(parsed_args)[0]
    return {name for info in infos if info.service_id == parsed_args.service for name in info.rpc_methods}


def _arguments(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    """Return what the method's signature names, as ``name=``."""
    for info in _on_the_bus(parsed_args)[0]:
        method = info.rpc_methods.get(parsed_args.method) if info.service_id == parsed_args.service else None
        if method is not None:
            return [f"{name}=" for name in _names(method.signature)]
    return []


def _names(signature: str) -> list[str]:
    """Return the names of the parameters in ``(pid: int, how: list[int, str] = 1) -> bool``."""
    names, depth, part = [], 0, ""
    for letter in signature:
        if letter in ",)" and depth == 1:
            names.append(part.partition(":")[0].partition("=")[0].strip())
            part = ""
        elif depth >= 1:
            part += letter
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            break
    return [name for name in names if name.isidentifier()]


def _tables(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    return {f"{info.service_id}:{table}" for info in _on_the_bus(parsed_args)[0] for table in info.published_tables}


def _nodes(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    return _on_the_bus(parsed_args)[1]


def _carried(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    """Return what the first of the buses that a bridge joins has: services, and their tables."""
    infos = _on_the_bus(argparse.Namespace(transport=parsed_args.url, bus=parsed_args.bus, keys=parsed_args.keys))[0]
    services = {info.service_id for info in infos}
    return services | {f"{info.service_id}:{table}" for info in infos for table in info.published_tables}


def _urls(**_: object) -> Iterable[str]:
    from dse.core.plugins import installed_transports

    return [f"{name}://" for name in installed_transports()]


def _folders(prefix: str, **_: object) -> Iterable[str]:
    from argcomplete.completers import DirectoriesCompleter

    found: Iterable[str] = DirectoriesCompleter()(prefix)
    return found


def _nothing(**_: object) -> Iterable[str]:
    return ()


_COMPLETERS: dict[tuple[str, str], Completer] = {
    ("watch", "table"): _tables,
    ("call", "service"): _services,
    ("call", "method"): _methods,
    ("call", "args"): _arguments,
    ("call", "node"): _nodes,
    ("new-transport", "name"): _nothing,
    ("new-transport", "into"): _folders,
    ("bridge", "to"): _urls,
    ("bridge", "only"): _carried,
    ("bridge", "leave_out"): _carried,
    ("", "transport"): _urls,
    ("", "url"): _urls,
}
"""By command ("" for any) and the name of its argument."""
