"""The contract on ``fake://``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dse.testing.contract import *  # noqa: F403
from dse.testing.faults import FakeServer


@pytest.fixture
def broker() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server
