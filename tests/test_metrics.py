"""Scores never leak, rates are rates, and memory is asked for before it is needed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdqn.machine.memory import free_bytes
from fastdqn.metrics import EpisodeTracker, PhaseTimer, RateWindow, Snapshot, core_wait_seconds, resident_bytes

CPU = torch.device("cpu")


def add(tracker: EpisodeTracker, env: int, score: float, *, first=False, terminated=False, truncated=False) -> None:
    flag = [np.array([value]) for value in (first, terminated, truncated)]
    tracker.add(np.array([env]), np.array([score]), *flag, env_steps=0)


def test_a_score_restarts_after_a_truncation_as_after_a_game_over() -> None:
    tracker = EpisodeTracker(2)
    for end in ({"truncated": True}, {"terminated": True}, {"truncated": True}):
        add(tracker, 1, 99.0, first=True)
        for _ in range(4):
            add(tracker, 1, 2.0)
        add(tracker, 1, 2.0, **end)
    assert list(tracker.last_100) == [10.0, 10.0, 10.0]
    rows = tracker.taken()
    assert [(score, length, truncated) for score, length, *_, truncated in rows] == [(10, 5, 1), (10, 5, 0), (10, 5, 1)]
    assert tracker.taken() == []


def test_a_game_has_its_envs_number_in_the_job_and_the_runs_env_steps() -> None:
    tracker, no = EpisodeTracker(2, first_env=6), np.zeros(2, np.bool_)
    tracker.add(np.array([1, 0]), np.array([2.5, 1.0]), no, np.array([True, False]), no, env_steps=40)
    tracker.add(np.array([0]), np.array([1.0]), no[:1], np.array([True]), no[:1], env_steps=44)
    rows = tracker.taken()
    assert [(score, env, env_steps) for score, _, _, env_steps, env, _ in rows] == [(2.5, 7, 40), (2.0, 6, 44)]


def test_a_log_row_says_of_each_figure_what_its_tag_means() -> None:
    snapshot = Snapshot(
        env="Pong-v5", preset="fast", frames=400, total_frames=4_000, env_steps=100, updates=25, target_syncs=3, episodes=7,
        wall_seconds=50.0, frames_per_second_10s=12.0, frames_per_second_60s=8.0, eta_seconds=450.0, score_mean_100=-20.5,
        epsilon=0.75, loss=0.125, q_mean=1.5, phase_seconds={"env": 5.0, "act": 2.0, "append": 1.0, "learn": 32.0, "log": 0.0},
        memory_bytes=123, gpu_memory_bytes=None,
    )  # fmt: skip
    assert snapshot.row() == {
        "global_step": 100, "frames": 400, "wall_seconds": 50.0, "charts/episodic_return": -20.5, "charts/episodes": 7,
        "charts/epsilon": 0.75, "charts/updates": 25, "perf/fps": 12.0, "system/memory_bytes": 123,
        "perf/env_frac": 0.125, "perf/act_frac": 0.05, "perf/append_frac": 0.025, "perf/learn_frac": 0.8, "perf/log_frac": 0.0,
    }  # fmt: skip


def test_the_mean_is_over_the_last_hundred_games_only() -> None:
    tracker = EpisodeTracker(1)
    assert tracker.score_mean_100 is None
    for game in range(150):
        add(tracker, 0, 0.0, first=True)
        add(tracker, 0, float(game), terminated=True)
    assert tracker.episodes == 150 and tracker.score_mean_100 == np.mean(range(50, 150))


def test_a_rate_is_taken_over_its_window() -> None:
    window = RateWindow(10)
    assert window.add(0.0, 0) == 0.0
    assert window.add(5.0, 500) == 100.0
    for second in range(6, 40):
        rate = window.add(float(second), 500 + 200 * (second - 5))
    assert rate == 200.0


def test_phases_add_up_even_when_one_raises() -> None:
    phase = PhaseTimer("a", "b")
    with phase("a"):
        pass
    with pytest.raises(KeyError), phase("b"):
        raise KeyError
    assert phase.seconds["a"] > 0 and phase.seconds["b"] > 0


def test_resident_memory_is_that_of_a_process_with_torch_in_it() -> None:
    assert 50e6 < resident_bytes() < free_bytes(CPU) + 100e9


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="this kernel does not count it")
def test_a_thread_that_shares_its_core_waits_for_it() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        begun, ran, waited = time.monotonic(), time.thread_time(), core_wait_seconds()
        while time.monotonic() - begun < 1 or time.monotonic() - begun < 2 * (time.thread_time() - ran):
            pass
        without = time.monotonic() - begun - (time.thread_time() - ran)
        assert core_wait_seconds() - waited == pytest.approx(without, rel=0.2)
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()
