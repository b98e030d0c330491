"""What the host counts of a run: finished games, rates, phases, memory. Losses are summed up by the learner.

Tags in `metrics.jsonl` follow CleanRL (`charts/episodic_return`, `charts/SPS`, `losses/td_loss`, `losses/q_values`), so
that existing plotting tools read them. `global_step` is in env steps; `frames` stands beside it.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment: what the dashboard draws and what a status line says."""

    env: str
    preset: str
    frames: int  # emulator frames
    total_frames: int
    env_steps: int  # decisions
    updates: int
    target_syncs: int
    episodes: int
    wall_seconds: float
    frames_per_second_10s: float
    frames_per_second_60s: float
    eta_seconds: float | None
    score_mean_100: float | None  # mean raw score of the last 100 finished games
    epsilon: float
    loss: float | None
    q_mean: float | None
    phase_seconds: dict[str, float]  # cumulative host time in: env, act, append, learn, log
    memory_bytes: int  # resident
    gpu_memory_bytes: int | None

    def row(self) -> dict[str, Any]:
        """What metrics.jsonl says of it, by tag."""
        seconds = max(sum(self.phase_seconds.values()), 1e-9)
        return {
            "global_step": self.env_steps,
            "frames": self.frames,
            "wall_seconds": round(self.wall_seconds, 3),
            "charts/episodic_return": self.score_mean_100,
            "charts/episodes": self.episodes,
            "charts/epsilon": self.epsilon,
            "charts/updates": self.updates,
            "perf/fps": self.frames_per_second_10s,
            **{f"perf/{name}_frac": value / seconds for name, value in self.phase_seconds.items()},
            "system/memory_bytes": self.memory_bytes,
        }


class EpisodeTracker:
    """Scores and lengths of the games, per env, from the unclipped score.

    Both restart at a reset row, so a score never leaks across a truncation.
    """

    WIDTH = 6  # numbers in a row: score, length, seconds, env steps of the run, env, truncated

    def __init__(self, num_envs: int, *, first_env: int = 0) -> None:
        self._first_env = first_env
        self.score_N = np.zeros(num_envs)
        self.length_N = np.zeros(num_envs, np.int64)
        self.episodes = 0
        self.last_100: deque[float] = deque(maxlen=100)
        self._rows: list[list[float]] = []  # not yet taken
        self.started = time.perf_counter()  # what seconds count from; a run sets it to where its own begin

    def add(self, env_id: np.ndarray, score: np.ndarray, first: np.ndarray, terminated: np.ndarray,
            truncated: np.ndarray, env_steps: int) -> None:  # fmt: skip
        """Counts one group of rows; all arrays [B], `env_steps` the run's total after this group."""
        self.score_N[env_id] = np.where(first, 0.0, self.score_N[env_id] + score)
        self.length_N[env_id] = np.where(first, 0, self.length_N[env_id] + 1)
        done = terminated | truncated
        if not done.any():
            return
        env, seconds = env_id[done], round(time.perf_counter() - self.started, 3)
        columns = self.score_N[env], self.length_N[env], seconds, env_steps, self._first_env + env, truncated[done]
        self.take(np.stack(np.broadcast_arrays(*columns), axis=1).tolist())

    def take(self, rows: list[list[float]]) -> None:
        """Counts finished games, this process's or another rank's."""
        self.episodes += len(rows)
        self.last_100.extend(row[0] for row in rows)
        self._rows += [[float(score), int(length), seconds, *map(int, rest)] for score, length, seconds, *rest in rows]

    def taken(self) -> list[list[float]]:
        """The games since the last call, to be written, or counted by another rank."""
        rows, self._rows = self._rows, []
        return rows

    @property
    def score_mean_100(self) -> float | None:
        return float(np.mean(self.last_100)) if self.last_100 else None


class PhaseTimer:
    """Host seconds per phase. On a GPU "learn" is the time to queue the work; waiting for it shows up under "act"."""

    def __init__(self, *names: str) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


class RateWindow:
    """A counter's rate per second over the last `seconds` seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now: float, count: float) -> float:
        self._points.append((now, count))
        while len(self._points) > 2 and now - self._points[1][0] >= self._seconds:
            self._points.popleft()
        (then, before), (_, after) = self._points[0], self._points[-1]
        return (after - before) / (now - then) if now > then else 0.0


def core_wait_seconds() -> float:
    """Seconds that this thread was ready to run and had no core, ever (Linux; 0 where the kernel does not count them)."""
    try:
        nanoseconds = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return nanoseconds / 1e9


def resident_bytes() -> int:
    """Resident memory of this process in bytes (Linux; 0 where /proc is missing)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
