"""A bus as Markdown, for people."""

from __future__ import annotations

from collections.abc import Iterator

from dse.describe.catalogue import BusDescription, MethodDescription, ServiceDescription, TableDescription

__all__ = ["markdown"]


def markdown(bus: BusDescription) -> str:
    """Return the document. What comes from the bus is shown as text, whatever it holds."""
    return "\n".join(_lines(bus)).rstrip("\n") + "\n"


def _lines(bus: BusDescription) -> Iterator[str]:
    yield f"# The bus {_text(bus.bus)}"
    yield ""
    yield f"On {_code(bus.transport)}: {len(bus.services)} service{'s' * (len(bus.services) != 1)}."
    for service in bus.services:
        yield ""
        yield from _service(service)


def _service(service: ServiceDescription) -> Iterator[str]:
    yield f"## {_text(service.service_id)}"
    yield ""
    yield f"Runs on {', '.join(map(_code, service.nodes))}."
    if service.follows:
        yield ""
        yield f"Follows {', '.join(_code(f'{service_id}:{table}') for service_id, table in service.follows)}."
    if service.differences:
        yield ""
        yield "Its replicas differ:"
        yield ""
        for difference in service.differences:
            yield f"- {_text(difference)}"
    for table in service.tables:
        yield ""
        yield from _table(table)
    for method in service.methods:
        yield ""
        yield from _method(method)


def _table(table: TableDescription) -> Iterator[str]:
    yield f"### Table {_text(table.name)}"
    yield ""
    yield "| column | type found |"
    yield "| --- | --- |"
    for column, types in zip(table.columns, table.types, strict=True):
        found = " or ".join(sorted(types, key=lambda name: (name == "None", name)))
        yield f"| {_cell(column)} | {_cell(found) if found else 'no row yet'} |"


def _method(method: MethodDescription) -> Iterator[str]:
    yield f"### Method {_text(method.name)}"
    yield ""
    yield _code(f"{method.name}{method.signature}") + (" May be repeated." if method.idempotent else "")
    parameters = method.parsed.parameters if method.parsed is not None else ()
    if parameters:
        yield ""
        yield "| argument | type | if not given |"
        yield "| --- | --- | --- |"
        for each in parameters:
            default = "must be given" if each.default is None else _cell(each.default)
            yield f"| {_cell(each.name)} | {_cell(each.annotation or 'Any')} | {default} |"
    if method.doc:
        yield ""
        for line in method.doc.splitlines():
            yield f"> {_text(line)}".rstrip()


_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~"})


def _text(text: str) -> str:
    """Return text that Markdown shows as it is; what cannot be printed as code."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown.translate(_SPECIAL)


def _code(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    fence = "`"
    while fence in shown:
        fence += "`"
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _cell(text: str) -> str:
    return _code(text).replace("|", "\\|")
