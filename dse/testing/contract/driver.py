"""What ``pytest --pyargs dse.testing.contract`` collects: the contract on the drivers of ``--dse-transport``.

`dse.testing.outside` parametrizes `broker` with their URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dse.testing.contract import *  # noqa: F403
from dse.testing.outside import broker_for, driver_names

if TYPE_CHECKING:
    from dse.testing.broker import Broker


@pytest.fixture  # type: ignore[no-redef]
def driver_name(request: pytest.FixtureRequest) -> str:
    url: str = request.node.callspec.params["broker"]
    return driver_names(request.config.getoption("dse_transport"))[url]


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with broker_for(request.param) as broker:
        yield broker
