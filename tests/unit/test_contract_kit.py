"""The contract from the outside, and its report, as the author of a driver meets them: in runs of pytest of its own.

The driver is a distribution that DSE has never heard of, in a folder of the test's own, with a broker in one process.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from plugins.distribution import install

CONTRACT = ("--pyargs", "dse.testing.contract")
URL = "--dse-transport"

# Some small parts of the contract, of two guarantees.
QUICK = "test_ttl_does_not_change_the_order or test_a_frame_too_large"

DRIVER = """
import os
import time
from dse.testing.faults import FakeServer
from dse.transports.fake import FakeTransport

class Sound(FakeTransport):
    pass

class Truncates(FakeTransport):
    def send(self, address, frame, *, ttl=None):
        super().send(address, frame[: 1 << 16], ttl=ttl)

class NoLimit(FakeTransport):
    def send(self, address, frame, *, ttl=None):
        super().send(address, frame[:1000], ttl=ttl)

class Silent(FakeTransport):
    capabilities = FakeTransport.capabilities.__class__(False, 1 << 20, True)
    def return_undelivered(self, address, data): ...

class Sometimes(FakeTransport):
    def __init__(self, url, **more):
        super().__init__(url, **more)
        if self.broker_name == "quiet":
            self.capabilities = Silent.capabilities

class Dies(FakeTransport):
    def send(self, address, frame, *, ttl=None):
        if len(frame) > self.capabilities.max_frame:
            os._exit(11)
        super().send(address, frame, ttl=ttl)

class Unfinished(FakeTransport):
    def open(self):
        raise NotImplementedError("open")

class Hangs(FakeTransport):
    def open(self):
        time.sleep(600)

class Server(FakeServer):
    scheme = "sound"
    def __init__(self):
        super().__init__()
        self.url, self.direct_url = (self.scheme + url.removeprefix("fake") for url in (self.url, self.direct_url))

class NoLimitServer(Server):
    scheme = "nolimit"

class DiesServer(Server):
    scheme = "dies"

class SilentServer(Server):
    scheme = "silent"

class UnfinishedServer(Server):
    scheme = "unfinished"

class Mistaken(Server):
    def __init__(self):
        self.no_such_attribute

class NoServer(Server):
    def __init__(self):
        from dse.testing.process import BrokerError
        raise BrokerError("mybusd is not installed")
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distribution."""
    names = {"sound": "Sound", "nolimit": "NoLimit", "silent": "Silent", "dies": "Dies", "unfinished": "Unfinished"}
    return install(
        tmp_path_factory.mktemp("installed"),
        "dse_mybus",
        DRIVER,
        {},
        transports={
            each: f"dse_mybus:{kind}"
            for each, kind in {**names, "bare": "Sound", "hangs": "Hangs", "sometimes": "Sometimes"}.items()
        },
        brokers={
            "sound": "dse_mybus:Server",
            **{each: f"dse_mybus:{kind}Server" for each, kind in names.items() if each != "sound"},
            "sound+broken": "dse_mybus:NoServer",
            "sound+wrong": "dse_mybus:Sound",
            "sound+mistaken": "dse_mybus:Mistaken",
        },
    )


# Others' plugins that take longer to import than a test here takes.
LIGHT = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio")


def python(folder: Path, driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the driver is installed, in a folder with nothing of DSE in it."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
        | {
            "PYTHONPATH": str(driver),
            "XDG_CACHE_HOME": str(driver.parent / "cache"),  # stevedore's
            "COLUMNS": "120",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


class Run:
    """One run of pytest."""

    def __init__(self, folder: Path, driver: Path, *arguments: str) -> None:
        began = time.monotonic()
        done = python(folder, driver, "-m", "pytest", *LIGHT, *arguments)
        self.took = time.monotonic() - began
        self.code = done.returncode
        self.said = done.stdout + done.stderr

    def cells(self) -> dict[str, list[str]]:
        """Read the table: the row of each guarantee by its title, and of the drivers by ''."""
        assert "= guarantees by driver =" in self.said, self.said
        _, _, table = self.said.partition("= guarantees by driver =")
        rows: dict[str, list[str]] = {}
        for line in table.splitlines()[1:]:
            if not line:
                break
            title, *cells = re.split(r"\s{2,}", line.rstrip())
            rows[title.strip()] = cells
        return rows


@pytest.fixture
def run(tmp_path: Path, driver: Path) -> Any:
    return lambda *arguments: Run(tmp_path, driver, *arguments)


def test_a_driver_that_nobody_knows_is_proved_by_its_url_and_its_offered_broker(run: Any) -> None:
    done = run(*CONTRACT, URL, "sound://", "-k", f"{QUICK} or TestTtl")
    assert done.code == 0, done.said
    assert "dse contract on: sound://" in done.said
    assert done.cells()[""] == ["sound"]
    assert done.cells()["6 TTL"] == ["kept"]  # the broker can be hung


@pytest.mark.parametrize("ini", ["python_classes = Check*\npython_functions = check_*", "python_files = *.py"])
def test_what_the_folder_says_of_the_names_of_tests_does_not_matter(run: Any, tmp_path: Path, ini: str) -> None:
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --import-mode=importlib --strict-markers\n{ini}\n")
    done = run(*CONTRACT, URL, "sound://", "-k", "test_a_frame_too_large_for_nobody")
    assert done.code == 0, done.said
    assert "1 passed" in done.said


def test_a_driver_without_a_broker_of_its_own_is_tested_on_its_url_and_the_rest_is_not_tried(run: Any) -> None:
    done = run(*CONTRACT, URL, "bare://lab", "-k", "TestTtl or test_after_close_the_broker")
    assert done.code == 0, done.said
    assert done.cells()["6 TTL"] == ["kept, 1 of 13 not tried (a)"]
    assert "(a) broker cannot be stopped from here" in done.said
    assert done.cells()["11 Clean"] == ["incomplete (b)"]


def test_a_broken_guarantee_is_named_with_the_test_that_showed_it(run: Any) -> None:
    done = run(*CONTRACT, URL, "nolimit://", "-k", QUICK, "--dse-report", "r.json")
    assert done.code == 1, done.said
    assert done.cells()["8 Size"] == ["broken"]
    assert done.cells()["3 Order"] == ["incomplete (a)"]
    failed = r"nolimit breaks 8 Size: driver\.py::TestSize::test_a_frame_too_large_is_refused\w+\[nolimit-direct\]: \S+"
    assert re.search(failed, done.said), done.said


def test_several_drivers_are_several_columns_and_one_that_breaks_breaks_for_itself(run: Any) -> None:
    urls = ("sound://", "nolimit://", "bare://a", "bare://b")
    done = run(*CONTRACT, *(word for url in urls for word in (URL, url)), "-k", "test_a_frame_too_large")
    assert done.code == 1, done.said
    assert done.cells()[""] == ["bare://a", "bare://b", "nolimit", "sound"]
    assert done.cells()["8 Size"] == ["incomplete (a)", "incomplete (a)", "broken", "incomplete (a)"]


def test_with_xdist_the_table_is_the_same_as_without(run: Any, tmp_path: Path) -> None:
    chosen = (*CONTRACT, URL, "nolimit://", URL, "silent://")
    chosen = (*chosen, "-k", f"{QUICK} or test_fanout_is_never or test_a_frame_nobody_listens")
    plain = run(*chosen, "--dse-report", "plain.json", "--dse-report", "plain.md")
    spread = run(*chosen, "-n", "2", "--dist", "loadgroup", "--dse-report", "spread.json", "--dse-report", "spread.md")
    assert plain.cells() == spread.cells()
    assert (tmp_path / "plain.json").read_text() == (tmp_path / "spread.json").read_text()
    assert (tmp_path / "plain.md").read_text() == (tmp_path / "spread.md").read_text()


def test_a_worker_that_dies_breaks_the_guarantee_that_it_tried(run: Any) -> None:
    chosen = (*CONTRACT, URL, "dies://", "-k", "test_a_frame_too_large_for_nobody or test_no_time_at_all")
    done = run(*chosen, "-n", "2")
    assert done.code == 1, done.said
    assert done.cells()["8 Size"] == ["broken"]
    assert re.search(r"dies breaks 8 Size: driver\.py::TestSize::test_a_frame_too_large\S+: worker '?gw", done.said)


def test_the_reports_say_it_as_json_and_as_markdown(run: Any, tmp_path: Path) -> None:
    chosen = (*CONTRACT, URL, "silent://", "-k", "TestUndeliverable or TestSize")
    done = run(*chosen, "--dse-report", "r.json", "--dse-report", "r.md")
    assert done.code == 0, done.said
    report = json.loads((tmp_path / "r.json").read_text())
    (driver,) = report["drivers"]
    assert report["format"] == 1
    assert driver["driver"] == "silent"
    assert driver["driver_class"] == "dse_mybus:Silent"
    assert (driver["distribution"], driver["version"]) == ("dse_mybus", "1.0")
    claims = {"undeliverable": False, "survives_broker_restart": True, "relieves": True, "max_frame": 1 << 20}
    assert driver["claims"] == claims
    undeliverable, size = driver["guarantees"]
    assert (undeliverable["number"], undeliverable["name"], undeliverable["state"]) == (
        5,
        "undeliverable",
        "not claimed",
    )
    assert undeliverable["not_claimed"] + undeliverable["not_tried"] == len(undeliverable["tests"]) > 10
    assert {test["reason"] for test in undeliverable["tests"]} == {"driver does not claim undeliverable"}
    assert (size["title"], size["state"], size["failed"], size["not_run"]) == ("Size", "kept", 0, [])
    page = (tmp_path / "r.md").read_text()
    assert "| 5 Undeliverable | not claimed (a) |" in page
    assert "| 8 Size | kept |" in page
    assert "| silent | `dse_mybus:Silent` | dse_mybus 1.0 | no | yes | yes | 1,048,576 |" in page


def test_what_a_driver_claims_may_depend_on_its_url(run: Any, tmp_path: Path) -> None:
    urls = (URL, "sometimes://quiet", URL, "sometimes://loud")
    done = run(*CONTRACT, *urls, "-k", "test_fanout_is_never_reported", "--dse-report", "r.json")
    assert done.code == 0, done.said
    loud, quiet = json.loads((tmp_path / "r.json").read_text())["drivers"]
    assert (loud["driver"], quiet["driver"]) == ("sometimes://loud", "sometimes://quiet")
    assert (loud["claims"]["undeliverable"], quiet["claims"]["undeliverable"]) == (True, False)
    assert (loud["guarantees"][0]["passed"], quiet["guarantees"][0]["not_claimed"]) == (1, 1)


def test_a_test_file_of_ones_own_is_reported_as_well_and_what_is_expected_to_fail_is_not_kept(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import pytest\nfrom dse.testing.contract import *\nfrom dse_mybus import NoLimit, Server\n"
        "@pytest.fixture\ndef broker():\n    with Server() as server:\n        yield server\n"
        "@pytest.fixture\ndef transport_class():\n    return NoLimit\n"
        "TestSize = pytest.mark.xfail(TestSize)\n"
        "def test_something_else(): pass\n"
    )
    done = run("-k", QUICK)
    assert done.code == 0, done.said
    assert done.cells()[""] == ["NoLimit"]
    assert done.cells()["8 Size"] == ["broken"]


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([*CONTRACT], "dse.testing.contract is run on a driver: add --dse-transport URL, as in"),
    "no contract": ([URL, "sound://"], "--dse-transport says on what to run the contract: add --pyargs"),
    "no driver": ([*CONTRACT, URL, "nobody://x"], "--dse-transport nobody://x: no transport 'nobody' is installed;"),
    "no URL": (
        [*CONTRACT, URL, "localhost"],
        "--dse-transport: a transport URL begins with the driver's name and '://'",
    ),
    "option": (
        [*CONTRACT, URL, "bare://x?a=b"],
        "--dse-transport bare://x?a=b: bare://x?a=b: unknown option 'a'; known",
    ),
    "no server": ([*CONTRACT, URL, "sound+broken://"], "--dse-transport sound+broken://: mybusd is not installed"),
    "no Broker": (
        [*CONTRACT, URL, "sound+wrong://"],
        "--dse-transport sound+wrong://: the broker 'sound+wrong' is not a",
    ),
    "mistake": (
        [*CONTRACT, URL, "sound+mistaken://"],
        "--dse-transport sound+mistaken://: the broker 'sound+mistaken' cannot be made: AttributeError: 'Mist",
    ),
    "one of two": ([*CONTRACT, URL, "bare://a", URL, "nobody://x"], "--dse-transport nobody://x: no transport"),
    "report": ([*CONTRACT, URL, "sound://", "--dse-report", "r.txt"], "--dse-report r.txt: the name of a report ends"),
    "folder": ([*CONTRACT, URL, "sound://", "--dse-report", "no/r.md"], "--dse-report no/r.md: there is no folder no"),
    "hangs": (
        [*CONTRACT, URL, "hangs://x"],
        "--dse-transport hangs://x: the driver's open() has not returned after 0.5 s",
    ),
}

# All of them in one process: each would start for longer than it runs.
TRY_WRONG = """
import contextlib, io, json, os, sys
import pytest
import dse.testing.outside
dse.testing.outside._PATIENCE = 0.5
said = {}
for name, (arguments, _) in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as heard, contextlib.redirect_stdout(heard):
        said[name] = [pytest.main([*sys.argv[2:], *arguments])]
    said[name].append(heard.getvalue())
sys.stdout.write(json.dumps(said))
sys.stdout.flush()
os._exit(0)  # a driver hangs
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> dict[str, tuple[int, str]]:
    """The exit code and what was said, of each wrong usage."""
    done = python(tmp_path_factory.mktemp("wrong"), driver, "-c", TRY_WRONG, json.dumps(WRONG), *LIGHT)
    said: dict[str, tuple[int, str]] = json.loads(done.stdout or "{}")
    assert said, done.stderr
    return said


@pytest.mark.xdist_group("contract-kit-usage")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_told_in_a_line_before_any_test(told: dict[str, tuple[int, str]], case: str) -> None:
    code, said = told[case]
    assert code == pytest.ExitCode.USAGE_ERROR, said
    assert f"ERROR: {WRONG[case][1]}" in said
    assert "passed" not in said
    assert "Traceback" not in said


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["plain", "xdist"])
@pytest.mark.parametrize("broker", ["gone", "silent"])
def test_a_broker_that_is_gone_or_says_nothing_is_told_in_bounded_time(
    run: Any, silent_server: int, broker: str, options: tuple[str, ...]
) -> None:
    pytest.importorskip("redis", reason="the extra is not installed in this environment")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1] if broker == "gone" else silent_server
    url = f"redis://somebody:secret@127.0.0.1:{port}/0?connect_timeout=1"
    done = run(*CONTRACT, URL, url, *options)
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.said
    shown = re.escape(url.replace("secret", "***"))
    assert re.search(rf"ERROR: --dse-transport {shown}: .*127\.0\.0\.1:{port}", done.said), done.said
    assert "secret" not in done.said
    assert done.took < 60


def test_a_driver_that_is_not_finished_fails_test_by_test(run: Any) -> None:
    done = run(*CONTRACT, URL, "unfinished://", "-k", "test_no_time_at_all")
    assert done.code == pytest.ExitCode.TESTS_FAILED
    assert done.cells()["6 TTL"] == ["broken"]
    assert "NotImplementedError: open" in done.said


def test_projects_that_have_no_driver_do_not_notice_the_plugin(run: Any, tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_nothing_of_dse_is_loaded(record_property):\n"
        "    record_property('guarantee', 'of somebody else')\n"
        "    assert [name for name in sys.modules if name.partition('.')[0] == 'dse'] == []\n"
    )
    for options in ((), ("-n", "1")):
        done = run("-W", "error", *options)
        assert done.code == 0, done.said
        assert "guarantees" not in done.said
        assert "1 passed" in done.said


def test_a_report_that_was_asked_for_in_vain_is_told(run: Any, tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_it(): pass\n")
    done = run("--dse-report", "r.md")
    assert done.code == 0
    assert "no test of the contract was run: r.md is not written" in done.said
    assert not (tmp_path / "r.md").exists()
