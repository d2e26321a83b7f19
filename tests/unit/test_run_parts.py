"""The parts of `dse run`, each by itself."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import tomllib
import typing
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.cli.run.convert import Context, convert
from dse.cli.run.file import LogOptions, NodeOptions
from dse.cli.run.lines import find_lines
from dse.cli.run.logs import JsonFormatter, Logs, TextFormatter
from dse.cli.run.mailbox import Mailbox
from dse.cli.run.notify import Notifier
from dse.cli.run.problems import BAD, Problems, shown_key
from dse.cli.run.redact import Redactor
from dse.cli.run.reload import Changes, find_changes
from dse.cli.run.requests import Requests
from dse.cli.run.services import ServiceSpec, plugin_options
from dse.core.plugins import load_plugin
from dse.core.service import DataService
from dse.errors import ConfigError, MissingExtra
from dse.services.plugins import installed_services, load_service

sys.path.insert(0, str(Path(__file__).parents[1]))

from plugins.distribution import install, installed

# Options


class Cat(msgspec.Struct, tag="cat"):
    lives: int = 9


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Renamed(msgspec.Struct, rename="kebab"):
    long_name: int


class Movie(typing.TypedDict):
    name: str
    year: typing.NotRequired[int]


@dataclasses.dataclass
class Circle:
    radius: float

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ConfigError("is negative", key=("radius",))


UserId = typing.NewType("UserId", int)


def converted(value: Any, kind: Any, written: bool = False) -> Any:
    """What a value becomes; what is said of it when it does not fit."""
    problems = Problems(find_lines(""))
    context = Context(problems, Path("/etc/dse"), {("x",): "${X}"} if written else {})
    made = convert(value, kind, ("x",), context)
    said = [f"{each.key}: {each.message}" for each in problems.found]
    assert (made is BAD) == bool(said)
    return said or made


@pytest.mark.parametrize(
    ("value", "kind", "made"),
    [
        ("a", str, "a"),
        (1, float, 1.0),
        (1, int | str, 1),
        ("a", int | str, "a"),
        (5, UserId, 5),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1, 1], set[int], {1}),
        ([1, 1], frozenset[int], frozenset({1})),
        ([1], collections.abc.Sequence[int], [1]),
        ({"a": 1}, collections.abc.Mapping[str, float], {"a": 1.0}),
        ({"a": [1]}, dict, {"a": [1]}),
        (["x", "/y"], list[Path], [Path("/etc/dse/x"), Path("/y")]),
        ("x", Path | None, Path("/etc/dse/x")),
        ({"type": "dog", "name": "Rex"}, Cat | Dog, Dog("Rex")),
        ({"long-name": 1}, Renamed, Renamed(1)),
        ({"name": "Brazil"}, Movie, {"name": "Brazil"}),
        ({"radius": 1}, Circle, Circle(1.0)),
        ("auto", Literal["auto"] | int, "auto"),
        (3, Literal["auto"] | int, 3),
        (True, Literal[True, "maybe"], True),
        (datetime.date(2026, 1, 1), datetime.date, datetime.date(2026, 1, 1)),
        ("PT5S", datetime.timedelta, datetime.timedelta(seconds=5)),
        ([], Annotated[list[int], msgspec.Meta(max_length=2)], []),
        ({"any": [1, {}]}, Any, {"any": [1, {}]}),
    ],
)
def test_a_value_becomes_what_the_annotation_says(value: Any, kind: Any, made: Any) -> None:
    result = converted(value, kind)
    assert result == made
    assert type(result) is type(made)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (True, int, ["x: must be an integer, not a boolean"]),
        (1, bool, ["x: must be true or false, not an integer"]),
        (1.0, int, ["x: must be an integer, not a number"]),
        (1, Literal[True], ["x: must be true, not an integer"]),
        ("a", int | float | None, ["x: must be an integer or a number, not a string"]),
        (["a", 1, True], list[int], [
            "x[0]: must be an integer, not a string", "x[2]: must be an integer, not a boolean",
        ]),
        ([1], tuple[int, str], ["x: must have 2 elements, not 1"]),
        ([[1]], set[list[int]], ["x: must be an array of scalars"]),
        ({"type": "dog"}, Cat | Dog, ["x.name: is missing; it is a string"]),
        ({"type": "cow"}, Dog, ["x.type: must be 'dog'"]),
        ({"long_name": 1}, Renamed, [
            "x.long_name: unknown key; did you mean 'long-name'? Known are long-name",
            "x.long-name: is missing; it is an integer",
        ]),
        ({"year": "x"}, Movie, ["x.year: must be an integer, not a string", "x.name: is missing; it is a string"]),
        ({"radius": -1}, Circle, ["x.radius: is negative"]),
        ("autp", Literal["auto", "off"] | int, ["x: 'autp' is not allowed; did you mean 'auto'? Known are auto, off"]),
        (None, Path, ["x: must be a path, not something else"]),
        ([1, 2, 3], Annotated[list[int], msgspec.Meta(max_length=2)], ["x: must have at most 2 elements, not 3"]),
        ("ab", Annotated[str, msgspec.Meta(min_length=3)], ["x: must be of length >= 3"]),
        ("ab", Annotated[str, msgspec.Meta(pattern="^c")], ["x: must match the regex '^c'"]),
        (datetime.date(2026, 1, 1), str, ["x: must be a string, not a date"]),
        ("x", collections.abc.Callable[[], int], ["x: must be a value for Callable, not a string"]),
        ({}, list[int] | str, ["x: must be an array of integers or a string, not a table"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_the_words_of_the_file(value: Any, kind: Any, said: list[str]) -> None:
    assert converted(value, kind) == said


def test_a_choice_from_the_environment_is_not_said() -> None:
    assert converted("s3cret", Literal["a"], written=True) == ["x: what '${X}' stands for is not allowed; known are a"]


def test_a_constructor_that_cannot_be_called_by_name_is_refused() -> None:
    class ByPlace(DataService):
        def __init__(self, service_id: str, option: int, /) -> None: ...

    class Unresolved(DataService):
        def __init__(self, service_id: str, option: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    class Free(DataService):
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"'option' of ByPlace.__init__ cannot be given by name"):
        plugin_options(ByPlace)
    with pytest.raises(ConfigError, match=r"the annotations of Unresolved.__init__ cannot be read: .*Nowhere"):
        plugin_options(Unresolved)
    assert plugin_options(Free) == ([], Any)


@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z")), max_size=5), min_size=1, max_size=4))
def test_a_key_is_shown_as_toml_writes_it(names: list[str]) -> None:
    value: Any = tomllib.loads(f"{shown_key(tuple(names))} = 1")
    for name in names:
        value = value[name]
    assert value == 1
    assert shown_key(("a", 0, "b c", 1)) == 'a[0]."b c"[1]'


# Plugins


CODE = "from dse import DataService\nclass One(DataService): ...\n"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[None]:
    """Distributions: one has plugins, another claims the name of one of them, and the third lacks a package."""
    install(tmp_path, "parts_one", CODE, {"parts_a": "parts_one:One", "parts_b": "parts_one:One"})
    install(tmp_path, "parts_two", CODE, {"parts_b": "parts_two:One"})
    install(tmp_path, "parts_three", "import not_installed_here\n", {"parts_c": "parts_three:X"})
    with installed(tmp_path):
        yield


@pytest.mark.usefixtures("parts")
class TestPlugins:
    def test_they_are_listed_without_being_imported(self) -> None:
        assert {"host", "parts_a", "parts_b", "parts_c"} <= set(installed_services())
        assert "parts_one" not in sys.modules

    def test_one_is_loaded_and_no_other(self) -> None:
        assert load_service("parts_a").__name__ == "One"
        assert "parts_two" not in sys.modules

    def test_what_is_not_installed_is_said_with_what_is(self) -> None:
        with pytest.raises(ConfigError, match=r"no service plugin 'nix' is installed; installed are .*host, .*parts_a"):
            load_service("nix")

    def test_a_name_that_two_claim_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="several installed plugins claim the service plugin 'parts_b'"):
            load_service("parts_b")

    def test_a_package_that_is_missing_is_named(self) -> None:
        with pytest.raises(MissingExtra, match=r"'parts_c' lacks its packages \(not_installed_here cannot be "):
            load_service("parts_c")

    def test_an_extra_of_our_own_is_named(self) -> None:
        with pytest.raises(MissingExtra, match=r"install it with: pip install 'dse\[sql\]'$") as caught:
            load_plugin("dse.services", "parts_c", kind="service", base=DataService, extras={"parts_c": "sql"})
        assert caught.value.extra == "sql"


def test_a_plugin_that_names_its_extra_is_believed(tmp_path: Path) -> None:
    code = "from dse.errors import MissingExtra\nraise MissingExtra('install parts[x]', extra='x')\n"
    install(tmp_path, "parts_four", code, {"parts_d": "parts_four:X"})
    with installed(tmp_path), pytest.raises(MissingExtra, match=r"^install parts\[x\]$") as caught:
        load_service("parts_d")
    assert caught.value.extra == "x"


# Reload


def spec(service_id: str, options: str = "") -> ServiceSpec:
    return ServiceSpec(service_id, "plugin", options, DataService, {})


def test_what_a_reload_changes_is_what_differs() -> None:
    node = NodeOptions("fake://")
    running = {each.service_id: each for each in (spec("a"), spec("b", "1"), spec("c"))}
    wanted = {each.service_id: each for each in (spec("d"), spec("b", "2"), spec("a"))}
    assert not find_changes(running, node, running, node)
    assert find_changes(running, node, wanted, node) == Changes(removed=("c",), changed=("b",), added=("d",))
    other = NodeOptions("fake://x", workers=5)
    assert find_changes({}, node, {}, other) == Changes(node=("transport", "workers"))


def test_requests_wake_who_waits_and_are_taken_once() -> None:
    requests = Requests()
    asking = threading.Timer(0.05, requests.ask_reload)
    asking.start()
    began = time.monotonic()
    requests.wait(30.0)
    assert time.monotonic() - began < 10
    requests.ask_reload()
    assert (requests.take_reload(), requests.take_reload()) == (True, False)
    requests.ask_stop()
    requests.wait(30.0)
    assert requests.stop
    asking.join()


def test_a_signal_wakes_the_mailbox_also_on_another_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are for the main thread")
    mailbox: Mailbox[int] = Mailbox()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: mailbox.put(number))
    woken = mailbox.wake_for_signals()
    done = threading.Event()

    def bother() -> None:
        # To this very thread: the main one is not interrupted by it.
        while not done.wait(0.002):
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=bother)
    try:
        thread.start()
        deadline = time.monotonic() + 30
        got = 0
        while got < 20:
            got += mailbox.get(deadline - time.monotonic()) == signal.SIGUSR1
            assert time.monotonic() < deadline
        for _ in range(100_000):  # more than a socket's buffer holds: a put never blocks
            mailbox.put(0)
    finally:
        done.set()
        thread.join()
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGUSR1, before)
        mailbox.close()


# Logs


def record(message: str, *args: Any, exc_info: Any = None, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", level, __file__, 1, message, args, exc_info)
    made.created = 1795559112.5
    return made


@pytest.fixture
def redact() -> Redactor:
    redact = Redactor()
    redact.add(["top secret\tü", "word", "abc"])
    return redact


class TestLogs:
    def test_json_is_one_object_a_line_whatever_is_logged(self, redact: Redactor) -> None:
        formatter = JsonFormatter(redact)
        text = formatter.format(record("two\nlines \x1b[2J %s", "\ud800 top secret\tü"))
        assert "\n" not in text
        assert json.loads(text) == {
            "time": "2026-11-24T22:25:12.500Z", "level": "INFO", "logger": "a.logger",
            "message": "two\nlines \x1b[2J \ud800 ***",
        }  # fmt: skip
        try:
            raise ValueError("top secret\tü")
        except ValueError:
            said = json.loads(formatter.format(record("failed", exc_info=sys.exc_info())))
        assert said["exception"].startswith("Traceback (most recent call last)")
        assert said["exception"].endswith("ValueError: ***")

    def test_text_cannot_be_forged_by_what_is_logged(self, redact: Redactor) -> None:
        formatter = TextFormatter(redact)
        text = formatter.format(record("x\n2026-01-01T00:00:00.000Z INFO forged \x1b[2J"))
        assert text == "2026-11-24T22:25:12.500Z INFO a.logger: x\\n2026-01-01T00:00:00.000Z INFO forged \\x1b[2J"
        try:
            raise ValueError("a\nb\x1b")
        except ValueError:
            lines = formatter.format(record("failed", exc_info=sys.exc_info())).splitlines()
        assert lines[0].endswith("a.logger: failed")
        assert lines[-2:] == ["  ValueError: a", "  b\\x1b"]

    def test_a_record_that_cannot_be_shown_is_logged_all_the_same(self, redact: Redactor) -> None:
        class Unspeakable(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        for formatter in (TextFormatter(redact), JsonFormatter(redact)):
            assert "its arguments cannot be shown: TypeError" in formatter.format(record("%d", "x"))
            assert "its arguments cannot be shown: RuntimeError" in formatter.format(record("%s", Unspeakable()))
            try:
                raise Unspeakable
            except Unspeakable:
                assert "Unspeakable" in formatter.format(record("failed", exc_info=sys.exc_info()))

    def test_threads_and_warnings_speak_through_the_log_while_it_is_open(self, redact: Redactor) -> None:
        out = StringIO()
        before = (threading.excepthook, warnings.showwarning, logging.getLogger().level, logging.raiseExceptions)
        logs = Logs(redact, out)
        logs.apply(LogOptions(level="warning", format="json"))
        try:
            thread = threading.Thread(target=lambda: {}["top secret\tü"], name="culprit")
            thread.start()
            thread.join()
            logging.getLogger("x").info("not shown")
            logs.apply(LogOptions(level="debug", format="json"))
            logging.getLogger("x").debug("shown")
        finally:
            logs.close()
        said = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [each["message"] for each in said] == ["the thread culprit ended by an exception", "shown"]
        assert "KeyError: '***'" in said[0]["exception"]
        after = (threading.excepthook, warnings.showwarning, logging.getLogger().level, logging.raiseExceptions)
        assert after == before

    def test_libraries_of_our_services_do_not_tell_each_event_unless_asked(self, redact: Redactor) -> None:
        out = StringIO()
        logs = Logs(redact, out)
        try:
            for level in ("info", "debug", "info"):
                logs.apply(LogOptions(level=level, format="text"))
                logging.getLogger("watchfiles.main").info("a change at %s", level)
                logging.getLogger("httpx").warning("a warning at %s", level)
        finally:
            logs.close()
        said = [line.rpartition(": ")[2] for line in out.getvalue().splitlines()]
        assert said == ["a warning at info", "a change at debug", "a warning at debug", "a warning at info"]

    def test_a_stream_that_is_gone_is_no_error(self, redact: Redactor) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", buffering=1) as out:
            logs = Logs(redact, out)
            logs.apply(LogOptions())
            try:
                logging.getLogger("x").info("nobody reads this")
            finally:
                logs.close()
            os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("x top secret\tü y", "x *** y"),
            (repr("top secret\tü"), "'***'"),
            (json.dumps({"a": "top secret\tü"}), '{"a": "***"}'),
            ("redis://:top%20secret%09%C3%BC@h", "redis://:***@h"),
            ("top+secret%09%C3%BC", "***"),
            ("word, swords, a-word", "***, swords, a-***"),
            ("abc is too short to be a secret", "abc is too short to be a secret"),
        ],
    )
    def test_a_secret_is_found_however_it_is_written(self, redact: Redactor, text: str, shown: str) -> None:
        assert redact(text) == shown

    def test_each_line_of_a_secret_is_one(self) -> None:
        redact = Redactor()
        redact.add(["-----BEGIN KEY-----\nMIIBVQIBADAN\n-----END KEY-----\n"])
        assert redact("it says MIIBVQIBADAN!") == "it says ***!"
        assert "MIIB" not in repr(redact)

    @given(st.text(min_size=8, max_size=30), st.text(max_size=20), st.text(max_size=20))
    def test_no_long_secret_comes_through(self, secret: str, before: str, after: str) -> None:
        redact = Redactor()
        redact.add([secret])
        assert secret not in redact(f"{before}{secret}{after}").replace("***", "") or secret in f"{before}{after}"


# The supervisor


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


class TestTheSupervisor:
    def test_it_is_told_each_state(self, supervisor: socket.socket) -> None:
        notifier = Notifier(supervisor.getsockname(), watchdog=1.0)
        notifier.ready("two\nlines")
        assert supervisor.recv(1000).decode() == "READY=1\nSTATUS=two lines"
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading("again")
        state, stamp, status = supervisor.recv(1000).decode().splitlines()
        assert (state, status) == ("RELOADING=1", "STATUS=again")
        assert (
            before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        )
        notifier.status("busy", patience=1.5)
        assert supervisor.recv(1000).decode() == "STATUS=busy\nEXTEND_TIMEOUT_USEC=1500000"
        notifier.alive()
        assert supervisor.recv(1000).decode() == "WATCHDOG=1"
        notifier.stopping("bye")
        assert supervisor.recv(1000).decode() == "STOPPING=1\nSTATUS=bye"

    def test_the_environment_says_who_it_is_and_forgets_it(self) -> None:
        environment = {
            "NOTIFY_SOCKET": "/x",
            "WATCHDOG_USEC": "1500000",
            "WATCHDOG_PID": str(os.getpid()),
            "OTHER": "1",
        }
        assert Notifier.from_environment(environment).watchdog == 1.5
        assert environment == {"OTHER": "1"}

    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"WATCHDOG_USEC": "1000"},
            {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-5"},
            {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
            {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1" * 30},
            {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
            {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000"},
        ],
    )
    def test_without_a_watchdog_there_is_none(self, environment: dict[str, str]) -> None:
        notifier = Notifier.from_environment(environment)
        assert notifier.watchdog is None
        notifier.alive()

    def test_one_that_does_not_listen_is_no_error(self, tmp_path: Path) -> None:
        for address in (str(tmp_path / "nobody"), "@nobody-at-all", "/" + "x" * 300, None):
            Notifier(address, watchdog=1.0).ready("all is well")

    def test_one_that_does_not_read_holds_nothing_up_for_long(self, supervisor: socket.socket) -> None:
        notifier = Notifier(supervisor.getsockname())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
            flood.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    flood.sendto(b"x", supervisor.getsockname())
        began = time.monotonic()
        notifier.ready("all is well")
        assert time.monotonic() - began < 10
