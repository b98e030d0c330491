"""`fastdqn report`: one page about one run, with everything it shows inside."""

import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastdqn import runs
from fastdqn.analysis import page
from fastdqn.analysis.charts import Line, Panel, legend_levels, limits, svg_chart
from fastdqn.analysis.history import NOT_SETTINGS, History, final_score, levels, load, metric_curve, score_curve
from fastdqn.analysis.statistics import Curve, mean_curve
from fastdqn.atari import human_normalized_score, steps_per_second
from fastdqn.commands import JsonFlags, emit
from fastdqn.config import Config, preset_names, unchanged
from fastdqn.errors import UsageError
from fastdqn.run_folder import replace_file
from fastdqn.units import count, duration, or_dash

VIDEO_LIMIT_BYTES = 16_000_000  # a third more as base64: what a phone still opens
PHASES = {
    "env": "waiting for the games and sending them their actions",
    "act": "choosing actions and waiting for them; on a GPU also for the updates queued before",
    "append": "handing the group's frames over",
    "learn": "updates; on a GPU only the time to queue them",
    "log": "counting games, metrics, checkpoints",
}
SMOOTHED_ROWS = 10  # log rows in the mean of a curve
# what is drawn beside the score: tag, x axis, what it is
CURVES = (
    ("losses/q_values", "frames", "Q values of the actions taken"),
    ("losses/td_loss", "frames", "TD loss"),
    ("perf/fps", "wall", "frames per second"),
)


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Writes one HTML page about a run that needs no network: summary, curves, time, config, evaluation, video."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or its name under runs/."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Page to write. Empty: report.html in the run's folder."""


def main(flags: Flags) -> int:
    (history,) = load([flags.run])
    out = Path(flags.out) if flags.out else history.path / "report.html"
    data = html(history).encode(errors="replace")  # a folder's name need not be text
    try:
        replace_file(out, data)  # a browser that reloads never sees half a page
    except OSError as error:
        raise UsageError(f"out={out}: cannot be written ({error.strerror}); name another file with -o") from None
    figures = {"report": str(out), "bytes": len(data), "run": str(history.path), "state": history.state}
    emit(f"report: {out} ({len(data) / 1e6:.2f} MB)", figures, as_json=flags.json)
    return 0


def html(history: History) -> str:
    """The page. Reads a run that is still being written too; what is not there yet is left out or said."""
    config, place = history.config, history.environment
    repeat = config.action_repeat
    frames = f"frames are emulator frames, {repeat} per env step" if repeat > 1 else "a frame is an env step"
    return page.document(
        f"{history.game}, preset {config.preset}, seed {config.seed}",
        f"{history.name}: {history.state}" + (f", {history.status['time']}" if "time" in history.status else ""),
        [
            page.section("Summary", page.facts(summary(history))),
            page.section("Curves", page.charts(curves(history))),
            page.section("Where the time went", time_spent(history)),
            page.section("Evaluation", evaluation(history)),
            page.section("Video", video(history)),
            page.section("Configuration", configuration(config)),
            page.section(
                "Hardware and versions",
                page.table([], [[key, or_dash(value, str)] for key, value in place.items()]),
                page.code(command) if (command := runs.command(history.path)) else "",
            ),
        ],
        f"Written by fastdqn report, {time.strftime('%Y-%m-%d %H:%M %z')}. Scores are unclipped; {frames}.",
    )


def summary(history: History) -> list[tuple[str, str]]:
    """The figures that come first."""
    facts = [("state", history.state)]
    score = final_score(history, "training")
    if score is None:
        facts.append(("score", "no finished game yet"))
    else:
        facts.append((f"score, last {score.games} games", f"{score.value:.2f}"))
        human = human_normalized_score(history.game, score.value)
        facts += [] if human is None else [("human-normalised", f"{human:.1%}")]
    facts += [
        ("frames", f"{count(history.frames)} of {count(history.config.total_frames)}"),
        ("games", f"{len(history.games.score):,}"),
        ("training time", duration(history.seconds)),
        ("frames per second", or_dash(history.frames_per_second, count)),
    ]
    return facts


def curves(history: History) -> list[tuple[str, str]]:
    """SVG and caption: the score, then what CURVES names and the run has logged."""

    def drawn(curve: Curve, ylabel: str, axis: str, beside: dict[str, float]) -> tuple[str, str]:
        panel = Panel("", history.x_label(axis), ylabel, [Line("", [curve], mean_curve([curve]))], beside)
        found = limits(panel)
        return svg_chart(panel), "; ".join([ylabel, *(legend_levels(panel, found) if found else [])])

    words = "Score, mean of the last 100 games"
    drawings = [drawn(score_curve(history, "frames"), words, "frames", levels(history.game))]
    for tag, axis, words in CURVES:
        curve = metric_curve(history, tag, axis, SMOOTHED_ROWS)
        if len(curve.x):
            drawings.append(drawn(curve, words[0].upper() + words[1:], axis, {}))
    return drawings


def time_spent(history: History) -> str:
    """The phases of the loop as shares of its time so far."""
    row = history.rows[-1] if history.rows else {}
    shares = {
        tag.removeprefix("perf/").removesuffix("_frac"): value
        for tag, value in row.items()
        if tag.endswith("_frac") and value is not None
    }
    return page.bar(shares, PHASES) if shares else page.paragraph("Nothing logged yet.")


def evaluation(history: History) -> str:
    """The results under eval/, one row each."""
    if not history.evaluations:
        return page.paragraph(
            f"None yet: fastdqn eval {shlex.quote(str(history.path))} plays 100 games and counts them all."
        )
    body = []
    for result in reversed(history.evaluations):
        low, high = result["score_ci95"]
        body.append([
            f"{result['protocol']}, sticky {result['sticky_actions']:g}, epsilon {result['epsilon']:g}",
            f"{result.get('frames', 0):,}", str(result["episodes"]), f"{result['score_mean']:.2f}",
            f"{low:.2f} to {high:.2f}", f"{result['score_median']:.2f}",
            f"{result['score_min']:g} to {result['score_max']:g}", or_dash(result.get("human_normalized"), ".1%"),
            str(result["distinct_games"]),
        ])  # fmt: skip
    head = ["protocol", "frames", "games", "mean", "95 % interval", "median", "range", "human-norm.", "distinct"]
    return page.table(head, body, "The interval is over the games of this one agent, not over seeds.")


def video(history: History) -> str:
    """The newest video that is small enough, and what was left out."""
    folder = history.path / "videos"
    found = [path for path in folder.glob("*") if path.suffix in page.MEDIA and not path.name.startswith(".")]
    found = sorted(
        (path for path in found if path.is_file() and path.stat().st_size), key=lambda path: path.stat().st_mtime
    )
    if not found:
        if steps_per_second(history.config.name, 1) is None:
            return page.paragraph(f"None: EnvPool draws no picture of {history.game}.")
        return page.paragraph(f"None yet: fastdqn record {shlex.quote(str(history.path))} makes one.")
    large = [path for path in found if path.stat().st_size > VIDEO_LIMIT_BYTES]
    small = [path for path in found if path not in large]
    words = small[-1].name if small else ""
    if found[-1] in large:
        size, limit = found[-1].stat().st_size / 1e6, VIDEO_LIMIT_BYTES / 1e6
        words += f"{'; ' if words else ''}{found[-1].name} ({size:.1f} MB) is larger than {limit:.0f} MB and left out"
    return (page.media(small[-1]) if small else "") + page.paragraph(words)


def configuration(config: Config) -> str:
    """What differs from the preset, and, folded away, every field."""
    base, name = unchanged(config), f"preset {config.preset}"
    if config.preset not in preset_names():
        name = f"the defaults (preset {config.preset} does not ship with this version)"
    values, before, default = asdict(config), asdict(base), asdict(Config())
    changed = [
        [field, *(or_dash(one, str) for one in (value, before[field], default[field]))]
        for field, value in values.items()
        if value != before[field] and field not in NOT_SETTINGS
    ]
    everything = page.table(["field", "value"], [[field, or_dash(value, str)] for field, value in values.items()])
    return "\n".join([
        page.table(["field", "this run", "preset", "default"], changed, f"What differs from {name}.")
        or page.paragraph(f"Nothing differs from {name}."),
        page.details("Every field", everything),
    ])  # fmt: skip
