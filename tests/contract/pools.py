"""Raw EnvPool as fastdqn/envs.py sets it, and rows of what it brings."""

import os
import signal
from typing import Any, NamedTuple

import envpool
import numpy as np

SETTINGS = {  # as fastdqn/envs.py sets them
    "num_threads": 1,
    "stack_num": 1,
    "use_inter_area_resize": True,
    "noop_max": 30,
    "frame_skip": 4,
    "episodic_life": False,
    "reward_clip": False,
    "use_fire_reset": True,
    "max_episode_steps": 27_000,
}


class Row(NamedTuple):
    """What one recv brought: arrays [B], obs uint8 [B, stack_num, H, W]."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


def make(game: str = "Breakout", num_envs: int = 1, **settings) -> Any:
    seed = [11 + 10 * env for env in range(num_envs)]
    return envpool.make_gymnasium(f"{game}-v5", num_envs=num_envs, **{"seed": seed, **SETTINGS, **settings})


def task(name: str, **settings) -> Any:
    return envpool.make_gymnasium(name, num_envs=2, num_threads=1, seed=1, **settings)


def actions(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def script(rows: int, num_envs: int = 1, num_actions: int = 4) -> np.ndarray:
    """int32 [rows, num_envs], always the same."""
    return np.random.default_rng(0).integers(0, num_actions, (rows, num_envs)).astype(np.int32)


def play(pool: Any, played: np.ndarray) -> list[Row]:
    """The reset row, then one row for each row of `played`. Synchronous pools only."""
    pool.async_reset()
    return [Row(*pool.recv()), *(Row(*pool.step(action)) for action in played)]


def same(one: list[Row], two: list[Row]) -> bool:
    """Whether both played the same, bit for bit, the emulator's memory included."""
    fields = [np.array_equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x[:4], y[:4], strict=True)]
    ram = [np.array_equal(x.info["ram"], y.info["ram"]) for x, y in zip(one, two, strict=True)]
    return all(fields) and all(ram)


def first_end(rows: list[Row]) -> int:
    return next(index for index, row in enumerate(rows) if row.terminated[0] or row.truncated[0])


def facts(row: Row) -> dict:
    """The plain values of a row of one env."""
    return {
        "reward": float(row.reward[0]),
        "points": float(row.info["reward"][0]),
        "terminated": bool(row.terminated[0]),
        "truncated": bool(row.truncated[0]),
        "game_over": int(row.info["terminated"][0]),
        "elapsed_step": int(row.info["elapsed_step"][0]),
        "lives": int(row.info["lives"][0]),
    }


def ending(status: int) -> str:
    """What `os.wait` says of a process, in a word: the name of its signal or its exit code."""
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
