"""The figures of a run as a page with plots."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from compare.ratios import Verdict

__all__ = ["table", "write"]


def table(verdicts: list[Verdict]) -> str:
    """Return the verdicts as a Markdown table."""
    lines = ["| measure | limit | measured | |", "| --- | --- | --- | --- |"]
    for verdict in verdicts:
        value = "not measured" if verdict.value is None else f"{verdict.value:.2f}"
        lines.append(
            f"| {verdict.ratio.what} | {verdict.ratio.limit} | {value} | {'ok' if verdict.good else 'MISSED'} |"
        )
    return "\n".join(lines)


def write(folder: Path, results: dict[str, Any], absent: dict[str, str], verdicts: list[Verdict], took: float) -> None:
    """Write the figures (results.json, results.md) and the plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    parts = [
        "# Figures of the last full run",
        f"`make bench`, {took / 60:.0f} minutes, Python {platform.python_version()}, {os.cpu_count()} cores.",
        table(verdicts),
        *_pages(results),
    ]
    if absent:
        parts.append("Not there:\n\n" + "\n".join(f"- {name}: {why.splitlines()[-1]}" for name, why in absent.items()))
    (folder / "results.md").write_text("\n\n".join(parts) + "\n")
    _plot(folder, results)


def _pages(results: dict[str, Any]) -> list[str]:
    pages = []
    if rpc := results.get("rpc"):
        modes = [f"{mode} {at_once}" for mode in ("threads", "window") for at_once in (1, 16, 128)]
        head = "| | median us | p99 us | " + " | ".join(f"{mode}, 1/s" for mode in modes) + " |"
        lines = ["## RPC", "", head, "| --- " * (3 + len(modes)) + "|"]
        for name, got in rpc.items():
            rates = " | ".join(f"{got[mode]:,.0f}" if mode in got else "–" for mode in modes)
            lines.append(f"| {name} | {got['median'] * 1e6:,.0f} | {got['p99'] * 1e6:,.0f} | {rates} |")
        pages.append("\n".join(lines))
    if fanout := results.get("fanout"):
        lines = [
            "## Fan-out",
            "",
            "Messages of 10 rows a second, until all receivers have them: median (slowest round).",
            "",
        ]
        lines += ["| | to 1 | to 8 | to 32 |", "| --- | --- | --- | --- |"]
        for name, got in fanout.items():
            rates = " | ".join(
                f"{got[n]:,.0f} ({got[f'slowest to {n}']:,.0f})" if n in got else "–" for n in ("1", "8", "32")
            )
            lines.append(f"| {name} | {rates} |")
        pages.append("\n".join(lines))
    if changes := results.get("changes"):
        lines = [
            "## Changes",
            "",
            "What they take their publisher. A replacement, and a set difference, are of a million rows.",
        ]
        lines += ["", "| | median us | p99 us |", "| --- | --- | --- |"]
        lines += [_spread(f"10 rows, table of {int(n):,}", got) for n, got in changes["by table size"].items()]
        lines += [_spread(f"{int(n):,} rows, table of 1,000", got) for n, got in changes["by size"].items()]
        lines += [f"| {what} | {changes[what] * 1e6:,.0f} | |" for what in ("replace", "difference")]
        pages.append("\n".join(lines))
    if load := results.get("load"):
        lines = ["## Changes, by tables and subscribers", ""]
        lines += [
            "What a change of 10 rows, sent by itself, takes its publisher, and the processor time of that process."
        ]
        lines += ["", "| | median us | p99 us | processor us |", "| --- | --- | --- | --- |"]
        for broker, figures in load.items():
            for what, of in (("tables", "{} tables, one subscriber"), ("subscribers", "one table, {} subscribers")):
                for n, got in sorted(figures[what].items(), key=lambda each: int(each[0])):
                    if what == "tables" or n != "1":
                        lines.append(f"{_spread(f'{broker}: {of.format(n)}', got)} {got['cpu'] * 1e6:,.0f} |")
        pages.append("\n".join(lines))
    if sync := results.get("sync"):
        lines = ["## First sync of 1,000,000 rows", "", "| | |", "| --- | --- |"]
        lines += [
            f"| {k} | {v / 1e6:,.0f} MB |" if k.startswith("memory") else f"| {k} | {v:.2f} s |"
            for k, v in sync.items()
        ]
        pages.append("\n".join(lines))
    if idle := results.get("idle"):
        lines = ["## Idle nodes", "", "Percent of one core, by the number of tables that another node follows.", ""]
        lines += ["| | 1 | 100 | 1,000 |", "| --- | --- | --- | --- |"]
        for name, got in idle.items():
            lines.append(f"| {name} | " + " | ".join(f"{got[n] * 100:.2f}" for n in ("1", "100", "1000")) + " |")
        pages.append("\n".join(lines))
    if services := results.get("services"):
        lines = ["## 500 services, 1,000 tables", "", "| | start s | call us, one service | p99 | call us, 500 | p99 |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for name, got in services.items():
            calls = " | ".join(
                f"{got[f'call, {of}'] * 1e6:,.0f} | {got[f'p99, {of}'] * 1e6:,.0f}"
                for of in ("one service", "500 services")
            )
            lines.append(f"| {name} | {got['start']:.2f} | {calls} |")
        pages.append("\n".join(lines))
    return pages


def _spread(what: str, got: dict[str, float]) -> str:
    return f"| {what} | {got['median'] * 1e6:,.0f} | {got['p99'] * 1e6:,.0f} |"


def _plot(folder: Path, results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def bars(name: str, title: str, figures: dict[str, float], unit: str) -> None:
        shown = {who: value for who, value in figures.items() if value}
        figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(shown) + 1.2))
        colours = ["tab:blue" if who.startswith("DSE") else "tab:grey" for who in shown]
        drawn = axes.barh(list(shown), list(shown.values()), color=colours)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel(unit)
        axes.set_title(title)
        axes.invert_yaxis()
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        pyplot.close(figure)

    def curves(name: str, title: str, figures: dict[str, dict[str, float]], what: str, unit: str) -> None:
        figure, axes = pyplot.subplots(figsize=(8, 4))
        for who, got in figures.items():
            axes.plot([int(number) for number in got], list(got.values()), "o-" if "DSE" in who else "s--", label=who)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(what)
        axes.set_ylabel(unit)
        axes.set_title(title)
        axes.legend()
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        pyplot.close(figure)

    if rpc := results.get("rpc"):
        bars(
            "rpc", "RPC, one at a time: median", {who: got["median"] * 1e6 for who, got in rpc.items()}, "microseconds"
        )
        rates = {who: got.get("threads 16", 0.0) for who, got in rpc.items()}
        bars("rpc16", "RPC, 16 at once", rates, "calls a second")
    if fanout := results.get("fanout"):
        rates = {who: got.get("8", 0.0) for who, got in fanout.items()}
        bars("fanout", "Messages of 10 rows to 8 receivers", rates, "messages a second to all")
        by_receivers = {who: {n: got[n] for n in ("1", "8", "32") if n in got} for who, got in fanout.items()}
        curves(
            "subscribers", "Messages of 10 rows, by receivers", by_receivers, "receivers", "messages a second to all"
        )
    if changes := results.get("changes"):
        by_rows = {
            f"DSE, by rows of the {what}": {n: got["median"] * 1e6 for n, got in changes[key].items()}
            for what, key in (("change", "by size"), ("table (10 are changed)", "by table size"))
        }
        curves("changes", "A change, by its rows and by the table's", by_rows, "rows", "microseconds for the publisher")
    if load := results.get("load"):
        by_count = {
            f"DSE {broker}, by {what}": {
                n: got["median"] * 1e6 for n, got in sorted(figures[what].items(), key=lambda each: int(each[0]))
            }
            for broker, figures in load.items()
            for what in ("tables", "subscribers")
        }
        curves(
            "load",
            "A change of 10 rows, by tables and subscribers",
            by_count,
            "tables or subscribers",
            "microseconds for the publisher",
        )
    if idle := results.get("idle"):
        by_tables = {f"DSE {broker}": {n: share * 100 for n, share in got.items()} for broker, got in idle.items()}
        curves("idle", "An idle node", by_tables, "tables that are followed", "percent of a core")
