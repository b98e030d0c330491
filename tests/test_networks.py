"""Networks: the folded first convolution is the published one, and its arithmetic follows the asked precision."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdqn import encoders, rng
from fastdqn.encoders import fold_blocks, fold_weight, nature
from fastdqn.layers import LayerNorm, NoisyLinear, SpectralConv2d
from fastdqn.networks import QNetwork, lecun_init


def screens(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("words", [True, False])
def test_folding_puts_each_block_of_four_by_four_pixels_into_the_channels_of_one(
    words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_WORDS", words)
    obs = screens(3, 2, 8, 12)
    folded = fold_blocks(obs)
    assert folded.shape == (3, 32, 2, 3)
    for s, dy, dx, y, x in ((0, 0, 0, 0, 0), (1, 3, 2, 1, 2), (0, 2, 3, 0, 1), (1, 0, 1, 1, 0)):
        assert torch.equal(folded[:, 16 * s + 4 * dy + dx, y, x], obs[:, s, 4 * y + dy, 4 * x + dx])
    assert folded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stack", [1, 3, 4, 8])
def test_a_convolution_on_folded_blocks_is_the_one_with_stride_four(stack: int) -> None:
    torch.manual_seed(stack)
    obs, weight = screens(2, stack, 84, 84), torch.randn(32, stack, 8, 8, dtype=torch.float64)
    folded = F.conv2d(fold_blocks(obs).double(), fold_weight(weight))
    assert torch.allclose(folded, F.conv2d(obs.double(), weight, stride=4), rtol=1e-12, atol=1e-9)


def test_the_encoder_and_its_gradients_are_those_of_the_plain_layers() -> None:
    torch.manual_seed(0)
    encoder, obs = nature((4, 84, 84), torch.float32, layer_norm=False), screens(8, 4, 84, 84)
    params = list(encoder.parameters())  # the first two are the first convolution's
    plain = encoder[1:](F.conv2d(obs / 255, params[0], params[1], stride=4))
    assert torch.allclose(encoder(obs), plain, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(encoder(obs).square().sum(), params),
        torch.autograd.grad(plain.square().sum(), params),
        strict=True,
    ):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_bf16_runs_in_the_encoder_and_the_head_stays_float32() -> None:
    torch.manual_seed(0)
    network, obs = QNetwork((4, 84, 84), 6, compute_dtype=torch.bfloat16), screens(2, 4, 84, 84)
    assert network.encoder(obs).dtype == torch.bfloat16
    assert network(obs).dtype == torch.float32
    assert all(param.dtype == torch.float32 for param in network.parameters())


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(number: int) -> Tensor:
    return torch.tensor(number)


def small(**settings) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork((5,), 3, encoder="mlp", hidden_size=16, **{"num_quantiles": 8, **settings})


def test_the_wide_encoder_has_the_tutorials_flattened_size() -> None:
    encoder = encoders.nature((3, 185, 95), torch.float32, layer_norm=False, wide=True)
    assert encoder(screens(2, 3, 185, 95)).shape == (2, 128 * 19 * 8)


@pytest.mark.parametrize("shape", [(84, 84), (185, 95), (100, 70)])
def test_impalas_last_pool_is_the_adaptive_one_and_its_gradient_too(shape: tuple[int, int]) -> None:
    """With fixed windows for both screens, since on CUDA the adaptive one has no deterministic gradient."""
    encoder = encoders.impala((1, *shape), torch.float32, width=1, layer_norm=False, spectral_norm=False)
    pool = encoder[-2]
    assert isinstance(pool, nn.AdaptiveMaxPool2d) == (shape == (100, 70))
    with torch.no_grad():
        sizes = encoder[:-2](torch.zeros(1, 1, *shape, dtype=torch.uint8)).shape[2:]
    ours = torch.randint(0, 9, (2, 3, *sizes)).float().requires_grad_()  # with ties
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(2, 3, 6, 6)
    (pool(ours) * weight).sum().backward()
    (nn.AdaptiveMaxPool2d(6)(theirs) * weight).sum().backward()
    assert torch.equal(pool(ours), nn.AdaptiveMaxPool2d(6)(theirs))
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2])
def test_impala_ends_in_six_by_six_maps(width: int) -> None:
    encoder = encoders.impala((4, 84, 84), torch.float32, width=width, layer_norm=False, spectral_norm=False)
    assert encoder(screens(2, 4, 84, 84)).shape == (2, 32 * width * 36)
    convs = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convs) == 15 and convs[0].out_channels == 16 * width


def published(name: str, obs: Tensor, params: Iterator[nn.Parameter], *, layer_norm: bool) -> Tensor:
    """The features of an encoder with these parameters, as its paper describes it: no folding, no modules."""

    def normed(x: Tensor) -> Tensor:
        if not layer_norm:
            return x
        mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    def conv(x: Tensor, channels: int, kernel: int, stride: int, padding: int) -> Tensor:
        weight, bias = next(params), next(params)
        assert weight.shape == (channels, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, bias, stride, padding)

    if name == "mlp":
        return F.relu(normed(F.linear(obs, next(params), next(params))))
    x = obs / 255
    if name != "impala":
        last, padding = (64, 0) if name == "nature" else (128, 1)
        for channels, kernel, stride, border in ((32, 8, 4, padding), (64, 4, 2, 0), (last, 3, 1, 0)):
            x = F.relu(normed(conv(x, channels, kernel, stride, border)))
        return x.flatten(1)
    for channels in (32, 64, 64):
        x = F.max_pool2d(conv(x, channels, 3, 1, 1), 3, 2, 1)
        for _ in range(2):
            block = conv(F.relu(normed(x)), channels, 3, 1, 1)
            x = x + conv(F.relu(normed(block)), channels, 3, 1, 1)
    return F.adaptive_max_pool2d(F.relu(x), 6).flatten(1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [("nature", (4, 84, 84), 3_136), ("wide", (3, 93, 95), 128 * 8 * 8), ("impala", (2, 84, 84), 2_304), ("mlp", (5,), 16)],
)  # fmt: skip
def test_every_encoder_has_its_papers_layers_in_order_each_normalised_before_its_activation(
    name: str, shape: tuple[int, ...], features: int, layer_norm: bool
) -> None:
    torch.manual_seed(0)
    network = QNetwork(shape, 3, encoder=name, impala_width=2, layer_norm=layer_norm, hidden_size=16)
    obs = vectors(2, *shape) if name == "mlp" else screens(2, *shape)
    affine = {id(param) for layer in network.modules() if isinstance(layer, LayerNorm) for param in layer.parameters()}
    assert bool(affine) == layer_norm
    params = iter([param for param in network.encoder.parameters() if id(param) not in affine])  # those are 1 and 0
    expected = published(name, obs, params, layer_norm=layer_norm)
    assert next(params, None) is None and expected.shape == (2, features)
    assert torch.allclose(network.encoder(obs), expected, atol=1e-4)


def test_the_head_normalises_its_hidden_layer_before_the_activation_and_its_output_never() -> None:
    network, obs = small(layer_norm=True), vectors(7, 5)
    stream, features = network.advantage, network.encoder(obs)
    hidden = F.relu(F.layer_norm(stream.hidden(features, None), (16,)))
    assert torch.allclose(network(obs), stream.out(hidden, None), atol=1e-6)


def test_the_spectral_norm_is_on_the_convolutions_of_residual_blocks_alone() -> None:
    encoder = encoders.impala((4, 84, 84), torch.float32, width=1, layer_norm=False, spectral_norm=True)
    spectral = {layer for layer in encoder.modules() if isinstance(layer, SpectralConv2d)}
    blocks = [layer for layer in encoder.modules() if isinstance(layer, encoders.ResidualBlock)]
    assert len(spectral) == 12
    assert spectral == {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Conv2d)}


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", [(3, 185, 95), (4, 84, 84), (1, 86, 84)])
def test_a_screen_of_any_size_is_convolved_as_its_scaled_bytes(shape: tuple[int, ...], padding: int) -> None:
    torch.manual_seed(0)
    conv, obs = encoders.ScreenConv2d(shape[0], 8, 8, 4, torch.float32, padding=padding), screens(2, *shape)
    expected = F.conv2d(obs / 255, conv.weight, conv.bias, stride=4, padding=padding)
    assert torch.allclose(conv(obs), expected, atol=1e-5)


def test_a_spectral_convolutions_kernel_has_a_largest_singular_value_of_one() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(6, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(7)
    for _ in range(200):
        conv.iterate()
    norm = torch.linalg.svdvals(conv.weight.flatten(1))[0]
    obs = vectors(2, 6, 9, 9)
    assert torch.allclose(conv(obs), F.conv2d(obs, conv.weight / norm, conv.bias, padding=1), atol=1e-5)
    (gradient,) = torch.autograd.grad(conv(obs).square().sum(), [conv.weight])
    along = (gradient * conv.weight).sum().abs() / (gradient.norm() * conv.weight.norm())
    assert along < 1e-5, "the output does not depend on the kernel's scale"
    before = conv.u.clone(), conv.v.clone()
    conv(obs)
    assert torch.equal(before[0], conv.u) and torch.equal(before[1], conv.v), "the forward pass changes nothing"


def test_a_spectral_convolutions_gradient_is_the_one_of_torchs_own() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(6, 8, 3, padding=1)
    reference = torch.nn.Conv2d(6, 8, 3, padding=1)
    reference.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    for _ in range(200):
        conv.iterate()
    torch.nn.utils.parametrizations.spectral_norm(reference, n_power_iterations=200)
    obs, towards = vectors(2, 6, 9, 9), vectors(2, 8, 9, 9)
    (ours,) = torch.autograd.grad((conv(obs) * towards).sum(), [conv.weight])
    original = reference.parametrizations.weight.original  # type: ignore[union-attr]
    (theirs,) = torch.autograd.grad((reference(obs) * towards).sum(), [original])  # type: ignore[list-item]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_a_spectral_convolution_begins_near_its_norm() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        conv = SpectralConv2d(16, 16, 3, padding=1)
        norm = torch.dot(conv.u, conv.weight.flatten(1) @ conv.v)
        assert 0.9 < norm / torch.linalg.svdvals(conv.weight.flatten(1))[0] < 1 + 1e-5


def test_layer_norm_takes_the_channels_of_each_pixel_together_and_a_vector_along_its_last_axis() -> None:
    norm = LayerNorm(6)
    maps = norm(3 + 5 * vectors(4, 6, 7, 7))
    rows = norm(3 + 5 * vectors(4, 2, 6))
    for out, axis in ((maps, 1), (rows, 2)):
        assert torch.allclose(out.mean(axis), torch.zeros(out.mean(axis).shape), atol=1e-5)
        assert torch.allclose(out.var(axis, correction=0), torch.ones(out.mean(axis).shape), atol=1e-3)
    assert norm(vectors(4, 6).bfloat16()).dtype == torch.bfloat16


def test_dueling_joins_the_streams_so_that_the_mean_advantage_is_zero() -> None:
    network, obs = small(dueling=True), vectors(7, 5)
    features = network.encoder(obs).unsqueeze(1)
    assert network.value is not None
    state_value = network.value(features, None).squeeze(2)
    advantage = network.advantage(features, None).squeeze(1)
    assert torch.allclose(network(obs), state_value + advantage - advantage.mean(1, keepdim=True), atol=1e-6)
    assert torch.allclose(network(obs).mean(1, keepdim=True), state_value, atol=1e-6)


def test_the_value_of_atoms_is_their_mean_under_the_softmax() -> None:
    network = small(head="c51", num_atoms=3, value_limit=4.0)
    logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 100.0], [0.0, float(np.log(2.0)), 0.0]]])
    assert torch.allclose(network.mean(logits), torch.tensor([[0.0, 4.0, 0.0]]))
    assert network.predict(vectors(2, 5)).value.shape == (2, 3, 3)


def test_quantiles_at_fixed_places_stand_for_the_middles_of_equal_shares() -> None:
    for number in (None, draw(1)):  # also where noise is drawn
        value, tau = small(head="qrdqn", num_quantiles=4).predict(vectors(2, 5), number)
        assert value.shape == (2, 3, 4) and tau is not None
        assert tau.tolist() == [[0.125, 0.375, 0.625, 0.875]]


def test_iqn_draws_fractions_to_learn_and_spreads_them_evenly_without_a_draw() -> None:
    network, obs = small(head="iqn", num_quantiles=8, num_acting_quantiles=32), vectors(200, 5)
    value, tau = network.predict(obs, draw(1))
    assert value.shape == (200, 3, 8) and tau is not None and tau.shape == (200, 8)
    assert 0.45 < tau.mean() < 0.55 and len(tau.unique()) > 1_500
    other = network.predict(obs, draw(2)).tau
    assert other is not None and not torch.equal(tau, other)
    of_another_seed = small(head="iqn", seed=1).predict(obs, draw(1)).tau
    assert of_another_seed is not None and not torch.equal(tau, of_another_seed)
    assert torch.equal(network(obs), network(obs))
    even = network.predict(obs).tau
    assert even is not None and even[0].tolist() == [(i + 0.5) / 8 for i in range(8)]


def test_iqn_acts_on_the_mean_of_as_many_fractions_as_are_for_acting() -> None:
    few, many = (small(head="iqn", num_quantiles=count, num_acting_quantiles=32) for count in (2, 32))
    obs = vectors(9, 5)  # the two have the same weights
    for number in (None, draw(4)):
        of_many, of_few = (network.mean(network.predict(obs, number).value) for network in (many, few))
        assert torch.allclose(few(obs, number), of_many, atol=1e-6)
        assert not torch.allclose(few(obs, number), of_few, atol=1e-6)


def test_an_iqn_output_is_the_network_at_its_own_fraction() -> None:
    """The published form, one state and one fraction at a time: f(psi(s) * relu(sum_i cos(pi i tau) w_i + b))."""
    network, obs = small(head="iqn", dueling=True), vectors(4, 5)
    value, tau = network.predict(obs, draw(3))
    assert tau is not None and network.embedding is not None and network.value is not None
    for b in range(4):
        for k in range(8):
            cosines = torch.cos(np.pi * torch.arange(64) * tau[b, k])
            features = network.encoder(obs[b : b + 1]) * F.relu(network.embedding(cosines))
            advantage = network.advantage(features.unsqueeze(1), None).view(3)
            expected = network.value(features.unsqueeze(1), None).view(1) + advantage - advantage.mean()
            assert torch.allclose(value[b, :, k], expected, atol=1e-5)


def test_noise_on_a_row_is_the_factorised_noise_on_the_weights() -> None:
    torch.manual_seed(0)
    layer, x = NoisyLinear(6, 4, sigma=0.5, key=11), vectors(3, 1, 6)
    z = rng.normal(rng.bits(11, draw(9), torch.arange(30).view(3, 10)))
    e = z.sign() * z.abs().sqrt()
    for row in range(3):
        e_in, e_out = e[row, :6], e[row, 6:]
        weight = layer.weight + layer.weight_noise * torch.outer(e_out, e_in)
        bias = layer.bias + layer.bias_noise * e_out
        assert torch.allclose(layer(x, draw(9))[row, 0], F.linear(x[row, 0], weight, bias), atol=1e-6)
    assert torch.equal(layer(x, None), F.linear(x, layer.weight, layer.bias))


def test_noise_begins_at_sigma_over_the_square_root_of_the_inputs() -> None:
    """Fortunato et al. 2018, section 3.2, of weights and biases alike; what it is added to is uniform within 1 / sqrt(p)."""
    layer = NoisyLinear(16, 64, sigma=0.5, key=1)
    for noise, mean in ((layer.weight_noise, layer.weight), (layer.bias_noise, layer.bias)):
        assert noise.unique().tolist() == [0.125] and noise.shape == mean.shape
        assert 0.2 < mean.abs().max() <= 0.25 and mean.abs().min() < 0.05


def test_every_layer_behind_the_encoder_is_noisy_with_noise_of_its_own_and_of_its_seed() -> None:
    keys = []
    for seed in (0, 1):
        network = small(noisy=0.5, dueling=True, seed=seed)
        layers = [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]
        assert network.value is not None
        assert layers == [network.advantage.hidden, network.advantage.out, network.value.hidden, network.value.out]
        keys += [int(layer._key) for layer in layers]
    assert len(set(keys)) == 8


def test_every_row_has_its_own_noise_and_every_draw_another() -> None:
    network, same = small(noisy=0.5), vectors(1, 5).expand(64, 5)
    q = network(same, draw(1))
    assert len(q[:, 0].unique()) == 64
    assert not torch.equal(q, network(same, draw(2))) and torch.equal(q, network(same, draw(1)))
    assert len(network(same)[:, 0].unique()) == 1


def test_the_noise_of_each_layer_alone_moves_the_values() -> None:
    for noisy in range(4):
        network, obs = small(noisy=0.5, dueling=True), vectors(7, 5)
        for number, layer in enumerate(layer for layer in network.modules() if isinstance(layer, NoisyLinear)):
            if number != noisy:
                nn.init.zeros_(layer.weight_noise)
                nn.init.zeros_(layer.bias_noise)
        assert (network(obs, draw(1)) != network(obs)).any(dim=1).all()


def test_quantiles_of_one_state_share_its_noise() -> None:
    network = small(head="iqn", noisy=0.5)
    assert network.embedding is not None
    with torch.no_grad():
        network.embedding.weight.zero_()  # all fractions give the same features
    value, _ = network.predict(vectors(3, 5), draw(1))
    assert torch.allclose(value, value[:, :, :1].expand_as(value), atol=1e-6)
    assert not torch.allclose(value[0], value[1])


def test_lecun_draws_the_layers_before_a_relu_with_variance_one_over_their_inputs_and_no_biases() -> None:
    torch.manual_seed(0)
    network = QNetwork((4, 84, 84), 4, head="iqn", dueling=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lecun_init(network)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert len(layers) == 3 + 2 * 2 + 1  # convolutions, two streams, the embedding
    for name, layer in layers.items():
        assert layer.bias is not None and not layer.bias.any(), name
        if name.endswith("out"):
            assert torch.equal(layer.weight, before[f"{name}.weight"]), name
        else:
            std, mean = layer.weight.std().item(), layer.weight.mean().item()
            assert std == pytest.approx(layer.weight[0].numel() ** -0.5, rel=0.04) and abs(mean) < 0.1 * std, name


def test_lecun_leaves_noisy_and_spectral_layers_their_own_weights() -> None:
    network = QNetwork((4, 84, 84), 4, encoder="impala", spectral_norm=True, noisy=0.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lecun_init(network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"encoder.{stage}.{part}" for stage in (0, 4, 8) for part in ("weight", "bias")}


def test_lecun_lets_the_network_tell_states_apart_from_the_start() -> None:
    """Screens that differ in a few pixels, as those of Pong do: torch's own weights make Q nearly one for all of them."""
    background = screens(1, 4, 84, 84) // 4 + 60
    obs = background.repeat(64, 1, 1, 1)
    for row in range(64):
        obs[row, :, row : row + 4, 40:44] = 236
    spreads = []
    for seed in range(5):
        torch.manual_seed(seed)
        network = QNetwork((4, 84, 84), 6)
        with torch.no_grad():
            spreads.append([float(network(obs).amax(dim=1).std())])
            lecun_init(network)
            spreads[-1].append(float(network(obs).amax(dim=1).std()))
    assert all(lecun > 4 * plain for plain, lecun in spreads), spreads
