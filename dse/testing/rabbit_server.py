"""A private RabbitMQ server for tests.

The distribution's start script is passed by: it loads every plugin's path, starts an epmd shared by the machine, and
switches users. The Erlang machine is started here with the applications that the broker itself needs, a fixed
distribution port and an epmd of its own, which halves the time until it answers. The distribution port is the second
door: ``erl_call`` asks the broker in some milliseconds what ``rabbitmqctl`` takes seconds for.
"""

from __future__ import annotations

import base64
import glob
import os
import re
import secrets
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from dse.testing.broker import ServerBroker, bus_prefix
from dse.testing.process import BrokerError, PortHold, ServerProcess, find_program, make_folder
from dse.testing.proxy import CutProxy

__all__ = ["RabbitServer"]

_START_TIMEOUT = 90.0
_HOMES = ("/usr/lib/rabbitmq/lib/rabbitmq_server-*", "/opt/rabbitmq", "/usr/local/lib/rabbitmq*", "/usr/lib/rabbitmq")

# Everything with a name of the bus, one a line. Records: {resource, VHost, Kind, Name}, {exchange, Resource, …},
# {binding, Source, Key, Destination, …}. Bindings to the default exchange come with every queue and are no leftovers.
_LEFTOVERS = """
Prefix = base64:decode("%s"),
Ours = fun(Name) -> is_binary(Name) andalso binary:longest_common_prefix([Name, Prefix]) =:= byte_size(Prefix) end,
NameOf = fun(Resource) -> element(4, Resource) end,
Line = fun(Parts) -> [base64:encode(iolist_to_binary(Parts)), 10] end,
Queues = [NameOf(amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list()],
Exchanges = [NameOf(element(2, E)) || E <- rabbit_exchange:list()],
Bindings = [{NameOf(element(2, B)), element(3, B), NameOf(element(4, B))} || B <- rabbit_binding:list_explicit()],
Clients = rabbit_networking:connection_info_all([client_properties]),
Names = [Name || [{client_properties, Said}] <- Clients, {<<"connection_name">>, _, Name} <- Said],
base64:encode_to_string(iolist_to_binary([
    [Line([<<"queue ">>, N]) || N <- Queues, Ours(N)],
    [Line([<<"exchange ">>, N]) || N <- Exchanges, Ours(N)],
    [Line([<<"binding ">>, S, <<" -> ">>, D, <<" key ">>, K])
     || {S, K, D} <- Bindings, S =/= <<>>, Ours(S) orelse Ours(D) orelse Ours(K)],
    [Line([<<"connection ">>, N]) || N <- Names, Ours(N)]
])).
"""

_ADD_USER = """
Name = base64:decode("%s"),
rabbit_auth_backend_internal:add_user(Name, base64:decode("%s"), <<"dse">>),
rabbit_auth_backend_internal:set_permissions(Name, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"dse">>).
"""


class RabbitServer(ServerBroker):
    """One private RabbitMQ server on a free loopback port, without plugins.

    users: name to password, besides ``guest`` with password ``guest``; all may do everything in the vhost ``/``.
    config: more lines of rabbitmq.conf. Raises `BrokerError` when it is not installed or not up in time.
    """

    def __init__(self, *, users: Mapping[str, str] | None = None, config: Mapping[str, str] | None = None) -> None:
        super().__init__(make_folder("rabbit"))
        self._holds: list[PortHold] = []
        try:
            self._build(config or {})
            self.start()
            for name, password in (users or {}).items():
                self.add_user(name, password)
        except BaseException:
            self.close()
            raise

    def _build(self, config: Mapping[str, str]) -> None:
        erl = find_program("erl", package="rabbitmq-server")
        home = _rabbit_home()
        libraries = self.folder / "lib"
        libraries.mkdir()
        for path in _applications(home / "plugins"):
            (libraries / path.name).symlink_to(path)
        self._erl_call = _erl_call(erl)
        self._cookie = secrets.token_hex(16)
        self._holds += [PortHold(), PortHold(), PortHold()]
        self.port, self._door, self._epmd_port = (hold.port for hold in self._holds)
        proxy = CutProxy(("127.0.0.1", self.port))
        self._proxies.append(proxy)
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "loopback_users": "none",
            "log.console": "true",
            "log.console.level": "info",
            "log.file": "false",
            # The disk of a test machine may be small; nothing here is persistent.
            "disk_free_limit.absolute": "1MB",
            **config,
        }
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (self.folder / "enabled_plugins").write_text("[].\n")
        # The broker refuses to start where no epmd knows it. Not the machine's: that one would outlive the broker.
        epmd = [find_program("epmd", package="erlang-base"), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        epmd_folder = self.folder / "epmd"
        epmd_folder.mkdir()
        self._servers.append(ServerProcess("epmd", epmd, folder=epmd_folder, ready=self._epmd_answers))
        self._servers.append(
            ServerProcess(
                "rabbitmq-server",
                [erl, *self._arguments()],
                folder=self.folder,
                ready=self._answers,
                env=self._environment(home, libraries),
                deadline=_START_TIMEOUT,
            )
        )
        self.url = f"rabbit://guest:guest@127.0.0.1:{proxy.port}/"
        self.direct_url = f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def _arguments(self) -> list[str]:
        door = str(self._door)
        # Small tables and no busy waiting: many of these share few processors.
        emulator = "+W w +S 2:2 +SDio 4 +P 65536 +t 1048576 +sbwt none +sbwtdcpu none +sbwtdio none"
        distribution = f"-sname dse@localhost -setcookie {self._cookie} -start_epmd false"
        listen = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        for limit in ("inet_dist_listen_min", "inet_dist_listen_max"):
            listen += ["-kernel", limit, door]
        quiet = ["-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"]
        boot = ["-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot"]
        single = ["-kernel", "prevent_overlapping_partitions", "false"]
        return [*boot, *emulator.split(), *distribution.split(), *listen, *quiet, *single]

    def _environment(self, home: Path, libraries: Path) -> dict[str, str]:
        # RABBITMQ_* and ERL_* of the outside, meant for another server, must not reach ours.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
        folder = self.folder
        return env | {
            "HOME": str(folder),
            "ERL_LIBS": str(libraries),
            "ERL_MAX_ETS_TABLES": "50000",
            "ERL_MAX_PORTS": "8192",
            "ERL_CRASH_DUMP_BYTES": "0",
            # For the Erlang machines that the broker itself starts: they must not leave an epmd behind either.
            "ERL_ZFLAGS": "-start_epmd false",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "SYS_PREFIX": "",
            "RABBITMQ_HOME": str(home),
            "RABBITMQ_PLUGINS_DIR": str(libraries),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": "dse@localhost",
            "RABBITMQ_DIST_PORT": str(self._door),
        }

    def start(self) -> None:
        super().start()
        # Once a minute it would start a second Erlang machine to see that an epmd runs, which outlives the broker.
        self.evaluate("supervisor:terminate_child(rabbit_sup, rabbit_epmd_monitor_sup).")

    def add_user(self, name: str, password: str) -> None:
        """Add a user who may do everything in the vhost ``/``."""
        self.evaluate(_ADD_USER % (_base64(name), _base64(password)))

    def url_for(self, name: str, password: str, *, vhost: str = "") -> str:
        """The URL, through the proxy, for another user than guest."""
        user = f"{quote(name, safe='')}:{quote(password, safe='')}"
        return f"rabbit://{user}@127.0.0.1:{self._proxies[0].port}/{quote(vhost, safe='')}"

    def leftovers(self, bus: str) -> set[str]:
        answer = self.evaluate(_LEFTOVERS % _base64(bus_prefix(bus)))
        match = re.fullmatch(r'\{ok,\s*(?:"(.*)"|\[\])\}', answer, re.DOTALL)
        if match is None:
            raise BrokerError(f"rabbitmq-server gave an answer that was not understood: {answer[:500]}")
        lines = base64.b64decode(match[1] or "").split()
        return {base64.b64decode(line).decode(errors="replace") for line in lines}

    def _epmd_answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._epmd_port), timeout=1.0):
            return True

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang in the broker and return the answer as text; raises `BrokerError` if it fails."""
        command = [self._erl_call, "-c", self._cookie, "-address", str(self._door), "-e"]
        try:
            done = subprocess.run(
                command,
                input=expression + "\n",
                capture_output=True,
                text=True,
                timeout=30,
                env={"HOME": str(self.folder)},
            )
        except subprocess.TimeoutExpired:
            raise BrokerError("rabbitmq-server does not answer erl_call") from None
        if done.returncode != 0 or not done.stdout.startswith("{ok"):
            raise BrokerError(f"rabbitmq-server refused an evaluation: {done.stdout[:1000]}{done.stderr[:1000]}")
        return done.stdout.strip()

    def close(self) -> None:
        super().close()
        for hold in self._holds:
            hold.close()

    def _answers(self) -> bool:
        """A broker that is ready answers the protocol header with Connection.Start (a method frame: 1)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            client.sendall(b"AMQP\0\0\x09\x01")
            return client.recv(1) == b"\x01"


def _rabbit_home() -> Path:
    """The folder with RabbitMQ's own ``plugins``."""
    script = next((p for p in ("/usr/lib/rabbitmq/bin/rabbitmq-server",) if os.path.exists(p)), None)
    candidates = [Path(os.path.realpath(script)).parent.parent] if script else []
    candidates += [Path(path) for pattern in _HOMES for path in sorted(glob.glob(pattern), reverse=True)]
    for home in candidates:
        if any(home.glob("plugins/rabbit-*/ebin/rabbit.app")):
            return home
    find_program("rabbitmq-server", package="rabbitmq-server")
    raise BrokerError("rabbitmq-server is installed, but its plugins/rabbit-* folder was not found")


def _applications(plugins: Path) -> list[Path]:
    """The folders of the applications that ``rabbit`` needs, itself included; those of Erlang itself are elsewhere."""
    found: dict[str, Path] = {}
    # CLI tools' and erl_call's helpers that the broker calls without naming them as applications.
    waiting = ["rabbit", "cuttlefish", "getopt", "jsx", "thoas", "credentials_obfuscation", "accept", "enough"]
    while waiting:
        name = waiting.pop()
        files = [] if name in found else sorted(plugins.glob(f"{name}-[0-9]*/ebin/{name}.app"))
        if files:
            found[name] = files[-1].parent.parent
            listed = re.search(r"\{\s*applications\s*,\s*\[(.*?)\]", files[-1].read_text(errors="replace"), re.DOTALL)
            waiting += re.findall(r"\w+", listed[1]) if listed else []
    return list(found.values())


def _erl_call(erl: str) -> str:
    beside = [str(Path(os.path.realpath(erl)).parent / "erl_call"), "/usr/lib/erlang/bin/erl_call"]
    return find_program("erl_call", package="erlang-base", places=beside)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
