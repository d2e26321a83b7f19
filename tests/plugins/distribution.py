"""A distribution with service plugins, as a third party would install it: a module, and metadata beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from stevedore import ExtensionManager

__all__ = ["install", "installed"]


def install(folder: Path, name: str, code: str, plugins: Mapping[str, str], **groups: Mapping[str, str]) -> Path:
    """Write the distribution `name` into a folder that is to be on ``sys.path``; return the folder.

    code: of its one module, which is called like it. plugins: entry points of services, as in
    ``{"rooms": "rooms_dist:Rooms"}``; groups: those of others, as in ``transports={"mybus": "mybus_dist:MyBus"}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in {"services": plugins, **groups}.items():
        lines += [f"[dse.{group}]", *(f"{plugin} = {target}" for plugin, target in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The distributions in a folder are installed for this process, for so long."""
    modules = {path.stem for path in folder.glob("*.py")}
    sys.path.insert(0, str(folder))
    ExtensionManager.ENTRY_POINT_CACHE.clear()  # stevedore looks but once
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        ExtensionManager.ENTRY_POINT_CACHE.clear()
        for name in modules:
            sys.modules.pop(name, None)
