"""The Atari screen, 210x160 grey, made 84x84 on the device: bytes equal to those of EnvPool's own area resize.

An output pixel is the mean of the 2.5 x 40/21 input pixels it covers. In whole numbers: an input row is 2 units high and
an output row 5, an input column is 21 units wide and an output column 40, so every weight is an integer and they sum to
5 * 40 = 200. No sum exceeds 255 * 200 = 51,000: float32 is exact, and so is TF32, whose 11 bits hold each factor
(bfloat16 is not).

Why: the emulator steps faster when it does not resize (benchmarks/LOG.md), and the device has time to spare.
Source of the rule: OpenCV's INTER_AREA, which EnvPool uses; halves go to the even neighbour.
"""

import torch
from torch import Tensor

SCREEN_SHAPE, FRAME_SHAPE = (210, 160), (84, 84)


def area_weights(inputs: int, outputs: int) -> Tensor:
    """Overlap of each input cell with each output cell, in whole units. float32 [outputs, inputs]"""
    unit = torch.gcd(torch.tensor(inputs), torch.tensor(outputs)).item()
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
