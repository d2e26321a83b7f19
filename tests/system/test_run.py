"""`dse run` as a supervisor runs it: processes, signals, notifications, over the fake bus and over a real broker."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from dse import Node
from dse.testing.brokers import Broker
from dse.testing.contract.recorder import eventually
from dse.testing.process import PortHold

sys.path.insert(0, str(Path(__file__).parents[1]))

from plugins.distribution import install

PATIENCE = 30.0
COMMAND = [sys.executable, "-m", "dse.cli.main", "run"]

# What a third party wrote, who has never seen this repository.
CODE = '''
import logging
import os
import threading
import time
from pathlib import Path

from dse import DataService, Table, every, rpc

log = logging.getLogger("probe")


class Probe(DataService):
    """Writes down what happens to it."""

    seen = Table("value")

    def __init__(self, service_id: str, diary: Path, value: int = 0, fail: bool = False, gate: Path | None = None,
                 password: str = "", leaves: bool = False) -> None:
        super().__init__(service_id)
        self.leaves = leaves
        self.diary, self.value, self.fail, self.gate, self.password = diary, value, fail, gate, password

    def write(self, what: str) -> None:
        with self.diary.open("a") as out:
            out.write(f"{what} {self.service_id} {self.value}\\n")

    def on_start(self) -> None:
        self.write("starting")
        if self.fail:
            raise RuntimeError(f"it shall fail, says {self.password}")
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.01)
        self.seen.insert([(self.value,)])
        self.write("started")
        if self.leaves:
            threading.Thread(target=self.node.stop).start()

    def on_stop(self) -> None:
        self.write("stopped")

    @rpc
    def get(self) -> int:
        return self.value

    @rpc
    def pid(self) -> int:
        return os.getpid()

    @rpc
    def complain(self) -> None:
        log.warning("the password is %s\\nand more", self.password)
        try:
            raise ValueError(self.password)
        except ValueError:
            log.exception("a failure")
'''


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed distribution that has the plugin `probe`."""
    return install(tmp_path_factory.mktemp("outside"), "probe_dist", CODE, {"probe": "probe_dist:Probe"})


class Supervised:
    """A running `dse run`, what it logs and what it tells its supervisor."""

    def __init__(self, folder: Path, outside: Path, *arguments: str, address: str = "", **environment: str) -> None:
        self.folder = folder
        self.file = folder / "run.toml"
        self.diary = folder / "diary"
        self.log: list[str] = []
        self.told: list[str] = []
        self._news = threading.Condition()  # protects log and told
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = address or str(folder / "notify")
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._address = address
        self._arguments = arguments
        self._environment = {
            **os.environ, "PYTHONPATH": str(outside), "XDG_CACHE_HOME": str(folder), "NOTIFY_SOCKET": address,
            **environment,
        }  # fmt: skip
        self._threads: list[threading.Thread] = []
        self.process: subprocess.Popen[str] | None = None

    def write(self, text: str) -> None:
        """Put a text into the run file, in one step."""
        new = self.folder / "run.toml.new"
        new.write_text(text)
        new.rename(self.file)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, str(self.file), *self._arguments],
            stderr=subprocess.PIPE, text=True, encoding="utf-8", env=self._environment,
        )  # fmt: skip
        self._threads = [threading.Thread(target=self._read_log), threading.Thread(target=self._read_notifications)]
        for thread in self._threads:
            thread.start()

    def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()

    def _read_notifications(self) -> None:
        while text := self._socket.recv(65536).decode():
            with self._news:
                self.told.append(text)
                self._news.notify_all()

    def _until(self, what: str, found: Callable[[], Any]) -> Any:
        with self._news:
            if not self._news.wait_for(found, PATIENCE):
                pytest.fail(f"{what}\n" + "\n".join([*self.log, *self.told]))
            return found()

    def until_logged(self, pattern: str, times: int = 1) -> str:
        """Wait until lines of the log match; return the last of them."""
        return self._until(  # type: ignore[no-any-return]
            f"not logged {times} times: {pattern}",
            lambda: (
                (found := [line for line in self.log if re.search(pattern, line)])[times - 1 :] and found[times - 1]
            ),
        )

    def until_told(self, state: str, times: int = 1) -> str:
        """Wait until the supervisor has been told a state so often; return the last such datagram."""
        return self._until(  # type: ignore[no-any-return]
            f"not told {times} times: {state}",
            lambda: (found := [text for text in self.told if state in text])[times - 1 :] and found[times - 1],
        )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def reload(self, text: str | None = None, says: str = "reloaded ") -> None:
        """Change the file, send SIGHUP, and wait until the reload is over, and has said so."""
        if text is not None:
            self.write(text)
        before = len([line for line in self.log if re.search(says, line)])
        ready = len([told for told in self.told if "READY=1" in told])
        self.send(signal.SIGHUP)
        self.until_told("READY=1", ready + 1)
        self.until_logged(says, before + 1)

    def end(self, number: signal.Signals = signal.SIGTERM, within: float = 15.0) -> int:
        """Send the signal, and return the exit code."""
        self.send(number)
        return self.code(within)

    def code(self, within: float = PATIENCE) -> int:
        """Return the exit code of a process that ends."""
        assert self.process is not None
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {within} s\n" + "\n".join(self.log))
        self._threads[0].join(PATIENCE)
        return code

    def diary_lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def until_written(self, line: str, times: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.diary_lines().count(line) < times:
            if time.monotonic() > deadline:
                pytest.fail(f"not written: {line}\n" + "\n".join([*self.diary_lines(), *self.log]))
            time.sleep(0.01)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._threads:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                address = self._address
                out.sendto(b"", f"\0{address[1:]}" if address.startswith("@") else address)
            for thread in self._threads:
                thread.join(PATIENCE)
        if self.process is not None and self.process.stderr is not None:
            self.process.stderr.close()
        self._socket.close()


Make = Callable[..., Supervised]


@pytest.fixture
def make(tmp_path: Path, outside: Path) -> Iterator[Make]:
    """Start `dse run` on a file with this text; what is left of it at the end is ended."""
    made: list[Supervised] = []

    def make(text: str, *arguments: str, **options: str) -> Supervised:
        run = Supervised(tmp_path, outside, *arguments, **options)
        made.append(run)
        run.write(text)
        run.start()
        return run

    yield make
    for run in made:
        run.close()


def services(*probes: str, transport: str = "fake://", top: str = "", log: str = "json") -> str:
    """A file with these services: ``a value=1`` is the probe `a` with that option."""
    text = f'transport = "{transport}"\nnode_id = "n1"\n{top}\n[log]\nformat = "{log}"\n'
    for probe in probes:
        name, *options = probe.split()
        lines = "\n".join(options)
        text += f'[services.{name}]\nplugin = "probe"\ndiary = "diary"\n{lines}\n'
    return text


class TestLife:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_plugin_from_outside_runs_until_the_process_is_told_to_stop(
        self, make: Make, number: signal.Signals
    ) -> None:
        run = make(services("a value=1", "b value=2"))
        assert run.until_told("READY=1") == "READY=1\nSTATUS=node n1 on fake://, bus dse; services: a, b"
        assert run.end(number) == 0
        assert sorted(run.diary_lines()[-2:]) == ["stopped a 1", "stopped b 2"]
        run.until_told("STOPPING=1")
        assert json.loads(run.log[-1])["message"] == "stopped"

    def test_without_a_supervisor_it_runs_as_well(self, make: Make) -> None:
        run = make(services("a"), NOTIFY_SOCKET="")
        run.until_logged("ready: node n1")
        assert run.end() == 0
        assert run.told == []

    def test_the_supervisor_may_listen_in_the_abstract_name_space(self, make: Make) -> None:
        run = make(services("a"), address=f"@dse-{uuid.uuid4().hex}")
        run.until_told("READY=1")
        assert run.end() == 0

    def test_the_watchdog_hears_that_it_lives_as_often_as_it_wants_to(self, make: Make) -> None:
        run = make(services("a"), WATCHDOG_USEC="400000")
        began = time.monotonic()
        run.until_told("WATCHDOG=1", times=6)
        assert time.monotonic() - began > 0.9, "no more often than twice a period"
        assert run.end() == 0

    def test_a_watchdog_of_another_process_is_left_alone(self, make: Make) -> None:
        run = make(services("a"), WATCHDOG_USEC="50000", WATCHDOG_PID="1")
        run.until_told("READY=1")
        run.reload()
        assert run.end() == 0
        assert not [text for text in run.told if "WATCHDOG" in text]

    def test_a_wrong_file_starts_nothing(self, make: Make) -> None:
        run = make(services("a", "b valeu=1", top="bsu = 1"))
        assert run.code() == 2
        assert [line.partition(": ")[0] for line in run.log] == [f"{run.file}:3", f"{run.file}:13"]
        assert "unknown option of 'probe'; did you mean 'value'?" in run.log[1]
        assert run.diary_lines() == []

    def test_a_service_that_does_not_start_ends_it_by_name_and_stops_the_others(self, make: Make) -> None:
        run = make(services("a", "b fail=true", "c"))
        assert run.code() == 1
        said = json.loads(run.until_logged("did not start"))
        assert said["level"] == "ERROR"
        assert "the service 'b' did not start: RuntimeError: it shall fail" in said["message"]
        assert "on_start" in said["exception"]
        assert run.diary_lines() == ["starting a 0", "started a 0", "starting b 0", "stopped a 0"]

    def test_a_node_that_stops_by_itself_ends_it(self, make: Make) -> None:
        run = make(services("a", "b leaves=true"))
        assert run.code() == 1
        assert run.until_logged("was stopped")

    def test_the_second_ctrl_c_ends_it_at_once(self, make: Make) -> None:
        run = make(services("a gate='never'"))
        run.until_written("starting a 0")
        run.send(signal.SIGINT)
        run.until_logged("SIGINT: stopping")
        assert run.end(signal.SIGINT, within=5) == 130

    @pytest.mark.slow
    def test_a_service_that_hangs_as_it_starts_does_not_keep_it_from_ending(self, make: Make) -> None:
        run = make(services("b", "a gate='never'"))
        run.until_written("starting a 0")
        assert run.end(within=35) == 0
        assert "stopped b 0" in run.diary_lines()
        assert run.until_logged("what was under way did not end within 10 s")

    def test_it_is_one_process(self, make: Make) -> None:
        run = make(services("a"))
        run.until_told("READY=1")
        assert run.process is not None
        assert psutil.Process(run.process.pid).children(recursive=True) == []
        assert run.end() == 0


class TestLogs:
    def test_each_line_is_a_json_object_also_of_plugins_and_exceptions_and_holds_no_secret(self, make: Make) -> None:
        run = make(services("a password='${PW}'", "b fail=true password='${PW}'"), PW="s3cret-of-mine")
        assert run.code() == 1
        said = [json.loads(line) for line in run.log]
        assert all(set(each) >= {"time", "level", "logger", "message"} for each in said)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"]) for each in said)
        (failure,) = [each for each in said if "exception" in each]
        assert "it shall fail, says ***" in failure["message"]
        assert "RuntimeError: it shall fail, says ***" in failure["exception"]
        assert "s3cret" not in "\n".join([*run.log, *run.told])

    def test_text_is_for_people_and_its_format_can_be_changed_while_it_runs(self, make: Make) -> None:
        run = make(services("a", log="text"))
        run.until_told("READY=1")
        assert re.fullmatch(r"\S+Z INFO dse\.run: ready: node n1 .*", run.until_logged("ready:"))
        run.reload(services("a", log="json"))
        assert json.loads(run.log[-1])["message"].endswith("the node and its services are as before")
        assert run.diary_lines() == ["starting a 0", "started a 0"]
        assert run.end() == 0


class TestReload:
    def test_only_what_changed_is_touched(self, make: Make) -> None:
        run = make(services("same", "gone", "other value=1"))
        run.until_told("READY=1")
        before = len(run.diary_lines())
        run.reload(services("new", "other value=2", "same"))
        assert run.diary_lines()[before:] == [
            "stopped gone 0", "stopped other 1", "starting other 2", "started other 2",
            "starting new 0", "started new 0",
        ]  # fmt: skip
        assert "stopped gone; restarted other; started new" in run.log[-1]
        reloading = run.until_told("RELOADING=1")
        assert re.search(r"^MONOTONIC_USEC=\d+$", reloading, re.MULTILINE)
        assert "services: same, other, new" in run.told[-1]
        assert run.end() == 0

    def test_what_is_written_otherwise_but_means_the_same_is_no_change(self, make: Make) -> None:
        run = make(services("a value=1", "b"))
        run.until_told("READY=1")
        before = run.diary_lines()
        run.reload('services.b = { diary = "diary", plugin = "probe" } # \n' + services("a value=0b1"))
        assert run.diary_lines() == before
        assert run.end() == 0

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("transport = ", "is not TOML"),
            (services("a", "b valeu=1"), "b.valeu: unknown option"),
            (services("a", "b value='${NOT_SET_HERE}'"), "NOT_SET_HERE is not set"),
            (services("a", "b", transport="nix://"), "no transport 'nix' is installed"),
        ],
        ids=["syntax", "option", "variable", "transport"],
    )
    def test_a_wrong_file_changes_nothing_and_is_said(self, make: Make, text: str, said: str) -> None:
        run = make(services("a", "b"))
        run.until_told("READY=1")
        before = run.diary_lines()
        run.reload(text, says="is wrong: what runs goes on as it is")
        assert said in run.log[-2]
        assert run.told[-1].endswith("run.toml is wrong, see the log")
        run.file.unlink()
        run.reload(says="is wrong: what runs goes on as it is")
        assert "cannot be read: No such file" in run.log[-2]
        assert run.diary_lines() == before
        run.reload(services("a", "b value=7"))
        assert run.diary_lines()[-1] == "started b 7"
        assert run.end() == 0

    def test_a_service_whose_new_options_fail_comes_back_with_the_old_ones(self, make: Make) -> None:
        run = make(services("a", "b value=1"))
        run.until_told("READY=1")
        run.reload(services("a value=1", "b value=2 fail=true", "c fail=true", "d"))
        assert run.diary_lines()[4:] == [
            "stopped a 0", "starting a 1", "started a 1",
            "stopped b 1", "starting b 2", "starting b 1", "started b 1",
            "starting c 0", "starting d 0", "started d 0",
        ]  # fmt: skip
        assert "restarted a; started d; failed: b, c" in run.log[-1]
        run.reload(services("a value=1", "b value=2", "d", "c"))
        assert run.diary_lines()[-5:] == [
            "stopped b 1", "starting b 2", "started b 2", "starting c 0", "started c 0",
        ]  # fmt: skip
        assert run.end() == 0

    def test_another_bus_restarts_the_node_and_a_name_that_was_drawn_is_kept(self, make: Make) -> None:
        text = services("a").replace('node_id = "n1"\n', "")
        run = make(text)
        name = re.search(r"node (\S+) on", run.until_told("READY=1"))
        assert name is not None
        run.reload(text.replace("[log]", 'bus = "other"\n[log]'), says="ready: ")
        assert f"node {name[1]} on fake://, bus other; services: a" in run.told[-1]
        assert run.until_logged("reload: bus changed: the node restarts, with all its services")
        assert run.diary_lines() == ["starting a 0", "started a 0", "stopped a 0", "starting a 0", "started a 0"]
        assert run.end() == 0

    def test_a_node_that_cannot_be_restarted_comes_back_as_it_was(self, make: Make) -> None:
        run = make(services("a"))
        run.until_told("READY=1")
        run.reload(services("a fail=true", top='bus = "other"'), says="ready: ")
        assert run.until_logged("the node did not start: the service 'a' did not start.*it comes back as it was")
        assert run.told[-1].endswith("bus dse; services: a")
        assert run.diary_lines()[-3:] == ["starting a 0", "starting a 0", "started a 0"]
        assert run.end() == 0

    def test_many_reloads_at_once_end_with_the_last_file(self, make: Make) -> None:
        run = make(services("a"))
        run.until_told("READY=1")
        for value in range(1, 20):
            run.write(services(f"a value={value}"))
            run.send(signal.SIGHUP)
        run.until_written("started a 19")
        assert run.end() == 0
        assert run.diary_lines()[-2:] == ["started a 19", "stopped a 19"]
        assert run.diary_lines().count("starting a 19") == 1

    def test_a_reload_while_it_starts_is_done_once_it_has_started(self, make: Make) -> None:
        run = make(services("a", "b gate='gate'"))
        run.until_written("starting b 0")
        run.write(services("a value=5", "b gate='gate'"))
        for _ in range(3):
            run.send(signal.SIGHUP)
        (run.folder / "gate").touch()
        run.until_written("started a 5")
        run.until_told("READY=1", times=2)
        assert run.end() == 0
        assert run.diary_lines().count("starting b 0") == 1

    def test_told_to_stop_while_it_reloads_it_stops(self, make: Make) -> None:
        run = make(services("a"))
        run.until_told("READY=1")
        run.write(services("a value=1 gate='gate'", "b"))
        run.send(signal.SIGHUP)
        run.until_written("starting a 1")
        run.send(signal.SIGTERM)
        run.send(signal.SIGHUP)
        run.until_logged("SIGTERM: stopping")
        (run.folder / "gate").touch()
        assert run.code() == 0
        assert run.diary_lines()[-2:] == ["started a 1", "stopped a 1"]
        assert "starting b 0" not in run.diary_lines()


@pytest.fixture
def bus() -> str:
    return f"bus-{uuid.uuid4().hex[:8]}"


class TestOverABroker:
    def test_its_services_are_on_the_bus_and_nothing_is_left_of_them(
        self, make: Make, redis_server: Broker, bus: str
    ) -> None:
        run = make(services("a value=7", transport="${URL}", top=f'bus = "{bus}"'), URL=redis_server.url)
        run.until_told("READY=1")
        with Node(redis_server.url, bus=bus) as node:
            node.wait_for("a")
            assert node.call("a", "get") == 7
            assert run.process is not None
            assert node.call("a", "pid") == run.process.pid
            run.reload(services("a value=8", transport="${URL}", top=f'bus = "{bus}"'))
            assert node.call("a", "get") == 8
        assert run.end() == 0
        assert not redis_server.leftovers(bus)

    def test_it_runs_over_rabbitmq_alike(self, make: Make, rabbit_server: Broker, bus: str) -> None:
        run = make(services("a value=7", transport=rabbit_server.url, top=f'bus = "{bus}"'))
        run.until_told("READY=1")
        with Node(rabbit_server.url, bus=bus) as node:
            node.wait_for("a")
            assert node.call("a", "get") == 7
            run.reload(services("a value=8", transport=rabbit_server.url, top=f'bus = "{bus}"'))
            assert node.call("a", "get") == 8
        assert run.end() == 0
        assert not rabbit_server.leftovers(bus)

    def test_it_waits_for_a_broker_that_comes_later(self, make: Make, redis_server: Broker, bus: str) -> None:
        redis_server.stop()
        try:
            run = make(services("a", transport=redis_server.url, top=f'bus = "{bus}"'))
            run.until_logged("waiting for the broker, next attempt in", times=2)
            assert "EXTEND_TIMEOUT_USEC=" in run.until_told("STATUS=waiting for redis://")
            assert run.diary_lines() == []
        finally:
            redis_server.start()
        run.until_told("READY=1")
        assert run.end() == 0

    def test_told_to_stop_while_it_waits_it_ends_at_once(self, make: Make) -> None:
        with_nobody = PortHold()
        try:
            run = make(services("a", transport=f"redis://:pass-word@127.0.0.1:{with_nobody.port}"))
            run.until_logged("waiting for the broker", times=3)
            began = time.monotonic()
            assert run.end() == 0
            assert time.monotonic() - began < 8
            assert "pass-word" not in "\n".join(run.log)
        finally:
            with_nobody.close()

    @pytest.mark.parametrize("wait", ["0", "0.7"])
    def test_it_waits_no_longer_than_it_is_told_to(self, make: Make, wait: str) -> None:
        with_nobody = PortHold()
        try:
            run = make(services("a", transport=f"redis://127.0.0.1:{with_nobody.port}"), "--wait", wait)
            assert run.code() == 2
            assert "is the broker running there" in run.log[-1]
            assert any("waiting for the broker" in line for line in run.log) == (wait != "0")
        finally:
            with_nobody.close()

    def test_while_it_waits_a_reload_leads_it_to_another_broker(
        self, make: Make, redis_server: Broker, bus: str
    ) -> None:
        with_nobody = PortHold()
        try:
            top = f'bus = "{bus}"'
            run = make(services("a", transport=f"redis://127.0.0.1:{with_nobody.port}", top=top))
            run.until_logged("waiting for the broker")
            run.write("transport = ")
            run.send(signal.SIGHUP)
            run.until_logged("is wrong: what runs goes on as it is")
            run.write(services("a value=3", transport=redis_server.url, top=top))
            run.send(signal.SIGHUP)
            run.until_told("READY=1")
            assert run.diary_lines() == ["starting a 3", "started a 3"]
            assert run.end() == 0
        finally:
            with_nobody.close()

    def test_a_reload_does_not_lead_it_to_a_broker_that_is_not_there(
        self, make: Make, redis_server: Broker, bus: str
    ) -> None:
        with_nobody = PortHold()
        try:
            top = f'bus = "{bus}"'
            run = make(services("a", transport=redis_server.url, top=top))
            run.until_told("READY=1")
            nowhere = services("a value=1", transport=f"redis://127.0.0.1:{with_nobody.port}", top=top)
            run.reload(nowhere, says="nothing is changed, the node stays where it is")
            assert run.diary_lines() == ["starting a 0", "started a 0"]
            run.reload(services("a value=1", transport="fake://", top=top), says="ready: ")
            assert run.diary_lines()[-1] == "started a 1"
            assert "on fake://" in run.told[-1]
            assert not redis_server.leftovers(bus)
            assert run.end() == 0
        finally:
            with_nobody.close()

    def test_a_name_that_is_taken_ends_it_and_is_named(self, make: Make, redis_server: Broker, bus: str) -> None:
        with Node(redis_server.url, bus=bus, node_id="n1"):
            run = make(services("a", transport=redis_server.url, top=f'bus = "{bus}"'))
            assert run.code() == 1
            assert "NodeIdClash: node 'n1': an older live node on bus" in run.until_logged("NodeIdClash")

    def test_a_name_that_is_taken_is_no_reason_to_give_up_the_one_it_has(
        self, make: Make, redis_server: Broker, bus: str
    ) -> None:
        top = f'bus = "{bus}"'
        with Node(redis_server.url, bus=bus, node_id="n2"):
            run = make(services("a", transport=redis_server.url, top=top))
            run.until_told("READY=1")
            run.reload(services("a", transport=redis_server.url, top=top).replace('"n1"', '"n2"'), says="ready: ")
            assert run.until_logged("the node did not start: node 'n2': an older live node.*comes back as it was")
            assert "READY=1\nSTATUS=node n1 " in run.told[-1]
            assert run.end() == 0

    def test_it_outlives_its_broker(self, make: Make, redis_server: Broker, bus: str) -> None:
        run = make(services("a value=4", transport=redis_server.url, top=f'bus = "{bus}"'))
        run.until_told("READY=1")
        redis_server.stop()
        try:
            run.until_logged('"logger": "dse.node".*', times=1)
            run.reload(services("a value=5", transport=redis_server.url, top=f'bus = "{bus}"', log="text"))
        finally:
            redis_server.start()
        with Node(redis_server.url, bus=bus) as node:
            node.wait_for("a", timeout=PATIENCE)
            assert node.call("a", "get") == 5
        assert run.end() == 0


@pytest.mark.parametrize("nohup", [False, True])
def test_it_ends_with_its_terminal_unless_told_not_to(tmp_path: Path, nohup: bool) -> None:
    file = tmp_path / "run.toml"
    file.write_text('transport = "fake://"\nnode_id = "n"\n')
    command = ["/usr/bin/env", "nohup", *COMMAND] if nohup else COMMAND
    log = tmp_path / "log"
    shell = f"exec {' '.join(command)} {file} 2> {log}"
    terminal = pexpect.spawn("bash", ["-c", shell], timeout=PATIENCE, encoding="utf-8")

    def says(what: str, times: int = 1) -> bool:
        return log.read_text().count(what) >= times if log.exists() else False

    try:
        eventually(lambda: says("ready"), "it is ready", PATIENCE)
        os.kill(terminal.pid, signal.SIGHUP)  # with the terminal open: a wish to reload
        eventually(lambda: says("reload"), "it reloads", PATIENCE)
        os.close(terminal.child_fd)
        if nohup:
            eventually(lambda: says("reload", 2), "it reloads again", PATIENCE)
            assert psutil.pid_exists(terminal.pid)
            os.kill(terminal.pid, signal.SIGTERM)
        eventually(lambda: os.waitpid(terminal.pid, os.WNOHANG)[0] == terminal.pid, "it ends", PATIENCE)
        assert says("stopping")
    finally:
        terminal.closed = True
