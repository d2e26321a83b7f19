"""What only the NATS driver does: its URLs, its subjects, its words for what is wrong, TLS, several servers.

The guarantees that all drivers share are the contract suite's business.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.plugins import installed_transports, load_transport
from dse.core.transport import Address, ConnectionState, Delivery
from dse.errors import InvalidUrl, TransportUnavailable
from dse.testing.certificates import files_for
from dse.testing.contract.fixtures import bounded
from dse.testing.contract.recorder import DEADLINE, PROMPT, Client, address, eventually, with_options
from dse_nats import NatsTransport
from dse_nats.testing import NatsServer
from dse_nats.transport import subject, subjects_of

Make = Callable[..., Client]
SECRET = "Tr0ub4dor&3"


def test_dse_finds_it_as_any_plugin() -> None:
    (entry,) = (e for e in distribution("dse-nats").entry_points if e.group == "dse.transports")
    assert entry.name == "nats"
    assert "nats" in installed_transports()
    for scheme in ("nats", "nats+tls", "nats+local"):
        assert load_transport(f"{scheme}://somewhere") is NatsTransport


class TestSubjects:
    @given(st.text(min_size=1), st.text(min_size=1, max_size=9), st.sampled_from(Delivery))
    def test_no_name_is_taken_for_syntax(self, name: str, bus: str, delivery: Delivery) -> None:
        made = subject(bus, Address(delivery, name))
        assert made.startswith(subjects_of(bus))
        tokens = made.split(".")
        assert len(tokens) == 4
        assert all(tokens)
        assert not set(made) & set("*> \t\r\n\0")
        assert made.isascii()
        assert len(made) < 1000

    @given(st.text(min_size=1), st.text(min_size=1))
    def test_different_names_are_different_subjects(self, one: str, other: str) -> None:
        made = {subject("bus", Address(Delivery.DIRECT, name)) for name in (one, other)}
        assert len(made) == len({one, other})

    def test_one_pattern_is_a_whole_bus(self) -> None:
        assert subjects_of("prod") == "dse.prod."
        assert subject("prod", Address(Delivery.ANYCAST, "a.b")) == "dse.prod.a.a%2Eb"
        assert subjects_of("a.b *") == "dse.a%2Eb%20%2A."


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("nats://", "host"),
            ("nats://a/path", "'path'"),
            ("nats+ws://a", r"nats\+ws"),
            ("nats://a?nonsense=1", "ssl_ca_certs"),
            ("nats://a?heartbeat=0", "heartbeat"),
            ("nats://user:pw@a?token=x", "token"),
            ("nats+tls://a?ssl_ca_certs=/does/not/exist", "ssl_ca_certs"),
            ("nats+tls://a?ssl_certfile=/does/not/exist", "ssl_certfile"),
            ("nats+tls://a?ssl_keyfile=/k.pem", "ssl_certfile"),
            ("nats+tls://a?ssl_check_hostname=perhaps", "ssl_check_hostname"),
        ],
    )
    def test_says_which_part_is_wrong(self, make: Make, url: str, part: str) -> None:
        with pytest.raises(InvalidUrl, match=part):
            make(url, opened=False)

    def test_a_token_in_the_place_of_a_user_is_not_shown(self, make: Make) -> None:
        with pytest.raises(InvalidUrl, match="token") as caught:
            make("nats://s3cret@host", opened=False)
        assert "s3cret" not in str(caught.value)

    def test_a_token_is_not_shown(self, make: Make) -> None:
        for url in ("nats://:s3cret@a", "nats://a?token=s3cret"):
            assert "s3cret" not in repr(make(url, opened=False).transport.url)


def refused(make: Make, url: str, *, within: float = 1.5) -> str:
    """Opening fails in time, with a typed error without the password; return its words."""
    client = make(with_options(url, connect_timeout=1), opened=False)
    began = time.monotonic()
    with pytest.raises(TransportUnavailable) as caught:
        client.open()
    assert time.monotonic() - began < within
    assert caught.value.url == str(client.transport.url)
    assert "Tr0ub" not in str(caught.value) + repr(caught.value.cause)
    assert client.states == []
    return str(caught.value)


@contextlib.contextmanager
def answering(answer: bytes, *, drip: float = 0.0) -> Iterator[int]:
    """Listen on a port of one's own, and answer whoever connects in the same way, then keep still."""
    done = threading.Event()
    peers: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peers.append(peer)
                for start in range(0, len(answer), 1 if drip else len(answer) or 1):
                    peer.sendall(answer[start : start + 1] if drip else answer)
                    if drip and done.wait(drip):
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for peer in peers:
                peer.close()


@pytest.fixture(scope="module")
def locked() -> Iterator[NatsServer]:
    with NatsServer(username="user", password=SECRET) as server:
        yield server


class TestRefusal:
    """A server that cannot be used is a typed error, in time, in words, without the password."""

    @pytest.mark.parametrize("userinfo", ["user:Tr0ubwrong@", "nobody:Tr0ub@", ":Tr0ub@", ""])
    def test_wrong_credentials(self, make: Make, locked: NatsServer, userinfo: str) -> None:
        url = f"nats://{userinfo}127.0.0.1:{locked.port}"
        assert "refuses the user name, password or token" in refused(make, url)

    def test_right_credentials(self, make: Make, locked: NatsServer) -> None:
        make(locked.direct_url)

    @pytest.mark.parametrize("form", ["nats://:{token}@127.0.0.1:{port}", "nats://127.0.0.1:{port}?token={token}"])
    def test_tokens(self, make: Make, form: str) -> None:
        with NatsServer(config=f'authorization {{ token: "{SECRET}" }}') as server:
            with socket.create_connection(("127.0.0.1", server.port)):
                pass
            make(form.format(token="Tr0ub4dor%263", port=server.port))
            assert "refuses" in refused(make, form.format(token="Tr0ub", port=server.port))

    def test_nobody_there(self, make: Make) -> None:
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            assert f"refused the connection (127.0.0.1:{port})" in refused(make, f"nats://127.0.0.1:{port}")

    def test_unknown_host(self, make: Make) -> None:
        assert "cannot be resolved" in refused(make, "nats://no-such-host.invalid", within=6)

    @pytest.mark.parametrize("scheme", ["nats", "nats+tls"])
    def test_silence(self, make: Make, scheme: str) -> None:
        with answering(b"") as port:
            assert "did not answer within 1 s" in refused(make, f"{scheme}://127.0.0.1:{port}")

    def test_answer_in_drips(self, make: Make) -> None:
        with answering(b"INFO {" + b" " * 1000, drip=0.1) as port:
            assert "did not answer within 1 s" in refused(make, f"nats://127.0.0.1:{port}")

    @pytest.mark.parametrize(
        "greeting",
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"+OK POP3 ready\r\n", b"PING\r\n", b"INFO {}}\r\n"],
    )
    def test_other_protocol(self, make: Make, greeting: bytes) -> None:
        with answering(greeting) as port:
            assert "does not speak the NATS protocol" in refused(make, f"nats://127.0.0.1:{port}")

    def test_too_old(self, make: Make) -> None:
        with answering(b'INFO {"server_id":"x","version":"2.1.9","max_payload":1048576}\r\n') as port:
            assert "NATS 2.2 or later" in refused(make, f"nats://127.0.0.1:{port}")

    def test_no_tls(self, make: Make, server: NatsServer) -> None:
        assert "offers no TLS" in refused(make, f"nats+tls://127.0.0.1:{server.port}")

    def test_messages_too_small(self, make: Make) -> None:
        with NatsServer(config="max_payload: 512") as server:
            assert "needs a max_payload of 1024" in refused(make, server.direct_url)

    def test_no_right_to_the_bus(self, make: Make) -> None:
        users = '{user: u, password: p, permissions: {publish: ">", subscribe: "other.>"}}'
        with NatsServer(config=f"authorization {{ users: [{users}] }}") as server:
            said = refused(make, f"nats://u:p@127.0.0.1:{server.port}")
            assert "does not permit the user what DSE needs: Permissions Violation for Subscription" in said

    def test_a_user_of_one_bus_may_use_it_and_no_other(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        client = make("nats://a", opened=False)
        bus = subjects_of(client.transport.bus)
        allow = f'["{bus}d.>", "{bus}a.>", "{bus}r.>"]'
        users = f"{{user: u, password: p, permissions: {{publish: {allow}, subscribe: {allow}}}}}"
        with NatsServer(config=f"authorization {{ users: [{users}] }}") as server:
            allowed = make(f"nats://u:p@127.0.0.1:{server.port}")
            where = address(Delivery.DIRECT)
            allowed.listen(where)
            allowed.mark(where, allowed)
            with caplog.at_level(logging.WARNING, "dse.transport"):
                allowed.send(address(Delivery.FANOUT), b"not permitted")
                allowed.mark(where, allowed)
            assert "does not permit what DSE needs: Permissions Violation for Publish" in caplog.text
            with pytest.raises(TransportUnavailable, match="does not permit the user what DSE needs"):
                allowed.listen(address(Delivery.FANOUT))
            allowed.mark(where, allowed)
            assert [state.name for state in allowed.states] == ["CONNECTED"]

    def test_close_ends_a_hanging_open(self, make: Make) -> None:
        with answering(b"") as port:
            client = make(f"nats://127.0.0.1:{port}?connect_timeout=30", opened=False)
            failed: list[BaseException] = []

            def run() -> None:
                try:
                    client.open()
                except TransportUnavailable as error:
                    failed.append(error)

            opening = threading.Thread(target=run)
            opening.start()
            eventually(lambda: client.transport._opening is not None, "it is opening")  # type: ignore[attr-defined]
            bounded(PROMPT, "close during open", client.close)
            opening.join(PROMPT)
            assert failed


class TestServers:
    def test_one_of_several_that_is_up_is_enough(self, make: Make, server: NatsServer) -> None:
        with contextlib.closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"nats://127.0.0.1:{unused.getsockname()[1]},127.0.0.1:{server.port}"
            for _ in range(6):  # they are tried in random order
                client = make(url)
                where = address()
                client.listen(where)
                client.mark(where, client)

    def test_when_none_is_up_each_says_why(self, make: Make) -> None:
        with contextlib.closing(socket.socket()) as unused, answering(b"SSH-2.0-x\r\n") as port:
            unused.bind(("127.0.0.1", 0))
            closed = unused.getsockname()[1]
            said = refused(make, f"nats://127.0.0.1:{closed},127.0.0.1:{port}")
            assert f"refused the connection (127.0.0.1:{closed})" in said
            assert f"does not speak the NATS protocol: it says 'SSH-2.0-x' (127.0.0.1:{port})" in said

    def test_it_goes_to_another_one_when_its_own_dies(self, make: Make) -> None:
        with NatsServer() as one, NatsServer() as other:
            client = make(f"nats://127.0.0.1:{one.port},127.0.0.1:{other.port}")
            where = address()
            client.listen(where)
            link = client.transport._session._link  # type: ignore[attr-defined]
            own, left = (one, other) if link.wire.endpoint.port == one.port else (other, one)
            own.stop()
            client.wait_state(ConnectionState.CONNECTED, DEADLINE, times=2)
            make(left.direct_url).mark(where, client)


class TestLeaving:
    def test_one_of_many_that_leaves_loses_nothing(self, make: Make, server: NatsServer) -> None:
        """What came for a listener that unlistens or closes goes to another one."""
        leaving, staying, sender = (make(server.direct_url) for _ in range(3))
        where = address(Delivery.ANYCAST)
        for listener in (leaving, staying):
            listener.on_frame = lambda _where, _frame: time.sleep(0.0005)  # so that frames wait
            listener.listen(where)
        for number in range(2000):
            sender.send(where, b"%d" % number)
            if number == 1000:
                leaving.close()
            elif number < 1000 and number % 100 == 0:
                leaving.unlisten(where)
                leaving.listen(where)
        eventually(lambda: leaving.count(where) + staying.count(where) >= 2000, "all have arrived", DEADLINE)
        got = sorted(int(frame) for each in (leaving, staying) for frame in each.frames(where))
        assert got == list(range(2000))
        assert sender.returned(where) == []

    def test_what_waits_behind_a_handler_that_blocks_goes_to_others(self, make: Make, server: NatsServer) -> None:
        leaving, staying, sender = (make(server.direct_url) for _ in range(3))
        where, busy, release = address(Delivery.ANYCAST), threading.Event(), threading.Event()

        def block(_where: Address, _frame: bytes) -> None:
            busy.set()
            release.wait(DEADLINE)

        leaving.on_frame = block
        for listener in (leaving, staying):
            listener.listen(where)
        for number in range(200):
            sender.send(where, b"%d" % number)
        assert busy.wait(PROMPT)
        closing = threading.Thread(target=leaving.close)
        closing.start()
        closing.join(1.0)  # longer than a server would get
        release.set()
        closing.join(PROMPT)
        eventually(lambda: leaving.count(where) + staying.count(where) >= 200, "all have arrived", PROMPT)
        assert sorted(int(f) for each in (leaving, staying) for f in each.frames(where)) == list(range(200))
        assert leaving.count(where) == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for localhost."""
    return files_for("localhost", tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Path) -> Iterator[NatsServer]:
    files = f'cert_file: "{certificates}/cert.pem", key_file: "{certificates}/key.pem"'
    with NatsServer(config=f'tls {{ {files}, ca_file: "{certificates}/ca.pem", verify: true }}') as server:
        yield server


class TestTls:
    def url(self, certificates: Path, port: int, *, host: str = "localhost", client: bool = True) -> str:
        url = f"nats+tls://{host}:{port}?ssl_ca_certs={certificates}/ca.pem&heartbeat=2&connect_timeout=3"
        return url + (f"&ssl_certfile={certificates}/cert.pem&ssl_keyfile={certificates}/key.pem" if client else "")

    @pytest.mark.parametrize("scheme", ["nats", "nats+tls"])
    def test_frames_of_all_sizes_both_ways_at_once(
        self, make: Make, certificates: Path, secure: NatsServer, scheme: str
    ) -> None:
        """A server that wants TLS gets it, whether the URL says so or not."""
        url = self.url(certificates, secure.port).replace("nats+tls", scheme)
        sides = [make(url), make(url)]
        frames = [bytes([size % 251]) * size for size in (0, 1, 1000, 16384, 100_000, 3_000_000)] + [b"x"] * 2000
        places = [address(Delivery.DIRECT), address(Delivery.ANYCAST)]
        for side, where in zip(sides, places, strict=True):
            side.listen(where)

        def send(number: int) -> None:
            for frame in frames:
                sides[number].send(places[1 - number], frame)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        for side, where in zip(sides, places, strict=True):
            side.wait_count(len(frames), where)
            assert side.frames(where) == frames

    def test_no_round_trip_waits_for_the_next_look_at_the_connection(
        self, make: Make, certificates: Path, secure: NatsServer
    ) -> None:
        url = self.url(certificates, secure.port).replace("heartbeat=2", "heartbeat=40")  # a frame left lying: 10 s
        here, there = make(url), make(url)
        near, far = address(Delivery.DIRECT), address(Delivery.DIRECT)
        here.listen(near)
        there.listen(far)
        began = time.monotonic()
        for trip in range(1, 501):
            here.send(far, b"%d" % trip)
            there.wait_count(trip, far)
            there.send(near, b"%d" % trip)
            here.wait_count(trip, near)
        assert time.monotonic() - began < 9.0

    def test_certificate_that_nobody_vouches_for(self, make: Make, secure: NatsServer) -> None:
        assert "certificate that is not trusted" in refused(make, f"nats://localhost:{secure.port}")

    def test_host_name_is_checked_unless_told_otherwise(
        self, make: Make, certificates: Path, secure: NatsServer
    ) -> None:
        url = self.url(certificates, secure.port, host="127.0.0.1")
        with pytest.raises(TransportUnavailable, match="certificate that is not trusted"):
            make(url)
        make(with_options(url, ssl_check_hostname="no"))

    def test_client_certificate_is_needed(self, make: Make, certificates: Path, secure: NatsServer) -> None:
        with pytest.raises(TransportUnavailable, match=r"TLS|closed the connection|cannot be reached"):
            make(self.url(certificates, secure.port, client=False))

    def test_nothing_that_was_said_in_plain_text_counts_as_said_in_tls(self, make: Make) -> None:
        info = b'INFO {"tls_required":true,"headers":true,"max_payload":1048576}\r\n'
        with answering(info + b"PONG\r\nMSG dse.b.f.x 1 5\r\nhello\r\n") as port:
            assert "before TLS has begun" in refused(make, f"nats+tls://127.0.0.1:{port}")

    def test_who_wants_no_tls_gets_none(self, make: Make, secure: NatsServer) -> None:
        assert "wants TLS, which option 'ssl' turns off" in refused(make, f"nats://localhost:{secure.port}?ssl=no")

    @pytest.mark.parametrize("option", ["ssl=yes", "ssl_check_hostname=yes"])
    def test_whoever_names_an_option_of_tls_is_not_served_without(
        self, make: Make, server: NatsServer, option: str
    ) -> None:
        assert "offers no TLS" in refused(make, f"nats://127.0.0.1:{server.port}?{option}")
