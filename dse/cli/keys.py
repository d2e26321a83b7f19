"""Keys at the command line: `dse keygen`, files of keys, and what is said where keys are missing or do not fit."""

from __future__ import annotations

import argparse
import os
import secrets
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from dse.core.keys import new_key, parse_keys
from dse.errors import ConfigError

__all__ = ["add_command", "keys_option", "read_key_file", "refuse_open_file", "words_of_distrust"]

LARGEST = 1 << 16
"""Bytes of a file of keys, beyond which it is taken for something else."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dse keygen`."""
    keygen = commands.add_parser(
        "keygen",
        help="a new key for a bus",
        description="Print a new key, id:base64, for Node(keys=…), run files and files of keys; or put it into a file.",
        epilog="A file of keys has one a line, the first of which seals; lines that begin with # say nothing. "
        "exit codes: 0 done; 2 an id that cannot be used, or a file that cannot be written or that others may read",
    )
    keygen.add_argument("id", metavar="ID", nargs="?", help="the key's name, which is no secret (default: by the date)")
    keygen.add_argument(
        "--into",
        metavar="FILE",
        help="put it behind the keys that are in the file, for this user alone to read, and print its id only",
    )
    keygen.set_defaults(run=_keygen)


def keys_option(parser: argparse.ArgumentParser) -> None:
    """Add `--keys`."""
    parser.add_argument(
        "--keys",
        metavar="FILE",
        default=os.environ.get("DSE_KEYS"),
        help="the file with the keys of the bus, one a line (default: $DSE_KEYS)",
    )


def _keygen(options: argparse.Namespace) -> int:
    key_id = options.id or f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(2)}"
    key = new_key(key_id)
    if options.into is None:
        print(key)
        return 0
    path = Path(options.into)
    before = _read(path) if path.exists() else ""
    parse_keys([*_lines(before), key])
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(("" if not before or before.endswith("\n") else "\n") + key + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    print(key_id)
    return 0


def read_key_file(path: str | Path | None) -> list[str] | None:
    """Return the keys in a file, the one that seals first; None without a file.

    Raises `ConfigError` when it cannot be read, when others than its user and group may read it or others than its user
    may write it, and when it holds something else than keys.
    """
    if not path:
        return None
    keys = _lines(_read(Path(path)))
    try:
        parse_keys(keys)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return keys


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: is no regular file")
            refuse_open_file(path, status.st_mode)
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST >> 10} KiB: it is no file of keys")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text of id:base64 lines") from None


def refuse_open_file(path: str | Path, mode: int) -> None:
    """Raise `ConfigError` when others may read a file with keys in it, or change it."""
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        what = "read" if mode & stat.S_IROTH else "change"
        raise ConfigError(f"{path}: has keys in it, and others may {what} it ({stat.filemode(mode)}): chmod 600 {path}")


def words_of_distrust(counters: Mapping[str, int], *, keyed: bool) -> str:
    """Return what to tell somebody whose keys do not fit the bus, by what was counted; "" when nothing was dropped."""
    told = {
        "sealed": "are sealed: the nodes of this bus have keys, and none were given (--keys FILE, or $DSE_KEYS)",
        "unsealed": "are not sealed: there are nodes without keys on this bus, and they are not heard",
        "unknown_key": "are sealed with a key that is not among those given",
        "bad_seal": "do not open with the key of that name: it has other bytes here, or somebody forges frames",
        "replayed": "came again, or are older than this command: somebody may be sending recordings",
        "stranger": "are of nodes that did not answer: they are gone, or somebody is sending recordings",
        "impostor": "say of their sender what is not so",
    }
    said = [
        f"{count} frame{'s' * (count != 1)} dropped that {words}"
        for reason, words in told.items()
        if (count := counters.get(f"untrusted_{reason}", 0)) and (keyed or reason == "sealed")
    ]
    return "; ".join(said)
