"""`fastdqn resume`: goes on with a run that ended before its last frame, or is to have more of them."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from fastdqn import runs
from fastdqn.commands import JsonFlags
from fastdqn.config import Config
from fastdqn.errors import RunError, UsageError


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Goes on with a run from its newest whole checkpoint, in its own folder and with its own settings."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or its name under runs/."""
    total_frames: int | None = None
    """Another budget: the run's frames of before count too. What moves to the end of the run (importance exponent, learning
    rate) then ends there."""
    ui: Literal["auto", "live", "plain", "quiet"] = "auto"
    """As of train."""


def main(flags: Flags) -> int:
    folder = runs.find(flags.run)  # a mistyped name is told before torch is loaded
    if runs.saved_step(folder) is None:
        raise RunError(
            f"{folder / 'checkpoints'}: holds no checkpoint; the run ended before its first save: begin again, "
            f"in another folder, with the command in {folder / 'command.txt'}"
        )
    from fastdqn import checkpoint
    from fastdqn.trainer import train

    config = replace(Config.load(folder / "config.toml"), run_dir=str(folder), ui=flags.ui, json=flags.json)
    given = ["fastdqn", "resume", flags.run, "--ui", flags.ui, *(["--json"] if flags.json else [])]
    more = "train a new one" if config.deterministic else "go on with more --total-frames, or train a new one"
    if flags.total_frames is not None:
        if config.deterministic and flags.total_frames != config.total_frames:
            raise UsageError(
                f"total_frames={flags.total_frames}: the run is deterministic, and would not end as one that had this "
                f"budget from the start; {more}"
            )
        config = replace(config, total_frames=flags.total_frames)
        given += ["--total-frames", str(flags.total_frames)]
    saved = checkpoint.load(folder / "checkpoints")
    if missing := [name for name in checkpoint.RESUMED if name not in saved.state]:
        raise checkpoint.CheckpointError(f"{saved.path}: its state.json has no {missing[0]}; it cannot be resumed")
    if saved.state["env_steps"] >= config.total_env_steps:
        raise UsageError(
            f"run={flags.run}: it has finished total_frames={config.total_frames}, at {saved.state['frames']:,} frames; {more}"
        )
    result = train(config, given, saved)
    if flags.json and result.first_rank:
        print(json.dumps(result.summary))
    return result.exit_code
