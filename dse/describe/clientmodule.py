"""Writes a typed client of a service as a Python module.

What comes from the bus is text of strangers: only names that are identifiers and annotations that were understood get
into the code, and documentation as a quoted string.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator

from dse import __version__
from dse.core.info import identifier
from dse.describe.annotations import python_type
from dse.describe.catalogue import MethodDescription, ServiceDescription
from dse.describe.client import ServiceClient
from dse.describe.signatures import Parameter
from dse.errors import ConfigError

__all__ = ["client_module"]

_WIDTH = 110


def client_module(service: ServiceDescription, *, asynchronous: bool = False) -> str:
    """Return the source of a module with one class, a `ServiceClient` with a method for each of the service's.

    asynchronous: the methods are coroutines. Raises `ConfigError` for a service or method whose name cannot be one in
    Python, and for a signature that cannot be read.
    """
    name = _class_name(service.service_id)
    modules: set[str] = set()
    methods = [list(_method(service, each, modules, asynchronous)) for each in service.methods]
    lines = [
        f'"""Typed client of the service {service.service_id!r}, written by `dse describe --client`: write it again '
        'instead of editing it."""',
        "",
        "from __future__ import annotations",
        "",
        *(f"import {module}" for module in sorted(modules | {"typing"})),
        "",
        "from dse.describe import UNSET, ServiceClient"
        if _optional(service)
        else "from dse.describe import ServiceClient",
        "",
        f"__all__ = [{_quoted(name)}]",
        "",
        "",
        f"class {name}(ServiceClient):",
        f'    """Calls of {service.service_id!r}, as dse {__version__} found it on {len(service.nodes)} '
        f'node{"s" * (len(service.nodes) != 1)}."""',
        "",
        f"    _dse_service = {_quoted(service.service_id)}",
        *_mapping("_dse_methods", "str", ((each.name, _quoted(each.signature)) for each in service.methods)),
        *_mapping(
            "_dse_tables",
            "tuple[str, ...]",
            ((each.name, _tuple(each.columns)) for each in service.tables),
        ),
    ]
    for method in methods:
        lines += ["", *(f"    {line}".rstrip() for line in method)]
    return "\n".join(lines) + "\n"


def _class_name(service_id: str) -> str:
    name = "".join(part[:1].upper() + part[1:] for part in identifier("service_id", service_id).split("_")) or "Service"
    if not name.isidentifier():
        name = f"Service{name}"
    return f"{name}Client" if keyword.iskeyword(name) or name in ("ServiceClient", "UNSET") else name


def _mapping(name: str, kind: str, items: Iterator[tuple[str, str]]) -> list[str]:
    lines = [f"        {_quoted(key)}: {value}," for key, value in items]
    head = f"    {name}: typing.ClassVar[dict[str, {kind}]] = {{"
    return [head, *lines, "    }"] if lines else [f"{head}}}"]


def _optional(service: ServiceDescription) -> bool:
    return any(not each.required for method in service.methods if method.parsed for each in method.parsed.parameters)


def _method(
    service: ServiceDescription, method: MethodDescription, modules: set[str], asynchronous: bool
) -> Iterator[str]:
    where = f"{service.service_id}.{method.name}"
    identifier("RPC method's name", method.name)
    if keyword.iskeyword(method.name) or method.name.startswith("__") or hasattr(ServiceClient, method.name):
        raise ConfigError(f"{where}: a client cannot have a method of this name; call it with Node.call")
    if method.parsed is None:
        raise ConfigError(f"{where}: its signature cannot be read: {method.signature[:200]!a}; call it with Node.call")
    parameters = method.parsed.parameters
    # An argument may be called like what every method has.
    self = "self" if all(each.name != "self" for each in parameters) else "_dse_self"
    returns, needed = python_type(method.parsed.returns)
    modules |= needed
    arguments = [_argument(each, modules) for each in parameters]
    yield from _head(
        f"{'async ' * asynchronous}def {method.name}", [self, *(["*", *arguments] if arguments else [])], returns
    )
    if method.doc:
        yield from _docstring(method.doc)
    given = ", ".join(f"{_quoted(each.name)}: {each.name}" for each in parameters)
    call = f"await {self}._dse_acall" if asynchronous else f"{self}._dse_call"
    if returns == "None":
        yield f"    {call}({_quoted(method.name)}, {{{given}}}, None)"
        return
    yield f"    result: {returns} = {call}({_quoted(method.name)}, {{{given}}}, {returns})"
    yield "    return result"


def _argument(parameter: Parameter, modules: set[str]) -> str:
    kind, needed = python_type(parameter.annotation)
    modules |= needed
    return f"{parameter.name}: {kind}" + ("" if parameter.required else " = UNSET")


def _head(start: str, arguments: list[str], returns: str) -> Iterator[str]:
    line = f"{start}({', '.join(arguments)}) -> {returns}:"
    if len(line) <= _WIDTH:
        yield line
        return
    yield f"{start}("
    for argument in arguments:
        yield f"    {argument},"
    yield f") -> {returns}:"


def _docstring(doc: str) -> Iterator[str]:
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in doc)
    lines = [line.replace("\\", "\\\\").replace('"', '\\"') for line in clean.splitlines()]
    if len(lines) == 1:
        yield f'    """{lines[0]}"""'
        return
    yield f'    """{lines[0]}' if lines else '    """'
    for line in lines[1:]:
        yield f"    {line}"
    yield '    """'


def _tuple(texts: tuple[str, ...]) -> str:
    return f"({', '.join(map(_quoted, texts))}{',' * (len(texts) == 1)})"


def _quoted(text: str) -> str:
    """Return text as a Python literal, in double quotes."""
    inside = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text.replace("\\", "\\\\")
    )
    return '"' + inside.replace('"', '\\"') + '"'
