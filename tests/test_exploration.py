"""Epsilon-greedy: independent coins, the right rate, greedy otherwise."""

import torch

from fastdqn.exploration import epsilon_greedy
from fastdqn.rng import role_key

KEY = role_key(0, "test")


def q_values(num_envs: int, num_actions: int, best: int) -> torch.Tensor:
    q = torch.zeros(num_envs, num_actions)
    q[:, best] = 1.0
    return q


def test_each_env_tosses_its_own_coin_in_one_call() -> None:
    """One draw for the whole batch would give 0 or 4,096 random actions; 0.5 must give about half."""
    action = epsilon_greedy(q_values(4096, 1000, best=7), torch.tensor(0.5), KEY, torch.tensor(0))
    explored = int((action != 7).sum())
    assert abs(explored - 2048) < 5 * 32  # 5 standard deviations of Binomial(4096, 1/2)


def test_epsilon_zero_is_greedy_and_epsilon_one_is_uniform() -> None:
    q = q_values(6000, 6, best=2)
    assert (epsilon_greedy(q, torch.tensor(0.0), KEY, torch.tensor(3)) == 2).all()
    counts = torch.bincount(epsilon_greedy(q, torch.tensor(1.0), KEY, torch.tensor(3)), minlength=6)
    assert counts.min() > 1000 - 5 * 29 and counts.max() < 1000 + 5 * 29


def test_the_counter_makes_a_new_draw_and_the_same_counter_repeats_it() -> None:
    q, epsilon = q_values(100, 6, best=0), torch.tensor(1.0)
    first, again, later = (epsilon_greedy(q, epsilon, KEY, torch.tensor(step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
