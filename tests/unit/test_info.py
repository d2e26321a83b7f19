"""DataServiceInfo: what it writes it reads, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.info import DataServiceInfo, MethodInfo, identifier
from dse.errors import ConfigError

INFO = DataServiceInfo(
    service_id="host",
    node_id="n1",
    published_tables={"sockets": ("pid", "port"), "empty": ("a",)},
    subscribed_tables=(("other", "table"),),
    rpc_methods={"kill": MethodInfo("(pid: int) -> bool", "Kill it.", True), "plain": MethodInfo("()")},
)


def test_what_is_written_is_read_also_after_a_journey() -> None:
    assert DataServiceInfo.from_dict(INFO.to_dict()) == INFO
    assert DataServiceInfo.from_dict(msgspec.msgpack.decode(msgspec.msgpack.encode(INFO.to_dict()))) == INFO
    assert DataServiceInfo.from_dict(msgspec.json.decode(msgspec.json.encode(INFO.to_dict()))) == INFO


@pytest.mark.parametrize("key", list(INFO.to_dict()))
def test_a_missing_key_is_named(key: str) -> None:
    data = INFO.to_dict()
    del data[key]
    with pytest.raises(ConfigError, match=f"missing: {key}"):
        DataServiceInfo.from_dict(data)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown: extra, more"):
        DataServiceInfo.from_dict(INFO.to_dict() | {"more": 1, "extra": 2})
    data = INFO.to_dict()
    data["rpc_methods"]["kill"]["colour"] = "red"
    with pytest.raises(ConfigError, match=r"kill.*unknown: colour"):
        DataServiceInfo.from_dict(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("service_id", 5),
        ("node_id", None),
        ("published_tables", [1]),
        ("published_tables", {"t": 5}),
        ("subscribed_tables", 5),
        ("subscribed_tables", [["one"]]),
        ("rpc_methods", "text"),
        ("rpc_methods", {"m": 5}),
        ("rpc_methods", {"m": {}}),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="DataServiceInfo"):
        DataServiceInfo.from_dict(INFO.to_dict() | {key: value})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(INFO.to_dict())), anything) | anything)
def test_garbage_is_refused_and_nothing_else_happens(data: Any) -> None:
    given = INFO.to_dict() | data if isinstance(data, dict) else data
    try:
        DataServiceInfo.from_dict(given)
    except ConfigError:
        pass


@pytest.mark.parametrize("name", ["a", "_x1", "Grüße", "x" * 200])
def test_an_identifier_is_a_name(name: str) -> None:
    assert identifier("name", name) == name


@pytest.mark.parametrize("name", ["", "a b", "a.b", "1a", "a\n", "x" * 201, None, 5, b"a"])
def test_anything_else_is_not(name: Any) -> None:
    with pytest.raises(ConfigError, match="a service_id is"):
        identifier("service_id", name)
