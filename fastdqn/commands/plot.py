"""`fastdqn plot`: curves of one or many runs, as a picture or in characters."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastdqn.analysis import history
from fastdqn.analysis.charts import COLOURS, Line, Panel, ascii_chart, limits
from fastdqn.analysis.comparison import mixed_settings
from fastdqn.analysis.history import History, load
from fastdqn.analysis.statistics import MIN_SEEDS, mean_curve
from fastdqn.commands import JsonFlags, emit
from fastdqn.errors import RunError, UsageError
from fastdqn.units import count


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Draws curves: every seed thin, each group's mean thick with a 95 % band from 3 seeds on, one panel per game."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, or names under runs/."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Picture to write, by its ending png, svg, pdf or jpg. Empty: plot.png, or none with --ascii."""
    x: Literal["frames", "steps", "wall"] = "frames"
    """Emulator frames, env steps, or minutes of training."""
    metric: str = "score"
    """score: unclipped, of the games played in training; or a tag of metrics.jsonl, td_loss or losses/td_loss."""
    group_by: str = "settings"
    """Which runs form a group, with one colour and one mean. settings: those alike in all but seed and game; or a field of the config, preset perhaps."""
    window: int = 0
    """Games, or log rows of 2 s, in the running mean. 0: 100 games, 10 rows."""
    ascii: bool = False
    """Draw in the terminal, with characters."""


def main(flags: Flags) -> int:
    if flags.window < 0:
        raise UsageError(f"window={flags.window}: give a number from 1, or 0 for 100 games or 10 log rows")
    histories = load(flags.runs)
    by_game = history.group_by(histories, flags.group_by)
    labels = list(dict.fromkeys(label for groups in by_game.values() for label in groups))
    panels = [panel_of(groups, labels, flags) for groups in by_game.values()]
    if not any(map(limits, panels)):
        missing = "no game of these runs has ended" if flags.metric == "score" else "these runs have not logged it"
        raise RunError(f"metric={flags.metric}: nothing to draw; {missing} yet")
    notes = [note for game, groups in by_game.items() for note in mixed_settings(game, groups)]
    lines = []
    if flags.ascii:
        width = min(shutil.get_terminal_size().columns, 120)
        lines += ["\n\n".join(ascii_chart(panel, width=width) for panel in panels)]
    out = Path(flags.out or "plot.png") if flags.out or not flags.ascii else None
    if out is not None:
        write(panels, out, footnote(histories, notes))
        lines.append(f"plot: {out}")
    figures = {
        "plot": None if out is None else str(out),
        "metric": flags.metric,
        "x": flags.x,
        "panels": [],
        "notes": notes,
    }
    for panel in panels:
        figures["panels"].append({"title": panel.title, "groups": [newest(line) for line in panel.lines]})
        lines += [f"{panel.title}: {describe(line, panel)}" for line in panel.lines]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    emit("\n".join(lines), figures, as_json=flags.json)
    return 0


def panel_of(groups: dict[str, list[History]], labels: list[str], flags: Flags) -> Panel:
    """The curves of the groups on one game. A group has the same colour in every game's panel."""
    histories = [one for members in groups.values() for one in members]
    if flags.metric == "score":
        window = flags.window or history.WINDOW
        ylabel = f"score, mean of the last {window} games"

        def curve(one: History):
            return history.score_curve(one, flags.x, window)
    else:
        tag, window = history.metric_tag(histories, flags.metric), flags.window or 10
        ylabel = tag if window == 1 else f"{tag}, mean of the last {window} log rows"

        def curve(one: History):
            return history.metric_curve(one, tag, flags.x, window)

    lines = []
    for label, members in groups.items():
        found = [(one.config.seed, curve(one)) for one in members]
        curves = [drawn for _, drawn in found if len(drawn.x)]
        seeds = len({seed for seed, drawn in found if len(drawn.x)})
        what = "seed" if seeds == len(curves) else "run"  # one seed twice is no two seeds
        number = f"{len(curves)} {what}{'s' * (len(curves) != 1)}"
        words = f"{label} (mean of {number})" if len(curves) > 1 else f"{label} ({number})"
        place = labels.index(label) if len(labels) <= COLOURS else len(lines)  # no two of a panel alike
        lines.append(Line(words, curves, mean_curve(curves, interval=seeds >= MIN_SEEDS), place, seeds))
    alone = histories[0] if len(histories) == 1 and flags.metric == "score" else None
    return Panel(
        title=histories[0].game,
        xlabel=histories[0].x_label(flags.x),
        ylabel=ylabel,
        lines=lines,
        levels=history.levels(histories[0].game) if flags.metric == "score" else {},
        dots=None if alone is None else history.score_curve(alone, flags.x, 1),
    )


def write(panels: Sequence[Panel], out: Path, words: str) -> None:
    """Draws the panels into a file."""
    from fastdqn.analysis.figures import FORMATS, draw, save

    if out.suffix not in FORMATS:
        raise UsageError(f"out={out}: no such picture; end its name in {', '.join(FORMATS)}")
    try:
        save(draw(panels, footnote=words), out)
    except OSError as error:
        raise UsageError(f"out={out}: cannot be written ({error.strerror}); name another file") from None


def footnote(histories: Sequence[History], notes: Sequence[str]) -> str:
    """What the lines mean, on which machines the runs were made, and a line for each note."""
    machines = " | ".join(dict.fromkeys(one.hardware for one in histories if one.hardware))
    thin = (
        f"thin: one run; band, from {MIN_SEEDS} seeds on: 95 % bootstrap interval of the mean over runs"
        if len(histories) > 1
        else ""
    )
    return "\n".join(["; ".join(words for words in (thin, machines) if words), *(f"note: {note}" for note in notes)])


def newest(line: Line) -> dict[str, Any]:
    """A group's mean at the end of its curve, for programs."""
    mean = line.mean
    if mean is None:
        return {"label": line.label, "seeds": line.seeds, "x": None, "mean": None, "ci95": None}
    return {
        "label": line.label,
        "seeds": line.seeds,
        "x": float(mean.x[-1]),
        "mean": float(mean.mean[-1]),
        "ci95": None if mean.ends is None else mean.ends[:, -1].tolist(),
    }


def describe(line: Line, panel: Panel) -> str:
    """What `newest` says, in words; of runs that differ in length also at which x."""
    group = newest(line)
    if group["mean"] is None:
        return f"{line.label}: nothing to draw yet"
    interval = "" if group["ci95"] is None else " (95 % interval {:.4g} to {:.4g})".format(*group["ci95"])
    ends = [curve.x[-1] for curve in line.runs]
    where = "the end"
    if max(ends) > 1.02 * min(ends):  # the last games of runs of one length do not end at one frame
        where = f"{count(group['x'])} {panel.xlabel.removeprefix('emulator ')}, where the shortest run ends"
    return f"{line.label}: {panel.ylabel} is {group['mean']:.4g} at {where}{interval}"
