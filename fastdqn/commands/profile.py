"""`fastdqn profile`: a few iterations of the training loop under torch.profiler, and what they say."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastdqn.commands import emit
from fastdqn.config import Config
from fastdqn.profiling import Verdict, capture
from fastdqn.run import Run
from fastdqn.run_folder import default_path
from fastdqn.trainer import no_garbage_collection, step_group

WARM_GROUPS = 30  # groups with learning under way before the capture


def main(config: Config, command: Sequence[str]) -> int:
    """Not of `Flags`, but of the config that `train` would run with."""
    out, verdict = run(config, command)
    print(f"profile: {out}", file=sys.stderr)
    figures = {
        "profile": str(out),
        "wall_seconds": verdict.wall_seconds,
        "iterations": verdict.iterations,
        "gpu_busy": verdict.busy_fraction,
        "phases": verdict.phases,
        "waits": verdict.waits,
    }
    emit(verdict.text(), figures, as_json=config.json)
    return 0


def run(config: Config, command: Sequence[str]) -> tuple[Path, Verdict]:
    """Profiles the loop that `train` would run with this config, from its first update on; learning starts at once.

    Returns the folder with trace.json.gz, kernels.txt, verdict.md (and memory.snapshot on CUDA), and the verdict.
    """
    rows = config.num_envs * (config.frame_stack + config.n_step + 1)
    folder = config.run_dir or str(default_path(config.name.game, config.preset, config.seed, under="profiles"))
    quietly = {"eval_period_frames": 0, "eval_episodes": Config.eval_episodes, "track": "off"}
    run = Run(replace(config, learning_starts=rows, run_dir=folder, **quietly), command)
    out = run.folder.path / "profile"
    run.envs.start()
    with no_garbage_collection(), run:
        while config.replay_ratio > 0 and run.clock.updates == 0:
            step_group(run)
        for _ in range(WARM_GROUPS):
            step_group(run)
        run.dashboard.mode = "quiet"  # it ends without the words of a training run
        verdict = capture(lambda: step_group(run), out, run.device, run.phase.seconds)
    shutil.rmtree(run.folder.checkpoints)  # an agent of a few updates is no result
    return out, verdict
