"""The contract on ``redis://``."""

from __future__ import annotations

import pytest

from dse.testing.brokers import Broker
from dse.testing.contract import *  # noqa: F403


@pytest.fixture
def broker(redis_server: Broker) -> Broker:
    return redis_server
