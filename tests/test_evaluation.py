"""Evaluation: quotas instead of first finished, honest counts, the same observations as in training."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import envpool
import numpy as np
import pytest
import torch
from small_runs import quiet

from fastdqn import checkpoint, rng
from fastdqn.checkpoint import CheckpointError
from fastdqn.cli import main
from fastdqn.commands.eval import format_result
from fastdqn.config import Config
from fastdqn.envs import EnvStep, VectorEnv, env_seeds
from fastdqn.errors import UsageError
from fastdqn.evaluation import (
    PROTOCOLS,
    Game,
    GameTally,
    config_of,
    evaluate,
    network_of,
    play,
    protocol_of,
    quotas,
    set_up,
    summarize,
)
from fastdqn.machine import hardware
from fastdqn.player import Player
from fastdqn.screens import Screen
from fastdqn.trainer import train


@pytest.fixture(scope="module")
def catch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("catch") / "run"
    train(quiet("catch", run, total_frames=16_000))
    return run


@pytest.fixture(scope="module")
def breakout_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("breakout") / "run"
    train(
        replace(Config(), run_dir=str(run), num_envs=4, replay_capacity=2_000, batch_size=8, learning_starts=400,
                hidden_size=16, total_frames=2_400, compile=False, ui="quiet", max_episode_steps=60, torch_threads=1)
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
    wanted = {
        "episodes",
        "score_mean",
        "score_median",
        "score_ci95",
        "human_normalized",
        "distinct_games",
        "capped_games",
    }
    assert wanted <= result.keys() and result["episodes"] == 6
    assert 1 <= result["distinct_games"] <= 6
    assert "human-normalised" in printed.err and len(printed.out.splitlines()) == 1


def test_games_cut_at_the_step_cap_are_counted(breakout_run: Path) -> None:
    assert evaluate(breakout_run, episodes=6, epsilon=1.0)["capped_games"] == 6  # no Breakout game ends in 60 steps


def test_an_agent_is_played_in_full_float32_also_after_training_in_tf32(catch_run: Path) -> None:
    hardware.use_tf32(True)
    assert evaluate(catch_run, episodes=1, num_envs=3)["num_envs"] == 1  # more would be played for nothing
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_equal_seeds_give_equal_games_and_another_seed_other_games(breakout_run: Path) -> None:
    one, two, other = (evaluate(breakout_run, episodes=4, epsilon=0.5, seed=seed) for seed in (1, 1, 2))
    assert one["length_mean"] == two["length_mean"] and one["score_mean"] == two["score_mean"]
    assert one["distinct_games"] == two["distinct_games"] == other["distinct_games"] == 4


def test_the_games_of_an_evaluation_are_its_protocols_and_of_seeds_that_training_never_uses(
    breakout_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(breakout_run, tmp_path / "run")
    config = Config.load(breakout_run / "config.toml")
    changed = replace(config, frame_skip=3, noop_max=7, sticky_actions=0.25, max_episode_steps=36_000)
    (tmp_path / "run" / "config.toml").write_text(changed.to_toml())
    for protocol, sticky, noops, cap in (
        ("run", 0.25, 7, 36_000),
        ("nature", 0.0, 30, 6_000),
        ("sticky", 0.25, 30, 36_000),
    ):
        agent = set_up(tmp_path / "run", 2, 5, protocol=protocol)
        envs, asked = agent.envs, agent.envs._pool.spec.config
        assert agent.network.compute_dtype == torch.float32  # whatever it was trained in
        assert agent.player._key == rng.role_key(5, "eval explore") != rng.role_key(5, "explore")
        assert (asked.repeat_action_probability, asked.noop_max, asked.frame_skip) == (sticky, noops, 3)
        assert asked.max_episode_steps == envs.max_episode_steps == cap
        assert list(asked.env_seed) == env_seeds(5, 0, "eval", 2) != env_seeds(5, 0, "train", 2)
        envs.close()


def test_the_figures_of_games_by_hand() -> None:
    """Freeway: random play 0, a human 29.6."""
    games = [Game(0, score, 1, False, bytes([i])) for i, score in enumerate((0.0, 1.0, 87.8))]
    figures = summarize(games, "Freeway")
    assert (figures["score_mean"], figures["score_median"]) == (pytest.approx(29.6), 1.0)
    assert figures["human_normalized"] == pytest.approx(1.0)


def test_every_figure_of_games_that_repeat_is_over_all_of_them_and_the_interval_counts_equal_ones_as_one() -> None:
    games = [Game(0, 0.0, 10, False, b"a")] * 30 + [Game(1, 10.0, 40, True, b"b")] * 10
    assert summarize(games, "Catch") == {
        "episodes": 40, "score_mean": 2.5, "score_median": 0.0, "score_ci95": [0.0, 10.0], "score_min": 0.0,
        "score_max": 10.0, "human_normalized": None, "distinct_games": 2, "capped_games": 10, "length_mean": 17.5,
    }  # fmt: skip


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


def geometric_games(num_envs: int, steps: int, seed: int) -> Iterator[EnvStep]:
    """Rows of envs whose games last a geometric number of env steps, mean 20; a step scores a point, its reward is -1."""
    draw = np.random.default_rng(seed)
    env_id, no = np.arange(num_envs, dtype=np.int32), np.zeros(num_envs, np.bool_)
    done = np.ones(num_envs, np.bool_)
    for _ in range(steps):
        first, done = done, (draw.random(num_envs) < 1 / 20) & ~done
        point = (~first).astype(np.float32)
        yield EnvStep(np.zeros((num_envs, 1), np.uint8), -point, point, done, no, no, first, env_id)


def test_the_quota_rule_is_unbiased_where_the_first_finished_games_are_not() -> None:
    quota_scores, first_finished_scores = [], []
    for seed in range(40):
        tally, every_game = GameTally(quotas(40, 32)), GameTally(np.full(32, 1000))
        for step in geometric_games(32, 600, seed):
            tally.add(step)
            every_game.add(step)
        assert tally.complete
        quota_scores += [game.score for game in tally.games]
        first_finished_scores += [game.score for game in every_game.games[:40]]
    error = np.std(quota_scores) / np.sqrt(len(quota_scores))
    assert abs(np.mean(quota_scores) - 20) < 4 * error and error < 0.6
    assert np.mean(first_finished_scores) < 14


class RecordedEnvs(VectorEnv):
    """Remembers every row that came back and every action that was sent."""

    def start(self) -> None:
        self.steps: list[EnvStep] = []
        self.actions: list[np.ndarray] = []
        super().start()

    def recv(self) -> EnvStep:
        self.steps.append(super().recv())
        return self.steps[-1]

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        self.actions.append(action.copy())
        super().send(action, env_id)


class RecordedNetwork(torch.nn.Module):
    """Remembers every observation; its Q-values depend on it."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.obs: list[torch.Tensor] = []

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        self.obs.append(obs.clone())
        return obs.flatten(1).float()[:, 3000 : 3000 + self.num_actions]


def recorded_play(quota: list[int], *, cap: int, fire: bool) -> tuple[RecordedEnvs, RecordedNetwork, list[Game]]:
    envs = RecordedEnvs(
        "Breakout", num_envs=len(quota), seed=3, role="eval", synchronous=True, max_episode_steps=cap, num_threads=2
    )
    network = RecordedNetwork(envs.num_actions)
    player = Player(network, envs, frame_stack=4, epsilon=0.9, fire_after_life_loss=fire, seed=3,
                    device=torch.device("cpu"), screen=Screen((84, 84), (84, 84)))  # fmt: skip
    return envs, network, play(player, envs, np.array(quota))


def test_the_network_sees_what_envpool_itself_would_have_stacked() -> None:
    envs, network, _ = recorded_play([3, 2, 2], cap=30, fire=True)
    oracle = envpool.make("Breakout-v5", env_type="gymnasium", num_envs=3, stack_num=4, max_episode_steps=30,
                          seed=env_seeds(3, 0, "eval", 3), use_inter_area_resize=True)  # fmt: skip
    stack, _ = oracle.reset()
    for obs, action in zip(network.obs, envs.actions, strict=True):
        assert torch.equal(obs, torch.from_numpy(stack))
        stack = oracle.step(action)[0]
    assert len(network.obs) > 80


def test_exactly_the_first_games_of_each_env_count_with_their_unclipped_scores() -> None:
    quota = [1, 3, 2]
    envs, _, games = recorded_play(quota, cap=250, fire=True)
    for env, count in enumerate(quota):
        scores, lengths = [0.0], [0]
        for step in envs.steps:
            if step.first[env]:
                continue
            scores[-1] += step.score[env]
            lengths[-1] += 1
            if step.done[env]:
                scores.append(0.0)
                lengths.append(0)
        counted = [game for game in games if game.env == env]
        assert [game.score for game in counted] == scores[:count]
        assert [game.length for game in counted] == lengths[:count]
        assert sum(step.done[env] for step in envs.steps) >= count
    assert sum(game.score for game in games) > 0


@pytest.mark.parametrize("fire", [True, False])
def test_fire_follows_a_lost_life_only_where_the_protocol_says_so(fire: bool) -> None:
    envs, _, _ = recorded_play([1] * 8, cap=300, fire=fire)
    after_loss = [
        action[env]
        for step, action in zip(envs.steps, envs.actions, strict=False)  # the last row needs no action
        for env in np.flatnonzero(step.life_lost)
    ]
    assert len(after_loss) > 10
    assert all(action == envs.fire_action for action in after_loss) == fire


def test_every_step_of_a_game_tosses_its_coins_anew() -> None:
    envs, _, _ = recorded_play([1] * 8, cap=60, fire=False)
    actions = np.stack(envs.actions)  # nine of ten at random among four
    assert actions.shape == (60, 8)
    assert all(len(set(actions[:, env].tolist())) == 4 for env in range(8))


def test_games_in_which_the_same_was_seen_are_one_distinct_game() -> None:
    def rows(frames: list[list[int]], done: bool) -> EnvStep:
        obs, no, zero = np.array(frames, np.uint8), np.zeros(3, np.bool_), np.zeros(3, np.float32)
        return EnvStep(obs, zero, zero, np.full(3, done), no, no, np.full(3, not done), np.arange(3, dtype=np.int32))

    tally = GameTally(np.array([2, 2, 2]))
    tally.add(rows([[1, 1], [1, 1], [1, 1]], done=False))
    tally.add(rows([[2, 2], [2, 2], [2, 3]], done=True))
    tally.add(rows([[1, 1], [9, 9], [1, 1]], done=False))
    tally.add(rows([[2, 2], [2, 2], [2, 3]], done=True))
    same = [game.fingerprint for game in tally.games]
    assert same[0] == same[1] == same[3] and same[2] == same[5]
    assert len(set(same)) == 3  # those two, and the one that began with 9


def test_a_game_that_began_after_other_no_ops_and_ended_alike_is_the_same_game() -> None:
    def played(frames: list[int], score: float) -> bytes:
        tally, no, end = GameTally(np.array([1])), np.zeros(1, np.bool_), len(frames) - 1
        for row, frame in enumerate(frames):
            points = np.full(1, score if row == end else 0.0, np.float32)
            tally.add(EnvStep(np.full((1, 4), frame % 251, np.uint8), points, points, np.array([row == end]), no, no,
                              np.array([row == 0]), np.zeros(1, np.int32)))  # fmt: skip
        return tally.games[0].fingerprint

    course = list(range(400))
    assert played([7, 7, *course], 5.0) == played(course, 5.0)
    assert played(course, 5.0) != played(course, 6.0) and played([*course[:-1], 0], 5.0) != played(course, 5.0)


def test_results_of_different_settings_lie_side_by_side(catch_run: Path) -> None:
    kept = set((catch_run / "eval").glob("*.json"))
    settings: dict[str, Any]
    for settings in ({"episodes": 3}, {"episodes": 4}, {"episodes": 4, "epsilon": 0.5}, {"episodes": 4, "seed": 9}):
        evaluate(catch_run, **settings)
    assert len(set((catch_run / "eval").glob("*.json")) - kept) == 4


def test_protocols_differ_as_their_sources_say() -> None:
    config, _ = replace(Config(), sticky_actions=0.1).resolved()
    assert protocol_of("run", config)[:2] == (0.1, 30)
    assert protocol_of("sticky", config) == (0.25, 30, 27_000, True, 0.001)
    assert protocol_of("noop", config) == (0.0, 30, 27_000, True, 0.001)
    assert protocol_of("nature", config) == (0.0, 30, 4_500, True, 0.05)


def test_fire_follows_a_lost_life_under_every_protocol_exactly_if_it_did_in_training() -> None:
    for mode, pressed in (("auto", True), ("on", True), ("off", False)):
        config, _ = replace(Config(), fire_after_life_loss=mode).resolved()
        assert {protocol_of(name, config).fire_after_life_loss for name in PROTOCOLS} == {pressed}


@pytest.mark.parametrize(("field", "value"), [("episodes", 0), ("epsilon", 1.5), ("num_envs", -1), ("seed", -1)])
def test_values_that_cannot_be_are_refused_by_name(field: str, value: Any, catch_run: Path) -> None:
    with pytest.raises(UsageError, match=f"{field}="):
        evaluate(catch_run, **{field: value})


@pytest.mark.parametrize(("protocol", "cap"), [("noop", 27_000), ("nature", 4_500)])
def test_a_protocol_replaces_the_settings_of_training(breakout_run: Path, protocol: str, cap: int) -> None:
    result = evaluate(breakout_run, episodes=2, epsilon=1.0, protocol=protocol)
    assert result["max_episode_steps"] == cap and result["length_mean"] > 60  # 60 was the cap in training
    assert result["capped_games"] == 0 and result["fire_after_life_loss"]


def test_a_protocol_that_does_not_apply_is_refused_instead_of_mislabelled(catch_run: Path) -> None:
    for protocol, reason in (("sticky", "Catch-v0 is none"), ("human", "no such protocol")):
        with pytest.raises(UsageError, match=f"protocol={protocol}: .*{reason}"):
            evaluate(catch_run, protocol=protocol)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, problem in ((tmp_path, "holds no run"), (tmp_path / "missing", "no such folder")):
        assert main(["eval", str(run)]) == 2
        assert problem in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_an_error_of_one_line(
    breakout_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(breakout_run / "config.toml", tmp_path)
    assert main(["eval", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "holds no checkpoint" in printed.err and printed.out == ""


def test_any_checkpoint_that_a_run_kept_can_be_played_by_its_env_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(quiet("catch", run, total_frames=3_000, checkpoint_period_frames=500, keep_checkpoints=0))
    steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(run / "checkpoints")]
    assert len(steps) == 6 and steps[0] >= 3_000
    capsys.readouterr()
    for which in (str(steps[-1]), f"step_{steps[2]:012d}"):
        assert main(["eval", str(run), "--checkpoint", which, "--episodes", "4", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint"].endswith(which.removeprefix("step_"))
    assert main(["eval", str(run), "--checkpoint", "7", "--episodes", "4"]) == 1
    assert f"holds no checkpoint of env step 7, but of {steps[0]}, {steps[1]}" in capsys.readouterr().err
    for which in ("first", "7M", "-7", "²", "9" * 40):
        assert main(["eval", str(run), f"--checkpoint={which}", "--episodes", "4"]) == 2
        assert f"checkpoint={which}: give newest, best, or the env step" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_and_the_older_one_played(
    catch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(catch_run, tmp_path / "run")
    root = run / "checkpoints"
    saved = checkpoint.load(root)
    newer = checkpoint.write(root, saved.step + 1, saved.tensors, saved.state)
    assert evaluate(run, episodes=4)["checkpoint_step"] == saved.step + 1
    data = bytearray((newer / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newer / "model.safetensors").write_bytes(data)
    assert evaluate(run, episodes=4)["checkpoint_step"] == saved.step
    assert f"{newer} refused: model.safetensors does not match its hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hidden_size = 17", "hidden_size=17"),
        ("frame_stack = 3", r"\(4, 84, 84\).*\(3, 84, 84\)"),
        ("full_action_set = true", "4 actions.*18"),
    ],
)
def test_a_config_that_is_not_the_trained_networks_is_an_error(
    breakout_run: Path, tmp_path: Path, line: str, reason: str
) -> None:
    run = shutil.copytree(breakout_run, tmp_path / "run")
    name = line.split()[0]
    lines = [line if old.split()[0] == name else old for old in (run / "config.toml").read_text().splitlines()]
    (run / "config.toml").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=reason):
        evaluate(run, episodes=1)


def test_the_average_that_acted_is_what_is_evaluated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(quiet("catch", run, total_frames=2_000, acting_ema=0.9))
    saved = checkpoint.load(run / "checkpoints")
    weights = network_of(saved, config_of(run)).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved.tensors["acting"].items())
    assert not torch.equal(weights["advantage.out.bias"], saved.tensors["model"]["advantage.out.bias"])


def test_a_vector_task_is_played_as_trained(tmp_path: Path) -> None:
    train(quiet("cartpole", tmp_path / "run", total_frames=2_000))
    result = evaluate(tmp_path / "run", episodes=10, num_envs=3)
    assert result["num_envs"] == 3 and result["distinct_games"] == 10
    assert result["score_mean"] == result["length_mean"]  # a point per step
    lengths = {evaluate(tmp_path / "run", episodes=10, epsilon=0.0, seed=seed)["length_mean"] for seed in range(8)}
    assert len(lengths) > 1  # the seed chooses the games, not only the random actions


def test_a_score_is_told_though_the_agent_cannot_be_kept(catch_run: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(catch_run, run)
    (run / "best").write_text("where no folder can be made")
    assert main(["eval", str(run), "--episodes", "2", "--threads", "1", "--keep-best", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["episodes"] == 2 and result["kept"] is None
    assert "warning: not kept as best: " in printed.err and "scored higher" not in printed.err
