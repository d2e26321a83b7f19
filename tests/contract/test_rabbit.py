"""The contract on ``rabbit://``."""

from __future__ import annotations

import pytest

from dse.testing.brokers import Broker
from dse.testing.contract import *  # noqa: F403


@pytest.fixture
def broker(rabbit_server: Broker) -> Broker:
    return rabbit_server
