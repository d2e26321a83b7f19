"""What a run of the contract showed, by driver and guarantee: as data, as JSON, as Markdown, in a terminal.

    python -m dse.testing.report redis.json nats.json --markdown guarantees.md     # one table of several runs

pytest makes the reports, with ``--dse-report FILE.json``; ``docs/contract.md`` has the format. `Report` is the whole,
`DriverReport` one driver's column, `GuaranteeReport` one cell, with every test behind it.
"""

from dse.testing.report.model import (
    Claims,
    DriverReport,
    GuaranteeReport,
    Outcome,
    Report,
    State,
    TestReport,
    judge,
    load_report,
    merge,
)

__all__ = [
    "Claims",
    "DriverReport",
    "GuaranteeReport",
    "Outcome",
    "Report",
    "State",
    "TestReport",
    "judge",
    "load_report",
    "merge",
]
