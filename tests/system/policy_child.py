"""A process of the policy tests: a node with a policy service, or with a source that publishes what a file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dse import DataService, Node, Table, every
from dse.services.policy import Policy


class Host(DataService):
    """Publishes what two files hold, as they are now."""

    sockets = Table("port", "pid", pending=True)
    processes = Table("pid", "name", pending=True)

    def __init__(self, folder: Path) -> None:
        super().__init__("host")
        self._folder = folder

    @every(0.02)
    def poll(self) -> None:
        for table in (self.processes, self.sockets):
            rows = json.loads((self._folder / f"{table.name}.json").read_text())
            table.replace({tuple(row) for row in rows})


def main(kind: str, url: str, bus: str, folder: Path) -> None:
    services = {
        "policy": lambda: Policy("policy", store=folder / "rules.db"),
        "host": lambda: Host(folder),
    }
    with Node(url, bus=bus, node_id=kind, services=[services[kind]()], heartbeat_interval=0.3):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
