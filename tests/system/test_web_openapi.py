"""The gateway against what its OpenAPI document promises: schemathesis sends what that allows, and what not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dse import DataService, Node, Table, rpc
from dse.services.web import Limits, Web

schemathesis = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)


class Shop(DataService):
    stock = Table("article", "count", "jpeg")

    @rpc
    def price(self, article: str, count: int = 1, options: dict[str, list[int]] | None = None) -> float:
        """What it costs."""
        return 1.5

    @rpc
    def echo(self, value: int | str | None) -> int | str | None:
        return value


@schemathesis
@pytest.mark.timeout(180)
def test_the_gateway_does_what_its_document_says(tmp_path: Path) -> None:
    shop = Shop("shop")
    shop.stock.replace([("pear", 2**60, b"\xff"), ("fig", None, 1.5)])
    web = Web("web", port=0, allow=["shop.*"], limits=Limits(rate=10_000, burst=10_000))
    with Node(f"fake://{uuid.uuid4().hex}", node_id="n1", services=[shop, web]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{web.url}api/openapi.json"),
                *("--exclude-path-regex", "changes|events"),  # these do not end
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--checks", "all", "--no-color"),
                # Which columns a table has the document cannot say, so a filter that it allows may name none of them.
                *("--exclude-checks", "positive_data_acceptance"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=170,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"Tested: +10\b", done.stdout), done.stdout[-3000:]
