"""Configs of runs that end within seconds, and what tests do with the folders of runs."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastdqn import checkpoint
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


def until_first_row(run: Path, process: subprocess.Popen) -> None:
    """Returns when the run of `process` has logged something."""
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Weights, moments, counters, and the whole ring of the newest checkpoint."""
    saved = checkpoint.load(run / "checkpoints")
    assert saved.large is not None
    flat = {f"{group}/{name}": value for group, tree in saved.tensors.items() for name, value in tree.items()}
    return {**flat, **load_file(saved.large)}


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a checkpoint's manifest with a valid hash of its own, as whoever can write the folder can."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    change(manifest)
    (folder / "manifest.json").write_bytes(checkpoint._sealed(manifest))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file of a checkpoint, under a manifest that is resealed."""
    (folder / name).unlink()
    line = checkpoint._write_file(folder / name, data)
    reseal(folder, lambda manifest: manifest["files"].update({name: line}))
