"""Write the counts that `make move` collected into the table of ``docs/bridge.md``.

    python tests/system/move/report.py build/move.jsonl docs/bridge.md

The table stands between two comments in the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- counts: made by `make move` -->", "<!-- end of counts -->"
HEAD = (
    "bridge | load, s | changes | lost | callbacks | merged | calls | succeeded | slowest, s | ran twice | "
    "failed | did not run | not known | of these ran | down, s"
)


def row(counts: dict[str, Any]) -> str:
    """Return one line of the table."""
    failed = ", ".join(f"{number} {name}" for name, number in counts["failed"].items()) or "none"
    lost = sum(1 for each in counts["broken"] if "ran " not in each and "call" not in each)
    bridge = f"killed, back after {counts['bridge_down'][0]}" if counts["killed"] else "stays"
    down = f"{min(counts['down'].values())} to {max(counts['down'].values())}"
    cells = [
        *(bridge, counts["seconds"], counts["changes"], lost, counts["callbacks"], counts["merged"]),
        *(counts["calls"], counts["succeeded"], counts["slowest"], counts["ran_twice"], failed),
        *(counts["not_run"], counts["unknown"], counts["unknown_ran"], down),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(results: str, page: str) -> None:
    counts = [json.loads(line) for line in Path(results).read_text().splitlines()]
    counts.sort(key=lambda each: bool(each["killed"]))
    table = [f"| {HEAD} |", f"|{' --- |' * (HEAD.count('|') + 1)}", *map(row, counts)]
    text = Path(page).read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for the counts: {BEGIN} … {END}")
    Path(page).write_text(f"{before}{BEGIN}\n\n{chr(10).join(table)}\n\n{END}{after}")
    print("\n".join(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
