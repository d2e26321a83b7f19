"""The tutorial, word by word: its files are written, its commands typed, its outputs waited for.

A fenced block is marked behind its language: ``file=NAME`` is a file, a name alone is the terminal in which the lines
are typed (``sh``) or in which they are to be seen (``text``). What is different here: the ports of brokers, and that
the environment is there already (``setup``).
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from dse.testing.brokers import Broker

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
PATIENCE = 40.0
_BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Terminals:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, pexpect.spawn] = {}

    def __getitem__(self, name: str) -> pexpect.spawn:
        if name not in self._open:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            environment = {**os.environ, "PATH": path, "PS1": "", "TERM": "dumb", "HISTFILE": "/dev/null"}
            for unwanted in ("DSE_TRANSPORT", "DSE_BUS"):
                environment.pop(unwanted, None)
            terminal = pexpect.spawn(
                "bash", ["--norc", "--noprofile"], cwd=str(self.folder), env=environment, encoding="utf-8",
                echo=False, timeout=PATIENCE, dimensions=(50, 250),
            )  # fmt: skip
            self._open[name] = terminal
        return self._open[name]

    def interrupt(self, name: str) -> None:
        """Ctrl-C, and wait for the prompt's next command."""
        terminal = self[name]
        terminal.sendintr()
        self.settle(name)

    def settle(self, name: str) -> None:
        """Wait until what was typed is done."""
        terminal = self[name]
        terminal.sendline("echo do''ne")
        terminal.expect("done")

    def close(self) -> None:
        """End what runs in each terminal, and the shell in it."""
        for name, terminal in self._open.items():
            if name == "shell":
                terminal.sendline("kill %1 %2")
            else:
                terminal.sendintr()
            terminal.sendline("exit")
        for terminal in self._open.values():
            terminal.expect(pexpect.EOF)
            terminal.close()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.redis
@pytest.mark.timeout(300)
def test_the_tutorial_does_what_it_says(terminals: Terminals, rabbit_server: Broker) -> None:
    text = TUTORIAL.read_text()
    text = text.replace("6390", str(free_port())).replace(
        "rabbit://guest:guest@127.0.0.1:5672", rabbit_server.direct_url
    )
    before, after = text.split("## 7. Another broker")
    play(before, terminals)
    for name in ("sources", "pager", "policy", "watch", "broker"):
        terminals.interrupt(name)
    play(after, terminals)


def play(text: str, terminals: Terminals) -> None:
    """Do what the blocks say, as somebody who waits for an answer before going to the next terminal."""
    blocks = _BLOCK.findall(text)
    assert blocks
    answering = False  # whether the shell, where nothing runs on, may still be at work
    for language, mark, body in blocks:
        if mark.startswith("file="):
            (terminals.folder / mark.removeprefix("file=")).write_text(body)
        elif language == "text":
            for line in body.splitlines():
                terminals[mark].expect_exact(line)
        elif mark != "setup":
            assert language == "sh"
            if answering and mark != "shell":
                terminals.settle("shell")
            answering = mark == "shell"
            for line in body.splitlines():
                terminals[mark].sendline(line)
