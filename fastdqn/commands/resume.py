"""`fastdqn resume`: goes on with a run that ended before its last frame, or is to have more of them."""

import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastdqn import runs
from fastdqn.commands import JsonFlags, emit
from fastdqn.config import Config, flag
from fastdqn.errors import RunError, UsageError


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Goes on with a run from its newest whole checkpoint, in its own folder and with its own settings."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or its name under runs/."""
    total_frames: int | None = None
    """Another budget: the run's frames of before count too. What moves to the end of the run (importance exponent, learning
    rate) then ends there."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """For another machine, as of train: this and the next six. None: as the run had it. Of a deterministic run they stay."""
    precision: Literal["auto", "bf16", "tf32", "fp32"] | None = None
    """Arithmetic of the networks."""
    env_threads: int | None = None
    """EnvPool's threads; 0: chosen from the cores."""
    torch_threads: int | None = None
    """PyTorch's CPU threads; 0: chosen from the cores."""
    replay_capacity: int | None = None
    """Frames in the replay ring, where it is not saved."""
    no_compile: tyro.conf.FlagCreatePairsOff[bool] = False
    """From now on without torch.compile."""
    no_cuda_graphs: tyro.conf.FlagCreatePairsOff[bool] = False
    """From now on without CUDA graphs."""
    ui: Literal["auto", "live", "plain", "quiet"] = "auto"
    """As of train."""

    def machine(self) -> dict[str, Any]:
        """The fields of a Config that are to be others on this machine."""
        names = ("device", "precision", "env_threads", "torch_threads", "replay_capacity")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        off = {"compile": self.no_compile, "cuda_graphs": self.no_cuda_graphs}
        return {**given, **{name: False for name, is_off in off.items() if is_off}}


# what `resume` can be told of anew, what it can be told to do without, and what is of the call and not of the run
_ANEW = ("total_frames", "device", "precision", "env_threads", "torch_threads", "replay_capacity")
_WITHOUT = ("compile", "cuda_graphs")
_OF_THE_CALL = ("run_dir", "resume", "ui", "json")


def instead_of_train(config: Config) -> int | None:
    """`train --resume`: goes on with the run in `run_dir`. Returns its exit code, None where it is still to begin.

    Raises:
        UsageError: the run there is another one than `config` describes.
    """
    folder = Path(config.run_dir)
    step = runs.saved_step(folder)
    if step is None:
        return None
    begun, wanted = Config.load(folder / "config.toml"), config.resolved()[0]
    given: dict[str, Any] = {}
    for name in (field.name for field in fields(Config) if field.name not in _OF_THE_CALL):
        was, value = getattr(begun, name), getattr(wanted, name)
        if was == value:
            continue
        if name in _ANEW:
            given[name] = value
        elif name in _WITHOUT:
            given[f"no_{name}"] = True
            if not was:
                print(f"{name}: the run in {folder} does without, and goes on so", file=sys.stderr)
        else:
            raise UsageError(f"{name}={value}: the run in {folder} has {was}; give that, or another --run-dir")
    status = runs.status(folder)
    if step >= wanted.total_env_steps and status.get("state") == "finished":
        from fastdqn import checkpoint

        if checkpoint.load(folder / "checkpoints").step >= wanted.total_env_steps:  # and not by its name alone
            if os.environ.get("RANK", "0") == "0":  # the first of several ranks speaks for all
                emit(f"finished: {folder}, nothing to do", status, as_json=config.json)
            return 0
    return main(Flags(run=config.run_dir, ui=config.ui, json=config.json, **given))


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
    budget = config.total_frames
    if flags.total_frames is not None:
        if config.deterministic and flags.total_frames != config.total_frames:
            raise UsageError(
                f"total_frames={flags.total_frames}: the run is deterministic, and would not end as one that had this "
                f"budget from the start; {more}"
            )
        config = replace(config, total_frames=flags.total_frames)
        given += ["--total-frames", str(flags.total_frames)]
    for field, value in flags.machine().items():
        if config.deterministic and value != getattr(config, field):
            raise UsageError(
                f"{field}={value}: the run is deterministic, and would not end with the same bits; leave it out"
            )
        if field == "replay_capacity" and config.checkpoint_replay == "full" and value != config.replay_capacity:
            raise UsageError(
                f"replay_capacity={value}: the run saves its replay, which has {config.replay_capacity}; leave it out"
            )
        config = replace(config, **{field: value})
        given += flag(field, value).split()
    saved = checkpoint.load(folder / "checkpoints")
    if missing := [name for name in checkpoint.RESUMED if name not in saved.state]:
        raise checkpoint.CheckpointError(f"{saved.path}: its state.json has no {missing[0]}; it cannot be resumed")
    ended = runs.status(folder).get("state") == "finished" or flags.total_frames is not None
    if saved.state["env_steps"] >= config.total_env_steps and ended:  # else it was cut off behind its last frame
        has = "has finished" if flags.total_frames is None else f"has come further, of {budget:,}, than"
        raise UsageError(
            f"run={flags.run}: it {has} total_frames={config.total_frames}, at {saved.state['frames']:,} frames; {more}"
        )
    result = train(config, given, saved)
    if flags.json and result.first_rank:
        print(json.dumps(result.summary))
    return result.exit_code
