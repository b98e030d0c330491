"""Evaluation: quotas instead of first finished, honest counts, the same observations as in training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdqn.cli import main
from fastdqn.config import Config, UsageError, load_preset
from fastdqn.evaluation import bootstrap_interval, evaluate, format_result, protocol_of, quotas
from fastdqn.trainer import train


@pytest.fixture(scope="module")
def catch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("catch") / "run"
    train(replace(load_preset("catch"), run_dir=str(run), ui="quiet", compile=False, torch_threads=1, total_frames=40_000))
    return run


@pytest.fixture(scope="module")
def breakout_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("breakout") / "run"
    train(
        replace(Config(), run_dir=str(run), num_envs=4, replay_capacity=2_000, batch_size=8, learning_starts=400,
                hidden_size=16, total_frames=2_400, compile=False, ui="quiet", max_episode_steps=150, torch_threads=2)
    )  # fmt: skip
    return run


def test_a_trained_agent_scores_in_evaluation_what_it_scored_in_training(catch_run: Path) -> None:
    result = evaluate(catch_run, episodes=100)
    assert result["score_mean"] >= 0.9
    assert result["episodes"] == 100 and result["capped_games"] == 0 and result["human_normalized"] is None
    low, high = result["score_ci95"]
    assert low <= result["score_mean"] <= high
    saved = list((catch_run / "eval").glob("*.json"))
    assert len(saved) == 1 and json.loads(saved[0].read_text())["score_mean"] == result["score_mean"]


def test_the_json_line_has_what_programs_need(breakout_run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", str(breakout_run), "--episodes", "6", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    wanted = {"episodes", "score_mean", "score_median", "score_ci95", "human_normalized", "distinct_games", "capped_games"}
    assert wanted <= result.keys() and result["episodes"] == 6
    assert 1 <= result["distinct_games"] <= 6
    assert "human-normalised" in printed.err and len(printed.out.splitlines()) == 1


def test_games_cut_at_the_step_cap_are_counted(breakout_run: Path) -> None:
    assert evaluate(breakout_run, episodes=6, epsilon=1.0)["capped_games"] == 6  # no Breakout game ends in 150 steps


def test_equal_seeds_give_equal_games_and_another_seed_other_games(breakout_run: Path) -> None:
    one, two, other = (evaluate(breakout_run, episodes=4, epsilon=0.5, seed=seed) for seed in (1, 1, 2))
    assert one["length_mean"] == two["length_mean"] and one["score_mean"] == two["score_mean"]
    assert one["distinct_games"] == two["distinct_games"] == other["distinct_games"] == 4


def test_games_that_repeat_are_said_to_repeat() -> None:
    result = {"env": "x", "frames": 1, "episodes": 8, "protocol": "noop", "sticky_actions": 0.0, "epsilon": 0.0,
              "score_ci95": [0.0, 1.0], "score_mean": 0.5, "score_median": 0.5, "score_min": 0.0, "score_max": 1.0,
              "length_mean": 1.0, "capped_games": 0, "human_normalized": 0.25, "distinct_games": 3}  # fmt: skip
    text = format_result(result)
    assert "only 3 of the 8 games were distinct" in text and "25.0%" in text


def test_quotas_are_fixed_in_advance_and_sum_to_the_episodes() -> None:
    for episodes in (1, 7, 64, 100):
        for num_envs in (1, 3, 64):
            quota = quotas(episodes, num_envs)
            assert quota.sum() == episodes and quota.max() - quota.min() <= 1


def test_the_quota_rule_is_unbiased_where_the_first_finished_games_are_not() -> None:
    """Games of geometric length, score = length, mean 50: the first 64 of 64 envs to finish are the short ones."""
    draw = np.random.default_rng(0)
    quota_means, first_means = [], []
    for _ in range(400):
        lengths = draw.geometric(1 / 50, size=(64, 40))
        quota_means.append(np.mean([lengths[env, :count].mean() for env, count in enumerate(quotas(64, 64))]))
        ends = np.cumsum(lengths, axis=1)
        first = np.argsort(ends, axis=None)[:64]
        first_means.append(lengths.reshape(-1)[first].mean())
    assert abs(np.mean(quota_means) - 50) < 1.5
    assert np.mean(first_means) < 35


def test_the_bootstrap_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        low, high = bootstrap_interval(draw.normal(10.0, 3.0, size=100))
        covered += low <= 10.0 <= high
    assert 52 <= covered <= 60


def test_protocols_differ_as_their_sources_say() -> None:
    config, _ = replace(Config(), sticky_actions=0.1).resolved()
    assert protocol_of("run", config)[:2] == (0.1, 30)
    assert protocol_of("sticky", config) == (0.25, 30, 27_000, False, 0.001)
    assert protocol_of("noop", config) == (0.0, 30, 27_000, True, 0.001)
    assert protocol_of("nature", config) == (0.0, 30, 4_500, True, 0.05)


@pytest.mark.parametrize(("field", "value"), [("episodes", 0), ("epsilon", 1.5), ("num_envs", -1)])
def test_values_that_cannot_be_are_refused_by_name(field: str, value: float, catch_run: Path) -> None:
    with pytest.raises(UsageError, match=f"{field}="):
        evaluate(catch_run, **{field: value})
