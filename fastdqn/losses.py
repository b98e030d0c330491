"""The equations of value-based learning as pure functions of tensors. N transitions, A actions.

`reward_N` is the n-step return and `discount_N` is gamma^m, or 0 after a termination, so that one line covers one-step
and n-step targets alike: y = R + discount * Q(s').
"""

import torch
from torch import Tensor


def q_learning_target(reward_N: Tensor, discount_N: Tensor, next_target_q_NA: Tensor) -> Tensor:
    """y = R + discount * max_a Q_target(s', a). Mnih et al. 2015, algorithm 1. [N]"""
    return reward_N + discount_N * next_target_q_NA.amax(dim=1)


def double_q_learning_target(
    reward_N: Tensor, discount_N: Tensor, next_online_q_NA: Tensor, next_target_q_NA: Tensor
) -> Tensor:
    """y = R + discount * Q_target(s', argmax_a Q_online(s', a)). Van Hasselt et al. 2016, equation 4. [N]"""
    best_N1 = next_online_q_NA.argmax(dim=1, keepdim=True)
    return reward_N + discount_N * next_target_q_NA.gather(1, best_N1).squeeze(1)


def chosen(q_NA: Tensor, action_N: Tensor) -> Tensor:
    """Q(s, a) of the actions taken. [N]"""
    return q_NA.gather(1, action_N.unsqueeze(1)).squeeze(1)


def squared(td_error_N: Tensor) -> Tensor:
    """delta^2 / 2, whose negative gradient is delta itself. [N]"""
    return 0.5 * td_error_N.square()


def huber(td_error_N: Tensor) -> Tensor:
    """delta^2 / 2 within |delta| <= 1, |delta| - 1/2 beyond: the error clipping of Mnih et al. 2015. [N]"""
    size_N = td_error_N.abs()
    return torch.where(size_N <= 1.0, 0.5 * td_error_N.square(), size_N - 0.5)


def weighted_mean(loss_N: Tensor, weight_N: Tensor) -> Tensor:
    """Sum of weight * loss over N: a slot of weight 0 contributes nothing and scales nothing else. 0-d"""
    return (weight_N * loss_N).mean()
