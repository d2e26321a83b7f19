"""The policy service on a bus: rules over other nodes' tables, actions, what outlives a restart."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dse import ConfigError, DataService, Node, NoSuchService, Replica, ReplicaState, Table, rpc
from dse.services.policy import ActionOptions, Policy, PolicyError, RuleOptions

PATIENCE = 15.0


class Host(DataService):
    sockets = Table("port", "pid", pending=True)
    processes = Table("pid", "name", pending=True)

    def fill(self, sockets: set[Any], processes: set[Any]) -> None:
        self.sockets.replace(sockets)
        self.processes.replace(processes)


class Pager(DataService):
    """Counts what it was called for; fails as long as it is told to."""

    def __init__(self) -> None:
        super().__init__("pager")
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self.order: list[int] = []
        self.failing = False
        self.called = threading.Condition()

    @rpc
    def page(self, port: int, name: str, level: str = "low") -> None:
        with self.called:
            self.calls[port, name, level] += 1
            self.order.append(port)
            self.called.notify_all()
        if self.failing:
            raise RuntimeError("the line is busy")

    def wait(self, until: Callable[[Counter[tuple[Any, ...]]], bool]) -> None:
        with self.called:
            assert self.called.wait_for(lambda: until(self.calls), PATIENCE), self.calls


JOIN = "SELECT s.port, p.name FROM host.sockets s JOIN host.processes p ON p.pid = s.pid"
PAGE = ActionOptions(service="pager", method="page")


class Site:
    """A host, a pager and a reader on nodes of their own, and policy services that come and go."""

    def __init__(self) -> None:
        self.url = f"fake://{uuid.uuid4().hex}"
        self.host, self.pager, self.reader = Host("host"), Pager(), DataService("reader")
        self.nodes = [Node(self.url, services=[service]) for service in (self.host, self.pager, self.reader)]
        self.node = self.nodes[2]

    @contextmanager
    def policy(self, **options: Any) -> Iterator[Policy]:
        policy = Policy("policy", **options)
        with Node(self.url, services=[policy]):
            self.node.wait_for("policy", PATIENCE)
            yield policy

    def ask(self, method: str, **arguments: Any) -> Any:
        return self.node.call("policy", method, arguments)

    def follow(self, table: str, service: str = "security") -> Replica:
        return self.reader.subscribe(service, table, patient=True)

    def expect(self, table: str, rows: set[Any], service: str = "security") -> None:
        replica = self.follow(table, service)
        replica.wait(lambda replica: replica.state is ReplicaState.LIVE and replica.rows == rows, PATIENCE)
        self.reader.unsubscribe(replica)

    def wait_rule(self, name: str, **expected: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            (rule,) = [rule for rule in self.ask("list_rules") if rule["name"] == name]
            if all(rule[key] == value for key, value in expected.items()):
                return dict(rule)
            assert time.monotonic() < deadline, rule
            time.sleep(0.02)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with site.nodes[0], site.nodes[1], site.nodes[2]:
        yield site


def secure(site: Site, sql: str = JOIN, name: str = "open_ports", **more: Any) -> None:
    site.ask("create_policy", name="security")
    site.ask("insert_rule", policy="security", name=name, sql=sql, **more)


def test_a_violation_is_a_row_that_appears_and_disappears(site: Site) -> None:
    site.host.fill({(22, 1)}, {(1, "sshd"), (2, "nc")})
    with site.policy():
        secure(site)
        site.expect("open_ports", {(22, "sshd")})
        replica = site.follow("open_ports")
        replica.wait(ReplicaState.LIVE, PATIENCE)
        assert replica.columns == ("port", "name")
        site.host.sockets.insert([(4444, 2)])
        site.expect("open_ports", {(22, "sshd"), (4444, "nc")})
        site.host.processes.delete([(2, "nc")])
        site.expect("open_ports", {(22, "sshd")})
        assert site.wait_rule("open_ports", state="OK")["rows"] == 1
    leftovers = [thread.name for thread in threading.enumerate() if thread.name.startswith("policy-")]
    assert leftovers == []


def test_exactly_the_tables_that_rules_name_are_followed(site: Site) -> None:
    with site.policy() as policy:
        secure(site)
        assert policy.info.subscribed_tables == (("host", "processes"), ("host", "sockets"))
        site.ask("insert_rule", policy="security", name="ports", sql="SELECT port FROM security.open_ports")
        assert policy.info.subscribed_tables == (("host", "processes"), ("host", "sockets"))
        with pytest.raises(PolicyError, match=r"security\.open_ports is built on by security\.ports"):
            site.ask("delete_rule", policy="security", name="open_ports")
        assert site.ask("delete_rule", policy="security", name="ports")
        assert site.ask("delete_rule", policy="security", name="open_ports")
        assert policy.info.subscribed_tables == ()


def test_nothing_is_published_before_all_inputs_are_known(site: Site) -> None:
    with site.policy():
        site.host.sockets.replace([(80, 1)])
        secure(
            site,
            "SELECT port FROM host.sockets s WHERE NOT EXISTS (SELECT 1 FROM host.processes p WHERE p.pid = s.pid)",
        )
        site.wait_rule("open_ports", state="WAITING", reason="waits for host.processes")
        replica = site.follow("open_ports")
        site.host.processes.replace([(1, "httpd")])
        replica.wait(ReplicaState.LIVE, PATIENCE)
        assert len(replica) == 0


def test_a_table_that_is_not_there_is_waited_for_and_a_wrong_column_named(site: Site) -> None:
    with site.policy():
        secure(site, "SELECT who FROM later.users", name="users")
        site.wait_rule("users", state="WAITING", reason="waits for later.users")
        with pytest.raises(PolicyError, match=r"no such column: nope; host\.sockets has port, pid"):
            site.ask("insert_rule", policy="security", name="wrong", sql="SELECT nope FROM host.sockets")
        later = DataService("later")
        later.add_table("users", "who", rows=[("root",)])
        site.nodes[0].register(later)
        site.expect("users", {("root",)})


def test_policies_and_rules_are_met_by_name(site: Site) -> None:
    with site.policy():
        assert site.ask("create_policy", name="security") is True
        assert site.ask("create_policy", name="security") is False
        with pytest.raises(PolicyError, match="no policy 'other'; there are: security"):
            site.ask("insert_rule", policy="other", name="r", sql=JOIN)
        with pytest.raises(PolicyError, match="has no rule 'r'; it has: none"):
            site.ask("delete_rule", policy="security", name="r")
        site.ask("insert_rule", policy="security", name="r", sql=JOIN)
        with pytest.raises(PolicyError, match=r"there is a rule security\.r already"):
            site.ask("insert_rule", policy="security", name="r", sql=JOIN)
        with pytest.raises(PolicyError, match="'policy' is a service on this node"):
            site.ask("create_policy", name="policy")
        assert site.ask("list_policies") == [{"name": "security", "configured": False, "rules": ["r"]}]
        assert site.ask("delete_policy", name="security") == 1
        assert site.ask("list_policies") == []
        with pytest.raises(NoSuchService):
            site.node.call("security", "anything", {})


def test_a_query_follows_what_it_needs_while_it_runs(site: Site) -> None:
    site.host.fill({(22, 1)}, {(1, "sshd")})
    with site.policy() as policy:
        assert site.ask("query", sql=JOIN) == {"columns": ["port", "name"], "rows": [[22, "sshd"]]}
        assert policy.info.subscribed_tables == ()
        with pytest.raises(PolicyError, match=r"waits for no\.table; not there within 0\.2 s"):
            site.ask("query", sql="SELECT x FROM no.table", timeout=0.2)
        with pytest.raises(PolicyError, match="ran for more than 1 s"):
            site.ask(
                "query",
                sql="WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) AS n FROM r",
            )


def test_simulate_says_what_would_change(site: Site) -> None:
    site.host.fill({(22, 1)}, {(1, "sshd")})
    with site.policy():
        secure(site)
        site.expect("open_ports", {(22, "sshd")})
        said = site.ask(
            "simulate",
            added={"host.sockets": [[80, 1]]},
            removed={"host.sockets": [[22, 1]]},
            rules={"security.low": "SELECT port FROM security.open_ports WHERE port < 1024"},
        )
        assert said == {
            "security.open_ports": {"added": [[80, "sshd"]], "removed": [[22, "sshd"]]},
            "security.low": {"added": [[80]], "removed": []},
        }
        site.expect("open_ports", {(22, "sshd")})
        with pytest.raises(PolicyError, match="a table is named in two parts"):
            site.ask("simulate", added={"sockets": [[1, 2]]})


def test_an_action_is_called_once_for_each_new_row(site: Site) -> None:
    site.host.fill({(port, 1) for port in range(20)}, {(1, "sshd")})
    with site.policy():
        secure(site, action={"service": "pager", "method": "page", "constants": {"level": "high"}})
        site.pager.wait(lambda calls: len(calls) == 20)
        site.host.sockets.delete([(7, 1)])
        site.expect("open_ports", {(port, "sshd") for port in range(20) if port != 7})
        site.host.sockets.insert([(7, 1)])  # one that comes back is new
        site.pager.wait(lambda calls: calls[7, "sshd", "high"] == 2)
        assert sum(site.pager.calls.values()) == 21
        table = site.follow("actions", "policy")
        table.wait(lambda table: ("security", "open_ports", 0, 21, 0, "") in table, PATIENCE)


def test_an_action_that_fails_is_called_once_and_with_retry_until_it_does_not(site: Site) -> None:
    site.host.fill({(1, 1)}, {(1, "sshd")})
    site.pager.failing = True
    with site.policy():
        secure(site, action={"service": "pager", "method": "page", "constants": {"level": "once"}})
        again = {"service": "pager", "method": "page", "constants": {"level": "retry"}, "retry": True}
        site.ask("insert_rule", policy="security", name="again", sql=JOIN, action=again)
        site.pager.wait(lambda calls: calls[1, "sshd", "retry"] >= 3)
        assert site.pager.calls[1, "sshd", "once"] == 1
        site.pager.failing = False
        table = site.follow("actions", "policy")
        table.wait(lambda table: any(row[1:4] == ("again", 0, 1) for row in table), PATIENCE)
        failed = [row for row in table.rows if row[1] == "open_ports"]
        assert failed[0][4] == 1
        assert "the line is busy" in failed[0][5]


def test_an_action_waits_for_a_service_that_is_not_there(site: Site) -> None:
    site.host.fill({(1, 1)}, {(1, "sshd")})
    site.nodes[1].unregister("pager")
    with site.policy():
        secure(site, action=PAGE)
        table = site.follow("actions", "policy")
        table.wait(lambda table: any("NoSuchService" in row[5] for row in table), PATIENCE)
        site.nodes[1].register(site.pager)
        site.pager.wait(lambda calls: calls[1, "sshd", "low"] == 1)


def test_an_action_must_fit_its_rule_and_a_slow_one_holds_up_nothing(site: Site) -> None:
    with site.policy():
        site.host.fill({(1, 1)}, {(1, "sshd")})
        site.ask("create_policy", name="security")
        with pytest.raises(Exception, match="is to be the column 'nope'; the rule has: port, name"):
            site.ask("insert_rule", policy="security", name="r", sql=JOIN,
                     action={"service": "pager", "method": "page", "args": {"port": "nope"}})  # fmt: skip
        with pytest.raises(Exception, match="unknown"):
            site.ask("insert_rule", policy="security", name="r", sql=JOIN, action={"service": "pager", "metod": "x"})
        assert site.ask("list_rules") == []


def test_rules_and_what_was_called_outlive_a_restart(site: Site, tmp_path: Path) -> None:
    store = tmp_path / "rules.db"
    site.host.fill({(1, 1), (2, 1)}, {(1, "sshd")})
    with site.policy(store=store):
        secure(site, action=PAGE)
        site.pager.wait(lambda calls: len(calls) == 2)
        table = site.follow("actions", "policy")
        table.wait(lambda table: any(row[2:4] == (0, 2) for row in table), PATIENCE)
        site.reader.unsubscribe(table)
    site.host.sockets.insert([(3, 1)])
    with site.policy(store=store):
        site.expect("open_ports", {(1, "sshd"), (2, "sshd"), (3, "sshd")})
        site.pager.wait(lambda calls: calls[3, "sshd", "low"] == 1)
        assert set(site.pager.calls.values()) == {1}
        assert site.wait_rule("open_ports", state="OK")["action"]["method"] == "page"


def test_configured_rules_are_there_from_the_start_and_stay(site: Site, tmp_path: Path) -> None:
    site.host.fill({(22, 1)}, {(1, "sshd")})
    with site.policy(store=tmp_path / "s.db"):
        secure(site, "SELECT port FROM host.sockets WHERE port = 1")
    policies: dict[str, dict[str, str | RuleOptions]] = {"security": {"open_ports": RuleOptions(sql=JOIN, action=PAGE)}}
    with site.policy(store=tmp_path / "s.db", policies=policies):
        site.expect("open_ports", {(22, "sshd")})
        site.pager.wait(lambda calls: calls[22, "sshd", "low"] == 1)
        with pytest.raises(PolicyError, match="stands in the configuration"):
            site.ask("delete_rule", policy="security", name="open_ports")
        with pytest.raises(PolicyError, match="stands in the configuration"):
            site.ask("delete_policy", name="security")
    with pytest.raises(ConfigError, match=r"security\.bad: the SQL cannot be read") as raised:
        Policy("policy", policies={"security": {"bad": "SELECT ("}})
    assert raised.value.key == ("policies", "security", "bad")


def test_a_store_belongs_to_one_process_and_a_damaged_one_is_named(site: Site, tmp_path: Path) -> None:
    store = tmp_path / "rules.db"
    with site.policy(store=store):
        script = (
            "import sys; from pathlib import Path; from dse.services.policy.store import Store\n"
            "try: Store(Path(sys.argv[1])).open()\nexcept ValueError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", script, str(store)], capture_output=True, text=True, timeout=30)
        assert done.stdout == f"store: {store}: another process has it\n"
    store.write_bytes(os.urandom(5000))
    with pytest.raises(ConfigError, match=r"rules\.db: it is damaged, or no SQLite file"), site.policy(store=store):
        pass
    with pytest.raises(ConfigError, match="unable to open"), site.policy(store=tmp_path / "no" / "rules.db"):
        pass


def test_many_insert_and_delete_rules_at_once(site: Site) -> None:
    site.host.fill({(22, 1)}, {(1, "sshd")})
    with site.policy() as policy:
        site.ask("create_policy", name="security")
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(10):
                    name = f"r{number}_{turn}"
                    site.ask("insert_rule", policy="security", name=name, sql=JOIN)
                    if turn % 2:
                        site.ask("delete_rule", policy="security", name=name)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert len(site.ask("list_rules")) == 20
        site.expect("r3_8", {(22, "sshd")})
        assert site.ask("delete_policy", name="security") == 20
        assert policy.info.subscribed_tables == ()
