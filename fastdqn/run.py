"""The parts of one training run, built in order, and what surrounds its loop: plan, log, checkpoints, ending."""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from fastdqn import __version__, hardware, large_tensors
from fastdqn.checkpoint import Checkpoint
from fastdqn.config import Config, UsageError
from fastdqn.dashboard import Dashboard, count
from fastdqn.exploration import linear_epsilon
from fastdqn.memory import free_bytes
from fastdqn.metrics import EpisodeTracker, MetricsLog, PhaseTimer, RateWindow, Snapshot, resident_bytes
from fastdqn.parts import build, make_envs
from fastdqn.periodic_eval import PeriodicEval
from fastdqn.pipeline import Pipeline
from fastdqn.run_folder import RunFolder, trim
from fastdqn.saver import Saver
from fastdqn.schedules import LearningSchedule
from fastdqn.tracking import Tracker, check_installed

LOG_PERIOD_SECONDS = 2.0
REFUSED_LIMIT = 100  # updates in a row that were not finite: training ends


class NotFiniteError(RuntimeError):
    """Training cannot go on: its numbers are no longer finite. One line with the reason."""


@dataclass
class Clock:
    """The counters of a run; everything scheduled is a function of `env_steps`."""

    env_steps: int = 0
    updates: int = 0
    target_syncs: int = 0


class Run:
    """Builds everything a training loop needs, or refuses in one line.

    Raises:
        UsageError: a value that cannot work, alone, together with others, or on this machine.
    """

    def __init__(self, config: Config, command: Sequence[str], saved: Checkpoint | None = None) -> None:
        self.config, self.notes = config.resolved()
        self.clock = Clock()
        self.schedule = LearningSchedule(
            learning_starts=self.config.learning_starts,
            batch_size=self.config.batch_size,
            replay_ratio=self.config.replay_ratio,
            target_update_period=self.config.target_update_period,
        )
        self.epoch, self.learn_from, self._seconds_before = 0, 0, 0.0
        self.phase = PhaseTimer("env", "act", "append", "learn", "log")
        try:
            parts = build(self.config, self.notes)
            self.device, self.threads, self.screen, self.envs = parts.device, parts.threads, parts.screen, parts.envs
            self.obs_shape, self.fire_action = parts.obs_shape, parts.fire_action
            self.ring, self.learner, self.staging = parts.ring, parts.learner, parts.staging
            self.envs.on_stall = self.save_now
            config = self.config
            if config.track != "off":
                check_installed(config.track)  # before the folder is made
            self.folder = RunFolder(
                config.run_dir, game=self.envs.game, preset=config.preset, seed=config.seed, resumed=saved is not None
            )
            if saved is not None:
                self._restore(saved)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._saver = Saver(self.folder.checkpoints)
        self._tracker = None
        if config.track != "off":
            self._tracker = Tracker(config.track, self.folder.path, name=self.folder.path.name, config=asdict(config))
        self.folder.describe(config.to_toml(), command, hardware.environment())
        self.dashboard = Dashboard(config.ui, sys.stderr if config.json else sys.stdout)
        self.dashboard.print_plan(self.plan())
        self.pipeline = Pipeline(
            self.learner,
            self.ring,
            self.staging,
            batch_size=config.batch_size,
            fire_action=self.fire_action,
            preprocess=None if self.screen is None else self.screen.preprocess,
            act_threads=self.threads.act,
            learn_threads=self.threads.learn,
        )
        self.episodes = EpisodeTracker(
            config.num_envs, self.folder.path / "episodes.csv", seconds_before=self._seconds_before
        )
        if saved is not None:
            self.episodes.episodes = saved.state["episodes"]
            self.episodes.last_100.extend(saved.state["last_100"])
        self._metrics = MetricsLog(self.folder.path / "metrics.jsonl")
        self.periodic_eval = PeriodicEval(self.folder.path, episodes=config.eval_episodes)
        self._losses: dict[str, float] = {}
        self._windows = RateWindow(10), RateWindow(60)
        self._started = self._logged = time.perf_counter()
        self._eval_waits = False
        self._saved_period = self.frames // config.checkpoint_period_frames
        self._evaluated_period = self.frames // max(config.eval_period_frames, 1)

    def _restore(self, saved: Checkpoint) -> None:
        """Goes on where `saved` was written, with new games; rows of the logs from beyond it are dropped."""
        state = saved.state
        self.clock = Clock(**{field: state[field] for field in asdict(self.clock)})
        self._seconds_before = state["wall_seconds"]
        self.learner.load_state(saved.tensors)
        if self.config.checkpoint_replay == "full" and saved.large is not None:
            large_tensors.read_into(saved.large, self.ring.stored())
            self.ring.seam()
        else:
            self.learn_from = self.clock.env_steps + self.config.learning_starts
            self.notes.append(
                f"the replay was not saved: learning goes on at env step {self.learn_from:,}, when the ring has "
                f"{self.config.learning_starts:,} new rows"
            )
        self.epoch = state["epoch"]
        self._new_games()
        trim(self.folder.path / "metrics.jsonl", lambda row: json.loads(row)["global_step"] <= self.clock.env_steps)
        trim(
            self.folder.path / "episodes.csv",
            lambda row: row.startswith("r,") or int(row.split(",")[3]) <= self.clock.env_steps,
        )

    def new_epoch(self) -> None:
        """Begins new games, as a run that is resumed here has to: EnvPool cannot save a game.

        Deterministic runs do so at every checkpoint, so that one that was interrupted ends bit for bit as one that was not.
        """
        self._new_games()
        self.ring.seam()
        self.envs.start()

    def _new_games(self) -> None:
        self.epoch += 1
        self.envs.close()
        self.envs = make_envs(self.config, self.screen, self.threads.env, self.epoch)
        self.envs.on_stall = self.save_now

    def _algorithm(self) -> str:
        """Head, encoder and everything that is switched on, in words."""
        config = self.config
        switched = ("double", "dueling", "prioritized", "noisy", "munchausen", "spectral_norm", "layer_norm")
        parts = [f"head {config.head}", f"encoder {config.encoder}", f"n {config.n_step}", config.optimizer]
        return ", ".join(parts + [name.replace("_", " ") for name in switched if getattr(config, name)])

    def plan(self) -> list[str]:
        """What is about to happen, in env steps and frames, with everything that was derived."""
        config, envs, ring = self.config, self.envs, self.ring
        updates = float(self.schedule.updates_per_step)
        parameters = sum(param.numel() for param in self.learner.online.parameters())
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else hardware.cpu_name()
        groups = "synchronous" if envs.synchronous else f"asynchronous groups of {envs.group_size}"
        fire = "" if self.fire_action is None else ", FIRE after a lost life"
        target = f"target {'copied every ' + format(config.target_update_period, ',')}"
        if config.polyak > 0:
            target = f"target follows by {config.polyak:g} per update"
        arithmetic = str(self.learner.online.compute_dtype).removeprefix("torch.")
        lines = [
            f"fastdqn {__version__} · torch {torch.__version__} · {gpu}, {hardware.cores()} cores",
            f"run       {self.folder.path}",
            f"env       {envs.env}: {envs.num_actions} actions, sticky {config.sticky_actions:g}, at most "
            f"{count(envs.max_episode_steps)} env steps a game{fire}",
            f"budget    {config.total_frames:,} frames, {config.total_env_steps:,} env steps of {config.action_repeat}",
            f"replay    {ring.num_envs * ring.lane_length:,} frames, {ring.nbytes / 1e9:.2f} GB on {self.device} "
            f"({free_bytes(self.device) / 1e9:.1f} GB still free), {ring.num_envs} lanes of {ring.lane_length:,}",
            f"learning  from env step {config.learning_starts:,}: replay ratio {config.replay_ratio:g} = {updates:.4g} "
            f"updates of {config.batch_size} per env step, {target}",
            f"algorithm {self._algorithm()}",
            f"explore   epsilon 1 until learning starts, then to {config.epsilon_end:g} over "
            f"{config.epsilon_decay_steps:,} env steps",
            f"compute   {parameters:,} parameters, {arithmetic}, {'compiled' if self.learner.compiled else 'eager'}; "
            f"{self.threads.learn} torch and {envs.num_threads} EnvPool threads, {groups}"
            f"{', ' + self.screen.on_device if self.screen and self.screen.on_device else ''}",
        ]
        warning = hardware.nvidia_without_cuda()
        return lines + [f"note      {note}" for note in [*self.notes, *([warning] if warning else [])]]

    def epsilon(self) -> float:
        return linear_epsilon(
            self.clock.env_steps,
            learning_starts=self.config.learning_starts,
            decay_steps=self.config.epsilon_decay_steps,
            final=self.config.epsilon_end,
        )

    def importance_exponent(self) -> float:
        """beta of prioritised draws: a straight line from its setting at the learning start to 1 at the end."""
        start, end = self.config.learning_starts, self.config.total_env_steps
        progress = (self.clock.env_steps - start) / max(end - start, 1)
        return self.config.importance_exponent + min(max(progress, 0.0), 1.0) * (1 - self.config.importance_exponent)

    @property
    def frames(self) -> int:
        return self.clock.env_steps * self.config.action_repeat

    def log_due(self) -> bool:
        return time.perf_counter() - self._logged >= LOG_PERIOD_SECONDS

    def log(self) -> None:
        """One row of metrics.jsonl, one status, one drawing."""
        self._logged = time.perf_counter()
        self._losses = self.learner.read_metrics() or self._losses
        self.refused, self._refused_in_a_row = self.learner.read_refused()
        snapshot = self.snapshot()
        seconds = max(sum(self.phase.seconds.values()), 1e-9)
        row = {
            "global_step": self.clock.env_steps,
            "frames": snapshot.frames,
            "wall_seconds": round(snapshot.wall_seconds, 3),
            "charts/SPS": snapshot.frames_per_second_10s / self.config.action_repeat,
            "charts/episodic_return": snapshot.score_mean_100,
            "charts/episodes": snapshot.episodes,
            "charts/epsilon": snapshot.epsilon,
            "charts/updates": snapshot.updates,
            "charts/refused_updates": self.refused,
            **self._losses,
            **self.periodic_eval.new_scores(),
            "perf/fps": snapshot.frames_per_second_10s,
            **{f"perf/{name}_frac": value / seconds for name, value in snapshot.phase_seconds.items()},
            "system/memory_bytes": snapshot.memory_bytes,
        }
        self._metrics.write(row)
        if self._tracker is not None:
            self._tracker.write(row)
        self.episodes.flush()
        self.folder.status("running", frames=snapshot.frames, frames_per_second=snapshot.frames_per_second_10s,
                           score_mean_100=snapshot.score_mean_100)  # fmt: skip
        self.dashboard.update(snapshot)

    def check_finite(self) -> None:
        """Raises NotFiniteError once too many updates in a row were left out, as of the last `log`."""
        if self._refused_in_a_row >= REFUSED_LIMIT:
            raise NotFiniteError(
                f"the last {self._refused_in_a_row} updates had a loss or gradient that was not finite; the weights are "
                "as before them and saved: lower --learning-rate, or look at the rewards"
            )

    def snapshot(self) -> Snapshot:
        now = time.perf_counter()
        fps_10, fps_60 = (window.add(now, self.frames) for window in self._windows)
        left = max(self.config.total_frames - self.frames, 0)
        return Snapshot(
            run_name=self.folder.path.name,
            env=self.envs.env,
            preset=self.config.preset,
            frames=self.frames,
            total_frames=self.config.total_frames,
            env_steps=self.clock.env_steps,
            updates=self.clock.updates,
            episodes=self.episodes.episodes,
            wall_seconds=now - self._started,
            frames_per_second_10s=fps_10,
            frames_per_second_60s=fps_60,
            eta_seconds=left / fps_60 if fps_60 > 0 else None,
            score_mean_100=self.episodes.score_mean_100,
            epsilon=self.epsilon(),
            loss=self._losses.get("losses/td_loss"),
            q_mean=self._losses.get("losses/q_values"),
            phase_seconds=dict(self.phase.seconds),
            memory_bytes=resident_bytes(),
            gpu_memory_bytes=torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None,
        )

    def checkpoint_due(self) -> bool:
        return self.frames // self.config.checkpoint_period_frames > self._saved_period

    def save(self) -> None:
        """Has a checkpoint written: learner and counters behind the loop's back, the replay, where asked for, at once."""
        self._saved_period = self.frames // self.config.checkpoint_period_frames
        state = {
            **asdict(self.clock),
            "frames": self.frames,
            "obs_shape": list(self.obs_shape),
            "num_actions": self.envs.num_actions,
            "score_mean_100": self.episodes.score_mean_100,
            "epoch": self.epoch,
            "episodes": self.episodes.episodes,
            "last_100": list(self.episodes.last_100),
            "wall_seconds": time.perf_counter() - self._started,
        }
        large = self.ring.stored() if self.config.checkpoint_replay == "full" else None
        started = time.perf_counter()
        self._saver.save(self.clock.env_steps, self.learner.state(), state, large)
        if large is not None:
            seconds = time.perf_counter() - started
            self.dashboard.say(f"checkpoint with {self.ring.nbytes / 1e9:.2f} GB of replay: {seconds:.1f} s")

    def save_now(self) -> None:
        """Writes a checkpoint and returns when it is on the disk."""
        self.save()
        self._saver.wait()

    def save_for_resume(self) -> None:
        """What the end of a run leaves: all of it, or the last boundary of a deterministic run that is not finished."""
        if self.config.deterministic and self.clock.env_steps < self.config.total_env_steps:
            self._saver.wait()  # only a checkpoint at which new games began can be resumed bit for bit
            again = self.frames % self.config.checkpoint_period_frames
            self.dashboard.say(f"resume goes on at the last checkpoint: {again:,} frames will be run again")
        else:
            self.save_now()

    def eval_due(self) -> bool:
        period = self.config.eval_period_frames
        return self._eval_waits or (period > 0 and self.frames // period > self._evaluated_period)

    def evaluate(self) -> None:
        """Saves, and has what was saved evaluated in the background; the evaluation begins when it is on the disk."""
        if not self._eval_waits:
            self._evaluated_period = self.frames // self.config.eval_period_frames
            self.save()
        self._eval_waits = self._saver.busy
        if not self._eval_waits:
            self.periodic_eval.start()

    def summary(self) -> dict[str, Any]:
        """The figures of the run so far."""
        seconds = self.wall_seconds
        return {
            "run_dir": str(self.folder.path),
            "env": self.envs.env,
            "preset": self.config.preset,
            "seed": self.config.seed,
            "frames": self.frames,
            "env_steps": self.clock.env_steps,
            "updates": self.clock.updates,
            "target_syncs": self.clock.target_syncs,
            "episodes": self.episodes.episodes,
            "score_mean_100": self.episodes.score_mean_100,
            "frames_per_second": self.frames / seconds if seconds > 0 else math.nan,
            "wall_seconds": seconds,
            "compile_seconds": self.pipeline.compile_seconds,
            "phase_seconds": dict(self.phase.seconds),
            "failed_slots": int(self.ring.failed_slots),
            "refused_updates": self.refused,
        }

    def __enter__(self) -> "Run":
        self._logged = time.perf_counter()
        self._started = self._logged - self._seconds_before
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Saves, whatever ended the loop, and says how it ended."""
        self.wall_seconds = time.perf_counter() - self._started
        finished = self.clock.env_steps >= self.config.total_env_steps and error is None
        self.save_for_resume()
        if self.config.eval_period_frames > 0 and finished:
            self.dashboard.say("training has ended; its last evaluation goes on")
            self.periodic_eval.wait()
            self.periodic_eval.start()
            self.periodic_eval.wait()
        self.periodic_eval.stop()
        for failure in self.periodic_eval.failures:
            self.dashboard.say(f"warning: {failure}")
        self.log()
        state = "failed" if error is not None else "finished" if finished else "interrupted"
        self.folder.status(state, **self.summary())
        self.dashboard.close()
        self.dashboard.say(f"{state}: {self.folder.path}")
        self.episodes.close()
        self._metrics.close()
        if self._tracker is not None:
            self._tracker.close()
        self.envs.close()
        self.folder.release()
