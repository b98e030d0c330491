"""Prioritised draws without a tree: whole numbers, one running sum, one binary search.

    weight       3   0   5   0   2      (|delta| + 1e-6)^alpha in units of 2^-20; 0 is a row that is not a start
    running sum  3   3   8   8  10      exact and free of order, which a sum of floats is not
    point        0 1 2 | 3 .. 7 | 8 9   uniform below the total; the first running sum above it is the row drawn

A row of weight 0 covers no point, so it is never drawn. A million rows are 8 MB of weights to pass over per draw: on a
GPU a few microseconds, and a captured graph has no use for a tree of data-dependent steps. Schaul et al. 2016.
"""

import math

import torch
from torch import Tensor

from fastdqn import rng

ONE = 1 << 20  # the weight of priority 1
LARGEST = 1 << 40  # 2^22 rows of it sum below 2^63
EPSILON = 1e-6  # added to every |delta|: none is impossible to draw again


class Priorities:
    """A weight for every row of a ring, int64 [R].

    Args:
        exponent: alpha; 0 draws uniformly, 1 in proportion to |delta|. It is applied once, when a weight is written.
        seed: of the draws.
    """

    def __init__(self, rows: int, *, exponent: float, seed: int, device: torch.device) -> None:
        self.weight = torch.zeros(rows, dtype=torch.int64, device=device)
        self.importance_exponent = torch.zeros((), device=device)  # beta, moved by the loop
        self.draw_counter = torch.zeros((), dtype=torch.int64, device=device)
        self.least = torch.zeros((), dtype=torch.float64, device=device)  # smallest P(i) of the last draw
        self.largest = torch.full((), ONE, dtype=torch.int64, device=device)  # weight ever written, at least ONE
        self._sums = torch.zeros_like(self.weight)
        self._exponent, self._key = exponent, rng.role_key(seed, "prioritized replay")

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self._sums.nbytes

    def admit(self, row: Tensor, starts: Tensor) -> None:
        """Gives new starts the largest weight ever written, so that each is soon learned from. int64 [B], bool [B]

        The largest of those now stored would hardly ever be less: some row that has not been drawn yet always has it.
        """
        self.weight.index_copy_(0, row, torch.where(starts, self.largest, 0))

    def withdraw(self, row: Tensor, gone: Tensor) -> None:
        """Takes rows out that are `gone`. int64, any shape, and bool that broadcasts to it; no row twice."""
        self.weight.index_copy_(0, row.view(-1), torch.where(gone, 0, self.weight[row]).view(-1))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows drawn by weight, with replacement, and their importance weights. int64 [N], float32 [N]

        (N P(i))^-beta / max_j (N P(j))^-beta, the maximum over the batch, is (smallest weight / weight_i)^beta. It is 0
        where there was nothing to draw.
        """
        torch.cumsum(self.weight, 0, out=self._sums)
        total = self._sums[-1]
        lane = torch.arange(count, device=total.device)
        point = rng.below(rng.bits(self._key, self.draw_counter, lane), total.clamp(min=1))
        self.draw_counter += 1
        row = torch.searchsorted(self._sums, point, right=True).clamp(max=len(self._sums) - 1)
        weight = self.weight[row].double()
        self.least.copy_(torch.where(total > 0, weight.amin() / total.clamp(min=1), math.inf))
        importance = (weight.amin() / weight.clamp(min=1)) ** self.importance_exponent
        return row, torch.where(weight > 0, importance, 0.0).float()

    def update(self, row: Tensor, td_error: Tensor, drawn: Tensor) -> None:
        """Writes the weights of rows just learned from. int64 [N], |delta| [N], bool [N]: others stay as they are.

        A row drawn twice has one weight: both its errors come from the same network and differ by rounding alone, or by
        the noise of the network's own draws; the larger counts.
        """
        weight = ((td_error.double().abs() + EPSILON) ** self._exponent * ONE).round().clamp(1, LARGEST).long()
        weight = torch.where(drawn, weight, self.weight[row])
        self.weight.scatter_reduce_(0, row, weight, "amax", include_self=False)
        torch.maximum(self.largest, weight.amax(), out=self.largest)
