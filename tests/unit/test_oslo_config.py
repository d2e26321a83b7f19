"""How the oslo.messaging driver is configured: URLs, an application's own configuration, and what a user never sees."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest

from dse import Node
from dse.core.transport import Address, Delivery, TransportUrl
from dse.errors import ConfigError, InvalidUrl, MissingExtra
from dse.testing.contract.recorder import Client
from dse.transports._oslo_config import RABBIT_GROUP
from dse.transports._oslo_library import cfg, impl_fake
from dse.transports._oslo_plain import PlainSession
from dse.transports.oslo import OsloTransport, oslo_url

SECRET = "s3cr3t"


def make(url: str | TransportUrl) -> OsloTransport:
    return Client(OsloTransport, url, f"test-{secrets.token_hex(4)}").transport


def rabbit_settings(url: str | TransportUrl) -> tuple[OsloTransport, object]:
    """Return a transport and what oslo.messaging's own driver is configured with."""
    transport = make(url)
    return transport, transport.messaging()._driver.conf.oslo_messaging_rabbit


def write(folder: Path, text: str) -> Path:
    path = folder / "app.conf"
    path.write_text(text)
    return path


def python(code: str) -> str:
    """Run code in a fresh interpreter where every warning is an error; it must say nothing but what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestSilence:
    def test_a_user_sees_no_warning_and_no_log_line(self) -> None:
        said = python(
            "from dse import DataService, Node, rpc\n"
            "class Echo(DataService):\n"
            "    @rpc\n"
            "    def echo(self, x: int) -> int: return x\n"
            "with Node('oslo+fake://a', services=[Echo('e')]), Node('oslo+fake://a') as node:\n"
            "    print(node.call('e', 'echo', {'x': 7}))\n"
        )
        assert said == "7\n"

    def test_the_global_configuration_stays_as_importing_oslo_messaging_leaves_it(self) -> None:
        look = "print(sorted(cfg.CONF), {g: sorted(cfg.CONF[g]) for g in cfg.CONF._groups}, cfg.CONF._args)\n"
        plain = "import warnings; warnings.simplefilter('ignore')\nimport oslo_messaging\n"
        ours = (
            "from dse.transports.oslo import OsloTransport\n"
            "from dse.testing.contract.recorder import Client\n"
            "for url in ('oslo+fake://a', 'oslo+rabbit://localhost?rpc_conn_pool_size=3'):\n"
            "    client = Client(OsloTransport, url, 'b')\n"
            "    client.transport.messaging()\n"
            "client = Client(OsloTransport, 'oslo+fake://a', 'b'); client.open(); client.close()\n"
        )
        load = "from oslo_config import cfg\n"
        assert python(load + ours + look) == python(load + plain + load + look)

    def test_no_thread_is_monkey_patched_and_no_logger_is_configured(self) -> None:
        said = python(
            "import logging, threading, socket\n"
            "before = threading.Thread, socket.socket, logging.lastResort, list(logging.getLogger().handlers)\n"
            "import dse.transports.oslo\n"
            "after = threading.Thread, socket.socket, logging.lastResort, list(logging.getLogger().handlers)\n"
            "print(before == after)\n"
        )
        assert said == "True\n"


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("oslo://", "which driver"),
            ("oslo://host", "which driver"),
            ("oslo+nothing://host", "no driver 'nothing' here; installed are .*rabbit"),
            ("oslo+rabbit://h?nonsense=1", "'nonsense'.*amqp_auto_delete.*heartbeat"),
            ("oslo+rabbit://h?rpc_conn_pool_size=many", "rpc_conn_pool_size"),
            ("oslo+rabbit://h?ssl=perhaps", "'ssl'"),
            ("oslo+rabbit://h?ssl_ca_file=/does/not/exist", "ssl_ca_file"),
            ("oslo+rabbit://h?heartbeat=0", "heartbeat"),
            ("oslo+rabbit://h?rpc_conn_pool_size=1&conn_pool_min_size=2", "conn_pool_min_size"),
            ("oslo+rabbit://?conf=/does/not/exist", "conf"),
            ("oslo+fake://a?ssl=1", "connect_timeout"),
            (f"oslo+fake://user:{SECRET}@a", "a name and no more"),
            (f"oslo+rabbit://user:{SECRET}@h?nonsense=1", "nonsense"),
        ],
    )
    def test_says_which_part_is_wrong(self, url: str, part: str) -> None:
        with pytest.raises((InvalidUrl, ConfigError), match=part) as caught:
            make(url).messaging()
        assert SECRET not in "".join(traceback.format_exception(caught.value))

    def test_options_have_the_names_that_oslo_messaging_gives_them(self) -> None:
        transport, settings = rabbit_settings(
            f"oslo+rabbit://user:{SECRET}@h1:1,h2:2/v?rabbit_quorum_queue=true&rpc_conn_pool_size=3&heartbeat=4"
        )
        assert settings.rabbit_quorum_queue is True  # type: ignore[attr-defined]
        assert settings.rpc_conn_pool_size == 3  # type: ignore[attr-defined]
        assert settings.heartbeat_timeout_threshold == 4  # type: ignore[attr-defined]
        assert transport.heartbeat == 4.0
        assert SECRET not in f"{transport.url} {transport.url!r} {vars(transport)['url']}"

    def test_oslo_messagings_own_heartbeat_option_counts_too(self) -> None:
        transport, settings = rabbit_settings("oslo+rabbit://h?heartbeat_timeout_threshold=7")
        assert (transport.heartbeat, settings.heartbeat_timeout_threshold) == (7.0, 7)  # type: ignore[attr-defined]
        transport, _ = rabbit_settings("oslo+rabbit://h?heartbeat_timeout_threshold=0")
        assert transport.heartbeat == 10.0

    def test_what_oslo_messaging_would_leave_on_a_broker_is_not_left(self) -> None:
        _, settings = rabbit_settings("oslo+rabbit://h")
        assert settings.amqp_auto_delete is True  # type: ignore[attr-defined]
        assert settings.rabbit_transient_queues_ttl <= 60  # type: ignore[attr-defined]
        _, settings = rabbit_settings("oslo+rabbit://h?amqp_auto_delete=false")
        assert settings.amqp_auto_delete is False  # type: ignore[attr-defined]

    @pytest.mark.skipif(find_spec("confluent_kafka") is not None, reason="the package is installed")
    def test_a_driver_without_its_package_says_which(self) -> None:
        with pytest.raises(MissingExtra, match=r"oslo\+kafka://localhost: .*confluent_kafka"):
            Node("oslo+kafka://localhost").start()

    def test_a_driver_claims_no_more_than_it_gives(self) -> None:
        assert make("oslo+rabbit://h").capabilities.undeliverable
        assert make("oslo+fake://h").capabilities.undeliverable
        other = make("oslo+kafka://h").capabilities
        assert (other.undeliverable, other.survives_broker_restart) == (False, False)


class TestConfigurationFile:
    def test_says_where_the_broker_is_and_how_to_talk_to_it(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            f"[DEFAULT]\ntransport_url = rabbit://app:{SECRET}@h1:1,app:{SECRET}@h2:2//\n"
            f"[{RABBIT_GROUP}]\nheartbeat_timeout_threshold = 33\nrabbit_quorum_queue = true\n",
        )
        for url in (f"oslo://?conf={path}", f"oslo+rabbit://?conf={path}&connect_timeout=2"):
            transport, settings = rabbit_settings(url)
            assert transport.url.scheme == "oslo+rabbit"
            assert transport.url.hosts == (("h1", 1), ("h2", 2))
            assert (transport.url.username, transport.url.password, transport.url.path) == ("app", SECRET, "/")
            assert transport.heartbeat == 33.0
            assert settings.rabbit_quorum_queue is True  # type: ignore[attr-defined]
            assert SECRET not in str(transport.url)

    def test_counts_less_than_the_url(self, tmp_path: Path) -> None:
        path = write(tmp_path, f"[{RABBIT_GROUP}]\nrabbit_quorum_queue = true\nrpc_conn_pool_size = 5\n")
        transport, settings = rabbit_settings(f"oslo+rabbit://other?conf={path}&rabbit_quorum_queue=0")
        assert transport.url.hosts == (("other", None),)
        assert settings.rabbit_quorum_queue is False  # type: ignore[attr-defined]
        assert settings.rpc_conn_pool_size == 5  # type: ignore[attr-defined]

    def test_for_another_driver_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, f"[DEFAULT]\ntransport_url = rabbit://app:{SECRET}@h1\n")
        with pytest.raises(InvalidUrl, match=r"for the oslo\.messaging driver 'rabbit'"):
            make(f"oslo+fake://?conf={path}")

    @pytest.mark.parametrize("text", ["no section\n", f"[{RABBIT_GROUP}]\nrpc_conn_pool_size = many\n"])
    def test_with_a_mistake_is_refused_by_name(self, tmp_path: Path, text: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(ConfigError, match=str(path)):
            make(f"oslo+rabbit://h?conf={path}")


class TestConfigurationObject:
    def test_of_an_application_is_read_and_not_changed(self, tmp_path: Path) -> None:
        path = write(tmp_path, f"[DEFAULT]\ntransport_url = rabbit://app:{SECRET}@h1\n[{RABBIT_GROUP}]\nssl = true\n")
        conf = cfg.ConfigOpts()
        conf([], project="app", default_config_files=[str(path)])
        before = sorted(conf), list(conf._groups)
        transport, settings = rabbit_settings(oslo_url(conf))
        assert (transport.url.hosts, transport.url.password) == ((("h1", None),), SECRET)
        assert settings.ssl is True  # type: ignore[attr-defined]
        assert (sorted(conf), list(conf._groups)) == before
        assert SECRET not in repr(oslo_url(conf))

    def test_may_have_what_the_application_has_set_by_itself(self) -> None:
        conf = cfg.ConfigOpts()
        conf([])
        conf.register_opts([cfg.IntOpt("rpc_conn_pool_size", default=30)], group=RABBIT_GROUP)
        conf.register_opts([cfg.StrOpt("transport_url", default="rabbit://")])
        conf.set_override("rpc_conn_pool_size", 11, group=RABBIT_GROUP)
        conf.set_override("transport_url", "rabbit://there")
        transport, settings = rabbit_settings(oslo_url(conf))
        assert transport.url.hosts == (("there", None),)
        assert settings.rpc_conn_pool_size == 11  # type: ignore[attr-defined]

    def test_goes_with_another_url(self) -> None:
        conf = cfg.ConfigOpts()
        for url in ("rabbit://there/v", "oslo+rabbit://there/v"):
            assert make(oslo_url(conf, url)).url.hosts == (("there", None),)

    def test_makes_a_node(self) -> None:
        with Node(oslo_url(cfg.ConfigOpts(), f"fake://{secrets.token_hex(4)}")) as node:
            assert node.status().nodes

    def test_is_no_dictionary(self) -> None:
        with pytest.raises(ConfigError, match="dict"):
            oslo_url({})


class PlainTransport(OsloTransport):
    """Uses oslo.messaging's fake driver as it would any driver that it knows nothing of."""

    def session(self) -> PlainSession:
        return PlainSession(self)


class TestAnyOtherDriver:
    def test_must_do_rpc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def listen(*_: object) -> None:
            raise NotImplementedError("notifications only")

        monkeypatch.setattr(impl_fake.FakeDriver, "listen", listen)
        client = Client(PlainTransport, "oslo+fake://x", secrets.token_hex(4))
        with pytest.raises(InvalidUrl, match=r"oslo\+fake://x: .*cannot do RPC: notifications only"):
            client.open()

    def test_carries_the_three_deliveries(self) -> None:
        bus = secrets.token_hex(4)
        here, there = (Client(PlainTransport, "oslo+fake://x", bus) for _ in range(2))
        here.open()
        there.open()
        for delivery in Delivery:
            where = Address(delivery, "somewhere *.#")
            there.listen(where)
            for number in range(50):
                here.send(where, b"%d" % number, 60.0)
            there.wait_count(50, where)
            assert there.frames(where) == [b"%d" % number for number in range(50)]
            there.unlisten(where)
        assert not here.all_frames()
        for client in (here, there):
            client.close()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("dse-oslo")]
        impl_fake.FakeExchangeManager._exchanges.pop(f"dse:{bus}:topic", None)
