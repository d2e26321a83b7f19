"""The contract on ``nats://`` with a cluster of two servers: each client is connected to one by chance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dse.testing.contract import *  # noqa: F403
from dse_nats.testing import NatsCluster

contract_keys = "no"  # for the sake of time: DSE_TEST_KEYS=yes runs them with keys


@pytest.fixture(scope="module")
def broker() -> Iterator[NatsCluster]:
    with NatsCluster() as cluster:
        yield cluster
