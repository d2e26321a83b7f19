"""A driver made of the skeleton, in a folder outside of the repository, is installed with pip and used like any other.

Its places are filled from `tests/plugins/pigeon`: a driver with a broker of its own, as small as an honest one can be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dse.testing import contract
from dse.testing.contract.recorder import eventually

sys.path.insert(0, str(Path(__file__).parents[1]))

from plugins.fill import fill

# One worker makes the distributions, and runs all of this.
pytestmark = [pytest.mark.xdist_group("new-transport"), pytest.mark.timeout(300)]

PATCHES = Path(__file__).parents[1] / "plugins" / "pigeon"
RUNS = int(os.environ.get("DSE_SKELETON_RUNS", "0"))  # of the whole contract, level 2 included: a minute each
OUTSIDE = ("--pyargs", "dse.testing.contract", "--dse-transport", "pigeon://")

RUN_FILE = """
transport = "{url}"
bus = "loft"
node_id = "keeper"

[services.birds]
plugin = "push"
[services.birds.tables.pigeons]
columns = {{ name = "str", ring = "int" }}

[services.notes]
plugin = "files"
watch = "poll"
interval = 0.05
[services.notes.tables.flights]
path = "flights.csv"
columns = {{ ring = "int", to = "str" }}
"""


@dataclass
class Driver:
    """A generated project, and where its distribution is installed."""

    project: Path
    installed: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DSE_", "PYTEST_"))}
        return {**kept, "PYTHONPATH": str(self.installed), "XDG_CACHE_HOME": str(self.installed / "cache")}

    def python(self, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Run a module in the project's folder."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def dse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("dse.cli.main", *arguments)

    def pytest(self, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return self.python("pytest", "-q", "-p", "no:cacheprovider", *arguments, timeout=timeout)


def make_driver(folder: Path, *, filled: bool, but: tuple[int, ...] = ()) -> Driver:
    """Let `dse new-transport` write the driver, fill it but for some guarantees, install it with pip, off line."""
    driver = Driver(folder / "dse-pigeon", folder / "installed")
    folder.mkdir()
    driver.installed.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "dse.cli.main", "new-transport", "pigeon"],
        cwd=folder, env=driver.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    if filled:
        fill(driver.project / "dse_pigeon", PATCHES, but=but)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    pip = driver.python("pip", "install", *quiet, "--target", str(driver.installed), ".")
    assert pip.returncode == 0, pip.stdout + pip.stderr
    shutil.rmtree(driver.project / "dse_pigeon")  # what is installed is used, and nothing else
    return driver


@pytest.fixture(scope="module")
def unfilled(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The skeleton as it was written."""
    return make_driver(tmp_path_factory.mktemp("outside") / "pigeon", filled=False)


@pytest.fixture(scope="module")
def pigeon(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The driver, filled."""
    return make_driver(tmp_path_factory.mktemp("outside") / "pigeon", filled=True)


@pytest.fixture(scope="module")
def url(pigeon: Driver) -> Iterator[str]:
    """A broker for it, which the distribution itself brings along."""
    code = (
        "from dse_pigeon.testing import PigeonServer\n"
        "with PigeonServer() as server:\n    print(server.url, flush=True)\n    input()"
    )
    broker = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=pigeon.project, env=pigeon.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert broker.stdout is not None
    try:
        yield broker.stdout.readline().strip()
    finally:
        broker.communicate("\n", timeout=30)


@dataclass
class Guarantee:
    """A line of the contract's report: the state, what its tests came to, and why those failed that did."""

    state: str
    outcomes: set[str]
    reasons: set[str]


def report(driver: Driver) -> dict[int | str, Guarantee]:
    """What the contract reports of a driver, by the number of the guarantee, or by its name on level 2."""
    (found,) = json.loads((driver.project / "report.json").read_text())["drivers"]
    return {
        each["number"] or each["name"]: Guarantee(
            each["state"],
            {test["outcome"] for test in each["tests"]},
            {test["reason"].removeprefix("Failed: ") for test in each["tests"] if test["outcome"] == "failed"},
        )
        for each in found["guarantees"]
    }


class TestUnfilled:
    def test_the_contract_fails_guarantee_by_guarantee_until_they_are_implemented(self, unfilled: Driver) -> None:
        done = unfilled.pytest("-n0", "--dse-report=report.json")
        assert done.returncode == 1, done.stdout + done.stderr
        found = report(unfilled)
        assert {which for which in found if isinstance(which, int)} == set(range(1, 13))
        assert found.pop(5).state == "not claimed"
        assert found.pop("bus-clean").state == "not tried"  # the broker cannot be looked into yet
        needed = "a bus needs the guarantees 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12;"
        for which, guarantee in found.items():
            assert guarantee.state == "broken"
            assert "passed" not in guarantee.outcomes
            (reason,) = guarantee.reasons
            missing = rf"guarantee {which}, (_PigeonSession\.\w+[,;] )+" if isinstance(which, int) else f"{needed} "
            assert re.fullmatch(rf"not implemented: {missing}see docs/new-transport.md of DSE", reason)

    def test_so_does_it_when_it_is_run_from_outside(self, unfilled: Driver) -> None:
        done = unfilled.pytest("-n0", *OUTSIDE, "--dse-report=report.json", "-k", "TestReady or TestTtl or TestCalls")
        assert done.returncode == 1, done.stdout + done.stderr
        assert {guarantee.state for guarantee in report(unfilled).values()} == {"broken"}

    def test_whoever_uses_it_is_told_in_a_line_what_is_missing(self, unfilled: Driver) -> None:
        done = unfilled.dse("check", "pigeon://localhost")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "not implemented: guarantee 10, _PigeonSession._connect; see docs/new-transport.md" in done.stderr

    def test_a_guarantee_turns_green_when_its_place_is_filled(self, tmp_path: Path) -> None:
        driver = make_driver(tmp_path / "outside", filled=True, but=(4, 6, 12))
        wanted = "TestReady or TestAtMostOnce or TestTtl or TestIsolation or TestForkAndReopen"
        done = driver.pytest("-n0", "--dse-report=report.json", "-k", wanted)
        assert done.returncode == 1, done.stdout + done.stderr
        found = report(driver)
        for number in (4, 6, 12):
            guarantee = found.pop(number)
            assert guarantee.outcomes == {"failed"}
            assert all(reason.startswith(f"not implemented: guarantee {number}, ") for reason in guarantee.reasons)
        assert {number: guarantee.outcomes for number, guarantee in found.items()} == {1: {"passed"}, 7: {"passed"}}


class TestFilled:
    @pytest.mark.timeout(600)  # of a machine that has much else to do
    def test_it_keeps_every_guarantee(self, pigeon: Driver) -> None:
        classes = [name for name in contract.__all__ if isinstance(getattr(vars(contract)[name], "guarantee", ""), int)]
        done = pigeon.pytest("-n2", *OUTSIDE, "--dse-report=report.json", "-k", " or ".join(classes), timeout=550)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert {which: each.state for which, each in report(pigeon).items()} == dict.fromkeys(range(1, 13), "kept")

    @pytest.mark.skipif(not RUNS, reason="DSE_SKELETON_RUNS does not say how often")
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("run", range(RUNS or 1))
    def test_it_keeps_the_whole_contract(self, pigeon: Driver, run: int) -> None:
        done = pigeon.pytest("-n2", *OUTSIDE, "--dse-report=report.json", timeout=550)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert {each.state for each in report(pigeon).values()} == {"kept"}

    def test_dse_lists_it_among_its_transports(self, pigeon: Driver) -> None:
        done = pigeon.dse("transports", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        claims = {"undeliverable": True, "max_frame": 2**21, "survives_broker_restart": True}
        assert {"name": "pigeon", **claims} in json.loads(done.stdout)
        plugins = pigeon.dse("plugins")
        assert (plugins.returncode, plugins.stderr) == (0, "")

    def test_dse_check_finds_all_kept(self, pigeon: Driver, url: str) -> None:
        done = pigeon.dse("check", url, "--json")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        found = json.loads(done.stdout)
        assert found["good"]
        assert [each["kept"] for each in found["findings"]].count(True) >= 15

    def test_dse_run_runs_services_on_it_that_others_reach(self, pigeon: Driver, url: str) -> None:
        folder = pigeon.project.parent
        (folder / "run.toml").write_text(RUN_FILE.format(url=url))
        (folder / "flights.csv").write_text("ring,to\n7,Ghent\n")
        bus = ("--transport", url, "--bus", "loft")
        node = subprocess.Popen(
            [sys.executable, "-m", "dse.cli.main", "run", "../run.toml"],
            cwd=pigeon.project, env=pigeon.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            eventually(lambda: len(services(pigeon, *bus)) == 2, "both services are there", 30)
            called = pigeon.dse("call", *bus, "birds", "insert", "table=pigeons", 'rows=[["Cher Ami", 615]]')
            assert called.returncode == 0, called.stderr
            pigeons, flights = {"name": "Cher Ami", "ring": 615}, {"ring": 7, "to": "Ghent"}
            for table, row in (("birds:pigeons", pigeons), ("notes:flights", flights)):
                watched = pigeon.dse("watch", *bus, table, "--seconds", "1", "--json")
                assert watched.returncode == 0, watched.stderr
                assert json.loads(watched.stdout) == {"change": "+", "row": row}
            node.send_signal(signal.SIGTERM)
            said, _ = node.communicate(timeout=30)
            assert node.returncode == 0, said
        finally:
            node.kill()
            node.wait()


def services(driver: Driver, *bus: str) -> list[object]:
    done = driver.dse("services", *bus, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: list[object] = json.loads(done.stdout)
    return found
