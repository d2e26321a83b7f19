"""The contract suite: what every driver guarantees, as tests; a class for each guarantee of ``docs/transports.md``.

A driver's test file is this:

    import pytest
    from dse.testing.contract import *

    @pytest.fixture
    def broker(my_server):                    # a dse.testing.brokers.Broker
        return my_server

The driver is the one installed for the scheme of ``broker.url``; a fixture ``transport_class`` names another. Each test
has a bus and addresses of its own: tests run in parallel and in any order on one broker. A test that needs a capability
the driver does not claim, or a broker that can be broken or looked into, is skipped and says why.

Level 1, modules ``spi_*``: frames. Level 2, modules ``bus_*``: a whole bus on the driver.
"""

import pkgutil

import pytest

# Before the modules are imported, so that a plain `assert` in them shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from dse.testing.contract.bus_members import TestControlBus, TestObserver  # noqa: E402
from dse.testing.contract.bus_network import network, peer_pool  # noqa: E402
from dse.testing.contract.bus_outage import TestBusClean, TestBusOutage  # noqa: E402
from dse.testing.contract.bus_rpc import TestCalls, TestLoad, TestLostCallee  # noqa: E402
from dse.testing.contract.bus_tables import TestReplicas, TestTableChanges  # noqa: E402
from dse.testing.contract.fixtures import (  # noqa: E402
    bus,
    connect,
    failing,
    keys,
    pytest_generate_tests,
    start_peer,
    transport_class,
)
from dse.testing.contract.spi_clean import TestClean  # noqa: E402
from dse.testing.contract.spi_delivery import TestAtMostOnce, TestDelivery, TestOrder  # noqa: E402
from dse.testing.contract.spi_names import TestIsolation, TestSize  # noqa: E402
from dse.testing.contract.spi_outage import TestOutage  # noqa: E402
from dse.testing.contract.spi_ready import TestReady  # noqa: E402
from dse.testing.contract.spi_reopen import TestForkAndReopen  # noqa: E402
from dse.testing.contract.spi_threads import TestThreads  # noqa: E402
from dse.testing.contract.spi_ttl import TestTtl  # noqa: E402
from dse.testing.contract.spi_turns import TestTurns  # noqa: E402
from dse.testing.contract.spi_undeliverable import TestUndeliverable  # noqa: E402

__all__ = [
    "TestAtMostOnce",
    "TestBusClean",
    "TestBusOutage",
    "TestCalls",
    "TestClean",
    "TestControlBus",
    "TestDelivery",
    "TestForkAndReopen",
    "TestIsolation",
    "TestLoad",
    "TestLostCallee",
    "TestObserver",
    "TestOrder",
    "TestOutage",
    "TestReady",
    "TestReplicas",
    "TestSize",
    "TestTableChanges",
    "TestThreads",
    "TestTtl",
    "TestTurns",
    "TestUndeliverable",
    "bus",
    "connect",
    "failing",
    "keys",
    "network",
    "peer_pool",
    "pytest_generate_tests",
    "start_peer",
    "transport_class",
]
