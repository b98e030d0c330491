"""Networks: the folded first convolution is the published one, and its arithmetic follows the asked precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdqn import networks
from fastdqn.networks import NatureEncoder, QNetwork, fold_blocks, fold_weight


def screens(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("words", [True, False])
def test_folding_puts_each_block_of_four_by_four_pixels_into_the_channels_of_one(
    words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_WORDS", words)
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
    encoder, obs = NatureEncoder((4, 84, 84), 512, torch.float32), screens(8, 4, 84, 84)
    params = list(encoder.parameters())  # the first two are the first convolution's
    plain = F.relu(encoder.hidden(encoder.convs[1:](F.conv2d(obs / 255, params[0], params[1], stride=4))))
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
