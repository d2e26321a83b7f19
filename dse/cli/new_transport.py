"""`dse new-transport NAME`: a distribution with an empty driver, whose every place says which guarantee it is for.

The files are made from the templates beside this module (`templates/transport`), in which ``$name`` and ``$Name`` stand
for the name. docs/new-transport.md goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from dse import __version__
from dse.cli.text import clean
from dse.core.plugins import installed_transports
from dse.errors import ConfigError

__all__ = ["FILES", "add_command", "write_skeleton"]

_NAME = re.compile(r"[a-z][a-z0-9]*\Z")
_LONGEST = 30

FILES = {
    ".gitignore": "gitignore.in",
    "README.md": "README.md.in",
    "pyproject.toml": "pyproject.toml.in",
    "setup.cfg": "setup.cfg.in",
    "tox.ini": "tox.ini.in",
    "dse_$name/__init__.py": "package/__init__.py.in",
    "dse_$name/py.typed": "package/py.typed.in",
    "dse_$name/testing.py": "package/testing.py.in",
    "dse_$name/transport.py": "package/transport.py.in",
    "tests/test_contract.py": "tests/test_contract.py.in",
}
"""What is written, and the template that it is made from."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dse new-transport`."""
    new = commands.add_parser(
        "new-transport",
        help="the skeleton of a driver of your own, to fill in guarantee by guarantee",
        description="Write a distribution with the skeleton of a driver for NAME:// and its contract test. It installs "
        "as it is; each place that is yours to fill says so, by the guarantee it is for. See docs/new-transport.md.",
        epilog="exit codes: 0 written; 1 it failed on the way; 2 the name or the folder cannot be used",
    )
    new.add_argument("name", metavar="NAME", help="the scheme of the URLs: lower-case letters and digits, as in mybus")
    new.add_argument("--into", metavar="DIR", help="the folder to write it into, new or empty (default: ./dse-NAME)")
    new.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dse.cli.main import FAILED, say_error

    into = Path(options.into if options.into is not None else f"dse-{options.name}")
    try:
        write_skeleton(options.name, into)
    except OSError as error:
        say_error(clean(f"dse new-transport: cannot write {error.filename or into}: {error.strerror or error}"))
        return FAILED
    package = f"dse_{options.name}"
    print(clean(f"{into} has a driver for {options.name}://, with twelve guarantees to keep. Next:"))
    print(clean(f"  cd {into}"))
    print("  pip install -e '.[test]'")
    print("  pytest                        # each guarantee says that it is not implemented")
    print(f"  {package + '/testing.py':28}  # how tests start a private broker")
    print(f"  {package + '/transport.py':28}  # the driver; docs/new-transport.md of DSE goes through it")
    return 0


def write_skeleton(name: str, into: Path) -> None:
    """Write the skeleton of a driver for ``name://`` into a folder that is new or empty.

    Raises `ConfigError` for a name or a folder that cannot be used, and `OSError` when writing fails; then nothing is
    left of what was written.
    """
    _check_name(name)
    _check_folder(into)
    values = {"name": name, "Name": name.capitalize(), "versions": _versions(__version__)}
    templates = files("dse.cli") / "templates" / "transport"
    texts = {
        Template(path).substitute(values): Template((templates / source).read_text("utf-8")).substitute(values)
        for path, source in FILES.items()
    }
    made: list[Path] = []
    try:
        for path, text in texts.items():
            file = into / path
            made += _make_folders(file.parent)
            with file.open("x", encoding="utf-8", newline="\n") as out:
                made.append(file)
                out.write(text)
    except BaseException:
        _remove(made)
        raise


def _check_name(name: str) -> None:
    shown = repr(name[:_LONGEST])
    if not _NAME.match(name):
        folded = re.sub(r"[^a-z0-9]", "", name.lower()).lstrip("0123456789")
        meant = f"; did you mean {folded[:_LONGEST]!r}?" if folded else ""
        raise ConfigError(
            f"{shown} cannot be the scheme of a URL: it takes lower-case letters and digits, a letter first{meant}"
        )
    if len(name) > _LONGEST:
        raise ConfigError(f"the name {shown}… is longer than {_LONGEST} letters")
    installed = installed_transports()
    if name in installed:
        raise ConfigError(f"a transport {name!r} is installed already; installed are {', '.join(installed)}")
    if importlib.util.find_spec(f"dse_{name}") is not None:
        raise ConfigError(f"a package dse_{name} is installed already: choose another name")


def _check_folder(into: Path) -> None:
    try:
        if next(into.iterdir(), None) is not None:
            raise ConfigError(f"{into} is not empty: name another folder with --into")
    except FileNotFoundError:
        if into.is_symlink():
            raise ConfigError(f"{into} is a link that leads nowhere: name another folder with --into") from None
    except NotADirectoryError:
        raise ConfigError(f"{into} cannot be a folder: a file is in its way") from None
    except OSError as error:
        raise ConfigError(f"{into} cannot be used: {error.strerror or error}") from None


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing; return those made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made = []
    try:
        for each in reversed(missing):
            each.mkdir()
            made.append(each)
    except BaseException:
        _remove(made)
        raise
    return made


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _versions(version: str) -> str:
    """Return which releases of DSE a driver written for this one is for; before 1.0 a minor one may change the SPI."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"
