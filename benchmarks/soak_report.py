"""What a soak's figures say: the verdict, the table, the plots and the page. See `soak.py`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 1 / 3  # of the soak, in which caches fill and allocators find their size
LONG_ENOUGH = 240.0  # seconds of a soak whose memory is judged: a shorter one has not warmed up
GROWTH = {"in use by": 4.0, "memory of": 10.0}  # MB an hour that a process, or the broker, may seem to grow
SPREAD = 0.05  # by which the median of the resident pages may be higher at the end of the soak than before
MB = 1 << 20


@dataclass(frozen=True)
class Line:
    """One thing that was to be flat: what was measured, and whether it is."""

    ok: bool
    what: str
    figures: str


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points (Theil 1950, Sen 1968), a second.

    Up to 29 of 100 points may be anything without changing it much: a peak is not taken for a trend.
    """
    pairs = itertools.combinations(points, 2)
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


def verdict(record: dict[str, Any]) -> list[Line]:
    """Judge one driver's record.

    Threads, descriptors and broker objects at every quiet point must equal those at the first, before any churn. The
    memory of the broker after the warm-up, churn and quiet alike, may rise by `GROWTH` at most, and so may what a
    process has in use at the quiet points. Its resident pages there may spread by `SPREAD`.
    """
    lines = [Line(False, "went through", failure) for failure in record["failures"]]
    quiet, samples = record["quiet"], record["samples"]
    if len(quiet) < 2 or not samples:
        return [*lines, Line(False, "went through", "there are not enough measurements")]
    for what, counts in _counts(quiet).items():
        lines.append(Line(len(set(counts)) == 1, what, _brief(counts)))
    everything = sorted([*samples, *quiet], key=lambda held: held["at"])
    end = everything[-1]["at"]
    if end >= LONG_ENOUGH:
        late = [held for held in everything if held["at"] >= end * WARM_UP]
        for what, points in _memory(late, [held for held in quiet if held["at"] >= end * WARM_UP]).items():
            lines.append(_judge(what, points))
    done = record.get("done", {})
    for job in ("change", "call", "node", "service", "subscription"):
        lines.append(Line(done.get(job, 0) > 0, f"{job}s", str(done.get(job, 0))))
    return lines


def _judge(what: str, points: Sequence[tuple[float, float]]) -> Line:
    sizes = [size / MB for _, size in points]
    figures = f"{statistics.median(sizes):.1f} MB, "
    for kind, limit in GROWTH.items():
        if what.startswith(kind):
            rise = slope(points) * 3600 / MB
            return Line(rise <= limit, what, f"{figures}rising by {rise:+.1f} MB an hour")
    half = len(sizes) // 2
    spread = statistics.median(sizes[half:]) / statistics.median(sizes[:half]) - 1
    return Line(spread <= SPREAD, what, f"{figures}at the end {spread:+.1%}")


def grown(record: dict[str, Any]) -> list[str]:
    """Say which Python objects each process has more of at the last quiet point than after the warm-up."""
    quiet = record["quiet"]
    first = quiet[min(len(quiet) - 1, 1 + int(len(quiet) * WARM_UP))]
    out = []
    for name, process in quiet[-1]["processes"].items():
        before = first["processes"][name]["kinds"]
        more = {kind: count - before.get(kind, 0) for kind, count in process["kinds"].items()}
        most = sorted(((count, kind) for kind, count in more.items() if count > 20), reverse=True)[:8]
        out.append(f"{name}: {', '.join(f'{count:+} {kind}' for count, kind in most) or 'none'}")
    return out


def _counts(quiet: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for held in quiet:
        for name, process in held["processes"].items():
            for what in ("threads", "descriptors"):
                counts.setdefault(f"{what} of {name}", []).append(process[what])
        for what, count in held["broker"].items():
            if what != "memory":
                counts.setdefault(f"{what} on the broker", []).append(count)
    return counts


def _memory(late: Iterable[dict[str, Any]], quiet: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for each in quiet:
        for name, process in each["processes"].items():
            points.setdefault(f"in use by {name}", []).append((each["at"], process["in_use"]))
            points.setdefault(f"resident pages of {name}", []).append((each["at"], process["rss"]))
    for each in late:
        if "memory" in each["broker"]:
            points.setdefault("memory of the broker", []).append((each["at"], each["broker"]["memory"]))
    return points


def _brief(counts: Sequence[int]) -> str:
    if len(set(counts)) == 1:
        return f"{counts[0]} at each of {len(counts)} quiet points"
    return f"{', '.join(map(str, counts))} at the quiet points"


def text(records: Sequence[dict[str, Any]], verdicts: dict[str, list[Line]]) -> str:
    """Return all verdicts for a terminal."""
    out = []
    for record in records:
        driver = record["driver"]
        out += [f"{driver}: {_events(record)}; users met {_refused(record)}"]
        out += [f"  {'ok  ' if line.ok else 'NOT '} {line.what:28} {line.figures}" for line in verdicts[driver]]
        if len(record["quiet"]) > 1:
            seconds = record["quiet"][-1]["at"]
            out += [f"  Python objects, more of after {seconds:.0f} s in {line}" for line in grown(record)]
    return "\n".join(out)


def _events(record: dict[str, Any]) -> str:
    kinds = [kind for _, kind in record["events"]]
    rounds = len(record["quiet"]) - 1
    return f"{rounds} rounds, {kinds.count('cut')} cuts, {kinds.count('kill')} processes killed"


def _refused(record: dict[str, Any]) -> str:
    refused = record.get("refused", {})
    return ", ".join(f"{count} {name}" for name, count in sorted(refused.items())) or "no errors"


def write(folder: Path, records: Sequence[dict[str, Any]], verdicts: dict[str, list[Line]], seconds: float) -> None:
    """Write a plot for each driver into the folder, and the page beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        _plot(record, folder / f"{record['driver']}.svg")
    parts = [
        _HEAD.format(
            minutes=round(seconds / 60), process=GROWTH["in use by"], broker=GROWTH["memory of"], spread=SPREAD
        )
    ]
    for record in records:
        driver = record["driver"]
        flat = "flat" if all(line.ok for line in verdicts[driver]) else "**not flat**"
        parts.append(f"## {driver}: {flat}\n\n{_events(record)}; users met {_refused(record)}.\n")
        parts.append("| what | figures | |\n| --- | --- | --- |")
        parts += [f"| {line.what} | {line.figures} | {'ok' if line.ok else '**not**'} |" for line in verdicts[driver]]
        parts.append(f"\n![{driver}]({folder.name}/{driver}.svg)\n")
    folder.with_suffix(".md").write_text("\n".join(parts))


_HEAD = """# Soak

Written by `make soak`: {minutes} minutes on every driver at once, on one machine. Two nodes stay, each in a process of
its own (on `fake://` in one). All the time each changes its table and calls the other about 25 times a second, and lets
nodes, services (each under a name of its own) and subscriptions come and go. Once a round a process with a node is
killed, and the connections to the broker are cut. After each round everything that came goes again.

- *Quiet points*: before the first round and after each. Threads, descriptors (sockets and all) and broker objects must
  be the same at all of them.
- *Memory in use* by a process, which is what was allocated and not freed (`mallinfo2`), may rise by {process:g} MB an
  hour at the quiet points after the first third, and all that the broker says it uses by {broker:g}, in churn and quiet
  alike; that is the median of the slopes between all pairs of measurements (Theil, Sen). On `fake://` the list of the
  measurements is in the same process and grows with them.
- *Resident pages*, after free ones were given back (`malloc_trim`), may be {spread:.0%} more in the second half of that
  time than in the first. A page stays when anything on it is in use, so their number follows the highest peak that
  chance has brought so far, which goes on rising for hours, slower and slower: it says little about what is held.

Errors that users met are what the cuts cost. In the plots, quiet points are shaded, cuts red and kills grey.
"""


def _plot(record: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "font.size": 8, "svg.hashsalt": "soak"})
    import matplotlib.pyplot as plt

    held = sorted([*record["samples"], *record["quiet"]], key=lambda each: each["at"])
    figure, axes = plt.subplots(4, 2, figsize=(9, 9.5), sharex=True)
    times = [each["at"] for each in held]
    panels = (
        ("in_use", "memory in use, MB", MB),
        ("rss", "resident pages, MB", MB),
        ("objects", "Python objects", 1),
        ("threads", "threads", 1),
    )
    for axis, (what, title, unit) in zip(axes.flat, panels, strict=False):
        _lines(axis, title, times, {n: [e["processes"][n][what] / unit for e in held] for n in held[0]["processes"]})
    descriptors = {n: [e["processes"][n]["descriptors"] for e in held] for n in held[0]["processes"]}
    _lines(axes[2][0], "descriptors", times, descriptors)
    kinds = sorted({kind for each in held for kind in each["broker"]} - {"memory"})
    objects = {kind: [each["broker"].get(kind, 0) for each in held] for kind in kinds}
    _lines(axes[2][1], "objects on the broker", times, objects)
    if "memory" in held[0]["broker"]:
        _lines(axes[3][0], "broker's memory, MB", times, {"": [each["broker"]["memory"] / MB for each in held]})
    else:
        axes[3][0].set_axis_off()
    axes[3][1].set_axis_off()
    for axis in axes.flat:
        for each in record["quiet"]:
            axis.axvspan(each["at"] - 4, each["at"], color="0.9", lw=0)
        for at, kind in record["events"]:
            axis.axvline(at, color="tab:red" if kind == "cut" else "0.6", lw=0.5)
    for axis in axes[3]:
        axis.set_xlabel("seconds")
    figure.suptitle(f"Soak on {record['driver']}://")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _lines(axis: Any, title: str, times: Sequence[float], curves: dict[str, Sequence[float]]) -> None:
    for name, values in curves.items():
        axis.plot(times, values, lw=0.9, label=name)
    axis.set_title(title)
    axis.set_ylim(bottom=0)
    if len(curves) > 1 or "" not in curves:
        axis.legend(fontsize=6, loc="lower right", ncols=3)
