"""`dse describe` against a real broker, and its AsyncAPI documents against the AsyncAPI project's own parser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dse import DataService, Node, Table, rpc
from dse.testing.brokers import Broker

PARSER = os.environ.get("DSE_TEST_ASYNCAPI")
"""The folder with the parser in its ``node_modules``; `make test` says where."""

HERE = Path(__file__).parent


class Shop(DataService):
    stock = Table("article", "count", "price")
    photos = Table("article", "jpeg")

    @rpc(idempotent=True)
    def price(self, article: str, currency: str | None = None) -> float:
        """What it costs."""
        return 1.5

    @rpc
    def order(self, articles: dict[str, int], *, urgent: bool = False) -> tuple[str, list[int]]:
        return "n1", [1]

    @rpc
    def größe(self, artikel: str) -> int:
        return 1


@pytest.fixture
def shop(redis_server: Broker) -> Iterator[list[str]]:
    """A service on a bus of its own; the options that lead there."""
    bus = f"bus-{uuid.uuid4().hex[:8]}"
    service = Shop("shop")
    service.stock.replace([("pear", 3, 0.5), ("fig", None, 1)])
    service.photos.replace([("pear", b"\xff\xd8")])
    with Node(redis_server.url, bus=bus, node_id="n1", services=[service]):
        yield ["--transport", redis_server.url, "--bus", bus]


def dse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dse.cli.main", *arguments], capture_output=True, text=True, timeout=60
    )


def written(*arguments: str) -> str:
    done = dse("describe", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_markdown_has_tables_types_and_methods(shop: list[str]) -> None:
    text = written(*shop)
    assert "## shop" in text
    assert "| `count` | `int or None` |" in text
    assert "| `jpeg` | `bytes` |" in text
    assert "| `currency` | `str \\| None` | `None` |" in text
    assert "> What it costs." in text


def test_json_is_the_same_for_programs(shop: list[str]) -> None:
    (shop_said,) = json.loads(written("--json", *shop))["services"].values()
    assert shop_said["tables"]["stock"] == {"article": ["str"], "count": ["None", "int"], "price": ["float", "int"]}
    assert shop_said["methods"]["price"]["arguments"][0] == {
        "name": "article",
        "type": "str",
        "default": None,
        "required": True,
    }


def test_a_file_is_written_whole(shop: list[str], tmp_path: Path) -> None:
    into = tmp_path / "bus.md"
    into.write_text("before")
    assert written("--output", str(into), *shop) == ""
    assert into.read_text() == written(*shop)
    assert list(tmp_path.iterdir()) == [into]


def test_a_client_module_works_in_a_program_of_its_own(shop: list[str], tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(written("--client", "shop", *shop))
    program = (
        "import sys; from dse import Observer; from shop import Shop\n"
        "with Observer(sys.argv[1], bus=sys.argv[2]) as bus: print(Shop(bus).order(articles={'fig': 2}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, shop[1], shop[3]], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("('n1', [1])\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["window"], "no service 'window' on the bus"),
        (["--client", "shpo"], "there are: shop"),
        (["--client", "shop", "--format", "asyncapi"], "--client SERVICE goes without other services"),
        (["--async"], "--async is of --client"),
        (["--output", "/nonexistent/bus.md"], "/nonexistent/bus.md cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_described_is_said_in_a_line(shop: list[str], arguments: list[str], says: str) -> None:
    done = dse("describe", *arguments, *shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(PARSER is None, reason="DSE_TEST_ASYNCAPI does not name a folder with @asyncapi/parser")
def test_asyncapi_documents_satisfy_the_asyncapi_projects_own_parser(shop: list[str]) -> None:
    document = written("--format", "asyncapi", *shop)
    verdict = validated(document)
    assert verdict["valid"], verdict["said"]
    assert [each for each in verdict["said"] if each["severity"] < 2] == []  # 0 is an error, 1 a warning
    assert "shop.price.call" in verdict["operations"]
    assert "shop.stock.publish" in verdict["operations"]


@pytest.mark.skipif(PARSER is None, reason="DSE_TEST_ASYNCAPI does not name a folder with @asyncapi/parser")
def test_the_parser_would_find_a_wrong_document(shop: list[str]) -> None:
    document = json.loads(written("--format", "asyncapi", *shop))
    document["operations"]["shop.price.call"]["action"] = "answer"
    assert not validated(json.dumps(document))["valid"]


def validated(document: str) -> Any:
    node = shutil.which("node")
    assert node is not None
    assert PARSER is not None
    done = subprocess.run(
        [node, str(HERE / "asyncapi" / "validate.mjs"), PARSER],
        input=document,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
