"""What stands in the documentation is so: drawings are those of the code, code runs, files of `dse run` are right."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dse.cli.main import _parser
from dse.cli.run.file import read_run_file
from dse.cli.run.problems import FileError
from dse.services.web import make_token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


EXCERPTS = ("new-transport.md",)
"""Pages of excerpts from code: tests/unit/test_new_transport.py holds them against it."""


def blocks(language: str) -> Iterator[Any]:
    """Yield the blocks of a language; one with ``<!-- not run: why -->`` before it is left out."""
    for page in PAGES:
        text = page.read_text()
        if page.name in EXCERPTS:
            continue
        for match in _BLOCK.finditer(text):
            before = text[: match.start()].rstrip().rpartition("\n")[2]
            if match[1] == language and not before.startswith("<!-- not run: "):
                line = text.count("\n", 0, match.start()) + 2
                yield pytest.param(match[3], page, id=f"{page.relative_to(ROOT)}:{line}")


def test_the_drawings_of_the_machines_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("machines", ROOT / "tools" / "machines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pages().items():
        found = (ROOT / "docs" / "concepts" / name).read_text()
        assert found == text, f"docs/concepts/{name} is out of date: python tools/machines.py"


@pytest.mark.parametrize(("code", "page"), list(blocks("python")))
def test_code_runs(code: str, page: Path, tmp_path: Path) -> None:
    """In a process of its own; a bus on Redis is the one in the process instead."""
    code = re.sub(r"redis://localhost(:\d+)?(/\d+)?", "fake://docs", code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{page.name}\n{code}\n{done.stderr}"


@pytest.mark.parametrize(("text", "page"), list(blocks("toml")))
def test_files_of_dse_run_are_right(text: str, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tomllib.loads(text)
    if "services" not in read:
        return
    for name in set(re.findall(r"\$\{(\w+)", text)):
        monkeypatch.setenv(name, "fake://docs" if name == "DSE_TRANSPORT" else "5432")
    for service in re.findall(r"^\[services\.(\w+)", text, re.MULTILINE):  # a part of a file may leave the plugin out
        if "plugin" not in read["services"][service]:
            text += f'\n[services.{service}]\nplugin = "{service}"\n' if f"[services.{service}]" not in text else ""
    if "transport" not in read:
        text = f'transport = "fake://docs"\n{text}'
    (tmp_path / "tokens").write_text(make_token("night", "read")[1])
    file = tmp_path / "run.toml"
    file.write_text(text)
    try:
        read_run_file(str(file))
    except FileError as error:
        pytest.fail(f"{page.name}\n{text}\n" + "\n".join(error.lines))


_COMMAND = re.compile(r"^(?: {4}|\$ | {4}\$ )?(dse (?:[a-z-]+).*)$", re.MULTILINE)


def commands() -> Iterator[Any]:
    """Yield the lines of the pages that are typed into a shell and begin with ``dse``."""
    for page in PAGES:
        text = page.read_text()
        code = "\n".join(
            [match[3] for match in re.finditer(r"^```(sh|)( [^\n]*)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
            + [line for line in text.splitlines() if line.startswith("    ")]
        )
        for line in dict.fromkeys(_COMMAND.findall(code)):
            yield pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_are_taken_by_the_command_line(line: str) -> None:
    """Every ``dse`` line is one that the parser takes: command, options and their values."""
    words = shlex.split(line.partition("  #")[0], comments=True)
    ends = [place for place, word in enumerate(words) if re.fullmatch(r"[|;&<>]+|>>?.*|&&", word)]
    words = words[1 : ends[0] if ends else None]
    if "…" in line or "[--" in line or (words[:1] == ["top"] and "on" in words):
        return  # an outline, or what a command shows
    try:
        _parser().parse_args(words)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{line}: the command line does not take it")


def test_links_between_pages_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / link).exists():
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert lost == []


def test_the_figures_of_the_comparison_are_those_of_the_last_full_run() -> None:
    figures = (ROOT / "docs" / "performance" / "results.md").read_text().splitlines()
    names = ("| DSE ", "| FastStream ", "| oslo.messaging ", "| nameko ")
    compared = [line for line in (ROOT / "docs" / "comparison.md").read_text().splitlines() if line.startswith(names)]
    assert len(compared) > 5
    assert [line for line in compared if line not in figures] == []
