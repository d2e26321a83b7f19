"""`dse demo` as a user runs it: in a pipe, in a terminal, over each broker, and however it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import psutil
import pytest

from dse.testing.brokers import Broker

COMMAND = [sys.executable, "-m", "dse.cli.main", "demo"]
PATIENCE = 60.0


class Demo:
    """A running demo whose output is read line by line."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.lines: list[str] = []
        self.errors = ""
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line matches; the lines read before count too."""
        for line in self.lines:
            if found := re.search(pattern, line):
                return found
        return self.until_again(pattern)

    def _read_on(self, pattern: str, deadline: float) -> str:
        try:
            line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            line = None
        if line is None:
            pytest.fail(f"no line matched {pattern!r}:\n{''.join(self.lines)}\n{self.errors}")
        self.lines.append(line)
        return line

    def until_again(self, pattern: str) -> re.Match[str]:
        """Read on until a line matches that was not read before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if found := re.search(pattern, self._read_on(pattern, deadline)):
                return found

    def see_the_port_come_and_go(self) -> None:
        """A port that the caller had opened by RPC appears in the auditor's copy, and disappears.

        Not always the first one: that may be closed before the auditor has its first copy.
        """
        port = self.until(r"sockets +\+ 127\.0\.0\.1:(\d+) tcp \(the demo's own\)")[1]
        self.until(rf"call .* ms  door\.open\(declared=\w+\) -> {port}$")
        self.until(r"call .* ms  door\.close\(\) -> True")
        self.until(rf"sockets +- 127\.0\.0\.1:{port} tcp")

    def see_a_violation_come_and_go(self) -> None:
        """A port that the door has not declared is a violation until it is closed, and somebody is paged once.

        Nothing else on this machine is one, nor a port of the door's that it has declared.
        """
        port = self.until(r"violation +security\.undeclared_ports: port (\d+), process .*, pid \d+, started [\d:]+$")[1]
        self.until(rf"call .* ms  door\.open\(declared=False\) -> {port}$")
        self.until(rf"paged +security\.undeclared_ports: port {port}, process ")
        self.until(rf"over +security\.undeclared_ports: port {port}, process .*, after [\d.]+ s$")
        # Where the machine is very busy a port may be closed before the host looks.
        declared = self.until(r"sockets +\+ 127\.0\.0\.1:(23\d{3}) tcp \(the demo's own\)")[1]
        self.until(rf"sockets +- 127\.0\.0\.1:{declared} tcp")
        seen = "".join(self.lines)
        assert len(re.findall(rf"paged .* port {port},", seen)) == 1
        undeclared = re.findall(r"door\.open\(declared=False\) -> (\d+)\n", seen)
        assert {*re.findall(r"violation .* port (\d+),", seen)} <= {*undeclared}

    def see_it_whole(self) -> str:
        """Everything a user is told: nodes, services, replicas. Return the bus's name."""
        for role in ("host", "policy", "auditor", "caller"):
            self.until(rf"node +{role}-\w+ JOINED")
        self.until(r"service +host on host-\w+: publishes sockets, processes, status; methods ")
        self.until(r"table +host\.processes LIVE, \d+ rows")
        self.until(r"service +security on policy-\w+: publishes undeclared_ports")
        self.see_the_port_come_and_go()
        self.see_a_violation_come_and_go()
        return self.until(r"^DSE demo: four nodes .*, bus (\S+), ")[1]

    def interrupt(self, number: signal.Signals = signal.SIGINT, within: float = 10.0) -> None:
        """Send the signal: the demo ends quickly and in order, and none of its processes is left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        began = time.monotonic()
        assert self.end() == 0
        assert time.monotonic() - began < within
        assert [child for child in children if child.is_running()] == []

    def end(self) -> int:
        """Wait for the end of a demo that has nothing to complain of."""
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        assert self.errors == ""
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                self._queue.put(line)
        self._queue.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            self.errors = pipe.read()


@contextmanager
def demo(*arguments: str) -> Iterator[Demo]:
    running = Demo(*arguments)
    try:
        yield running
    finally:
        running.close()


def no_longer_running(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, PATIENCE)
    return alive == []


def shows_itself_over(broker: Broker) -> None:
    """Over a broker: four processes, all that they have to tell, and nothing left after Ctrl-C."""
    with demo("--transport", broker.url) as running:
        bus = running.see_it_whole()
        assert len(psutil.Process(running.process.pid).children()) == 4
        running.interrupt()
    if broker.can_look:
        assert not broker.leftovers(bus)


# On fake://, in one process


def test_in_one_process_it_shows_everything_and_ctrl_c_ends_it():
    with demo() as running:
        running.see_it_whole()
        running.until(r"call .* host\.listeners\(port=\d+\) -> ")
        assert psutil.Process(running.process.pid).children() == []
        running.interrupt()


def test_it_ends_by_itself():
    with demo("--transport", "fake://mine", "--seconds", "1.5", "--bus", "my bus") as running:
        assert running.end() == 0
        assert ", bus my bus, fake://mine" in running.until("^DSE demo")[0] + running.lines[0]
        running.until(r"  end +\d+ row changes seen, \d+ violations?, \d+ calls")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_that_mean_leave_end_it_too(number):
    with demo() as running:
        running.until(r"call ")
        running.interrupt(number)


def test_it_may_be_interrupted_while_it_starts():
    for delay in (0.05, 0.2, 0.4):
        process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(delay)  # not a wait for anything: an arbitrary moment of the start
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        # Before Python runs our code the signal has its default effect.
        assert (process.returncode, errors) in ((0, b""), (-signal.SIGTERM, b""))


def test_a_reader_that_has_enough_ends_it():
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -5; echo "codes ${PIPESTATUS[*]}"', "-", *COMMAND],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert (lines[-1], done.stderr) == ("codes 0 0", "")


# In a terminal


def test_in_a_terminal_it_fills_the_screen_and_gives_it_back():
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    # These stand above the terminal's own size, and a test runner may have set them.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    before = termios.tcgetattr(terminal)
    # The terminal becomes the controlling one, so that what is typed there is a signal.
    take = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", take, *COMMAND],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    shown = [b"door.open(declared=", b"- 127.0.0.1:", b"violations: 1 now, 0 over", b"violations: 0 now, 1 over"]
    try:
        screen = read_until(master, b"", [b"host.sockets", b"LIVE", b"auditor-", *shown])
        os.write(master, b"\x03")
        screen = read_until(master, screen, [b"row changes seen, ", b"\x1b[?1049l"])
        assert process.wait(PATIENCE) == 0
        assert screen.count(b"\x1b[?1049h") == screen.count(b"\x1b[?1049l") == 1
        assert screen.rindex(b"\x1b[?25h") > screen.rindex(b"\x1b[?25l")
        assert b"Traceback" not in screen
        assert termios.tcgetattr(terminal) == before
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(master)


def read_until(master: int, screen: bytes, wanted: list[bytes]) -> bytes:
    """Read from the terminal until all that is wanted was shown."""
    deadline = time.monotonic() + PATIENCE
    while any(text not in screen for text in wanted):
        if time.monotonic() > deadline:
            pytest.fail(f"not shown: {[text for text in wanted if text not in screen]}\n{screen[-3000:]!r}")
        screen += os.read(master, 65536)
    return screen


# Over brokers, a process a node


def test_over_redis(redis_server: Broker):
    shows_itself_over(redis_server)


def test_over_rabbit(rabbit_server: Broker):
    shows_itself_over(rabbit_server)


def test_no_process_outlives_a_demo_that_is_killed(redis_server: Broker):
    with demo("--transport", redis_server.url) as running:
        running.until(r"call ")
        children = psutil.Process(running.process.pid).children()
        running.process.kill()
        assert len(children) == 4
        assert no_longer_running(children)


def test_a_node_whose_process_dies_is_reported_and_the_others_go_on(redis_server: Broker):
    with demo("--transport", redis_server.url) as running:
        running.until(r"table +host\.processes LIVE")
        (host,) = (c for c in psutil.Process(running.process.pid).children() if c.cmdline()[-1] == "host")
        host.kill()
        running.until(r"node +host-\w+: its process was killed by SIGKILL")
        running.until(r"node +host-\w+ DEAD")
        running.until(r"table +host\.sockets STALE")
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 1


def test_a_policy_whose_process_dies_leaves_what_it_found_and_the_others_go_on(redis_server: Broker):
    with demo("--transport", redis_server.url) as running:
        running.until(r"violation +security\.undeclared_ports: ")
        (policy,) = (c for c in psutil.Process(running.process.pid).children() if c.cmdline()[-1] == "policy")
        policy.kill()
        running.until(r"node +policy-\w+: its process was killed by SIGKILL")
        running.until(r"table +security\.undeclared_ports STALE, ")
        running.until_again(r"call .* ms  door\.open")
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 1


def test_a_password_that_redis_refuses_is_one_line_without_it(redis_server: Broker):
    url = re.sub(r"://([^@/]*@)?", "://nobody:sekret@", redis_server.url)
    started = subprocess.run([*COMMAND, "--transport", url], capture_output=True, text=True, timeout=PATIENCE)
    refused_in_one_line(started)


def test_a_password_that_rabbit_refuses_is_one_line_without_it(rabbit_server: Broker):
    url = re.sub(r"://([^@/]*@)?", "://nobody:sekret@", rabbit_server.url)
    started = subprocess.run([*COMMAND, "--transport", url], capture_output=True, text=True, timeout=PATIENCE)
    refused_in_one_line(started)


def refused_in_one_line(started: subprocess.CompletedProcess[str]) -> None:
    assert (started.returncode, started.stdout) == (2, "")
    assert started.stderr.count("\n") == 1
    assert started.stderr.startswith("dse demo: ")
    assert "password" in started.stderr
    assert "sekret" not in started.stderr
