"""What runs left behind, as the commands that look back at them need it: curves, final scores, groups.

Everything here also reads a run that is still being written.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdqn import run_folder, runs
from fastdqn.analysis.statistics import Curve, first_reached, trailing_mean
from fastdqn.atari import RANDOM_AND_HUMAN_SCORES
from fastdqn.config import NOT_LEARNING, Config, unchanged
from fastdqn.errors import UsageError
from fastdqn.units import cores

X_LABELS = {"frames": "emulator frames", "steps": "env steps", "wall": "wall-clock minutes"}
WINDOW = 100  # games in the mean that counts as a run's score
NOT_SETTINGS = ("seed", *NOT_LEARNING)  # fields in which the runs of a group may differ


@dataclass(frozen=True)
class History:
    """One run, read once."""

    path: Path
    config: Config
    games: runs.Games
    rows: list[dict[str, Any]]  # of metrics.jsonl
    status: dict[str, Any]
    environment: dict[str, Any]
    evaluations: list[dict[str, Any]]
    in_use: bool  # by the process that trains it

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def game(self) -> str:
        return self.config.name.game

    @property
    def frames(self) -> int:
        """Emulator frames so far."""
        known = [0, self.status.get("frames", 0)]
        known += [row["frames"] for row in self.rows[-1:]]
        known += [steps * self.config.action_repeat for steps in self.games.env_steps[-1:].tolist()]
        return max(known)

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last log row."""
        return self.rows[-1]["wall_seconds"] if self.rows else 0.0

    @property
    def frames_per_second(self) -> float | None:
        """Of the whole run up to the last log row, the frames before learning starts included."""
        return self.rows[-1]["frames"] / self.seconds if self.seconds > 0 else None

    @property
    def state(self) -> str:
        """That of status.json; of a run that wrote no last one before its process ended "cut off"."""
        state = self.status.get("state", "running")
        return "cut off" if state in ("starting", "running") and not self.in_use else state

    def x_label(self, axis: str) -> str:
        """Of frames, steps or wall; where there is no emulator a frame is an env step."""
        return X_LABELS["steps" if axis == "frames" and not self.config.name.is_atari else axis]

    @property
    def hardware(self) -> str:
        """Processor or GPU, in words; empty where nobody wrote it down."""
        place = self.environment
        if not place.get("cpu"):
            return ""
        return f"{place['gpu'] + ', ' if place.get('gpu') else ''}{cores(place.get('cores', '?'))} of {place['cpu']}"


class Score(NamedTuple):
    """A run's final score and what it is the mean of."""

    value: float
    source: str  # "training" or "eval PROTOCOL, epsilon E"
    games: int

    @property
    def words(self) -> str:
        """The source, of an evaluation with the number of its games."""
        return (
            self.source if self.source == "training" else f"{self.source}, {self.games} game{'s' * (self.games != 1)}"
        )


def load(names: Sequence[str]) -> list[History]:
    """Reads runs given as folders or as names under `runs/`.

    Raises:
        UsageError: none given, no such run, or a config.toml or log that cannot be understood.
    """
    if not names:
        raise UsageError("runs=: no run given; name one or more folders that training printed")
    paths: dict[Path, Path] = {}
    for path in map(runs.find, names):  # one run under two names is one run
        paths.setdefault(path.resolve(), path)
    return [_read(path) for path in paths.values()]


def _read(path: Path) -> History:
    config = Config.load(path / "config.toml")
    in_use = bool(run_folder.in_use(path))  # before its status: who ends in between has finished and is not cut off
    try:
        games, rows = runs.games(path), runs.metrics(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"run={path}: its logs cannot be read ({error}); remove that line, or leave this run out"
        ) from None
    status, environment, evaluations = runs.status(path), runs.environment(path), runs.evaluations(path)
    return History(path, config, games, rows, status, environment, evaluations, in_use)


def group_by(histories: Sequence[History], field: str) -> dict[str, dict[str, list[History]]]:
    """Histories by game, then by a field of their configs or by "settings": all that learning depends on but seed and game.

    A group is called alike on all games, and stands on each in the order of its first appearance on any.

    Raises:
        UsageError: a Config has no such field.
    """
    known = ["settings", *(one.name for one in fields(Config))]
    field = field.replace("-", "_")
    if field not in known:
        near = difflib.get_close_matches(field, known, n=3, cutoff=0.0)
        raise UsageError(f"group_by={field}: a config has no such field; did you mean {', '.join(near)}?")
    if field == "settings":
        labels = _settings(histories)
    else:
        name = "" if field in ("preset", "env") else f"{field} "
        labels = [f"{name}{getattr(one.config, field)}" for one in histories]
    games = {one.game: {label: [] for label in labels} for one in histories}
    for one, label in zip(histories, labels, strict=True):
        games[one.game][label].append(one)
    return {game: {label: some for label, some in groups.items() if some} for game, groups in games.items()}


def _settings(histories: Sequence[History]) -> list[str]:
    """Each one's preset with what it takes to tell its settings from those of the preset's other runs on the same game."""
    apart: dict[str, dict[str, None]] = {}
    for preset, game in dict.fromkeys((one.config.preset, one.game) for one in histories):
        same = [one for one in histories if (one.config.preset, one.game) == (preset, game)]
        apart.setdefault(preset, {}).update(dict.fromkeys(differing_fields(same)))
    labels = []
    for one in histories:
        config, own = one.config, unchanged(one.config)
        names = [name for name in apart[config.preset] if getattr(config, name) != getattr(own, name)]
        labels.append(", ".join([config.preset, *(f"{name} {getattr(config, name)}" for name in names)]))
    return labels


def differing_fields(histories: Sequence[History]) -> list[str]:
    """The settings that are not the same in all of these runs, of those that learning depends on."""
    beside = {"checkpoint_replay", "checkpoint_period_frames", "eval_period_frames", "eval_episodes"}
    if any(one.config.deterministic for one in histories):
        beside -= {"checkpoint_period_frames", "eval_period_frames"}  # such a run begins new games at each
    names = [field.name for field in fields(Config) if field.name not in beside.union(NOT_SETTINGS)]
    return [name for name in names if len({getattr(one.config, name) for one in histories}) > 1]


def score_curve(history: History, axis: str, window: int = WINDOW) -> Curve:
    """Mean of the last `window` games along frames, steps or wall; the first points are of fewer games."""
    return Curve(_along(history, axis), trailing_mean(history.games.score, window))


def metric_curve(history: History, tag: str, axis: str, window: int) -> Curve:
    """A tag of metrics.jsonl along frames, steps or wall, as the mean of its last `window` log rows."""
    rows = [row for row in history.rows if row.get(tag) is not None]
    column = {"frames": "frames", "steps": "global_step", "wall": "wall_seconds"}[axis]
    x = np.array([row[column] for row in rows], np.float64)
    y = np.array([row[tag] for row in rows], np.float64)
    return Curve(x / 60 if axis == "wall" else x, trailing_mean(y, window))


def metric_tag(histories: Sequence[History], name: str) -> str:
    """The tag of metrics.jsonl that `name` means: `losses/td_loss`, or `td_loss` for short. Not all rows have all tags: an
    evaluation's score stands where it was found, and a run that refills its replay learns nothing.

    Raises:
        UsageError: no run logged such a metric.
    """
    tags = dict.fromkeys(tag for history in histories for row in history.rows for tag in row)
    known = {spelling: tag for tag in tags for spelling in (tag.split("/")[-1], tag)}
    if tags and name not in known:
        near = difflib.get_close_matches(name, ["score", *known], n=3, cutoff=0.0)
        raise UsageError(f"metric={name}: these runs logged no such metric; did you mean {', '.join(near)}?")
    return known.get(name, name)


def levels(game: str) -> dict[str, float]:
    """Published scores to compare with; none for a task that has none."""
    return dict(zip(("random play", "human"), RANDOM_AND_HUMAN_SCORES.get(game, ()), strict=False))


def final_score(history: History, source: str = "auto") -> Score | None:
    """The newest evaluation, or the mean of the last 100 games of training; None before there is one.

    Args:
        history: the run.
        source: "training", "eval", or "auto": the newest evaluation where there is one, which is the last one made of
            the newest checkpoint that has any.
    """
    if source != "training" and history.evaluations:
        newest = history.evaluations[-1]
        source = f"eval {newest['protocol']}, epsilon {newest['epsilon']:g}"
        return Score(newest["score_mean"], source, newest["episodes"])
    last = history.games.score[-WINDOW:]
    return None if source == "eval" or not len(last) else Score(float(last.mean()), "training", len(last))


def time_to_reach(history: History, score: float) -> tuple[int, float] | None:
    """Frames and seconds at which the mean of the last 100 games first reached `score`; None: it has not."""
    index = first_reached(history.games.score, score, WINDOW)
    if index is None:
        return None
    return int(_along(history, "frames")[index]), float(history.games.seconds[index])


def _along(history: History, axis: str) -> np.ndarray:
    """Where on the x axis each game ended. float64 [G]"""
    if axis == "wall":
        return history.games.seconds / 60
    return history.games.env_steps * float(history.config.action_repeat if axis == "frames" else 1)
