"""A run file: read, filled in from the environment, and checked whole before anything starts."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dse.cli.keys import read_key_file, refuse_open_file
from dse.cli.run.convert import Context, convert_fields
from dse.cli.run.environment import Expanded, expand
from dse.cli.run.kinds import Field, record_fields
from dse.cli.run.lines import find_lines
from dse.cli.run.problems import BAD, FileError, Problem, Problems
from dse.cli.run.redact import SECRET_NAME, Redactor
from dse.cli.run.services import ServiceSpec, check_services
from dse.core.guard import require_own
from dse.core.node import Node
from dse.core.permissions import Permission, Permissions
from dse.core.url import TransportUrl
from dse.errors import ConfigError, DseError, Untrusted

__all__ = ["LogOptions", "NodeOptions", "RunFile", "read_run_file"]

LARGEST = 1 << 20
"""Bytes of a run file, beyond which it is taken for something else."""

DEEPEST = 40
"""Tables and arrays within each other."""

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_PUBLIC = ("node_id", "bus", "log", "permissions")  # what comes from the environment there is a name, and no secret


@dataclass(frozen=True)
class LogOptions:
    """How it logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True)
class NodeOptions:
    """What `Node` is made with."""

    transport: str = field(repr=False)
    bus: str = "dse"
    node_id: str | None = None
    heartbeat_interval: float = 1.0
    workers: int = 32
    max_pending: int = 1000
    keys: list[str] | None = field(default=None, repr=False)
    keys_file: Path | None = None
    permissions: list[Permission] | None = None

    def changes(self, other: NodeOptions) -> list[str]:
        """Return the names of the options that differ."""
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(other, each.name)]

    def denied(self, service_id: str, tables: Iterable[str], node_id: str) -> str:
        """Say why the permissions do not let this node, by that name, publish a service; '' when they do."""
        if self.permissions is None or not self.keys:
            return ""
        try:
            require_own(Permissions(self.permissions), node_id, self.keys[0].partition(":")[0], service_id, tables)
        except Untrusted as error:
            return str(error)
        return ""

    def make(self, node_id: str | None = None) -> Node:
        """Return a new node without services. node_id: its name when the file gives none."""
        apart = ("transport", "keys_file")  # what is in the file is in `keys`
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        return Node(self.transport, **{**options, "node_id": self.node_id or node_id})


@dataclass(frozen=True)
class RunFile:
    """A run file in which nothing is wrong. redact: takes its secrets out of a text."""

    path: str
    node: NodeOptions
    log: LogOptions
    services: Mapping[str, ServiceSpec]
    redact: Redactor = field(compare=False)

    @property
    def url(self) -> str:
        """The transport's URL, to be shown."""
        return self.redact(str(TransportUrl.parse(self.node.transport)))


def read_run_file(
    path: str, *, environment: Mapping[str, str] | None = None, redact: Redactor | None = None
) -> RunFile:
    """Return what a run file says.

    environment: that of the process if None. redact: is told the secrets of this file as well. Raises `FileError`, with
    everything that is wrong. Loads the plugins that the file names, and makes each service once to see that it can be.
    """
    redact = redact if redact is not None else Redactor()
    text, mode = _read(path)
    data = _parse(path, text)
    problems = Problems(find_lines(text))
    try:
        expanded = expand(data, os.environ if environment is None else environment, problems)
        _hide(expanded, redact)
        checked = _check(expanded, problems, Path(path).parent.absolute(), mode)
    except RecursionError:
        raise FileError(path, [Problem(0, "", "is nested too deeply")]) from None
    if problems.found:
        # A plugin's own message may hold what it was given.
        said = [Problem(each.line, redact(each.key), redact(each.message)) for each in problems.found]
        raise FileError(path, said)
    assert checked is not None
    node, log, services = checked
    return RunFile(path, node, log, services, redact)


def _read(path: str) -> tuple[str, int]:
    """Return what is in the file, and its mode."""
    try:
        # Not blocking: a pipe that nobody writes to would keep it for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            regular = stat.S_ISREG(mode)
            content = _read_all(descriptor) if regular else b""
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(path, [Problem(0, "", f"cannot be read: {reason}")]) from None
    if not regular:
        raise FileError(path, [Problem(0, "", "is no regular file")])
    if len(content) > LARGEST:
        raise FileError(path, [Problem(0, "", f"is larger than {LARGEST >> 20} MiB: it is no run file")])
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n"), mode
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FileError(path, [Problem(line, "", "is not UTF-8")]) from None


def _read_all(descriptor: int) -> bytes:
    content = b""
    while len(content) <= LARGEST and (piece := os.read(descriptor, LARGEST + 1)):
        content += piece
    return content


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise FileError(path, [Problem(0, "", "is nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of too many digits
        place = _PLACE.search(str(error))
        last = len(text.rstrip().splitlines()) or 1
        line = int(place[1]) if place and place[1] else last if place else 1
        column = f", column {place[2]}" if place and place[2] else ""
        said = str(error)[: place.start()] if place else str(error)
        raise FileError(path, [Problem(line, "", f"is not TOML{column}: {said}")]) from None
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        level = [
            each
            for holder in level
            for each in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(each, dict | list)
        ]
        if not level:
            return data
    raise FileError(path, [Problem(0, "", f"is nested more than {DEEPEST} levels deep")])


def _hide(expanded: Expanded, redact: Redactor) -> None:
    """Tell what is secret: all from the environment but for names, and what is secret in the transport's URL."""
    public: set[str] = set()
    transport = expanded.data.get("transport")
    if isinstance(transport, str):
        try:
            url = TransportUrl.parse(transport)
        except DseError:
            pass  # which part is which nobody knows
        else:
            plain = [value for name, value in url.options.items() if not SECRET_NAME.search(name)]
            hosts = [text for host, port in url.hosts for text in (host, str(port), f"{host}:{port}")]
            public = {transport, url.scheme, url.path, *hosts, *plain} - {url.password, url.username}
            redact.add(value for name, value in url.options.items() if SECRET_NAME.search(name))
            redact.add([url.password] if url.password else [])
            if url.username and any(url.username in each for each in expanded.secrets.get(("transport",), ())):
                redact.add([url.username])
    keys = expanded.data.get("keys")
    for each in keys if isinstance(keys, list) else ():
        if isinstance(each, str):
            redact.add([each, each.partition(":")[2]])
    for key, secrets in expanded.secrets.items():
        if key[0] == "transport":
            redact.add(set(secrets) - public)
        elif not (key[0] in _PUBLIC or (key[0] == "services" and key[2:] == ("plugin",))):
            redact.add(secrets)


_TABLES = [Field("log", "log", dict[str, Any], False), Field("services", "services", dict[str, Any], False)]


def _check(
    expanded: Expanded, problems: Problems, folder: Path, mode: int
) -> tuple[NodeOptions, LogOptions, dict[str, ServiceSpec]] | None:
    context = Context(problems, folder, expanded.written)
    top = convert_fields(expanded.data, [*record_fields(NodeOptions), *_TABLES], (), context, what="key")
    options = {each.name: top[each.name] for each in fields(NodeOptions) if each.name in top}
    _read_keys(options, context, mode)
    rules = options.get("permissions")
    apart = ("keys_file", "permissions")
    judged = _try_node({name: value for name, value in options.items() if name not in apart}, context)
    if rules is not None and rules is not BAD:
        _try_permissions(rules, options, judged, context)
    log = top.get("log", {})
    log_options = (
        convert_fields(log, record_fields(LogOptions), ("log",), context, what="key") if log is not BAD else {}
    )
    services = top.get("services", {})
    specs = check_services(services, ("services",), context) if services is not BAD else {}
    if problems.found:
        return None
    node = NodeOptions(**options)
    name = node.node_id or Node("fake://").node_id  # one like that which it will draw
    for spec in specs.values():
        if why := node.denied(spec.service_id, spec.cls._declared, name):
            problems.add(("services", spec.service_id), why)
    return (node, LogOptions(**log_options), specs) if not problems.found else None


def _read_keys(options: dict[str, Any], context: Context, mode: int) -> None:
    """Take the keys from the file that they are in; refuse those that are in a run file which others may read."""
    keys, path = options.get("keys"), options.get("keys_file")
    if isinstance(path, Path) and keys is not None:
        context.problems.add(("keys_file",), "there are keys in the run file as well; say one of the two")
    elif isinstance(path, Path):
        try:
            options["keys"] = read_key_file(path)
        except ConfigError as error:
            context.problems.add(("keys_file",), str(error))
    elif isinstance(keys, list) and any(("keys", place) not in context.written for place in range(len(keys))):
        try:
            refuse_open_file("the run file", mode)
        except ConfigError as error:
            context.problems.add(("keys",), f"{error}, or keep them in a keys_file of their own")


def _try_node(options: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Have `Node` judge each option by itself, so that all that it refuses is found; return those that are right."""
    usable = {name: value for name, value in options.items() if value is not BAD}
    url = usable.pop("transport", None)
    if url is not None:
        try:
            Node(url)
        except DseError as error:
            context.problems.add(("transport",), str(error))
            url = None
    right = {}
    for name, value in usable.items():
        try:
            Node(url or "fake://", **{name: value})
            right[name] = value
        except DseError as error:
            context.problems.add((name,), str(error))
    return right


def _try_permissions(
    rules: list[Permission], options: Mapping[str, Any], right: Mapping[str, Any], context: Context
) -> None:
    """Have `Node` judge the rules with the keys and node_id that they are for, unless those are wrong themselves."""
    with_keys = options.get("keys") is not None or options.get("keys_file") is not None
    needed = [name for name, given in (("keys", with_keys), ("node_id", options.get("node_id") is not None)) if given]
    try:
        if all(name in right for name in needed):
            Node("fake://", permissions=rules, **{name: right[name] for name in needed})
        else:
            Permissions(rules)
    except DseError as error:
        context.problems.add(("permissions",), str(error).removeprefix("permissions: "))
