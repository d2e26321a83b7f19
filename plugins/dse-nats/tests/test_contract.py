"""The contract on ``nats://``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dse.testing.contract import *  # noqa: F403
from dse_nats.testing import NatsServer


@pytest.fixture(scope="module")
def broker() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server
