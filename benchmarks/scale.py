"""How the control bus scales: measure 10 to 10,000 simulated nodes, plot each figure against its law.

    python benchmarks/scale.py [--out docs] [NODES[:FULL NODES] ...]

Takes some minutes, most of it for 1,000 full nodes. Writes docs/scale/*.png and the table in docs/scale.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from dse.testing.simulation import laws
from dse.testing.simulation.scale import MASS_START, Figures, measure

SIZES = ("1000", "10000:16", "300", "3000:16", "1000:16", "100", "100:16", "30", "10")
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
LIMIT = 200
HEARTBEAT, CATALOGUE = 84, 700  # bytes
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#b07d12", "#6b4fa0")

Measured = Callable[[Figures], float | None]


def curve(axes: Axes, name: str, figures: Sequence[Figures], measured: Measured, law: Callable[[int], float]) -> None:
    """Draw a law as a line, and what was measured as points: filled for full buses, open for sampled ones."""
    colour = COLOURS[len(axes.get_lines()) // 3 % len(COLOURS)]
    sizes = [round(10 ** (1 + step / 30)) for step in range(91)]
    axes.plot(sizes, [law(size) for size in sizes], color=colour, linewidth=1.3, label=name)
    for full in (True, False):
        points = [(found.nodes, measured(found)) for found in figures if (found.full == found.nodes) is full]
        kept = [(nodes, value) for nodes, value in points if value is not None]
        axes.plot(
            [nodes for nodes, _ in kept],
            [value for _, value in kept],
            "o",
            markersize=5 if full else 8,
            color=colour,
            fillstyle="full" if full else "none",
        )


def finish(axes: Axes, title: str, unit: str, path: Path, logarithmic: bool = True) -> None:
    """Label a plot and write it."""
    axes.set(xscale="log", xlabel="nodes on the bus", ylabel=unit, title=title)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="line: the law; point: measured (open: sampled)", title_fontsize=7)
    figure = axes.figure
    figure.savefig(path, dpi=100, facecolor="white")  # type: ignore[union-attr]
    plt.close(figure)  # type: ignore[arg-type]


def plot(figures: Sequence[Figures], folder: Path) -> None:
    """Write the plots."""
    folder.mkdir(parents=True, exist_ok=True)

    def axes() -> Axes:
        return plt.subplots(figsize=(7, 4.2), layout="constrained")[1]

    sheet = axes()
    curve(sheet, "steady: mean", figures, lambda f: f.steady.messages, laws.steady_messages)
    curve(sheet, "steady: busiest second", figures, lambda f: f.steady.most_messages,
          lambda n: laws.busiest(laws.steady_messages(n)))  # fmt: skip
    curve(sheet, "joining node: busiest second", figures, lambda f: f.joiner.most_messages,
          lambda n: laws.busiest(laws.joiner_messages(n)))  # fmt: skip
    sheet.axhline(LIMIT, color="black", linestyle=":", linewidth=1)
    finish(sheet, "Messages that a node receives in a second", "messages/s", folder / "messages.png", False)

    sheet = axes()
    curve(sheet, "broker restart: busiest second", figures, lambda f: f.outage.most_messages,
          lambda n: laws.busiest(laws.reconnect_messages(n)))  # fmt: skip
    curve(sheet, "half of the nodes die", figures, lambda f: f.half_dead.most_messages,
          lambda n: laws.busiest(laws.steady_messages(n)))  # fmt: skip
    curve(sheet, f"all nodes start within {MASS_START:g} s", figures, lambda f: f.start and f.start.most_messages,
          lambda n: laws.busiest(laws.start_messages(n, MASS_START)) if n <= 1000 else math.nan)  # fmt: skip
    sheet.axhline(LIMIT, color="black", linestyle=":", linewidth=1)
    finish(sheet, "Busiest second of a node when much happens", "messages/s", folder / "storms.png", False)

    sheet = axes()
    curve(sheet, "steady", figures, lambda f: f.steady.bytes, lambda n: HEARTBEAT * laws.steady_messages(n))
    curve(sheet, "joining node", figures, lambda f: f.joiner.most_bytes,
          lambda n: HEARTBEAT * laws.steady_messages(n) + CATALOGUE * laws.joiner_catalogues(n))  # fmt: skip
    finish(sheet, "Bytes that a node receives in a second", "bytes/s", folder / "bytes.png")

    sheet = axes()
    curve(sheet, "a death is known (DEAD): last", figures, lambda f: f.dead[1], laws.dead)
    curve(sheet, "SUSPECT: last", figures, lambda f: f.suspect[1], laws.suspect)
    curve(sheet, "a newcomer knows all", figures, lambda f: f.joiner_knows_all, laws.joiner_knows_all)
    curve(sheet, "a join is known to all", figures, lambda f: f.join, laws.join)
    curve(sheet, "a leave is known to all", figures, lambda f: f.leave, laws.leave)
    finish(sheet, "Time until it is known", "seconds", folder / "times.png")

    sheet = axes()
    curve(sheet, "steady", figures, lambda f: 100 * f.cpu,
          lambda n: 100 * laws.steady_messages(n) * reference_cost(figures))  # fmt: skip
    finish(sheet, "CPU of a node for the control bus (machine and decoding)", "% of a core", folder / "cpu.png")


def reference_cost(figures: Sequence[Figures]) -> float:
    """Return the CPU seconds for one message on the largest bus."""
    largest = max(figures, key=lambda found: found.nodes)
    return largest.cpu / largest.steady.messages


def table(figures: Sequence[Figures]) -> str:
    """Return the figures as Markdown."""
    cells: dict[str, Callable[[Figures], str]] = {
        "nodes": lambda f: f"{f.nodes:,}" if f.full == f.nodes else f"{f.nodes:,} (sampled)",
        "interval, s": lambda f: f"{f.interval:g}",
        "messages/s": lambda f: f"{f.steady.messages:.0f}",
        "most": lambda f: f"{f.steady.most_messages}",
        "joiner": lambda f: f"{f.joiner.most_messages}",
        "restart": lambda f: f"{f.outage.most_messages}",
        "half die": lambda f: f"{f.half_dead.most_messages}",
        "all start": lambda f: f"{f.start.most_messages}" if f.start else "",
        "kB/s": lambda f: f"{f.steady.bytes / 1e3:.1f}",
        "joiner, kB/s": lambda f: f"{f.joiner.most_bytes / 1e3:.1f}",
        "join, s": lambda f: f"{f.join:.3f}",
        "leave, s": lambda f: f"{f.leave:.3f}",
        "knows all, s": lambda f: f"{f.joiner_knows_all:.1f}",
        "SUSPECT, s": lambda f: f"{f.suspect[0]:.1f} / {f.suspect[1]:.1f}",
        "DEAD, s": lambda f: f"{f.dead[0]:.1f} / {f.dead[1]:.1f}",
        "CPU, %": lambda f: f"{100 * f.cpu:.3f}",
    }
    lines = ["| " + " | ".join(cells) + " |", "|" + " ---: |" * len(cells)]
    for found in sorted(figures, key=lambda f: (f.nodes, -f.full)):
        lines.append("| " + " | ".join(cell(found) for cell in cells.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, plot, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of scale.md; its folder scale/ gets plots"
    )
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="NODES[:FULL NODES]", help="which to measure")
    given = parser.parse_args()
    out, sizes = given.out, [size.partition(":") for size in given.sizes]
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        figures = list(
            pool.map(measure, [int(n) for n, _, _ in sizes], [int(full) if full else None for _, _, full in sizes])
        )
    doubted = sum(found.outage_doubted for found in figures)
    if doubted:
        raise SystemExit(f"{doubted} nodes were taken for dead because the broker restarted")
    plot(figures, out / "scale")
    text, page = table(figures), out / "scale.md"
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    print(text)


if __name__ == "__main__":
    main()
