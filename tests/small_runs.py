"""Configs of runs that end within seconds."""

from dataclasses import replace
from pathlib import Path

from fastdqn.config import Config, load_preset
from fastdqn.run import Run
from fastdqn.trainer import step_group

TINY = replace(
    Config(), env="Breakout", num_envs=4, replay_capacity=2_000, batch_size=8, learning_starts=400, hidden_size=16,
    target_update_period=100, total_frames=4_000, compile=False, precision="fp32", ui="quiet", torch_threads=1,
)  # fmt: skip


def quiet(preset: str, run_dir: Path, **changes) -> Config:
    """A preset on one thread, uncompiled and without a word."""
    return replace(load_preset(preset), run_dir=str(run_dir), ui="quiet", compile=False, torch_threads=1, **changes)


def reaches(config: Config, score: float) -> bool:
    """Whether the mean score of 100 games, exploration included, gets to `score` within the config's budget."""
    run = Run(config, ["test"])
    run.envs.start()
    while run.clock.env_steps < config.total_env_steps:
        step_group(run)
        if run.episodes.episodes >= 100 and (run.episodes.score_mean_100 or 0.0) >= score:
            break
    run.envs.close()
    return run.clock.env_steps < config.total_env_steps
