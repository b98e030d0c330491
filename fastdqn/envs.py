"""EnvPool behind one small class: guards, seeds, groups, and the autoreset contract. The only importer of envpool.

The contract (EnvPool's NEXT_STEP autoreset, made explicit). One env, rows in time; a is the action sent for a row:

    row        0      1      2      3        4        5
    obs        reset  .      .      last     reset    .        `last` is the true final frame of the game
    reward     0      r1     r2     r3       0        r5       of the step into the row
    first      True   False  False  False    True     False    no transition leads into this row
    done       False  False  False  True     False    False    terminated or truncated
    action     a0     a1     a2     ignored  a4       a5

So the action of a done row is never executed, and a `first` row is no env step. B envs in a group, N in all.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import envpool
import numpy as np
import numpy.typing as npt

from fastdqn.atari import FRAME_CAP, fire_action, parse_env, steps_per_second
from fastdqn.errors import UsageError
from fastdqn.machine import hardware
from fastdqn.machine.watchdog import Watchdog

INT31_MAX = 2**31 - 1


class EnvStep(NamedTuple):
    """What one group of B envs came back with, in order of arrival. Lanes are addressed by `env_id` only."""

    obs: npt.NDArray[Any]  # uint8 [B, H, W] (or [B, 3, H, W] in colour), or float32 [B, D]
    reward: npt.NDArray[np.float32]  # [B], unclipped
    score: npt.NDArray[np.float32]  # [B], the game's own points; equals `reward` except where a task shapes it
    terminated: npt.NDArray[np.bool_]  # [B], the game is over: do not bootstrap
    truncated: npt.NDArray[np.bool_]  # [B], cut at max_episode_steps: bootstrap from obs, it is the true last frame
    life_lost: npt.NDArray[np.bool_]  # [B], a life was lost on the step into this row and the game goes on
    first: npt.NDArray[np.bool_]  # [B], a reset frame: no transition leads into this row
    env_id: npt.NDArray[np.int32]  # [B], distinct

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        return self.terminated | self.truncated


def env_seeds(run_seed: int, epoch: int, role: str, num_envs: int, first_env: int = 0) -> list[int]:
    """One 31-bit seed for each of envs number `first_env` and on, hashed, distinct within the job.

    EnvPool gives env i the seed `seed + i`, so pools with seeds 1 and 2 would share all but one of their games.
    """
    seeds: dict[int, None] = {}
    index = 0
    while len(seeds) < first_env + num_envs:
        digest = hashlib.blake2b(f"{run_seed}/{epoch}/{role}/{index}".encode(), digest_size=4).digest()
        seeds[int.from_bytes(digest, "little") & INT31_MAX] = None
        index += 1
    return list(seeds)[first_env:]


class VectorEnv:
    """`num_envs` games stepped by EnvPool's C++ threads.

    Asynchronous (default): `recv` returns whichever `batch_size` envs are ready, num_envs // 2 by default, so that one
    group can be acted on while the other is stepped. Synchronous: all envs, in env order, deterministic.

    Life cycle: `start` once, then `recv` a group and `send` its actions, until `close`. Building 64 envs takes about
    2 s and holds the GIL: no other thread runs meanwhile. `max_episode_steps=None` keeps the task's own cap (108,000 frames on
    Atari). `first_env` is the number of its first env among those of a job of several ranks. `stall_seconds` is how long
    `recv` may block before the watchdog ends the process, 0 for ever. `render` makes pictures for people, beside the
    observations; a game goes on the same with and without.

    Raises:
        UsageError: a value on which EnvPool would abort the process, hang, or run on with nonsense; names the field.
    """

    def __init__(
        self,
        env: str,
        *,
        num_envs: int,
        seed: int,
        role: str = "train",
        epoch: int = 0,
        first_env: int = 0,
        synchronous: bool = False,
        batch_size: int | None = None,
        num_threads: int = 0,
        sticky_actions: float = 0.0,
        full_action_set: bool = False,
        noop_max: int = 30,
        max_episode_steps: int | None = None,
        frame_skip: int = 4,
        image_size: tuple[int, int] = (84, 84),
        grayscale: bool = True,
        render: bool = False,
        stall_seconds: float = 60.0,
        on_stall: Callable[[], object] | None = None,
    ) -> None:
        name = parse_env(env)
        self.env, self.game, self.is_atari = name.canonical, name.game, name.is_atari
        _require("num_envs", num_envs, 1, 4096)
        _require("seed", seed, -(2**63), 2**63 - 1)
        if batch_size is None:
            batch_size = num_envs if synchronous else max(1, num_envs // 2)
        _require("batch_size", batch_size, 1, num_envs)
        if synchronous and batch_size != num_envs:
            raise UsageError(f"batch_size={batch_size}: a synchronous pool steps all {num_envs} envs; leave it out")
        _require("num_threads", num_threads, 0, 1024)
        if max_episode_steps is not None:
            _require("max_episode_steps", max_episode_steps, 1, INT31_MAX)
            if self.env == "Catch-v0":  # EnvPool does not cut it, but calls its end past the cap a truncation
                raise UsageError(f"max_episode_steps={max_episode_steps}: a game of Catch-v0 is 9 steps; leave it out")
        options: dict[str, Any] = {}
        if self.is_atari:
            options |= _atari_options(sticky_actions, full_action_set, noop_max, frame_skip, image_size, grayscale)
            max_episode_steps = max_episode_steps or FRAME_CAP // frame_skip
        self.steps_per_second = steps_per_second(name, frame_skip)
        if render:
            if self.steps_per_second is None:
                raise UsageError(f"env={self.env}: EnvPool draws no picture of it; choose a run of another task")
            options["render_mode"] = "rgb_array"
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        self.rendered = render
        self.num_envs, self.group_size, self.synchronous = num_envs, batch_size, synchronous
        self.num_threads = num_threads or min(num_envs, hardware.cores())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="gymnasium")  # about the bounds of float32 boxes
            self._pool: Any = envpool.make(
                self.env,
                env_type="gymnasium",
                num_envs=num_envs,
                batch_size=batch_size,
                num_threads=self.num_threads,
                seed=env_seeds(seed, epoch, role, num_envs, first_env),
                **options,
            )
            self._describe(full_action_set, frame_skip)
        self._pid = os.getpid()
        self._watchdog: Watchdog | None = None
        self._stall_seconds, self._on_stall = stall_seconds, on_stall
        self._lives_N = np.zeros(num_envs, np.int32)
        self._was_done_N = np.ones(num_envs, np.bool_)  # before its first row an env counts as done
        self._awaits_action_N = np.zeros(num_envs, np.bool_)
        self._in_flight = 0

    def _describe(self, full_action_set: bool, frame_skip: int) -> None:
        space = self._pool.observation_space
        self.num_actions = int(self._pool.action_space.n)
        self.fire_action = fire_action(self.game, full_action_set=full_action_set)
        self.frame_skip = frame_skip if self.is_atari else 1
        cap = int(self._pool.spec.config.max_episode_steps)
        self.max_episode_steps = None if cap == INT31_MAX else cap  # EnvPool's word for none
        if self.is_atari:
            channels, height, width = space.shape
            self.obs_shape: tuple[int, ...] = (height, width) if channels == 1 else (channels, height, width)
            self.obs_dtype = np.dtype(np.uint8)
        else:
            self.obs_shape, self.obs_dtype = (math.prod(space.shape),), np.dtype(np.float32)

    def start(self) -> None:
        """Resets every env; the first groups can then be received. Once in the life of a pool."""
        self._check_usable()
        if self._in_flight or self._awaits_action_N.any():
            raise ValueError("start: it has started already; build a new one to begin anew")
        if self._stall_seconds > 0 and self._watchdog is None:
            self._watchdog = Watchdog(f"EnvPool ({self.env})", self._stall_seconds, self._on_stall)
        self._pool.async_reset()
        self._in_flight = self.num_envs

    def recv(self) -> EnvStep:
        """Blocks until a group has stepped. The arrays are fresh: they are the caller's to keep."""
        self._check_usable()
        if self._in_flight < self.group_size:
            raise ValueError(
                f"recv: {self._in_flight} envs are in flight, a group is {self.group_size}; start or send first"
            )
        with self._watchdog or nullcontext():
            raw = self._pool.recv()
        obs, reward, terminated, truncated, info = raw
        env_id = info["env_id"]
        first = self._was_done_N[env_id]
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        score, life_lost = reward, np.zeros(len(env_id), np.bool_)
        if self.is_atari:
            # EnvPool reports a game over exactly at the step cap as a mere truncation
            terminated = terminated | (truncated & info["terminated"].astype(np.bool_))
            truncated = truncated & ~terminated
            score, lives = info["reward"], info["lives"]
            life_lost = (lives < self._lives_N[env_id]) & ~first & ~terminated
            self._lives_N[env_id] = lives
        self._was_done_N[env_id] = terminated | truncated
        self._awaits_action_N[env_id] = True
        self._in_flight -= len(env_id)
        obs = np.ascontiguousarray(obs, self.obs_dtype).reshape(len(env_id), *self.obs_shape)
        return EnvStep(obs, reward, score, terminated, truncated, life_lost, first, env_id)

    def send(self, action: npt.NDArray[np.int32], env_id: npt.NDArray[np.int32]) -> None:
        """Steps the envs `env_id` int32 [B] with `action` int32 [B]. Any set of envs that were received and not sent.

        EnvPool gets copies: both arrays may be reused at once.

        Raises:
            ValueError: anything on which EnvPool would read past its memory, overwrite its queue, or abort.
        """
        self._check_usable()
        for field, array in (("env_id", env_id), ("action", action)):
            good = isinstance(array, np.ndarray) and array.dtype == np.int32 and array.ndim == 1
            if not good or not array.flags.c_contiguous:
                raise ValueError(f"{field}: a contiguous int32 array of one dimension is needed")
        if len(action) != len(env_id) or len(env_id) == 0:
            raise ValueError(f"action: {len(action)} actions for {len(env_id)} envs; give one for each of at least one")
        if env_id.min() < 0 or env_id.max() >= self.num_envs:
            raise ValueError(f"env_id: {env_id.min()} to {env_id.max()} given; ids go from 0 to {self.num_envs - 1}")
        if action.min() < 0 or action.max() >= self.num_actions:
            raise ValueError(
                f"action: {action.min()} to {action.max()} given; {self.env} takes 0 to {self.num_actions - 1}"
            )
        waiting = np.count_nonzero(self._awaits_action_N)
        if not self._awaits_action_N[env_id].all():
            raise ValueError("env_id: only envs that were received and not yet sent can be sent")
        self._awaits_action_N[env_id] = False
        if waiting - np.count_nonzero(self._awaits_action_N) != len(env_id):
            self._awaits_action_N[env_id] = True
            raise ValueError("env_id: an env appears twice")
        self._in_flight += len(env_id)
        self._pool.send(action, env_id)

    def render(self) -> npt.NDArray[np.uint8]:
        """The screen of every env as it stands, in env order: RGB, uint8 [N, H, W, 3], in the emulator's own size.

        210x160 on Atari, where it is the last emulator frame of the step: nothing is max-pooled.

        Raises:
            ValueError: built without `render`, or some env is being stepped.
        """
        self._check_usable()
        if not self.rendered:
            raise ValueError("render: it was built without pictures; build it with render=True")
        if not self._awaits_action_N.all():
            raise ValueError("render: some envs are being stepped; receive all of them first")
        return self._pool.render(env_ids=np.arange(self.num_envs, dtype=np.int32))

    def close(self) -> None:
        """Lets go of the pool; its threads end with it. Arrays that were received stay valid."""
        if self._watchdog is not None:
            self._watchdog.close()
        self._watchdog = self._pool = None

    def _check_usable(self) -> None:
        if self._pool is None:
            raise ValueError("VectorEnv: it is closed; build a new one")
        if os.getpid() != self._pid:
            raise ValueError(
                "VectorEnv: built in another process, EnvPool hangs in a forked child; build it in this one"
            )


def _require(field: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{field}={value}: give a whole number from {low} to {high}")


def _atari_options(
    sticky_actions: float,
    full_action_set: bool,
    noop_max: int,
    frame_skip: int,
    image_size: tuple[int, int],
    grayscale: bool,
) -> dict[str, Any]:
    """What EnvPool is told of an Atari game, and no other task."""
    _require("noop_max", noop_max, 1, 1000)
    _require("frame_skip", frame_skip, 1, 1000)
    if len(image_size) != 2:
        raise UsageError(f"image_size={image_size}: give (height, width)")
    for side in image_size:
        _require("image_size", side, 1, 1024)
    if not 0.0 <= sticky_actions <= 1.0:
        raise UsageError(f"sticky_actions={sticky_actions}: a probability; give a number from 0 to 1")
    return {
        "stack_num": 1,
        "img_height": image_size[0],
        "img_width": image_size[1],
        "gray_scale": grayscale,
        "use_inter_area_resize": True,
        "noop_max": noop_max,
        "frame_skip": frame_skip,
        "repeat_action_probability": sticky_actions,
        "full_action_space": full_action_set,
        "episodic_life": False,  # its life-loss reset plays hidden no-ops in mid-game
        "reward_clip": False,
        "use_fire_reset": True,
    }
