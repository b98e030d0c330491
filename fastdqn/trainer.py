"""train(config): builds the parts and runs the loop, the table of contents of everything below."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdqn import checkpoint, hardware
from fastdqn.config import Config, UsageError
from fastdqn.dashboard import Dashboard
from fastdqn.envs import EnvStep, VectorEnv
from fastdqn.exploration import linear_epsilon
from fastdqn.learner import Learner
from fastdqn.memory import check_fits, free_bytes, required_bytes
from fastdqn.metrics import EpisodeTracker, MetricsLog, PhaseTimer, RateWindow, Snapshot, resident_bytes
from fastdqn.networks import QNetwork
from fastdqn.replay import ReplayRing
from fastdqn.run_folder import RunFolder
from fastdqn.schedules import LearningSchedule
from fastdqn.signals import StopRequest

LOG_PERIOD_SECONDS = 2.0


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
    envs, ring, learner, schedule, clock, phase = run.envs, run.ring, run.learner, run.schedule, run.clock, run.phase
    envs.start()
    with StopRequest() as stop, no_garbage_collection(), run:
        while clock.env_steps < config.total_env_steps and stop.signal is None:
            with phase("env"):
                step = envs.recv()
            before, clock.env_steps = clock.env_steps, clock.env_steps + int(np.count_nonzero(~step.first))
            with phase("append"):
                rows = to_device(step, run.device)
                ring.append(**rows)
            with phase("act"):
                learner.epsilon.fill_(run.epsilon())
                action = learner.act(ring.latest(rows["env_id"]))
                if run.fire_action is not None:
                    action = torch.where(rows["life_lost"], run.fire_action, action)
                ring.record_action(rows["env_id"], action)
                envs.send(action.to("cpu", torch.int32).numpy(), step.env_id)  # host sync 1 of 2: the actions
            with phase("learn"):
                for event in schedule.events(before, clock.env_steps):
                    if event == "update":
                        clock.updates += 1
                        learner.update(*ring.sample(config.batch_size)[:6])
                    else:
                        clock.target_syncs += 1
                        learner.sync_target()
            with phase("log"):
                run.episodes.add(step.env_id, step.score, step.first, step.terminated, step.truncated, clock.env_steps)
                if run.log_due():
                    run.log()  # host sync 2 of 2: the sums of the log period
                if run.checkpoint_due():
                    run.save()
    return TrainResult(run.summary(), stop.exit_code)


def to_device(step: EnvStep, device: torch.device) -> dict[str, torch.Tensor]:
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


class no_garbage_collection:
    """Freezes what exists and turns the collector off: a scan of a large heap in mid-loop would stall the games."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()


@dataclass
class Clock:
    """The counters of a run; everything scheduled is a function of `env_steps`."""

    env_steps: int = 0
    updates: int = 0
    target_syncs: int = 0


class Run:
    """The parts of one training run, and what surrounds its loop: plan, log, checkpoints, ending."""

    def __init__(self, config: Config, command: Sequence[str]) -> None:
        self.config = config
        self.clock = Clock()
        self.phase = PhaseTimer("env", "act", "append", "learn", "log")
        try:
            self._build()
            self.folder = RunFolder(config.run_dir, game=self.envs.game, preset=config.preset, seed=config.seed)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.folder.describe(config.to_toml(), command, hardware.environment())
        self.dashboard = Dashboard(config.ui)
        self.episodes = EpisodeTracker(config.num_envs, self.folder.path / "episodes.csv")
        self._metrics = MetricsLog(self.folder.path / "metrics.jsonl")
        self._latest_metrics: dict[str, float] = {}
        self._windows = RateWindow(10), RateWindow(60)
        self.dashboard.print_plan(self.plan())
        self._started = self._logged = time.perf_counter()
        self._saved_frames = 0

    def _build(self) -> None:
        config = self.config
        self.device = resolve_device(config.device)
        self.notes = list(config.notes)
        self.compute_dtype, self.compile = self._resolve_precision(), self._resolve_compile()
        env_threads, torch_threads = resolve_threads(config, self.device)
        torch.set_num_threads(torch_threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a kernel per tensor
        space = VectorEnv.describe(config.env, full_action_set=config.full_action_set)
        self.obs_shape = (config.frame_stack, *space.obs_shape) if space.is_image else space.obs_shape
        check_fits(
            capacity=config.replay_capacity,
            num_envs=config.num_envs,
            obs_shape=space.obs_shape,
            obs_dtype=space.torch_dtype,
            device=self.device,
        )
        self.learner = self._make_learner(space.num_actions)
        self.ring = ReplayRing(
            capacity=config.replay_capacity,
            num_envs=config.num_envs,
            obs_shape=space.obs_shape,
            obs_dtype=space.torch_dtype,
            stack=config.frame_stack,
            n_step=config.n_step,
            gamma=config.gamma,
            reward_clip=config.reward_clip,
            life_loss_terminal=config.life_loss_terminal,
            seed=config.seed,
            device=self.device,
        )
        self.schedule = LearningSchedule(
            learning_starts=config.learning_starts,
            batch_size=config.batch_size,
            replay_ratio=config.replay_ratio,
            target_update_period=config.target_update_period,
        )
        self.envs = VectorEnv(
            config.env,
            num_envs=config.num_envs,
            seed=config.seed,
            synchronous=config.deterministic,
            num_threads=env_threads,
            sticky_actions=config.sticky_actions,
            full_action_set=config.full_action_set,
            noop_max=config.noop_max,
            max_episode_steps=config.max_episode_steps,
            frame_skip=config.frame_skip,
            on_stall=self.save,
        )
        self.num_actions = space.num_actions
        self.fire_action = None if config.fire_after_life_loss == "off" else self.envs.fire_action
