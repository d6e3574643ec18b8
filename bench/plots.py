"""Draws what was measured: as SVG, and as PNG at twice the size, to be read 700 pixels wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.summary import CASSATA, LABELS, PEERS, Spread, Summaries, Summary, label, number

TITLES = {
    "drain": "Burst: deliveries per second, all due at one instant",
    "cpu": "Burst: CPU time of a delivery",
    "lateness": "Steady: how late deliveries come, at 200 a second",
    "depth": "Cost of claiming and recording an event, against rows in the table",
    "tenants": "CPU time of an event, against applications with work due",
    "memory": "Memory of a worker process, against events delivered",
}
OF_WORKLOAD = {"burst": ("drain", "cpu"), "steady": ("lateness",), "depth": ("depth",), "tenants": ("tenants",), "memory": ("memory",)}

MARIADB, SQLITE = CASSATA
STRONG = {MARIADB: "#00764f", SQLITE: "#4fb58e"}
"""Cassata; everybody else is grey as a bar, and of a muted colour as a line."""
PEER_BAR = "#a3a9b0"
PEER_BAR_PALE = "#d3d7db"
STRONG_PALE = {MARIADB: "#93cdb6", SQLITE: "#c3e6d8"}
MUTED = ("#8a8f98", "#b08d6e", "#7f9bb8", "#a58bb0", "#b3a556", "#c48b94", "#6f8f8f", "#9c7a5b")
INK, FAINT = "#24292f", "#6a737d"

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": "#c8ccd0",
    "axes.labelcolor": FAINT,
    "axes.labelsize": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",
    "svg.hashsalt": "cassata",
}
WIDTH_INCHES = 7.0
DOTS_PER_INCH = 100

Draw = Callable[[Summaries], Figure | None]


def draw(all_: Summaries, folder: Path, *, kinds: Sequence[str] = ("png", "svg")) -> list[str]:
    """Draw every plot whose figures are there into `folder`, and return their names. The same figures give the same files."""
    drawn = []
    with mpl.rc_context(STYLE):
        for name, plot in PLOTS.items():
            figure = plot(all_)
            if figure is None:
                continue
            for kind in kinds:
                metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
                figure.savefig(folder / f"{name}.{kind}", dpi=2 * DOTS_PER_INCH, metadata=metadata)
            pyplot.close(figure)
            drawn.append(name)
    return drawn


# --- bars --------------------------------------------------------------------------------------------------------------


def _usual(all_: Summaries, workload: str, figure: str) -> list[Summary]:
    """Return each system's runs without a variant that have this figure."""
    found = [all_.get(workload, system) for system in LABELS]
    return [summary for summary in found if summary is not None and figure in summary.figures]


def _layout() -> ConstrainedLayoutEngine:
    """Return one that leaves a little room at the right."""
    return ConstrainedLayoutEngine(rect=(0, 0, 0.985, 1))


def _bars(title: str, systems: Sequence[Summary]) -> tuple[Figure, Axes]:
    """Return axes with a line for each system, the first one on top."""
    height = 1.0 + 0.38 * len(systems)
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout=_layout())
    axes.set_title(title, x=0)
    axes.set_yticks(range(len(systems)), [label(summary.system) for summary in systems])
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    for tick, summary in zip(axes.get_yticklabels(), systems, strict=True):
        if summary.system in CASSATA:
            tick.set_fontweight("bold")
    _title_at_the_left_edge(axes)
    return figure, axes


def _title_at_the_left_edge(axes: Axes) -> None:
    """Let the title begin where the labels do, not where the axes do."""
    title = axes.get_title(loc="left")
    axes.set_title("", loc="left")
    axes.figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)


def _drain(all_: Summaries) -> Figure | None:
    systems = sorted(_usual(all_, "burst", "drain_per_second"), key=lambda summary: -summary.figures["drain_per_second"].median)
    if not systems:
        return None
    figure, axes = _bars(TITLES["drain"], systems)
    longest = max(summary.figures["drain_per_second"].high for summary in systems)
    for line, summary in enumerate(systems):
        rate = summary.figures["drain_per_second"]
        axes.barh(line, rate.median, height=0.66, color=STRONG.get(summary.system, PEER_BAR))
        if rate.low < rate.high:
            axes.plot([rate.low, rate.high], [line, line], color=INK, linewidth=1.2, solid_capstyle="butt", marker="|", markersize=6)
        axes.text(rate.high + longest * 0.012, line, _with_range(rate), va="center", color=INK)
    axes.set_xlim(0, longest * 1.3)
    return figure


def _with_range(rate: Spread) -> str:
    middle, low, high = number(rate.median), number(rate.low), number(rate.high)
    return middle if low == high else f"{middle}  ({low}-{high})"


def _cpu(all_: Summaries) -> Figure | None:
    systems = [summary for summary in _usual(all_, "burst", "worker_cpu_ms_per_event") if "server_cpu_ms_per_event" in summary.figures]
    if not systems:
        return None

    def parts(summary: Summary) -> tuple[float, float]:
        return summary.figures["worker_cpu_ms_per_event"].median, summary.figures["server_cpu_ms_per_event"].median

    systems.sort(key=lambda summary: sum(parts(summary)))
    figure, axes = _bars(f"{TITLES['cpu']}, ms", systems)
    longest = max(sum(parts(summary)) for summary in systems)
    for line, summary in enumerate(systems):
        worker, server = parts(summary)
        axes.barh(line, worker, height=0.66, color=STRONG.get(summary.system, PEER_BAR))
        axes.barh(line, server, left=worker, height=0.66, color=STRONG_PALE.get(summary.system, PEER_BAR_PALE))
        text = f"{number(worker + server)}  ({number(worker)} + {number(server)})" if server else f"{number(worker)}"
        axes.text(worker + server + longest * 0.012, line, text, va="center")
    axes.set_xlim(0, longest * 1.35)
    figure.supxlabel("dark: workers · pale: database or broker", x=0.012, ha="left", fontsize=10, color=FAINT)
    return figure


# --- lines -------------------------------------------------------------------------------------------------------------


def _lines(title: str, *, height: float = 3.6) -> tuple[Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout=_layout())
    axes.set_title(title, loc="left")
    axes.grid(visible=True, axis="y")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    _title_at_the_left_edge(axes)
    return figure, axes


def _colour(system: str) -> str:
    """Return the colour of a system's line, the same in every plot."""
    return STRONG.get(system) or dict(zip(PEERS, MUTED, strict=True)).get(system, PEER_BAR)


SHARES = (0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995)
LAST_QUANTILE = 0.995
"""The last but one that is measured; the last, the very latest event, has no place on this scale, and stands in the table."""


def _lateness(all_: Summaries) -> Figure | None:
    systems = [summary for summary in _usual(all_, "steady", "early") if len(summary.series.get("lateness_ms_quantiles", ())) > 1]
    if not systems:
        return None
    figure, axes = _lines(TITLES["lateness"], height=5.0)
    shortest = _shortest_shown(systems)
    curves = [_lateness_curve(summary, shortest) for summary in systems]
    for curve in curves:
        axes.plot(curve.across, curve.up, color=curve.colour, linewidth=2.6 if curve.strong else 1.5, zorder=3 if curve.strong else 2)
    axes.set_xscale("log")
    axes.set_xlim(shortest, max(max(curve.across) for curve in curves) * 1.25)
    axes.set_ylim(0, _stretched(LAST_QUANTILE))
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("ms late at most")
    axes.set_ylabel("share of events")
    axes.set_yticks([_stretched(part) for part in SHARES], [f"{100 * part:g} %" for part in SHARES])
    _readable_log_axis(axes)
    _label_tops(axes, curves)
    return figure


def _lateness_curve(summary: Summary, shortest: float) -> Curve:
    quantiles = summary.series["lateness_ms_quantiles"]
    shares = [place / (len(quantiles) - 1) for place in range(len(quantiles))]
    shown = [(max(shortest, late), _stretched(share)) for late, share in zip(quantiles, shares, strict=True) if share <= LAST_QUANTILE]
    across, up = zip(*shown, strict=True)
    return Curve(_lateness_label(summary), _colour(summary.system), summary.system in CASSATA, across, up)


def _stretched(share: float) -> float:
    """Return where a share of all events stands: 90 % is as far above 0 as 99 % is above 90, since the last ones are what matters."""
    return -log10(1 - share)


def _shortest_shown(systems: Sequence[Summary]) -> float:
    """Return where the axis begins: nothing is less late than 0, and a log axis has no 0. What is early is shown at its edge."""
    late = [value for summary in systems for value in summary.series["lateness_ms_quantiles"] if value > 0]
    return min(1.0, max(0.1, min(late, default=0.1)))


def _lateness_label(summary: Summary) -> str:
    """Return a name that is short, since there are many; and how early it was, if it was."""
    name = label(summary.system) if summary.system in CASSATA else label(summary.system).split(" (")[0]
    earliest = summary.figures.get("earliest_ms")
    if not summary.figures["early"].high:
        return name
    return f"{name} (some early)" if earliest is None else f"{name} (up to {number(-earliest.low)} ms early)"


def _readable_log_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Write 10,000,000 as 10 M."""
    return f"{value / 1e6:,g} M" if value >= 1e6 else f"{value:,g}"


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    colour: str
    strong: bool
    across: Sequence[float]
    up: Sequence[float]


def _label_tops(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the curves' names aslant above their upper ends, joined to them where they have to stand aside."""
    ordered = sorted(curves, key=lambda curve: curve.across[-1])
    ends = [axes.transData.transform((curve.across[-1], curve.up[-1])) for curve in ordered]
    ends_across = [axes.transAxes.inverted().transform(end)[0] for end in ends]
    for curve, end, place in zip(ordered, ends_across, _apart(ends_across, 0.048), strict=True):
        axes.plot([end, place], [1.005, 1.035], transform=axes.transAxes, color=curve.colour, linewidth=1, clip_on=False)
        axes.text(
            place - 0.004,
            1.04,
            curve.name,
            transform=axes.transAxes,
            rotation=45,
            rotation_mode="anchor",
            verticalalignment="center",
            color=curve.colour,
            fontweight="bold" if curve.strong else "normal",
        )


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Move ascending values up, as little as it takes for each to be `least` above the one before."""
    moved: list[float] = []
    for value in values:
        moved.append(max(value, moved[-1] + least) if moved else value)
    return moved


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]], *, apart: float) -> None:
    """Write names at the right ends of lines, at least `apart` of the axes' height from one another."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[3])
    for (name, colour, x, _), y in zip(ends, _apart([end[3] for end in ends], (high - low) * apart), strict=True):
        axes.annotate(name, (x, y), (8, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False)


def _rows(variant: str) -> float | None:
    """Return how many `10k` or `1M` are."""
    sizes = {"k": 1e3, "M": 1e6}
    digits = variant.rstrip("kM")
    return float(digits) * sizes.get(variant[len(digits) :], 1) if digits.isdigit() else None


@contextmanager
def _against_variants(title: str, across: str, up: str) -> Iterator[tuple[Figure, Axes]]:
    """Give axes with a log scale across, whose ends leave room for names."""
    figure, axes = _lines(title)
    axes.set_xscale("log")
    yield figure, axes
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    _readable_log_axis(axes)


def _series_by_variant(all_: Summaries, workload: str, system: str, figure: str) -> list[tuple[float, Spread]]:
    found = [(_rows(summary.variant), summary.figures.get(figure)) for summary in all_.of(workload) if summary.system == system]
    return sorted((rows, spread) for rows, spread in found if rows is not None and spread is not None)


def _plot_by_variant(all_: Summaries, name: str, workload: str, figures: Mapping[str, str], across: str, up: str) -> Figure | None:
    """Draw figures (by name, with what to call them) of a workload whose variants are numbers."""
    ends = []
    lines = [
        (system, figure, points)
        for system in CASSATA
        for figure in figures
        if len(points := _series_by_variant(all_, workload, system, figure)) > 1
    ]
    if not lines:
        return None
    several = len({system for system, _, _ in lines}) > 1
    with _against_variants(TITLES[name], across, up) as (drawn, axes):
        for system, figure, points in lines:
            whole = figure == next(iter(figures))
            colour = STRONG[system] if whole else MUTED[list(figures).index(figure)]
            x = [rows for rows, _ in points]
            middles = [spread.median for _, spread in points]
            ranges = [[spread.median - spread.low for _, spread in points], [spread.high - spread.median for _, spread in points]]
            width = 2.6 if whole else 1.5
            axes.errorbar(x, middles, yerr=ranges, color=colour, linewidth=width, marker="o", markersize=5, elinewidth=1.2, capsize=3)
            for rows, spread in points if whole else ():
                axes.annotate(number(spread.median), (rows, spread.high), (0, 7), textcoords="offset points", ha="center", color=colour)
            ends.append((f"{figures[figure]}{f', {label(system)}' if several else ''}", colour, x[-1], middles[-1]))
        axes.set_xticks(sorted({rows for _, _, points in lines for rows, _ in points}))
    axes.set_xlim(right=axes.get_xlim()[1])
    _label_ends(axes, ends, apart=0.08)
    return drawn


def _depth(all_: Summaries) -> Figure | None:
    figures = {"us_per_event": "by the clock", "server_cpu_us_per_event": "database CPU", "client_cpu_us_per_event": "client CPU"}
    return _plot_by_variant(all_, "depth", "depth", figures, "rows in the table", "µs per event")


def _tenants(all_: Summaries) -> Figure | None:
    figures = {"cost_ms_per_event": "together", "server_cpu_ms_per_event": "database CPU", "worker_cpu_ms_per_event": "worker CPU"}
    return _plot_by_variant(all_, "tenants", "tenants", figures, "applications", "ms per event")


def _memory(all_: Summaries) -> Figure | None:
    found = [summary for summary in all_.of("memory") if len(summary.series.get("pss_mb", ())) > 1 and "events" in summary.figures]
    if not found:
        return None
    figure, axes = _lines(TITLES["memory"], height=3.0)
    ends = []
    for summary in found:
        series, events = summary.series["pss_mb"], summary.figures["events"].median
        x = [events * place / len(series) for place in range(1, len(series) + 1)]
        colour = STRONG.get(summary.system, PEER_BAR)
        axes.plot(x, series, color=colour, linewidth=2.6)
        name = f"{number(series[-1])} MB" if len(found) == 1 else f"{label(summary.system)} {summary.variant}".strip()
        ends.append((name, colour, x[-1], series[-1]))
    axes.set_ylim(0, max(70, *(max(summary.series["pss_mb"]) * 1.1 for summary in found)))
    axes.set_xlim(0, max(x for _, _, x, _ in ends))
    axes.axhline(60, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("target: at most 60 MB", (0, 60), (6, 4), textcoords="offset points", color=FAINT)
    axes.set_xlabel("events delivered")
    axes.set_ylabel("PSS, MB")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _label_ends(axes, ends, apart=0.09)
    return figure


PLOTS: Mapping[str, Draw] = {"drain": _drain, "cpu": _cpu, "lateness": _lateness, "depth": _depth, "tenants": _tenants, "memory": _memory}
