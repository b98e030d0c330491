"""train(config): the loop, which is the table of contents of everything below it."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdqn.config import Config
from fastdqn.envs import EnvStep
from fastdqn.run import Run
from fastdqn.signals import StopRequest


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: figures for programs, and the process's exit code (0, 130 or 143)."""

    summary: dict[str, Any]
    exit_code: int


def train(config: Config, command: Sequence[str] = ("fastdqn", "train")) -> TrainResult:
    """Trains one agent and leaves a run folder behind.

    Raises:
        UsageError: a value that cannot work on this machine, before anything has started.
    """
    run = Run(config, command)
    run.envs.start()
    with StopRequest() as stop, no_garbage_collection(), run:
        while run.clock.env_steps < run.config.total_env_steps and stop.signal is None:
            step_group(run)
            with run.phase("log"):
                if run.log_due():
                    run.log()  # host sync 2 of 2: the sums of the log period
                if run.checkpoint_due():
                    run.save()
    return TrainResult(run.summary(), stop.exit_code)


def step_group(run: Run) -> None:
    """One iteration: a group of games has stepped; store it, act for it, send it on, and learn while it plays."""
    ring, learner, clock, phase = run.ring, run.learner, run.clock, run.phase
    with phase("env"):
        step = run.envs.recv()
    before, clock.env_steps = clock.env_steps, clock.env_steps + int(np.count_nonzero(~step.first))
    torch.set_num_threads(1)  # the other half of the games is being stepped; a team would wait for cores it lost
    with phase("append"):
        rows = to_device(step, run.device)
        ring.append(**rows)
    with phase("act"):
        env_id = rows["env_id"]
        learner.epsilon.fill_(run.epsilon())
        action = fire_where_lost(learner.act(ring.latest(env_id)), rows["life_lost"], run.fire_action)
        ring.record_action(env_id, action)
        run.envs.send(action.to("cpu", torch.int32).numpy(), step.env_id)  # host sync 1 of 2: the actions
    with phase("learn"):
        torch.set_num_threads(run.torch_threads)
        for event in run.schedule.events(before, clock.env_steps):
            if event == "update":
                clock.updates += 1
                learner.update(*ring.sample(run.config.batch_size)[:6])
            else:
                clock.target_syncs += 1
                learner.sync_target()
    with phase("log"):
        run.episodes.add(step.env_id, step.score, step.first, step.terminated, step.truncated, clock.env_steps)


def to_device(step: EnvStep, device: torch.device) -> dict[str, Tensor]:
    """One group's rows as device tensors, in the ring's words."""
    host = {
        "env_id": step.env_id.astype(np.int64),
        "obs": step.obs,
        "reward": step.reward,
        "terminated": step.terminated,
        "done": step.done,
        "life_lost": step.life_lost,
    }
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in host.items()}


def fire_where_lost(action: Tensor, life_lost: Tensor, fire_action: int | None) -> Tensor:
    """FIRE on the step after a lost life. Without it a policy that never presses FIRE stands still to the step cap."""
    return action if fire_action is None else torch.where(life_lost, fire_action, action)


class no_garbage_collection:
    """Freezes what exists and turns the collector off: a scan of a large heap in mid-loop would stall the games."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()
