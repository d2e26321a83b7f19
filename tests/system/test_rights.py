"""DSE with no more rights on a broker than docs/security.md says it needs, and what it says when one is missing."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse import DataService, Node, Table, rpc
from dse.core.plugins import load_transport
from dse.core.transport import ConnectionState, Delivery
from dse.core.url import TransportUrl
from dse.errors import TransportUnavailable
from dse.testing.brokers import RabbitServer, RedisServer
from dse.testing.contract.recorder import Client, address, eventually, with_options
from dse.testing.redis_server import RedisCluster

DOCS = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
PASSWORD = "Tr0ub4dor"
REFUSED = r"(?i)permission|NOPERM|refused|can't run"


def block(language: str) -> str:
    """Return the first code block of docs/security.md in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


class Sensor(DataService):
    """A table, and a method."""

    values = Table("name", "value")

    @rpc
    def read(self) -> int:
        return len(self.values.rows)


class Watcher(DataService):
    """Follows the table, calls the method."""


def use(url: str, bus: str) -> None:
    """Do what programs do: publish, follow, call, leave."""
    sensor, watcher = Sensor("sensor"), Watcher("watcher")
    with Node(url, bus=bus, services=[sensor]), Node(url, bus=bus, services=[watcher]) as node:
        node.wait_for("sensor", timeout=10)
        replica = watcher.subscribe("sensor", "values")
        sensor.values.insert([("a", 1), ("b", 2)])
        replica.wait(lambda rows: len(rows) == 2, 10)
        assert node.call("sensor", "read") == 2


def client(url: str, bus: str) -> Client:
    return Client(load_transport(TransportUrl.parse(url)), url, bus)


def exercise(url: str, bus: str, log: list[str]) -> str:
    """Use each thing that the driver needs; return all that is said about what is missing."""
    said: list[str] = []
    here, there = client(url, bus), client(url, bus)
    try:
        here.open()
        there.open()
        places = [address(delivery) for delivery in Delivery]
        there.listen(*places)
        for place in (*places, address(Delivery.DIRECT), address(Delivery.ANYCAST)):
            here.send(place, b"x")
        with contextlib.suppress(AssertionError):
            there.wait_for(lambda: there.count(*places) == 3, "all frames", 1.5)
        there.unlisten(*places)
        with contextlib.suppress(AssertionError):
            there.wait_for(lambda: bool(log), "a silence in which the connection is looked at", 1.0)
    except TransportUnavailable as error:
        said.append(str(error))
    finally:
        for each in (here, there):
            said += [str(state) for state in each.states if state == ConnectionState.DISCONNECTED]
            each.close()
    return "\n".join(said + log)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What drivers say at warning level, as it is said."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dse.transport")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def as_user(url: str, name: str) -> str:
    scheme, _, rest = url.partition("://")
    return with_options(f"{scheme}://{name}:{PASSWORD}@{rest.rpartition('@')[2]}", heartbeat=1, connect_timeout=3)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def redis_rules(bus: str) -> list[str]:
    """The words behind ``ACL SETUSER dse on >PASSWORD``, for a bus."""
    line = block("redis").splitlines()[0].replace("dse:prod:", f"dse:{bus}:")
    words = line.split()
    assert words[:5] == ["ACL", "SETUSER", "dse", "on", ">PASSWORD"]
    return words[5:]


@pytest.mark.redis
@pytest.mark.xdist_group("rights-redis")
class TestRedis:
    def let(self, server: RedisServer, rules: list[str]) -> str:
        name = f"u{uuid.uuid4().hex[:8]}"
        server.command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules)
        return as_user(server.direct_url, name)

    def test_the_rules_suffice(self, redis: RedisServer, log: list[str]) -> None:
        url = self.let(redis, redis_rules("prod"))
        use(url, "prod")
        assert exercise(url, "prod", log) == ""

    @pytest.mark.parametrize(
        "command",
        [
            *("ping", "publish", "subscribe", "unsubscribe", "blpop", "rpush", "lrange", "del", "pexpire", "eval"),
            *("pubsub|numsub", "type"),
        ],
    )
    def test_without_one_of_them_it_says_which(self, redis: RedisServer, log: list[str], command: str) -> None:
        rules = redis_rules("prod")
        rules.remove(f"+{command}")
        said = exercise(self.let(redis, rules), "prod", log)
        assert re.search(REFUSED, said), said
        # Of a command within a script Redis 7.0 does not say which it is.
        assert re.search(rf"'{re.escape(command)}'|in the script|can't run this command", said), said
        assert PASSWORD not in said

    @pytest.mark.parametrize("pattern", ["~dse:prod:*", "&dse:prod:*"])
    def test_nobody_gets_at_another_bus(self, redis: RedisServer, log: list[str], pattern: str) -> None:
        rules = redis_rules("prod")
        assert pattern in rules
        url = self.let(redis, rules)
        said = exercise(url, "other", log)
        assert "does not permit the user what DSE needs: NOPERM" in said
        listener = client(redis.direct_url, "other")
        sender = client(url, "other")
        try:
            listener.open()
            sender.open()
            places = [address(delivery) for delivery in Delivery]
            listener.listen(*places)
            for place in places:
                sender.send(place, b"x")
            eventually(lambda: any("NOPERM" in line for line in log), "the refusal is logged")
            sender.wait_for(lambda: len(sender.all_returned()) == 2, "what was refused is undeliverable")
            assert listener.count(*places) == 0
        finally:
            listener.close()
            sender.close()

    def test_of_another_database(self, redis: RedisServer, log: list[str]) -> None:
        rules = [rule.replace("dse:prod:", "db3:dse:prod:") for rule in redis_rules("prod")]
        url = self.let(redis, [*rules, "+select"]).replace("/0?", "/3?")
        assert exercise(url, "prod", log) == ""
        url = self.let(redis, rules).replace("/0?", "/3?")
        assert "refuses database 3: NOPERM" in exercise(url, "prod", log)

    def test_of_a_cluster(self, log: list[str]) -> None:
        more = re.search(r"In a cluster, on every member: `([^`]*)`", DOCS)
        assert more is not None
        with RedisCluster() as cluster:
            cluster.command("ACL", "SETUSER", "few", "on", f">{PASSWORD}", *redis_rules("prod"), *more[1].split())
            url = as_user(cluster.direct_url, "few")
            use(url, "prod")
            assert exercise(url, "prod", log) == ""
            cluster.command("ACL", "SETUSER", "few", "-ssubscribe")
            assert "'ssubscribe'" in exercise(url, "prod", log)


@pytest.fixture(scope="module")
def rabbit() -> Iterator[RabbitServer]:
    with RabbitServer(users={"few": PASSWORD}) as server:
        yield server


def rabbit_rules() -> list[str]:
    """The patterns of what may be configured, written and read."""
    line = block("rabbitmq").splitlines()[0]
    rules = re.findall(r"'([^']*)'", line)
    assert len(rules) == 3
    return rules


@pytest.mark.rabbit
@pytest.mark.xdist_group("rights-rabbit")
class TestRabbit:
    def let(self, server: RabbitServer, *rules: str) -> str:
        encoded = ", ".join(f'base64:decode("{base64.b64encode(rule.encode()).decode()}")' for rule in rules)
        server.evaluate(f'rabbit_auth_backend_internal:set_permissions(<<"few">>, <<"/">>, {encoded}, <<"t">>), ok.')
        return as_user(server.direct_url, "few")

    def test_the_rules_suffice(self, rabbit: RabbitServer, log: list[str]) -> None:
        url = self.let(rabbit, *rabbit_rules())
        use(url, "prod")
        assert exercise(url, "prod", log) == ""

    @pytest.mark.parametrize(
        ("which", "taken", "culprit"),
        [
            (0, "dse:prod:", "queue 'dse:prod:node"),
            (1, "dse:prod:", "queue 'dse:prod:node"),
            (1, "amq\\.direct", "exchange 'amq.direct'"),
            (1, "amq\\.default", "exchange 'amq.default'"),
            (2, "dse:prod:", "queue 'dse:prod:node"),
            (2, "amq\\.direct", "exchange 'amq.direct'"),
        ],
    )
    def test_without_one_of_them_it_says_which(
        self, rabbit: RabbitServer, log: list[str], which: int, taken: str, culprit: str
    ) -> None:
        rules = rabbit_rules()
        assert taken in rules[which]
        rules[which] = rules[which].replace(taken, "nothing")
        said = exercise(self.let(rabbit, *rules), "prod", log)
        assert f"ACCESS_REFUSED - access to {culprit}" in said
        assert "user 'few'" in said
        assert PASSWORD not in said

    def test_nobody_hears_another_bus(self, rabbit: RabbitServer, log: list[str]) -> None:
        url = self.let(rabbit, *rabbit_rules())
        assert "ACCESS_REFUSED - access to queue 'dse:other:node" in exercise(url, "other", log)


def test_the_urls_of_the_page_can_be_read() -> None:
    for text in re.findall(r"`((?:rediss|amqps|nats\+tls)://[^`]*)`", DOCS):
        TransportUrl.parse(text.replace("…", "x"))
