"""Charts, drawn here as SVG: readable without a script, at any width, and in both colour schemes (the style sheet has the colours).

Places are percentages of a drawing that has a fixed height, so that its letters keep their size however narrow it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

HEIGHT = 168
PLOT_TOP, PLOT_BOTTOM = 18, 144
LABEL_LINE = 160
X_LABELS = 6
LEAST_DECADES = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One bar: what stands below it, what it is made of (from below), each a style and a number, and what is told of it."""

    label: str
    parts: Sequence[tuple[str, float]]
    title: str
    is_capped: bool = False

    @property
    def total(self) -> float:
        return sum(value for _, value in self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its style, its name, and a value for each place along the bottom (None: there is none)."""

    style: str
    name: str
    values: Sequence[float | None]


def bars(columns: Sequence[Column], description: str) -> Markup:
    """Draw bars beside each other. A capped one is open at its top."""
    top = _round_up(max((column.total for column in columns), default=0))
    width = 100 / max(1, len(columns))
    grid, names = _grid([(value, _short(value)) for value in (top / 2, top)], lambda value: _height(value / top))
    drawn = [grid, *(_bar(column, place * width, width, top) for place, column in enumerate(columns)), names]
    drawn.append(_labels([column.label for column in columns]))
    return _drawing(drawn, description)


def _bar(column: Column, x: float, width: float, top: float) -> str:
    pieces, base = [], 0.0
    for style, value in column.parts:
        if value:
            y, below = _height((base + value) / top), _height(base / top)
            box = f'x="{x + width * 0.12:.3f}%" width="{width * 0.76:.3f}%" y="{y:.1f}" height="{max(1.0, below - y):.1f}"'
            pieces.append(f'<rect class="{style}{" capped" if column.is_capped else ""}" {box}/>')
            base += value
    cover = f'<rect class="hover" x="{x:.3f}%" width="{width:.3f}%" y="{PLOT_TOP}" height="{PLOT_BOTTOM - PLOT_TOP}"/>'
    return f"<g><title>{escape(column.title)}</title>{cover}{''.join(pieces)}</g>"


def lines(series: Sequence[Line], labels: Sequence[str], titles: Sequence[str], description: str) -> Markup:
    """Draw lines of durations (ms) over a logarithmic scale. What stands alone is a dot."""
    values = [value for line in series for value in line.values if value is not None]
    high = max(LEAST_DECADES, math.ceil(math.log10(max([*values, 1]))))

    def height(value: float) -> float:
        return _height(math.log10(max(value, 1)) / high)

    count = max(1, len(labels))
    grid, names = _grid([(10.0**decade, duration(10.0**decade)) for decade in range(high + 1)], height)
    drawn, plot = [grid], []
    for line in series:
        for run in _runs(line.values):
            points = " ".join(f"{(place + 0.5) * 1000 / count:.1f},{height(value):.1f}" for place, value in run)
            first, value = run[0]
            if len(run) == 1:  # a line of no length with round ends is a dot
                points += f" {(first + 0.5) * 1000 / count + 0.1:.1f},{height(value):.1f}"
            plot.append(f'<polyline class="{line.style}" points="{points}"/>')
    drawn.append(f'<svg viewBox="0 0 1000 {HEIGHT}" width="100%" height="{HEIGHT}" preserveAspectRatio="none">{"".join(plot)}</svg>')
    for place, title in enumerate(titles):
        box = f'x="{place * 100 / count:.3f}%" width="{100 / count:.3f}%" y="{PLOT_TOP}" height="{PLOT_BOTTOM - PLOT_TOP}"'
        drawn.append(f'<g><title>{escape(title)}</title><rect class="hover" {box}/></g>')
    drawn += [names, _labels(labels)]
    return _drawing(drawn, description)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return what stands together, without gaps, with its places."""
    runs: list[list[tuple[int, float]]] = []
    before: float | None = None
    for place, value in enumerate(values):
        if value is not None:
            if before is None:
                runs.append([])
            runs[-1].append((place, value))
        before = value
    return runs


def _drawing(parts: Sequence[str], description: str) -> Markup:
    inner = "".join(parts)
    return Markup(f'<svg class="chart" role="img" aria-label="{escape(description)}" width="100%" height="{HEIGHT}">{inner}</svg>')  # noqa: S704


def _grid(marks: Sequence[tuple[float, str]], height: Callable[[float], float]) -> tuple[str, str]:
    """Draw lines at some values, and, to stand in front of all else, what they are called."""
    base = f'<line class="base" x1="0" x2="100%" y1="{PLOT_BOTTOM}" y2="{PLOT_BOTTOM}"/>'
    placed = [(height(value), name) for value, name in marks]
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in placed)
    return base + grid, "".join(f'<text class="mark" x="0" y="{y - 4:.1f}">{escape(name)}</text>' for y, name in placed)


def _labels(labels: Sequence[str]) -> str:
    step = max(1, math.ceil(len(labels) / X_LABELS))
    drawn = []
    for place in range(0, len(labels), step):
        x = (place + 0.5) * 100 / len(labels)
        anchor = "start" if place == 0 else "middle"
        drawn.append(f'<text x="{0 if place == 0 else x:.2f}%" y="{LABEL_LINE}" text-anchor="{anchor}">{escape(labels[place])}</text>')
    return "".join(drawn)


def _height(share: float) -> float:
    return PLOT_BOTTOM - share * (PLOT_BOTTOM - PLOT_TOP)


def _round_up(value: float) -> float:
    """Return the next of 2, 4, 6, 8, 10, 20, 30, ...: a scale whose half is round, too."""
    if value <= 10:
        return max(2.0, 2.0 * math.ceil(value / 2))
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * decade >= value)


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    return f"{value / 1_000:g} k" if value >= 10_000 else f"{value:,g}"


def duration(ms: float) -> str:
    """Write a duration in the unit that fits."""
    if ms < 1_000:
        return f"{ms:.0f} ms" if ms >= 10 or ms == int(ms) else f"{ms:.1f} ms"
    for unit, length, next_length in (("s", 1_000, 120_000), ("min", 60_000, 7_200_000), ("h", 3_600_000, 172_800_000)):
        if ms < next_length:
            value = ms / length
            return f"{value:.1f} {unit}" if value < 10 and unit == "s" and value != int(value) else f"{value:.0f} {unit}"
    return f"{ms / 86_400_000:.0f} d"
