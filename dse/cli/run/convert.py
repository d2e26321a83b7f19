"""Values of a file checked against annotations, and made into what the annotations say.

Everything that is wrong is found, each with its key; msgspec, which checks the scalars, would stop at the first. A
value is said in a message only where the choice is between names; what came from the environment never is.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from dse.cli.run.kinds import (
    Field,
    bare,
    choices,
    is_array,
    is_path,
    is_record,
    is_table,
    kind_of,
    kind_words,
    members,
    record_fields,
)
from dse.cli.run.lines import Key
from dse.cli.run.problems import BAD, Problems, known_names
from dse.cli.run.redact import SECRET_NAME
from dse.errors import ConfigError

__all__ = ["Context", "convert", "convert_fields"]

_EXPECTED = re.compile(r"Expected `[^`]*` (?:(of length .*)|matching (regex .*)|(.*))")
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Context:
    """What a conversion needs to know.

    folder: what relative paths are relative to. written: the text of the strings that refer to the environment.
    """

    problems: Problems
    folder: Path
    written: Mapping[Key, str] = field(default_factory=dict)

    def aside(self) -> Context:
        """Return the same, but for problems, which are collected apart."""
        return replace(self, problems=self.problems.aside())


def convert(value: Any, kind: Any, key: Key, context: Context) -> Any:
    """Return a value as its annotation says; `BAD` when it does not fit, with the problems said."""
    if value is BAD:
        return BAD
    kind, constraints = bare(kind)
    if kind in (Any, object, inspect.Parameter.empty) or isinstance(kind, typing.TypeVar):
        return value
    if (union := members(kind)) is not None:
        return _union(value, kind, union, constraints, key, context)
    if choices(kind) is not None:
        return _choice(value, kind, key, context)
    if is_path(kind):
        return _path(value, kind, key, context)
    if is_record(kind):
        return _record(value, kind, key, context)
    if is_table(kind):
        made = _table(value, kind, key, context)
    elif is_array(kind):
        made = _array(value, kind, key, context)
    else:
        return _scalar(value, kind, constraints, key, context)
    if made is not BAD and (wrong := _length(made, constraints)):
        return _wrong(context, key, wrong)
    return made


def convert_fields(
    data: Mapping[str, Any], fields: Sequence[Field], key: Key, context: Context, *, what: str, others: Any = None
) -> dict[str, Any]:
    """Return the values of a table with known keys, by their names in Python; `BAD` where one does not fit.

    what: how an unknown key is called, as in ``unknown option of 'files'``. others: the annotation of keys that are not
    known; None refuses them. A key that is required and missing is a problem, and BAD.
    """
    values: dict[str, Any] = {}
    known = {each.key: each for each in fields}
    for name, value in data.items():
        if (found := known.get(name)) is not None:
            values[found.name] = convert(value, found.kind, (*key, name), context)
        elif others is not None:
            values[name] = convert(value, others, (*key, name), context)
        else:
            context.problems.add((*key, name), f"unknown {what}; {known_names(name, known)}")
            values[name] = BAD
    for each in fields:
        if each.required and each.key not in data:
            context.problems.add((*key, each.key), f"is missing; it is {kind_words(each.kind)}")
            values[each.name] = BAD
    return values


def _wrong(context: Context, key: Key, message: str) -> Any:
    context.problems.add(key, message)
    return BAD


def _mismatch(value: Any, kind: Any, key: Key, context: Context) -> Any:
    return _wrong(context, key, f"must be {kind_words(kind)}, not {kind_of(value)}")


def _union(
    value: Any, kind: Any, union: list[Any], constraints: tuple[msgspec.Meta, ...], key: Key, context: Context
) -> Any:
    tries: list[tuple[int, Context]] = []
    for member in union:
        attempt = context.aside()
        constrained = typing.Annotated[member, *constraints] if constraints else member
        made = convert(value, constrained, key, attempt)
        if made is not BAD:
            return made
        if _same_shape(value, member):
            tries.append((_distance(value, member, attempt), attempt))
    if not tries:
        return _mismatch(value, kind, key, context)
    # The one that it most likely was meant to be.
    _, best = min(tries, key=lambda each: each[0])
    if all(choices(bare(member)[0]) is not None or not _same_shape(value, member) for member in union):
        allowed = [each for member in union for each in choices(bare(member)[0]) or ()]
        return _not_among(value, allowed, key, context)
    context.problems.found += best.problems.found
    return BAD


def _same_shape(value: Any, kind: Any) -> bool:
    kind, _ = bare(kind)
    if isinstance(value, dict):
        return is_record(kind) or is_table(kind)
    if isinstance(value, list):
        return is_array(kind)
    allowed = choices(kind)
    if allowed is not None:
        return any(type(each) is type(value) for each in allowed)
    return kind is type(value) or (kind is float and type(value) is int)


def _distance(value: Any, kind: Any, attempt: Context) -> int:
    """Return how far a value is from an annotation; the tag of a Struct decides where there is one."""
    config = getattr(kind, "__struct_config__", None)
    if config is not None and config.tag is not None and isinstance(value, dict):
        return 0 if value.get(config.tag_field) == config.tag else 1 << 20
    return len(attempt.problems)


def _choice(value: Any, kind: Any, key: Key, context: Context) -> Any:
    allowed = choices(kind) or ()
    for each in allowed:
        if type(each) is type(value) and each == value:
            return each if typing.get_origin(kind) is typing.Literal else kind(value)
    return _not_among(value, allowed, key, context)


def _not_among(value: Any, allowed: Sequence[Any], key: Key, context: Context) -> Any:
    texts = [each for each in allowed if isinstance(each, str)]
    words = kind_words(typing.Literal[tuple(allowed)]) if allowed else "nothing"
    if not any(type(each) is type(value) for each in allowed):
        return _wrong(context, key, f"must be {words}, not {kind_of(value)}")
    hint = f"; {known_names(value, texts)}" if isinstance(value, str) and texts else f"; it is {words}"
    return _wrong(context, key, f"{_shown(value, key, context)} is not allowed{hint}")


def _shown(value: Any, key: Key, context: Context) -> str:
    if key in context.written:
        return f"what {context.written[key][:_LONGEST_SHOWN]!r} stands for"
    if any(isinstance(part, str) and SECRET_NAME.search(part) for part in key):
        return "the value"
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _path(value: Any, kind: Any, key: Key, context: Context) -> Any:
    if not isinstance(value, str):
        return _mismatch(value, kind, key, context)
    if not value or "\0" in value:
        return _wrong(context, key, "must be a path: it is empty" if not value else "must be a path: it holds a NUL")
    return kind(context.folder / value)


def _record(value: Any, kind: Any, key: Key, context: Context) -> Any:
    if not isinstance(value, dict):
        return _mismatch(value, kind, key, context)
    config = getattr(kind, "__struct_config__", None)
    if config is not None and config.tag_field is not None and config.tag_field in value:
        tag = value[config.tag_field]
        if tag != config.tag or type(tag) is not type(config.tag):
            return _wrong(context, (*key, config.tag_field), f"must be {config.tag!r}")
        value = {name: each for name, each in value.items() if name != config.tag_field}
    values = convert_fields(value, record_fields(kind), key, context, what="key")
    if any(each is BAD for each in values.values()):
        return BAD
    try:
        return kind(**values)
    except ConfigError as error:
        return _wrong(context, (*key, *error.key), str(error))
    except Exception as error:  # its own check refuses
        return _wrong(context, key, f"cannot be used: {error}")


def _table(value: Any, kind: Any, key: Key, context: Context) -> Any:
    if not isinstance(value, dict):
        return _mismatch(value, kind, key, context)
    names, values = typing.get_args(kind) or (Any, Any)
    made = {}
    for name, each in value.items():
        new_name = convert(name, names, (*key, name), context)
        new_value = convert(each, values, (*key, name), context)
        made[new_name if new_name is not BAD else name] = BAD if new_name is BAD else new_value
    return BAD if any(each is BAD for each in made.values()) else made


def _array(value: Any, kind: Any, key: Key, context: Context) -> Any:
    if not isinstance(value, list):
        return _mismatch(value, kind, key, context)
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            return _wrong(context, key, f"must have {len(args)} elements, not {len(value)}")
        kinds = args
    else:
        kinds = ((args[0] if args else Any),) * len(value)
    made = [
        convert(each, kind, (*key, index), context) for index, (each, kind) in enumerate(zip(value, kinds, strict=True))
    ]
    if any(each is BAD for each in made):
        return BAD
    if origin in (set, frozenset) or origin in (typing.get_origin(typing.AbstractSet[int]),):
        try:
            return (origin if origin in (set, frozenset) else frozenset)(made)
        except TypeError:
            return _wrong(context, key, "must be an array of scalars")
    return tuple(made) if origin is tuple else made


def _length(made: Any, constraints: tuple[msgspec.Meta, ...]) -> str:
    for each in constraints:
        if each.min_length is not None and len(made) < each.min_length:
            return f"must have at least {each.min_length} elements, not {len(made)}"
        if each.max_length is not None and len(made) > each.max_length:
            return f"must have at most {each.max_length} elements, not {len(made)}"
    return ""


def _scalar(value: Any, kind: Any, constraints: tuple[msgspec.Meta, ...], key: Key, context: Context) -> Any:
    constrained = typing.Annotated[kind, *constraints] if constraints else kind
    try:
        # The environment holds only text: a number or a truth value that comes from there is read.
        return msgspec.convert(value, constrained, strict=key not in context.written)
    except msgspec.ValidationError as error:
        said = str(error).partition(" - at `")[0]
    except Exception as error:
        return _wrong(context, key, f"a file cannot hold {kind_words(kind)}: {error}")
    limits = _EXPECTED.match(said)
    if limits is not None and not said.startswith("Expected `object`"):
        length, regex, rest = limits.groups()
        return _wrong(context, key, f"must be {length or rest}" if not regex else f"must match the {regex}")
    return _mismatch(value, kind, key, context)
