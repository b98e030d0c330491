"""train(config): the loop, which is the table of contents of everything below it."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdqn.checkpoint import Checkpoint
from fastdqn.config import Config
from fastdqn.envs import EnvStep
from fastdqn.errors import UsageError
from fastdqn.machine.signals import StopRequest
from fastdqn.run import Run


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: figures for programs, and the process's exit code: 0, 130, 143, 129, or 1 if its end is not saved."""

    summary: dict[str, Any]
    exit_code: int
    first_rank: bool = True  # the one whose word counts, of several


def train(
    config: Config, command: Sequence[str] = ("fastdqn", "train"), saved: Checkpoint | None = None
) -> TrainResult:
    """Trains one agent and leaves a run folder behind; with `saved`, goes on from there in the same folder.

    Raises:
        UsageError: a value that cannot work on this machine, before anything has started.
    """
    with StopRequest() as stop:
        try:
            run = Run(config, command, saved)
        except UsageError:
            if not stop.requested:
                raise
            print("interrupted", file=sys.stderr)  # the signal went to the compiler too, which failed of it
            raise SystemExit(stop.exit_code) from None
        run.stop, stop.on_ignored, stop.saving = stop, run.save_for_resume, run.saving
        run.envs.start()
        never_again = torch.compiler.set_stance("fail_on_recompile")  # rather an error than a run at half the speed
        with no_garbage_collection(), never_again, run:
            while run.clock.env_steps < run.config.total_env_steps and not run.stopping:
                step_group(run)
                with run.phase("log"):
                    if run.logging:
                        run.log()  # host sync 2 of 2: the sums of the log period
                        run.progress.check_finite()
                    if run.checkpoint_due():
                        run.save()
                        gc.collect()  # cycles that json left at the last save; 0.2 ms, as all from before is frozen
                        if run.config.deterministic:
                            run.new_epoch()
                    if run.eval_due():
                        run.evaluate()
    return TrainResult(run.summary(), 1 if run.unsaved else stop.exit_code, run.ranks.first)


def step_group(run: Run) -> None:
    """One iteration: a group of games has stepped; store it, act for it, send it on, and learn while it plays."""
    clock, phase = run.clock, run.phase
    with phase("env"):
        step = run.envs.recv()
    before = run.advance(int(np.count_nonzero(~step.first)))
    with phase("append"):
        run.staging.put(step)
    with phase("act"):
        run.pipeline.append_and_act(
            epsilon=run.epsilon(), importance_exponent=run.importance_exponent(), learning_rate=run.learning_rate()
        )
    if run.pipeline.queues:  # updates are only queued here, behind the actions, and run while the next group plays
        learn(run, before)
        send(run, step)
    else:  # updates run here: the group has to be on its way before
        send(run, step)
        learn(run, before)
    with phase("log"):
        run.episodes.add(step.env_id, step.score, step.first, step.terminated, step.truncated, clock.env_steps)


def send(run: Run, step: EnvStep) -> None:
    """Sends the group's actions as soon as they are known."""
    with run.phase("act"):
        action = run.staging.wait_for_actions()  # host sync 1 of 2: the actions
    with run.phase("env"):
        run.envs.send(action, step.env_id)


def learn(run: Run, before: int) -> None:
    """Everything that fell due since env step `before`, in its order."""
    with run.phase("learn"):
        for event in run.schedule.events(max(before, run.refilled_at), run.clock.env_steps):
            if event == "update":
                run.clock.updates += 1
                run.pipeline.update()
                run.stop.signs_of_life += 1
            else:
                run.clock.target_syncs += 1
                run.pipeline.sync_target()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Freezes what exists and turns the collector off: a scan of a large heap in mid-loop would stall the games."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
