"""``dse plugins``: the installed service plugins, and what each can be told in a run file."""

from __future__ import annotations

import argparse
import enum
import inspect
import json
import os
import sys
import typing
from collections.abc import Iterator
from typing import Any

from dse.cli.run.kinds import Field, bare, is_array, is_record, is_table, kind_words, members, record_fields
from dse.cli.run.services import plugin_options
from dse.cli.text import clean
from dse.core.service import DataService
from dse.errors import DseError
from dse.services.plugins import installed_services, load_service

__all__ = ["list_plugins"]

_DEEPEST = 5  # a Struct may hold itself


def list_plugins(options: argparse.Namespace) -> int:
    """Print the plugins, or the options of one; return the exit code."""
    if options.plugin is None:
        return _list_all(as_json=options.json)
    said = _described(options.plugin)
    if options.json:
        print(json.dumps(said, indent=2))
        return 0
    print(clean(f"{said['plugin']}: {said['class']}"))
    for line in said["doc"].splitlines():
        print(f"  {clean(line)}".rstrip())
    if said["options"]:
        print()
    width = max((len(option["option"]) for option in said["options"]), default=0)
    for option in said["options"]:
        default = "required" if option["required"] else f"default {option['default']}" if option["default"] else ""
        print(clean(f"  {option['option']:{width}}  {option['type']}{f' ({default})' if default else ''}"))
    return 0


def _list_all(*, as_json: bool) -> int:
    found: list[dict[str, str]] = []
    for name in installed_services():
        try:
            found.append({"plugin": name, "doc": _doc(load_service(name)).partition("\n")[0]})
        except DseError as error:
            found.append({"plugin": name, "problem": str(error)})
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    width = max((len(each["plugin"]) for each in found), default=0)
    for each in found:
        about = each["doc"] if "doc" in each else f"cannot be used: {each['problem']}"
        print(clean(f"{each['plugin']:{width}}  {about}").rstrip())
    if not found:
        print("no service plugin is installed", file=sys.stderr)
    return 0


def _described(name: str) -> dict[str, Any]:
    cls = load_service(name)
    fields, others = plugin_options(cls)
    lines = [line for field in fields for line in _lines(field, "", 0)]
    if others is not None:
        lines.append({"option": "…", "type": kind_words(others), "required": False, "default": ""})
    return {"plugin": name, "class": f"{cls.__module__}.{cls.__qualname__}", "doc": _doc(cls), "options": lines}


def _lines(field: Field, before: str, depth: int) -> Iterator[dict[str, Any]]:
    """Yield a line for an option, and one for each key of the tables that it holds."""
    name = f"{before}{field.key}"
    yield {
        "option": name,
        "type": kind_words(field.kind),
        "required": field.required,
        "default": _toml(field.default) if not field.required else "",
    }
    for record, way in _records(field.kind, ""):
        if depth < _DEEPEST:
            for each in record_fields(record):
                yield from _lines(each, f"{name}{way}.", depth + 1)


def _records(kind: Any, way: str) -> Iterator[tuple[Any, str]]:
    """Yield the kinds of tables with known keys that a value may hold, and the way there."""
    kind, _ = bare(kind)
    if is_record(kind):
        yield kind, way
    for member in members(kind) or ():
        yield from _records(member, way)
    args = typing.get_args(kind)
    if is_table(kind) and len(args) == 2:
        yield from _records(args[1], f"{way}.NAME")
    elif is_array(kind) and args:
        yield from _records(args[0], f"{way}[]")


def _doc(cls: type) -> str:
    # A class without documentation has inherited that of DataService, which says nothing of it.
    documented = [base.__doc__ for base in cls.__mro__[: cls.__mro__.index(DataService)] if base.__doc__]
    return inspect.cleandoc(documented[0]) if documented else ""


def _toml(value: Any) -> str:
    """Return a default as a run file would say it, '' for none."""
    if value is None:
        return ""
    if isinstance(value, enum.Enum):
        return _toml(value.value)
    if isinstance(value, os.PathLike):
        return json.dumps(os.fspath(value))
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(value)
