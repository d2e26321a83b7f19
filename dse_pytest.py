"""The pytest plugin of DSE: proves a transport driver from the outside, and says which guarantees drivers keep.

    pytest --pyargs dse.testing.contract --dse-transport mybus://localhost

pytest loads this module in every run on a machine where DSE is installed. So it lies outside the package, whose import
costs time, and hands over to `dse.testing` only where the contract is at work: it costs nobody else anything.
"""

from __future__ import annotations

import pytest

__all__: list[str] = []

_CONTRACT = "dse.testing.contract"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dse", "contract of DSE's transport drivers")
    group.addoption(
        "--dse-transport",
        action="append",
        default=[],
        metavar="URL",
        help=f"with --pyargs {_CONTRACT}: run the contract on the driver of this URL; may be given several times. "
        "A URL without a host asks for a private broker, where the driver's distribution offers one.",
    )
    group.addoption(
        "--dse-report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the table of guarantees by driver to FILE.md or FILE.json; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.option.pyargs and any(_is_contract(arg) for arg in config.args)
    if config.option.dse_transport and wanted:
        from dse.testing.outside import Outside

        config.pluginmanager.register(Outside(config), "dse-outside")
    elif config.option.dse_transport:
        raise pytest.UsageError(f"--dse-transport says on what to run the contract: add --pyargs {_CONTRACT}")
    elif wanted:
        raise pytest.UsageError(
            f"{_CONTRACT} is run on a driver: add --dse-transport URL, as in --dse-transport redis://localhost"
        )
    for file in config.option.dse_report:
        if not file.endswith((".md", ".json")):
            raise pytest.UsageError(f"--dse-report {file}: the name of a report ends in .md or .json")


def _is_contract(arg: str) -> bool:
    module = arg.partition("::")[0]
    return module == _CONTRACT or module.startswith(f"{_CONTRACT}.")
