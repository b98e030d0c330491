"""What the device makes of the emulator's screen, 210x160, before the ring stores it.

AreaResize, grey to 84x84: bytes equal to those of EnvPool's own area resize. An output pixel is the mean of the
2.5 x 40/21 input pixels it covers. In whole numbers: an input row is 2 units high and an output row 5, an input column is
21 units wide and an output column 40, so every weight is an integer and they sum to 5 * 40 = 200. No sum exceeds
255 * 200 = 51,000: float32 is exact, and so is TF32, whose 11 bits hold each factor (bfloat16 is not).

Why: the emulator steps faster when it does not resize (benchmarks/LOG.md), and the device has time to spare.
Source of the rule: OpenCV's INTER_AREA, which EnvPool uses; halves go to the even neighbour.

crop_grey_mean, RGB to 185x95: the play field alone, every pixel kept, the three colours averaged.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCREEN_SHAPE, FRAME_SHAPE = (210, 160), (84, 84)
CROP = slice(15, 200), slice(30, 125)
CROP_SHAPE = (185, 95)


class Screen(NamedTuple):
    """How an observation comes from the emulator and reaches the ring: a picture, or the vector of a task without one."""

    seen_shape: tuple[int, ...]  # asked of the emulator: (H, W), in colour (3, H, W); or (D,)
    frame_shape: tuple[int, ...]  # of a row of the ring: (H, W) or (D,)
    dtype: torch.dtype = torch.uint8  # of both
    preprocess: Callable[[Tensor], Tensor] = lambda frame: frame  # on the device, from the first to the second
    on_device: str = ""  # that, in words

    def asked(self) -> dict[str, Any]:
        """What `VectorEnv` is asked for."""
        if len(self.seen_shape) == 1:
            return {}
        return {"image_size": self.seen_shape[-2:], "grayscale": len(self.seen_shape) == 2}

    def obs_shape(self, stack: int) -> tuple[int, ...]:
        """Of one observation: frames are stacked, vectors are not."""
        return self.frame_shape if len(self.frame_shape) == 1 else (stack, *self.frame_shape)


def screen_of(observation: str, *, resize_on_device: bool, device: torch.device) -> Screen:
    """`observation` is "standard" (84x84 grey, Mnih et al. 2015) or "crop" (see `crop_grey_mean`)."""
    if observation == "crop":
        return Screen((3, *SCREEN_SHAPE), CROP_SHAPE, torch.uint8, crop_grey_mean, "cropped and averaged on the device")
    if resize_on_device:
        return Screen(SCREEN_SHAPE, FRAME_SHAPE, torch.uint8, AreaResize(device), "resized on the device")
    return Screen(FRAME_SHAPE, FRAME_SHAPE)


def crop_grey_mean(screen: Tensor) -> Tensor:
    """rint(mean of the colours) of screen[15:200, 30:125]. uint8 [B, 3, 210, 160] -> uint8 [B, 185, 95]

    In whole numbers: a sum of three is never halfway between two multiples of three, so (sum + 1) // 3 rounds.
    """
    colours = screen[:, :, CROP[0], CROP[1]].to(torch.int16)
    return ((colours.sum(dim=1, dtype=torch.int16) + 1) // 3).to(torch.uint8)


def area_weights(inputs: int, outputs: int) -> Tensor:
    """Overlap of each input cell with each output cell, in whole units. float32 [outputs, inputs]"""
    unit = math.gcd(inputs, outputs)
    input_size, output_size = outputs // unit, inputs // unit
    i, o = torch.arange(inputs) * input_size, (torch.arange(outputs) * output_size)[:, None]
    overlap = torch.minimum(i + input_size, o + output_size) - torch.maximum(i, o)
    return overlap.clamp(min=0).float()


class AreaResize:
    """uint8 [B, 210, 160] -> uint8 [B, 84, 84]. Its constants are allocated once, on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._rows = area_weights(SCREEN_SHAPE[0], FRAME_SHAPE[0]).to(device)
        self._columns = area_weights(SCREEN_SHAPE[1], FRAME_SHAPE[1]).T.contiguous().to(device)
        self._total = self._rows[0].sum() * self._columns[:, 0].sum()

    def __call__(self, screen: Tensor) -> Tensor:
        # rows first: their sums stay below 2,048, which TF32 holds exactly; the columns' sums would not
        return ((self._rows @ screen.float() @ self._columns) / self._total).round().to(torch.uint8)
