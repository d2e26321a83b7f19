"""The contract on ``nats+local://``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dse.testing.contract import *  # noqa: F403
from dse_nats.testing import LocalServer

contract_keys = "no"  # for the sake of time: DSE_TEST_KEYS=yes runs them with keys


@pytest.fixture(scope="module")
def broker() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server
