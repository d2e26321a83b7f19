"""The guarantees are the same wherever they are told: in the code, in the pages, in the table that a run wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dse
import dse.testing.contract
from dse.core.plugins import load_transport
from dse.errors import MissingExtra, UnknownTransport
from dse.testing.contract.fixtures import Contract
from dse.testing.contract.guarantees import GUARANTEES, find_guarantee

ROOT = Path(__file__).parents[2]
CLASSES = [each for each in map(vars(dse.testing.contract).get, dse.testing.contract.__all__) if isinstance(each, type)]
DRIVERS = ["fake", "nats", "oslo+fake", "oslo+rabbit", "rabbit", "redis"]
STALE = "docs/guarantees.md is not what the code declares: make guarantees"


def tables() -> tuple[list[list[str]], list[list[str]]]:
    """Read the two tables of docs/guarantees.md, without the lines under their heads."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / "docs/guarantees.md").read_text().splitlines():
        if line.startswith("| ---"):
            continue
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    guarantees, claims = (table for table in found if table)
    return guarantees, claims


def test_every_class_of_the_contract_proves_a_guarantee_and_every_guarantee_has_one() -> None:
    assert all(issubclass(each, Contract) for each in CLASSES)
    assert {find_guarantee(each.guarantee) for each in CLASSES} == set(GUARANTEES)
    assert [each.number for each in GUARANTEES if each.number is not None] == list(range(1, 13))
    assert len({each.name for each in GUARANTEES}) == len(GUARANTEES)


def test_the_numbers_and_titles_are_those_of_the_transports_page() -> None:
    text = (ROOT / "docs/transports.md").read_text()
    told = re.findall(r"^(\d+)\. \*\*([\w ]+?)\.?\*\*", text, re.MULTILINE)
    assert told == [(str(each.number), each.title) for each in GUARANTEES if each.number is not None]


def test_the_page_for_authors_has_every_class_and_every_name() -> None:
    text = (ROOT / "docs/contract.md").read_text()
    told = set(re.findall(r"`([\w-]+)`", text))
    assert {each.__name__ for each in CLASSES} <= told
    assert {each.name for each in GUARANTEES} <= told


def test_the_table_has_every_guarantee_and_every_driver_and_nothing_broken_or_left_out() -> None:
    (head, *rows), _ = tables()
    assert head[1:] == DRIVERS, STALE
    assert [row[0] for row in rows] == [str(each) for each in GUARANTEES], STALE
    wrong = [(row[0], cell) for row in rows for cell in row[1:] if not re.match("kept|not claimed|not tried", cell)]
    assert not wrong, STALE


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_table_tells_what_the_driver_claims(driver: str) -> None:
    (head, *rows), (_, *claims) = tables()
    try:
        kind = load_transport(f"{driver}://")
    except (MissingExtra, UnknownTransport):
        pytest.skip("the driver is not installed in this environment")
    (told,) = (row for row in claims if row[0] == driver)
    claimed = kind.capabilities
    flags = [claimed.undeliverable, claimed.survives_broker_restart, kind.relieves]
    expected = [*("yes" if flag else "no" for flag in flags), f"{claimed.max_frame:,}", dse.__version__]
    assert told[1] == f"`{kind.__module__}:{kind.__qualname__}`", STALE
    assert told[3:] == expected, STALE
    cells = {row[0]: row[head.index(driver)] for row in rows}
    assert cells["5 Undeliverable"].startswith("kept" if claimed.undeliverable else "not claimed"), STALE
    assert ("not claimed" in cells["9 Threads"]) == (not kind.relieves), STALE


def test_make_guarantees_runs_a_file_for_each_driver() -> None:
    text = (ROOT / "Makefile").read_text()
    (listed,) = re.findall(r"foreach driver,([\w ]+),(tests/contract/test_)\$\(driver\)\.py", text)
    files = [f"{listed[1]}{driver}.py" for driver in listed[0].split()]
    files += re.findall(r"plugins/\S+/tests/test_contract\.py", text)
    assert len(files) == len(DRIVERS)
    assert all((ROOT / file).is_file() for file in files)
