"""``make bench``: measure everything side by side, write ``docs/performance``, fail when a ratio is missed.

python -m compare [--parts rpc,fanout,…] [--only TEXT] [--quick] [--into FOLDER] [--environments FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from compare.parts import PARTS, Bench
from compare.ratios import judge
from compare.report import table, write
from dse.testing.brokers import rabbit_broker, redis_broker


def main() -> int:
    """Run and judge; return 1 when a ratio was missed."""
    parser = argparse.ArgumentParser(prog="compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="contestants whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="a fifth of the full run, for development")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="write figures and plots there")
    parser.add_argument("--environments", type=Path, default=Path("build/bench"), metavar="FOLDER")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        redis, rabbit = stack.enter_context(redis_broker()), stack.enter_context(rabbit_broker())
        urls = {"redis": redis.direct_url, "rabbit": rabbit.direct_url, "fake": "fake://"}
        bench = Bench(urls, options.environments.absolute(), 0.2 if options.quick else 1.0, options.only)
        for part in parts:
            print(f"{part}: {(PARTS[part].__doc__ or '').splitlines()[0]}", flush=True)
            PARTS[part](bench)
            verdicts = judge(bench.results)
            if options.into is not None:  # after each part: a run that is ended early has not been for nothing
                write(options.into, bench.results, bench.absent, verdicts, time.monotonic() - began)
    print(table(verdicts))
    for name, why in bench.absent.items():
        print(f"not there: {name}: {why}")
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
