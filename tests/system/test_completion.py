"""Shell completion in real shells: what is offered, also of what is on the bus; nothing, soon, when there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse import DataService, Node, Table, rpc
from dse.cli.completion import _names
from dse.cli.main import main
from dse.testing.brokers import Broker
from dse.testing.process import PortHold

sys.path.insert(0, str(Path(__file__).parent))

from pseudo_terminal import PseudoTerminal

BASH = r"""
eval "$(dse completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
[[ $1 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
completer=$(complete -p dse | sed 's/.*-F \([^ ]*\).*/\1/')
$completer dse "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


class Door(DataService):
    openings = Table("number", "who")

    @rpc
    def ring(self, times: int, who: str = "nobody") -> str:
        return who * times

    @rpc
    def open(self) -> None: ...


@pytest.fixture
def bus(redis_server: Broker) -> Iterator[dict[str, str]]:
    """A bus with a service, and the environment that leads there."""
    name = f"bus-{uuid.uuid4().hex[:8]}"
    with Node(redis_server.url, bus=name, node_id="house", services=[Door("door")]):
        yield {"DSE_TRANSPORT": redis_server.url, "DSE_BUS": name, "DSE_COMPLETION_SECONDS": "30"}


def shell_environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DSE_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb", **more}


def in_bash(line: str, **environment: str) -> set[str]:
    """What bash offers at the end of a line."""
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", line],
        capture_output=True,
        text=True,
        timeout=60,
        env=shell_environment(environment),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {word.strip() for word in done.stdout.splitlines()} - {""}


def test_bash_completes_commands_and_options() -> None:
    assert {"check", "status", "watch", "top", "call", "completion"} <= in_bash("dse ")
    assert in_bash("dse comp") == {"completion"}
    assert {"--once", "--interval", "--transport"} <= in_bash("dse top --")
    assert {"node", "served/s"} <= in_bash("dse top --sort ")
    assert in_bash("dse completion ") == {"bash", "zsh", "fish"}
    assert "redis://" in in_bash("dse status --transport red")
    assert in_bash("dse new") == {"new-transport"}
    assert in_bash("dse new-transport mybus --i") == {"--into"}
    assert in_bash("dse new-transport mybus --into /us") == {"/usr/"}


def test_bash_completes_what_is_on_the_bus(bus: dict[str, str]) -> None:
    assert "door" in in_bash("dse call ", **bus)
    assert {"ring", "open"} <= in_bash("dse call door ", **bus)
    assert in_bash("dse call door ri", **bus) == {"ring"}
    assert {"times=", "who="} <= in_bash("dse call door ring ", **bus)
    assert in_bash("dse call door ring --node ", **bus) == {"house"}
    # Bash takes the colon for the end of a word: what comes behind it is offered.
    assert in_bash("dse watch door:", **bus) == {"openings"}
    options = f"--transport {bus['DSE_TRANSPORT']} --bus {bus['DSE_BUS']}"
    assert in_bash(f"dse call {options} door op", DSE_COMPLETION_SECONDS="30") == {"open"}
    joined = f"{bus['DSE_TRANSPORT']} redis://elsewhere --bus {bus['DSE_BUS']}"
    assert in_bash(f"dse bridge {joined} --only do", DSE_COMPLETION_SECONDS="30") >= {"door"}


def test_a_bus_that_is_not_there_offers_nothing_says_nothing_and_takes_no_time() -> None:
    hold = PortHold()
    try:
        assert in_bash("dse call do", DSE_TRANSPORT=f"redis://127.0.0.1:{hold.port}") == set()
    finally:
        hold.close()
    assert in_bash("dse call do") == set()
    assert in_bash("dse call do", DSE_TRANSPORT="nonsense") == set()


@pytest.mark.parametrize("scheme", ["redis", "rabbit"])
def test_a_broker_that_hangs_is_not_waited_for(scheme: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0), backlog=50) as mute:
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}?connect_timeout=50"
        began = time.monotonic()
        assert in_bash("dse call do", DSE_TRANSPORT=url) == set()
        assert time.monotonic() - began < 10  # two starts of Python on a busy machine, and not the 50 s


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed (apt-get install fish)")
def test_fish(bus: dict[str, str], tmp_path: Path) -> None:
    def offered(line: str) -> set[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", "dse completion fish | source; complete -C $argv[1]", line],
            capture_output=True,
            text=True,
            timeout=60,
            env=shell_environment({**bus, "HOME": str(tmp_path)}),
        )
        assert done.returncode == 0, done.stderr
        return {word.partition("\t")[0] for word in done.stdout.splitlines()}

    assert {"check", "top"} <= offered("dse ")
    assert {"ring", "open"} <= offered("dse call door ")
    assert "door:openings" in offered("dse watch do")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed (apt-get install zsh)")
def test_zsh(bus: dict[str, str], tmp_path: Path) -> None:
    environment = shell_environment({**bus, "HOME": str(tmp_path), "TERM": "xterm"})
    with PseudoTerminal(program=["zsh", "-f", "-i"], **environment) as terminal:
        terminal.type(f"autoload -U compinit; compinit -u -d {tmp_path}/dump; bindkey -e\n")
        terminal.type('eval "$(dse completion zsh)"; print REA""DY\n')
        place = terminal.wait_for("READY")
        for line, completed in (("dse comp", "dse completion"), ("dse watch do", "dse watch door:openings")):
            terminal.type(f"{line}\t\x01print -r -- OUT:\x05\n")  # the line that became of it is printed
            place = terminal.wait_for(f"\nOUT:{completed}", place)
        terminal.type("exit\n")
        terminal.ended()


def test_without_argcomplete_it_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['argcomplete'] = None; sys.modules['argcomplete.shell_integration'] = None\n"
        "from dse.cli.main import main; sys.exit(main(['completion', 'bash']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'dse[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("()", []),
        ("() -> dict[str, int]", []),
        ("(pid: int) -> bool", ["pid"]),
        ("(a: dict[str, int], b: tuple[int, ...] = (1, 2), *, c='x, y: z') -> None", ["a", "b", "c"]),
        ("hostile", []),
        ("(((", []),
    ],
)
def test_the_names_of_a_signature(signature: str, names: list[str]) -> None:
    assert _names(signature)[: len(names)] == names
