"""The learner against tabular Q-learning, a float64 reference and itself compiled."""

import copy
from typing import get_args

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from fastdqn.config import Config
from fastdqn.learner import Learner
from fastdqn.networks import Prediction, QNetwork

ALPHA, GAMMA = 0.3, 0.9
ZERO = torch.zeros((), dtype=torch.int64)


class Values(nn.Module):
    """Any module that gives [B, A], with the face of a `QNetwork` of head "q"."""

    head = "q"
    spectral_layers = ()

    def __init__(self, values: nn.Module) -> None:
        super().__init__()
        self.values = values

    def forward(self, obs: torch.Tensor, draw: torch.Tensor | None = None) -> torch.Tensor:
        return self.values(obs)

    def predict(self, obs: torch.Tensor, draw: torch.Tensor | None = None) -> Prediction:
        return Prediction(self.values(obs).unsqueeze(2), None)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value.squeeze(2)


def make_learner(network: nn.Module, optimizer: torch.optim.Optimizer | None = None, **settings) -> Learner:
    defaults = {"double": True, "loss": "huber", "max_grad_norm": 10.0, "seed": 0, "compile": False}
    optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    face = network if isinstance(network, QNetwork) else Values(network)
    return Learner(face, optimizer, **(defaults | settings))  # type: ignore[arg-type]


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
        network,
        torch.optim.SGD(network.parameters(), lr=ALPHA, fused=True),
        double=False,
        loss="mse",
        max_grad_norm=0.0,
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
        network, torch.optim.SGD(network.parameters(), lr=1.0, fused=True), double=double, loss=loss, max_grad_norm=0
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
            network, torch.optim.SGD(network.parameters(), lr=1.0, fused=True), loss="mse", max_grad_norm=max_norm
        )
        batch = {name: value.double() if value.is_floating_point() else value
                 for name, value in random_batch((4,), 2, 8).items()}  # fmt: skip
        batch["obs"], batch["next_obs"] = batch["obs"].double(), batch["next_obs"].double()
        old = [param.detach().clone() for param in network.parameters()]
        learner.update(**batch)
        moved = torch.cat([(a - b).flatten() for a, b in zip(old, network.parameters(), strict=True)]).norm().item()
        raw = learner.read_metrics()[0]["losses/grad_norm"]
        assert raw > 0.5
        assert moved == pytest.approx(expected if expected else raw, rel=1e-5)


def test_every_optimizer_steps_along_the_clipped_gradient() -> None:
    """The moments after one step tell the length of the gradient that reached them."""
    lengths = {}
    for name, first_moment in (("adam", "exp_avg"), ("rmsprop", "square_avg")):
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        optimizer = OPTIMIZERS[name](network.parameters())
        learner = make_learner(network, optimizer, loss="mse", max_grad_norm=0.5)
        batch = random_batch((4,), 2, 8)
        learner.update(**{**batch, "obs": batch["obs"].float(), "next_obs": batch["next_obs"].float()})
        assert learner.read_metrics()[0]["losses/grad_norm"] > 0.5
        lengths[name] = torch.cat([optimizer.state[param][first_moment].flatten() for param in network.parameters()])
    assert lengths["adam"].norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)  # (1 - beta1) g
    assert lengths["rmsprop"].sum().item() == pytest.approx(0.1 * 0.5**2, rel=1e-4)  # (1 - alpha) g^2


ENCODERS = [("nature", (4, 84, 84)), ("wide", (3, 185, 95)), ("impala", (4, 84, 84)), ("mlp", (6,))]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adam", "rmsprop"])
@pytest.mark.parametrize(("encoder", "shape"), ENCODERS)
def test_an_update_moves_every_weight_as_the_plain_optimizer_would(
    encoder: str, shape: tuple[int, ...], name: str, precision: torch.dtype
) -> None:
    """Torch's single-tensor optimisers respect the layout of a gradient; the fused ones read memory in order."""
    torch.manual_seed(0)
    network = QNetwork(shape, 4, encoder=encoder, hidden_size=16, compute_dtype=precision)
    plain = copy.deepcopy(network)
    learner = make_learner(network, OPTIMIZERS[name](network.parameters()), max_grad_norm=0.0)
    batch = random_batch(shape, 4, 8)
    if encoder == "mlp":
        batch |= {field: batch[field] / 255 for field in ("obs", "next_obs")}
    own = batch["obs"], batch["action"], batch["reward"], batch["discount"], batch["next_obs"], batch["weight"]
    loss = learner.loss(*own, learner.learn_counter)[0]
    for param, grad in zip(plain.parameters(), torch.autograd.grad(loss, learner.parameters), strict=True):
        param.grad = torch.empty_like(param).copy_(grad)  # value by value, in the parameter's own layout
    kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[name]
    settings = {key: value for key, value in learner.optimizer.defaults.items() if key not in ("fused", "foreach")}
    kind(plain.parameters(), **settings, foreach=False).step()
    learner.update(**batch)
    for (where, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), where


def test_an_optimizer_that_cannot_leave_a_step_out_is_refused() -> None:
    network = nn.Linear(4, 2)
    with pytest.raises(TypeError, match=r"optimizer=Adam: make it with fused=True"):
        make_learner(network, torch.optim.Adam(network.parameters()))


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
    assert torch.allclose(
        eager.q_values(batch["obs"], ZERO), torch.compile(compiled.q_values)(batch["obs"], ZERO), atol=1e-5
    )
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


@pytest.mark.parametrize("acting_ema", [0.0, 0.5])
def test_state_round_trip_continues_bit_for_bit(acting_ema: float) -> None:
    torch.manual_seed(0)
    first = make_learner(QNetwork((4, 84, 84), 3), acting_ema=acting_ema)
    for seed in range(3):
        first.update(**random_batch((4, 84, 84), 3, 8, seed))
    second = make_learner(QNetwork((4, 84, 84), 3), acting_ema=acting_ema)
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


@pytest.mark.parametrize("dueling", [False, True])
def test_a_state_with_a_part_more_or_less_is_refused_and_changes_nothing(dueling: bool) -> None:
    learner, other = (
        make_learner(QNetwork((5,), 3, encoder="mlp", hidden_size=8, dueling=has)) for has in (dueling, not dueling)
    )
    before = [tensor.clone() for tensor in learner.tensors()]
    with pytest.raises(ValueError, match=r"model/value\.hidden\.bias"):
        learner.load_state(other.state())
    assert all(torch.equal(old, new) for old, new in zip(before, learner.tensors(), strict=True))


def vector_batch(seed: int = 0, size: int = 16) -> dict[str, torch.Tensor]:
    batch = random_batch((5,), 3, size, seed)
    return {**batch, "obs": batch["obs"] / 128 - 1, "next_obs": batch["next_obs"] / 128 - 1}


HEADS = get_args(Config.__annotations__["head"])
MUNCHAUSEN = (0.9, 0.03, -1.0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("noisy", [0.0, 0.5])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_part_combines_with_every_other(head: str, dueling: bool, noisy: float, layer_norm: bool) -> None:
    for double in (False, True):
        for munchausen in (None, MUNCHAUSEN):
            for polyak in (0.0, 0.01):
                torch.manual_seed(0)
                network = QNetwork((5,), 3, encoder="mlp", hidden_size=8, head=head, dueling=dueling, noisy=noisy,
                                   layer_norm=layer_norm, num_quantiles=8, num_atoms=11)  # fmt: skip
                learner = make_learner(network, double=double, munchausen=munchausen, polyak=polyak)
                before = [param.clone() for param in network.parameters()]
                size = learner.update(**vector_batch())
                assert size.shape == (16,) and torch.isfinite(size).all() and (size >= 0).all() and size.any()
                assert not size.requires_grad
                assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)
                               if b.grad is not None and b.grad.any())  # fmt: skip
                moved = [
                    name for name, param in network.named_parameters() if param.grad is not None and param.grad.any()
                ]
                assert len(moved) >= len(before) - 1, "a parameter that nothing teaches"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("munchausen", [None, MUNCHAUSEN])
@pytest.mark.parametrize("double", [True, False])
def test_each_heads_update_equals_a_slow_reference(head: str, munchausen: tuple | None, double: bool) -> None:
    """The whole loss, written out per transition from the papers, with dueling streams."""
    torch.manual_seed(0)
    network = QNetwork((5,), 3, encoder="mlp", hidden_size=8, head=head, dueling=True, num_quantiles=6, num_atoms=11,
                       value_limit=3.0)  # fmt: skip
    learner = make_learner(network, double=double, munchausen=munchausen)
    with torch.no_grad():
        for param in learner.target.parameters():
            param.add_(0.3 * torch.randn_like(param))
    batch, at = vector_batch(), ZERO
    loss, (q, spread), size = learner.loss(**batch, update=at)
    value, tau = network.predict(batch["obs"], 4 * at)
    next_value, _ = learner.target.predict(batch["next_obs"], 4 * at + 1)
    choice = network(batch["next_obs"], 4 * at + 2) if double else learner.target.mean(next_value)
    here = learner.target(batch["obs"], 4 * at + 2)
    atoms = np.linspace(-3, 3, 11)
    total, means = 0.0, []
    for i in range(16):
        action, reward, discount = int(batch["action"][i]), float(batch["reward"][i]), float(batch["discount"][i])
        policy = np.eye(3)[int(choice[i].argmax())]
        if munchausen is not None:
            scale, temperature, floor = munchausen
            log_here = torch.log_softmax(here[i].double() / temperature, 0).numpy(force=True) * temperature
            log_next = torch.log_softmax(choice[i].double() / temperature, 0).numpy(force=True) * temperature
            policy = np.exp(log_next / temperature)
            reward += scale * max(log_here[action], floor) - discount * float((policy * log_next).sum())
        outputs = value[i, action].double().numpy(force=True)
        following = next_value[i].double()
        if head == "c51":
            probability = policy @ torch.softmax(following, 1).numpy(force=True)
            target = np.zeros(11)
            for atom, share in zip(atoms, probability, strict=True):
                b = (np.clip(reward + discount * atom, -3, 3) + 3) / 0.6
                target[int(np.floor(b))] += share * (1 - (b - np.floor(b)))
                if b > np.floor(b):
                    target[int(np.floor(b)) + 1] += share * (b - np.floor(b))
            log_p = outputs - np.log(np.exp(outputs).sum())
            expected = sum(m * (np.log(m) - p) for m, p in zip(target, log_p, strict=True) if m > 0)
            expected_size = expected
        else:
            target = reward + discount * (policy @ following.numpy(force=True))
            deltas = target[None, :] - outputs[:, None]
            huber = np.where(np.abs(deltas) <= 1, deltas**2 / 2, np.abs(deltas) - 0.5)
            if tau is None:
                expected = float(huber[0, 0])
            else:
                fractions = tau.expand(16, -1)[i].double().numpy(force=True)
                expected = float((np.abs(fractions[:, None] - (deltas < 0)) * huber).mean(1).sum())
            expected_size = float(np.abs(deltas).mean())
        total += expected / 16
        assert size[i].item() == pytest.approx(expected_size, rel=2e-4, abs=1e-5)
        mean = (np.exp(outputs) / np.exp(outputs).sum()) @ atoms if head == "c51" else outputs.mean()
        means.append(mean)
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert q.item() == pytest.approx(np.mean(means), rel=1e-4, abs=1e-5)
    assert spread.item() == pytest.approx(network.mean(value).amax(dim=1).detach().numpy().std(), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"head": "c51", "noisy": 0.5, "dueling": True}, id="rainbow", marks=pytest.mark.long),
        pytest.param({"head": "iqn", "noisy": 0.5, "dueling": True, "layer_norm": True}, id="btr"),
    ],
)
def test_compiled_and_eager_updates_agree_with_noise_and_drawn_fractions(settings: dict) -> None:
    updated = {}
    for compile in (False, True):
        torch.manual_seed(0)
        network = QNetwork((5,), 3, encoder="mlp", hidden_size=16, num_quantiles=8, num_acting_quantiles=8, **settings)
        learner = make_learner(network, double=False, munchausen=MUNCHAUSEN, compile=compile)
        learner.warm_up(vector_batch()["obs"], 16)
        learner.update(**vector_batch())
        updated[compile] = (
            [param.grad for param in network.parameters()],
            learner._choose(vector_batch()["obs"], torch.tensor(0.5), ZERO),
        )
    for eager, compiled in zip(updated[False][0], updated[True][0], strict=True):
        assert eager is not None and compiled is not None
        assert (eager - compiled).norm() <= 1e-4 * eager.norm() + 1e-7
    assert torch.equal(updated[False][1], updated[True][1])


def test_acting_and_learning_and_both_networks_use_randomness_of_their_own() -> None:
    """Noise shared between the online and the target network, or with acting, would correlate what must not be."""
    torch.manual_seed(0)
    network = QNetwork((5,), 3, encoder="mlp", hidden_size=8, noisy=0.5)
    learner, seen = make_learner(network, double=True), []
    for part in (learner.online, learner.target):
        forward = part.advantage.forward
        part.advantage.forward = lambda features, draw, forward=forward: (seen.append(int(draw)), forward(features, draw))[1]  # type: ignore[method-assign]  # fmt: skip
    batch = vector_batch()
    for _ in range(3):
        learner.act(batch["obs"])
        learner.update(**batch)
    assert len(seen) == 12 and len(set(seen)) == 12


def test_a_polyak_target_follows_by_its_share_and_takes_the_buffers_whole() -> None:
    torch.manual_seed(0)
    network = QNetwork((4, 84, 84), 3, encoder="impala", spectral_norm=True, hidden_size=8)
    learner = make_learner(network, polyak=0.25)
    target = [param.clone() for param in learner.target.parameters()]
    vectors = [buffer.clone() for buffer in network.buffers()]
    learner.update(**random_batch((4, 84, 84), 3, 4))
    moved = [not torch.equal(old, new) for old, new in zip(vectors, network.buffers(), strict=True)]
    assert sum(moved) >= len(network.spectral_layers) > 0  # an update is a step of the power method
    for old, new, online in zip(target, learner.target.parameters(), network.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25 * (online - old), atol=1e-7)
    for ours, theirs in zip(network.buffers(), learner.target.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_acting_network_keeps_its_share_and_takes_the_buffers_whole() -> None:
    torch.manual_seed(0)
    network = QNetwork((4, 84, 84), 3, encoder="impala", spectral_norm=True, hidden_size=8)
    learner = make_learner(network, acting_ema=0.75)
    before = [param.clone() for param in learner.acting.parameters()]
    assert all(torch.equal(old, online) for old, online in zip(before, network.parameters(), strict=True))
    for seed in range(2):
        learner.update(**random_batch((4, 84, 84), 3, 4, seed))
        after = list(zip(before, learner.acting.parameters(), network.parameters(), strict=True))
        assert all(torch.allclose(new, 0.75 * old + 0.25 * online, atol=1e-7) for old, new, online in after)
        before = [new.clone() for _, new, _ in after]
    for ours, theirs in zip(network.buffers(), learner.acting.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("acting_ema", [0.0, 0.5])
def test_the_average_acts_where_there_is_one(acting_ema: float) -> None:
    network = nn.Linear(5, 3)
    learner = make_learner(network, acting_ema=acting_ema)
    learner.epsilon.zero_()
    for chosen, module in ((1, learner.online), (2, learner.acting)):
        weight, bias = module.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(torch.eye(3)[chosen])
    assert learner.act(torch.zeros(4, 5)).tolist() == [2] * 4
    assert (learner.acting is learner.online) == (acting_ema == 0)


def test_a_warm_up_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network = QNetwork((4, 84, 84), 3, encoder="impala", spectral_norm=True, hidden_size=8)
    learner = make_learner(network, polyak=0.25, acting_ema=0.5)
    for layer in network.spectral_layers:
        layer.weight.data.copy_(torch.randn_like(layer.weight))  # u and v do not belong to it
    learner.update(**random_batch((4, 84, 84), 3, 4))

    def everything() -> dict[str, torch.Tensor]:
        return {f"{part}/{name}": value for part, tree in learner.state().items() for name, value in tree.items()}

    before = {name: value.clone() for name, value in everything().items()}
    learner.warm_up(random_batch((4, 84, 84), 3, 2)["obs"], 4)
    assert [name for name, value in everything().items() if not torch.equal(value, before[name])] == []


def test_a_hard_update_takes_the_buffers_too() -> None:
    network = QNetwork((4, 84, 84), 3, encoder="impala", spectral_norm=True, hidden_size=8)
    learner = make_learner(network)
    for layer in network.spectral_layers:
        layer.iterate()
    pairs = list(zip(network.buffers(), learner.target.buffers(), strict=True))
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)
    learner.sync_target()
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_logged_figures_are_the_means_of_the_updates_since_the_last_reading() -> None:
    torch.manual_seed(0)
    learner = make_learner(QNetwork((5,), 3, encoder="mlp", hidden_size=8))
    learner.update(**vector_batch(1))
    learner.read_metrics()
    losses, values, spreads, norms = [], [], [], []
    for seed in (2, 3):
        batch = vector_batch(seed)
        parts, size = learner.gradients(**batch)
        *grads, loss, _, _ = parts
        losses.append(float(loss))
        values.append(float(learner.online(batch["obs"]).gather(1, batch["action"].unsqueeze(1)).mean().detach()))
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        spreads.append(float(learner.online(batch["obs"]).detach().amax(dim=1).numpy().std()))
        learner.step(parts, size)
    means, *refused = learner.read_metrics()
    expected = {"losses/td_loss": losses, "losses/q_values": values, "losses/q_spread": spreads,
                "losses/grad_norm": norms}  # fmt: skip
    assert means == {name: pytest.approx(sum(two) / 2, rel=1e-5) for name, two in expected.items()}
    assert refused == [0, 0]


def test_rmsprop_steps_as_its_equation_says() -> None:
    """Centred: g / (sqrt(E[g^2] - E[g]^2) + eps), Mnih et al. 2015."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=0.1, alpha=0.95, eps=0.01, centered=True, foreach=True)
    learner = make_learner(network, optimizer, max_grad_norm=0.0)
    batch = random_batch((4,), 2, 8)
    old = network.weight.detach().clone()
    parts, size = learner.gradients(**{**batch, "obs": batch["obs"].float(), "next_obs": batch["next_obs"].float()})
    learner.step(parts, size)
    grad = parts[0]
    square, mean = 0.05 * grad**2, 0.05 * grad
    assert torch.allclose(network.weight, old - 0.1 * grad / ((square - mean**2).sqrt() + 0.01), atol=1e-6)


def test_a_gradient_that_stays_the_same_leaves_no_weight_that_is_not_finite() -> None:
    """Its variance is 0, which float32 takes for a little less: torch's own RMSprop then has the root of that, NaN."""
    torch.manual_seed(0)
    network = nn.Linear(500, 2)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.95, eps=1e-3, centered=True)
    learner = make_learner(network, optimizer, max_grad_norm=0.0)
    constant = [torch.randn_like(param) for param in network.parameters()]
    for _ in range(400):
        learner._step(constant, torch.ones(()), torch.zeros(()))
    assert all(param.isfinite().all() for param in network.parameters())


@pytest.mark.parametrize("centered", [False, True])
def test_the_compiled_rmsprop_steps_as_torch_does_and_leaves_out_what_is_not_finite(centered: bool) -> None:
    networks, optimizers, learners = [], [], []
    for compile in (True, False):
        torch.manual_seed(0)
        networks.append(QNetwork((5,), 3, encoder="mlp", hidden_size=8))
        settings = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-3, "centered": centered}
        optimizers.append(torch.optim.RMSprop(networks[-1].parameters(), **settings))
        learners.append(make_learner(networks[-1], optimizers[-1], max_grad_norm=0.0, compile=compile))
    compiled, (ours, theirs) = learners[0], networks
    compiled.warm_up(vector_batch()["obs"], len(vector_batch()["obs"]))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), "no step yet"
    assert not any(moment.any() for moment in compiled._moments)
    for seed in range(10):
        parts, size = compiled.gradients(**vector_batch(seed))
        for param, grad in zip(theirs.parameters(), parts, strict=False):
            param.grad = grad.clone()
        compiled.step(parts, size)
        before = [tensor.clone() for tensor in (*compiled.parameters, *compiled._moments)]
        compiled.step([parts[0] / 0.0, *parts[1:]], size)
        after = (*compiled.parameters, *compiled._moments)
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)), "a step with infinity in it"
        optimizers[1].step()
        for ours_param, param in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(ours_param, param, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_the_learning_rate_can_change_between_updates_also_of_a_compiled_step(name: str) -> None:
    """The first step of both is in proportion to it."""
    moved = []
    for learning_rate in (None, 2e-3, 0.0):
        torch.manual_seed(0)
        network = QNetwork((5,), 3, encoder="mlp", hidden_size=8)
        learner = make_learner(network, OPTIMIZERS[name](network.parameters()), compile=True)
        learner.warm_up(vector_batch()["obs"], len(vector_batch()["obs"]))
        assert learner.learning_rate == pytest.approx(1e-3)  # as the optimiser was made, also after the warm-up
        if learning_rate is not None:
            learner.learning_rate.fill_(learning_rate)
        before = [param.detach().clone() for param in learner.parameters]
        with torch.compiler.set_stance("fail_on_recompile"):
            learner.update(**vector_batch())
        moved.append(torch.cat([(old - new).flatten() for old, new in zip(before, learner.parameters, strict=True)]))
    once, twice, never = moved
    assert once.abs().max() > 1e-4 and torch.allclose(2 * once, twice, rtol=1e-3, atol=1e-6) and not never.any()


OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3, alpha=0.9, centered=True, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_finite_never_reaches_weights_or_moments_and_is_counted(name: str) -> None:
    """500 faults for each: NaN or infinity in the observations, the reward, the discount or a weight's gradient."""
    torch.manual_seed(0)
    network = QNetwork((5,), 3, encoder="mlp", hidden_size=8)
    learner = make_learner(network, OPTIMIZERS[name](network.parameters()))
    for seed in range(3):
        learner.update(**vector_batch(seed))
    learner.read_metrics()
    draw = np.random.default_rng(0)
    before = [tensor.clone() for tensor in (*learner.parameters, *learner._moments)]
    for fault in range(500):
        batch = vector_batch(fault)
        field = ("obs", "reward", "discount", "next_obs", "weight")[fault % 5]
        batch[field] = batch[field].clone()
        batch[field].view(-1)[draw.integers(batch[field].numel())] = (float("nan"), float("inf"), -float("inf"))[
            fault % 3
        ]
        size = learner.update(**batch)
        if int(learner.refused) == fault:  # the fault fell on a feature that no unit passes on
            pytest.fail(f"fault {fault} in {field} was not noticed")
        assert torch.isfinite(size).all()
        for tensor, old in zip((*learner.parameters, *learner._moments), before, strict=True):
            assert torch.equal(tensor, old), "bit for bit as before"
    assert learner.read_metrics() == ({}, 500, 500)
    (*grads, loss, q, spread), size = learner.gradients(**vector_batch())
    learner.step([*grads, loss * float("inf"), q, spread], size)  # overflown, of finite errors and gradients
    assert torch.equal(learner.parameters[0], before[0])
    learner.update(**vector_batch())
    assert not torch.equal(learner.parameters[0], before[0])
    means, *refused = learner.read_metrics()
    assert refused == [501, 0] and len(means) == 4 and all(np.isfinite(value) for value in means.values())
