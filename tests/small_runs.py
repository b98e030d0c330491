"""Configs of runs that end within seconds."""

from dataclasses import replace
from pathlib import Path

from fastdqn.config import Config, load_preset

TINY = replace(
    Config(), env="Breakout", num_envs=4, replay_capacity=2_000, batch_size=8, learning_starts=400, hidden_size=16,
    target_update_period=100, total_frames=4_000, compile=False, precision="fp32", ui="quiet", torch_threads=2,
)  # fmt: skip


def quiet(preset: str, run_dir: Path, **changes) -> Config:
    """A preset on one thread, uncompiled and without a word."""
    return replace(load_preset(preset), run_dir=str(run_dir), ui="quiet", compile=False, torch_threads=1, **changes)
