"""Describing a bus: signatures and annotations read back from text, documents, and typed clients."""

from __future__ import annotations

import ast
import asyncio
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from dse import DataService, Node, Observer, Table, rpc
from dse.core.info import DataServiceInfo, MethodInfo
from dse.describe import ServiceClient, asyncapi, client_module, describe, markdown
from dse.describe.annotations import cell_schema, json_schema, python_type
from dse.describe.catalogue import BusDescription, ServiceDescription, TableDescription, _service
from dse.describe.signatures import Parameter, Signature
from dse.errors import ConfigError, NoSuchService, RpcError

HOSTILE = [
    "",
    "(",
    ") -> int",
    "(a): import os",
    "(a): ...\nimport os",
    "(a) -> b: ...; x = 1; y",
    "(a, *rest)",
    "(a, **rest)",
    "(a, /)",
    "(a=<object object at 0x7f>)",
    "(" * 5000,
    "(a: " + "[" * 200 + "]" * 200 + ")",
    "(a: " + "x" * 20_000 + ")",
    "(a: int) -> int:\n    ...\ndef __(b)",
]


class Door(DataService):
    openings = Table("number", "who", "at")

    @rpc(idempotent=True)
    def ring(self, times: int, who: str = "nobody") -> str:
        """Ring the bell.

        "Loudly", with a \\ in it.
        """
        return f"{who} rang {times} times"

    @rpc
    def span(self, days: list[int]) -> tuple[int, int]:
        return min(days), max(days)

    @rpc
    def birthday(self) -> datetime.date:
        return datetime.date(2026, 11, 25)

    @rpc
    def lie(self) -> int:
        return "no number"  # type: ignore[return-value]

    @rpc
    def shut(self, self_: bool | None = None) -> None:
        """Shut it."""


@pytest.fixture
def door() -> Iterator[tuple[Node, Door]]:
    service = Door("door")
    with Node(f"fake://{uuid.uuid4().hex}", node_id="house", services=[service]) as node:
        yield node, service


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], ModuleType]:
    def load(source: str) -> ModuleType:
        name = f"client_{uuid.uuid4().hex}"
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


def described(node: Node, *services: str) -> BusDescription:
    with Observer(str(node.url), bus=node.bus) as observer:
        return describe(observer, services)


# Signatures


def test_a_signature_is_read_back() -> None:
    read = Signature.parse("(pid: int, *, force: bool = False, note='it''s') -> dict[str, int] | None")
    assert read.parameters == (
        Parameter("pid", "int"),
        Parameter("force", "bool", "False"),
        Parameter("note", None, "'its'"),
    )
    assert read.returns == "dict[str, int] | None"
    assert [each.required for each in read.parameters] == [True, False, False]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="signature"):
        Signature.parse(text)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for each in (text, f"({text})", f"(a: {text}) -> {text}"):
        try:
            read = Signature.parse(each)
        except ConfigError:
            continue
        for annotation in [read.returns, *(parameter.annotation for parameter in read.parameters)]:
            json.dumps(json_schema(annotation))
            ast.parse(python_type(annotation)[0], mode="eval")


# Annotations


@pytest.mark.parametrize(
    ("annotation", "schema", "python"),
    [
        (None, {}, "typing.Any"),
        ("int", {"type": "integer"}, "int"),
        ("int | None", {"type": ["integer", "null"]}, "int | None"),
        ("Optional[str]", {"type": ["string", "null"]}, "str | None"),
        ("typing.Union[int, str]", {"type": ["integer", "string"]}, "int | str"),
        ("int | str | None", {"type": ["integer", "string", "null"]}, "int | str | None"),
        (
            "list[int] | int | None",
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "integer"}, {"type": "null"}]},
            "list[int] | int | None",
        ),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}, "list[int]"),
        ("set[str]", {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "set[str]"),
        ("dict[str, Any]", {"type": "object", "additionalProperties": {}}, "dict[str, typing.Any]"),
        ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}, "tuple[int, ...]"),
        ("Literal['a', 1]", {"enum": ["a", 1]}, "typing.Literal['a', 1]"),
        ("Annotated[int, Meta(ge=0)]", {"type": "integer"}, "int"),
        ("datetime.date", {"type": "string", "format": "date"}, "datetime.date"),
        ("'int'", {"type": "integer"}, "int"),
        ("Widget", {"description": "Python: Widget"}, "typing.Any"),
        ("list[Widget]", None, "list[typing.Any]"),
        ("__import__('os').system('x')", None, "typing.Any"),
        ("int | Widget", None, "typing.Any"),
    ],
)
def test_an_annotation_as_schema_and_as_python(annotation: str, schema: dict[str, Any] | None, python: str) -> None:
    assert python_type(annotation)[0] == python
    if schema is not None:
        assert json_schema(annotation) == schema
    else:
        assert json_schema(annotation)["description"] == f"Python: {annotation}"


def test_cells_are_of_the_types_that_were_found() -> None:
    assert cell_schema(frozenset({"int", "None"})) == {"type": ["integer", "null"]}
    assert cell_schema(frozenset({"bytes"})) == {"type": "string", "contentEncoding": "base64"}
    assert cell_schema(frozenset()) == {"type": ["boolean", "integer", "null", "number", "string"]}
    assert cell_schema(frozenset({"Widget"})) == cell_schema(frozenset())


# A bus


def test_tables_tell_the_types_of_their_columns(door: tuple[Node, Door]) -> None:
    node, service = door
    service.openings.replace([(1, "ann", None), (2, "bob", 3.5)])
    (table,) = described(node).services[0].tables
    assert table.columns == ("number", "who", "at")
    assert table.types == (frozenset({"int"}), frozenset({"str"}), frozenset({"None", "float"}))


def test_an_empty_table_has_told_nothing(door: tuple[Node, Door]) -> None:
    (table,) = described(door[0]).services[0].tables
    assert table.types == (frozenset(), frozenset(), frozenset())
    assert "no row yet" in markdown(described(door[0]))


def test_looking_at_types_makes_no_later_change_copy_the_table(door: tuple[Node, Door]) -> None:
    node, service = door
    service.openings.replace([(number, "x", None) for number in range(100)])
    rows = service.openings._log._rows
    described(node)
    service.openings.insert([(1000, "y", None)])
    assert service.openings._log._rows is rows


def test_a_service_that_is_not_there_is_named_with_those_that_are(door: tuple[Node, Door]) -> None:
    with pytest.raises(NoSuchService, match=r"no service 'window'.*there are: door"):
        described(door[0], "window")


def test_replicas_that_differ_are_told(door: tuple[Node, Door]) -> None:
    class NewDoor(DataService):
        openings = Table("number")

        @rpc
        def ring(self, times: str) -> str:
            return times

    node, _ = door
    with Node(str(node.url), node_id="shed", services=[NewDoor("door")]):
        differences = described(node).services[0].differences
    assert "table openings: other columns on shed: number" in differences
    assert "method ring: on shed it is ring(times: str) -> str" in differences
    assert "method lie: not on shed" in differences


def test_markdown_shows_tables_and_methods(door: tuple[Node, Door]) -> None:
    node, service = door
    service.openings.replace([(1, "ann", None), (2, "bob", 3.5)])
    text = markdown(described(node))
    assert "| `at` | `float or None` |" in text
    assert "| `who` | `str` | `'nobody'` |" in text
    assert "| `times` | `int` | must be given |" in text
    assert "> Ring the bell." in text


def hostile_bus() -> BusDescription:
    bad = "`|</script>\n# Owned\x1b[31m"
    info = DataServiceInfo(
        bad, bad, {bad: (bad,)}, ((bad, bad),), {bad: MethodInfo("(a='`|\\n') -> int", f'"""{bad}"""', False)}
    )
    return BusDescription(bad, "redis://host", (_service(bad, [info], {}),))


def test_markdown_shows_whatever_the_bus_says_as_text() -> None:
    text = markdown(hostile_bus())
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("# Owned")]
    assert "\n</script>" not in text
    assert "\\</script\\>" in text


def test_an_asyncapi_document_can_be_written_of_any_bus() -> None:
    document = json.loads(json.dumps(asyncapi(hostile_bus())))
    assert all(c.isascii() and (c.isalnum() or c in ".-_") for name in document["channels"] for c in name)


# Clients


def test_a_client_calls_what_it_was_written_for(door: tuple[Node, Door], load: Callable[[str], ModuleType]) -> None:
    node, _ = door
    client = load(client_module(described(node, "door").services[0])).Door(node)
    assert client.ring(times=2) == "nobody rang 2 times"
    assert client.ring(times=2, who="ann") == "ann rang 2 times"
    assert client.span(days=[3, 1, 2]) == (1, 3)  # a tuple travels as a list, and is one again
    assert client.birthday() == datetime.date(2026, 11, 25)
    client.shut()
    with pytest.raises(RpcError, match=r"door\.lie returned what its annotation does not allow"):
        client.lie()


def test_an_asynchronous_client(door: tuple[Node, Door], load: Callable[[str], ModuleType]) -> None:
    node, _ = door
    client = load(client_module(described(node, "door").services[0], asynchronous=True)).Door(node)
    assert asyncio.run(client.span(days=[3, 1])) == (1, 3)


def test_an_outdated_client_stops_where_it_starts(door: tuple[Node, Door], load: Callable[[str], ModuleType]) -> None:
    class NewDoor(DataService):
        openings = Table("number", "whom", "at")

        @rpc
        def ring(self, times: str, how: str, who: str = "nobody", more: int = 0) -> int:
            return 1

    old = load(client_module(described(door[0], "door").services[0]))
    with (
        Node(f"fake://{uuid.uuid4().hex}", node_id="shed", services=[NewDoor("door")]) as node,
        pytest.raises(ConfigError) as caught,
    ):
        old.Door(node)
    message = str(caught.value)
    assert "method ring: the argument how is new, and must be given" in message
    assert "method ring: the argument times is str, not int" in message
    assert "method ring: it returns int, not str" in message
    assert "there is no method shut on shed" in message
    assert "table openings has the columns number, whom, at, not number, who, at" in message
    assert "dse describe --client door" in message
    assert "more" not in message  # what has been added does no harm


def test_a_client_of_a_service_that_does_not_come(door: tuple[Node, Door], load: Callable[[str], ModuleType]) -> None:
    source = load(client_module(described(door[0], "door").services[0]))
    with Node(f"fake://{uuid.uuid4().hex}") as alone, pytest.raises(TimeoutError, match="door"):
        source.Door(alone, wait=0.05)


def test_mypy_accepts_a_client_and_finds_a_wrong_call(door: tuple[Node, Door], tmp_path: Path) -> None:
    (tmp_path / "door.py").write_text(client_module(described(door[0], "door").services[0]))
    (tmp_path / "right.py").write_text(
        "from dse import Node\nfrom door import Door\n\n"
        "def use(node: Node) -> tuple[int, int]:\n"
        "    Door(node).ring(times=1, who='ann').upper()\n"
        "    return Door(node).span(days=[1])\n"
    )
    (tmp_path / "wrong.py").write_text(
        "from dse import Node\nfrom door import Door\n\n"
        "def use(node: Node) -> int:\n"
        "    return Door(node).ring(times='one')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "door.py", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MYPYPATH": str(Path(dse.__file__).parents[1])},
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("wrong.py:")] == []
    assert any('incompatible type "str"; expected "int"' in line for line in lines), done.stdout
    assert any('got "str", expected "int"' in line for line in lines), done.stdout


@given(
    st.builds(
        MethodInfo,
        st.sampled_from(["()", "(a)", "(self: int, a: Widget = 3) -> list[int]", '(a: str = "x\'") -> None']),
        st.text(),
    )
)
def test_no_documentation_breaks_out_of_a_client(method: MethodInfo) -> None:
    info = DataServiceInfo("door", "house", {}, (), {"ring": method})
    module = ast.parse(client_module(_service("door", [info], {})))
    (client,) = (each for each in module.body if isinstance(each, ast.ClassDef))
    head = [ast.Expr, ast.ImportFrom, ast.Import, ast.ImportFrom, ast.Assign]
    assert [type(each) for each in module.body[:-1]] == head
    assert {type(each) for each in client.body} == {ast.Expr, ast.Assign, ast.AnnAssign, ast.FunctionDef}


@pytest.mark.parametrize("name", ["class", "__init__", "a b", "x():\n  pass\ndef y"])
def test_a_method_that_no_client_can_have_is_refused(name: str) -> None:
    info = DataServiceInfo("door", "house", {}, (), {name: MethodInfo("()")})
    with pytest.raises(ConfigError):
        client_module(_service("door", [info], {}))


def test_a_service_without_methods_has_a_client() -> None:
    service = ServiceDescription("a_b", ("n",), (TableDescription("t", ("c",), (frozenset(),)),), (), (), ())
    source = client_module(service)
    assert "class AB(ServiceClient):" in source
    compile(source, "client", "exec")
    assert ServiceClient.__doc__
