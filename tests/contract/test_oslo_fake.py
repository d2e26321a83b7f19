"""The contract on ``oslo+fake://``."""

from __future__ import annotations

import pytest

from dse.testing.brokers import OsloFakeBroker
from dse.testing.contract import *  # noqa: F403

contract_keys = "no"  # for the sake of time: DSE_TEST_KEYS=yes runs them with keys


@pytest.fixture
def broker() -> OsloFakeBroker:
    return OsloFakeBroker()
