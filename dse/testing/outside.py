"""The contract on any installed driver: ``pytest --pyargs dse.testing.contract --dse-transport URL``.

The URL says on which broker:

- A bare scheme (``mybus://``) asks for a private broker. The driver's distribution offers one in the entry point group
  ``dse.brokers``: a `Broker` class, named by the scheme, that can be made without arguments. Each worker makes its own.
- Any other URL is that of a running broker; `Broker.at` of the same class makes something of it that a test can handle.
- Without such an entry point the URL goes to the driver as it is: tests that need to stop or look into the broker are
  skipped.

That there is such a driver, that it takes the URL, and that the broker answers is found out before any test.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

import dse.testing.contract
from dse.core.plugins import load_plugin, load_transport
from dse.core.transport import Address, ConnectionState
from dse.core.url import TransportUrl
from dse.errors import DseError, TransportUnavailable, Unfinished
from dse.testing.broker import Broker, RunningBroker
from dse.testing.process import BrokerError

__all__ = ["Outside", "broker_for", "check", "driver_names"]

BROKERS = "dse.brokers"
"""The entry point group of brokers for tests."""

_PATIENCE = 15.0  # seconds until a driver that does not return from `open` counts as one that hangs


def broker_for(url: str) -> Broker:
    """Return the broker for a URL that was given to ``--dse-transport``; to be closed at the end.

    Raises `BrokerError`, or what `dse.errors` has for it, when it cannot be had.
    """
    parsed = TransportUrl.parse(url)
    try:
        offered = load_plugin(BROKERS, parsed.scheme, kind="broker", base=Broker, extras={})  # type: ignore[type-abstract]
    except LookupError:
        return RunningBroker(url)
    try:
        return offered() if _is_bare(parsed) else offered.at(url)
    except (DseError, BrokerError):
        raise
    except Exception as error:  # a mistake of its author
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise BrokerError(
            f"the broker {parsed.scheme!r} cannot be made: {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from error


def _is_bare(url: TransportUrl) -> bool:
    """Whether a URL is a scheme and no more."""
    return not (url.hosts or url.path or url.options or url.username)


def check(url: str) -> None:
    """See that a transport opens on a URL that was given to ``--dse-transport``.

    Raises `BrokerError`, or what `dse.errors` has for it, when there is no driver, no broker, or no answer, within some
    seconds (and what a private broker needs to start). That the driver fails in any other way is for the tests to say.
    """
    load_transport(url)
    bare = _is_bare(TransportUrl.parse(url))
    if not bare:  # first of all: whatever else looks for the broker may wait for it longer than the driver does
        _see_that_it_opens(url)
    with broker_for(url) as broker:
        if bare:
            _see_that_it_opens(broker.direct_url)


def _see_that_it_opens(url: str) -> None:
    failures: list[DseError] = []
    thread = threading.Thread(target=_open, args=(url, failures), name="dse-outside-check", daemon=True)
    thread.start()
    patience = _patience(url)
    thread.join(patience)
    if thread.is_alive():
        raise TransportUnavailable(f"the driver's open() has not returned after {patience:g} s")
    if failures:
        raise failures[0]


def _patience(url: str) -> float:
    asked = TransportUrl.parse(url).options.get("connect_timeout", "")
    try:
        return max(_PATIENCE, float(asked) + 5)
    except ValueError:  # not given, or for the driver to refuse
        return _PATIENCE


def _open(url: str, failures: list[DseError]) -> None:
    try:
        parsed = TransportUrl.parse(url)
        transport = load_transport(parsed)(parsed, bus=f"contract-{uuid.uuid4().hex[:12]}", events=_Deaf())
        transport.open()
        transport.close()
    except Unfinished:
        pass  # a driver that is being written: guarantee by guarantee
    except DseError as error:
        failures.append(error)
    except Exception:
        pass  # one that is not right: likewise


class _Deaf:
    def received(self, address: Address, frame: bytes) -> None: ...

    def undeliverable(self, address: Address, frame: bytes) -> None: ...

    def state_changed(self, state: ConnectionState) -> None: ...


def driver_names(urls: Iterable[str]) -> dict[str, str]:
    """Name the drivers behind URLs, for reports: by the scheme, or by the URL where several have the same scheme."""
    parsed = {url: TransportUrl.parse(url) for url in urls}
    schemes = [each.scheme for each in parsed.values()]
    names: dict[str, str] = {}
    for url, each in parsed.items():
        shown = each.scheme if schemes.count(each.scheme) == 1 else str(each)
        alike = sum(name.partition(" #")[0] == shown for name in names.values())
        names[url] = f"{shown} #{alike + 1}" if alike else shown
    return names


class Outside:
    """The pytest plugin of one such run."""

    def __init__(self, config: pytest.Config) -> None:
        self.urls = list(dict.fromkeys(config.getoption("dse_transport")))
        self._module = Path(dse.testing.contract.__file__).with_name("driver.py")
        if not hasattr(config, "workerinput"):  # a worker of xdist has its URLs checked
            for url in self.urls:
                self._check(url)
        self._names = driver_names(self.urls)

    @staticmethod
    def _check(url: str) -> None:
        try:
            shown = str(TransportUrl.parse(url))
        except DseError as error:
            raise pytest.UsageError(f"--dse-transport: {error}") from None
        try:
            check(url)
        except (DseError, BrokerError) as error:
            raise pytest.UsageError(f"--dse-transport {shown}: {error}") from None

    # First, so that a test's name begins with its driver. No hook of the module: that may have one from the contract.
    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if metafunc.definition.path == self._module:
            names = self._names
            metafunc.parametrize("broker", list(names), ids=list(names.values()), indirect=True, scope="session")

    # A test that cannot even have its broker is its driver's all the same.
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        url = getattr(item, "callspec", None) and item.callspec.params.get("broker")  # type: ignore[attr-defined]
        if isinstance(url, str) and url in self._names:
            item.user_properties.append(("driver", self._names[url]))

    def pytest_report_header(self) -> str:
        return f"dse contract on: {', '.join(str(TransportUrl.parse(url)) for url in self.urls)}"

    # What the configuration of the folder says of the names of test files, classes and functions does not count: one
    # module is collected, once.
    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
        collected = yield
        if file_path.parent != self._module.parent:
            return collected
        return [_Module.from_parent(parent, path=file_path)] if file_path == self._module else []

    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, name: str, obj: object
    ) -> pytest.Class | None:
        if isinstance(collector, _Module) and collector.classnamefilter(name):
            return _Class.from_parent(collector, name=name, obj=obj)
        return None


class _Module(pytest.Module):
    def classnamefilter(self, name: str) -> bool:
        return name.startswith("Test")


class _Class(pytest.Class):
    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("test_")
