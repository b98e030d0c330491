"""Encoders and heads. Weights are float32; the arithmetic runs in `compute_dtype` by explicit casts.

Explicit casts rather than autocast: under CUDA-graph capture autocast's weight cache would freeze stale weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer computing in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class Conv2d(nn.Conv2d):
    """A convolution computing in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)  # type: ignore[union-attr]
        return F.conv2d(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]


class NatureEncoder(nn.Module):
    """Three convolutions of Mnih et al. 2015: 32@8x8/4, 64@4x4/2, 64@3x3/1, then a hidden layer of 512.

    uint8 [B, stack, 84, 84] -> float [B, hidden_size]
    """

    def __init__(self, obs_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            Conv2d(obs_shape[0], 32, 8, 4), nn.ReLU(), Conv2d(32, 64, 4, 2), nn.ReLU(), Conv2d(64, 64, 3, 1), nn.ReLU()
        )
        with torch.no_grad():
            flat_size = self.convs(torch.zeros(1, *obs_shape)).numel()
        self.hidden = Linear(flat_size, hidden_size)

    def forward(self, obs: Tensor) -> Tensor:
        return F.relu(self.hidden(self.convs(obs / 255).flatten(1)))


class MLPEncoder(nn.Module):
    """Two hidden layers on vector observations. float32 [B, D] -> float [B, hidden_size]"""

    def __init__(self, obs_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Linear(obs_shape[0], hidden_size), nn.ReLU(), Linear(hidden_size, hidden_size), nn.ReLU()
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


class QNetwork(nn.Module):
    """Q(s, .) for every action. uint8 [B, stack, H, W] or float32 [B, D] -> float32 [B, A]"""

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        encoder: str = "nature",
        hidden_size: int = 512,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        make = {"nature": NatureEncoder, "mlp": MLPEncoder}[encoder]
        self.encoder = make(tuple(obs_shape), hidden_size)
        self.head = Linear(hidden_size, num_actions)
        self.compute_dtype = compute_dtype

    def forward(self, obs: Tensor) -> Tensor:
        # the head stays in float32: bfloat16 has 8 bits, fewer than the gaps between Q-values of a good state need
        return self.head(self.encoder(obs.to(self.compute_dtype)).float())
