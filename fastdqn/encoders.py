"""From an observation to features: what a network sees before it values actions.

B observations, S stacked frames of H x W, K output channels, F features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdqn.layers import Conv2d, LayerNorm, Linear, SpectralConv2d

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
    """A convolution of bytes scaled to [0, 1]. uint8 [B, S, H, W] -> `compute_dtype`

    The division by 255 is done on the weights, of which there are fewer. 8x8 at stride 4 runs on folded blocks where
    H and W are multiples of 4, the same sums in another order: 4 channels are too few to fill a vector unit or a tensor
    core, 64 are not.
    """

    def __init__(
        self, stack: int, channels: int, kernel_size: int, stride: int, compute_dtype: torch.dtype, *, padding: int = 0
    ) -> None:
        super().__init__(stack, channels, kernel_size, stride, padding)
        self.compute_dtype = compute_dtype
        self._foldable = (kernel_size, stride, padding) == (8, 4, 0)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight / 255, self.bias.to(self.compute_dtype)  # type: ignore[union-attr]
        if self._foldable and input.shape[2] % 4 == 0 and input.shape[3] % 4 == 0:
            obs = fold_blocks(input).to(self.compute_dtype)
            return F.conv2d(obs, fold_weight(weight).to(self.compute_dtype), bias)
        obs = input.to(self.compute_dtype)
        return F.conv2d(obs, weight.to(self.compute_dtype), bias, self.stride, self.padding)  # type: ignore[arg-type]


def norm(channels: int, layer_norm: bool) -> list[nn.Module]:
    """What stands between a layer and its activation."""
    return [LayerNorm(channels)] if layer_norm else []


def nature(
    obs_shape: tuple[int, ...], compute_dtype: torch.dtype, *, layer_norm: bool, wide: bool = False
) -> nn.Sequential:
    """Mnih et al. 2015: 32@8x8/4, 64@4x4/2, 64@3x3/1. uint8 [B, S, H, W] -> [B, F], F = 3,136 at 84x84

    `wide`, the Space Invaders tutorial's: the first with padding 1, the last with 128 channels; F = 128 * 19 * 8 at 185x95.
    """
    padding, out = (1, 128) if wide else (0, 64)
    return nn.Sequential(
        ScreenConv2d(obs_shape[0], 32, 8, 4, compute_dtype, padding=padding), *norm(32, layer_norm), nn.ReLU(),
        Conv2d(32, 64, 4, 2), *norm(64, layer_norm), nn.ReLU(),
        Conv2d(64, out, 3, 1), *norm(out, layer_norm), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, channels unchanged."""

    def __init__(self, channels: int, *, layer_norm: bool, spectral_norm: bool) -> None:
        super().__init__()
        conv: Callable[..., nn.Module] = SpectralConv2d if spectral_norm else Conv2d
        self.layers = nn.Sequential(
            *norm(channels, layer_norm), nn.ReLU(), conv(channels, channels, 3, padding=1),
            *norm(channels, layer_norm), nn.ReLU(), conv(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return input + self.layers(input)


def impala(
    obs_shape: tuple[int, ...], compute_dtype: torch.dtype, *, width: int, layer_norm: bool, spectral_norm: bool
) -> nn.Sequential:
    """Espeholt et al. 2018, the deep one: 3 stages of conv, max-pool and 2 residual blocks, 16, 32, 32 times `width`.

    The spectral norm is on the residual blocks' convolutions, and the last map is max-pooled to 6x6, both as in Beyond
    The Rainbow (Clark et al. 2024). uint8 [B, S, H, W] -> [B, F], F = 1,152 * width
    """
    stages: list[nn.Module] = []
    channels, sizes = obs_shape[0], list(obs_shape[1:])
    for index, out in enumerate((16 * width, 32 * width, 32 * width)):
        first = ScreenConv2d(channels, out, 3, 1, compute_dtype, padding=1)
        stages += [
            first if index == 0 else Conv2d(channels, out, 3, padding=1),
            nn.MaxPool2d(3, 2, padding=1),
            ResidualBlock(out, layer_norm=layer_norm, spectral_norm=spectral_norm),
            ResidualBlock(out, layer_norm=layer_norm, spectral_norm=spectral_norm),
        ]
        channels, sizes = out, [(size + 1) // 2 for size in sizes]
    return nn.Sequential(*stages, nn.ReLU(), max_pool_to_6(sizes), nn.Flatten())


def max_pool_to_6(sizes: list[int]) -> nn.Module:
    """`nn.AdaptiveMaxPool2d(6)` on maps of these sizes; with fixed windows where it has them.

    Torch has no deterministic gradient of the adaptive one on CUDA.
    """
    windows = [(size // 6, size // 6, 0) if size % 6 == 0 else (3, 2, 1) for size in sizes]
    if any(size % 6 and size != 11 for size in sizes):  # 84 pixels leave 11
        return nn.AdaptiveMaxPool2d(6)
    kernel, stride, padding = zip(*windows, strict=True)
    return nn.MaxPool2d(kernel, stride, padding)


class Cast(nn.Module):
    """To the dtype in which the rest computes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        return input.to(self.dtype)


def mlp(obs_shape: tuple[int, ...], compute_dtype: torch.dtype, hidden_size: int, *, layer_norm: bool) -> nn.Sequential:
    """One hidden layer on vector observations; the head has another. float32 [B, D] -> [B, hidden_size]"""
    return nn.Sequential(
        Cast(compute_dtype), Linear(obs_shape[0], hidden_size), *norm(hidden_size, layer_norm), nn.ReLU()
    )
