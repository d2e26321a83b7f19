"""What `make oslo-functional` says of the outcomes of oslo.messaging's own tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "oslo_functional.py"
    spec = importlib.util.spec_from_file_location("oslo_functional", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAME = "test_functional.CallTestCase.test_timeout"
LOGGER = "notify.test_logger.LoggingNotificationHandlerTestCase.test_logging(info,messaging)"


@pytest.mark.parametrize("name", [NAME, LOGGER])
@pytest.mark.parametrize(
    ("outcome", "is_listed", "wrong"),
    [
        ("passed", False, ""),
        ("passed", True, "passes, and docs/oslo.md says that it cannot"),
        ("failed", False, "is failed, and docs/oslo.md does not list it"),
        ("failed", True, ""),
        ("skipped", False, "is skipped, and docs/oslo.md does not list it"),
        ("skipped", True, ""),
    ],
)
def test_only_what_is_listed_may_fail_and_it_must(
    tool: ModuleType, name: str, outcome: str, is_listed: bool, wrong: str, tmp_path: Path
) -> None:
    tool.LISTED = tmp_path / "oslo.md"
    row = f"| `{name.removeprefix('test_functional.').removeprefix('notify.test_logger.')}` | because |\n"
    tool.LISTED.write_text(f"| cannot pass | why |\n| --- | --- |\n{row if is_listed else ''}\n")
    said = tool.judge("redis", {name: (outcome, 1.0, "trace")}, tool.listed())
    assert len(said) == bool(wrong)
    assert wrong in "".join(said)


def test_the_list_in_the_documentation_can_be_read(tool: ModuleType) -> None:
    assert "cannot pass" in tool.LISTED.read_text()
    assert tool.listed() == {}
