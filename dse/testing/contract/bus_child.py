"""The other end of `dse.testing.contract.bus_peer.ProcessPeer`: a site, told over stdin what to do."""

from __future__ import annotations

import base64
import logging
import sys

from dse.testing.contract.bus_peer import Site
from dse.testing.contract.peer import load_class


def main(driver: str) -> None:
    logging.basicConfig(level=logging.CRITICAL)  # what goes wrong here on purpose is the test's to judge
    answers, sys.stdout = sys.stdout, sys.stderr
    site = Site(load_class(driver))
    for line in sys.stdin:
        print(base64.b64encode(site.carry_out(base64.b64decode(line))).decode(), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
