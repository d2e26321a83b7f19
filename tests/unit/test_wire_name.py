"""Names on a broker: plain, short, and never the same for two addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.core.connection import wire_name
from dse.core.transport import Address, Delivery
from dse.errors import ConfigError

texts = st.text(min_size=1, max_size=400)
addresses = st.builds(Address, st.sampled_from(list(Delivery)), texts)
buses = st.text(min_size=1, max_size=8)


@given(buses, addresses, buses, addresses)
def test_two_addresses_share_no_name(bus: str, address: Address, other_bus: str, other: Address) -> None:
    same = (bus, address) == (other_bus, other)
    assert (wire_name(bus, address) == wire_name(other_bus, other)) == same


@given(buses, addresses)
def test_a_name_is_short_plain_text(bus: str, address: Address) -> None:
    name = wire_name(bus, address)
    assert len(name) <= 200
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(" *#>?[]{}\"'\\")


def test_the_name_that_stands_for_a_long_one_is_taken_by_no_other() -> None:
    long = wire_name("b", Address(Delivery.DIRECT, "x" * 300))
    tail = long.removeprefix("dse:b:d:")
    assert wire_name("b", Address(Delivery.DIRECT, tail)) != long


def test_a_bus_name_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long"):
        wire_name("b" * 200, Address(Delivery.DIRECT, "x" * 300))
