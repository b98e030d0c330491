"""Run folders written by hand: plain files with figures that can be checked in the head."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdqn.config import load_preset

ENVIRONMENT = {"python": "3.11", "cpu": "Some CPU", "cores": 4, "gpu": None, "torch": "2.13.0"}


def write_run(
    path: Path,
    scores: Sequence[float] = (),
    *,
    preset: str = "catch",
    seed: int = 1,
    state: str = "finished",
    games_per_row: int = 10,
    frames: int = 0,
    **changes: Any,
) -> Path:
    """A run whose game i ended after (i + 1) * 8 env steps and (i + 1) seconds, with a log row every few games.

    `frames` is what status.json says of the run, where it matters.
    """
    config, _ = replace(load_preset(preset), seed=seed, **changes).resolved()
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config.to_toml())
    (path / "command.txt").write_text(f"fastdqn train --preset {preset}\n")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    games = "".join(f"{score},8,{i + 1}.0,{(i + 1) * 8},0,0\n" for i, score in enumerate(scores))
    (path / "episodes.csv").write_text("r,l,t,env_steps,env_id,truncated\n" + games)
    rows = [log_row(i + 1, scores[i], config.action_repeat) for i in range(0, len(scores), games_per_row)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "status.json").write_text(json.dumps({"state": state, "time": "2026-11-21T09:00:00", "frames": frames}))
    return path


def log_row(seconds: int, score: float, action_repeat: int = 1) -> dict[str, float]:
    return {
        "global_step": seconds * 8, "frames": seconds * 8 * action_repeat, "wall_seconds": float(seconds),
        "charts/SPS": 8.0, "charts/episodic_return": score, "losses/td_loss": 1 / seconds, "losses/q_values": score,
        "perf/fps": 8.0 * action_repeat, "perf/env_frac": 0.25, "perf/act_frac": 0.15, "perf/append_frac": 0.05,
        "perf/learn_frac": 0.5, "perf/log_frac": 0.05,
    }  # fmt: skip


def evaluation_result(mean: float = 1.0, **changes: object) -> dict[str, object]:
    """An evaluation result with the fields that `evaluate` stores."""
    return {
        "env": "Catch-v0", "protocol": "run", "seed": 1, "sticky_actions": 0.0, "epsilon": 0.001, "episodes": 100,
        "score_mean": mean, "score_median": mean, "score_ci95": [mean - 1, mean + 1], "score_min": mean - 2,
        "score_max": mean + 2, "human_normalized": None, "distinct_games": 77, "checkpoint_step": 1_000,
        "frames": 1_000, "capped_games": 0, **changes,
    }  # fmt: skip


def write_evaluation(run: Path, mean: float, *, step: int = 1_000, protocol: str = "run") -> None:
    """Such a result, in the run's eval/."""
    (run / "eval").mkdir(exist_ok=True)
    result = evaluation_result(mean, protocol=protocol, checkpoint_step=step, frames=step)
    (run / "eval" / f"step-{step:012}__{protocol}__s1.json").write_text(json.dumps(result))
