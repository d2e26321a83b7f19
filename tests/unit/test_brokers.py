"""Private brokers: they start, fail on order, come back, can be looked at, and never outlive the test run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dse.testing.brokers import BrokerError, ExternalBroker, RabbitServer, RedisCluster, RedisSentinelSet, RedisServer
from dse.testing.process import ServerProcess, find_program

needs_redis = [pytest.mark.redis, pytest.mark.xdist_group("redis-brokers")]
needs_rabbit = [pytest.mark.rabbit, pytest.mark.xdist_group("rabbit-brokers")]


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it is gone, or went between the opening and the reading
        return False


@pytest.fixture(scope="module")
def own_redis():
    with RedisServer(password="geheim") as broker:
        yield broker


@pytest.fixture(scope="module")
def own_rabbit():
    with RabbitServer(users={"anna": "p:w/é"}) as broker:
        yield broker


class TestRedis:
    pytestmark = needs_redis

    @pytest.fixture
    def broker(self, own_redis):
        return own_redis

    @pytest.fixture
    def client(self, broker):
        redis = pytest.importorskip("redis")
        client = redis.Redis.from_url(broker.url, socket_timeout=0.5, retry=None)
        yield client
        client.close()

    def test_the_tests_of_one_broker_run_on_one_worker(self, request):
        """xdist drops groups without a word when it does not understand pytest's node ids."""
        if request.config.getoption("loadgroup", False):
            assert request.node.nodeid.endswith("@redis-brokers")

    def test_it_answers_through_the_proxy(self, client):
        assert client.ping()

    def test_the_second_door_sees_keys_channels_and_connections_of_one_bus(self, broker, client):
        bus = f"a*b {uuid.uuid4().hex}"
        prefix = f"dse:{bus.replace('*', '%2A').replace(' ', '%20')}:"
        assert broker.leftovers(bus) == set()
        client.set(prefix + "key", 1)
        client.set("dse:axb:key", 1)
        with client.pubsub() as pubsub:
            pubsub.subscribe(prefix + "channel")
            pubsub.get_message(timeout=2)
            pubsub.connection.send_command("CLIENT", "SETNAME", prefix + "me")
            wait_for(lambda: len(broker.leftovers(bus)) == 3, "key, channel and connection seen")
        client.delete(prefix + "key")
        wait_for(lambda: broker.leftovers(bus) == set(), "nothing left")

    def test_it_dies_and_comes_back_on_the_same_port(self, broker, client):
        redis = pytest.importorskip("redis")
        broker.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        broker.start()
        assert client.ping()

    @pytest.mark.parametrize(("fail", "repair"), [("pause", "resume"), ("cut", "mend")])
    def test_it_hangs_and_goes_on(self, broker, client, fail, repair):
        redis = pytest.importorskip("redis")
        getattr(broker, fail)()
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            client.ping()
        getattr(broker, repair)()
        client.connection_pool.disconnect()
        assert client.ping()

    def test_an_external_broker_is_failed_by_its_proxy_alone(self, broker):
        redis = pytest.importorskip("redis")
        with _External(broker.direct_url) as external:
            client = redis.Redis.from_url(external.url, socket_timeout=0.5, retry=None)
            for fail, repair in (("stop", "start"), ("pause", "resume"), ("cut", "mend")):
                assert client.ping()
                getattr(external, fail)()
                with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
                    client.ping()
                getattr(external, repair)()
                client.connection_pool.disconnect()
            client.close()
        assert broker.command("PING")

    def test_a_bad_configuration_is_an_error_with_the_servers_words(self):
        with pytest.raises(BrokerError, match="no-such-thing"):
            RedisServer(config={"no-such-thing": "1"})

    def test_sentinels_hand_over_to_the_replica(self):
        with RedisSentinelSet(sentinels=3) as brokers:
            before = brokers.master
            brokers.failover()
            assert brokers.master != before

    def test_a_cluster_serves_all_slots_and_restarts(self):
        with RedisCluster() as cluster:
            assert cluster.leftovers("nobody") == set()
            cluster.restart()

    def test_it_does_not_outlive_a_killed_test_run(self):
        code = (
            "import sys, time, threading; from dse.testing.brokers import RedisServer\n"
            "started = []\n"
            "thread = threading.Thread(target=lambda: started.append(RedisServer())); thread.start(); thread.join()\n"
            "print(started[0]._servers[0].pid, started[0].folder, flush=True); time.sleep(60)"
        )
        run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with run:
            pid, folder = run.stdout.readline().split()
            assert alive(int(pid)), "a server outlives the thread that started it"
            run.send_signal(signal.SIGKILL)
        wait_for(lambda: not alive(int(pid)), "the server is gone")
        wait_for(lambda: not Path(folder).exists(), "its folder is gone")


class TestRabbit:
    pytestmark = needs_rabbit

    @pytest.fixture
    def broker(self, own_rabbit):
        return own_rabbit

    @staticmethod
    def connect(url: str, name: str = ""):
        kombu = pytest.importorskip("kombu")
        options = {"client_properties": {"connection_name": name}}
        connection = kombu.Connection("amqp" + url.removeprefix("rabbit"), connect_timeout=3, transport_options=options)
        connection.connect()
        return connection

    def test_its_users_can_connect(self, broker):
        for url in (broker.url, broker.direct_url, broker.url_for("anna", "p:w/é")):
            self.connect(url).release()

    def test_the_second_door_sees_everything_with_the_name_of_the_bus(self, broker):
        bus = f"a b {uuid.uuid4().hex}"
        prefix = f"dse:{bus.replace(' ', '%20')}:"
        assert broker.leftovers(bus) == set()
        connection = self.connect(broker.url, prefix + "me")
        channel = connection.channel()
        channel.exchange_declare(prefix + "e", "direct", durable=False, auto_delete=True)
        channel.queue_declare(prefix + "q", durable=False, exclusive=True)
        channel.queue_bind(prefix + "q", prefix + "e", "key")
        assert broker.leftovers(bus) == {
            f"connection {prefix}me",
            f"exchange {prefix}e",
            f"queue {prefix}q",
            f"binding {prefix}e -> {prefix}q key key",
        }
        assert broker.leftovers(bus[:-1]) == set()
        connection.release()
        wait_for(lambda: broker.leftovers(bus) == set(), "nothing left")

    def test_it_dies_and_comes_back_on_the_same_port(self, broker):
        pid = broker._servers[0].pid
        broker.stop()
        assert not alive(pid)
        with pytest.raises(OSError):
            self.connect(broker.url)
        broker.start()
        self.connect(broker.url).release()

    @pytest.mark.parametrize(("fail", "repair"), [("pause", "resume"), ("cut", "mend")])
    def test_it_hangs_and_goes_on(self, broker, fail, repair):
        getattr(broker, fail)()
        with socket.create_connection(("127.0.0.1", broker._proxies[0].port), timeout=0.3) as client:
            client.sendall(b"AMQP\0\0\x09\x01")
            with pytest.raises(TimeoutError):
                client.recv(1)
        getattr(broker, repair)()
        self.connect(broker.url).release()

    def test_nothing_in_it_will_start_an_epmd_that_outlives_it(self, broker):
        for _ in range(2):
            assert broker.evaluate("whereis(rabbit_epmd_monitor).") == "{ok, undefined}"
            assert "-start_epmd false" in broker.evaluate('os:getenv("ERL_ZFLAGS").')
            broker.restart()

    def test_an_evaluation_that_fails_says_why(self, broker):
        with pytest.raises(BrokerError, match="undef"):
            broker.evaluate("no:such().")


class _External(ExternalBroker):
    def __init__(self, url: str) -> None:
        super().__init__(url, 6379)

    def leftovers(self, bus: str) -> set[str]:
        return set()


def test_a_program_that_is_not_installed_says_what_to_do():
    with pytest.raises(BrokerError, match="apt-get install no-such-package"):
        find_program("no-such-program-of-dse", package="no-such-package")


def test_a_server_that_never_answers_is_ended_and_shows_its_log(tmp_path):
    server = ServerProcess(
        "sleeper", ["sh", "-c", "echo not today; exec sleep 60"], folder=tmp_path, ready=lambda: False, deadline=0.5
    )
    with pytest.raises(BrokerError, match=r"(?s)sleeper did not answer within 0.5 s.*not today"):
        server.start()
    assert not server.running


def test_a_server_that_ends_early_shows_its_log(tmp_path):
    server = ServerProcess("failer", ["sh", "-c", "echo out of order"], folder=tmp_path, ready=lambda: False)
    with pytest.raises(BrokerError, match=r"(?s)failer ended.*out of order"):
        server.start()


def test_a_url_without_a_host_names_no_broker():
    with pytest.raises(BrokerError):
        _External("redis://")


def test_the_process_that_was_forked_off_leaves_the_server_alone(tmp_path):
    server = ServerProcess("sleeper", ["sleep", "60"], folder=tmp_path, ready=lambda: True)
    server.start()
    child = os.fork()
    if child == 0:
        server.kill()
        os._exit(0)
    os.waitpid(child, 0)
    assert server.running
    server.kill()
    assert not server.running
