"""The learner against tabular Q-learning, a float64 reference and itself compiled."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from fastdqn.learner import Learner
from fastdqn.networks import QNetwork

ALPHA, GAMMA = 0.3, 0.9


def make_learner(network: nn.Module, optimizer: torch.optim.Optimizer | None = None, **settings) -> Learner:
    defaults = {"double": True, "loss": "huber", "max_grad_norm": 10.0, "seed": 0, "compile": False}
    optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    return Learner(network, optimizer, **(defaults | settings))


def random_batch(obs_shape: tuple[int, ...], num_actions: int, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randint(0, 256, (2, size, *obs_shape), dtype=torch.uint8, generator=generator)
    return {
        "obs": obs[0],
        "action": torch.randint(0, num_actions, (size,), generator=generator),
        "reward": torch.randn(size, generator=generator),
        "discount": torch.full((size,), 0.97),
        "next_obs": obs[1],
        "weight": torch.ones(size),
    }


def test_with_one_hot_states_and_a_linear_network_the_update_is_tabular_q_learning() -> None:
    """Q(s,a) += alpha (r + gamma max Q(s',.) - Q(s,a)) on FrozenLake, to 1e-12 over 2,000 transitions."""
    env = gymnasium.make("FrozenLake-v1", is_slippery=True)
    num_states, num_actions = 16, 4
    network = nn.Linear(num_states, num_actions, bias=False).double()
    nn.init.zeros_(network.weight)
    learner = make_learner(
        network, torch.optim.SGD(network.parameters(), lr=ALPHA), double=False, loss="mse", max_grad_norm=0.0
    )
    table, one_hot = np.zeros((num_states, num_actions)), torch.eye(num_states, dtype=torch.float64)
    choose = np.random.default_rng(0)
    table += (start := choose.normal(size=table.shape))  # zeros would learn nothing until the first goal
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(start.T))
    state, _ = env.reset(seed=0)
    for _ in range(2_000):
        action = int(choose.integers(num_actions))
        next_state, reward, terminated, truncated, _ = env.step(action)
        discount = 0.0 if terminated else GAMMA
        table[state, action] += ALPHA * (float(reward) + discount * table[next_state].max() - table[state, action])
        learner.sync_target()  # tabular Q-learning bootstraps from the current table
        learner.update(
            one_hot[[state]],
            torch.tensor([action]),
            torch.tensor([float(reward)], dtype=torch.float64),
            torch.tensor([discount], dtype=torch.float64),
            one_hot[[next_state]],
            torch.ones(1, dtype=torch.float64),
        )
        assert np.abs(network.weight.detach().numpy().T - table).max() < 1e-12
        state = env.reset()[0] if terminated or truncated else next_state


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_gradients_equal_a_reference_written_from_the_equations(double: bool, loss: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    learner = make_learner(
        network, torch.optim.SGD(network.parameters(), lr=1.0), double=double, loss=loss, max_grad_norm=0
    )
    for param in learner.target.parameters():
        param.data.add_(torch.randn_like(param))
    before, reference = copy.deepcopy(network), copy.deepcopy(network)
    obs, next_obs = torch.randn(2, 16, 5, dtype=torch.float64)
    action, reward = torch.randint(0, 3, (16,)), 3 * torch.randn(16, dtype=torch.float64)
    discount, weight = torch.rand(16, dtype=torch.float64), torch.rand(16, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(16):
        next_target = learner.target(next_obs[i])
        best = (before(next_obs[i]) if double else next_target).argmax()
        delta = (reward[i] + discount[i] * next_target[best]).detach() - reference(obs[i])[action[i]]
        quadratic = loss == "mse" or abs(delta) <= 1
        total = total + weight[i] * (delta**2 / 2 if quadratic else abs(delta) - 0.5) / 16
    total.backward()
    learner.update(obs, action, reward, discount, next_obs, weight)
    for old, new, expected in zip(before.parameters(), network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(old - new, expected.grad, atol=1e-12)  # type: ignore[arg-type]


def test_gradients_are_scaled_down_to_the_maximal_norm_and_never_up() -> None:
    for max_norm, expected in ((0.5, 0.5), (1e6, None)):
        torch.manual_seed(0)
        network = nn.Linear(4, 2).double()
        learner = make_learner(
            network, torch.optim.SGD(network.parameters(), lr=1.0), loss="mse", max_grad_norm=max_norm
        )
        batch = {name: value.double() if value.is_floating_point() else value
                 for name, value in random_batch((4,), 2, 8).items()}  # fmt: skip
        batch["obs"], batch["next_obs"] = batch["obs"].double(), batch["next_obs"].double()
        old = [param.detach().clone() for param in network.parameters()]
        learner.update(**batch)
        moved = torch.cat([(a - b).flatten() for a, b in zip(old, network.parameters(), strict=True)]).norm().item()
        raw = learner.read_metrics()["losses/grad_norm"]
        assert raw > 0.5
        assert moved == pytest.approx(expected if expected else raw, rel=1e-5)


def test_the_fused_step_clips_as_the_plain_one() -> None:
    """Adam's epsilon is large here, so that its step depends on the length of the gradient and not on its sign alone."""
    moments = {}
    for fused in (False, True):
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0, eps=1.0, fused=fused)
        learner = make_learner(network, optimizer, loss="mse", max_grad_norm=0.5)
        batch = random_batch((4,), 2, 8)
        learner.update(**{**batch, "obs": batch["obs"].float(), "next_obs": batch["next_obs"].float()})
        assert learner.read_metrics()["losses/grad_norm"] > 0.5
        moments[fused] = [optimizer.state[param]["exp_avg"] for param in network.parameters()]
    norm = torch.cat([moment.flatten() for moment in moments[True]]).norm().item()
    assert norm == pytest.approx(0.1 * 0.5, rel=1e-4)  # the first moment is (1 - beta1) times the clipped gradient
    for plain, fused in zip(moments[False], moments[True], strict=True):
        assert torch.allclose(plain, fused, rtol=1e-5)


def test_sync_copies_the_online_weights_and_updates_leave_the_target_alone() -> None:
    torch.manual_seed(0)
    learner = make_learner(QNetwork((4, 84, 84), 3))
    frozen = [param.clone() for param in learner.target.parameters()]
    learner.update(**random_batch((4, 84, 84), 3, 8))
    assert all(torch.equal(a, b) for a, b in zip(frozen, learner.target.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(frozen, learner.online.parameters(), strict=True))
    learner.sync_target()
    online, target = learner.online.state_dict(), learner.target.state_dict()
    assert all(torch.equal(online[name], target[name]) for name in online)


def test_compiled_and_eager_updates_agree() -> None:
    """One update each from the same state: the gradients' relative difference stays at float32 rounding."""
    torch.manual_seed(0)
    eager = make_learner(QNetwork((4, 84, 84), 4), compile=False)
    compiled = make_learner(copy.deepcopy(eager.online), compile=True)
    batch = random_batch((4, 84, 84), 4, 16)
    assert torch.allclose(eager.q_values(batch["obs"]), compiled._q_values(batch["obs"]), atol=1e-5)
    eager.update(**batch)
    compiled.update(**batch)
    for a, b in zip(eager.online.parameters(), compiled.online.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm()


def test_bf16_gradients_stay_within_two_percent_of_fp32() -> None:
    torch.manual_seed(0)
    full = make_learner(QNetwork((4, 84, 84), 4))
    half = make_learner(QNetwork((4, 84, 84), 4, compute_dtype=torch.bfloat16))
    half.online.load_state_dict(full.online.state_dict())
    half.sync_target()
    batch = random_batch((4, 84, 84), 4, 64)
    batch["reward"].fill_(1.0)  # errors of one sign: a sum that cancels would be all rounding
    full.update(**batch)
    half.update(**batch)
    a = torch.cat([param.grad.flatten() for param in full.online.parameters() if param.grad is not None])
    b = torch.cat([param.grad.flatten() for param in half.online.parameters() if param.grad is not None])
    assert b.dtype == torch.float32
    assert (a - b).norm() <= 2e-2 * a.norm()


def test_state_round_trip_continues_bit_for_bit() -> None:
    torch.manual_seed(0)
    first = make_learner(QNetwork((4, 84, 84), 3))
    for seed in range(3):
        first.update(**random_batch((4, 84, 84), 3, 8, seed))
    second = make_learner(QNetwork((4, 84, 84), 3))
    second.load_state({part: {k: v.clone() for k, v in tree.items()} for part, tree in first.state().items()})
    for learner in (first, second):
        learner.update(**random_batch((4, 84, 84), 3, 8, seed=9))
    one, two = first.state(), second.state()
    assert one.keys() == two.keys()
    for part in one:
        assert one[part].keys() == two[part].keys() and len(one[part]) > 0
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])


def test_a_state_is_restored_in_place_over_moments_that_exist() -> None:
    """A captured graph knows addresses: a moment that is rebound would be lost to it."""
    torch.manual_seed(0)
    first, second = (make_learner(QNetwork((4, 84, 84), 3)) for _ in range(2))
    for learner, seed in ((first, 1), (second, 2)):
        learner.update(**random_batch((4, 84, 84), 3, 8, seed))
    addresses = [tensor.data_ptr() for tensor in second.tensors()]
    second.load_state({part: {k: v.clone() for k, v in tree.items()} for part, tree in first.state().items()})
    assert [tensor.data_ptr() for tensor in second.tensors()] == addresses
    one, two = first.state()["optimizer"], second.state()["optimizer"]
    assert len(one) > 0 and all(torch.equal(one[name], two[name]) for name in one)
