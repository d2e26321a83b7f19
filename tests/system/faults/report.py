"""Write the counts that `make faults` collected into the table of ``docs/faults.md``.

    python tests/system/faults/report.py build/faults.jsonl docs/faults.md

The table stands between two comments in the page; the latest counts of a fault on a broker are taken.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- counts: made by `make faults` -->", "<!-- end of counts -->"
HEAD = (
    "fault | broker | load, s | changes | callbacks | whole after, s | calls | failed | latest, s | ran twice | "
    "repeated | broken | besides"
)


def row(counts: dict[str, Any]) -> str:
    """Return one line of the table."""
    failed = ", ".join(f"{number} {name}" for name, number in counts["failed"].items()) or "none"
    besides = ", ".join(f"{name} {value}" for name, value in counts["notes"].items())
    latest = counts["latest"]
    cells = [
        *(counts[name] for name in ("fault", "broker", "seconds", "changes", "callbacks", "recovered", "calls")),
        failed,
        "" if latest is None else f"{latest:+.2f}",
        *(counts["ran_twice"], counts["repeated"], len(counts["broken"]), besides),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(results: str, page: str) -> None:
    latest = {}
    for line in Path(results).read_text().splitlines():
        counts = json.loads(line)
        latest[counts["fault"], counts["broker"]] = counts
    faults = list(dict.fromkeys(fault for fault, _ in latest))
    ordered = sorted(latest.values(), key=lambda counts: (faults.index(counts["fault"]), counts["broker"]))
    table = [f"| {HEAD} |", f"|{' --- |' * (HEAD.count('|') + 1)}", *map(row, ordered)]
    text = Path(page).read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for the counts: {BEGIN} … {END}")
    Path(page).write_text(f"{before}{BEGIN}\n\n{chr(10).join(table)}\n\n{END}{after}")
    print("\n".join(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
