"""Literals in, literals out: every number below can be checked by hand."""

import torch
from torch import tensor
from torch.autograd import gradcheck

from fastdqn import losses

REWARD = tensor([1.0, 2.0, -1.0])
DISCOUNT = tensor([0.5, 0.0, 0.25])  # the second transition terminated
NEXT_TARGET_Q = tensor([[1.0, 4.0], [100.0, 7.0], [8.0, -2.0]])
NEXT_ONLINE_Q = tensor([[3.0, 2.0], [0.0, 1.0], [5.0, 6.0]])  # argmax: 0, 1, 1


def test_q_learning_target_takes_the_target_networks_maximum() -> None:
    target = losses.q_learning_target(REWARD, DISCOUNT, NEXT_TARGET_Q)
    assert target.tolist() == [1 + 0.5 * 4, 2.0, -1 + 0.25 * 8]


def test_double_target_chooses_online_and_values_with_the_target_network() -> None:
    target = losses.double_q_learning_target(REWARD, DISCOUNT, NEXT_ONLINE_Q, NEXT_TARGET_Q)
    assert target.tolist() == [1 + 0.5 * 1, 2.0, -1 + 0.25 * -2]


def test_chosen_picks_the_value_of_the_action_taken() -> None:
    assert losses.chosen(NEXT_TARGET_Q, tensor([1, 0, 1])).tolist() == [4.0, 100.0, -2.0]


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


def test_losses_pass_gradcheck_in_float64() -> None:
    torch.manual_seed(0)
    q = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    action = torch.randint(0, 3, (6,))
    target = torch.randn(6, dtype=torch.float64) * 3
    for loss in (losses.squared, losses.huber):
        assert gradcheck(
            lambda q, loss=loss: losses.weighted_mean(loss(target - losses.chosen(q, action)), target.abs()), q
        )
