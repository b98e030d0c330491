"""The parts of one training run, built in order, and what surrounds its loop: plan, checkpoints, ending."""

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fastdqn import large_tensors, runs
from fastdqn.checkpoint import Checkpoint
from fastdqn.config import Config
from fastdqn.dashboard import Dashboard, ending
from fastdqn.distributed import RankLostError, join
from fastdqn.errors import refused_in_one_line
from fastdqn.logs import Logs
from fastdqn.machine import hardware
from fastdqn.machine.signals import StopRequest
from fastdqn.metrics import EpisodeTracker, PhaseTimer
from fastdqn.parts import build, training_envs
from fastdqn.periodic_eval import PeriodicEval
from fastdqn.pipeline import Pipeline
from fastdqn.plan import plan
from fastdqn.progress import Progress
from fastdqn.run_folder import RunFolder, check_free, default_path, trim
from fastdqn.saver import Saver
from fastdqn.schedules import Clock, LearningSchedule, SaveSchedule, line
from fastdqn.tracking import Tracker, check_installed

LOG_PERIOD_SECONDS = 2.0
SAVE_PERIOD_SECONDS = 600.0


class Run:
    """Builds everything a training loop needs, or refuses in one line.

    Raises:
        UsageError: a value that cannot work, alone, together with others, or on this machine.
    """

    def __init__(self, config: Config, command: Sequence[str], saved: Checkpoint | None = None) -> None:
        self.config, self.notes = config.resolved(loaded=saved is not None)
        self.clock, self.phase = Clock(), PhaseTimer("env", "act", "append", "learn", "log")
        self.epoch = 0 if saved is None else saved.state["epoch"] + 1
        self.refilled_at = 0  # env step at which a resumed run's ring, empty at first, is full enough to learn from
        self.stopping, self.logging, self.unsaved = False, False, False
        self.stop = StopRequest()  # hears no signal; `train` puts in the one that does
        self._saves_replay, self._eval_waits = self.config.checkpoint_replay == "full", False
        self._logged = time.perf_counter()
        with refused_in_one_line(config.run_dir):
            self.ranks = join(cuda=self.config.device != "cpu" and torch.cuda.is_available())
            if self.ranks.size > 1:
                self._join_in()
            config = self.config
            check_free(config.run_dir, resumed=saved is not None)
            self.dashboard = Dashboard(config.ui, sys.stderr if config.json else sys.stdout)
            parts = build(config, self.notes, self.ranks, self.epoch, self.dashboard.say, self.save_for_resume)
            self.device, self.threads, self.screen, self.envs = parts.device, parts.threads, parts.screen, parts.envs
            self.ring, self.learner, self.staging = parts.ring, parts.learner, parts.staging
            self._open_folder(command, saved)
        self.progress = Progress(
            config, env=self.envs.env, clock=self.clock, phase=self.phase, episodes=self.episodes, learner=self.learner,
            torch_threads=self.threads.learn, device=self.device, logs=self._logs, dashboard=self.dashboard,
            seconds_before=0.0 if saved is None else saved.state["wall_seconds"],
        )  # fmt: skip
        self.periodic_eval = PeriodicEval(self.folder.path, episodes=config.eval_episodes)
        self._saver = Saver(self.folder.checkpoints, None if saved is None else saved.step, config.keep_checkpoints)
        by_time = not (self._saves_replay or config.deterministic)  # not where saving takes long or begins new games
        self._save_schedule = SaveSchedule(
            checkpoint_period=config.checkpoint_period_frames, eval_period=config.eval_period_frames,
            seconds=SAVE_PERIOD_SECONDS if by_time else math.inf, frames=self.progress.frames, now=time.perf_counter(),
        )  # fmt: skip
        self.schedule = LearningSchedule(
            learning_starts=config.learning_starts, batch_size=config.batch_size, replay_ratio=config.replay_ratio,
            target_update_period=config.target_update_period if config.polyak == 0 else None,
        )  # fmt: skip
        self.plan = plan(config, parts, self.schedule, self.folder.path, self.notes)
        self.dashboard.say(*self.plan, *(["compiling"] if self.learner.compiled else []))
        with refused_in_one_line(config.run_dir):  # compiles
            self.pipeline = Pipeline(
                self.learner, self.ring, self.staging, batch_size=config.batch_size // self.ranks.size,
                fire_action=parts.fire_action, preprocess=self.screen.preprocess,
                act_threads=self.threads.act, learn_threads=self.threads.learn, ranks=self.ranks,
                capture=config.cuda_graphs,
            )  # fmt: skip

    def _join_in(self) -> None:
        """As one of several ranks: the first writes and shows, the others write into a folder that goes with them."""
        part, size = self.config.share(self.ranks.size), self.ranks.size
        self.notes.append(
            f"{size} ranks, {self.ranks.local_size} on this machine: each plays {part.num_envs} of {self.config.num_envs} "
            f"envs, stores {part.replay_capacity:,} frames and learns from {part.batch_size} of {self.config.batch_size}"
        )
        if self._saves_replay:
            self._saves_replay = False
            self.notes.append("checkpoint_replay: several ranks do not save their replay; resumed, they refill it")
        if not self.ranks.first:
            self._scratch = tempfile.TemporaryDirectory(prefix="fastdqn-rank-")  # removed when this process ends
            self.config = replace(self.config, run_dir=self._scratch.name, ui="quiet", track="off")

    def _open_folder(self, command: Sequence[str], saved: Checkpoint | None) -> None:
        """Takes or makes the folder, goes on from `saved` where there is one, and opens the logs."""
        config, num_envs, tracker = self.config, self.envs.num_envs, None
        if config.track != "off":
            check_installed(config.track)  # before the folder is made
        path = config.run_dir or default_path(self.envs.game, config.preset, config.seed)
        self.folder = RunFolder(path, resumed=saved is not None)
        path = self.folder.path
        environment = hardware.environment()
        if saved is not None:
            self._restore(saved)
            if (path / "config.toml").exists():  # not in the folder of another rank, or in a new one
                environment |= self._say_what_changed(path)
        self.folder.describe(config.to_toml(), command, environment)
        if saved is None:  # a resumed run's last one stands until there is more to say
            self.folder.status("starting")
        self.episodes = EpisodeTracker(num_envs, first_env=self.ranks.rank * num_envs)
        if saved is not None:
            self.episodes.episodes = saved.state["episodes"]
            self.episodes.last_100.extend(saved.state["last_100"])
        if config.track != "off":
            begin = self.clock.env_steps
            tracker = Tracker(config.track, path, name=path.name, config=asdict(config), begin=begin)
        self._logs = Logs(self.folder, self.episodes, tracker)

    def _restore(self, saved: Checkpoint) -> None:
        """Goes on where `saved` was written, with new games; rows of the logs from beyond it are dropped."""
        state = saved.state
        self.clock = Clock(**{field: state[field] for field in asdict(self.clock)})
        self.phase.seconds.update(state.get("phase_seconds", {}))  # which an older version did not write
        self.learner.load_state(saved.tensors)
        if self._saves_replay and saved.large is not None:
            large_tensors.read_into(saved.large, self.ring.stored())
            self.ring.seam()
        elif 0 < self.clock.env_steps < self.config.total_env_steps:
            self.refilled_at = self.clock.env_steps + self.config.learning_starts
            never = self.refilled_at >= self.config.total_env_steps
            self.notes.append(
                f"the replay was not saved{' (--checkpoint-replay full saves it)' * (self.ranks.size == 1)}: learning goes on at "
                f"env step {self.refilled_at:,}, when the ring has {self.config.learning_starts:,} new rows"
                f"{'; the run ends before that: give it more --total-frames' * never}"
            )
        path, now = self.folder.path, self.clock.env_steps
        damaged = trim(path / "metrics.jsonl", lambda line: runs.metrics_row(line)["global_step"] <= now)
        damaged += trim(path / "episodes.csv", lambda line: line.startswith("r,") or runs.game_row(line)[2] <= now)
        if damaged:
            self.notes.append(f"{damaged} damaged lines of metrics.jsonl and episodes.csv were dropped")

    def _say_what_changed(self, path: Path) -> dict[str, str]:
        """Notes what goes on from elsewhere than it had come to, and on what: the folder still says what was before.

        Returns what environment.json is to remember of that.
        """
        until = Config.load(path / "config.toml").total_env_steps
        moving = {"learning rate": self.learning_rate}
        if self.config.prioritized:
            moving["importance exponent"] = self.importance_exponent
        self.notes += [
            f"the {name} had come to {value(until):.3g} and goes on at {value():.3g}: it now ends with the new budget"
            for name, value in moving.items()
            if value(until) != value()
        ]
        before, here = runs.environment(path), hardware.environment()
        changed = [name for name in here if before.get(name, here[name]) != here[name]]
        past = [before["before"]] if "before" in before else []
        if changed:
            bits = "; a deterministic run has the same bits only on the same" if self.config.deterministic else ""
            words = ", ".join(f"{name} {before[name]} -> {here[name]}" for name in changed)
            self.notes.append(f"not as before: {words}{bits}")
            there = ", ".join(f"{name} {before[name]}" for name in changed)
            past.append(f"until env step {self.clock.env_steps:,}: {there}")
        return {"before": "; ".join(past)} if past else {}

    def new_epoch(self) -> None:
        """Begins new games, as a resumed run has to, for EnvPool cannot save one: so a deterministic run ends as if whole."""
        self.epoch += 1
        self.envs.close()
        self.envs = training_envs(
            self.config, self.ranks, self.screen, self.threads, self.epoch, on_stall=self.save_for_resume
        )
        self.ring.seam()
        self.envs.start()

    def saving(self) -> bool:
        """Whether a checkpoint is being written, which is worth waiting for."""
        return self._saver.busy

    def epsilon(self) -> float:
        """1 until learning starts, then on a straight line to its end."""
        start, end = self.config.learning_starts, self.config.learning_starts + self.config.epsilon_decay_steps
        return line(self.clock.env_steps, start, end, 1.0, self.config.epsilon_end)

    def importance_exponent(self, until: int | None = None) -> float:
        """beta of prioritised draws; `until` is the env step at which it ends, None: that of the run."""
        config, now = self.config, self.clock.env_steps
        between = config.importance_exponent, config.importance_exponent_end
        return line(now, config.learning_starts, until or config.total_env_steps, *between)

    def learning_rate(self, until: int | None = None) -> float:
        """Step size of the optimiser; `until` as above."""
        config, now = self.config, self.clock.env_steps
        between = config.learning_rate, config.learning_rate_end or config.learning_rate
        return line(now, config.learning_starts, until or config.total_env_steps, *between)

    def advance(self, decisions: int) -> int:
        """Adds what all ranks' groups brought to the clock, and agrees on what comes next. Returns env steps before."""
        before = self.clock.env_steps
        log = time.perf_counter() - self._logged >= LOG_PERIOD_SECONDS
        if log:
            self._logged = time.perf_counter()  # asked for once: several ranks' answer comes a group later
        agreed = self.ranks.agree(decisions, stop=self.stop.requested, log=log)
        self.clock.env_steps += agreed.decisions
        self.stopping, self.logging = agreed.stop, agreed.log
        return before

    def log(self) -> None:
        """One row of figures, with the games of all ranks, which are all here. By the clock: changes nothing that trains."""
        self._share_episodes()
        self._log_row()

    def _log_row(self) -> None:
        self.progress.log(self.epsilon(), self.learning_rate(), self.periodic_eval.new_scores())

    def _share_episodes(self) -> None:
        """Has the first rank count the other ranks' games too."""
        mine = [] if self.ranks.first else self.episodes.taken()
        self.episodes.take(self.ranks.gather(mine, EpisodeTracker.WIDTH))

    def checkpoint_due(self) -> bool:
        return self._save_schedule.due(self.progress.frames, time.perf_counter())

    def save(self) -> None:
        """Has a checkpoint written: learner and counters behind the loop's back, the replay, where asked for, at once."""
        self._eval_waits = self._eval_waits or self._save_schedule.eval_due(self.progress.frames)
        self._save_schedule.saved(self.progress.frames, time.perf_counter())
        if not self.ranks.first:
            return
        begun = self.clock.env_steps > 0  # before that the replay holds nothing, and epoch 0 is the next one
        state = {
            **self.progress.figures(),
            "obs_shape": list(self.screen.obs_shape(self.config.frame_stack)),
            "num_actions": self.envs.num_actions,
            "epoch": self.epoch if begun else self.epoch - 1,
            "last_100": list(self.episodes.last_100),
        }
        self._logs.write_games()  # first: a run that goes on from here has all games before it
        large = self.ring.stored() if self._saves_replay and begun else None
        started = time.perf_counter()
        self._saver.save(self.clock.env_steps, self.learner.state(), state, large)
        if large is not None:
            seconds = time.perf_counter() - started
            self.dashboard.say(f"checkpoint with {self.ring.nbytes / 1e9:.2f} GB of replay: {seconds:.1f} s")

    def save_now(self) -> bool:
        """Whether a checkpoint of this moment is on the disk; where it could not be written, after a second try."""
        if not self.ranks.first:
            return True
        for _ in range(2):
            self.save()
            self._saver.wait()
            if self._saver.saved == self.clock.env_steps:
                return True
        return False

    def save_for_resume(self) -> bool:
        """What the end of a run leaves: all of it, or the last boundary of a deterministic run that is not finished.

        False where the disk did not take it.
        """
        if self.clock.env_steps >= self.config.total_env_steps or not self.config.deterministic:
            return self.save_now()
        self._saver.wait()  # only a checkpoint at which new games began can be resumed bit for bit
        if self._saver.saved is None:
            self.dashboard.say(
                "nothing to resume: a deterministic run is saved at each --checkpoint-period-frames and evaluation"
            )
        else:
            again = self.progress.frames - self._saver.saved * self.config.action_repeat
            self.dashboard.say(f"resume goes on at the last checkpoint: {again:,} frames will be run again")
        return True

    def eval_due(self) -> bool:
        """Whether what was saved for an evaluation is on the disk."""
        return self._eval_waits and self.ranks.first and not self._saver.busy

    def evaluate(self) -> None:
        """Has what was saved evaluated in the background."""
        self._eval_waits = False
        self.periodic_eval.start()

    def summary(self) -> dict[str, Any]:
        """The run and its figures so far."""
        figures = self.progress.figures()
        seconds = figures["wall_seconds"]
        return {
            "run_dir": str(self.folder.path),
            "env": self.envs.env,
            "preset": self.config.preset,
            "seed": self.config.seed,
            **figures,
            "frames_per_second": figures["frames"] / seconds if seconds > 0 else None,
            "compile_seconds": self.pipeline.compile_seconds,
            "failed_slots": int(self.ring.failed_slots),
            "refused_updates": self.progress.refused,
            "failed_evaluations": len(self.periodic_eval.failures),
        }

    def __enter__(self) -> "Run":
        self.progress.begin()
        if self.clock.env_steps == 0:
            self.save_now()  # from its first step on, a run that is killed can be resumed
        self._logged = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Saves, whatever ended the loop, says how it ended, and lets go of everything."""
        self.progress.end()
        state, figures = "failed", {}
        try:
            if (
                isinstance(error, RankLostError) and self.device.type == "cuda"
            ):  # its queue waits for the rank that is gone
                self._saver.wait()
                self.dashboard.say(
                    f"the GPU waits for the lost rank: the last checkpoint is that of env step {self._saver.saved}"
                )
            else:
                state, figures = self._wind_up(error), self.summary()
        finally:  # of a device that has failed nothing can be read any more, and that raises here
            self.periodic_eval.stop()
            self._logs.close(state, **figures)
            self.dashboard.close()
            resumable = self._saver.saved is not None
            self.dashboard.say(*ending(state, self.folder.path, figures, resumable=resumable))
            self.envs.close()
            self.folder.release()

    def _wind_up(self, error: BaseException | None) -> str:
        """Saves, has the last evaluation played and the last row logged. Returns how the run ended."""
        if error is None:
            try:
                self._share_episodes()
                self.ranks.leave()
            except RankLostError as lost:  # in the last moment: all that is missing is some games of its log
                self.dashboard.say(f"warning: {lost}")
        finished = self.clock.env_steps >= self.config.total_env_steps and error is None
        self.unsaved = not self.save_for_resume()
        if self.config.eval_period_frames > 0 and self.ranks.first and finished:
            self.dashboard.say("training has ended; its last evaluation goes on")
            finished = self.periodic_eval.finish(unless=lambda: self.stop.requested)  # else resume plays it
        if self.periodic_eval.left_out > 0:
            self.dashboard.say(
                f"evaluations left out, as the one before was still going on: {self.periodic_eval.left_out}; "
                "a longer --eval-period-frames or fewer --eval-episodes leave time for all"
            )
        for failure in self.periodic_eval.failures:
            self.dashboard.say(f"warning: {failure}")
        self._log_row()
        while self.periodic_eval.unreported:  # one score to a row
            self._log_row()
        return "failed" if error is not None or self.unsaved else "finished" if finished else "interrupted"
