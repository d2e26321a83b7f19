"""The web gateway over HTTP: what it answers, what it refuses, and that nobody holds it up."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dse import DataService, Node, NodeIdClash, Observer, Table, rpc
from dse.services.web import Gateway, Limits, Web, make_token
from dse.services.web.options import Options

DEADLINE = 20.0


class Shop(DataService):
    stock = Table("article", "count")
    notes = Table("text")

    @rpc
    def price(self, article: str, count: int = 1) -> float:
        """What it costs."""
        return 1.5 * count

    @rpc
    def fail(self) -> None:
        raise ValueError("the till is locked")

    @rpc
    def photo(self) -> bytes:
        return b"\xff"

    @rpc
    def slow(self) -> None:
        time.sleep(1.0)


class World:
    """A node with a shop, and a gateway."""

    def __init__(self, url: str, **options: Any) -> None:
        self.shop = Shop("shop")
        self.web = Web("web", port=0, allow=["shop.*"], **options)
        self.node = Node(url, node_id="n1", services=[self.shop, self.web], heartbeat_interval=0.1)
        self.node.start()
        self.http = httpx.Client(base_url=self.web.url, timeout=DEADLINE)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.web.url.rstrip("/").rpartition(":")[2])

    def get(self, path: str, **more: Any) -> Any:
        answer = self.http.get(f"/api/{path}", **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rows(self, table: str, **parameters: Any) -> Any:
        return eventually(lambda: complete(self.get(f"tables/shop/{table}", params=parameters)))

    def close(self) -> None:
        self.http.close()
        self.node.stop()


def complete(page: Any) -> Any:
    return page if page["complete"] else None


def eventually(what: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    until = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(f"fake://{uuid.uuid4().hex}", **getattr(request, "param", {}))
    yield made
    made.close()


def limits(**changed: Any) -> Any:
    return pytest.mark.parametrize("world", [{"limits": Limits(**changed)}], indirect=True, ids=[str(changed)])


class Stream:
    """A client that follows a stream of events, on a thread of its own."""

    def __init__(self, url: str, **headers: str) -> None:
        self.events: queue.Queue[tuple[str, Any, str]] = queue.Queue()
        self.closed = threading.Event()
        self._client = httpx.Client(timeout=DEADLINE)
        self._stack = contextlib.ExitStack()
        self.answer = self._stack.enter_context(self._client.stream("GET", url, headers=headers))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        event: dict[str, str] = {}
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
            for line in self.answer.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                elif "data" in event:
                    self.events.put((event["event"], json.loads(event["data"]), event.get("id", "")))
                    event = {}
        self.closed.set()

    def next(self, wanted: str) -> tuple[Any, str]:
        while True:
            event, data, number = self.events.get(timeout=DEADLINE)
            if event == wanted:
                return data, number

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        with contextlib.suppress(Exception):
            self._stack.close()
        self._client.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# What it answers


def test_status_nodes_services_and_tables(world: World) -> None:
    status = eventually(lambda: found if (found := world.get("status"))["nodes"] else None)
    assert status["nodes"][0]["node_id"] == "n1"
    assert status["nodes"][0]["state"] == "JOINED"
    assert world.get("nodes/n1")["services"][0]["service_id"] == "shop"
    (shop,) = world.get("services/shop")
    assert shop["rpc_methods"]["price"]["signature"] == "(article: str, count: int = 1) -> float"
    assert shop["rpc_methods"]["price"]["allowed"] is True
    assert [each["table"] for each in world.get("tables") if each["service"] == "shop"] == ["notes", "stock"]


def test_rows_are_filtered_sorted_and_paged(world: World) -> None:
    world.shop.stock.replace([(f"a{n:02}", n) for n in range(30)])
    page = world.rows("stock", sort="-count", limit=2, offset=1, filter="count:lt:20")
    assert (page["total"], page["matched"]) == (30, 20)
    assert page["rows"] == [["a18", 18], ["a17", 17]]
    assert page["state"] == "LIVE"


def test_rows_as_csv(world: World) -> None:
    world.shop.notes.replace([("=1+1",), ("two\nlines",)])
    answer = world.http.get("/api/tables/shop/notes?format=csv&sort=text")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text == 'text\r\n\'=1+1\r\n"two\nlines"\r\n'
    assert "=1+1\r\n" in world.http.get("/api/tables/shop/notes?format=csv&raw=1").text.replace("'", "")


def test_a_first_look_at_a_table_does_not_wait_for_the_whole_of_it(world: World) -> None:
    world.shop.stock.replace([(f"a{n}", n) for n in range(500)])
    page = world.get("tables/shop/stock", params={"limit": 10})
    if not page["complete"]:
        assert (page["total"], len(page["rows"]), page["cursor"]) == (500, 10, None)
    assert world.rows("stock", limit=10)["total"] == 500


def test_changes_are_followed_from_the_page_without_a_gap(world: World) -> None:
    world.shop.stock.insert([("pear", 1)])
    page = world.rows("stock")
    world.shop.stock.insert([("fig", 2)])
    with Stream(f"{world.web.url}api/tables/shop/stock/changes?since={page['cursor']}") as stream:
        assert stream.next("change")[0]["added"] == [["fig", 2]]
        world.shop.stock.delete([("pear", 1)])
        assert stream.next("change")[0]["removed"] == [["pear", 1]]


def test_a_client_that_comes_back_gets_what_it_missed(world: World) -> None:
    world.shop.stock.insert([("pear", 0)])
    url = f"{world.web.url}api/tables/shop/stock/changes"
    page = world.rows("stock")
    with Stream(f"{url}?since={page['cursor']}") as stream:
        world.shop.stock.insert([("pear", 1)])
        _, last = stream.next("change")
    for count in range(2, 5):
        world.shop.stock.insert([("pear", count)])
    with Stream(url, **{"Last-Event-ID": last}) as stream:
        missed: list[Any] = []
        while len(missed) < 3:
            missed += stream.next("change")[0]["added"]
    assert sorted(missed) == [["pear", 2], ["pear", 3], ["pear", 4]]


def test_a_place_that_is_lost_is_said_so(world: World) -> None:
    world.rows("stock")
    with Stream(f"{world.web.url}api/tables/shop/stock/changes?since=another-5") as stream:
        stream.next("reset")


def test_a_publisher_that_goes_and_comes_is_told_as_states(world: World) -> None:
    url = str(world.node.url)
    other = Shop("kiosk")
    with Node(url, node_id="n2", services=[other], heartbeat_interval=0.1):
        other.stock.insert([("pear", 1)])
        world.node.wait_for("kiosk", DEADLINE)
        eventually(lambda: complete(world.get("tables/kiosk/stock")))
        stream = Stream(f"{world.web.url}api/tables/kiosk/stock/changes")
        assert stream.next("state")[0]["state"] == "LIVE"
    assert stream.next("state")[0]["state"] == "STALE"
    with Node(url, node_id="n3", services=[Shop("kiosk")], heartbeat_interval=0.1):
        assert stream.next("change")[0]["removed"] == [["pear", 1]]
        assert stream.next("state")[0]["state"] == "LIVE"
    stream.close()


def test_methods_are_called(world: World) -> None:
    answer = world.http.post("/api/services/shop/methods/price", json={"article": "pear", "count": 2})
    assert (answer.status_code, answer.json()) == (200, {"result": 3.0})
    assert world.http.post("/api/services/shop/methods/photo", json={}).json() == {"result": "/w=="}


def test_events_tell_the_bus_its_rates_and_its_timeline(world: World) -> None:
    with Stream(f"{world.web.url}api/events") as stream:
        assert stream.next("bus")[0]["nodes"][0]["node_id"] == "n1"
        with Node(str(world.node.url), node_id="guest", heartbeat_interval=0.1):
            while (said := stream.next("timeline")[0])["node_id"] != "guest":
                pass
            assert said["kind"] == "joined"
            while "guest" not in stream.next("bus")[0].get("rates", {}).get("nodes", {}):
                pass
        while (said := stream.next("timeline")[0])["kind"] != "left":
            pass
    assert [each["kind"] for each in world.get("timeline") if each.get("node_id") == "guest"][-1] == "left"


def test_the_timeline_tells_of_a_clash(world: World) -> None:
    url = str(world.node.url)
    with Node(url, node_id="guest", heartbeat_interval=0.1):
        eventually(lambda: [each for each in world.get("timeline") if each.get("node_id") == "guest"])
        with pytest.raises(NodeIdClash):
            Node(url, node_id="guest", heartbeat_interval=0.1).start()
        eventually(lambda: [each for each in world.get("timeline") if each["kind"] == "clash"])
    eventually(lambda: [each for each in world.get("timeline") if each["kind"] == "left"])
    said = [each["kind"] for each in world.get("timeline") if each.get("node_id") == "guest"]
    assert said.count("clash") == 1
    assert "replaced" not in said


def test_the_gateway_beside_the_bus_is_on_nobodys_list(world: World) -> None:
    with (
        Observer(str(world.node.url)) as observer,
        Gateway(observer, Options("127.0.0.1", 0, [], None, [], Limits())) as beside,
    ):
        answer = httpx.get(f"{beside.url}api/status").json()
        assert [node["node_id"] for node in answer["nodes"]] == ["n1"]
        assert list(world.node.status().peers) == []


def test_nothing_is_left_when_it_stops() -> None:
    before = {thread.name for thread in threading.enumerate()}
    made = World(f"fake://{uuid.uuid4().hex}")
    made.rows("stock")
    stream = Stream(f"{made.web.url}api/tables/shop/stock/changes")
    stream.next("state")
    made.close()
    assert stream.closed.wait(DEADLINE)
    stream.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(made.address, 5)
    eventually(lambda: {thread.name for thread in threading.enumerate()} <= before)


def test_it_serves_again_after_a_restart_of_its_service(world: World) -> None:
    world.node.unregister("web")
    world.node.register(world.web)
    assert httpx.get(f"{world.web.url}api/status").status_code == 200


# What it refuses


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/tables/shop/stok", 404, "no table 'stok' of shop; did you mean stock? There are: notes, stock"),
        ("/api/tables/shp/stock", 404, "no service 'shp'; did you mean shop? There are: shop, web"),
        ("/api/nodes/n9", 404, "no node 'n9'"),
        ("/api/tables/shop/stock?filter=x:eq:1", 422, "no column 'x'; there are: article, count"),
        ("/api/tables/shop/stock?limit=many", 422, "a whole number from 0 to 10000"),
        ("/api/tables/shop/stock?format=xml", 422, "a format is json or csv"),
        ("/api/tables/shop/stock/changes?from=1", 422, "no such parameter; there is: since"),
        ("/api/nothing", 404, "there is nothing here; /api/openapi.json says what there is"),
        ("/static/..%2fservice.py", 404, "there is nothing here"),
        ("/static/service.py", 404, "there is nothing of this name"),
        ("/api/services/shop/methods/price", 405, "this is not done here"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(world: World, path: str, status: int, says: str) -> None:
    answer = world.http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert says in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "body", "status", "error", "where"),
    [
        ("price", {"article": 5}, 422, "InvalidArguments", "article"),
        ("price", {}, 422, "InvalidArguments", "article"),
        ("price", {"article": "a", "colour": 1}, 422, "InvalidArguments", "colour"),
        ("price", [1], 422, "NotJson", "body"),
        ("prise", {}, 404, "NoSuchMethod", None),
        ("fail", {}, 502, "RemoteError", None),
    ],
)
def test_a_wrong_call_is_told_its_place(
    world: World, method: str, body: Any, status: int, error: str, where: str | None
) -> None:
    answer = world.http.post(f"/api/services/shop/methods/{method}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json().get("where") == where


def test_a_call_that_takes_too_long_is_a_timeout(world: World) -> None:
    answer = world.http.post("/api/services/shop/methods/slow?timeout=0.1", json={})
    assert (answer.status_code, answer.json()["error"]) == (504, "CallTimeout")
    assert world.http.post("/api/services/shop/methods/slow?timeout=-1", json={}).status_code == 422


@pytest.mark.parametrize("world", [{"limits": Limits(body=1000)}], indirect=True)
def test_a_body_that_is_too_large_no_json_or_a_form(world: World) -> None:
    path = "/api/services/shop/methods/price"
    assert world.http.post(path, json={"article": "x" * 2000}).status_code == 413
    assert (
        world.http.post(path, content=iter([b"x" * 600] * 3), headers={"content-type": "application/json"}).status_code
        == 413
    )
    assert world.http.post(path, content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert world.http.post(path, content=b"[" * 900, headers={"content-type": "application/json"}).status_code == 422
    assert world.http.post(path, data={"article": "pear"}).status_code == 415
    assert world.http.post(path, content=b"{}").status_code == 415


def test_no_method_may_be_called_unless_it_is_said() -> None:
    shop, web = Shop("shop"), Web("web", port=0)
    with Node(f"fake://{uuid.uuid4().hex}", services=[shop, web]):
        answer = httpx.post(f"{web.url}api/services/shop/methods/price", json={"article": "pear"})
        assert (answer.status_code, answer.json()["error"]) == (403, "NotAllowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(world: World, headers: dict[str, str]) -> None:
    for answer in (
        world.http.get("/api/status", headers=headers),
        world.http.post("/api/services/shop/methods/price", json={"article": "pear"}, headers=headers),
    ):
        assert (answer.status_code, answer.json()["error"]) == (403, "CrossSite")
        assert "access-control-allow-origin" not in answer.headers


def test_a_name_that_is_not_the_gateways_is_refused(world: World) -> None:
    port = world.address[1]
    for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example"):
        assert world.http.get("/api/status", headers={"Host": host}).status_code == 421
    for host in (f"localhost:{port}", "LOCALHOST", "127.0.0.1", f"[::1]:{port}"):
        assert world.http.get("/api/status", headers={"Host": host}).status_code == 200


def test_every_answer_has_the_headers_that_protect_the_page(world: World) -> None:
    for path in ("/", "/static/app.js", "/api/status", "/api/nothing"):
        headers = world.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[World, dict[str, str]]]:
    """A gateway that wants tokens, and one of each scope."""
    made = {scope: make_token(scope, scope) for scope in ("read", "call")}
    file = tmp_path / "tokens"
    file.write_text("\n".join(line for _, line in made.values()))
    world = World(f"fake://{uuid.uuid4().hex}", tokens=file)
    yield world, {scope: token for scope, (token, _) in made.items()}
    world.close()


def test_tokens_have_scopes(guarded: tuple[World, dict[str, str]]) -> None:
    world, tokens = guarded

    def status(scope: str | None, call: bool = False) -> int:
        headers = {"Authorization": f"Bearer {tokens[scope]}"} if scope else {}
        if call:
            return world.http.post(
                "/api/services/shop/methods/price", json={"article": "pear"}, headers=headers
            ).status_code
        return world.http.get("/api/status", headers=headers).status_code

    assert [status(None), status("read"), status("call")] == [401, 200, 403]
    assert [status(None, True), status("read", True), status("call", True)] == [401, 403, 200]
    assert world.http.get("/").status_code == 200  # the page itself asks for the token


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer x", "Bearer x y", "Basic eDp5", "Bearer " + "x" * 10_000, "bearer", "Bearer ünïcode", "\xff"],
    ids=range(8),
)
def test_a_malformed_token_is_none(guarded: tuple[World, dict[str, str]], authorization: str) -> None:
    answer = guarded[0].http.get("/api/status", headers=[(b"authorization", authorization.encode("latin-1"))])
    assert answer.status_code == 401
    assert "bearer" in answer.headers["www-authenticate"].lower()


@limits(rate=1, burst=5)
def test_requests_beyond_the_rate_are_told_when_to_come_again(world: World) -> None:
    statuses = [world.http.get("/api/status").status_code for _ in range(8)]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses[5:]


@limits(streams=2)
def test_streams_are_limited(world: World) -> None:
    world.rows("stock")
    url = f"{world.web.url}api/tables/shop/stock/changes"
    with Stream(url) as one, Stream(url) as two:
        one.next("state")
        two.next("state")
        assert httpx.get(url).status_code == 503
    eventually(lambda: opened(url))


def opened(url: str) -> bool:
    with httpx.stream("GET", url) as answer:
        return answer.status_code == 200


@limits(rows=100)
def test_a_table_that_is_too_large_is_refused_and_let_go(world: World) -> None:
    world.shop.stock.replace([(f"a{n}", n) for n in range(200)])
    answer = world.http.get("/api/tables/shop/stock?sort=count")
    assert answer.status_code == 503
    assert "shop:stock has 200 rows, and the gateway holds at most 100" in answer.json()["message"]
    eventually(lambda: ("shop", "stock") not in world.web.info.subscribed_tables)


@limits(memory=1)
def test_nobody_new_is_taken_on_when_memory_is_full(world: World) -> None:
    eventually(lambda: world.http.get("/api/tables/shop/stock?sort=count").status_code == 503)
    answer = world.http.get("/api/events")
    assert answer.status_code == 503
    assert "the gateway holds 1 MiB of memory, as much as it may" in answer.json()["message"]
    assert world.http.get("/api/status").status_code == 200


@limits(linger=0.2)
def test_a_table_that_nobody_looks_at_is_followed_no_more(world: World) -> None:
    with Stream(f"{world.web.url}api/tables/shop/stock/changes") as stream:
        stream.next("state")
        assert ("shop", "stock") in world.web.info.subscribed_tables
    eventually(lambda: ("shop", "stock") not in world.web.info.subscribed_tables)


@limits(tables=1, linger=0)
def test_the_tables_that_are_followed_are_limited(world: World) -> None:
    with Stream(f"{world.web.url}api/tables/shop/stock/changes") as stream:
        stream.next("state")
        assert world.http.get("/api/tables/shop/notes?sort=text").status_code == 503
    eventually(lambda: world.http.get("/api/tables/shop/notes?sort=text").status_code == 200)


# Clients that are slow, or worse


@limits(stall=0.5)
def test_a_client_that_takes_nothing_is_cut_off_and_holds_up_nobody(world: World) -> None:
    world.rows("notes")
    stalled = socket.create_connection(world.address, 5)
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.sendall(b"GET /api/tables/shop/notes/changes HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with Stream(f"{world.web.url}api/tables/shop/notes/changes") as lively:
        lively.next("state")
        for number in range(400):
            world.shop.notes.replace([(f"{number}" + "x" * 20_000,)])
            if number % 20 == 19:  # what the journal holds is less than all of it
                while int(lively.next("change")[0]["added"][0][0].rstrip("x")) < number:
                    pass
    # It gets what was in the buffers, and then the end of the connection.
    stalled.settimeout(DEADLINE)
    with contextlib.suppress(ConnectionResetError):
        while stalled.recv(1 << 16):
            pass
    stalled.close()
    assert world.http.get("/api/status").status_code == 200


def test_the_head_of_a_request_has_a_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dse.services.web.server._HEAD_WITHIN", 0.3)
    slow = socket.create_connection(world.address, 5)
    slow.settimeout(DEADLINE)
    slow.sendall(b"GET / HTTP/1.1\r\nHost: local")
    with contextlib.suppress(ConnectionResetError):
        assert slow.recv(100) == b""
    slow.close()


def test_the_second_request_of_a_connection_has_it_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dse.services.web.server._HEAD_WITHIN", 0.3)
    slow = socket.create_connection(world.address, 5)
    slow.settimeout(DEADLINE)
    slow.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert slow.recv(100_000).startswith(b"HTTP/1.1 200")
    slow.sendall(b"GET /static/icon")
    with contextlib.suppress(ConnectionResetError):
        while slow.recv(100_000):
            pass
    slow.close()


def test_a_head_that_is_too_long_is_refused(world: World) -> None:
    with socket.create_connection(world.address, 5) as long:
        long.settimeout(DEADLINE)
        with contextlib.suppress(OSError):
            long.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        with contextlib.suppress(ConnectionResetError):
            assert long.recv(1000)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
    assert world.http.get("/api/status").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dse.services.web.app._BODY_WITHIN", 0.3)
    with socket.create_connection(world.address, 5) as slow:
        slow.settimeout(DEADLINE)
        slow.sendall(
            b"POST /api/services/shop/methods/price HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("junk", [b"\x00" * 100, b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n"])
def test_what_is_no_http_is_refused_and_forgotten(world: World, junk: bytes) -> None:
    with socket.create_connection(world.address, 5) as strange:
        strange.settimeout(DEADLINE)
        strange.sendall(junk)
        strange.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while strange.recv(1000):
                pass
    assert world.http.get("/api/status").status_code == 200


def test_openapi_describes_what_may_be_called(world: World) -> None:
    document = world.get("openapi.json")
    call = document["paths"]["/api/services/shop/methods/price"]["post"]
    assert call["requestBody"]["content"]["application/json"]["schema"]["required"] == ["article"]
    assert "/api/services/web/methods/x" not in document["paths"]


def test_a_port_that_is_taken_is_said(world: World) -> None:
    from dse.errors import ConfigError

    host, port = world.address
    with pytest.raises(ConfigError, match=f"nothing can listen on {host}, port {port}"):
        Node(str(world.node.url), node_id="n2", services=[Web("other", port=port)]).start()
