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


# torch 2.11 cannot compile a change of a tensor's element size after a copy
_WORDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)


def fold_blocks(obs: Tensor) -> Tensor:
    """Turns every 4x4 block of pixels into the channels of one. uint8 [B, S, H, W] -> [B, 16 S, H/4, W/4]

    The result lies in memory with its channels last, as convolutions like it; channels are ordered (frame, row, column).
    On a CPU the four bytes of a block's row move as one int32 word; on CUDA the compiler fuses the bytes' way itself.
    """
    B, S, H, W = obs.shape
    if _WORDS and not obs.is_cuda:
        words = obs.view(torch.int32).view(B, S, H // 4, 4, W // 4).permute(0, 2, 4, 1, 3).contiguous()
        blocks = words.view(torch.uint8)
    else:
        blocks = obs.view(B, S, H // 4, 4, W // 4, 4).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(B, H // 4, W // 4, 16 * S).permute(0, 3, 1, 2)


def fold_weight(weight: Tensor) -> Tensor:
    """The 8x8 kernel at stride 4 as the 2x2 kernel at stride 1 on folded blocks. [K, S, 8, 8] -> [K, 16 S, 2, 2]"""
    K, S = weight.shape[:2]
    return weight.view(K, S, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(K, 16 * S, 2, 2)


class ScreenConv2d(nn.Conv2d):
    """8x8 at stride 4 on bytes scaled to [0, 1]. uint8 [B, S, H, W], H and W multiples of 4 -> `compute_dtype`

    It runs on folded blocks, the same sums in another order: 4 channels are too few to fill a vector unit or a tensor
    core, 64 are not. The division by 255 is done on the weights, of which there are fewer.
    """

    def __init__(self, stack: int, channels: int, compute_dtype: torch.dtype) -> None:
        super().__init__(stack, channels, 8, 4)
        self.compute_dtype = compute_dtype

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = fold_weight(self.weight / 255), self.bias
        return F.conv2d(
            fold_blocks(input).to(self.compute_dtype),
            weight.to(self.compute_dtype),
            bias.to(self.compute_dtype),  # type: ignore[union-attr]
        )


class NatureEncoder(nn.Module):
    """Three convolutions of Mnih et al. 2015: 32@8x8/4, 64@4x4/2, 64@3x3/1, then a hidden layer of 512.

    uint8 [B, stack, 84, 84] -> float [B, hidden_size]
    """

    def __init__(self, obs_shape: tuple[int, ...], hidden_size: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        first = ScreenConv2d(obs_shape[0], 32, compute_dtype)
        self.convs = nn.Sequential(
            first, nn.ReLU(), Conv2d(32, 64, 4, 2), nn.ReLU(), Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()
        )
        with torch.no_grad():
            flat_size = self.convs(torch.zeros(1, *obs_shape, dtype=torch.uint8)).numel()
        self.hidden = Linear(flat_size, hidden_size)

    def forward(self, obs: Tensor) -> Tensor:
        return F.relu(self.hidden(self.convs(obs)))


class MLPEncoder(nn.Module):
    """Two hidden layers on vector observations. float32 [B, D] -> float [B, hidden_size]"""

    def __init__(self, obs_shape: tuple[int, ...], hidden_size: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.layers = nn.Sequential(
            Linear(obs_shape[0], hidden_size), nn.ReLU(), Linear(hidden_size, hidden_size), nn.ReLU()
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs.to(self.compute_dtype))


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
        self.encoder = make(tuple(obs_shape), hidden_size, compute_dtype)
        self.head = Linear(hidden_size, num_actions)
        self.compute_dtype = compute_dtype

    def forward(self, obs: Tensor) -> Tensor:
        # the head stays in float32: bfloat16 has 8 bits, fewer than the gaps between Q-values of a good state need
        return self.head(self.encoder(obs).float())
