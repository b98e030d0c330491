"""Literals in, literals out: every number can be checked by hand; then the same against slow NumPy loops."""

import numpy as np
import pytest
import torch
from torch import Tensor, tensor
from torch.autograd import gradcheck

from fastdqn import losses

REWARD = tensor([1.0, 2.0, -1.0])
DISCOUNT = tensor([0.5, 0.0, 0.25])  # the second transition terminated
NEXT_TARGET_Q = tensor([[1.0, 4.0], [100.0, 7.0], [8.0, -2.0]])
NEXT_ONLINE_Q = tensor([[3.0, 2.0], [0.0, 1.0], [5.0, 6.0]])  # argmax: 0, 1, 1


def td_target(policy: Tensor) -> list[float]:
    next_value = losses.expected(policy, NEXT_TARGET_Q.unsqueeze(2))
    return losses.td_target(REWARD, DISCOUNT, next_value).squeeze(1).tolist()


def test_the_q_learning_target_takes_the_target_networks_maximum() -> None:
    assert td_target(losses.greedy(NEXT_TARGET_Q)) == [1 + 0.5 * 4, 2.0, -1 + 0.25 * 8]


def test_the_double_target_chooses_online_and_values_with_the_target_network() -> None:
    assert td_target(losses.greedy(NEXT_ONLINE_Q)) == [1 + 0.5 * 1, 2.0, -1 + 0.25 * -2]


def test_greedy_takes_the_first_of_equals() -> None:
    assert losses.greedy(tensor([[2.0, 2.0, 1.0]])).tolist() == [[1, 0, 0]]


def test_chosen_picks_the_value_of_the_action_taken() -> None:
    assert losses.chosen(NEXT_TARGET_Q.unsqueeze(2), tensor([1, 0, 1])).tolist() == [[4.0], [100.0], [-2.0]]
    value_NAK = torch.arange(12.0).view(2, 2, 3)
    assert losses.chosen(value_NAK, tensor([1, 0])).tolist() == [[3, 4, 5], [6, 7, 8]]


def test_expected_weighs_whole_distributions_by_the_policy() -> None:
    value_NAK = tensor([[[1.0, 2.0], [5.0, 10.0]]])
    assert losses.expected(tensor([[0.75, 0.25]]), value_NAK).tolist() == [[2.0, 4.0]]


def test_squared_and_huber_agree_up_to_one_and_huber_is_linear_beyond() -> None:
    delta = tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    assert losses.squared(delta).tolist() == [4.5, 0.5, 0.125, 0.0, 0.125, 0.5, 4.5]
    assert losses.huber(delta).tolist() == [2.5, 0.5, 0.125, 0.0, 0.125, 0.5, 2.5]


def test_huber_gradient_is_the_clipped_error() -> None:
    delta = tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    losses.huber(delta).sum().backward()
    assert delta.grad is not None and delta.grad.tolist() == [-1.0, -0.5, 0.5, 1.0]


def test_a_slot_of_weight_zero_contributes_nothing() -> None:
    loss = losses.weighted_mean(tensor([2.0, 1e9, 4.0]), tensor([1.0, 0.0, 1.0]))
    assert loss.item() == 2.0


def test_one_quantile_in_the_middle_is_half_the_huber_loss() -> None:
    value, target = tensor([[0.0], [0.0]]), tensor([[0.5], [-3.0]])
    assert losses.quantile_huber(value, tensor([[0.5]]), target).tolist() == [0.5 * 0.125, 0.5 * 2.5]


def test_a_high_quantile_pays_more_for_being_too_low() -> None:
    value, tau = tensor([[0.0]]), tensor([[0.75]])
    assert losses.quantile_huber(value, tau, tensor([[2.0]])).tolist() == [0.75 * 1.5]
    assert losses.quantile_huber(value, tau, tensor([[-2.0]])).tolist() == [0.25 * 1.5]


def test_quantiles_are_summed_and_target_samples_averaged() -> None:
    value, tau = tensor([[0.0, 0.0]]), tensor([[0.25, 0.75]])
    target = tensor([[2.0, -2.0]])  # 0.25 * 1.5, 0.75 * 1.5 for the first quantile, the reverse for the second
    assert losses.quantile_huber(value, tau, target).tolist() == [1.5]


ATOMS = tensor([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        ([-1.0, 0.0, 1.0], [0.25, 0.25, 0.5]),  # on the atoms
        ([-0.5, 0.0, 1.0], [0.125, 0.375, 0.5]),  # halfway: shared
        ([-7.0, 0.25, 9.0], [0.25, 0.1875, 0.5625]),  # beyond the ends: clamped
        ([0.75, 0.75, 0.75], [0.0, 0.25, 0.75]),  # a terminal reward: all at one point
    ],
)
def test_a_distribution_is_projected_onto_its_neighbouring_atoms(support: list, expected: list) -> None:
    assert losses.project(tensor([support]), tensor([[0.25, 0.25, 0.5]]), ATOMS).tolist() == [expected]


def test_kl_divergence_is_zero_at_equality_and_ln_two_for_a_fair_coin() -> None:
    logits = tensor([[0.0, 0.0], [0.0, 0.0]])
    loss = losses.kl_divergence(tensor([[0.5, 0.5], [1.0, 0.0]]), logits)
    assert torch.allclose(loss, tensor([0.0, float(np.log(2.0))]), atol=1e-7)


def test_the_log_policy_of_equal_values_is_minus_the_temperature_times_ln_a() -> None:
    log_policy = losses.log_policy(tensor([[5.0, 5.0]]), 0.1)
    assert torch.allclose(log_policy, torch.full((1, 2), -0.1 * np.log(2.0)))


def test_munchausen_adds_the_clipped_log_policy_and_the_next_states_entropy() -> None:
    fair = losses.log_policy(tensor([[0.0, 0.0], [0.0, 0.0]]), 0.5)
    reward = losses.munchausen_reward(
        tensor([1.0, 1.0]), tensor([0.9, 0.0]), tensor([-0.2, -7.0]), fair, temperature=0.5, scale=0.9, floor=-1.0
    )
    assert torch.allclose(reward, tensor([1 - 0.9 * 0.2 + 0.9 * 0.5 * float(np.log(2.0)), 1 - 0.9]))


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def huber(delta: float) -> float:
    return delta * delta / 2 if abs(delta) <= 1 else abs(delta) - 0.5


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_quantile_huber_equals_its_definition() -> None:
    value, tau, target = random(20, 7), torch.rand(20, 7, dtype=torch.float64), random(20, 5, seed=1)
    loss = losses.quantile_huber(value, tau, target)
    for n in range(20):
        total = 0.0
        for k in range(7):
            for m in range(5):
                delta = float(target[n, m] - value[n, k])
                total += abs(float(tau[n, k]) - (delta < 0)) * huber(delta) / 5
        assert loss[n].item() == pytest.approx(total, rel=1e-12)


def test_projection_equals_a_loop_over_atoms() -> None:
    """The rule as it is published: b = (Tz - v_min) / dz, lower and upper neighbour, shares by distance."""
    atoms = torch.linspace(-10, 10, 51, dtype=torch.float64)
    probability = random(30, 51).softmax(1)
    support = random(30, 1, seed=1) + torch.rand(30, 1, dtype=torch.float64) * atoms * 1.5
    projected = losses.project(support, probability, atoms)
    for n in range(30):
        expected = np.zeros(51)
        for z in range(51):
            b = (np.clip(float(support[n, z]), -10, 10) + 10) / 0.4
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                expected[low] += float(probability[n, z])
            else:
                expected[low] += float(probability[n, z]) * (high - b)
                expected[high] += float(probability[n, z]) * (b - low)
        assert np.allclose(projected[n].numpy(), expected, atol=1e-12)
    assert torch.allclose(projected.sum(1), torch.ones(30, dtype=torch.float64))


def test_kl_divergence_equals_its_definition() -> None:
    target, logits = random(10, 6).softmax(1), random(10, 6, seed=1)
    target[0] = torch.eye(6, dtype=torch.float64)[2]
    loss = losses.kl_divergence(target, logits)
    for n in range(10):
        p = softmax(logits[n].numpy())
        assert loss[n].item() == pytest.approx(sum(m * np.log(m / q) for m, q in zip(target[n].tolist(), p, strict=True) if m > 0))  # fmt: skip


@pytest.mark.parametrize("temperature", [0.03, 1.0])
def test_the_munchausen_target_equals_the_papers_equation(temperature: float) -> None:
    """r + a [t ln pi(a|s)]_-1^0 + d sum_b pi(b|s') (q(s', b) - t ln pi(b|s')), per quantile."""
    q, next_value, action = random(12, 4), random(12, 4, 3, seed=1), torch.arange(12) % 4
    reward, discount = random(12, seed=2), torch.rand(12, dtype=torch.float64)
    log_policy = losses.log_policy(q, temperature).gather(1, action[:, None]).squeeze(1)
    next_log_policy = losses.log_policy(next_value.mean(2), temperature)
    augmented = losses.munchausen_reward(
        reward, discount, log_policy, next_log_policy, temperature=temperature, scale=0.9, floor=-1.0
    )
    policy = (next_log_policy / temperature).exp()
    target = losses.td_target(augmented, discount, losses.expected(policy, next_value))
    for n in range(12):
        pi = softmax(q[n].numpy() / temperature)
        next_pi = softmax(next_value[n].mean(1).numpy() / temperature)
        bonus = 0.9 * max(temperature * np.log(pi[action[n]]), -1.0)
        for k in range(3):
            soft = sum(p * (float(next_value[n, b, k]) - temperature * np.log(p)) for b, p in enumerate(next_pi) if p)
            assert target[n, k].item() == pytest.approx(float(reward[n]) + bonus + float(discount[n]) * soft)


@pytest.mark.parametrize("shape", [(4, 1), (4, 4), (1,), ()])
def test_a_loss_that_is_not_one_number_for_each_transition_is_refused(shape: tuple[int, ...]) -> None:
    """Broadcast against the weights it would be a mean of other things, and training would go on."""
    with pytest.raises(ValueError, match=r"of a batch with weights \(4,\)"):
        losses.weighted_mean(torch.ones(shape), torch.ones(4))


def test_losses_pass_gradcheck_in_float64() -> None:
    value, action = random(6, 3, 1).requires_grad_(), torch.arange(6) % 3
    target = 3 * random(6, 1, seed=1)
    for loss in (losses.squared, losses.huber):
        assert gradcheck(
            lambda value, loss=loss: losses.weighted_mean(
                loss(target - losses.chosen(value, action)).squeeze(1), target.abs().squeeze(1)
            ),
            value,
        )
    quantiles, tau = random(6, 4).requires_grad_(), torch.rand(6, 4, dtype=torch.float64)
    assert gradcheck(lambda quantiles: losses.quantile_huber(quantiles, tau, random(6, 5, seed=2)), quantiles)
    logits, distribution = random(6, 5).requires_grad_(), random(6, 5, seed=3).softmax(1)
    assert gradcheck(lambda logits: losses.kl_divergence(distribution, logits), logits)
