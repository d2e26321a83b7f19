"""A run file: what is right in it becomes a node and services, and what is wrong is said, all of it, in words."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dse import DataService
from dse.cli.main import main
from dse.cli.run.file import RunFile, read_run_file
from dse.cli.run.problems import FileError

sys.path.insert(0, str(Path(__file__).parents[1]))

from plugins.distribution import install, installed

CODE = '''
from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dse import DataService
from dse.errors import ConfigError


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


class Sheet(msgspec.Struct):
    path: Path
    columns: dict[str, Literal["int", "str"]] = {}
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self):
        if self.skip > 100:
            raise ValueError("skip more than 100 lines? That is no table")


@dataclass
class Login:
    user: str
    password: str = field(default="", repr=False)


class Sheets(DataService):
    """Everything that an option can be."""

    def __init__(
        self,
        service_id: str,
        *,
        tables: dict[str, Sheet],
        interval: float = 5.0,
        mode: Mode = Mode.SAFE,
        retries: int | None = None,
        when: Literal["now"] | float = "now",
        names: list[str] = [],
        login: Login | None = None,
        folder: Path | None = None,
        lazy: bool = False,
    ) -> None:
        super().__init__(service_id)
        self.options = {name: value for name, value in locals().items() if name not in ("self", "service_id")}
        if interval <= 0:
            raise ConfigError("interval is a positive number of seconds", key=("interval",))
        for name, sheet in tables.items():
            if sheet.path.suffix != ".csv":
                raise ConfigError(f"{sheet.path.name} is no CSV file", key=("tables", name, "path"))
        if "wrong" in names:
            raise ConfigError("there is no such name", key=("names", str(names.index("wrong"))))
        if login is not None and login.password == login.user:
            raise RuntimeError(f"{login.password} is the password and the user")


class Anything(DataService):
    def __init__(self, service_id: str, required: int, **others: str) -> None:
        super().__init__(service_id)
        self.options = {"required": required, **others}


class Plain(DataService):
    pass


class Odd(DataService):
    def __init__(self, *, service_id: str) -> None:
        super().__init__(service_id)


class Leaving(DataService):
    def __init__(self, service_id: str) -> None:
        raise SystemExit("no reason to stay")


class NoService:
    pass
'''

PLUGINS = {
    "sheets": "sheets_dist:Sheets",
    "anything": "sheets_dist:Anything",
    "plain": "sheets_dist:Plain",
    "odd": "sheets_dist:Odd",
    "leaving": "sheets_dist:Leaving",
    "gone": "sheets_dist_gone:Gone",
    "noservice": "sheets_dist:NoService",
    "nowhere": "sheets_dist:Nowhere",
    "lacking": "sheets_dist_absent:Lacking",
}


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugins above are installed."""
    folder = install(tmp_path_factory.mktemp("plugins"), "sheets_dist", CODE, PLUGINS)
    (folder / "sheets_dist_absent.py").write_text("import a_package_that_is_not_installed\n")
    (folder / "sheets_dist_gone.py").write_text("import sys\nsys.exit(3)\n")
    with installed(folder):
        yield


Read = Callable[..., RunFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a file with this text, in this environment."""

    def read(text: str | bytes, **environment: str) -> RunFile:
        path = tmp_path / "run.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_run_file(str(path), environment=environment)

    return read


@pytest.fixture
def wrong(read: Read) -> Callable[..., list[str]]:
    """What is said of a file that is wrong, from the line's number on."""

    def wrong(text: str | bytes, **environment: str) -> list[str]:
        with pytest.raises(FileError) as caught:
            read(text, **environment)
        return [line.partition("/run.toml:")[2] for line in caught.value.lines]

    return wrong


class TestWhatIsRight:
    def test_a_file_with_a_transport_is_enough(self, read: Read) -> None:
        file = read('transport = "fake://"')
        node = file.node.make()
        assert (node.bus, node.heartbeat_interval, node.workers, node.max_pending) == ("dse", 1.0, 32, 1000)
        assert (file.log.level, file.log.format, dict(file.services)) == ("info", "text", {})

    def test_all_of_the_node_can_be_said(self, read: Read) -> None:
        file = read(
            """
            transport = "fake://x"
            bus = "prod"
            node_id = "n1"
            heartbeat_interval = 2
            workers = 3
            max_pending = 4
            log = { level = "debug", format = "json" }
            """
        )
        node = file.node.make()
        assert (node.node_id, node.bus) == ("n1", "prod")
        assert (node.heartbeat_interval, node.workers, node.max_pending) == (2.0, 3, 4)
        assert (file.log.level, file.log.format) == ("debug", "json")

    def test_options_become_what_the_annotations_say(self, read: Read, tmp_path: Path) -> None:
        file = read(
            """
            transport = "fake://"
            [services.inventory]
            plugin = "sheets"
            interval = 2
            mode = "fast"
            retries = 3
            when = 1.5
            names = ["a", "b"]
            login = { user = "me", password = "pw" }
            folder = "/var/lib"
            lazy = true
            tables.machines.path = "machines.csv"
            [services.inventory.tables."odd name"]
            path = "../x/rooms.csv"
            columns = { room = "str" }
            """
        )
        service: Any = file.services["inventory"].make()
        assert service.service_id == "inventory"
        options = service.options
        assert options["tables"]["machines"].path == tmp_path / "machines.csv", "relative to the file"
        assert options["tables"]["odd name"].path == tmp_path / "../x/rooms.csv"
        assert options["tables"]["odd name"].columns == {"room": "str"}
        assert (options["interval"], type(options["interval"])) == (2.0, float)
        assert options["mode"].name == "FAST"
        assert (options["retries"], options["when"], options["names"]) == (3, 1.5, ["a", "b"])
        assert (options["login"].user, options["login"].password) == ("me", "pw")
        assert (options["folder"], options["lazy"]) == (Path("/var/lib"), True)

    def test_options_that_are_not_given_have_the_defaults_of_the_constructor(self, read: Read) -> None:
        service: Any = read(
            'transport = "fake://"\n[services.s]\nplugin = "sheets"\ntables = {}\n[services.p]\nplugin = "plain"'
        )
        options = service.services["s"].make().options
        assert (options["interval"], options["mode"].value, options["retries"]) == (5.0, "safe", None)
        assert isinstance(service.services["p"].make(), DataService)

    def test_a_plugin_may_take_options_of_any_name(self, read: Read) -> None:
        file = read('transport = "fake://"\n[services.a]\nplugin = "anything"\nrequired = 1\nmore = "x"')
        made: Any = file.services["a"].make()
        assert made.options == {"required": 1, "more": "x"}

    def test_two_services_of_one_file_share_nothing(self, read: Read) -> None:
        spec = read('transport = "fake://"\n[services.s]\nplugin = "sheets"\ntables = {}\nnames = ["a"]').services["s"]
        one: Any = spec.make()
        one.options["names"].append("b")
        other: Any = spec.make()
        assert other.options["names"] == ["a"]

    def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(self, read: Read) -> None:
        assert read('﻿transport = "fake://"\r\nbus = "b"\r\n'.encode()).node.bus == "b"


class TestWhatIsWrong:
    def test_everything_is_said_at_once_with_line_and_key(self, wrong: Callable[..., list[str]]) -> None:
        assert wrong(
            """\
transprt = "fake://"
bus = 5
node_id = ""
heartbeat_interval = 0
workers = true
[log]
level = "inof"
format = ["json"]
[services.inventory]
plugin = "sheets"
intervall = 5.0
mode = "fats"
when = "later"
names = ["a", 2]
[services.inventory.tables.machines]
pth = "machines.csv"
skip = -1
columns = { a = "integer" }
"""
        ) == [
            "1: transport: is missing; it is a string",
            "1: transprt: unknown key; did you mean 'transport'? Known are bus, heartbeat_interval, keys, keys_file, "
            "log, max_pending, node_id, permissions, services, transport, workers",
            "2: bus: must be a string, not an integer",
            "3: node_id: a node_id is printable text of 1 to 200 characters, not ''",
            "4: heartbeat_interval: heartbeat_interval is 0.01 to 3600 seconds, not 0.0",
            "5: workers: must be an integer, not a boolean",
            "7: log.level: 'inof' is not allowed; did you mean 'info'? Known are debug, error, info, warning",
            "8: log.format: must be 'text' or 'json', not an array",
            "11: services.inventory.intervall: unknown option of 'sheets'; did you mean 'interval'? Known are folder, "
            "interval, lazy, login, mode, names, retries, tables, when",
            "12: services.inventory.mode: 'fats' is not allowed; did you mean 'fast'? Known are fast, safe",
            "13: services.inventory.when: 'later' is not allowed; known are now",
            "14: services.inventory.names[1]: must be a string, not an integer",
            "15: services.inventory.tables.machines.path: is missing; it is a path",
            "16: services.inventory.tables.machines.pth: unknown key; did you mean 'path'? Known are columns, path, "
            "skip",
            "17: services.inventory.tables.machines.skip: must be >= 0",
            "18: services.inventory.tables.machines.columns.a: 'integer' is not allowed; did you mean 'int'? Known "
            "are int, str",
        ]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("services = 1", "2: services: must be a table, not an integer"),
            ("[services]\nx = 1", "3: services.x: must be a table with a key 'plugin'"),
            (
                "[services.x]",
                "2: services.x.plugin: is missing; it is the name of a plugin, one of anything, ",
            ),
            ('[services.x]\nplugin = "sheet"', "3: services.x.plugin: no plugin 'sheet' is installed; did you mean "),
            ("[services.x]\nplugin = 1", "3: services.x.plugin: must be a string, the name of a plugin"),
            (
                '[services."x y"]\nplugin = "plain"',
                "2: services.\"x y\": a service_id is an identifier (letters, digits and _, at most 200), not 'x y'",
            ),
            ('[services.x]\nplugin = "plain"\na = 1', "4: services.x.a: unknown option of 'plain'; there are none"),
            (
                '[services.x]\nplugin = "noservice"',
                "3: services.x.plugin: the service plugin 'noservice' is not a dse DataService: <class 'sheets_dist.",
            ),
            (
                '[services.x]\nplugin = "nowhere"',
                "3: services.x.plugin: the service plugin 'nowhere' cannot be loaded: AttributeError: ",
            ),
            (
                '[services.x]\nplugin = "lacking"',
                "3: services.x.plugin: the service plugin 'lacking' lacks its packages "
                "(a_package_that_is_not_installed cannot be imported); install what its documentation names",
            ),
            (
                '[services.x]\nplugin = "odd"',
                "3: services.x.plugin: the plugin 'odd' cannot be run from a file: the first parameter of "
                "Odd.__init__ must be service_id",
            ),
            (
                '[services.x]\nplugin = "leaving"',
                "2: services.x: the plugin 'leaving' refuses its options: SystemExit: no reason to stay",
            ),
            (
                '[services.x]\nplugin = "gone"',
                "3: services.x.plugin: the service plugin 'gone' cannot be loaded: SystemExit: 3",
            ),
            ("keys = []", "2: keys: keys: there is none; leave keys out for a bus without"),
            ("workers = 0", "2: workers: workers and max_pending are at least 1"),
        ],
    )
    def test_a_service_or_an_option_of_the_node(self, wrong: Callable[..., list[str]], text: str, said: str) -> None:
        (line,) = wrong(f'transport = "fake://"\n{text}\n')
        assert line.startswith(said)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("tables = {}\ninterval = -1", "4: services.x.interval: interval is a positive number of seconds"),
            ('tables.m = { path = "m.xls" }', "3: services.x.tables.m.path: m.xls is no CSV file"),
            ('tables = {}\nnames = [\n"right",\n"wrong"]', "6: services.x.names[1]: there is no such name"),
            (
                'tables = {}\nlogin = { user = "pass1234", password = "${PW}" }',
                "1: services.x: the plugin 'sheets' refuses its options: RuntimeError: *** is the password and the "
                "user",
            ),
            (
                'tables.m = { path = "m.csv", skip = 101 }',
                "3: services.x.tables.m: cannot be used: skip more than 100 lines? That is no table",
            ),
            ("tables = 5", "3: services.x.tables: must be a table, not an integer"),
            ("tables = [{}]", "3: services.x.tables: must be a table, not an array"),
            ("tables.m = 1", "3: services.x.tables.m: must be a table, not an integer"),
            ('tables.m.path = ""', "3: services.x.tables.m.path: must be a path: it is empty"),
            ("tables = {}\nwhen = true", "4: services.x.when: must be 'now' or a number, not a boolean"),
            ("tables = {}\nretries = 1.5", "4: services.x.retries: must be an integer, not a number"),
            ("tables = {}\nlogin = {}", "4: services.x.login.user: is missing; it is a string"),
            ("tables = {}\nlogin = 1", "4: services.x.login: must be a table, not an integer"),
            ("tables = {}\nnames = 1979-05-27", "4: services.x.names: must be an array of strings, not a date"),
        ],
    )
    def test_an_option_of_a_service(self, wrong: Callable[..., list[str]], options: str, said: str) -> None:
        text = 'services.x.plugin = "sheets"\ntransport = "fake://"\n'
        dotted = "\n".join(
            f"services.x.{line}" if "=" in line and not line.startswith('"') else line for line in options.split("\n")
        )
        (line,) = wrong(text + dotted, PW="pass1234")
        assert line == said

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("redis:/x", "a transport URL begins with the driver's name and '://', as in redis://localhost/0"),
            ("radis://h", "no transport 'radis' is installed; installed are amqp, amqps, fake, "),
            ("redis://u:s3cret/x@h", "redis://…: the user name or password has a character "),
            ("redis://u:s3cret@h?nix=1", "redis://u:***@h?nix=1: unknown option 'nix'; known are "),
        ],
    )
    def test_the_transport_is_judged_by_its_driver_and_its_password_not_shown(
        self, wrong: Callable[..., list[str]], url: str, said: str
    ) -> None:
        (line,) = wrong(f'# the broker\ntransport = "{url}"')
        assert line.startswith(f"2: transport: {said}")
        assert "s3cret" not in line

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('a = "\n', "1: is not TOML, column 6: Illegal character '\\n'"),
            ("a = 1\nb = [1,\n\n", "2: is not TOML: Invalid value"),
            ("a = 1\n[b]\n[b]\n", "3: is not TOML, column 3: Cannot declare ('b',) twice"),
            ("a = 1\na = 2\nb = 1", "2: is not TOML, column 6: Cannot overwrite a value"),
            (b"a = 1\nb = '\xff'\n", "2: is not UTF-8"),
            ("a = " + "9" * 5000, "1: is not TOML: Exceeds the limit (4300"),
            ("a = " + "[" * 50 + "]" * 50, " is nested more than 40 levels deep"),
            ("a = " + "[" * 9000 + "]" * 9000, " is nested too deeply"),
            ("a." * 9000 + "a = 1", " is nested more than 40 levels deep"),
            (b"#" * (1 << 20) + b"\n", " is larger than 1 MiB: it is no run file"),
        ],
    )
    def test_what_is_no_toml(self, wrong: Callable[..., list[str]], text: str | bytes, said: str) -> None:
        (line,) = wrong(text)
        assert line.startswith(said)

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for name, said in (
            ("absent", "cannot be read: No such file or directory"),
            (".", "is no regular file"),
            ("run.toml/x", "cannot be read: No such file or directory"),
            ("pipe", "is no regular file"),
            ("a\0b", "cannot be read: .*embedded null"),
        ):
            with pytest.raises(FileError, match=said):
                read_run_file(f"{tmp_path}/{name}")

    def test_a_thousand_mistakes_are_not_all_shown(self, wrong: Callable[..., list[str]]) -> None:
        lines = wrong('transport = "fake://"\n' + "".join(f"x{number} = 1\n" for number in range(1000)))
        assert len(lines) == 51
        assert lines[0].startswith("2: x0: unknown key; known are bus, ")
        assert lines[-1] == " and 950 more"

    def test_what_a_file_holds_cannot_drive_a_terminal(self, wrong: Callable[..., list[str]]) -> None:
        (line,) = wrong('transport = "fake://"\n"\\u001b[2J\\n" = 1')
        assert line.startswith('2: "\\x1b[2J\\n": unknown key')


class TestTheEnvironment:
    def test_it_fills_in_strings_everywhere(self, read: Read) -> None:
        file = read(
            """
            transport = "fake://${NAME}"
            bus = "${A}-${B:-b}-${EMPTY:-e}-$${A}-$A"
            [services.s]
            plugin = "anything"
            required = 1
            text = "${A}"
            """,
            NAME="here", A="a", EMPTY="",
        )  # fmt: skip
        assert file.node.transport == "fake://here"
        assert file.node.bus == "a-b-e-${A}-$A"
        service: Any = file.services["s"].make()
        assert service.options["text"] == "a"

    def test_a_number_can_come_from_it(self, read: Read, wrong: Callable[..., list[str]]) -> None:
        text = 'transport = "fake://"\nworkers = "${WORKERS:-8}"'
        assert read(text).node.workers == 8
        assert read(text, WORKERS="9").node.workers == 9
        assert wrong(text, WORKERS="nine") == ["2: workers: must be an integer, not a string"]
        assert wrong('transport = "fake://"\nworkers = "8"') == ["2: workers: must be an integer, not a string"]

    def test_a_variable_that_is_not_set_is_named_and_nothing_else_is_said_of_the_key(
        self, wrong: Callable[..., list[str]]
    ) -> None:
        services = '[services.x]\nplugin = "${P}"\n[services.y]\nplugin = "anything"\nrequired = "${N}"'
        assert wrong(f'transport = "${{URL}}"\n{services}') == [
            "1: transport: the environment variable URL is not set; a default is written ${URL:-…}",
            "3: services.x.plugin: the environment variable P is not set; a default is written ${P:-…}",
            "6: services.y.required: the environment variable N is not set; a default is written ${N:-…}",
        ]  # fmt: skip

    @pytest.mark.parametrize("reference", ["${}", "${a b}", "${1}", "${NAME:default}", "${NAME"])
    def test_what_is_no_reference_is_refused(self, wrong: Callable[..., list[str]], reference: str) -> None:
        (line,) = wrong(f'transport = "fake://"\nbus = "{reference}"', NAME="x")
        shown = reference if reference.endswith("}") else "${"
        assert line == f"2: bus: {shown!r} is not ${{NAME}} or ${{NAME:-default}}; a plain '${{' is written '$${{'"

    def test_what_comes_from_it_is_never_shown(self, wrong: Callable[..., list[str]], read: Read) -> None:
        secret = "s3cr3t-\tvälue"
        text = """
            transport = "redis://u:${S}@h?${S}=1"
            heartbeat_interval = "${S}"
            [log]
            level = "${S}"
            [services.x]
            plugin = "sheets"
            mode = "${S}"
            tables = "${S}"
            interval = "${S}"
            login = { user = "${S}", password = "${S}" }
            [services.y]
            plugin = "${S}"
            """
        lines = wrong(text, S=secret)
        assert len(lines) == 7
        assert not [line for line in lines if "s3cr3t" in line or "lue" in line.replace("value", "")]
        assert "what '${S}' stands for is not allowed; known are fast, safe" in "\n".join(lines)
        file = read(
            'transport = "redis://u:${S}@h"\n[services.a]\nplugin = "anything"\nrequired=1\nx="${S}"', S="s3cr3t"
        )
        assert "s3cr3t" not in f"{file!r} {file.url} {file.services} {file.node} {file.redact}"

    def test_names_that_come_from_it_are_no_secrets(self, read: Read) -> None:
        file = read('transport = "fake://"\nnode_id = "${HOST}"', HOST="machine-7")
        assert file.redact("node machine-7") == "node machine-7"

    @pytest.mark.parametrize(
        ("transport", "environment", "shown"),
        [
            ("${URL}", {"URL": "redis://broker-1:6379/0"}, "redis://broker-1:6379/0"),
            ("${URL}", {"URL": "redis://user-name:pass-word@broker-1"}, "redis://***:***@broker-1"),
            ("redis://${H}:${P}/${D}", {"H": "broker-1", "P": "16379", "D": "1000"}, "redis://broker-1:16379/1000"),
            ("redis://${U}:${P}@h", {"U": "user-name", "P": "pass-word"}, "redis://***:***@h"),
            ("redis://${X}:${X}@${X}", {"X": "same-name"}, "redis://***:***@***"),
            ("redis://h?connect_timeout=${C}", {"C": "1000.5"}, "redis://h?connect_timeout=1000.5"),
        ],
    )
    def test_of_the_url_the_way_is_no_secret_the_user_and_the_password_are(
        self, read: Read, transport: str, environment: dict[str, str], shown: str
    ) -> None:
        file = read(f'transport = "{transport}"', **environment)
        assert file.url == shown
        assert "pass-word" not in file.redact(f"{environment}")

    @pytest.mark.parametrize("option", ["ssl_keyfile", "ssl_certfile", "ssl_ca_certs"])
    def test_where_a_key_or_certificate_is_is_no_secret(self, read: Read, option: str) -> None:
        url = f"redis://h?{option}=${{FILE}}&ssl_keyfile_password=${{PW}}"
        with pytest.raises(FileError) as caught:
            read(f'transport = "{url}"', FILE="/etc/dse/node.pem", PW="pass-word")
        assert f"{option}=/etc/dse/node.pem" in str(caught.value)
        assert "pass-word" not in str(caught.value)


class TestTheCommand:
    def test_check_says_that_all_is_right(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.toml"
        path.write_text('transport = "redis://u:pw@nowhere"\nbus = "prod"\n[services.p]\nplugin = "plain"\n')
        assert main(["run", "--check", str(path)]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (f"{path}: all right: 1 service on redis://u:***@nowhere, bus prod\n", "")

    def test_check_says_what_is_wrong(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.toml"
        path.write_text('transport = "fake://"\nbuss = "prod"\nworkers = "x"\n')
        assert main(["run", "--check", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.partition(": ")[0] for line in err.splitlines()] == [f"{path}:2", f"{path}:3"]

    def test_nobody_else_speaks_of_a_plugin_that_lacks_its_packages(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "run.toml"
        path.write_text('transport = "fake://"\n[services.x]\nplugin = "lacking"\n')
        assert main(["run", "--check", str(path)]) == 2
        assert caplog.records == []


class TestPlugins:
    """`dse plugins`."""

    def test_they_are_listed_with_what_they_are_or_lack(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins"]) == 0
        out = capsys.readouterr().out
        lines = [re.sub(" {2,}", "|", line) for line in out.splitlines()]
        assert {"sheets|Everything that an option can be.", "plain"} <= set(lines)
        assert [line for line in lines if line.startswith("lacking|cannot be used: the service plugin 'lacking' lacks")]
        assert main(["plugins", "--json"]) == 0
        said = {each["plugin"]: each for each in json.loads(capsys.readouterr().out)}
        assert said["sheets"] == {"plugin": "sheets", "doc": "Everything that an option can be."}
        assert "a_package_that_is_not_installed" in said["lacking"]["problem"]

    def test_the_options_of_one_are_those_of_its_constructor(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "sheets"]) == 0
        options = capsys.readouterr().out.partition("\n\n")[2]
        assert [re.sub(" {2,}", "|", line.strip()) for line in options.splitlines()] == [
            "tables|a table (required)",
            "tables.NAME.path|a path (required)",
            "tables.NAME.columns|a table (default {})",
            "tables.NAME.skip|an integer (default 0)",
            "interval|a number (default 5.0)",
            "mode|'fast' or 'safe' (default \"safe\")",
            "retries|an integer",
            "when|'now' or a number (default \"now\")",
            "names|an array of strings (default [])",
            "login|a table",
            "login.user|a string (required)",
            'login.password|a string (default "")',
            "folder|a path",
            "lazy|true or false (default false)",
        ]
        assert main(["plugins", "anything", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["class"] == "sheets_dist.Anything"
        assert said["options"][1] == {"option": "…", "type": "a string", "required": False, "default": ""}

    def test_one_that_is_not_there_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "nix"]) == 2
        assert "no service plugin 'nix' is installed; installed are anything, " in capsys.readouterr().err


# Hostile files

_SCALARS = st.one_of(
    st.none().map(lambda _: "nan"), st.booleans().map(lambda b: str(b).lower()), st.integers().map(str),
    st.sampled_from(['"fake://"', '"sheets"', '"plain"', '"anything"', '"${X}"', '"${"', "1979-05-27", "07:32:00"]),
    st.text(st.characters(codec="utf-8"), max_size=8).map(
        lambda text: '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'
    ),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda them: "[" + ", ".join(them) + "]")
        | st.dictionaries(st.sampled_from(["path", "plugin", "a", "user"]), inner, max_size=3).map(
            lambda them: "{" + ", ".join(f"{name} = {each}" for name, each in them.items()) + "}"
        )
    ),
    max_leaves=8,
)
_NAMES = st.sampled_from(
    [
        "transport",
        "bus",
        "node_id",
        "workers",
        "keys",
        "keys_file",
        "heartbeat_interval",
        "log",
        "services",
        "services.s",
        "log.level",
    ]
    + [f"services.s.{name}" for name in ("plugin", "tables", "mode", "names", "login", "folder", "when", '"ü\\n"')]
    + ["services.s.tables.t.path", "services.s.tables.t", "max_pending"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_NAMES, _VALUES, max_size=8), st.sampled_from(["", '[services.t]\nplugin = "sheets"\n']))
def test_whatever_a_file_says_it_is_read_or_refused_in_words(tmp_path: Path, pairs: dict[str, str], more: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in pairs.items()) + more, encoding="utf-8")
    lines: list[str] | None = None
    try:
        read_run_file(str(path), environment={"X": "x"})
    except FileError as error:
        lines = error.lines
    assert lines is None or (lines and all(line.isprintable() for line in lines))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_whatever_bytes_a_file_has_it_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(FileError):
        read_run_file(str(path))
