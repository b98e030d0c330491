"""Line charts as data, and drawn without matplotlib: in characters for a terminal, as SVG for a page.

The SVG names classes, not colours: the page's style sheet gives them, one set for light and one for dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

import numpy as np

from fastdqn.analysis.statistics import Band, Curve
from fastdqn.units import short

ASCII_MARKS = "*o+x#@%&"
COLOURS = 8  # classes c0 to c7, repeated after that


class Line(NamedTuple):
    """One group: every seed, and their mean."""

    label: str
    runs: Sequence[Curve]
    mean: Band | None  # None: nothing to average yet
    place: int = 0  # among the groups: its colour and its mark
    seeds: int = 1  # different ones among the runs


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn on them."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    levels: dict[str, float] = field(default_factory=dict)  # horizontal lines by name
    dots: Curve | None = None  # every game of a single run


class Limits(NamedTuple):
    """The ends of the axes, and the levels that lie between them."""

    x: tuple[float, float]
    y: tuple[float, float]
    levels: dict[str, float]


def limits(panel: Panel) -> Limits | None:
    """Axes that hold every curve; None when there is none.

    A level further from the curves than they are tall is left out: it would press them into a line.
    """
    curves = [curve for line in panel.lines for curve in line.runs if len(curve.x)]
    curves += [panel.dots] if panel.dots is not None and len(panel.dots.x) else []
    if not curves:
        return None
    right = max(float(curve.x[-1]) for curve in curves)
    low, high = min(float(curve.y.min()) for curve in curves), max(float(curve.y.max()) for curve in curves)
    reach = (high - low) or abs(high) or 1.0
    levels = {name: level for name, level in panel.levels.items() if low - reach <= level <= high + reach}
    low, high = min([low, *levels.values()]), max([high, *levels.values()])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return Limits((0.0, right if right > 1e-9 else 1.0), (low - margin, high + margin), levels)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power, 20 * power) if (high - low) / step < most)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def legend_levels(panel: Panel, found: Limits) -> list[str]:
    """`human 30.5` for each level; one that lies outside the axes says where."""
    outside = {True: " (above)", False: " (below)"}
    return [
        f"{name} {level:g}" + ("" if name in found.levels else outside[level > found.y[1]])
        for name, level in panel.levels.items()
    ]


def ascii_chart(panel: Panel, *, width: int = 80, height: int = 20) -> str:
    """The panel in ASCII characters: `.` a seed, `-` a level, one mark per group's mean."""
    found = limits(panel)
    if found is None:
        return f"{panel.title}\n  nothing to draw yet"
    (left, right), (bottom, top) = found.x, found.y
    labels = {_cell(tick, top, bottom, height): short(tick) for tick in ticks(bottom, top, max(height // 4, 2))}
    gutter = max(map(len, labels.values()), default=0) + 1
    columns = max(width - gutter - 1, 20)
    cells = [[" "] * columns for _ in range(height)]
    for level in found.levels.values():
        cells[_cell(level, top, bottom, height)] = ["-"] * columns

    def trace(x: np.ndarray, y: np.ndarray, mark: str) -> None:
        # one value per column of what the curve covers
        ends = _cell(float(x[0]), left, right, columns), _cell(float(x[-1]), left, right, columns)
        for column in range(ends[0], ends[1] + 1):
            at = left + (column + 0.5) / columns * (right - left)
            cells[_cell(float(np.interp(at, x, y)), top, bottom, height)][column] = mark

    for line in panel.lines:
        for run in line.runs:
            if len(run.x):
                trace(run.x, run.y, ".")
    for line in panel.lines:
        if line.mean is not None:
            trace(line.mean.x, line.mean.mean, ASCII_MARKS[line.place % len(ASCII_MARKS)])
    rows = [f"{labels.get(row, ''):>{gutter}}|{''.join(line).rstrip()}" for row, line in enumerate(cells)]
    last = short(right)
    axis = f"{'0':<{max(columns - len(last), 1)}}{last}"
    marks = [f"{ASCII_MARKS[line.place % len(ASCII_MARKS)]} {line.label}" for line in panel.lines]
    legend = "   ".join([*marks, *(f"- {level}" for level in legend_levels(panel, found))])
    return "\n".join([
        panel.title, *rows, " " * gutter + "+" + "-" * columns, " " * (gutter + 1) + axis,
        f"{' ' * gutter} {panel.ylabel} against {panel.xlabel}", f"{' ' * gutter} {legend}",
    ])  # fmt: skip


def svg_chart(panel: Panel, *, width: int = 440, height: int = 250) -> str:
    """The panel as an `<svg>` element that scales with its container. All text in it is escaped."""
    found = limits(panel)
    if found is None:
        return '<p class="empty">Nothing to draw yet.</p>'
    (left, right), (bottom, top) = found.x, found.y
    x0, x1, y0, y1 = 50, width - 14, height - 42, 12  # corners of the axes; y grows downwards

    def across(x: float) -> str:
        return f"{x0 + (x - left) / (right - left) * (x1 - x0):.1f}"

    def down(y: float) -> str:
        return f"{y0 - (y - bottom) / (top - bottom) * (y0 - y1):.1f}"

    def path(x: np.ndarray, y: np.ndarray) -> str:
        return " ".join(f"{across(one)},{down(other)}" for one, other in zip(x.tolist(), y.tolist(), strict=True))

    parts = []
    for tick in ticks(bottom, top, 6):
        y = down(tick)
        parts.append(f'<path class="grid" d="M{x0} {y}H{x1}"/><text x="{x0 - 6}" y="{y}" dy="4" class="end">')
        parts.append(f"{short(tick)}</text>")
    parts += [
        f'<text x="{across(tick)}" y="{y0 + 18}" class="middle">{short(tick)}</text>' for tick in ticks(left, right, 6)
    ]
    parts.append(f'<path class="axis" d="M{x0} {y0}H{x1}"/>')
    parts.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{height - 6}" class="middle">{escape(panel.xlabel)}</text>')
    for name, level in found.levels.items():
        y = down(level)
        parts.append(f'<path class="level" d="M{x0} {y}H{x1}"/>')
        parts.append(f'<text x="{x1}" y="{y}" dy="-4" class="end">{escape(name)} {level:g}</text>')
    for line in panel.lines:
        colour = f"c{line.place % COLOURS}"
        if line.mean is not None and line.mean.ends is not None:
            low, high = line.mean.ends
            edge = f"{path(line.mean.x, low)} {path(line.mean.x[::-1], high[::-1])}"
            parts.append(f'<polygon class="band {colour}" points="{edge}"/>')
        if len(line.runs) > 1:
            parts += [f'<polyline class="seed {colour}" points="{path(*run)}"/>' for run in line.runs if len(run.x)]
        if line.mean is not None:
            parts.append(f'<polyline class="mean {colour}" points="{path(line.mean.x, line.mean.mean)}"/>')
    name = escape(f"{panel.ylabel} against {panel.xlabel}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _cell(value: float, start: float, stop: float, count: int) -> int:
    """Which of `count` cells from `start` to `stop` holds the value."""
    return min(max(int((value - start) / (stop - start) * count), 0), count - 1)
