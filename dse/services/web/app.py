"""The gateway's HTTP interface: routes, and what is behind each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from difflib import get_close_matches
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from dse.core.info import DataServiceInfo
from dse.core.replica import ReplicaState
from dse.errors import DseError, InvalidArguments, MissingExtra
from dse.services.web.cells import csv_lines, json_bytes, json_rows
from dse.services.web.errors import Refused, answer, of_call
from dse.services.web.feed import Feed
from dse.services.web.guard import Guard, require
from dse.services.web.openapi import LONGEST_CALL, SHORTEST_CALL, openapi
from dse.services.web.options import Options
from dse.services.web.query import BadQuery, Query
from dse.services.web.stream import KEEPALIVE, NOTHING_NEW, EventStream
from dse.services.web.tables import Bus, Followed, Tables
from dse.services.web.watch import Watch, status_body

__all__ = ["make_app"]

_log = logging.getLogger("dse.web")

_BODY_WITHIN = 10.0  # seconds that a client has for the body of a request
_QUERIES = 2  # queries of rows that are worked out at one time: each may be long

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

Handler = Callable[[Request], Awaitable[Any]]


def make_app(bus: Bus, options: Options) -> tuple[ASGIApp, Callable[[], None], Callable[[], Awaitable[None]]]:
    """Return the application, what ends its streams, and what is to be awaited when it is served no more.

    All three are for its event loop alone.
    """
    gateway = _Gateway(bus, options)
    return Guard(gateway.app, options), gateway.end, gateway.close


class _Gateway:
    def __init__(self, bus: Bus, options: Options) -> None:
        self._bus = bus
        self._options = options
        self.tables = Tables(bus, options.limits)
        self.watch = Watch(bus)
        self._streams = 0
        self._ended = asyncio.Event()
        self._querying = asyncio.Semaphore(_QUERIES)
        self._files = {each.name: each.read_bytes() for each in (resources.files(__package__) / "static").iterdir()}
        routes = [
            self._route("/api/status", self._status),
            self._route("/api/nodes", self._nodes),
            self._route("/api/nodes/{node_id}", self._node),
            self._route("/api/services", self._services),
            self._route("/api/services/{service}", self._service),
            self._route("/api/services/{service}/methods/{method}", self._call, "POST", scope="call"),
            self._route("/api/tables", self._all_tables),
            self._route("/api/tables/{service}/{table}", self._rows),
            self._route("/api/tables/{service}/{table}/changes", self._changes),
            self._route("/api/events", self._events),
            self._route("/api/timeline", self._timeline),
            self._route("/api/openapi.json", self._openapi, scope=None),
            self._route("/metrics", self._metrics, scope="metrics"),
            self._route("/", self._page, scope=None),
            self._route("/static/{name}", self._static, scope=None),
        ]
        self.app = Starlette(
            routes=routes, exception_handlers={Refused: _refused, HTTPException: _http_error, Exception: _failed}
        )

    def end(self) -> None:
        self._ended.set()

    async def close(self) -> None:
        await self.watch.close()
        await self.tables.close()

    def _route(self, path: str, handler: Handler, method: str = "GET", *, scope: str | None = "read") -> Route:
        async def endpoint(request: Request) -> Any:
            if scope is not None:
                require(request.scope, scope)
            return await handler(request)

        return Route(path, endpoint, methods=[method])

    # The bus

    async def _status(self, _: Request) -> Response:
        return _json(status_body(self._bus.status()))

    async def _nodes(self, _: Request) -> Response:
        return _json(status_body(self._bus.status())["nodes"])

    async def _node(self, request: Request) -> Response:
        nodes = {node["node_id"]: node for node in status_body(self._bus.status())["nodes"]}
        wanted = request.path_params["node_id"]
        if wanted not in nodes:
            raise _unknown("node", wanted, nodes)
        return _json(nodes[wanted])

    async def _services(self, _: Request) -> Response:
        return _json([self._described(info) for info in self._infos()])

    async def _service(self, request: Request) -> Response:
        return _json([self._described(info) for info in self._of_service(request.path_params["service"])])

    async def _all_tables(self, _: Request) -> Response:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for info in self._infos():
            for table, columns in sorted(info.published_tables.items()):
                entry = {"service": info.service_id, "table": table, "columns": list(columns), "nodes": []}
                found.setdefault((info.service_id, table), entry)["nodes"].append(info.node_id)
        return _json(list(found.values()))

    async def _timeline(self, _: Request) -> Response:
        return _json(self.watch.timeline())

    async def _events(self, _: Request) -> Any:
        return await self._stream(self.watch.events())

    async def _metrics(self, _: Request) -> Response:
        try:
            from dse.services.metrics.families import CONTENT_TYPE, exposition
        except MissingExtra as error:
            raise Refused(501, "MissingExtra", str(error)) from None

        def scrape() -> bytes:
            return exposition(self._bus.status(), self._bus.figures())

        try:
            text = await asyncio.to_thread(scrape)
        except DseError as error:
            raise of_call(error) from None
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(self._bus.status(), self._infos(), self._options, str(request.base_url)))

    def _infos(self) -> list[DataServiceInfo]:
        infos = [
            info
            for node in self._bus.status().nodes.values()
            if node.state.value in ("JOINED", "SUSPECT")
            for info in node.services
        ]
        return sorted(infos, key=lambda info: (info.service_id, info.node_id))

    def _of_service(self, service_id: str) -> list[DataServiceInfo]:
        infos = self._infos()
        found = [info for info in infos if info.service_id == service_id]
        if not found:
            raise _unknown("service", service_id, {info.service_id for info in infos})
        return found

    def _described(self, info: DataServiceInfo) -> dict[str, Any]:
        said = info.to_dict()
        for name, method in said["rpc_methods"].items():
            method["allowed"] = self._options.allowed(info.service_id, name)
        return said

    # Tables

    def _table(self, request: Request) -> tuple[str, str, tuple[str, ...]]:
        """Return which table a request is about, and its columns; raises `Refused` for one that is not there."""
        service_id, table = request.path_params["service"], request.path_params["table"]
        tables = {
            name: columns for info in self._of_service(service_id) for name, columns in info.published_tables.items()
        }
        if table not in tables:
            raise _unknown("table", table, tables, of=service_id)
        return service_id, table, tables[table]

    async def _rows(self, request: Request) -> Response:
        service_id, table, columns = self._table(request)
        parameters = request.query_params.multi_items()
        form = request.query_params.get("format", "json")
        if form not in ("json", "csv"):
            raise Refused(422, "BadQuery", "a format is json or csv", where="format")
        raw = request.query_params.get("raw", "0")
        if raw not in ("0", "1"):
            raise Refused(422, "BadQuery", "raw is 0 or 1", where="raw")
        asked = [each for each in parameters if each[0] not in ("format", "raw")]
        try:
            query = Query.read(columns, asked)
        except BadQuery as error:
            raise Refused(422, "BadQuery", str(error), where=error.where) from None
        if form == "json" and not query.filters and not query.sort and not self.tables.known(service_id, table):
            first = await self._first_page(service_id, table, columns, query)
            if first is not None:
                return first
        async with self.tables.use(service_id, table) as followed, self._querying:
            rows, cursor, state = followed.feed.snapshot()
            if form == "csv":
                every = any(name == "limit" for name, _ in asked)
                chosen = await asyncio.to_thread((lambda r: query.select(r)[1]) if every else query.all, rows)
                return _csv(f"{service_id}.{table}", csv_lines(columns, chosen, raw=raw == "1"))
            body = await asyncio.to_thread(_page_body, service_id, table, columns, query, rows, cursor, state)
            return Response(body, media_type="application/json")

    async def _first_page(self, service_id: str, table: str, columns: tuple[str, ...], query: Query) -> Response | None:
        """Return some rows that the publisher gives at once, while the table is on its way; None when it cannot."""
        if query.offset or query.limit > 1000:
            return None
        async with self.tables.use(service_id, table, whole=False) as followed:
            try:
                said = await asyncio.to_thread(self._bus.first_rows, service_id, table, query.limit)
            except DseError:
                return None
            if said is None or followed.feed.known:
                return None
            rows, count = said
            body = _body(service_id, table, columns, query, followed.replica.state if followed.replica else None, None)
            return _json({**body, "total": count, "matched": count, "complete": False, "rows": json_rows(rows)})

    async def _changes(self, request: Request) -> Any:
        service_id, table, _ = self._table(request)
        unknown = set(request.query_params) - {"since"}
        if unknown:
            raise Refused(422, "BadQuery", "no such parameter; there is: since", where=sorted(unknown)[0])
        cursor = request.headers.get("last-event-id") or request.query_params.get("since")
        return await self._stream(self._follow(service_id, table, cursor))

    async def _follow(self, service_id: str, table: str, cursor: str | None) -> AsyncIterator[bytes]:
        try:
            async with self.tables.use(service_id, table, whole=False) as followed:
                yield followed.feed.hello()
                place = followed.feed.place_of(cursor)
                async for data in _changes_from(followed, place):
                    yield data
                yield _gone(followed.gone)
        except Refused as refused:
            yield _gone(str(refused))

    async def _stream(self, events: AsyncIterator[bytes]) -> Any:
        self.tables.require_memory()
        if self._streams >= self._options.limits.streams:
            raise Refused(
                503,
                "Busy",
                f"{self._streams} clients follow changes already, as many as may",
                headers={"Retry-After": "10"},
            )
        return EventStream(self._counted(events), self._options.limits.stall, self._ended)

    async def _counted(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            async with contextlib.aclosing(events):  # type: ignore[type-var]
                async for data in events:
                    yield data
        finally:
            self._streams -= 1

    # Methods

    async def _call(self, request: Request) -> Response:
        service_id, name = request.path_params["service"], request.path_params["method"]
        methods = {
            method: info.rpc_methods[method] for info in self._of_service(service_id) for method in info.rpc_methods
        }
        if name not in methods:
            raise _unknown("method", name, methods, of=service_id)
        if not self._options.allowed(service_id, name):
            raise Refused(
                403, "NotAllowed", f"this gateway is not configured to let {service_id}.{name} be called (allow)"
            )
        timeout = _timeout(request.query_params.get("timeout", "10"))
        node_id = request.query_params.get("node")
        nodes = {info.node_id for info in self._of_service(service_id)}
        if node_id is not None and node_id not in nodes:
            raise _unknown("node", node_id, nodes, of=service_id)
        args = await self._arguments(request)
        try:
            result = await self._bus.acall(service_id, name, args, timeout=timeout, node_id=node_id)
        except InvalidArguments as error:
            raise Refused(
                422, "InvalidArguments", str(error), where=_argument(str(error)), signature=methods[name].signature
            ) from None
        except DseError as error:
            raise of_call(error) from None
        try:
            return _json({"result": result})
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise Refused(502, "NoJson", f"{service_id}.{name} returned what JSON has not: {error}") from None

    async def _arguments(self, request: Request) -> dict[str, Any]:
        # A page of a stranger can send a form without being asked for; this type it cannot.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
        if kind != "application/json":
            raise Refused(415, "NotJson", "arguments are a JSON object: Content-Type: application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_WITHIN):
                async for part in request.stream():
                    body += part
                    if len(body) > self._options.limits.body:
                        raise Refused(
                            413, "TooLarge", f"the body of a request has at most {self._options.limits.body:,} bytes"
                        )
        except TimeoutError:
            raise Refused(408, "TooSlow", f"the body did not come within {_BODY_WITHIN:g} s") from None
        try:
            args = msgspec.json.decode(bytes(body)) if body else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(422, "NotJson", f"the body is no JSON: {error}", where="body") from None
        if not isinstance(args, dict):
            raise Refused(422, "NotJson", "arguments are a JSON object: names and values", where="body")
        return args

    # The page

    async def _page(self, _: Request) -> Response:
        return self._file("index.html")

    async def _static(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        data = self._files.get(name)
        kind = _KINDS.get(name[name.rfind(".") :])
        if data is None or kind is None:
            raise Refused(404, "NotFound", "there is nothing of this name")
        return Response(data, headers={"cache-control": "no-cache", "content-type": kind})


# Small parts


def _json(body: Any) -> Response:
    return Response(json_bytes(body), media_type="application/json")


def _csv(name: str, lines: Any) -> Response:
    return StreamingResponse(
        lines,
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name.encode("ascii", "replace").decode()}.csv"'},
    )


def _body(
    service_id: str,
    table: str,
    columns: tuple[str, ...],
    query: Query,
    state: ReplicaState | None,
    cursor: str | None,
) -> dict[str, Any]:
    return {
        "service": service_id,
        "table": table,
        "columns": list(columns),
        "state": state.value if state is not None else ReplicaState.SYNCING.value,
        "cursor": cursor,
        "offset": query.offset,
        "limit": query.limit,
    }


def _page_body(
    service_id: str,
    table: str,
    columns: tuple[str, ...],
    query: Query,
    rows: list[Any],
    cursor: str,
    state: ReplicaState,
) -> bytes:
    matched, chosen = query.select(rows)
    body = _body(service_id, table, columns, query, state, cursor)
    return json_bytes({**body, "total": len(rows), "matched": matched, "complete": True, "rows": json_rows(chosen)})


async def _changes_from(followed: Followed, place: int | None) -> AsyncIterator[bytes]:
    """Yield what happens to a table from a place in its journal on; ``reset`` when that is lost."""
    feed: Feed = followed.feed
    while True:
        batch = feed.batch(place) if place is not None else None
        if batch is None:
            reset, place = feed.reset()
            yield reset
            continue
        place = batch.place
        if batch.data:
            yield batch.data
        if followed.gone:
            return
        if not batch.more and not await followed.changed(KEEPALIVE):
            yield NOTHING_NEW


def _gone(why: str) -> bytes:
    return b"event: gone\ndata: " + json_bytes({"message": why}) + b"\n\n"


def _unknown(kind: str, name: str, known: Any, of: str = "") -> Refused:
    there = sorted(known)
    close = get_close_matches(name[:200], there, 1, 0.6)
    where = f" of {of}" if of else ""
    hint = f"; did you mean {close[0]}?" if close else ""
    shown = ", ".join(there[:50]) or "none"
    return Refused(
        404,
        f"NoSuch{kind.capitalize()}",
        f"no {kind} {name[:100]!a}{where}{hint} There are: {shown}",
        known=there[:200],
    )


def _timeout(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not SHORTEST_CALL <= value <= LONGEST_CALL:
        message = f"a timeout is a number of seconds, from {SHORTEST_CALL:g} to {LONGEST_CALL:g}"
        raise Refused(422, "BadQuery", message, where="timeout")
    return value


def _argument(message: str) -> str:
    """Return which argument an `InvalidArguments` is about, as it says itself; else the whole of them."""
    _, found, rest = message.rpartition("argument `")
    return rest.partition("`")[0] if found else "body"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return answer(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "there is nothing here; /api/openapi.json says what there is", 405: "this is not done here"}
    refused = Refused(
        error.status_code, "HttpError", message.get(error.status_code, error.detail), headers=dict(error.headers or {})
    )
    return answer(refused)


async def _failed(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(Refused(500, "Failed", "the gateway failed at this; its log says how"))
