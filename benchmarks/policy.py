"""How fast the policy service is: `python benchmarks/policy.py`, some two minutes. The figures stand in docs/policy.md.

The publisher of the tables, the policy service and the subscriber of the rule's table are three nodes in one process
over ``fake://``, or over the URL given. DuckDB is measured too where it is installed: the same change and query.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
import uuid

from dse import Change, DataService, Node, Table
from dse.services.policy import Policy

JOIN = "SELECT a.id, a.name, b.size FROM big.a JOIN big.b ON a.id = b.id WHERE b.size >= 0"
HALF = "SELECT a.id FROM big.a WHERE NOT EXISTS (SELECT 1 FROM big.b WHERE b.id = a.id AND b.size % 2 = 0)"
SUMS = "SELECT b.size % 10 AS size, count(*) AS n FROM big.a JOIN big.b ON a.id = b.id GROUP BY 1"


class Big(DataService):
    a = Table("id", "name", pending=True)
    b = Table("id", "size", pending=True)


class Site:
    def __init__(self, url: str, rows: int) -> None:
        self.big, self.reader = Big("big"), DataService("reader")
        self.nodes = [
            Node(url, services=[s]) for s in (self.big, Policy("policy", rows=10_000_000, seconds=60.0), self.reader)
        ]
        self.seen = threading.Condition()
        self.told: list[Change] = []
        self.rows = rows

    def __enter__(self) -> Site:
        for node in self.nodes:
            node.start()
        self.nodes[2].wait_for("policy", 10)
        self.nodes[2].call("policy", "create_policy", {"name": "p"})
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.stop()

    def fill(self) -> None:
        self.big.a.replace({(n, f"name{n}") for n in range(self.rows)})
        self.big.b.replace({(n, n % 1000) for n in range(self.rows)})

    def rule(self, sql: str) -> float:
        """Insert a rule and follow it; return seconds until its first rows are there."""
        began = time.perf_counter()
        self.nodes[2].call("policy", "insert_rule", {"policy": "p", "name": "r", "sql": sql}, timeout=120)
        self.replica = self.reader.subscribe("p", "r", self._heard, patient=True)
        self.replica.wait(lambda replica: len(replica) > 0, 120)
        return time.perf_counter() - began

    def _heard(self, change: Change) -> None:
        with self.seen:
            self.told.append(change)
            self.seen.notify_all()

    def reaction(self, changes: int) -> list[float]:
        """Change a row `changes` times; return how long each took to be seen in the rule's table."""
        seconds = []
        for number in range(changes):
            row = (self.rows + number, "new")
            self.big.b.insert([(row[0], 1)])
            time.sleep(0.02)  # not the change that is measured
            with self.seen:
                self.told.clear()
                began = time.perf_counter()
            self.big.a.insert([row])
            with self.seen:
                assert self.seen.wait_for(lambda: self.told, 30)
            seconds.append(time.perf_counter() - began)
        return seconds


def duckdb_figures(rows: int) -> None:
    try:
        import duckdb
    except ImportError:
        print("DuckDB is not installed")
        return
    db = duckdb.connect()
    db.execute("CREATE TABLE a AS SELECT range AS id, 'name' || range AS name FROM range(?)", [rows])
    db.execute("CREATE TABLE b AS SELECT range AS id, range % 1000 AS size FROM range(?)", [rows])
    for name, sql in (("join", JOIN), ("not exists", HALF), ("sums", SUMS)):
        seconds = []
        for number in range(15):
            began = time.perf_counter()
            db.execute("INSERT INTO a VALUES (?, 'new')", [rows + number])
            set(db.execute(sql.replace("big.", "")).fetchall())
            seconds.append(time.perf_counter() - began)
        print(
            f"DuckDB, {name}: a row inserted and everything worked out again: {statistics.median(seconds) * 1e3:.1f} ms"
        )
    began = time.perf_counter()
    db.executemany("INSERT INTO a VALUES (?, ?)", [(n, "x") for n in range(5_000)])
    print(f"DuckDB: 5,000 rows inserted as Python has them: {(time.perf_counter() - began) * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", default=f"fake://{uuid.uuid4().hex}")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--load", type=int, default=1_000_000)
    options = parser.parse_args()
    for name, sql in (("join", JOIN), ("not exists", HALF), ("sums", SUMS)):
        with Site(options.transport, options.rows) as site:
            site.fill()
            first = site.rule(sql)
            if name == "sums":
                site.rows -= 1  # else the change would not show
            seconds = sorted(site.reaction(100 if name == "join" else 20))
            print(
                f"{name}, two tables of {options.rows:,} rows: first result {first:.2f} s; a one-row change is seen "
                f"after {statistics.median(seconds) * 1e3:.2f} ms at the median, "
                f"{seconds[int(len(seconds) * 0.95)] * 1e3:.1f} ms at the 95th percentile"
            )
    with Site(options.transport, options.load) as site:
        site.big.a.replace({(n, f"name{n}") for n in range(options.load)})
        seconds_ = site.rule(f"SELECT id FROM big.a WHERE id >= {options.load - 10}")
        print(f"first load of {options.load:,} rows: {seconds_:.2f} s from the rule's insertion to its first result")
    duckdb_figures(options.rows)


if __name__ == "__main__":
    main()
