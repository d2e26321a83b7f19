"""docs/run.md is true: its file, its plugin, its messages and its line of JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dse import Node
from dse.cli.run.file import LogOptions, NodeOptions
from dse.cli.run.kinds import record_fields

sys.path.insert(0, str(Path(__file__).parents[1]))

from plugins.distribution import install, installed

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "run.md").read_text()


def block(language: str, holding: str = "") -> str:
    """The block of the page in that language that holds a text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
    (found,) = [text for name, text in blocks if name == language and holding in text]
    return str(found)


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """The page's plugin, installed; and its file beside."""
    assert "rooms = rooms:Rooms" in block("ini", "dse.services")
    folder = install(tmp_path / "installed", "rooms", block("python", "class Rooms"), {"rooms": "rooms:Rooms"})
    (tmp_path / "run.toml").write_text(block("toml"))
    return folder


def dse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder)}
    environment.pop("DSE_TRANSPORT", None)
    return subprocess.run(
        [sys.executable, "-m", "dse.cli.main", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, cwd=folder.parent,
    )  # fmt: skip


def test_the_file_of_the_page_is_all_right(rooms: Path, tmp_path: Path) -> None:
    done = dse(rooms, "run", "--check", "run.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "run.toml: all right: 2 services on fake://, bus prod\n"


def test_what_the_page_shows_of_a_wrong_file_is_what_is_said(rooms: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    text = file.read_text().replace('bus = "prod"', "bus = 5").replace("separator", "separater")
    file.write_text(re.sub(r"^path = .*$", '\n[services.sensors.tables.attic]\npath = "${ATTIC}"', text, flags=re.M))
    done = dse(rooms, "run", "--check", "run.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == block("", "run.toml:2: ")


def test_what_the_page_shows_of_its_plugin_is_what_is_told(rooms: Path) -> None:
    done = dse(rooms, "plugins", "rooms")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"$ dse plugins rooms\n{done.stdout}" == block("", "$ dse plugins")


def test_the_plugin_of_the_page_works_as_the_page_says(rooms: Path, tmp_path: Path) -> None:
    (tmp_path / "kitchen.csv").write_text("Ann;Bob\n")
    with installed(rooms):
        from dse.cli.run.file import read_run_file

        service = read_run_file(str(tmp_path / "run.toml"), environment={}).services["sensors"].make()
        with Node("fake://", services=[service]):
            replica = service.subscribe("sensors", "people")
            replica.wait(lambda replica: len(replica) == 2, timeout=10)
            assert set(replica.rows) == {("kitchen", "Ann"), ("kitchen", "Bob")}


def test_each_key_of_a_file_is_on_the_page_with_its_default() -> None:
    for options, prefix in ((NodeOptions("fake://"), ""), (LogOptions(), "log.")):
        for field in record_fields(type(options)):
            (default,) = re.findall(rf"^\| `{prefix}{field.key}` \|.*\| ([^|]*) \|$", TEXT, re.M)
            value = getattr(options, field.name)
            if not field.required and value is not None:
                assert default.strip("`") == json.dumps(value), field.key


def test_the_line_of_json_is_one() -> None:
    (line,) = re.findall(r"^\{.*\}$", TEXT, re.M)
    assert set(msgspec.json.decode(line)) == {"time", "level", "logger", "message"}


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", TEXT):
        assert (DOCS / target).exists(), target
