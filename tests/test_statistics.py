"""Literals in, literals out; where there is no literal, a slow reference."""

import itertools
import tracemalloc

import numpy as np
import pytest

from fastdqn.analysis.statistics import (
    Curve,
    bootstrap_interval,
    first_reached,
    interquartile_mean,
    mean_curve,
    on_axis,
    stratified_bootstrap,
    trailing_mean,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def mean(scores: np.ndarray) -> np.ndarray:
    return scores.mean(axis=-1)


def test_the_first_running_means_are_of_as_many_games_as_there_are() -> None:
    assert trailing_mean(array(4, 2, 0, 10), 3).tolist() == [4, 3, 2, 4]
    assert trailing_mean(array(), 3).tolist() == []


def test_a_score_is_reached_by_a_full_window_only() -> None:
    assert first_reached(array(9, 0, 0, 3, 3), 3, 3) == 0 + 2  # (9 + 0 + 0) / 3, not the lucky first game alone
    assert first_reached(array(9, 0, 0, 6, 6), 4, 3) == 4
    assert first_reached(array(9, 9), 1, 3) is None
    assert first_reached(array(0, 0, 0), 1, 3) is None


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7], 7),
        ([3, 0, 9], 4),  # nothing is cut of fewer than 4
        ([0, 4, 6, 100], 5),
        ([100, 6, 0, 4, 5], 5),  # one from each end of 5
        ([0, 1, 2, 3, 4, 50], 2.5),  # one from each end of 6: not interpolated
        ([0, 4, 5, 9, 60, 900], 19.5),  # nor rounded up: of 6 four are left, of 7 five
        ([0, 4, 5, 9, 60, 70, 900], 29.6),
        ([-50, 0, 1, 2, 3, 4, 5, 1000], 2.5),
    ],
)
def test_the_interquartile_mean_cuts_a_quarter_rounded_down_from_both_ends(scores: list, expected: float) -> None:
    assert float(interquartile_mean(array(*scores))) == expected
    assert interquartile_mean(np.tile(array(*scores), (2, 3, 1))).tolist() == [[expected] * 3] * 2


def test_seeds_are_resampled_within_each_game() -> None:
    games = [np.full(3, 1.0), np.full(3, 5.0)]
    assert stratified_bootstrap(games, mean) == (3, 3)  # pooled, the share of each game would vary
    low, high = stratified_bootstrap([np.concatenate(games)], mean)
    assert low < 3 < high


def test_the_interval_is_that_of_all_resamples_that_there_are() -> None:
    scores = array(0, 1, 3, 7, 20)
    every = [np.mean(draw) for draw in itertools.product(scores, repeat=5)]  # 5^5, each as likely as the others
    expected = np.percentile(every, [2.5, 97.5])
    np.testing.assert_allclose(stratified_bootstrap([scores], mean), expected, atol=0.41)  # 2 steps of 1/5
    assert stratified_bootstrap([array(0, 1)], mean) == (0, 1)


def test_the_same_scores_give_the_same_interval() -> None:
    scores = [np.sqrt(np.arange(20.0)), array(2, 2.5)]
    assert stratified_bootstrap(scores, interquartile_mean) == stratified_bootstrap(scores, interquartile_mean)


def test_a_mean_curve_spans_what_all_seeds_have_seen() -> None:
    band = mean_curve([Curve(array(0, 10), array(0, 10)), Curve(array(2, 6), array(4, 4))], points=5)
    assert band is not None and band.ends is not None
    assert band.x.tolist() == [2, 3, 4, 5, 6]
    assert band.mean.tolist() == [3, 3.5, 4, 4.5, 5]
    assert band.ends.tolist() == [[2, 3, 4, 4, 4], [4, 4, 4, 5, 6]]  # of two seeds from the one to the other


def test_the_band_is_narrower_than_the_seeds_and_agrees_with_all_resamples() -> None:
    seeds = array(0, 1, 3, 7, 20)
    band = mean_curve([Curve(array(0, 1), np.full(2, seed)) for seed in seeds], points=2)
    assert band is not None and band.ends is not None
    expected = np.percentile([np.mean(draw) for draw in itertools.product(seeds, repeat=5)], [2.5, 97.5])
    np.testing.assert_allclose(band.ends[:, 0], expected, atol=0.61)


def test_one_seed_has_no_band_and_seeds_that_never_meet_no_mean() -> None:
    alone = mean_curve([Curve(array(1, 2), array(3, 4))])
    assert alone is not None and alone.ends is None and alone.mean.tolist() == [3, 4]
    assert mean_curve([Curve(array(1, 2), array(3, 4)), Curve(array(5, 6), array(3, 4))]) is None
    assert mean_curve([]) is None
    assert mean_curve([Curve(array(), array())]) is None


def test_a_long_curve_is_thinned_and_a_short_one_left_alone() -> None:
    short = Curve(array(0, 1), array(5, 6))
    assert on_axis(short, 2) is short
    thin = on_axis(Curve(np.arange(101.0), 2 * np.arange(101.0)), 5)
    assert thin.x.tolist() == [0, 25, 50, 75, 100] and thin.y.tolist() == [0, 50, 100, 150, 200]


def test_the_interval_of_a_mean_is_that_of_all_its_resamples() -> None:
    scores = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    every = [np.mean(drawn) for drawn in itertools.product(scores, repeat=5)]  # what the bootstrap draws from
    assert bootstrap_interval(scores) == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.41)
    assert np.percentile(every, 95) < np.percentile(every, 97.5) - 0.41  # so that a 90 % interval would not do


def test_the_interval_counts_equal_games_as_one() -> None:
    scores, names = np.array([0.0, 10.0] * 2), [b"a", b"b"] * 2
    assert bootstrap_interval(np.repeat(scores, 25), [name for name in names for _ in range(25)]) == (0.0, 10.0)
    low, high = bootstrap_interval(np.repeat(scores, 25))
    assert 2.5 < low < 5 < high < 7.5
    draws = np.random.default_rng(0).normal(size=50)
    alone = bootstrap_interval(draws, [bytes([number]) for number in range(50)])
    assert alone == pytest.approx(bootstrap_interval(draws), abs=0.03)
    assert bootstrap_interval(np.full(9, 3.0), [b"x"] * 9) == (3.0, 3.0)


def test_a_game_that_was_played_often_counts_as_often_in_the_mean_of_each_resample() -> None:
    points, played = np.array([0.0, 1.0, 3.0, 7.0, 20.0]), np.array([1, 4, 1, 1, 9])
    names = [bytes([game]) for game, times in enumerate(played) for _ in range(times)]
    drawn = np.array(list(itertools.product(range(5), repeat=5)))
    every = (points * played)[drawn].sum(axis=1) / played[drawn].sum(axis=1)
    expected = np.percentile(every, [2.5, 97.5])
    assert bootstrap_interval(np.repeat(points, played), names) == pytest.approx(expected, abs=0.3)
    assert expected[1] > np.percentile(points[drawn].mean(axis=1), 97.5) + 1  # of each game once


def test_the_bootstrap_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        low, high = bootstrap_interval(draw.normal(10.0, 3.0, size=100))
        covered += low <= 10.0 <= high
    assert 52 <= covered <= 60


def test_the_bootstrap_takes_little_memory_however_many_the_episodes() -> None:
    tracemalloc.start()
    low, high = bootstrap_interval(np.arange(3_000.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < 1499.5 < high and peak < 60_000_000  # all resamples at once would be 480 MB


def test_the_bootstrap_interval_of_one_episode_is_that_episode() -> None:
    assert bootstrap_interval(np.array([7.0])) == (7.0, 7.0)
