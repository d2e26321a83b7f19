"""Annotations, read as text: what they are in JSON Schema, and in Python that a stranger can import.

The text comes from another process and names what only that one may know. What is known here are the types that DSE can
send (scalars, dates, containers and unions of them); anything else is ``Any``, with its name kept as a description.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

__all__ = ["cell_schema", "json_schema", "python_type"]

_DEEPEST = 50

# The last part of a name -> its schema, and where Python has it.
_SCALARS: dict[str, tuple[dict[str, Any], str]] = {
    "int": ({"type": "integer"}, "int"),
    "float": ({"type": "number"}, "float"),
    "str": ({"type": "string"}, "str"),
    "bool": ({"type": "boolean"}, "bool"),
    "bytes": ({"type": "string", "contentEncoding": "base64"}, "bytes"),
    "None": ({"type": "null"}, "None"),
    "Any": ({}, "typing.Any"),
    "object": ({}, "object"),
    "datetime": ({"type": "string", "format": "date-time"}, "datetime.datetime"),
    "date": ({"type": "string", "format": "date"}, "datetime.date"),
    "time": ({"type": "string", "format": "time"}, "datetime.time"),
    "timedelta": ({"type": "string", "format": "duration"}, "datetime.timedelta"),
    "UUID": ({"type": "string", "format": "uuid"}, "uuid.UUID"),
    "Decimal": ({"type": "string"}, "decimal.Decimal"),
}
_SEQUENCES = {
    "list": "list",
    "List": "list",
    "set": "set",
    "Set": "set",
    "frozenset": "frozenset",
    "FrozenSet": "frozenset",
    "Sequence": "collections.abc.Sequence",
    "Iterable": "collections.abc.Iterable",
    "Collection": "collections.abc.Collection",
}
_SETS = {"set", "Set", "frozenset", "FrozenSet"}
_TUPLES = {"tuple", "Tuple"}
_MAPPINGS = {"dict": "dict", "Dict": "dict", "Mapping": "collections.abc.Mapping"}


@dataclass(frozen=True, slots=True)
class _Read:
    """One annotation: its schema, its Python, the modules that this needs, and whether all of it was understood."""

    schema: dict[str, Any]
    python: str
    modules: frozenset[str] = field(default_factory=frozenset)
    known: bool = True


_ANY = _Read({}, "typing.Any", frozenset({"typing"}))


def json_schema(annotation: str | None) -> dict[str, Any]:
    """Return the JSON Schema of an annotation; none, or one that is not known here, allows anything."""
    return _read(annotation).schema


def python_type(annotation: str | None) -> tuple[str, frozenset[str]]:
    """Return an annotation as Python with full names, and the modules to import for it."""
    read = _read(annotation)
    return read.python, read.modules


def cell_schema(types: frozenset[str]) -> dict[str, Any]:
    """Return the JSON Schema of a table's cell that may hold these types, or any scalar where none is known."""
    names = sorted(types & _SCALARS.keys()) or ["None", "bool", "bytes", "float", "int", "str"]
    kinds = sorted({str(_SCALARS[name][0]["type"]) for name in names})
    if names == ["bytes"]:
        return dict(_SCALARS["bytes"][0])
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _read(annotation: str | None) -> _Read:
    if annotation is None:
        return _ANY
    try:
        read = _expression(ast.parse(annotation, mode="eval").body, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        read = _unknown(annotation)
    if not read.known and "description" not in read.schema:
        return _Read({**read.schema, "description": _note(annotation)}, read.python, read.modules, known=False)
    return read


def _note(annotation: str) -> str:
    return f"Python: {annotation[:200]}"


def _unknown(annotation: str) -> _Read:
    return _Read({"description": _note(annotation)}, _ANY.python, _ANY.modules, known=False)


def _expression(node: ast.expr, depth: int) -> _Read:
    if depth > _DEEPEST:
        return _unknown("too deep")
    match node:
        case ast.Constant(value=None):
            return _named("None")
        case ast.Constant(value=str() as text):
            return _expression(ast.parse(text, mode="eval").body, depth + 1)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _name(name, ast.unparse(node))
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _union([_expression(left, depth + 1), _expression(right, depth + 1)])
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inside):
            arguments = list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
            return _generic(name, arguments, node, depth + 1)
    return _unknown(ast.unparse(node))


def _named(name: str) -> _Read:
    schema, python = _SCALARS[name]
    return _Read(dict(schema), python, _module(python))


def _module(python: str) -> frozenset[str]:
    module, dot, _ = python.rpartition(".")
    return frozenset({module} if dot else ())


def _name(name: str, shown: str) -> _Read:
    if name in _SCALARS:
        return _named(name)
    if name in _SEQUENCES:
        return _sequence(name, _ANY)
    if name in _TUPLES:
        return _sequence("tuple", _ANY, ", ...")
    if name in _MAPPINGS:
        return _mapping(name, _Read({"type": "string"}, "str"), _ANY)
    return _unknown(shown)


def _generic(name: str, arguments: list[ast.expr], node: ast.expr, depth: int) -> _Read:
    if name == "Literal":
        return _literal(arguments, node)
    if name == "Annotated" and arguments:
        return _expression(arguments[0], depth)
    if name == "Optional" and len(arguments) == 1:
        return _union([_expression(arguments[0], depth), _named("None")])
    if name == "Union":
        return _union([_expression(each, depth) for each in arguments])
    if name in _SEQUENCES and len(arguments) == 1:
        return _sequence(name, _expression(arguments[0], depth))
    if name in _TUPLES and arguments:
        if isinstance(arguments[-1], ast.Constant) and arguments[-1].value is ... and len(arguments) == 2:
            return _sequence("tuple", _expression(arguments[0], depth), ", ...")
        return _tuple([_expression(each, depth) for each in arguments])
    if name in _MAPPINGS and len(arguments) == 2:
        return _mapping(name, *(_expression(each, depth) for each in arguments))
    return _unknown(ast.unparse(node))


def _sequence(name: str, item: _Read, more: str = "") -> _Read:
    python = "tuple" if name == "tuple" else _SEQUENCES[name]
    schema: dict[str, Any] = {"type": "array", "items": item.schema}
    if name in _SETS:
        schema["uniqueItems"] = True
    return _Read(schema, f"{python}[{item.python}{more}]", _module(python) | item.modules, item.known)


def _tuple(items: list[_Read]) -> _Read:
    return _Read(
        {"type": "array", "minItems": len(items), "maxItems": len(items), "items": _any_of([i.schema for i in items])},
        f"tuple[{', '.join(item.python for item in items)}]",
        frozenset().union(*(item.modules for item in items)),
        all(item.known for item in items),
    )


def _mapping(name: str, key: _Read, value: _Read) -> _Read:
    python = _MAPPINGS[name]
    return _Read(
        {"type": "object", "additionalProperties": value.schema},
        f"{python}[{key.python}, {value.python}]",
        _module(python) | key.modules | value.modules,
        key.known and value.known,
    )


def _union(items: list[_Read]) -> _Read:
    if any(item.python == "typing.Any" for item in items):
        return _Read({}, _ANY.python, _ANY.modules, all(item.known for item in items))
    return _Read(
        _any_of([item.schema for item in items]),
        " | ".join(dict.fromkeys(item.python for item in items)),
        frozenset().union(*(item.modules for item in items)),
        all(item.known for item in items),
    )


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for schema in schemas:  # a union of unions is one union
        if schema.keys() == {"type"} and isinstance(schema["type"], list):
            parts += [{"type": kind} for kind in schema["type"]]
        else:
            parts += schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
    different = [schema for index, schema in enumerate(parts) if schema not in parts[:index]]
    if len(different) == 1:
        return different[0]
    if all(schema.keys() == {"type"} for schema in different):
        return {"type": [schema["type"] for schema in different]}
    return {"anyOf": different}


def _literal(arguments: list[ast.expr], node: ast.expr) -> _Read:
    values = [each.value for each in arguments if isinstance(each, ast.Constant)]
    if len(values) != len(arguments) or not all(isinstance(value, str | int | bool | None) for value in values):
        return _unknown(ast.unparse(node))
    inside = ", ".join(map(repr, values))
    return _Read({"enum": values}, f"typing.Literal[{inside}]", frozenset({"typing"}))
