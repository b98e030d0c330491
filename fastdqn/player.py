"""A trained agent at play: from what the games came back with to its next actions."""

import numpy as np
import torch

from fastdqn import rng
from fastdqn.envs import EnvStep, VectorEnv
from fastdqn.exploration import epsilon_greedy
from fastdqn.replay import ReplayRing
from fastdqn.screens import Screen


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
        self._network, self._device = network, device
        self._preprocess = screen.preprocess
        self._key, self._epsilon = rng.role_key(seed, "eval explore"), torch.tensor(epsilon, device=device)
        self._counter = torch.zeros((), dtype=torch.int64, device=device)
        self._fire = envs.fire_action if fire_after_life_loss else None

    @torch.no_grad()
    def act(self, step: EnvStep) -> tuple[np.ndarray, torch.Tensor]:
        """The actions for a group of rows, int32 [B], and the Q-values behind them, float32 [B, A] on the device."""
        env_id, life_lost = (
            torch.from_numpy(array).to(self._device) for array in (step.env_id.astype(np.int64), step.life_lost)
        )
        obs, reward, terminated, done = (
            torch.from_numpy(array).to(self._device) for array in (step.obs, step.reward, step.terminated, step.done)
        )
        if self._preprocess is not None:
            obs = self._preprocess(obs)
        self._ring.append(env_id, obs, reward, terminated, done, life_lost)
        q_values = self._network(self._ring.latest(env_id))
        action = epsilon_greedy(q_values, self._epsilon, self._key, self._counter)
        self._counter += 1
        if self._fire is not None:
            action = torch.where(life_lost, self._fire, action)
        return action.to("cpu", torch.int32).numpy(), q_values  # the one host sync of a step
