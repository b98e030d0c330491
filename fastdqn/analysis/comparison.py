"""Groups of runs side by side: their scores over seeds, and what these tell and do not tell."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdqn.analysis.history import History, differing_fields, final_score, group_by, time_to_reach
from fastdqn.analysis.statistics import MIN_SEEDS, interquartile_mean, stratified_bootstrap
from fastdqn.atari import human_normalized_score
from fastdqn.errors import UsageError


def compare(histories: Sequence[History], *, group: str, source: str, reach: float | None) -> dict[str, Any]:
    """The figures of every group on every game, over all games with a human score, and notes.

    Args:
        histories: the runs.
        group: by what they form groups, see `group_by`.
        source: what their scores are, see `final_score`; where "auto" gives some runs another kind than others, the
            scores of training for all.
        reach: score whose time is looked for, or None.

    Raises:
        UsageError: evaluations were asked for, and the runs have those of several protocols.
    """
    notes = []
    kinds = list(dict.fromkeys(score.source for one in histories if (score := final_score(one, source)) is not None))
    if len(kinds) > 1:  # their means would be of two things, and so would a difference between groups
        several = f"the runs share no protocol ({'; '.join(kinds)})"
        if source == "eval":
            raise UsageError(f"score=eval: {several}; run fastdqn eval on all of them alike, or take --score training")
        notes.append(f"{several}: the scores are those of training; run fastdqn eval on all of them alike for others")
        source = "training"
    if unscored := [one.name for one in histories if final_score(one, source) is None]:
        missing = "evaluation" if source == "eval" else "finished game"
        notes.append(f"no {missing} yet, left out: {', '.join(unscored)}")
        histories = [one for one in histories if final_score(one, source) is not None]
    by_game = group_by(histories, group)
    rows = [
        summary(label, game, members, source=source, reach=reach)
        for game, some in by_game.items()
        for label, members in some.items()
    ]
    overall = aggregate(rows)
    notes += [note for game in by_game for note in verdicts(game, [row for row in rows if row["game"] == game])]
    notes += verdicts("all games", overall)
    notes += [note for game, some in by_game.items() for note in doubts(game, some)]
    notes += [
        f"{one.name} has not finished: {one.state}, {one.frames:,} frames"
        for one in histories
        if one.state != "finished"
    ]
    hardware = list(dict.fromkeys(one.hardware for one in histories if one.hardware))
    if len(hardware) > 1:
        notes.append("the runs were made on different hardware: frames/s and times do not compare")
    return {
        "group_by": group,
        "reach": reach,
        "groups": rows,
        "overall": overall,
        "notes": notes,
        "hardware": hardware,
    }


def summary(label: str, game: str, members: Sequence[History], *, source: str, reach: float | None) -> dict[str, Any]:
    """One row: a group on one game. Frames, speeds and times are medians over the same runs as its score."""
    scored = [(one, score) for one in members if (score := final_score(one, source)) is not None]
    runs = [{"run": str(one.path), "seed": one.config.seed, **score._asdict()} for one, score in scored]
    scores = by_seed(runs)
    speeds = [one.frames_per_second for one in members if one.frames_per_second is not None]
    row: dict[str, Any] = {
        "group": label,
        "game": game,
        "seeds": len(scores),
        "runs": runs,
        "score_of": sorted({score.words for _, score in scored}),
        **estimate([scores]),
        "frames": float(np.median([one.frames for one in members])),
        "frames_per_second": float(np.median(speeds)) if speeds else None,
    }
    row["human_normalized"] = human_normalized_score(game, row["iqm"])
    if reach is not None:
        times = [time_to_reach(one, reach) for one in members]
        # a seed that has not got there is later than any that has
        frames, seconds = (float(np.median([np.inf if time is None else time[i] for time in times])) for i in (0, 1))
        row["reached"] = f"{sum(time is not None for time in times)}/{len(times)}"
        row["reach_frames"] = frames if np.isfinite(frames) else None
        row["reach_seconds"] = seconds if np.isfinite(seconds) else None
    return row


def by_seed(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """The score of each seed; of one that ran several times the mean, for these runs are not independent. float64 [S]"""
    scores: dict[int, list[float]] = {}
    for run in runs:
        scores.setdefault(run["seed"], []).append(run["value"])
    return np.array([np.mean(some) for some in scores.values()], np.float64)


def estimate(scores_by_game: Sequence[np.ndarray]) -> dict[str, Any]:
    """IQM and 95 % interval of float64 [S] per game; of fewer than MIN_SEEDS on a game there is no interval."""
    scores = np.concatenate(scores_by_game)
    enough = min(map(len, scores_by_game)) >= MIN_SEEDS
    return {
        "iqm": float(interquartile_mean(scores)),
        "ci95": list(stratified_bootstrap(scores_by_game, interquartile_mean)) if enough else None,
        "mean": float(scores.mean()),
    }


def aggregate(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Human-normalised scores over the games that every group has played and that have a human score; from two on."""
    scores = {
        (row["group"], row["game"]): np.array(
            [human_normalized_score(row["game"], score) for score in by_seed(row["runs"])], np.float64
        )
        for row in rows
        if row["human_normalized"] is not None
    }
    groups, games = (dict.fromkeys(row[name] for row in rows) for name in ("group", "game"))
    games = [game for game in games if all((group, game) in scores for group in groups)]
    if len(games) < 2:
        return []
    return [
        {
            "group": group,
            "games": games,
            "seeds": min(row["seeds"] for row in rows if row["group"] == group and row["game"] in games),
            **estimate([scores[group, game] for game in games]),
        }
        for group in groups
    ]


def verdicts(where: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each small group that it has too few seeds, for each pair of the others whether their difference is settled."""
    said = [
        f"{row['group']} on {where}: {row['seeds']} seed{'s' * (row['seeds'] != 1)}, too few to tell; train at least "
        f"{MIN_SEEDS}"
        for row in rows
        if row["seeds"] < MIN_SEEDS
    ]
    for pair in itertools.combinations([row for row in rows if row["seeds"] >= MIN_SEEDS], 2):
        worse, better = sorted(pair, key=lambda row: row["iqm"])
        names = f"{better['group']} against {worse['group']} on {where}"
        if worse["ci95"][1] >= better["ci95"][0]:
            said.append(f"{names}: the difference is not settled, their intervals overlap")
        else:
            said.append(f"{names}: higher, their intervals do not overlap")
    return said


def doubts(game: str, groups: dict[str, list[History]]) -> list[str]:
    """Why the groups of one game may not be what they seem: seeds, settings or budgets that do not match."""
    said = []
    for label, members in groups.items():
        seeds = [one.config.seed for one in members]
        if len(set(seeds)) < len(seeds):
            said.append(f"{label} on {game} has one seed twice: its runs are not independent, their mean counts once")
    said += mixed_settings(game, groups)
    frames = [one.frames for members in groups.values() for one in members]
    if max(frames) > 1.02 * min(frames):  # the last group of games overshoots a little
        said.append(f"the runs on {game} have trained for different numbers of frames")
    return said


def mixed_settings(game: str, groups: dict[str, list[History]]) -> list[str]:
    """For each group of one game whose runs differ in more than their seeds, in what."""
    return [
        f"{label} on {game} mixes settings: its runs differ in {', '.join(differing)}"
        for label, members in groups.items()
        if (differing := differing_fields(members))
    ]
