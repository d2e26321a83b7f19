"""A bus as an AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

The document speaks for the services: a table is a channel on which its service *sends* changes; a method is a channel
on which its service *receives* a request, and a channel of its own for the reply. What a frame looks like on the wire
is DSE's own protocol (docs/protocol.md); the payloads here are what a program sees. Bytes are written as base64.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from dse import __version__
from dse.describe.annotations import cell_schema, json_schema
from dse.describe.catalogue import BusDescription, MethodDescription, ServiceDescription, TableDescription

__all__ = ["asyncapi"]

_ERROR = {
    "type": "object",
    "description": "What a call raises instead of returning: a name in `dse.errors`, and text.",
    "required": ["code", "message"],
    "properties": {
        "code": {
            "type": "string",
            "examples": ["NoSuchMethod", "InvalidArguments", "Overloaded", "RemoteError"],
        },
        "message": {"type": "string"},
    },
}


def asyncapi(bus: BusDescription) -> dict[str, Any]:
    """Return the document, ready for `json.dumps`."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    messages: dict[str, Any] = {"Error": _message("Error", "The call failed")}
    for service in bus.services:
        for table in service.tables:
            _add_table(service, table, channels, operations, messages, schemas)
        for method in service.methods:
            _add_method(service, method, channels, operations, messages, schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Services on the bus {bus.bus}",
            "version": "1.0.0",
            "description": f"Written by dse {__version__} from the catalogues of the nodes on {bus.transport}.",
            "tags": [{"name": service.service_id, "description": _where(service)} for service in bus.services],
        },
        "defaultContentType": "application/msgpack",
        "servers": {"bus": _server(bus)},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _server(bus: BusDescription) -> dict[str, Any]:
    url = urlsplit(bus.transport)
    host = url.netloc.rpartition("@")[2]
    server: dict[str, Any] = {
        "host": host or "localhost",
        "protocol": url.scheme,
        "description": f"The broker that carries the bus {bus.bus}",
    }
    if url.path.strip("/"):
        server["pathname"] = url.path
    return server


def _where(service: ServiceDescription) -> str:
    return f"Runs on {', '.join(service.nodes)}" + "".join(f"; {each}" for each in service.differences)


def _add_table(
    service: ServiceDescription,
    table: TableDescription,
    channels: dict[str, Any],
    operations: dict[str, Any],
    messages: dict[str, Any],
    schemas: dict[str, Any],
) -> None:
    name = _key(f"{service.service_id}.{table.name}")
    cells = [cell_schema(types) for types in table.types]
    schemas[f"{name}.row"] = {
        "type": "array",
        "description": f"A row: {', '.join(table.columns)}, in this order",
        "items": [{**cell, "title": column} for column, cell in zip(table.columns, cells, strict=True)],
        "minItems": len(table.columns),
        "maxItems": len(table.columns),
    }
    rows = {"type": "array", "uniqueItems": True, "items": _reference("schemas", f"{name}.row")}
    schemas[f"{name}.change"] = {
        "type": "object",
        "required": ["added", "removed", "version"],
        "properties": {
            "added": {**rows, "description": "The rows that came"},
            "removed": {**rows, "description": "The rows that went"},
            "version": {
                "type": "array",
                "description": "The life of the table, and the number of the change in it",
                "items": [{"type": "string", "title": "epoch"}, {"type": "integer", "title": "seq"}],
            },
        },
    }
    messages[f"{name}.change"] = _message(f"{name}.change", f"A change of {service.service_id}:{table.name}")
    channels[name] = {
        "address": f"table/{{instance}}/{service.service_id}/{table.name}",
        "title": f"The table {service.service_id}:{table.name}",
        "description": f"Columns: {', '.join(table.columns)}",
        "parameters": {"instance": {"description": "The publishing node, in this life"}},
        "messages": {"change": _reference("messages", f"{name}.change")},
        "tags": [{"name": service.service_id}],
    }
    operations[f"{name}.publish"] = {
        "action": "send",
        "title": f"Publish {service.service_id}:{table.name}",
        "channel": _reference("", name),
        "messages": [_in_channel(name, "change")],
        "tags": [{"name": service.service_id}],
    }


def _add_method(
    service: ServiceDescription,
    method: MethodDescription,
    channels: dict[str, Any],
    operations: dict[str, Any],
    messages: dict[str, Any],
    schemas: dict[str, Any],
) -> None:
    name = _key(f"{service.service_id}.{method.name}")
    arguments: dict[str, Any] = {"type": "object", "description": f"{method.name}{method.signature}"}
    returns = None
    if method.parsed is not None:
        returns = method.parsed.returns
        arguments |= {
            "properties": {
                each.name: {
                    **json_schema(each.annotation),
                    **({} if each.default is None else {"description": f"{each.default} if not given"}),
                }
                for each in method.parsed.parameters
            },
            "additionalProperties": False,
        }
        required = [each.name for each in method.parsed.parameters if each.required]
        if required:
            arguments["required"] = required
    schemas[f"{name}.arguments"] = arguments
    schemas[f"{name}.result"] = json_schema(returns)
    for part in ("arguments", "result"):
        messages[f"{name}.{part}"] = _message(f"{name}.{part}", f"The {part} of {method.name}")
    channels[name] = {
        "address": f"service/{service.service_id}",
        "title": f"{service.service_id}.{method.name}{method.signature}",
        "messages": {"arguments": _reference("messages", f"{name}.arguments")},
        "tags": [{"name": service.service_id}],
    }
    channels[f"{name}.reply"] = {
        "address": None,
        "title": f"What {service.service_id}.{method.name} answers, to the node that called",
        "messages": {"result": _reference("messages", f"{name}.result"), "error": _reference("messages", "Error")},
        "tags": [{"name": service.service_id}],
    }
    operation = {
        "action": "receive",
        "title": f"Call {service.service_id}.{method.name}",
        "channel": _reference("", name),
        "messages": [_in_channel(name, "arguments")],
        "reply": {
            "channel": _reference("", f"{name}.reply"),
            "messages": [_in_channel(f"{name}.reply", "result"), _in_channel(f"{name}.reply", "error")],
        },
        "tags": [{"name": service.service_id}],
    }
    if method.doc:
        operation["description"] = method.doc
    if method.idempotent:
        operation["summary"] = "May be repeated: running it twice is as good as once"
    operations[f"{name}.call"] = operation


def _key(name: str) -> str:
    """Return the key that stands for a name: the specification allows ASCII letters, digits, ``.``, ``-`` and ``_``."""
    return "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else f"-{ord(c):x}-" for c in name)


def _message(name: str, title: str) -> dict[str, Any]:
    """Return the message whose payload is the schema of its name."""
    return {"name": name, "title": title, "payload": _reference("schemas", name)}


def _reference(kind: str, name: str) -> dict[str, str]:
    """Point to a component of a kind, or, without one, to a channel."""
    where = f"components/{kind}" if kind else "channels"
    return {"$ref": f"#/{where}/{name}"}


def _in_channel(channel: str, message: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{channel}/messages/{message}"}
