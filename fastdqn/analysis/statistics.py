"""What games and runs say together: pure functions over scores and curves, NumPy only.

S: seeds of a group, G: finished games of a run, R: resamples, P: points of a common x axis.
The same scores give the same intervals. Definitions follow Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice" (rliable).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000  # of a score's interval
DRAWS_AT_ONCE = 1_000_000  # 8 MB of indices and 8 MB of scores
MIN_SEEDS = 3  # fewer tell nothing: the interval of two is the two
BAND_RESAMPLES = 2_000  # of a curve's band, at every point


class Curve(NamedTuple):
    """One run's values along x, which never falls."""

    x: np.ndarray  # float64 [P]
    y: np.ndarray  # float64 [P]


class Band(NamedTuple):
    """A group's mean along x, and the interval around it; of fewer than MIN_SEEDS seeds there is none."""

    x: np.ndarray  # float64 [P]
    mean: np.ndarray  # float64 [P]
    ends: np.ndarray | None  # float64 [2, P], 2.5 and 97.5 % of the bootstrapped means


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window` - 1 before it, the first ones of as many as there are. [G] -> float64 [G]"""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    return (total[stop] - total[start]) / (stop - start)


def first_reached(values: np.ndarray, threshold: float, window: int) -> int | None:
    """Index of the first value at which the mean of a full window reaches `threshold`; None: it never does."""
    reached = np.flatnonzero(trailing_mean(values, window)[window - 1 :] >= threshold)
    return int(reached[0]) + window - 1 if len(reached) else None


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis. float64 [..., S] -> float64 [...]

    A quarter of the scores, rounded down, is cut from both ends, and nothing is interpolated: what rliable computes by
    `scipy.stats.trim_mean(scores, 0.25)`. Of fewer than 4 scores it is their mean.
    """
    count = scores.shape[-1]
    cut = count // 4
    return np.sort(scores, axis=-1)[..., cut : count - cut].mean(axis=-1)


def bootstrap_interval(scores: np.ndarray, same: Sequence[bytes] = ()) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over these episodes (of one trained agent, not over seeds).

    Args:
        same: a fingerprint of each episode. Equal ones were one game and are drawn together: played ten times, a game is
            no ten games.
    """
    generator = np.random.default_rng(0)
    _, group = np.unique(np.array(same), return_inverse=True) if same else (None, np.arange(len(scores)))
    sums_G, counts_G = np.bincount(group, scores), np.bincount(group)
    means, rows = [], max(1, DRAWS_AT_ONCE // len(sums_G))
    for done in range(0, RESAMPLES, rows):
        drawn = generator.integers(len(sums_G), size=(min(rows, RESAMPLES - done), len(sums_G)))
        means.append(sums_G[drawn].sum(axis=1) / counts_G[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def stratified_bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over seeds, which are resampled within each game.

    Args:
        strata: for each game the scores of its seeds, float64 [S]; games may have different numbers of seeds.
        statistic: reduces the last axis, float64 [R, all seeds of all games] -> float64 [R].
    """
    generator = np.random.default_rng(0)
    drawn = [generator.choice(scores, size=(RESAMPLES, len(scores))) for scores in strata]
    low, high = np.percentile(statistic(np.concatenate(drawn, axis=1)), [2.5, 97.5])
    return float(low), float(high)


def on_axis(curve: Curve, points: int) -> Curve:
    """The same curve with at most `points` points, evenly spread along x."""
    if len(curve.x) <= points:
        return curve
    x = np.linspace(curve.x[0], curve.x[-1], points)
    return Curve(x, np.interp(x, curve.x, curve.y))


def mean_curve(curves: Sequence[Curve], *, interval: bool = True, points: int = 200) -> Band | None:
    """The mean over seeds and, with `interval`, its 95 % percentile bootstrap interval, where every seed has values.

    Further out the mean would jump as seeds drop out of it. None: there is no x at which all have values.
    """
    if len(curves) == 1 and len(curves[0].x):
        x, mean = on_axis(curves[0], points)
        return Band(x, mean, None)
    if not curves or not all(len(curve.x) for curve in curves):
        return None
    start, stop = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if start > stop:
        return None
    x = np.linspace(start, stop, points)
    y_SP = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    if not interval:
        return Band(x, y_SP.mean(axis=0), None)
    count = len(curves)
    # how often each seed was drawn, instead of which seeds: one matrix product serves every point
    share_RS = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BAND_RESAMPLES) / count
    return Band(x, y_SP.mean(axis=0), np.percentile(share_RS @ y_SP, [2.5, 97.5], axis=0))
