"""Ranks under torchrun: one training on several processes, GPUs or machines, by averaging gradients.

    torchrun --nproc-per-node 4 -m fastdqn train --num-envs 256 --batch-size 256

Each rank plays its share of the games into its share of the ring, draws its share of each batch from there, and computes
the gradient of its mean loss; the mean over the ranks, of equal shares, is the gradient of the whole batch. So all
weights stay equal, bit for bit, and num_envs, batch_size, replay_ratio and every period keep their meaning.

Uniform draws: rank r draws from its own n_r starts. Every row of the job has the chance 1 / (R n_r) per draw, the same as
1 / sum n_r up to the few rows by which asynchronous lanes differ.

Prioritised draws: rank r draws row i with p_i / S_r, S_r the sum of its own priorities, so P(i) = p_i / (R S_r) in the job
instead of p_i / sum S_r. The importance weight of Schaul et al. 2016 corrects for the P that is drawn with, whatever it
is: w_i = (P(i) N)^-beta / max_j (P(j) N)^-beta = (min_j P(j) / P(i))^beta, where R and N cancel and the minimum is over
the whole batch. A rank knows only its own minimum m_r of p / S_r; its gradient, linear in the weights, is therefore
multiplied by (min_s m_s / m_r)^beta before the mean is taken.

What is agreed on by the host, once per group: how many decisions all ranks made, whether one was asked to stop, whether it
is time to log. The sum travels while the next group plays, so the clock of a job lags one group behind its games.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdqn import rng
from fastdqn.errors import RunError

TIMEOUT = timedelta(minutes=10)  # of one collective: a rank may compile for longer than another


class RankLostError(RunError):
    """Another rank has ended or does not answer: this one cannot go on. One line."""


@dataclass(frozen=True)
class Agreed:
    """What the ranks agree on after a group."""

    decisions: int  # env steps of all ranks
    stop: bool
    log: bool


class Ranks:
    """This process among those that torchrun started; alone where it was started by itself.

    Args:
        rank, size: its number, and how many there are, on all machines.
        local_rank, local_size: the same on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self._sum = torch.zeros(3, dtype=torch.int64)
        self._travelling: Any = None

    def seed(self, run_seed: int) -> int:
        """Of this rank's own draws: the run's on the first, hashed from it and the rank on the others."""
        return run_seed if self.first else rng.role_key(run_seed, f"rank {self.rank}")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes logs and checkpoints."""
        return self.rank == 0

    def agree(self, decisions: int, *, stop: bool, log: bool) -> Agreed:
        """Adds up what all ranks say; of several ranks the answer is about the group before. `log` is the first's word."""
        if self.size == 1:
            return Agreed(decisions, stop, log)
        with self._lost_in_one_line():
            before, stops, logs = self._arrived()
            self._sum = torch.tensor([decisions, stop, log and self.first])
            self._travelling = dist.all_reduce(self._sum, async_op=True)
        return Agreed(before, stops > 0, logs > 0)

    def _arrived(self) -> list[int]:
        """What all ranks said of the group before, added up; zeros at first."""
        if self._travelling is not None:
            self._travelling.wait()
        return self._sum.tolist()

    def mean_(self, gradient: Tensor) -> None:
        """The mean over the ranks, in place, the same bits on each. Queued on CUDA."""
        with self._lost_in_one_line():
            dist.all_reduce(gradient)
        gradient.div_(self.size)

    def smallest(self, value: Tensor) -> Tensor:
        """The smallest of all ranks' `value`."""
        smallest = value.clone()
        with self._lost_in_one_line():
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return smallest

    def share_(self, tensors: Sequence[Tensor]) -> None:
        """Gives every rank the first one's `tensors`, in place."""
        if self.size > 1:
            with self._lost_in_one_line():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def gather(self, rows: Sequence[Sequence[float]], width: int) -> list[list[float]]:
        """Every other rank's `rows` of `width` numbers, on the first rank; nothing on the others."""
        if self.size == 1:
            return []
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        mine = torch.tensor(rows, dtype=torch.float64).view(-1, width)
        with self._lost_in_one_line():
            dist.all_gather(counts, torch.tensor([len(rows)]))
            longest = max(int(count) for count in counts)
            padded = torch.zeros(longest, width, dtype=torch.float64)
            padded[: len(rows)] = mine
            everyones = [torch.zeros_like(padded) for _ in range(self.size)]
            if longest > 0:
                dist.all_gather(everyones, padded)
        pairs = zip(everyones[1:], counts[1:], strict=True)
        return [row for table, count in pairs for row in table[: int(count)].tolist()] if self.first else []

    def leave(self) -> None:
        """Ends the group, after what is still travelling has arrived."""
        if self.size > 1 and dist.is_initialized():
            with self._lost_in_one_line():
                self._arrived()
            dist.destroy_process_group()

    @contextmanager
    def _lost_in_one_line(self) -> Iterator[None]:
        """A collective fails when another rank has ended: that in one line."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rpartition("] ")[2]  # without the place in the library's source
            raise RankLostError(f"rank {self.rank} of {self.size} has lost another rank, and ends: {reason}") from error


class Bucket:
    """The gradients of `params`, the loss and two figures of Q in one tensor, so that one all-reduce takes them all."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.flat = torch.zeros(sum(param.numel() for param in params) + 3, device=params[0].device)
        self.views, begin = [], 0
        for param in params:  # laid out as the parameter is: the fused optimisers ask for it
            self.views.append(self.flat.as_strided(param.shape, param.stride(), begin))
            begin += param.numel()
        self.views += [self.flat[-3], self.flat[-2], self.flat[-1]]

    def fill(self, grads_and_figures: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.views, list(grads_and_figures))

    def weigh(self, factor: Tensor) -> None:
        """Multiplies the gradients and the loss."""
        self.flat[:-2] *= factor


def join(*, cuda: bool) -> Ranks:
    """Finds the other ranks by what torchrun put into the environment.

    Args:
        cuda: tensors on GPUs travel by NCCL; what the host agrees on, and everything on a CPU, by Gloo.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ranks = Ranks(*(int(os.environ.get(name, only)) for name, only in zip(names, (0, 1, 0, 1), strict=True)))
    if ranks.size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return ranks
