"""How far a run has come and how well it does: in its log rows, on the screen, in its checkpoints and in its summary."""

import time
from dataclasses import asdict
from typing import Any

import torch

from fastdqn.config import Config
from fastdqn.dashboard import Dashboard
from fastdqn.errors import RunError
from fastdqn.learner import Learner, compiled_graphs
from fastdqn.logs import Logs
from fastdqn.metrics import EpisodeTracker, PhaseTimer, RateWindow, Snapshot, core_wait_seconds, resident_bytes
from fastdqn.schedules import Clock

REFUSED_LIMIT = 100  # updates in a row that were not finite: training ends
DEAD_AFTER = 1_000  # updates; in bfloat16 the first ones may tell no two states apart
DEAD_SPREAD = 1e-5  # of Q, from state to state; networks that learned Breakout after all were at 7e-4
DEAD = (
    "warning: Q is the same in every state of the last updates: the network's units are dead, and stay so; begin again "
    "with --weight-init lecun or, if it is, with a lower --learning-rate"
)
CROWDED_AFTER = 120  # seconds of training; the first ones are the compiler's
CROWDED_FRAC = (
    0.15  # of the last minute; 0.01 alone on 4 cores, 0.31 beside a run of the same threads, at 40 % of the speed
)


class NotFiniteError(RunError):
    """Training cannot go on: its numbers are no longer finite. One line with the reason."""


class Progress:
    """The figures of a run.

    Args:
        config: names the run, and says how far it goes.
        env: canonical name of the game.
        clock, phase, episodes: what the loop counts.
        learner: asked for its losses, once a log period.
        torch_threads: that an update takes.
        seconds_before: of the part of the run before a resume.
    """

    def __init__(
        self,
        config: Config,
        *,
        env: str,
        clock: Clock,
        phase: PhaseTimer,
        episodes: EpisodeTracker,
        learner: Learner,
        torch_threads: int,
        device: torch.device,
        logs: Logs,
        dashboard: Dashboard,
        seconds_before: float = 0.0,
    ) -> None:
        self._config, self._env, self._clock, self._phase = config, env, clock, phase
        self._episodes, self._learner, self._logs, self._dashboard = episodes, learner, logs, dashboard
        self._torch_threads, self._device, self._seconds_before = torch_threads, device, seconds_before
        self.refused = 0  # updates that were left out, ever
        self._refused_in_a_row = 0
        self._losses: dict[str, float] = {}
        self._told_dead = self._told_crowded = False
        self._ended: float | None = None
        self.begin()

    def begin(self) -> None:
        """The loop begins now: what came before is no training time."""
        self._began = now = time.perf_counter()
        self._started = self._episodes.started = now - self._seconds_before
        self._windows, self._core_waits = (RateWindow(10), RateWindow(60)), RateWindow(60)
        for window in self._windows:
            window.add(now, self.frames)
        self._core_waits.add(now, core_wait_seconds())

    def end(self) -> None:
        """The loop has ended: what comes after is no training time."""
        self._ended = time.perf_counter()

    @property
    def frames(self) -> int:
        return self._clock.env_steps * self._config.action_repeat

    @property
    def wall_seconds(self) -> float:
        """Of training so far, what was before a resume included."""
        return (self._ended or time.perf_counter()) - self._started

    def figures(self) -> dict[str, Any]:
        """What the run has done so far: in its checkpoints and in its summary."""
        return {
            **asdict(self._clock),
            "frames": self.frames,
            "episodes": self._episodes.episodes,
            "score_mean_100": self._episodes.score_mean_100,
            "wall_seconds": self.wall_seconds,
            "phase_seconds": dict(self._phase.seconds),
        }

    def snapshot(self, epsilon: float) -> Snapshot:
        """This moment, for the screen and the logs."""
        now = self._ended or time.perf_counter()
        fps_10, fps_60 = (window.add(now, self.frames) for window in self._windows)
        left = max(self._config.total_frames - self.frames, 0)
        return Snapshot(
            **self.figures(),
            env=self._env,
            preset=self._config.preset,
            total_frames=self._config.total_frames,
            frames_per_second_10s=fps_10,
            frames_per_second_60s=fps_60,
            eta_seconds=left / fps_60 if fps_60 > 0 else None,
            epsilon=epsilon,
            loss=self._losses.get("losses/td_loss"),
            q_mean=self._losses.get("losses/q_values"),
            memory_bytes=resident_bytes(),
            gpu_memory_bytes=torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else None,
        )

    def log(self, epsilon: float, learning_rate: float, eval_scores: dict[str, float]) -> None:
        """One row of metrics.jsonl, one status, one drawing. A host sync: it reads what the learner has summed up."""
        losses, self.refused, self._refused_in_a_row = self._learner.read_metrics()
        self._losses = losses or self._losses
        same = losses and losses["losses/q_spread"] <= DEAD_SPREAD * abs(losses["losses/q_values"])
        if same and self._clock.updates >= DEAD_AFTER and not self._told_dead:
            self._told_dead = True
            self._dashboard.say(DEAD)
        core_wait = self._core_wait_frac()
        snapshot = self.snapshot(epsilon)
        row = {
            **snapshot.row(),
            "charts/SPS": snapshot.frames_per_second_10s / self._config.action_repeat,
            "charts/learning_rate": learning_rate,
            "charts/refused_updates": self.refused,
            **self._losses,
            **eval_scores,
            "system/core_wait_frac": core_wait,
            "system/compiled_graphs": compiled_graphs(),
        }
        self._logs.write(row)
        self._dashboard.update(snapshot)

    def _core_wait_frac(self) -> float:
        """Share of the last minute in which the loop had no core to run on. Says so once where that slows a team of threads."""
        now = time.perf_counter()
        waited = self._core_waits.add(now, core_wait_seconds())
        crowded = self._torch_threads > 1 and waited > CROWDED_FRAC and now - self._began > CROWDED_AFTER
        if crowded and not self._told_crowded:
            self._told_crowded = True
            self._dashboard.say(
                f"warning: other programs held this run's cores for {waited:.0%} of the last minute, and each of its "
                f"{self._torch_threads} torch threads waits for the last one; runs side by side are faster with "
                "--torch-threads 1 (resume takes it too)"
            )
        return waited

    def check_finite(self) -> None:
        """Raises NotFiniteError once too many updates in a row were left out, as of the last `log`."""
        if self._refused_in_a_row >= REFUSED_LIMIT:
            raise NotFiniteError(
                f"the last {self._refused_in_a_row} updates had a loss or gradient that was not finite; the weights are "
                "as before them: lower --learning-rate, or look at the rewards"
            )
