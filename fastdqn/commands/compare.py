"""`fastdqn compare`: final scores of groups of runs, with intervals over seeds, and whether they tell anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from fastdqn.analysis.comparison import compare
from fastdqn.analysis.history import load
from fastdqn.analysis.statistics import MIN_SEEDS
from fastdqn.commands import JsonFlags, emit
from fastdqn.errors import RunError
from fastdqn.units import count, duration, or_dash

DEFINITIONS = (
    "IQM: mean of the scores of a group's seeds without the lowest and the highest quarter, each rounded down (of fewer "
    "than 4 seeds: the mean). Interval: 95 %, percentile bootstrap that resamples seeds within each game; of fewer "
    f"than {MIN_SEEDS} there is none. Both as in Agarwal et al. 2021."
)


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Compares groups of runs: interquartile mean over seeds with its interval, speed, time to reach a score."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, or names under runs/."""
    group_by: str = "settings"
    """Which runs form a group. settings: those alike in all but seed and game; or a field of the config, preset perhaps."""
    score: Literal["auto", "training", "eval"] = "auto"
    """training: mean of the last 100 games; eval: the last evaluation made of the newest checkpoint evaluated; auto: eval where all runs share its protocol, else training."""
    reach: float | None = None
    """Also when the mean of the last 100 games of training first got to this score."""
    format: Literal["text", "markdown"] = "text"
    """How the table is written."""


def main(flags: Flags) -> int:
    figures = compare(load(flags.runs), group=flags.group_by, source=flags.score, reach=flags.reach)
    if not figures["groups"]:
        raise RunError(f"nothing to compare: {'; '.join(figures['notes'])}")
    emit(text(figures, markdown=flags.format == "markdown"), figures, as_json=flags.json)
    return 0


def text(figures: dict[str, Any], *, markdown: bool) -> str:
    """The figures for people: tables, then the notes."""
    head = ["group", "game", "seeds", "IQM", "95 % interval", "human-norm.", "frames", "frames/s", "score of"]
    reach = figures["reach"]
    head += [] if reach is None else [f"frames to {reach:g}", f"time to {reach:g}", "reached"]
    body = []
    for row in figures["groups"]:
        cells = [
            row["group"],
            row["game"],
            str(row["seeds"]),
            f"{row['iqm']:.4g}",
            _interval(row["ci95"], ".4g"),
            or_dash(row["human_normalized"], ".1%"),
            count(row["frames"]),
            or_dash(row["frames_per_second"], count),
            ", ".join(row["score_of"]),
        ]
        if reach is not None:
            cells += [or_dash(row["reach_frames"], count), or_dash(row["reach_seconds"], duration), row["reached"]]
        body.append(cells)
    parts = [table(head, body, markdown=markdown)]
    if figures["overall"]:
        games = figures["overall"][0]["games"]
        parts.append(f"Human-normalised over {len(games)} games ({', '.join(games)}):")
        cells = [
            [row["group"], str(row["seeds"]), f"{row['iqm']:.1%}", _interval(row["ci95"], ".1%")]
            for row in figures["overall"]
        ]
        parts.append(table(["group", "seeds a game", "IQM", "95 % interval"], cells, markdown=markdown))
    bullet = "* " if markdown else "note: "
    parts.append("\n".join(bullet + note for note in figures["notes"]))
    parts.append(DEFINITIONS)
    parts.append("; ".join(figures["hardware"]))
    return "\n\n".join(part for part in parts if part)


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Columns of equal width, with pipes between them in Markdown."""
    rows = [[cell.replace("|", "\\|") if markdown else cell for cell in row] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    if markdown:
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return or_dash(ends, lambda ends: " to ".join(format(end, form) for end in ends))
