"""The gateway's own interface as an OpenAPI 3.1 document, with an operation for each method that may be called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dse import __version__
from dse.core.info import BusStatus, DataServiceInfo
from dse.describe.annotations import json_schema
from dse.describe.signatures import Signature
from dse.errors import ConfigError
from dse.services.web.options import Options
from dse.services.web.query import LONGEST_PAGE, OPERATORS

__all__ = ["LONGEST_CALL", "SHORTEST_CALL", "openapi"]

SHORTEST_CALL, LONGEST_CALL = 0.05, 300.0
"""Seconds that a caller may give a call."""

_ERROR = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {"type": "string", "description": "A word for programs"},
        "message": {"type": "string", "description": "For people"},
        "where": {"type": "string", "description": "The parameter or argument that is wrong"},
        "known": {"type": "array", "items": {"type": "string"}, "description": "What there is instead"},
    },
}
_CELL = {
    "description": "A cell. Bytes, numbers over 53 bits and infinities are objects with one key.",
    "anyOf": [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "number"},
        {"type": "string"},
        {"type": "object", "properties": {"base64": {"type": "string"}}, "required": ["base64"]},
        {"type": "object", "properties": {"int": {"type": "string"}}, "required": ["int"]},
        {"type": "object", "properties": {"float": {"type": "string"}}, "required": ["float"]},
    ],
}
_STATE = {"type": "string", "enum": ["SYNCING", "LIVE", "STALE"]}
_PAGE = {
    "type": "object",
    "required": ["service", "table", "columns", "state", "cursor", "offset", "limit", "total", "matched", "rows"],
    "properties": {
        "service": {"type": "string"},
        "table": {"type": "string"},
        "columns": {"type": "array", "items": {"type": "string"}},
        "state": _STATE,
        "cursor": {"type": ["string", "null"], "description": "What to follow the changes from (since)"},
        "offset": {"type": "integer"},
        "limit": {"type": "integer"},
        "total": {"type": "integer", "description": "Rows of the table"},
        "matched": {"type": "integer", "description": "Rows that the filters leave"},
        "complete": {
            "type": "boolean",
            "description": "False: the table is on its way here, these are some of its rows; ask again",
        },
        "rows": {"type": "array", "items": {"type": "array", "items": {"$ref": "#/components/schemas/Cell"}}},
    },
}
_NODE = {
    "type": "object",
    "required": ["node_id", "instance", "state", "last_heard", "services"],
    "properties": {
        "node_id": {"type": "string"},
        "instance": {"type": "string"},
        "state": {"type": "string", "enum": ["JOINING", "JOINED", "SUSPECT", "DEAD", "LEFT"]},
        "last_heard": {"type": "number", "description": "Seconds ago"},
        "services": {"type": "array", "items": {"type": "object"}},
    },
}


def openapi(status: BusStatus, infos: list[DataServiceInfo], options: Options, url: str) -> dict[str, Any]:
    """Return the document as it stands for the services that are on the bus now; its examples are of this bus."""
    with_table = next((info for info in infos if info.published_tables), infos[0] if infos else None)
    here = {
        "node_id": next(iter(sorted(status.nodes)), "n1"),
        "service": with_table.service_id if with_table is not None else "host",
        "table": next(iter(sorted(with_table.published_tables)), "sockets") if with_table is not None else "sockets",
    }
    node_id, service, table = (_path(name, example) for name, example in here.items())
    paths: dict[str, Any] = {
        "/api/status": _get("status", "The bus: its nodes, services and counters", {"type": "object"}),
        "/api/nodes": _get("nodes", "The nodes", {"type": "array", "items": _reference("Node")}),
        "/api/nodes/{node_id}": _get("node", "One node", _reference("Node"), [node_id], 404),
        "/api/services": _get("services", "What the services offer, replica by replica", _LIST),
        "/api/services/{service}": _get("service", "What one service offers", _LIST, [service], 404),
        "/api/tables": _get("tables", "The tables: columns and publishers", _LIST),
        "/api/tables/{service}/{table}": _rows(service, table),
        "/api/tables/{service}/{table}/changes": _changes(service, table),
        "/api/timeline": _get("timeline", "What happened on the bus lately", _LIST),
        "/api/events": _stream("events", "Status, rates and what happens, as server-sent events", []),
        "/api/openapi.json": _get("openapi", "This document", {"type": "object"}),
    }
    for info in infos:
        for name, method in sorted(info.rpc_methods.items()):
            if options.allowed(info.service_id, name):
                path = f"/api/services/{info.service_id}/methods/{name}"
                paths.setdefault(path, _call(info.service_id, name, method.signature, method.doc))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"The bus {status.bus}",
            "version": __version__,
            "description": "A DSE bus over HTTP. Rows are arrays of cells, in the order of the columns.",
        },
        "servers": [{"url": url.rstrip("/")}],
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, "Cell": _CELL, "Page": _PAGE, "Node": _NODE}},
    }
    if options.tokens is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


_LIST = {"type": "array", "items": {"type": "object"}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": example,
    }


def _parameter(name: str, schema: dict[str, Any], description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


def _errors(*statuses: int) -> dict[str, Any]:
    words = {
        401: "A token is needed",
        403: "Not allowed",
        404: "Not there; what is, stands in known",
        408: "The body came too slowly",
        413: "Too large",
        415: "Not JSON",
        421: "The Host header names another host",
        422: "Wrong; where says what",
        429: "Too many requests",
        502: "The service failed",
        503: "Not now",
        504: "No answer in time",
        500: "The gateway failed",
    }
    return {
        str(status): {
            "description": words[status],
            "content": {"application/json": {"schema": _reference("Error")}},
        }
        for status in statuses
    }


def _get(
    name: str, summary: str, schema: dict[str, Any], parameters: Iterable[dict[str, Any]] = (), *errors: int
) -> dict[str, Any]:
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
                **_errors(401, 403, 421, 429, *errors),
            },
        }
    }


def _rows(service: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    operators = ", ".join(OPERATORS)
    operation = _get(
        "rows",
        "Rows of a table, filtered, sorted, a page at a time",
        _reference("Page"),
        [
            service,
            table,
            _parameter("limit", {**count, "maximum": LONGEST_PAGE, "default": 100}, "Rows of a page"),
            _parameter("offset", count, "Rows before the page"),
            _parameter(
                "sort",
                {"type": "string"},
                "Columns, with commas between them; - before one: descending",
            ),
            _parameter(
                "filter",
                {"type": "array", "items": {"type": "string"}},
                f"COLUMN:OPERATOR:VALUE; all must hold. Operators: {operators}. A value is JSON where it can be",
                explode=True,
                style="form",
            ),
            _parameter(
                "format", {"type": "string", "enum": ["json", "csv"], "default": "json"}, "csv: all rows, or limit"
            ),
            _parameter(
                "raw", {"type": "string", "enum": ["0", "1"]}, "csv: text as it is, even if it looks like a formula"
            ),
        ],
        404,
        422,
        503,
    )
    operation["get"]["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    return operation


def _changes(service: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    since = _parameter(
        "since",
        {"type": "string"},
        "The cursor of a page, or the id of the last event that was seen (Last-Event-ID too)",
    )
    text = (
        "The changes of a table as server-sent events: change (added, removed, version), state, reset (read the rows "
        "again), gone"
    )
    return _stream("changes", text, [service, table, since], 404, 422)


def _stream(name: str, summary: str, parameters: list[dict[str, Any]], *errors: int) -> dict[str, Any]:
    operation = _get(name, summary, {}, parameters, *errors, 503)
    operation["get"]["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return operation


def _sendable(schema: Any) -> Any:
    """Return a schema whose whole numbers are of 64 bits: no others can be sent over the bus."""
    if isinstance(schema, list):
        return [_sendable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    bounded = {key: _sendable(value) for key, value in schema.items()}
    kinds = schema.get("type")
    if kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds):
        bounded |= {"minimum": -(1 << 63), "maximum": (1 << 64) - 1}
    return bounded


def _call(service_id: str, name: str, signature: str, doc: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"type": "object"}
    result: dict[str, Any] = {}
    try:
        parsed = Signature.parse(signature)
    except ConfigError:
        pass
    else:
        result = json_schema(parsed.returns)
        arguments["properties"] = {each.name: _sendable(json_schema(each.annotation)) for each in parsed.parameters}
        arguments["additionalProperties"] = False
        if required := [each.name for each in parsed.parameters if each.required]:
            arguments["required"] = required
    return {
        "post": {
            "operationId": f"{service_id}.{name}",
            "summary": f"Call {service_id}.{name}{signature}",
            "description": doc,
            "parameters": [
                _parameter("timeout", {"type": "number", "minimum": SHORTEST_CALL, "maximum": LONGEST_CALL}, "Seconds"),
                _parameter("node", {"type": "string", "minLength": 1}, "The replica on this node"),
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": arguments}}},
            "responses": {
                "200": {
                    "description": "What it returned",
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "required": ["result"], "properties": {"result": result}}
                        }
                    },
                },
                **_errors(401, 403, 404, 408, 413, 415, 421, 422, 429, 502, 503, 504, 500),
            },
        }
    }
