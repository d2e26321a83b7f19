"""The `dse` command: what it refuses and how, what the demo's views make of the demo's events, README's example."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import dse
from dse.cli.demo_door import DECLARED, Door
from dse.cli.demo_model import FEW_ROWS, Model, show_row, show_violation
from dse.cli.demo_policy import UNDECLARED_PORTS
from dse.cli.demo_view import LinesView, Unread, choose_view, draw
from dse.cli.main import main
from dse.cli.text import clean
from dse.errors import MissingExtra
from dse.testing.process import PortHold

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \n:boom: \u202egnp.exe \ud800"
COLUMNS = ["port", "process", "pid", "started"]


def status(*nodes: tuple[str, str], connected: bool = True, rows: int = 3) -> dict:
    """A status event, as the auditor tells it."""
    service = {"service_id": "host", "tables": ["sockets"], "follows": [], "methods": ["summary"]}
    return {
        "kind": "status",
        "connected": connected,
        "nodes": [{"node_id": n, "state": s, "heard": 0.5, "services": [service]} for n, s in nodes],
        "tables": [{"name": "host.sockets", "state": "LIVE", "rows": rows, "epoch": "abcdef", "seq": 7}],
    }


def change(*added: list, removed: tuple[list, ...] = (), table: str = "sockets") -> dict:
    return {"kind": "change", "service": "host", "table": table, "added": [*added], "removed": [*removed], "seq": 1}


def call(name: str, result: str, *, ok: bool = True) -> dict:
    return {"kind": "call", "call": name, "result": result, "ok": ok, "ms": 1.25}


def violation(*came: list, went: tuple[list, ...] = (), rule: str = "security.undeclared_ports") -> dict:
    return {"kind": "violation", "rule": rule, "columns": COLUMNS, "came": [*came], "went": [*went]}


def page(row: list, rule: str = "security.undeclared_ports") -> dict:
    return {"kind": "page", "rule": rule, "columns": COLUMNS, "row": row}


def socket_row(port: int, process: str = "python") -> list:
    return [port, "127.0.0.1", "tcp", 42, process, "me"]


class TestCommand:
    def test_version(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"dse {dse.__version__}\n"

    def test_without_a_command_it_shows_its_help_and_fails(self, capsys):
        assert main([]) == 2
        assert "demo" in capsys.readouterr().err

    @pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
    def test_seconds_are_a_positive_number(self, seconds, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["demo", "--seconds", seconds])
        assert ended.value.code == 2
        assert "positive number of seconds" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("redis", "'://'"),
            ("nothing://h", "no transport 'nothing' is installed; installed are .*fake"),
            ("redis://h?wrong=1", "unknown option 'wrong'; known are "),
            ("redis://h:port", "port"),
            ("redis://u:sekret/1@h", "%-encoded"),
            ("fake://a/b", "one broker name"),
        ],
    )
    def test_a_url_that_cannot_work_is_one_line_that_says_why(self, url, says, capsys):
        assert main(["demo", "--transport", url, "--seconds", "1"]) == 2
        out, err = capsys.readouterr()
        assert re.search(says, err)
        assert (out, err.count("\n")) == ("", 1)
        assert "sekret" not in err

    @pytest.mark.parametrize("scheme", ["redis", "rabbit"])
    def test_a_broker_that_is_down_is_one_line_without_the_password(self, scheme, capsys):
        hold = PortHold()
        try:
            assert main(["demo", "--transport", f"{scheme}://me:sekret@127.0.0.1:{hold.port}"]) == 2
        finally:
            hold.close()
        out, err = capsys.readouterr()
        assert f"127.0.0.1:{hold.port} " in err
        assert "refused" in err
        assert "is the broker running there" in err
        assert (out, err.count("\n")) == ("", 1)
        assert "sekret" not in err

    def test_a_bus_name_that_is_too_long_is_one_line(self, capsys):
        assert main(["demo", "--bus", "b" * 300, "--seconds", "1"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("package", ["psutil", "sqlglot"])
    def test_without_a_package_it_names_it_and_the_extra(self, package):
        code = f"import sys; sys.modules[{package!r}] = None; from dse.cli.main import main; sys.exit(main(['demo']))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert f"({package} cannot be imported); install it with: pip install 'dse[demo]'" in done.stderr
        assert done.stderr.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestViews:
    def test_a_terminal_without_rich_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.console", None)
        with pytest.raises(MissingExtra, match=r"pip install 'dse\[demo\]'"):
            choose_view(Terminal(), "title")

    def test_a_pipe_needs_no_rich(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.console", None)
        assert isinstance(choose_view(io.StringIO(), "title"), LinesView)

    def test_a_dumb_terminal_gets_lines(self, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(choose_view(Terminal(), "title"), LinesView)

    def test_a_pipe_that_nobody_reads_is_told(self):
        reading, writing = os.pipe()
        os.close(reading)
        with pytest.raises(Unread):
            LinesView(os.fdopen(writing, "w", buffering=1, closefd=False), "title")
        os.close(writing)

    @pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (40, 10), (20, 4), (5, 2)])
    def test_the_screen_fits_every_terminal(self, width, height):
        model = Model()
        for event in (
            status(("auditor", "JOINED"), ("host", "SUSPECT"), *((f"n{i}", "DEAD") for i in range(20))),
            change(*(socket_row(port) for port in range(1, 50))),
            call("door.open(declared=False)", "4242"),
            {"kind": "exit", "node": "host", "code": -9, "text": "its process was killed by SIGKILL"},
        ):
            model.apply(event, 1.0)
        lines = rendered(model, width, height).splitlines()
        assert len(lines) == height
        assert max(map(len, lines)) <= width

    def test_the_screen_shows_nodes_tables_changes_and_calls(self):
        model = Model()
        model.apply(status(("auditor", "JOINED"), ("host", "SUSPECT")), 1.0)
        model.apply(change(socket_row(4242)), 1.5)
        model.apply(call("door.open(declared=False)", "4242"), 1.6)
        shown = rendered(model, 120, 40)
        for expected in (
            "SUSPECT",
            "host.sockets",
            "LIVE",
            "abcd/7",
            "+ 127.0.0.1:4242 tcp",
            "door.open(declared=False) -> 4242",
        ):
            assert expected in shown

    def test_the_screen_shows_violations_those_of_now_first(self):
        model = Model()
        model.apply(violation(["first", "p", 1, None]), 1.0)
        model.apply(violation(["second", "p", 2, None]), 2.0)
        model.apply(violation(went=(["second", "p", 2, None],)), 3.5)
        model.apply(page(["first", "p", 1, None]), 3.6)
        lines = rendered(model, 120, 40, now=4.0).splitlines()
        (title,) = (number for number, line in enumerate(lines) if "violations: 1 now, 1 over" in line)
        assert lines[title + 1].split()[1:-1] == ["rule", "since", "for", "paged", "what"]
        now, over = ([cell for cell in re.split(r"\s{2,}|│", line) if cell] for line in lines[title + 2 : title + 4])
        assert now[1:4] == ["1.0", "3.0 s", "once"]
        assert over[1:4] == ["2.0", "1.5 s, over", "no"]

    def test_violations_of_a_policy_that_is_gone_are_called_stale(self):
        model = Model()
        told = status(("auditor", "JOINED"))
        told["tables"] = [{"name": "security.undeclared_ports", "state": "STALE", "rows": 1, "epoch": "e", "seq": 1}]
        model.apply(told, 1.0)
        assert "the auditor's copy is STALE" in rendered(model, 120, 40)

    def test_an_old_report_is_called_old(self):
        model = Model()
        model.apply(status(("auditor", "JOINED")), 1.0)
        assert "9 s ago: the auditor is silent" in rendered(model, 120, 40, now=10.0)

    def test_hostile_names_are_shown_as_text(self):
        model = Model()
        model.apply(status((HOSTILE, "JOINED")), 1.0)
        news = model.apply(change(socket_row(1, HOSTILE), [1, HOSTILE, "tcp", None, None, None]), 1.0)
        news += model.apply(call("door.open(declared=False)", HOSTILE), 1.0)
        news += model.apply(violation([1, HOSTILE, 1, None]), 1.0)
        news += model.apply(page([1, HOSTILE, 1, None]), 1.0)
        news += model.apply({"kind": "log", "node": "host", "text": HOSTILE}, 1.0)
        assert all(entry.text.isprintable() for entry in news)
        shown = rendered(model, 200, 40)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "[bold red]x[/]" in shown


def rendered(model: Model, width: int, height: int, now: float = 2.0) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=False)
    console.print(draw(model, "DSE demo", now, width, height), end="")
    return console.file.getvalue()


class TestModel:
    def test_rows_that_go_come_before_rows_that_come(self):
        news = Model().apply(change(socket_row(2), removed=(socket_row(1),)), 0.0)
        assert [entry.text[:13] for entry in news] == ["- 127.0.0.1:1", "+ 127.0.0.1:2"]

    def test_a_first_copy_of_a_table_is_cut_short(self):
        rows = [[pid, f"p{pid}", "me", 1.0] for pid in range(1000)]
        news = Model().apply(change(*rows, table="processes"), 0.0)
        assert len(news) == FEW_ROWS + 1
        assert news[-1].text == f"+ … and {1000 - FEW_ROWS} more rows"

    def test_the_demos_own_port_is_marked_and_never_cut(self):
        model = Model()
        model.apply(call("door.open(declared=False)", "4242"), 0.0)
        news = model.apply(change(*(socket_row(port) for port in range(4200, 4300))), 0.0)
        assert news[0].text.startswith("+ 127.0.0.1:4242 tcp (the demo's own)")

    def test_a_node_is_news_when_its_state_changes(self):
        model = Model()
        model.apply(status(("n", "JOINED")), 0.0)
        assert model.apply(status(("n", "JOINED")), 0.5) == []
        assert [e.text for e in model.apply(status(("n", "DEAD")), 1.0)] == ["n DEAD"]
        model.apply(status(), 60.0)
        assert model.nodes == {}

    def test_a_service_is_news_again_when_it_offers_something_else(self):
        model = Model()
        before, after = status(("n", "JOINED")), status(("n", "JOINED"))
        after["nodes"][0]["services"] = [{**before["nodes"][0]["services"][0], "tables": ["sockets", "late"]}]
        model.apply(before, 0.0)
        assert [e.text for e in model.apply(after, 1.0)] == ["host on n: publishes sockets, late; methods summary"]
        assert model.apply(after, 2.0) == []

    def test_the_connection_is_news_when_it_changes(self):
        model = Model()
        model.apply(status(), 0.0)
        assert [e.topic for e in model.apply(status(connected=False), 1.0)] == ["bus"]
        assert [e.topic for e in model.apply(status(connected=True), 2.0)] == ["bus"]

    def test_the_summary_counts(self):
        model = Model()
        model.apply(change(socket_row(1), removed=(socket_row(2),)), 0.0)
        model.apply(call("door.open(declared=False)", "1"), 0.0)
        model.apply(call("door.close()", "CallTimeout: ...", ok=False), 0.0)
        assert model.summary() == "2 row changes seen, 0 violations, 2 calls (median 1.2 ms), 1 failed"

    def test_a_violation_is_news_when_it_comes_and_when_it_is_over(self):
        model = Model()
        row = [4242, "python", 42, None]
        came = model.apply(violation(row), 1.0)
        assert [(e.topic, e.text) for e in came] == [
            ("violation", "security.undeclared_ports: port 4242, process python, pid 42, started ?")
        ]
        (held,) = model.violations.values()
        over = model.apply(violation(went=(row,)), 3.5)
        assert [(e.topic, e.text) for e in over] == [("over", f"{came[0].text}, after 2.5 s")]
        assert (model.violations, list(model.past), held.until) == ({}, [held], 3.5)
        assert model.summary().startswith("0 row changes seen, 1 violation, ")

    @pytest.mark.parametrize("order", ["page, came, went", "came, page, went", "came, went, page"])
    def test_a_page_counts_for_its_violation_whenever_it_is_heard_of(self, order):
        model = Model()
        row = [4242, "python", 42, 1.5]
        events = {"page": page(row), "came": violation(row), "went": violation(went=(row,))}
        for each in order.split(", "):
            model.apply(events[each], 1.0)
        model.apply(violation(row), 2.0)  # the same once more: it was not paged for
        assert [violation.pages for violation in (*model.past, *model.violations.values())] == [1, 0]

    def test_a_start_time_is_shown_as_one_if_it_can_be_one(self):
        assert re.fullmatch(r"started \d\d:\d\d:\d\d", show_violation(["started"], [1.5]))
        assert show_violation(["started", "n"], [1e300, 2]) == "started 1e+300, n 2"

    def test_rows_of_another_programs_tables_are_shown_too(self):
        assert show_row("sockets", [1, 2]) == "1, 2"
        assert show_row("else", [None]) == "None"


class TestClean:
    def test_printable_text_stays(self):
        assert clean("käse 🧀 [bold]") == "käse 🧀 [bold]"

    def test_what_cannot_be_printed_is_shown_as_its_code(self):
        assert clean("a\x1b[2J\n\u202e\ud800") == "a\\x1b[2J\\n\\u202e\\ud800"

    def test_long_text_is_cut(self):
        assert clean("x" * 50, 10) == "x" * 9 + "…"


class TestDoor:
    def test_it_opens_declared_ports_and_others_one_at_a_time(self):
        door = Door("door")
        for declared in (True, False, True):
            port = door.open(declared)
            assert (port in DECLARED) is declared
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert door.close() is True
        assert door.close() is False
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)

    def test_without_a_free_port_it_says_so(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            monkeypatch.setattr("dse.cli.demo_door.DECLARED", range(port, port + 1))
            with pytest.raises(OSError, match=f"no free port was found from {port} to {port}"):
                Door("door").open(declared=True)

    def test_the_rule_is_the_one_in_the_docs(self):
        assert UNDECLARED_PORTS in (ROOT / "docs" / "demo.md").read_text()
        assert f"the ports {DECLARED[0]} to {DECLARED[-1]}" in (ROOT / "docs" / "demo.md").read_text()


class TestReadme:
    TEXT = (ROOT / "README.md").read_text()
    EXAMPLE = ROOT / "examples" / "quickstart.py"

    def test_its_example_is_the_one_in_examples_and_has_25_lines(self):
        blocks = re.findall(r"```python\n(.*?)```", self.TEXT, re.DOTALL)
        assert blocks[0] == self.EXAMPLE.read_text()
        assert blocks[0].count("\n") == 25

    def test_the_example_runs_ends_and_prints_what_it_says(self):
        done = subprocess.run(
            [sys.executable, "-W", "error", self.EXAMPLE], capture_output=True, text=True, timeout=60, cwd="/"
        )
        assert (done.returncode, done.stderr) == (0, "")
        (printed,) = re.findall(r"It prints:\n\n```\n(.*?)```", self.TEXT, re.DOTALL)
        # The attic may have been reported before the first copy of the table or after.
        assert sorted(re.findall(r"\(.*?\)", done.stdout)) == sorted(re.findall(r"\(.*?\)", printed))
        assert done.stdout.splitlines()[-1] == printed.splitlines()[-1]

    def test_its_links_lead_somewhere(self):
        for target in re.findall(r"\]\(([^)#]+)", self.TEXT):
            assert (ROOT / target).exists(), target

    def test_its_table_of_drivers_tells_their_limits(self):
        from dse.core.plugins import load_transport

        (limits,) = re.findall(r"\| 8 longest frame \|(.*)\|", self.TEXT)
        drivers = [load_transport(url) for url in ("fake://", "redis://h", "rabbit://h")]
        assert [cell.strip() for cell in limits.split("|")] == [
            f"{d.capabilities.max_frame // 2**20} MiB" for d in drivers
        ]
        assert all(d.capabilities.undeliverable and d.capabilities.survives_broker_restart for d in drivers)
