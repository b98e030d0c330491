"""The equations of value-based learning as pure functions of tensors.

N transitions, A actions, K outputs per action (1 value, Z atoms or K quantiles), M quantiles of the target.

`reward_N` is the n-step return and `discount_N` is gamma^m, or 0 after a termination, so that one line covers one-step
and n-step targets alike: y = R + discount * sum_a pi(a|s') z(s', a). The policy pi is greedy in Q-learning and soft in
Munchausen learning; Double learning takes it from the online network, and z is always the target network's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def greedy(q_NA: Tensor) -> Tensor:
    """pi(a|s) = 1 for the best action, the first if several, else 0. Watkins 1989. [N, A]"""
    # compared rather than F.one_hot, which waits for the device to look at its input
    best_N1 = q_NA.argmax(dim=1, keepdim=True)
    return (torch.arange(q_NA.shape[1], device=q_NA.device) == best_N1).to(q_NA.dtype)


def log_policy(q_NA: Tensor, temperature: float) -> Tensor:
    """T log pi(a|s) of the softmax policy pi = exp(Q / T) / sum: Vieillard et al. 2020, their tau is T here. [N, A]"""
    return temperature * F.log_softmax(q_NA / temperature, dim=1)


def expected(policy_NA: Tensor, value_NAK: Tensor) -> Tensor:
    """sum_a pi(a|s) z(s, a). [N, K]"""
    return (policy_NA.unsqueeze(2) * value_NAK).sum(dim=1)  # no matrix product: TF32 would round the target


def chosen(value_NAK: Tensor, action_N: Tensor) -> Tensor:
    """z(s, a) of the actions taken. [N, K]"""
    # a mask rather than gather: the gradient of gather adds by atomics, and deterministically by a slower detour
    taken_NA1 = (torch.arange(value_NAK.shape[1], device=action_N.device) == action_N.view(-1, 1)).unsqueeze(2)
    return torch.where(taken_NA1, value_NAK, 0.0).sum(dim=1)


def td_target(reward_N: Tensor, discount_N: Tensor, next_value_NK: Tensor) -> Tensor:
    """y = R + discount * z(s'). Mnih et al. 2015, algorithm 1; with pi(online): Van Hasselt et al. 2016, eq. 4. [N, K]"""
    return reward_N.unsqueeze(1) + discount_N.unsqueeze(1) * next_value_NK


def munchausen_reward(
    reward_N: Tensor,
    discount_N: Tensor,
    log_policy_N: Tensor,
    next_log_policy_NA: Tensor,
    *,
    temperature: float,
    scale: float,
    floor: float,
) -> Tensor:
    """R + scale * clip(T log pi(a|s), floor, 0) + discount * T * entropy(pi(.|s')). Vieillard et al. 2020, eq. 1. [N]

    The entropy, their sum_a pi(a|s') (-T log pi(a|s')), is a bonus of the next state, the same for all its outcomes.
    Over n steps the first action's log-policy alone is added, as in Beyond The Rainbow.

    Args:
        log_policy_N: T log pi(a|s) of the action taken.
        next_log_policy_NA: T log pi(.|s').
    """
    policy_NA = (next_log_policy_NA / temperature).exp()
    entropy_N = -(policy_NA * next_log_policy_NA).sum(dim=1)
    return reward_N + scale * log_policy_N.clamp(floor, 0.0) + discount_N * entropy_N


def squared(td_error: Tensor) -> Tensor:
    """delta^2 / 2, whose negative gradient is delta itself. As its input"""
    return 0.5 * td_error.square()


def huber(td_error: Tensor) -> Tensor:
    """delta^2 / 2 within |delta| <= 1, |delta| - 1/2 beyond: the error clipping of Mnih et al. 2015. As its input"""
    size = td_error.abs()
    return torch.where(size <= 1.0, 0.5 * td_error.square(), size - 0.5)


def quantile_huber(value_NK: Tensor, tau_NK: Tensor, target_NM: Tensor) -> Tensor:
    """sum_k mean_m |tau_k - [delta_km < 0]| huber(delta_km), delta_km = y_m - z_k. Dabney et al. 2018a, eq. 10. [N]"""
    delta_NKM = target_NM.unsqueeze(1) - value_NK.unsqueeze(2)
    side_NKM = (tau_NK.unsqueeze(2) - (delta_NKM.detach() < 0).to(tau_NK.dtype)).abs()
    return (side_NKM * huber(delta_NKM)).mean(dim=2).sum(dim=1)


def project(support_NM: Tensor, probability_NM: Tensor, atoms_Z: Tensor) -> Tensor:
    """The distribution on any points, moved to evenly spaced atoms: Bellemare et al. 2017, algorithm 1. [N, Z]

    Each point, clamped to the atoms' range, gives its probability to its two neighbours by its distance to them.
    """
    spacing = atoms_Z[1] - atoms_Z[0]
    support_NM = torch.minimum(torch.maximum(support_NM, atoms_Z[0]), atoms_Z[-1])
    distance_NZM = (support_NM.unsqueeze(1) - atoms_Z.view(1, -1, 1)).abs() / spacing
    return ((1.0 - distance_NZM).clamp(min=0.0) * probability_NM.unsqueeze(1)).sum(dim=2)


def kl_divergence(target_NZ: Tensor, logits_NZ: Tensor) -> Tensor:
    """sum_z m log(m / p): cross-entropy, up to the target's own entropy. Bellemare et al. 2017. [N]"""
    return (torch.xlogy(target_NZ, target_NZ) - target_NZ * logits_NZ.log_softmax(dim=1)).sum(dim=1)


def weighted_mean(loss_N: Tensor, weight_N: Tensor) -> Tensor:
    """Sum of weight * loss over N: a slot of weight 0 contributes nothing and scales nothing else. 0-d

    Raises:
        ValueError: a loss of another shape, [N, 1] or [N, K], which would be broadcast without a word.
    """
    if loss_N.shape != weight_N.shape:
        raise ValueError(f"loss {tuple(loss_N.shape)}: of a batch with weights {tuple(weight_N.shape)}; give one each")
    return (weight_N * loss_N).mean()
