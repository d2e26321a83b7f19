"""The data source http, over a real server that is slow, wrong, hostile or gone for a while."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("jmespath")
import trustme

from dse import ConfigError, DataService, Node, Replica, ReplicaState
from dse.services.sources.http import Http, HttpColumn, HttpTable

PATIENCE = 10.0
COLUMNS: dict[str, str | HttpColumn] = {"id": "int", "cpu": HttpColumn(path="stats.cpu", type="float")}

Request = tuple[str, dict[str, str]]
Answer = Callable[[socket.socket, Request], None]


def item(number: int, cpu: object = 0.5) -> dict[str, object]:
    return {"id": number, "stats": {"cpu": cpu}}


def reply(body: object = b"", status: str = "200 OK", **headers: str) -> Answer:
    """An answer that is as it should be, but for the headers given."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    def send(line: socket.socket, request: Request) -> None:
        line.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data)

    return send


class Server:
    """Answers each path as the test says; keeps what was asked. Ends with no thread left."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.ending = threading.Event()
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(line,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(line)
            line.settimeout(PATIENCE)
            if self._context is not None:
                line = stack.enter_context(self._context.wrap_socket(line, server_side=True))
            data = b""
            while b"\r\n\r\n" not in data:
                more = line.recv(65536)
                if not more:
                    return
                data += more
            first, *fields = data.decode().split("\r\n\r\n")[0].split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            request = (first.split(" ")[1], headers)
            self.requests.append(request)
            answer = self.answers.get(request[0].partition("?")[0], reply(b"none", "404 Not Found"))
            answer(line, request)

    def close(self) -> None:
        self.ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Bus:
    def __init__(self, node: Node, reader: DataService) -> None:
        self.node, self.reader = node, reader

    def rows(self, *rows: tuple[object, ...]) -> Replica:
        replica = self.reader.subscribe("web", "items")
        replica.wait(lambda replica: replica.state is ReplicaState.LIVE and replica.rows == set(rows), PATIENCE)
        return replica

    def reason(self, state: str, *parts: str) -> str:
        found: list[str] = []

        def seen(replica: Replica) -> bool:
            found[:] = [row[2] for row in replica.rows if row[:2] == ("items", state)]
            return bool(found) and all(part in found[0] for part in parts)

        self.reader.subscribe("web", "status").wait(seen, PATIENCE)
        return found[0]


@contextmanager
def running(url: str, options: Mapping[str, Any] | None = None, **table: Any) -> Iterator[Bus]:
    settings: dict[str, Any] = {"columns": COLUMNS, "interval": 0.05, "timeout": 5.0} | table
    tables = {"items": HttpTable(url=url, **settings)}
    source, reader = Http("web", tables=tables, max_backoff=0.1, **(options or {})), DataService("reader")
    bus = f"fake://{uuid.uuid4().hex}"
    with Node(bus, services=[source]), Node(bus, services=[reader]) as node:
        node.wait_for("web", PATIENCE)
        yield Bus(node, reader)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("web-", "http-source"))]


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_rows_are_what_the_paths_give(server: Server) -> None:
    server.answers["/"] = reply(
        {"items": [item(1) | {"state": "up"}, item(2) | {"state": "down"}, item(3, 2) | {"state": "up"}]}
    )
    with running(server.url + "/", rows="items[?state=='up']") as bus:
        bus.rows((1, 0.5), (3, 2.0))
        server.answers["/"] = reply({"items": []})
        bus.rows()
        bus.reason("RUNNING")


def test_rows_that_do_not_fit_are_named_by_place(server: Server) -> None:
    server.answers["/a"] = reply({"items": [item(1), item(2, "high"), 7, None, item(5)]})
    with running(server.url + "/a?key=hidden", rows="items") as bus:
        bus.rows((1, 0.5), (5, 0.5))
        reason = bus.reason(
            "DEGRADED", "3 rows are left out", f"{server.url}/a#items[1]: column 'cpu': 'high' is not a float"
        )
        assert "hidden" not in reason


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_text_is_decoded_by_mark_or_charset(server: Server, encoding: str) -> None:
    body = json.dumps([{"name": "Zoë"}], ensure_ascii=False).encode(encoding)
    server.answers["/"] = reply(body, Content_Type=f"application/json; charset={encoding.removesuffix('-sig')}")
    with running(server.url + "/", columns={"name": "str"}) as bus:
        bus.rows(("Zoë",))


def bomb(line: socket.socket, request: Request) -> None:
    reply(gzip.compress(b" " * 50_000_000), Content_Encoding="gzip")(line, request)


def drip(line: socket.socket, request: Request) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
    _drop_by_drop(line)


def drip_headers(line: socket.socket, request: Request) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
    _drop_by_drop(line)


def _drop_by_drop(line: socket.socket) -> None:
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        line.sendall(b"1")
        threading.Event().wait(0.05)


def hang(line: socket.socket, request: Request) -> None:
    line.recv(1)


@pytest.mark.parametrize(
    ("answer", "says", "options"),
    [
        (reply(b"<html>no", Content_Type="text/html"), "not JSON, answers 200 (text/html): '<html>no'", {}),
        (reply(b"broken", "500 Oops", Content_Type="text/plain"), "answers 500 (text/plain): 'broken'", {}),
        (reply({"other": 1}), "rows = 'items' gives null, not a list", {"rows": "items"}),
        (reply(b"[" * 1_000_000), "nested too deeply", {}),
        (reply(b'[{"id": NaN}]'), "not JSON", {}),
        (reply([item(1), item(2), item(3)]), "more than max_rows = 2 rows", {"max_rows": 2}),
        (reply(b" " * 2000), "the body is larger than max_bytes = 1000", {"max_bytes": 1000}),
        (bomb, "the body is larger than max_bytes = 1000000", {"max_bytes": 1_000_000}),
        (reply(gzip.compress(b"[1]" * 99)[:-9], Content_Encoding="gzip"), "the compressed body ends too early", {}),
        (reply(b"[]", Content_Encoding="gzip"), "incorrect header check", {}),
        (reply(b"[]", Content_Encoding="br"), "content encoding 'br' was not asked for", {}),
        (reply(b"[]", Content_Length="99"), "without sending complete message body", {}),
        (reply(b"[]", "304 Not Modified"), "answers 304", {}),
        (lambda line, request: line.sendall(b"garbage\r\n\r\n"), "illegal", {}),
        (lambda line, request: None, "disconnected without sending a response", {}),
        (drip, "no whole answer in time", {"timeout": 0.4}),
        (drip_headers, "no whole answer in time", {"timeout": 0.4}),
        (hang, "not a byte for 0.2 s", {"read_timeout": 0.2}),
        (reply(b"", "302 Found", Location="/"), "more than 5 redirects", {}),
        (reply(b"", "302 Found", Location="file:///etc/passwd"), "which is no http(s) URL", {}),
        (reply(b"", "302 Found"), "which is no http(s) URL", {}),
    ],
)
def test_an_answer_that_is_wrong_keeps_the_rows_and_says_why(
    server: Server, answer: Answer, says: str, options: dict[str, Any]
) -> None:
    server.answers["/"] = reply({"items": [item(1)]} if "rows" in options else [item(1)])
    with running(server.url + "/", **options) as bus:
        replica = bus.rows((1, 0.5))
        good = server.answers["/"]
        server.answers["/"] = answer
        bus.reason("DEGRADED", server.url, says)
        assert replica.rows == {(1, 0.5)}
        server.answers["/"] = good
        bus.reason("RUNNING")


def test_a_server_that_is_gone_for_a_while_is_found_again() -> None:
    first = Server()
    first.answers["/"] = reply([item(1)])
    with running(first.url + "/") as bus:
        bus.rows((1, 0.5))
        first.close()
        bus.reason("DEGRADED", "Connection refused")
        second = Server(port=first.port)
        second.answers["/"] = reply([item(2)])
        bus.rows((2, 0.5))
        second.close()


def test_stopping_does_not_wait_for_an_answer(server: Server) -> None:
    server.answers["/"] = hang
    with running(server.url + "/", read_timeout=100.0, timeout=100.0):
        wait(lambda: server.requests)
        began = time.monotonic()
    assert time.monotonic() - began < 3.0


def test_what_did_not_change_is_not_sent_again(server: Server) -> None:
    def answer(line: socket.socket, request: Request) -> None:
        known = request[1].get("if-none-match") == '"v1"' and request[1].get("if-modified-since") == "yesterday"
        (reply(status="304 Not Modified") if known else reply([item(1)], ETag='"v1"', Last_Modified="yesterday"))(
            line, request
        )

    server.answers["/"] = answer
    with running(server.url + "/") as bus:
        wait(lambda: len(server.requests) >= 4)
        bus.rows((1, 0.5))
        bus.reason("RUNNING")
    assert ["if-none-match" in headers for _, headers in server.requests[:4]] == [False, True, True, True]


def test_a_server_is_not_asked_while_its_answer_is_fresh_or_it_wants_to_be_left_alone(server: Server) -> None:
    server.answers["/fresh"] = reply([item(1)], Cache_Control="max-age=3600")  # honoured for ten intervals
    with running(server.url + "/fresh", interval=0.1) as bus:
        began = time.monotonic()
        wait(lambda: len(server.requests) >= 2)
        assert time.monotonic() - began > 0.8
    server.requests.clear()
    server.answers["/busy"] = reply(b"", "429 Too Many Requests", Retry_After="1")
    with running(server.url + "/busy") as bus:
        bus.reason("DEGRADED", "answers 429", "asks to wait 1 s")
        began = time.monotonic()
        server.answers["/busy"] = reply([item(2)])
        bus.rows((2, 0.5))
        assert time.monotonic() - began > 0.7
        assert len(server.requests) >= 2


def test_pages_are_one_table(server: Server) -> None:
    server.answers["/1"] = reply([item(1)], Link='</0>; rel="prev", </2?x=1,2>; rel="next"')
    server.answers["/2"] = reply([item(2)], Link='</1>; rel="first"')
    with running(server.url + "/1", follow_links=True) as bus:
        bus.rows((1, 0.5), (2, 0.5))
        server.answers["/2"] = reply(b"", "500 Oops")
        server.answers["/1"] = reply([item(9)], Link='</2>; rel="next"')
        bus.reason("DEGRADED", "/2: answers 500")
        assert bus.rows((1, 0.5), (2, 0.5))  # no half of a table
        server.answers["/2"] = reply([item(3)], Link="</1>; rel=next")
        bus.reason("DEGRADED", "the pages go in a circle")


def test_pages_by_cursor_are_limited(server: Server) -> None:
    def answer(line: socket.socket, request: Request) -> None:
        at = int(request[0].partition("cursor=")[2] or 0)
        reply({"rows": [item(at)], "next": at + 1 if at < last[0] else None})(line, request)

    last = [2]
    server.answers["/"] = answer
    paging = {"rows": "rows", "next_page": "next", "cursor_parameter": "cursor", "max_pages": 3}
    with running(server.url + "/?a=b", **paging) as bus:
        bus.rows((0, 0.5), (1, 0.5), (2, 0.5))
        assert "/?a=b&cursor=1" in [path for path, _ in server.requests]
        last[0] = 3
        bus.reason("DEGRADED", "more than max_pages = 3 pages")


def test_credentials_are_sent_to_their_own_host_only_and_shown_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dse")
    secret, key = uuid.uuid4().hex, uuid.uuid4().hex
    other = Server()
    server.answers["/"] = reply(b"", "307 Temporary Redirect", Location=other.url + "/there")
    other.answers["/there"] = reply([item(1)])
    options = {"token": secret, "headers": {"X-Key": key}}
    with running(server.url + "/", options) as bus:
        bus.rows((1, 0.5))
        assert server.requests[0][1]["authorization"] == f"Bearer {secret}"
        assert server.requests[0][1]["x-key"] == key
        assert not {"authorization", "x-key"} & set(other.requests[0][1])
        server.answers["/"] = reply(f"you sent {secret} {key}".encode(), "401 Unauthorized")
        reason = bus.reason("DEGRADED", "answers 401")
        assert secret not in reason
        assert key not in reason
    other.close()
    assert secret not in caplog.text
    with running(server.url + "/", {"username": "u", "password": "p"}):
        wait(lambda: server.requests[-1][1].get("authorization") == "Basic dTpw")


# TLS


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


# CPython's wrap_socket leaves its SSLSocket to the collector when the peer resets the connection before the handshake,
# as a server that ends may: seen with a socket that is reset by hand, without httpx or DSE.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_is_checked_and_a_client_certificate_shown(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    ca_file, client_file = tmp_path / "ca.pem", tmp_path / "client.pem"
    ours.cert_pem.write_to_path(str(ca_file))
    ours.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(client_file))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    bad = {
        "unable to get local issuer certificate": theirs.issue_cert("127.0.0.1"),
        "certificate has expired": ours.issue_cert("127.0.0.1", not_after=past),
        "certificate is not valid for '127.0.0.1'": ours.issue_cert("other.example"),
    }
    for says, certificate in bad.items():
        server = Server(context_of(certificate))
        with running(server.url + "/", {"ca_file": ca_file}) as bus:
            bus.reason("DEGRADED", "certificate verify failed", says)
        server.close()
        assert not server.requests

    context = context_of(ours.issue_cert("127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    ours.configure_trust(context)
    plain, server = Server(), Server(context)
    server.answers["/"] = reply([item(1)])
    with running(server.url + "/", {"ca_file": ca_file, "cert_file": client_file}) as bus:
        bus.rows((1, 0.5))
        server.answers["/"] = reply(b"", "302 Found", Location=plain.url + "/")
        bus.reason("DEGRADED", "leads from https to http://", "which is not followed")
        assert not plain.requests
    plain.close()
    server.close()
    with running(server.url + "/", {"ca_file": tmp_path / "none.pem"}) as bus:
        bus.reason("DEGRADED", "ca_file", "none.pem: No such file")


@pytest.mark.parametrize(
    ("table", "options", "key"),
    [
        ({"url": "ftp://a/"}, {}, ("tables", "items", "url")),
        ({"url": "http://u:hidden@a/"}, {}, ("tables", "items", "url")),
        ({"rows": "items["}, {}, ("tables", "items", "rows")),
        ({"columns": {"a": HttpColumn(path="]", type="int")}}, {}, ("tables", "items", "columns", "a")),
        ({"columns": {"a": "integer"}}, {}, ("tables", "items", "columns", "a")),
        ({"timeout": 0.0}, {}, ("tables", "items", "timeout")),
        ({"cursor_parameter": "c"}, {}, ("tables", "items", "cursor_parameter")),
        ({}, {"token": "hidden\r\nX: y"}, ("token",)),
        ({}, {"token": "hidden", "username": "u"}, ("token",)),
        ({}, {"headers": {"X": "hidden\n"}}, ("headers", "X")),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(
    table: dict[str, Any], options: dict[str, Any], key: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"url": "http://a/", "columns": COLUMNS} | table
    with pytest.raises(ConfigError) as raised:
        Http("web", tables={"items": HttpTable(**settings)}, **options)
    assert raised.value.key == key
    assert "hidden" not in str(raised.value)
