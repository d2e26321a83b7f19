"""The pins of the development environment, and what `make audit` makes of a report."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_every_pin_is_one_exact_version_and_names_no_index() -> None:
    for line in PINS:
        pin = Requirement(line)
        assert pin.url is None
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), line


def test_what_the_extras_name_directly_is_pinned_in_their_ranges() -> None:
    pins = [pin for pin in map(Requirement, PINS) if not pin.marker or pin.marker.evaluate()]
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    for text in metadata.requires("dse") or ():
        wanted = Requirement(text)
        if wanted.name == "dse":
            continue
        pin = pinned.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is not in constraints.txt: make pins"
        version = next(iter(pin.specifier)).version
        assert wanted.specifier.contains(version, prereleases=True), f"{pin} is not {wanted.specifier}: make pins"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / "tools" / "audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # none in tools/
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def program(folder: Path, *reports: str) -> str:
    """Return a program that says these things in turn, as pip-audit would of its services."""
    for number, report in enumerate(reports):
        (folder / f"report{number}").write_text(report)
    file = folder / "said"
    file.write_text(
        f"#!/bin/sh\nn=$(cat {folder}/n 2>/dev/null || echo 0)\necho $((n+1)) >{folder}/n\ncat {folder}/report$n\n"
    )
    file.chmod(0o700)
    return str(file)


GOOD = '{"name": "a", "version": "1", "vulns": []}'
BAD = '{"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}'
UNKNOWN = '{"name": "c", "skip_reason": "not found"}'


def report(*packages: str) -> str:
    return f'{{"dependencies": [{", ".join(packages)}]}}'


@pytest.mark.parametrize(
    ("reports", "code", "words"),
    [
        ([report(GOOD)], 0, "No known vulnerability"),
        ([report(GOOD, BAD)], 1, "b 2: X-1, mended in 3"),
        ([report(GOOD, UNKNOWN, BAD)], 1, "b 2: X-1, mended in 3"),
        ([report(UNKNOWN), report(GOOD)], 0, "No known vulnerability"),
        ([report(UNKNOWN), report(GOOD, UNKNOWN)], 2, "NOT AUDITED"),
        ([report(UNKNOWN), ""], 2, "NOT AUDITED"),
        (["", "a traceback"], 2, "NOT AUDITED"),
    ],
)
def test_nothing_passes_for_audited_that_was_not(
    audit: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reports: list[str],
    code: int,
    words: str,
) -> None:
    assert audit.main(program(tmp_path, *reports), "constraints.txt") == code
    said = capsys.readouterr()
    assert words in said.out + said.err
