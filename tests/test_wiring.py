"""What a config says reaches the part it is about, and what one part finds out reaches the next."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import TINY, quiet

from fastdqn import checkpoint, parts, runs
from fastdqn.config import Config
from fastdqn.distributed import Ranks
from fastdqn.layers import NoisyLinear
from fastdqn.machine import hardware
from fastdqn.priorities import ONE
from fastdqn.run import Run
from fastdqn.trainer import step_group, train

BREAKOUT = replace(TINY, learning_starts=40, torch_threads=1)


def built(config: Config, ranks: Ranks | None = None) -> parts.Parts:
    made = parts.build(config.resolved()[0], [], ranks or Ranks())
    made.envs.close()
    return made


@pytest.mark.parametrize("switch", [False, True])
def test_every_setting_of_learning_reaches_the_learner_and_the_ring(switch: bool, tmp_path: Path) -> None:
    config = quiet(
        "catch", tmp_path, double=switch, gamma=0.5, n_step=4, reward_clip=switch, loss="mse" if switch else "huber",
        max_grad_norm=3.0, optimizer_eps=0.25, learning_rate=0.5, polyak=0.125, acting_ema=0.25,
        replay_capacity=2_000,
    )  # fmt: skip
    made = built(config)
    learner, ring = made.learner, made.ring
    settings = learner._double, learner._max_grad_norm, learner._polyak, learner._acting_ema
    assert settings == (switch, 3.0, 0.125, 0.25)
    assert learner._elementwise_loss(torch.tensor(4.0)) == (8.0 if switch else 3.5)
    assert (learner.optimizer.defaults["eps"], learner.optimizer.defaults["lr"]) == (0.25, 0.5)
    assert (ring.gamma, ring.n_step, ring.reward_clip, ring.num_envs) == (0.5, 4, switch, config.num_envs)


def test_every_setting_of_a_network_reaches_it() -> None:
    settings: dict[str, Any] = {"encoder": "impala", "impala_width": 3, "spectral_norm": True, "layer_norm": True,
                                "dueling": True, "noisy": True, "noisy_sigma": 0.25, "hidden_size": 24}  # fmt: skip
    c51, iqn = (
        parts.make_network(replace(BREAKOUT, **settings, **head), (4, 84, 84), 6)
        for head in (
            {"head": "c51", "num_atoms": 7, "value_limit": 3.0},
            {"head": "iqn", "num_quantiles": 5, "num_acting_quantiles": 9},
        )
    )
    assert c51.atoms.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    for network, outputs in ((c51, 7), (iqn, 1)):
        kinds = Counter(type(layer).__name__ for layer in network.modules())
        assert (kinds["SpectralConv2d"], kinds["LayerNorm"], kinds["NoisyLinear"]) == (12, 14, 4)
        hidden, out = network.advantage.hidden, network.advantage.out
        assert isinstance(hidden, NoisyLinear) and isinstance(out, NoisyLinear)
        assert hidden.weight.shape == (24, 3 * 32 * 36) and out.weight.shape == (6 * outputs, 24)
        assert torch.allclose(out.weight_noise, torch.tensor(0.25 / 24**0.5))
    obs = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    asked = []
    iqn._fractions = lambda B, count, draw: (asked.append(count), torch.rand(B, count))[1]  # type: ignore[method-assign]
    assert iqn(obs).shape == (2, 6) and iqn.predict(obs).value.shape == (2, 6, 5)
    assert asked == [9, 5]  # to act, to learn
    plain = parts.make_network(replace(BREAKOUT, encoder="nature"), (4, 84, 84), 6)
    kinds = Counter(type(layer).__name__ for layer in plain.modules())
    assert plain.value is None and not kinds["LayerNorm"] + kinds["NoisyLinear"] + kinds["SpectralConv2d"]


def test_the_first_weights_are_the_asked_ones_and_of_the_target_too() -> None:
    for weight_init, variance in (("lecun", 1.0), ("torch", 1 / 3)):  # over the inputs
        learner = built(replace(BREAKOUT, weight_init=weight_init)).learner
        for network in (learner.online, learner.target):
            first = network.get_parameter("encoder.0.weight")
            assert first.var().item() * first[0].numel() == pytest.approx(variance, rel=0.15)
            assert network.get_parameter("encoder.0.bias").any() == (weight_init == "torch")


@pytest.mark.parametrize("centered", [False, True])
def test_every_setting_of_rmsprop_and_of_munchausen_reaches_the_learner(centered: bool) -> None:
    config = replace(
        BREAKOUT, encoder="nature", optimizer="rmsprop", rmsprop_decay=0.75, rmsprop_centered=centered,
        optimizer_eps=0.25, learning_rate=0.5, munchausen=centered, munchausen_scale=0.625, munchausen_temperature=0.125,
        munchausen_floor=-3.0,
    )  # fmt: skip
    learner = parts.make_learner(config, parts.make_network(config, (4, 84, 84), 3), torch.device("cpu"), compile=False)
    expected = {"alpha": 0.75, "centered": centered, "eps": 0.25, "lr": 0.5, "momentum": 0, "weight_decay": 0}
    assert expected.items() <= learner.optimizer.defaults.items()
    assert learner._munchausen == ((0.625, 0.125, -3.0) if centered else None)


def test_the_learning_rate_falls_in_a_straight_line_to_the_end_of_the_run_and_reaches_the_updates(
    tmp_path: Path,
) -> None:
    falling = {"learning_rate": 1e-3, "learning_rate_end": 2e-4, "total_frames": 3_000, "learning_starts": 1_000}
    config = quiet("catch", tmp_path, replay_ratio=0, **falling)
    run = Run(config, ["test"])
    run.envs.start()
    for _ in range(4):  # resets make no env steps
        step_group(run)
    assert run.learning_rate() == 1e-3
    for env_steps, expected in ((1_000, 1e-3), (2_000, 6e-4), (3_000, 2e-4), (3_100, 2e-4)):
        run.clock.env_steps = env_steps - run.envs.group_size
        step_group(run)
        assert run.clock.env_steps == env_steps
        assert run.learning_rate() == pytest.approx(expected) == run.learner.learning_rate.item()
    run.envs.close()
    constant = Run(replace(config, learning_rate_end=0.0, run_dir=f"{config.run_dir}-constant"), ["test"])
    constant.clock.env_steps = 2_000
    assert constant.learning_rate() == 1e-3
    constant.envs.close()


@pytest.mark.parametrize("prioritized", [False, True])
def test_the_exponent_of_priorities_reaches_the_ring(prioritized: bool) -> None:
    changes = {"prioritized": True, "priority_exponent": 0.25} if prioritized else {}
    priorities = built(replace(BREAKOUT, **changes)).ring.priorities
    assert (priorities is not None) == prioritized
    if priorities is not None:
        priorities.update(torch.tensor([0]), torch.tensor([16.0]), torch.tensor([True]))
        assert int(priorities.weight[0]) == pytest.approx(2 * ONE, rel=1e-6)  # the fourth root


@pytest.mark.parametrize(
    ("precision", "native", "dtype", "told"),
    [
        ("auto", True, torch.bfloat16, False),
        ("auto", False, torch.float32, True),
        ("bf16", True, torch.bfloat16, False),
        ("bf16", False, torch.bfloat16, True),
        ("fp32", True, torch.float32, False),
        ("fp32", False, torch.float32, False),
    ],
)
def test_networks_compute_as_asked_and_by_themselves_in_what_the_processor_has(
    precision: Any, native: bool, dtype: torch.dtype, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_bf16", lambda device: native)
    notes: list[str] = []
    config = replace(BREAKOUT, precision=precision)
    assert parts.resolve_precision(config, torch.device("cpu"), notes) == dtype and bool(notes) == told
    learner = built(config).learner
    assert learner.online.compute_dtype == learner.target.compute_dtype == dtype
    vectors = parts.resolve_precision(replace(config, encoder="mlp"), torch.device("cpu"), [])
    assert vectors == (torch.float32 if precision == "auto" else dtype)


def test_what_is_compiled_and_on_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, notes = torch.device("cpu"), list[str]()
    for found in (True, False):
        monkeypatch.setattr(hardware, "has_compiler", lambda device, found=found: found)
        assert parts.resolve_compile(replace(BREAKOUT, compile=True), cpu, notes) == found and bool(notes) != found
        assert not parts.resolve_compile(replace(BREAKOUT, compile=False), cpu, [])
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    for replay_ratio, act in ((3.9, 1), (4.0, 3)):
        asked = replace(BREAKOUT, env_threads=2, torch_threads=3, replay_ratio=replay_ratio)
        assert parts.resolve_threads(asked, cpu) == (2, act, 3)
        assert parts.resolve_threads(asked, torch.device("cuda")) == (2, 3, 3), "compiled code is held to one count"
    chosen = replace(BREAKOUT, env_threads=0, torch_threads=0, num_envs=64)
    for ranks in (1, 4, 16):
        env, act, learn = parts.resolve_threads(chosen, cpu, ranks)
        assert (env, learn) == hardware.thread_counts(max(8 // ranks, 1), 64, "cpu") and act == learn


def test_every_setting_of_the_games_reaches_those_of_training() -> None:
    settings: dict[str, Any] = {
        "sticky_actions": 0.25, "noop_max": 7, "frame_skip": 3, "full_action_set": True, "max_episode_steps": 50
    }  # fmt: skip
    made = parts.build(replace(BREAKOUT, **settings).resolved()[0], [], Ranks())
    asked = made.envs._pool.spec.config
    assert (asked.repeat_action_probability, asked.noop_max, asked.frame_skip) == (0.25, 7, 3)
    assert (asked.full_action_space, asked.max_episode_steps, made.envs.num_actions) == (True, 50, 18)
    made.envs.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_lost_life_is_reaches_the_ring(terminal: bool) -> None:
    assert built(replace(BREAKOUT, life_loss_terminal=terminal)).ring.life_loss_terminal == terminal


def test_deterministic_kernels_are_asked_for_where_the_run_is_to_be_deterministic() -> None:
    for deterministic in (True, False):
        built(replace(BREAKOUT, deterministic=deterministic))
        assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_every_rank_draws_explores_and_plays_for_itself_also_after_a_resume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Ranks, "share_", lambda self, tensors: None)  # needs the other process
    one, two = (built(quiet("catch", tmp_path, noisy=True), Ranks(rank, 2)) for rank in range(2))
    assert one.ring._key != two.ring._key
    assert one.learner._explore_key != two.learner._explore_key
    assert one.learner.online.advantage.hidden._key != two.learner.online.advantage.hidden._key  # of the noise
    noise = one.learner.online.advantage.hidden._key
    iqn = built(quiet("catch", tmp_path, head="iqn")).learner
    assert isinstance(noise, torch.Tensor)  # a number would be compiled in, each seed anew
    assert all(isinstance(key, torch.Tensor) for key in (one.learner._explore_key, iqn.online._tau_key))
    assert len({one.ring._key, int(one.learner._explore_key), int(noise)}) == 3
    keys = [key.data_ptr() for key in two.learner.online.buffers() if not key.is_floating_point()]
    assert keys and not {tensor.data_ptr() for tensor in two.learner.shared()} & set(keys)  # what rank 0 overwrites
    config = quiet("catch", tmp_path).resolved()[0]
    built_so = [
        parts.build(config, [], Ranks(rank, 2), epoch) for epoch in (0, 1) for rank in range(2)
    ]  # as by a resume
    games = [one.envs._pool.spec.config.env_seed for one in built_so]
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    for run.ranks in (Ranks(0, 2), Ranks(1, 2)):
        run.new_epoch()
        games.append(run.envs._pool.spec.config.env_seed)
    run.envs.close()
    assert len({seed for seeds in games[:4] for seed in seeds}) == sum(map(len, games[:4]))
    assert games[4] == games[2] and not set(games[4]) & set(games[5])  # of the first rank in epoch 1, and of the second


def test_a_game_that_was_cut_is_stored_as_done_and_never_as_terminated(tmp_path: Path) -> None:
    run = Run(quiet("cartpole", tmp_path / "run", max_episode_steps=5), ["test"])
    run.envs.start()
    for _ in range(20):
        step_group(run)
    assert run.ring.storage["done"].any() and not run.ring.storage["terminated"].any()
    run.envs.close()


def test_td_errors_become_priorities_and_beta_reaches_the_draws(tmp_path: Path) -> None:
    run = Run(replace(BREAKOUT, prioritized=True, deterministic=True, run_dir=str(tmp_path / "run")), ["test"])
    run.envs.start()
    while run.clock.updates < 3:
        step_group(run)
    assert run.ring.priorities is not None
    weight = run.ring.priorities.weight
    assert len(weight[weight > 0].unique()) > 10  # of three batches of eight; without errors two: new ones and others
    assert float(run.ring.priorities.importance_exponent) == pytest.approx(run.importance_exponent())
    assert run.importance_exponent() > 0
    run.envs.close()


def test_what_counts_env_steps_and_what_counts_frames(tmp_path: Path) -> None:
    """Atari, so that they differ: by 4."""
    run = Run(replace(BREAKOUT, epsilon_decay_steps=100, epsilon_end=0.0, run_dir=str(tmp_path / "run")), ["test"])
    run.envs.close()
    run.progress._ended = run.progress._started + 10  # a clock that stands still
    run.clock.env_steps = 90
    assert run.epsilon() == pytest.approx(0.5)
    shown = run.progress.snapshot(run.epsilon())
    assert (shown.frames, shown.env_steps, shown.frames_per_second_10s) == (360, 90, 36.0)
    assert shown.eta_seconds == pytest.approx((4_000 - 360) / 36)
    assert any("4,000 frames = 1,000 env steps of 4" in line for line in run.plan)
    assert run.summary()["frames_per_second"] == 36.0
    run.log()
    row = runs.metrics(tmp_path / "run")[-1]
    assert (row["frames"], row["global_step"], row["perf/fps"], row["charts/SPS"]) == (360, 90, 36.0, 9.0)
    assert run.save_now()
    assert checkpoint.load(tmp_path / "run" / "checkpoints").state["frames"] == 360
    run.clock.env_steps = 520
    assert run.importance_exponent() == pytest.approx(0.7)  # halfway from learning start 40 to env step 1,000


def test_the_speed_shown_is_of_the_last_ten_seconds_and_the_time_left_of_the_last_sixty(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run", total_frames=1_000), ["test"])
    run.envs.close()
    progress = run.progress
    for window in progress._windows:
        window.add(progress._started + 50, 100)
    progress._ended, run.clock.env_steps = progress._started + 60, 360
    shown = progress.snapshot(epsilon=1.0)
    assert (shown.frames_per_second_10s, shown.frames_per_second_60s) == pytest.approx((26.0, 6.0))
    assert shown.eta_seconds == pytest.approx((1_000 - 360) / 6)


def test_a_score_of_training_is_the_sum_of_a_games_points_though_learning_clips_them(tmp_path: Path) -> None:
    """Asterix, where a catch is 50 points."""
    run = Run(
        replace(BREAKOUT, env="Asterix", max_episode_steps=60, learning_starts=900, deterministic=True,
                run_dir=str(tmp_path / "run")),
        ["test"],
    )  # fmt: skip
    run.envs.start()
    for _ in range(2 * 61):  # two whole games
        step_group(run)
    run.envs.close()
    assert run.ring.reward_clip
    points = []
    for env in range(4):
        ends = run.ring.storage["done"][env].nonzero().flatten().tolist()
        for begin, end in zip([0, *ends], ends, strict=False):
            points.append(float(run.ring.storage["reward"][env, begin : end + 1].sum()))  # a first row brings none
    assert sorted(run.episodes.last_100) == sorted(points) and len(points) >= 8 and max(points) >= 50


def test_a_game_is_dated_by_the_env_steps_with_the_group_that_ended_it(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run", num_envs=8, deterministic=True), ["test"])
    run.envs.start()
    for _ in range(20):  # two games of nine decisions, and their reset rows
        step_group(run)
    run.envs.close()
    run._logs.write_games()
    assert runs.games(tmp_path / "run").env_steps.tolist() == [8 * 9] * 8 + [2 * 8 * 9] * 8


def test_a_log_row_has_the_losses_of_its_own_period_and_without_an_update_those_of_the_last(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.start()
    for updates in (20, 40, 40):
        while run.clock.updates < updates:
            step_group(run)
        run.log()
        shown, row = run.progress.snapshot(epsilon=1.0), runs.metrics(tmp_path / "run")[-1]
        assert (shown.loss, shown.q_mean) == (row["losses/td_loss"], row["losses/q_values"])
    run.envs.close()
    rows = runs.metrics(tmp_path / "run")
    first, second, third = ({tag: row[tag] for tag in row if "losses/" in tag} for row in rows)
    assert len(first) == 4 and not any(first[tag] == second[tag] for tag in first) and second == third


def test_a_log_row_changes_nothing_that_trains(tmp_path: Path) -> None:
    """It is due by the clock: a draw for a figure would make two deterministic runs differ."""
    run = Run(quiet("catch", tmp_path / "run", prioritized=True, noisy=True), ["test"])
    run.envs.start()
    while run.clock.updates < 20:
        step_group(run)
    run.envs.close()
    # all but the sums, which it reads and clears
    tensors = [tensor for tensor in run.learner.tensors() if tensor is not run.learner._sums]
    tensors += run.ring.bookkeeping().values()
    before = [tensor.clone() for tensor in tensors]
    run.log()
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


def test_a_pool_that_stalls_has_the_run_saved_in_every_epoch(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    assert run.envs._on_stall == run.save_for_resume
    run.new_epoch()
    assert run.envs._on_stall == run.save_for_resume
    run.envs.close()


def test_what_is_saved_when_a_pool_stalls_is_the_last_boundary_of_a_deterministic_run(tmp_path: Path) -> None:
    """From anywhere else it could not go on as if it had never stopped."""
    for deterministic in (True, False):
        folder = tmp_path / str(deterministic)
        run = Run(quiet("catch", folder, deterministic=deterministic, checkpoint_period_frames=300), ["test"])
        run.envs.start()
        boundary = 0
        while run.clock.env_steps < 500:
            step_group(run)
            if run.checkpoint_due():
                run.save()
                boundary = run.clock.env_steps
        assert run.envs._on_stall is not None
        run.envs._on_stall()
        run.envs.close()
        step = checkpoint.load(folder / "checkpoints").step
        assert step == (boundary if deterministic else run.clock.env_steps) and 300 <= boundary < run.clock.env_steps


def test_every_update_is_a_sign_of_life(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.start()
    while run.clock.updates < 20:
        step_group(run)
    run.envs.close()
    assert run.stop.signs_of_life == run.clock.updates


def test_a_resumed_run_takes_up_its_last_games_its_clock_and_its_logs(tmp_path: Path) -> None:
    config = quiet("catch", tmp_path / "run", total_frames=3_000)
    train(config)
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert saved.large is None  # nobody asked for the replay
    rows = tmp_path / "run" / "metrics.jsonl"
    kept = rows.read_text()
    rows.write_text(kept + kept.splitlines()[-1].replace(str(saved.step), str(saved.step + 1)) + "\n")
    games = tmp_path / "run" / "episodes.csv"
    kept_games = games.read_text() + f"1.0,9,0.5,{saved.step},0,0\n"  # ended by the checkpoint's last group
    games.write_text(kept_games + f"1.0,9,0.5,{saved.step + 1},0,0\n")
    run = Run(config, ["test"], saved)
    run.envs.close()
    assert rows.read_text() == kept and games.read_text() == kept_games  # without those from beyond the checkpoint
    assert run.episodes.episodes == saved.state["episodes"]
    assert list(run.episodes.last_100) == saved.state["last_100"] and len(run.episodes.last_100) == 100
    assert run.phase.seconds == saved.state["phase_seconds"] and run.phase.seconds["learn"] > 0
    with run:
        run.episodes.add(*finished_game())
        assert run.progress.wall_seconds > saved.state["wall_seconds"]
    seconds = float(games.read_text().splitlines()[-1].split(",")[2])
    assert seconds >= round(saved.state["wall_seconds"], 3) > 0


def finished_game():
    """Of env 0, one point, as `EpisodeTracker.add` takes it."""
    no, yes = np.array([False]), np.array([True])
    return np.array([0]), np.array([1.0]), no, yes, no, 3_001


def test_what_was_played_before_a_checkpoint_is_in_the_csv_when_the_checkpoint_is(tmp_path: Path) -> None:
    """A run that is killed behind it goes on with every game that its checkpoint counts."""
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.start()
    while run.clock.env_steps < 1_000:
        step_group(run)
    run.save()
    run._saver.wait()
    counted = checkpoint.load(tmp_path / "run" / "checkpoints").state["episodes"]
    assert len((tmp_path / "run" / "episodes.csv").read_text().splitlines()) == 1 + counted > 50
    run.envs.close()


def test_a_write_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.close()
    write, failures = checkpoint.write, iter([True])

    def failing(*arguments, **how):
        if next(failures, False):
            raise checkpoint.CheckpointError("once")
        return write(*arguments, **how)

    monkeypatch.setattr(checkpoint, "write", failing)
    assert run.save_now() and checkpoint.load(tmp_path / "run" / "checkpoints").step == 0


def test_a_games_seconds_are_of_the_loop_as_the_runs_are(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run", total_frames=2_000), ["test"])
    run.episodes.started -= 1_000  # it was built that long ago, and compiled since
    run.progress._seconds_before = 50.0  # of the part before a resume
    run.envs.start()
    with run:
        while run.clock.env_steps < 2_000:
            step_group(run)
    seconds = runs.games(tmp_path / "run").seconds
    assert 50.0 <= seconds.min() <= seconds.max() <= run.progress.wall_seconds


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"replay_ratio": 4.0}, True), ({"replay_ratio": 4.0, "preset": "cpu"}, False), ({"replay_ratio": 2.0}, False)],
)
def test_who_trains_the_default_on_a_cpu_is_told_of_the_preset_for_it(
    changes: dict[str, Any], told: bool, tmp_path: Path
) -> None:
    run = Run(replace(BREAKOUT, device="cpu", run_dir=str(tmp_path / "run"), **changes), ["test"])
    run.envs.close()
    assert any("--preset cpu" in line for line in run.plan) == told
