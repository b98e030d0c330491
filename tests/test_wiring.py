"""What a config says reaches the part it is about, and what one part finds out reaches the next."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TINY, quiet

from fastdqn import checkpoint, parts
from fastdqn.config import Config
from fastdqn.distributed import Ranks
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
        max_grad_norm=3.0, optimizer_eps=0.25, learning_rate=0.5, polyak=0.125, replay_capacity=2_000,
    )  # fmt: skip
    made = built(config)
    learner, ring = made.learner, made.ring
    assert (learner._double, learner._max_grad_norm, learner._polyak) == (switch, 3.0, 0.125)
    assert learner._elementwise_loss(torch.tensor(4.0)) == (8.0 if switch else 3.5)
    assert (learner.optimizer.defaults["eps"], learner.optimizer.defaults["lr"]) == (0.25, 0.5)
    assert (ring.gamma, ring.n_step, ring.reward_clip, ring.num_envs) == (0.5, 4, switch, config.num_envs)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_lost_life_is_reaches_the_ring(terminal: bool) -> None:
    assert built(replace(BREAKOUT, life_loss_terminal=terminal)).ring.life_loss_terminal == terminal


def test_every_rank_draws_explores_and_plays_for_itself_also_after_a_resume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Ranks, "share_", lambda self, tensors: None)  # needs the other process
    one, two = (built(quiet("catch", tmp_path), Ranks(rank, 2)) for rank in range(2))
    assert one.ring._key != two.ring._key
    assert one.learner._explore_key != two.learner._explore_key
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
    assert not set(games[4]) & set(games[5])


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
    assert len(weight[weight > 0].unique()) > 1
    assert float(run.ring.priorities.importance_exponent) == pytest.approx(run.importance_exponent())
    assert run.importance_exponent() > 0
    run.envs.close()


def test_what_counts_env_steps_and_what_counts_frames(tmp_path: Path) -> None:
    """Atari, so that they differ: by 4."""
    run = Run(replace(BREAKOUT, epsilon_decay_steps=100, epsilon_end=0.0, run_dir=str(tmp_path / "run")), ["test"])
    run.envs.close()
    run._ended = run._started + 10  # a clock that stands still
    for window in run._windows:
        window.add(run._started, 0)
    run.clock.env_steps = 90
    assert run.epsilon() == pytest.approx(0.5)
    shown = run.snapshot()
    assert (shown.frames, shown.env_steps, shown.frames_per_second_10s) == (360, 90, 36.0)
    assert shown.eta_seconds == pytest.approx((4_000 - 360) / 36)
    assert any("4,000 frames, 1,000 env steps of 4" in line for line in run.plan)
    assert run.summary()["frames_per_second"] == 36.0


def test_a_pool_that_stalls_has_the_run_saved_in_every_epoch(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    assert run.envs.on_stall == run.save_now
    run.new_epoch()
    assert run.envs.on_stall == run.save_now
    run.envs.close()


def test_every_update_is_a_sign_of_life(tmp_path: Path) -> None:
    class Seen:
        signs_of_life, requested = 0, False

    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.stop = Seen()  # type: ignore[assignment]
    run.envs.start()
    while run.clock.updates < 20:
        step_group(run)
    run.envs.close()
    assert Seen.signs_of_life == 0 and run.stop.signs_of_life == run.clock.updates  # type: ignore[union-attr]


def test_a_resumed_run_takes_up_its_last_games_its_clock_and_its_logs(tmp_path: Path) -> None:
    config = quiet("catch", tmp_path / "run", total_frames=3_000)
    train(config)
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    rows = tmp_path / "run" / "metrics.jsonl"
    kept = rows.read_text()
    rows.write_text(kept + kept.splitlines()[-1].replace(str(saved.step), str(saved.step + 1)) + "\n")
    run = Run(config, ["test"], saved)
    run.envs.close()
    assert rows.read_text() == kept  # of beyond the checkpoint
    assert list(run.episodes.last_100) == saved.state["last_100"] and len(run.episodes.last_100) == 100
    assert run._seconds_before == saved.state["wall_seconds"] > 0
    assert run.phase.seconds == saved.state["phase_seconds"] and run.phase.seconds["learn"] > 0
    with run:
        run.episodes.add(*finished_game())
        assert run.wall_seconds > saved.state["wall_seconds"]
    assert float((tmp_path / "run" / "episodes.csv").read_text().splitlines()[-1].split(",")[2]) > run._seconds_before


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

    def failing(*arguments):
        if next(failures, False):
            raise checkpoint.CheckpointError("once")
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", failing)
    assert run.save_now() and checkpoint.load(tmp_path / "run" / "checkpoints").step == 0
