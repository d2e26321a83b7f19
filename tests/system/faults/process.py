"""One process of the fleet: a node with sources, work and subscriptions, under load. It is told what to do over stdin.

A request is a line of JSON: ``[method, arguments]``, with a public method of `Site`. So is its answer:
``[true, result]`` or ``[false, error]``.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dse import Node
from faults.books import Book
from faults.calls import Calls, Work
from faults.changes import Changes, Source, Watcher, fingerprint, source

_PR_SET_PDEATHSIG = 1


class Site:
    """What one process holds; every public method may be asked for.

    plan: what the process is (`faults.fleet.Plan` as a dict). folder: where the books are.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._folder = folder
        self._seed = f"{plan['seed']}-{plan['node_id']}-{os.getpid()}"
        self._ran = Book(folder / "ran.jsonl")
        self._changes = Changes(self._seed, plan["change_rate"])
        self._sources: dict[str, Source] = {}
        self._watcher = Watcher(f"watch{plan['place']}", [(service, table) for service, table in plan["subscriptions"]])
        services = [Work(name, plan["node_id"], self._ran) for name in plan["work"]]
        sources = [self._source(name, tables) for name, tables in plan["sources"].items()]
        self._node = Node(
            plan["url"],
            bus=plan["bus"],
            node_id=plan["node_id"],
            services=[*sources, *services, self._watcher],
            **plan["options"],
        )
        targets = [(service, node_id) for service, node_id in plan["targets"]]
        self._calls = Calls(self._node, self._seed, plan["call_rate"], targets, Book(folder / "calls.jsonl"))

    # Life and load

    def start(self) -> str:
        """Start the node, with tables that have rows. Return its instance."""
        self._node.start()
        return self._node.runtime.instance

    def begin(self) -> None:
        """Begin the load."""
        self._changes.begin()
        self._calls.begin()

    def halt_changes(self) -> None:
        self._changes.halt()

    def end_calls(self) -> list[str]:
        return self._calls.end()

    def flood(self, rate: float, note_length: int) -> None:
        """Change the rate of changes, a second, and the length of the new rows' notes."""
        self._changes.pace.rate = rate
        self._changes.note_length = note_length

    def doze(self, pause: float) -> None:
        """Let every callback sleep for some seconds."""
        for watch in self._watcher.watches.values():
            watch.pause = pause

    def start_call(self, **call: Any) -> str:
        """Begin one call besides the load's; return its key. See `Calls.start`."""
        return self._calls.start(**call)

    def call(self, service: str, timeout: float) -> str:
        """Call a service once, outside the load; return "" or the error."""
        try:
            self._node.call(service, "soon", {"key": f"{self._seed}-{time.monotonic()}", "pause": 0.0}, timeout=timeout)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def add_source(self, service_id: str, tables: list[str]) -> None:
        """Host a source (another replica of it, if somebody else does), and change its tables too."""
        self._node.register(self._source(service_id, tables))

    def register(self, service_id: str) -> None:
        """Host a source again."""
        self._sources[service_id].empty()
        self._node.register(self._sources[service_id])

    def unregister(self, service_id: str) -> None:
        self._node.unregister(service_id)

    def stop(self) -> list[str]:
        """Stop the node; return the names of threads that are left."""
        self._node.stop()
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("dse-"))

    # What is seen

    def versions(self) -> dict[str, Any]:
        """Where tables and replicas stand, and who is on the bus; cheap enough to be asked for under load."""
        return {
            "tables": [
                [name, table, *published.version]
                for name, service in self._sources.items()
                if service.status == "running"
                for table, published in service.published_tables.items()
            ],
            "replicas": [
                [service, table, watch.replica.state, *watch.replica.version]
                for (service, table), watch in self._watcher.watches.items()
            ],
            "nodes": {name: status.state for name, status in self._node.status().nodes.items()},
            "disconnects": self._node.counters["disconnects"],
            "accepted": self._changes.accepted,
        }

    def contents(self) -> dict[str, Any]:
        """What tables, ledgers and replicas hold, as fingerprints, and all that was wrong so far."""
        watches = self._watcher.watches
        return {
            "tables": [
                [name, table, *published.version, fingerprint(published.rows), fingerprint(service.ledgers[table].rows)]
                for name, service in self._sources.items()
                if service.status == "running"
                for table, published in service.published_tables.items()
            ],
            "replicas": [
                [
                    service,
                    table,
                    watch.replica.state,
                    *watch.replica.version,
                    fingerprint(watch.replica.rows),
                    fingerprint(set(watch.sum)),
                ]
                for (service, table), watch in watches.items()
            ],
            "callbacks": sum(watch.calls for watch in watches.values()),
            "wrong": self._changes.wrong[:5] + [what for watch in watches.values() for what in watch.wrong[:5]],
            "slowest_change": self._changes.slowest,
        }

    def _source(self, service_id: str, tables: list[str]) -> Source:
        made = self._sources[service_id] = source(service_id, tables, self._folder, str(self._plan["place"]))
        self._changes.add(made)
        return made


def main(folder: str, plan: str) -> None:
    # A stopped process does not see its stdin end: the kernel kills it with the one who started it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s", datefmt="%T")
    logging.getLogger("dse.service").setLevel(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr
    site = Site(Path(folder), json.loads(plan))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [True, getattr(site, name)(**arguments)]
        except Exception as error:
            logging.exception("%s failed", name)
            answer = [False, f"{type(error).__name__}: {error}"]
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
