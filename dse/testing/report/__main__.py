"""Put reports of the contract together: ``python -m dse.testing.report A.json B.json --markdown FILE --json FILE``.

Without a file to write, the table is printed. Exit codes: 0 no guarantee is broken; 1 one is; 2 a file is no report.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from dse.errors import ConfigError
from dse.testing.report.model import load_report, merge
from dse.testing.report.render import markdown, text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dse.testing.report",
        description="Put reports of the contract together; without a file to write, print the table.",
        epilog="exit codes: 0 no guarantee is broken; 1 one is; 2 a file cannot be read or written",
    )
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE.json", help="what --dse-report wrote")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the merged report")
    options = parser.parse_args(arguments)
    try:
        report = merge(load_report(file) for file in options.reports)
        if options.markdown is not None:
            options.markdown.write_text(markdown(report))
        if options.json is not None:
            options.json.write_bytes(report.to_json())
    except (ConfigError, OSError) as error:
        print(f"dse.testing.report: {error}", file=sys.stderr)
        return 2
    if options.markdown is None and options.json is None:
        print("".join(piece for piece, _ in text(report, shutil.get_terminal_size().columns)), end="")
    return int(any(each.state == "broken" for driver in report.drivers for each in driver.guarantees))


if __name__ == "__main__":
    sys.exit(main())
