"""A trained agent at play: from what the games came back with to its next actions."""

import numpy as np
import torch

from fastdqn import rng
from fastdqn.envs import EnvStep, VectorEnv
from fastdqn.exploration import epsilon_greedy
from fastdqn.replay import ReplayRing
from fastdqn.screens import Screen
from fastdqn.staging import Staging


class Player:
    """Chooses the actions of N games. Every group that is received goes through `act`, from the first one on.

    Args:
        network: obs -> Q-values float32 [B, A], on `device`.
        envs: the games.
        frame_stack: frames in an observation.
        epsilon: share of random actions.
        fire_after_life_loss: press FIRE after a lost life, where the game has it.
        seed: of the exploration.
        screen: how observations reach the ring.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        envs: VectorEnv,
        *,
        frame_stack: int,
        epsilon: float,
        fire_after_life_loss: bool,
        seed: int,
        device: torch.device,
        screen: Screen,
    ) -> None:
        # the ring is the one way that frames become stacks, in training and here; a few rows are enough
        self._ring = ReplayRing(
            capacity=envs.num_envs * (frame_stack + 2),
            num_envs=envs.num_envs,
            obs_shape=screen.frame_shape,
            obs_dtype=screen.dtype,
            stack=frame_stack,
            n_step=1,
            gamma=1.0,
            reward_clip=False,
            life_loss_terminal=False,
            seed=seed,
            device=device,
        )
        self._network, self._preprocess = network, screen.preprocess
        self._staging = Staging(
            group_size=envs.num_envs, obs_shape=envs.obs_shape, obs_dtype=screen.dtype, device=device
        )
        self._key, self._epsilon = rng.role_key(seed, "eval explore"), torch.tensor(epsilon, device=device)
        self._counter = torch.zeros((), dtype=torch.int64, device=device)
        self._fire = envs.fire_action if fire_after_life_loss else None

    @torch.no_grad()
    def act(self, step: EnvStep) -> tuple[np.ndarray, torch.Tensor]:
        """The actions for a group of rows, int32 [B], and the Q-values behind them, float32 [B, A] on the device."""
        self._staging.put(step)
        rows = self._staging.rows
        self._ring.append(**{**rows, "obs": self._preprocess(rows["obs"])})
        q_values = self._network(self._ring.latest(rows["env_id"]))
        action = epsilon_greedy(q_values, self._epsilon, self._key, self._counter)
        self._counter += 1
        if self._fire is not None:
            action = torch.where(rows["life_lost"], self._fire, action)
        return action.to("cpu", torch.int32).numpy(), q_values  # the one host sync of a step
