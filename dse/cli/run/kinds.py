"""Annotations in the words of TOML, for messages; and what an annotation is made of."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import inspect
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = [
    "Field",
    "bare",
    "choices",
    "is_array",
    "is_path",
    "is_record",
    "is_table",
    "kind_of",
    "kind_words",
    "members",
    "record_fields",
]

_ARRAYS = (
    list, tuple, set, frozenset,
    collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection, collections.abc.Iterable,
    collections.abc.Set, collections.abc.MutableSet,
)  # fmt: skip
_TABLES = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WORDS: Mapping[Any, tuple[str, str]] = {
    str: ("a string", "strings"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "booleans"),
    bytes: ("a string in base64", "strings in base64"),
    datetime.datetime: ("a date and time", "dates and times"),
    datetime.date: ("a date", "dates"),
    datetime.time: ("a time", "times"),
    datetime.timedelta: ("a duration, as in 'PT1H30M'", "durations"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One key of a table. name: in Python; key: in the file. default: what it is when it is not required."""

    name: str
    key: str
    kind: Any
    required: bool
    default: Any = None


def bare(kind: Any) -> tuple[Any, tuple[msgspec.Meta, ...]]:
    """Return an annotation without aliases and `Annotated`, and the constraints that those held."""
    constraints: list[msgspec.Meta] = []
    while True:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            constraints += [each for each in kind.__metadata__ if isinstance(each, msgspec.Meta)]
            kind = kind.__origin__
        elif origin in (typing.Required, typing.NotRequired, typing.Final):
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif hasattr(kind, "__value__"):  # ``type Name = …``
            kind = kind.__value__
        else:
            return kind, tuple(constraints)


def members(kind: Any) -> list[Any] | None:
    """Return what a union is made of, without what a file cannot hold; None for what is no union."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return None
    return [each for each in typing.get_args(kind) if each not in (type(None), None, msgspec.UnsetType)]


def choices(kind: Any) -> tuple[Any, ...] | None:
    """Return the values that a Literal or an enum allows; None for anything else."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return tuple(member.value for member in kind)
    return None


def is_array(kind: Any) -> bool:
    """Whether an annotation is that of a list, a tuple or a set."""
    return (typing.get_origin(kind) or kind) in _ARRAYS


def is_table(kind: Any) -> bool:
    """Whether an annotation is that of a mapping with any keys."""
    return (typing.get_origin(kind) or kind) in _TABLES


def is_path(kind: Any) -> bool:
    """Whether an annotation is that of a file's path."""
    return inspect.isclass(kind) and issubclass(kind, pathlib.PurePath)


def is_record(kind: Any) -> bool:
    """Whether an annotation is that of a table with known keys."""
    cls = typing.get_origin(kind) or kind
    return inspect.isclass(cls) and (
        issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls) or typing.is_typeddict(cls)
    )


def record_fields(kind: Any) -> list[Field]:
    """Return the keys of a Struct, a dataclass or a TypedDict."""
    cls = typing.get_origin(kind) or kind
    if issubclass(cls, msgspec.Struct):
        return [
            Field(each.name, each.encode_name, each.type, each.required, _default(each, msgspec.NODEFAULT))
            for each in msgspec.structs.fields(kind)
        ]
    hints = typing.get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        return [
            Field(
                each.name,
                each.name,
                hints[each.name],
                each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
                _default(each, dataclasses.MISSING),
            )
            for each in dataclasses.fields(cls)
            if each.init
        ]
    return [Field(name, name, hint, _required(cls, name, hint)) for name, hint in hints.items()]


def _default(field: Any, none: Any) -> Any:
    """Return the default of a field of a Struct or a dataclass, which has `none` where there is none."""
    if field.default is not none:
        return field.default
    return field.default_factory() if field.default_factory is not none else None


def _required(cls: Any, name: str, hint: Any) -> bool:
    # Where annotations are postponed, the class itself does not know which are marked.
    mark = typing.get_origin(hint)
    return (
        name in cls.__required_keys__ if mark not in (typing.Required, typing.NotRequired) else mark is typing.Required
    )


def kind_words(kind: Any) -> str:
    """Return what a file may have for an annotation: ``an integer``, ``an array of strings``, ``'a' or 'b'``."""
    kind, _ = bare(kind)
    if (union := members(kind)) is not None:
        return _listed([kind_words(each) for each in union])
    if (allowed := choices(kind)) is not None:
        return _listed([_toml(each) for each in allowed])
    if kind in _WORDS:
        return _WORDS[kind][0]
    if is_path(kind):
        return "a path"
    if is_array(kind):
        return f"an array of {_plural(typing.get_args(kind))}"
    if is_record(kind) or is_table(kind):
        return "a table"
    return f"a value for {getattr(kind, '__name__', kind)}"


def kind_of(value: Any) -> str:
    """Return what a value in a file is, without saying the value."""
    names = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value)) or _WORDS.get(type(value), ("something else",))[0]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _plural(args: tuple[Any, ...]) -> str:
    element = bare(args[0])[0] if args else Any
    if element in _WORDS:
        return _WORDS[element][1]
    if is_path(element):
        return "paths"
    if is_record(element) or is_table(element):
        return "tables"
    return "arrays" if is_array(element) else "values"


def _listed(words: Iterable[str]) -> str:
    unique = list(dict.fromkeys(words))
    return f"{', '.join(unique[:-1])} or {unique[-1]}" if len(unique) > 1 else "".join(unique)
