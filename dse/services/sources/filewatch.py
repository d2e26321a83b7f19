"""Watching the folders in which a file is or will be, by the system's events (watchfiles)."""

from __future__ import annotations

import glob
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

try:
    import watchfiles
except ImportError:
    watchfiles = None  # type: ignore[assignment]

__all__ = ["Watcher", "have_watchfiles"]

_log = logging.getLogger("dse.source")

_STEP = 20  # milliseconds for which events are gathered
_CHECK = 1_000  # milliseconds between two looks whether the watched folders are still those that matter


def have_watchfiles() -> bool:
    """Say whether watchfiles can be imported."""
    return watchfiles is not None


class Watcher:
    """Calls back when something happens near a path, from a thread of its own between `start` and `stop`.

    Folders are watched, not files: so a file that is replaced, made or removed is seen, and one in a folder that is not
    there yet, and one behind a symbolic link that is swapped. Where the system refuses to watch it calls back every
    `interval` seconds.
    """

    def __init__(self, name: str, path: str, pattern: bool, changed: Callable[[], None], interval: float) -> None:
        self._name, self._path, self._pattern = name, os.path.abspath(path), pattern
        self._changed, self._interval = changed, interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch from now on."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{self._name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; the thread has ended when this returns."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            folders = watched_folders(self._path, self._pattern)
            try:
                self._watch(folders)
            except Exception as error:  # the system's limit of watches, a folder that went meanwhile
                if folders == watched_folders(self._path, self._pattern):
                    _log.debug("%s: cannot be watched, looked at instead: %s", self._path, error)
                self._stop.wait(self._interval)
            self._changed()

    def _watch(self, folders: dict[str, tuple[int, int]]) -> None:
        """Watch folders until they are not those that matter any more."""
        fresh = True
        for events in watchfiles.watch(
            *folders,
            watch_filter=None,
            debounce=_STEP * 5,
            step=_STEP,
            stop_event=self._stop,
            rust_timeout=_CHECK,
            yield_on_timeout=True,
            recursive=False,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            # What happened before the watches were in place brings no event: hence one look more.
            if events or fresh:
                self._changed()
            fresh = False
            if watched_folders(self._path, self._pattern) != folders:
                return


def watched_folders(path: str, pattern: bool) -> dict[str, tuple[int, int]]:
    """Return the folders whose events may concern a path, and which folder each is now (device, inode)."""
    folders: set[str] = set()
    paths = [path]
    if pattern:
        parts = Path(path).parts
        for length in range(1, len(parts)):
            part = str(Path(*parts[:length]))
            if glob.has_magic(part) or glob.has_magic(parts[length]):
                folders.update(found for found in glob.iglob(part, recursive=True) if os.path.isdir(found))
        paths = glob.glob(path, recursive=True) or [path]
    for each in paths:
        folders.update(_around(Path(each)))
    known = {}
    for folder in folders:
        try:
            info = os.stat(folder)
        except OSError:
            continue
        known[folder] = (info.st_dev, info.st_ino)
    return known


def _around(path: Path) -> set[str]:
    """Return the nearest folder there is, and the folders of each symbolic link on the way."""
    folders = set()
    for _ in range(40):  # as many links as the system follows
        nearest = path.parent
        while not nearest.is_dir() and nearest != nearest.parent:
            nearest = nearest.parent
        folders.add(str(nearest))
        folders.update(str(link.parent) for link in path.parents if link.is_symlink())
        if not path.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
    return folders
