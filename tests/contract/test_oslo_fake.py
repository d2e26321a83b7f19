"""The contract on ``oslo+fake://``."""

from __future__ import annotations

import pytest

from dse.testing.brokers import OsloFakeBroker
from dse.testing.contract import *  # noqa: F403


@pytest.fixture
def broker() -> OsloFakeBroker:
    return OsloFakeBroker()
