"""`dse new-transport`: what it writes and what it refuses; and the marks in what it writes."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

import dse.cli
from dse.cli.main import main
from dse.cli.new_transport import FILES, _versions, write_skeleton
from dse.core.unfinished import unfinished, unfinished_places
from dse.errors import ConfigError, DseError, TransportError, Unfinished

ROOT = Path(__file__).parents[2]
LONGEST = "abcdefghijklmnopqrstuvwxyz0123"  # the longest name that is taken


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestCommand:
    def test_it_writes_a_distribution_and_says_what_to_do_next(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["new-transport", "mybus"]) == 0
        out, err = capsys.readouterr()
        assert written(tmp_path / "dse-mybus") == {path.replace("$name", "mybus") for path in FILES}
        assert out.startswith("dse-mybus has a driver for mybus://, with twelve guarantees to keep. Next:\n")
        assert err == ""
        for named in re.findall(r"dse_mybus/\w+\.py", out):
            assert (tmp_path / "dse-mybus" / named).is_file()

    def test_another_folder_may_be_named_new_deep_or_empty(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "new", tmp_path / "as" / "deep" / "as" / "you like", tmp_path / "empty"):
            assert main(["new-transport", "mybus", "--into", str(folder)]) == 0
            assert "setup.cfg" in written(folder)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("MyBus", "lower-case letters and digits, a letter first; did you mean 'mybus'"),
            ("my-bus", "did you mean 'mybus'"),
            ("my_bus", "did you mean 'mybus'"),
            ("my+bus", "did you mean 'mybus'"),
            ("my.bus", "did you mean 'mybus'"),
            ("../bus", "did you mean 'bus'"),
            ("9bus", "did you mean 'bus'"),
            ("mybus\n", "did you mean 'mybus'"),
            ("bús", "lower-case letters"),
            ("バス", "a letter first"),
            ("", "a letter first"),
            ("-", "a letter first"),
            ("x" * 31, "longer than 30"),
            ("X" * 5000, "did you mean 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"),
            ("redis", "a transport 'redis' is installed already; installed are amqp, "),
            ("fake", "is installed already"),
        ],
    )
    def test_a_name_that_cannot_be_is_one_line_that_says_why(self, name, says, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["new-transport", "--", name]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("dse new-transport: ")
        assert says in err
        assert (out, err.count("\n")) == ("", 1)
        assert len(err) < 400
        assert not written(tmp_path)

    def test_the_name_of_a_package_that_is_there_is_refused(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "dse_postbus.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        assert main(["new-transport", "postbus", "--into", str(tmp_path / "x")]) == 2
        assert "a package dse_postbus is installed already" in capsys.readouterr().err

    def test_a_folder_that_is_in_use_is_left_as_it_is(self, tmp_path, capsys):
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "setup.cfg").write_text("mine")
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for into, says in (
            (folder, "is not empty"),
            (tmp_path / "file", "a file is in its way"),
            (tmp_path / "file" / "below", "a file is in its way"),
            (tmp_path / "link", "a link that leads nowhere"),
            (tmp_path / ("x" * 300), "cannot be used: File name too long"),
        ):
            assert main(["new-transport", "mybus", "--into", str(into)]) == 2
            out, err = capsys.readouterr()
            assert says in err
            assert (out, err.count("\n")) == ("", 1)
        assert written(tmp_path) == {"mine/setup.cfg", "file"}
        assert (folder / "setup.cfg").read_text() == "mine"

    @pytest.mark.parametrize("existed", [True, False])
    def test_when_the_disk_is_full_nothing_is_left(self, tmp_path, existed):
        folder = tmp_path / "new"
        if existed:
            folder.mkdir()
        code = (
            "import resource, sys; from dse.cli.main import main\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
            "sys.exit(main(['new-transport', 'mybus', '--into', sys.argv[1]]))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"dse new-transport: cannot write .*: File too large\n", done.stderr)
        assert folder.exists() == existed
        assert not written(tmp_path)

    def test_of_several_at_once_one_writes_all(self, tmp_path):
        folder, together, refused = tmp_path / "new", threading.Barrier(8), []

        def write() -> None:
            together.wait()
            try:
                write_skeleton("mybus", folder)
            except (OSError, ConfigError) as error:
                refused.append(error)

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 7
        assert written(folder) == {path.replace("$name", "mybus") for path in FILES}


class TestSkeleton:
    @pytest.mark.parametrize("name", ["x", "mybus", LONGEST])
    def test_it_is_formatted_and_linted(self, tmp_path, name):
        pytest.importorskip("ruff", reason="the extra 'lint' is not installed in this environment")
        write_skeleton(name, tmp_path)
        for command in (["check", "--no-cache"], ["format", "--no-cache", "--check", "--diff"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def test_its_types_are_right(self, tmp_path):
        pytest.importorskip("mypy", reason="the extra 'lint' is not installed in this environment")
        write_skeleton("mybus", tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict"],
            cwd=tmp_path, capture_output=True, text=True, timeout=110, env=os.environ | {"MYPYPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no issues found in 3 source files" in done.stdout

    def test_every_guarantee_has_its_place(self, tmp_path):
        write_skeleton("mybus", tmp_path)
        code = (tmp_path / "dse_mybus" / "transport.py").read_text()
        marks = [
            node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef) and node.decorator_list
        ]
        guarantees = {int(re.fullmatch(r"unfinished\((\d+)\)", ast.unparse(m.decorator_list[0]))[1]) for m in marks}
        assert guarantees == set(range(1, 13))
        assert all(ast.get_docstring(mark) for mark in marks)
        for guarantee in guarantees:
            assert re.search(rf"Guarantee {guarantee}, \w", code), f"nobody says what guarantee {guarantee} is"

    def test_it_leaves_the_license_to_its_author(self, tmp_path):
        write_skeleton("mybus", tmp_path)
        metadata = configparser.ConfigParser()
        metadata.read(tmp_path / "setup.cfg")
        assert "license" not in metadata["metadata"]
        assert "Private :: Do Not Upload" in metadata["metadata"]["classifiers"]

    def test_the_templates_are_shipped(self):
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        patterns = re.split(r"[,\s]+", setup["options.package_data"]["dse.cli"])
        folder = Path(dse.cli.__file__).parent
        templates = written(folder / "templates" / "transport")
        assert templates == set(FILES.values())
        for template in templates:
            path = f"templates/transport/{template}"
            assert any(fnmatch.fnmatch(path, each) and each.count("/") == path.count("/") for each in patterns), path

    @pytest.mark.parametrize(
        ("version", "fitting"),
        [("0.1.0", ">=0.1,<0.2"), ("0.12.3.dev4", ">=0.12,<0.13"), ("1.0.0", ">=1.0,<2"), ("2.7.1rc1", ">=2.7,<3")],
    )
    def test_it_says_which_releases_it_is_for(self, version, fitting):
        assert _versions(version) == fitting


class TestGuide:
    """docs/new-transport.md is true: what it quotes, what it shows, where it points to."""

    TEXT = (ROOT / "docs" / "new-transport.md").read_text()
    SOURCES: ClassVar = {
        "skeleton": "dse/cli/templates/transport/package/transport.py.in",
        **{
            f"dse_nats/{file}": f"plugins/dse-nats/dse_nats/{file}"
            for file in ("transport.py", "_link.py", "testing.py")
        },
    }

    @pytest.mark.parametrize("source", SOURCES)
    def test_it_quotes_what_is_there(self, source):
        quoted = re.findall(rf"^```python {re.escape(source)}\n(.*?)^```$", self.TEXT, re.M | re.S)
        assert quoted
        code = (ROOT / self.SOURCES[source]).read_text()
        for excerpt in quoted:
            at = 0
            for part in re.split(r"^ *…\n", excerpt, flags=re.M):
                found = code.find(f"\n{part}", at)
                assert found >= 0, f"not in {source}, or not in this order:\n{part}"
                at = found + len(part)

    def test_every_excerpt_is_checked(self):
        assert set(re.findall(r"^```python (\S+)$", self.TEXT, re.M)) == set(self.SOURCES)

    def test_it_goes_through_every_place(self, tmp_path):
        write_skeleton("mybus", tmp_path)
        code = (tmp_path / "dse_mybus" / "transport.py").read_text()
        places = {(int(number), name) for number, name in re.findall(r"@unfinished\((\d+)\)\n    def (\w+)", code)}
        headings = re.findall(r"^### (\d+)\. .*?: (.*)$", self.TEXT, re.M)
        assert {(int(number), name) for number, names in headings for name in re.findall(r"`(\w+)`", names)} == places

    def test_it_shows_what_the_command_says(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["new-transport", "mybus"]) == 0
        assert f"```\n$ dse new-transport mybus\n{capsys.readouterr().out}```\n" in self.TEXT

    def test_it_points_to_what_is_there(self):
        for link in re.findall(r"\]\(([^)]+)\)", self.TEXT):
            path, _, anchor = link.partition("#")
            target = ROOT / "docs" / path
            assert target.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link


class Base:
    @unfinished(4)
    def inherited(self) -> None:
        """Never filled."""


class Written(Base):
    @unfinished(1)
    def place(self, number: int) -> str:
        """What is to be done."""
        return "done"


class TestMarks:
    def test_a_marked_function_is_a_typed_error_that_says_which_guarantee_and_where(self):
        with pytest.raises(
            Unfinished, match=r"not implemented: guarantee 1, Written\.place; see docs/new-transport"
        ) as raised:
            Written().place(5)
        assert (raised.value.guarantee, raised.value.place) == (1, "Written.place")
        assert issubclass(Unfinished, TransportError)
        assert issubclass(Unfinished, DseError)
        assert issubclass(Unfinished, NotImplementedError)

    def test_it_keeps_its_name_and_documentation(self):
        assert (Written.place.__name__, Written.place.__doc__) == ("place", "What is to be done.")

    def test_the_places_of_a_driver_are_known_by_guarantee(self):
        assert unfinished_places(Written) == {1: ["Written.place"], 4: ["Base.inherited"]}
        assert unfinished_places(dict) == {}
