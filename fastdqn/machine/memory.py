"""Bytes of a ring and bytes that are free; and what malloc does with freed memory."""

import ctypes
import math
from pathlib import Path

import torch

from fastdqn.machine.control_groups import memory_headroom

# action, reward, terminated, life_lost and done of one row
_ROW_BYTES = 1 + 4 + 1 + 1 + 1
_PRIORITY_BYTES = 8 + 8  # weight and running sum of one row


def row_bytes(obs_shape: tuple[int, ...], obs_dtype: torch.dtype, *, prioritized: bool = False) -> int:
    """Bytes of one row of a ring; `obs_shape` is of what it stores of an observation."""
    return math.prod(obs_shape) * obs_dtype.itemsize + _ROW_BYTES + (_PRIORITY_BYTES if prioritized else 0)


def required_bytes(capacity: int, num_envs: int, per_row: int) -> int:
    """Bytes of a ring of `capacity` rows of `per_row` bytes in `num_envs` lanes."""
    return (capacity // num_envs) * num_envs * per_row + num_envs * 8


def free_bytes(device: torch.device, ranks: int = 1) -> int:
    """Bytes that can still be allocated: free GPU memory, or available RAM within the control groups' limits.

    RAM is shared equally by the `ranks` of this machine, which all ask before any of them allocates.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = memory_headroom()
    return (_available_ram() if left is None else min(_available_ram(), left)) // ranks


def largest_capacity(free: int, num_envs: int, per_row: int) -> int:
    """Rows of the largest ring in `free` bytes, 0 where none fits; whole rows of lanes, so a multiple of `num_envs`."""
    return max(free - num_envs * 8, 0) // (per_row * num_envs) * num_envs


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep what is freed instead of giving it back to the kernel. False where there is no glibc.

    By default it maps every tensor above 128 kB afresh and unmaps it when it dies. An update on the CPU makes tens of
    megabytes of them: a thousand page faults, and at each unmapping the kernel interrupts every thread of the team.
    Updates of 64 took 20 ms instead of 14 (benchmarks/LOG.md). The price: memory does not shrink before the process ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 2**31 - 1))  # 32 MB is its maximum


def _available_ram() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62  # unknown: nothing to refuse by
