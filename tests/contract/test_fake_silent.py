"""The contract on a driver that cannot say what is undeliverable: the core has to do without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import pytest

from dse.core.transport import Address, Capabilities
from dse.testing.contract import *  # noqa: F403
from dse.testing.faults import FakeServer
from dse.transports.fake import FakeTransport


class SilentTransport(FakeTransport):
    capabilities: ClassVar[Capabilities] = dataclasses.replace(FakeTransport.capabilities, undeliverable=False)

    def return_undelivered(self, address: Address, data: bytes) -> None: ...


@pytest.fixture
def broker() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def transport_class() -> type[SilentTransport]:
    return SilentTransport
