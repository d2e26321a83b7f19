"""Run the fuzzers, coverage-guided, so many seconds each, as many at once as there are cores: `make fuzz`.

A process a fuzzer, driven by atheris. Inputs that found new ways are kept in build/fuzz/<target>/ for the next run;
findings are kept in build/fuzz/findings/<target>/ and printed: to make one a regression test, move its file to
tests/fuzz/corpus/<target>/. Ends with 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fuzz.engine import CORPUS, NAMES, Finding, Watched, load, name_of

GROWTH = 100 << 20
"""Bytes that a process may grow by, from a quarter of its time to its end; what atheris keeps is part of it."""

LONGEST_INPUT = 1 << 14
_HANG = 20  # seconds of an input after which its process is ended
_FINDINGS = 20  # of a target that are kept
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Worker:
    """One target in this process; says how it stands twice a second, for atheris ends the process by itself."""

    def __init__(self, name: str, seconds: float, folder: Path) -> None:
        import atheris

        self._atheris: Any = atheris
        with atheris.instrument_imports(include=["dse", "dse_nats"], enable_loader_override=False):
            self._target = load(name)
        self._watched = Watched(self._target.run)
        self._folder, self._name = folder, name
        self._began = time.monotonic()
        self._seconds = seconds
        self._told_at = 0.0
        self._warm = 0
        self._found: dict[str, str] = {}

    def run(self) -> None:
        """Fuzz; does not return."""
        corpus = self._folder / self._name
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in self._target.SEEDS:
            (corpus / name_of(seed)).write_bytes(seed)
        known = CORPUS / self._name
        artifacts = self._folder / "findings" / self._name
        artifacts.mkdir(parents=True, exist_ok=True)
        arguments = [
            sys.argv[0], f"-max_total_time={int(self._seconds)}", f"-max_len={LONGEST_INPUT}", f"-timeout={_HANG}",
            "-rss_limit_mb=4096", f"-artifact_prefix={artifacts}/", "-verbosity=0", str(corpus),
            *([str(known)] if known.is_dir() else []),
        ]  # fmt: skip
        self._atheris.Setup(arguments, self._one)
        self._atheris.Fuzz()

    def _one(self, data: bytes) -> None:
        try:
            self._watched(data)
        except Finding as finding:
            self._keep(finding)
        now = time.monotonic()
        if now - self._told_at > 0.5:
            self._told_at = now
            self._tell(now - self._began)

    def _keep(self, finding: Finding) -> None:
        why = finding.why.strip().splitlines()
        kind = " | ".join(why[-3:])[:200]
        if kind not in self._found and len(self._found) < _FINDINGS:
            path = self._folder / "findings" / self._name / name_of(finding.data)
            path.write_bytes(finding.data)
            path.with_suffix(".txt").write_text(f"{finding.data!r}\n\n{finding.why}\n")
            self._found[kind] = str(path)

    def _tell(self, elapsed: float) -> None:
        memory = resident()
        if not self._warm and elapsed > self._seconds / 4:
            self._warm = memory
        stats = {
            "inputs": self._watched.inputs,
            "seconds": elapsed,
            "slowest": self._watched.slowest,
            "grown": memory - self._warm if self._warm else 0,
            "resident": memory,
            "found": self._found,
        }
        path = self._folder / f"{self._name}.json"
        path.with_suffix(".new").write_text(json.dumps(stats))
        path.with_suffix(".new").replace(path)


def run_all(names: list[str], seconds: float, folder: Path, at_once: int) -> int:
    """Run the targets; return how many findings there were."""
    waiting, running, done = list(names), {}, []
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            (folder / f"{name}.json").unlink(missing_ok=True)
            log = (folder / f"{name}.log").open("wb")
            options = ["--worker", name, "--seconds", str(seconds), "--folder", str(folder)]
            command = [sys.executable, "-m", "fuzz", *options]
            running[name] = subprocess.Popen(command, stdout=log, stderr=log)
            log.close()
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                done.append((name, process.returncode))
                print(f"{name}: done ({len(done)} of {len(names)})", flush=True)
        time.sleep(0.2)
    return _report(done, folder)


def _report(done: list[tuple[str, int]], folder: Path) -> int:
    findings = 0
    print(f"\n{'fuzzer':12} {'inputs':>12} {'a second':>10} {'slowest':>10} {'grown':>10} {'findings':>9}")
    for name, code in done:
        try:
            stats = json.loads((folder / f"{name}.json").read_text())
        except FileNotFoundError:
            stats = {"inputs": 0, "seconds": 0.0, "slowest": 0.0, "grown": 0, "found": {}}
        found = dict(stats["found"])
        if code:
            found[f"the process ended with {code}: see {folder / f'{name}.log'}"] = ""
        if stats["grown"] > GROWTH:
            found[f"memory grew by {stats['grown'] >> 20} MiB"] = ""
        findings += len(found)
        rate = stats["inputs"] / max(stats["seconds"], 0.001)
        print(f"{name:12} {stats['inputs']:12,} {rate:10,.0f} {stats['slowest'] * 1000:7.1f} ms "
              f"{stats['grown'] / 2**20:6.1f} MiB {len(found):9}")  # fmt: skip
        for kind, path in found.items():
            print(f"    {kind}")
            if path:
                print(f"    {path}: {Path(path).read_bytes()[:200]!r}")
    return findings


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Run the fuzzers.")
    parser.add_argument("names", nargs="*", help=f"targets: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where inputs and findings are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no fuzzer is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if options.worker:
        Worker(options.worker, options.seconds, options.folder).run()
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    return 1 if run_all(options.names or NAMES, options.seconds, options.folder, options.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
