"""What a subclass of `DataService` may declare under which name."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from dse import ConfigError, DataService, Node, Table, every, on_change, rpc

KINDS: list[tuple[str, Callable[[Any], Any]]] = [
    ("@rpc method", rpc),
    ("@every method", every(1.0)),
    ("@on_change method", on_change("weather", "readings")),
]


def named(name: str) -> Any:
    def method(self: DataService) -> None:
        """Do nothing."""

    method.__name__ = name
    return method


@pytest.mark.parametrize(
    "name", ["status", "node", "info", "subscribe", "on_start", "methods", "service_id", "_running"]
)
def test_a_table_that_would_hide_an_attribute_is_refused_where_the_class_is_defined(name: str) -> None:
    message = f"Weather.{name}: this Table would hide DataService.{name}: choose another name, or publish it with "
    with pytest.raises(ConfigError, match=re.escape(f"{message}add_table({name!r}, …)")):
        type("Weather", (DataService,), {name: Table("a")})


@pytest.mark.parametrize("name", ["status", "call", "cast", "published_tables", "add_table"])
@pytest.mark.parametrize(("what", "mark"), KINDS)
def test_a_marked_method_that_would_hide_an_attribute_is_refused(
    name: str, what: str, mark: Callable[[Any], Any]
) -> None:
    message = f"Weather.{name}: this {what} would hide DataService.{name}: choose another name"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        type("Weather", (DataService,), {name: mark(named(name))})


def test_what_a_base_class_of_another_kind_brings_is_refused_too() -> None:
    class Mixin:
        status = Table("a")

    with pytest.raises(ConfigError, match=r"Weather\.status: this Table"):
        type("Weather", (Mixin, DataService), {})


def test_the_advice_works() -> None:
    class Weather(DataService):
        def on_start(self) -> None:
            self.add_table("status", "table", "state", "reason", rows=[("readings", "LIVE", "")])

    service = Weather("weather")
    with Node(f"fake://{uuid.uuid4().hex}", services=[service]):
        assert service.status == "running"
        assert set(service.info.published_tables) == {"status"}


def test_hooks_are_there_to_be_overridden_marked_or_not() -> None:
    class Weather(DataService):
        started = 0

        @rpc
        def on_start(self) -> None:
            self.started += 1

        def on_stop(self) -> None:
            self.started += 10

    service = Weather("weather")
    with Node(f"fake://{uuid.uuid4().hex}", services=[service]) as node:
        node.call("weather", "on_start")
        assert service.started == 2
    assert service.started == 12


def test_an_attribute_that_is_no_declaration_may_be_overridden() -> None:
    class Weather(DataService):
        @property
        def status(self) -> str:
            return f"all well, {super().status}"

    assert Weather("weather").status == "all well, stopped"


def test_a_subclass_may_declare_anew_what_its_base_declares() -> None:
    class Weather(DataService):
        readings = Table("room", "celsius")

        @rpc
        def reading(self, room: str) -> float:
            return 20.0

    class Climate(Weather):
        readings = Table("room", "celsius", "humidity")

        @rpc
        def reading(self, room: str) -> float:
            return 21.0

    assert Climate("climate").published_tables["readings"].columns == ("room", "celsius", "humidity")
    assert list(Climate("climate").methods) == ["reading"]
