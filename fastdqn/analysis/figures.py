"""Panels of curves as a picture, with matplotlib's objects: no global state, no display."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from fastdqn.analysis.charts import Panel, legend_levels, limits
from fastdqn.run_folder import replace_file
from fastdqn.units import short

# Okabe & Ito's palette, told apart with any colour vision
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#4d4d4d")
FORMATS = (".png", ".svg", ".pdf", ".jpg")


def draw(panels: Sequence[Panel], *, footnote: str) -> Figure:
    """A figure with one pair of axes per panel, at most three in a row."""
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(7.0 if columns == 1 else 5.0 * columns, 4.2 * rows), dpi=130, layout="constrained")
    for index, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, columns, index + 1), panel)
    wrapped = [line for long in footnote.splitlines() for line in textwrap.wrap(long, int(18 * figure.get_figwidth()))]
    figure.supxlabel("\n".join(wrapped), fontsize=7, color="#555555")
    for text in figure.findobj(Text):  # a preset may be called $\frac$
        text.set_parse_math(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the name's ending, in one step. Raises OSError where it cannot be written."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    replace_file(path, picture.getvalue())


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    found = limits(panel)
    if found is None:
        axes.text(0.5, 0.5, "nothing to draw yet", ha="center", va="center", transform=axes.transAxes, color="#555555")
        axes.set(xticks=[], yticks=[])
        return
    axes.set(xlim=found.x, ylim=found.y)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    if panel.dots is not None:
        axes.plot(*panel.dots, ".", markersize=2, color="#b8c4d6", label="one game")
    for line in panel.lines:
        colour = PALETTE[line.place % len(PALETTE)]
        if len(line.runs) > 1:
            for run in line.runs:
                axes.plot(*run, color=colour, linewidth=0.7, alpha=0.45)
        if line.mean is None:
            continue
        axes.plot(line.mean.x, line.mean.mean, color=colour, linewidth=2, label=line.label)
        if line.mean.ends is not None:
            axes.fill_between(line.mean.x, *line.mean.ends, color=colour, alpha=0.18, linewidth=0)
    for (name, level), words in zip(panel.levels.items(), legend_levels(panel, found), strict=True):
        # a level outside the axes draws nothing but keeps its entry in the legend
        style = "--" if name.startswith("random") else ":"
        axes.plot(
            found.x, [level, level], style, color="#777777", linewidth=1.2, label=words, scalex=False, scaley=False
        )
    axes.legend(frameon=False, fontsize=8)
