"""The contract suite catches every broken driver, by the class of the guarantee that it breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import pytest

import dse.testing.contract
from dse.testing.contract.fixtures import Contract

sys.path.insert(0, str(Path(__file__).parent))

from broken_drivers import BROKEN

HEAD = """
import pytest
import broken_drivers
from dse.testing.contract import *
from dse.testing.faults import FakeServer
from dse.transports.fake import FakeTransport

@pytest.fixture
def broker():
    with FakeServer() as server:
        yield server
"""

# One failure of a class is enough: what follows would only wait for more that does not come.
CONFTEST = """
import pytest

failed = set()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        failed.add(item.cls)
    return report

def pytest_runtest_setup(item):
    if item.cls in failed:
        pytest.skip("its class has failed already")
"""

CLASSES = {
    name: getattr(dse.testing.contract, name)
    for name in dse.testing.contract.__all__
    if isinstance(getattr(getattr(dse.testing.contract, name), "guarantee", None), int)  # level 1
}


def run_contract(folder: Path, contract: str, drivers: Iterable[str], deadline: float) -> dict[str, list[str]]:
    """Run one class of the contract on drivers, in a process of its own; return the tests that failed for each."""
    text = HEAD
    for driver in drivers:
        text += f"\nclass Test{driver}({contract}):\n    @pytest.fixture\n    def transport_class(self):\n"
        text += f"        return getattr(broken_drivers, {driver!r})\n"
    (folder / "test_generated.py").write_text(text)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=report"]
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*command, *(f"test_generated.py::Test{driver}" for driver in drivers)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "DSE_CONTRACT_DEADLINE": str(deadline)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    result: dict[str, list[str]] = {driver: [] for driver in drivers}
    for case in ElementTree.parse(folder / "report").getroot().iter("testcase"):
        if case.find("failure") is not None:
            result[case.get("classname", "").rpartition(".Test")[2]].append(case.get("name", ""))
    return result


@pytest.mark.parametrize("contract", CLASSES)
def test_every_broken_driver_is_caught(tmp_path: Path, contract: str) -> None:
    drivers = {driver.__name__: driver for driver, breaks in BROKEN.items() if breaks == contract}
    assert drivers, "no driver breaks this guarantee"
    failures = run_contract(tmp_path, contract, drivers, deadline=1.5)
    missed = {name: drivers[name].__doc__ for name, failed in failures.items() if not failed}
    assert not missed, "the contract does not catch them"


def test_a_sound_driver_fails_nothing_in_the_same_place(tmp_path: Path) -> None:
    assert run_contract(tmp_path, "TestReady", ["FakeTransport"], deadline=20) == {"FakeTransport": []}


def test_every_guarantee_has_its_class() -> None:
    assert sorted({each.guarantee for each in CLASSES.values()}) == list(range(1, 13))
    assert all(issubclass(each, Contract) and each.__doc__ for each in CLASSES.values())
