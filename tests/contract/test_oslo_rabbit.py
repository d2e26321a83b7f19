"""The contract on ``oslo+rabbit://``."""

from __future__ import annotations

import pytest

from dse.testing.brokers import Broker, over_oslo
from dse.testing.contract import *  # noqa: F403

contract_keys = "no"  # for the sake of time: DSE_TEST_KEYS=yes runs them with keys


@pytest.fixture
def broker(rabbit_server: Broker) -> Broker:
    return over_oslo(rabbit_server)
