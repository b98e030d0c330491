"""Epsilon-greedy action choice. B envs, A actions."""

import torch
from torch import Tensor

from fastdqn import rng


def epsilon_greedy(q_BA: Tensor, epsilon: Tensor, key: int | Tensor, counter: Tensor) -> Tensor:
    """One coin and one random action per env: random with probability epsilon, else argmax Q. int64 [B]

    The coins are independent across the batch; one draw for the whole batch would make all envs explore in step.
    `epsilon` and `counter` are 0-d tensors on the device of `q_BA`; the caller advances the counter.
    """
    num_envs, num_actions = q_BA.shape
    lane_2B = torch.arange(2 * num_envs, device=q_BA.device)
    coin_B, choice_B = rng.bits(key, counter, lane_2B).view(2, num_envs)
    return torch.where(rng.uniform(coin_B) < epsilon, rng.below(choice_B, num_actions), q_BA.argmax(dim=1))
