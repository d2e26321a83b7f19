"""What is installed: names, versions, dependencies, entry points."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from typing import Any

import pytest

from dse.cli.run.kinds import kind_words
from dse.cli.run.services import plugin_options
from dse.errors import MissingExtra
from dse.services.plugins import load_service

DRIVERS = {
    "fake": "dse.transports.fake:FakeTransport",
    "redis": "dse.transports.redis:RedisTransport",
    "rediss": "dse.transports.redis:RedisTransport",
    "rabbit": "dse.transports.rabbit:RabbitTransport",
    "amqp": "dse.transports.rabbit:RabbitTransport",
    "amqps": "dse.transports.rabbit:RabbitTransport",
    "oslo": "dse.transports.oslo:OsloTransport",
}
CLIENTS = {"fake": None, "redis": "redis", "rabbit": "kombu", "oslo": "oslo_config"}


def python(code: str) -> str:
    """Run code in a fresh interpreter, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_base_install_needs_two_packages():
    required = [r for r in distribution("dse").requires or [] if "extra ==" not in r]
    assert sorted(re.split(r"[^A-Za-z0-9-]", r)[0] for r in required) == ["msgspec", "stevedore"]


def test_the_metadata_is_that_of_this_version():
    metadata = distribution("dse").metadata
    assert metadata["Name"] == "dse"
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["Version"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"redis", "rabbit", "oslo", "cli", "demo", "all", "test"} <= set(metadata.get_all("Provides-Extra"))


def test_types_are_shipped():
    assert (files("dse") / "py.typed").is_file()


def test_every_driver_is_an_entry_point():
    assert {e.name: e.value for e in entry_points(group="dse.transports") if e.dist.name == "dse"} == DRIVERS


def test_oslo_messaging_finds_one_driver_for_all_of_them():
    found = [e.value for e in entry_points(group="oslo.messaging.drivers") if e.name == "dse"]
    assert found == ["dse.oslo.driver:new_driver"]


@pytest.mark.parametrize("name", sorted(DRIVERS))
def test_every_entry_point_loads(name):
    (entry,) = (e for e in entry_points(group="dse.transports") if e.name == name and e.dist.name == "dse")
    client = CLIENTS[DRIVERS[name].partition(":")[0].rpartition(".")[2]]
    if client:
        pytest.importorskip(client, reason="the extra is not installed in this environment")
    assert entry.load().__name__ == DRIVERS[name].partition(":")[2]


@pytest.mark.parametrize(
    "name", sorted(e.name for e in entry_points(group="dse.services") if e.dist and e.dist.name == "dse")
)
def test_every_service_can_be_run_from_a_file(name):
    try:
        options, _ = plugin_options(load_service(name))
    except MissingExtra:
        pytest.skip("the extra is not installed in this environment")
    for option in options:
        assert kind_words(option.kind), option.key
        assert option.kind is not Any, f"{option.key} has no annotation"


def test_the_package_imports_no_driver_and_no_client():
    loaded = python("import dse, sys; print(*sys.modules)").split()
    assert not {"redis", "kombu", "amqp", "psutil", "rich", "dse.transports.redis"} & set(loaded)


def test_loading_one_driver_imports_no_other():
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "[e] = [e for e in entry_points(group='dse.transports') if e.name == 'fake']\n"
        "e.load(); print(*sys.modules)"
    )
    assert not {"redis", "kombu", "dse.transports.redis", "dse.transports.rabbit"} & set(python(code).split())


def test_the_command_is_installed():
    (entry,) = (e for e in entry_points(group="console_scripts") if e.name == "dse")
    assert entry.value == "dse.cli.main:main"


SERVICES = {
    "host": "dse.services.sources.host:Host",
    "files": "dse.services.sources.files:Files",
    "push": "dse.services.sources.push:Push",
}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_source_is_an_entry_point_and_loads(name):
    (entry,) = (e for e in entry_points(group="dse.services") if e.name == name and e.dist.name == "dse")
    assert entry.value == SERVICES[name]
    assert entry.load().__name__ == entry.value.partition(":")[2]
