"""Layers that compute in the dtype of their input and keep their weights in float32.

Explicit casts rather than autocast: under CUDA-graph capture autocast's weight cache would freeze stale weights.
B rows of a batch, K quantiles of a row, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdqn import rng


class Linear(nn.Linear):
    """A linear layer. [..., in] -> [..., out] `draw` is for a noisy one in its place."""

    def forward(self, input: Tensor, draw: Tensor | None = None) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class Conv2d(nn.Conv2d):
    """A convolution. [B, C, H, W] -> [B, C', H', W']"""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)  # type: ignore[union-attr]
        return F.conv2d(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]


class SpectralConv2d(nn.Conv2d):
    """A convolution whose kernel, as a matrix, has a largest singular value of one: weight / (u^T weight v).

    u and v follow the first singular vectors by one step of the power method per `iterate`, which the learner calls
    once per update, so that the forward pass changes nothing. Miyato et al. 2018, algorithm 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("v", torch.zeros(in_channels * kernel_size * kernel_size))
        for _ in range(15):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """One step of the power method, in place."""
        matrix = self.weight.flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def forward(self, input: Tensor) -> Tensor:
        norm = torch.dot(self.u, self.weight.flatten(1) @ self.v)
        weight, bias = (self.weight / norm).to(input.dtype), self.bias.to(input.dtype)  # type: ignore[union-attr]
        return F.conv2d(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]


class LayerNorm(nn.Module):
    """Normalises what stands at one place, in float32: the channels of each pixel of [B, C, H, W], else the last axis.

    So Flax's, with which Gallici et al. 2024 (PQN) learn Atari. Over a whole map two screens of Breakout stay as alike as they
    are, for a ball is a few pixels of 84x84; at its own pixels it is everything (benchmarks/LOG.md: the first needs a tenth of
    the step size and four times the frames to begin).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        wide = input.float()
        if input.ndim == 4:
            wide = wide.movedim(1, -1)
        out = F.layer_norm(wide, self.weight.shape, self.weight, self.bias).to(input.dtype)
        return out.movedim(-1, 1) if input.ndim == 4 else out


class NoisyLinear(nn.Module):
    """A linear layer with learned noise on its weights: y = W x + b + e_out * (S (e_in * x) + s). [B, K, in] -> [B, K, out]

    Factorised Gaussian noise of Fortunato et al. 2018 (equations 10 and 11), e = sign(z) sqrt(|z|). Written this way the
    noise of a row costs a vector and no matrix, so every row of a batch has its own: shared noise would let all games
    explore in step. The K quantiles of a row share theirs. `draw` selects the noise; None is none.
    """

    _key: Tensor

    def __init__(self, in_features: int, out_features: int, *, sigma: float, key: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("_key", torch.tensor(key), persistent=False)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_noise = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_noise = nn.Parameter(torch.full((out_features,), sigma * bound))

    def forward(self, input: Tensor, draw: Tensor | None) -> Tensor:
        dtype, B = input.dtype, input.shape[0]
        mean = F.linear(input, self.weight.to(dtype), self.bias.to(dtype))
        if draw is None:
            return mean
        width = self.in_features + self.out_features
        lane = torch.arange(B * width, device=input.device).view(B, 1, width)
        z = rng.normal(rng.bits(self._key, draw, lane))
        e_in, e_out = (z.sign() * z.abs().sqrt()).to(dtype).split([self.in_features, self.out_features], dim=2)
        return mean + e_out * F.linear(input * e_in, self.weight_noise.to(dtype), self.bias_noise.to(dtype))
