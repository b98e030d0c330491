"""The way of one group between EnvPool and the device: one packed copy up, one copy of actions down.

    recv() arrays --pack--> slot 0 (pinned) --one H2D--> `rows`: views of one buffer on the device, addresses fixed
                            slot 1 (pinned)              env_id | reward | terminated | done | life_lost | obs
    send() <--- host actions (pinned) <---- one D2H ---- `action`

A slot is written again only after the event behind its last copy has passed: a copy that is still reading would
otherwise see half of one group and half of the next. With the present order of the loop one slot would do, since
waiting for a group's actions waits for its copy too; the events keep a later order safe.

On a CPU there is nothing to copy: `rows` are views of the one slot. B envs in a group.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; vectorised kernels load this many at once


class Staging:
    """Preallocated buffers for groups of `group_size` rows.

    Args:
        obs_shape, obs_dtype: of one frame or vector.
        slots: pinned buffers that take turns.
    """

    def __init__(
        self,
        *,
        group_size: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype,
        device: torch.device,
        slots: int = 2,
    ) -> None:
        B = group_size
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "env_id": ((B,), torch.int64),
            "reward": ((B,), torch.float32),
            "terminated": ((B,), torch.bool),
            "done": ((B,), torch.bool),
            "life_lost": ((B,), torch.bool),
            "obs": ((B, *obs_shape), obs_dtype),
        }
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            size = math.prod(shape) * dtype.itemsize
            self._spans[name] = (end, end + size)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.device, on_gpu = device, device.type == "cuda"
        self._slots = [torch.zeros(end, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(slots if on_gpu else 1)]
        self._buffer = torch.zeros(end, dtype=torch.uint8, device=device) if on_gpu else self._slots[0]

        def views(buffer: Tensor) -> dict[str, Tensor]:
            return {
                name: buffer[slice(*self._spans[name])].view(dtype).view(shape)
                for name, (shape, dtype) in fields.items()
            }

        self.rows = views(self._buffer)  # static: what the loop's graphs read
        self._arrays = [{name: view.numpy() for name, view in views(slot).items()} for slot in self._slots]
        self.action = torch.zeros(B, dtype=torch.int32, device=device)  # static: where the loop's graphs write
        self._actions = torch.zeros(B, dtype=torch.int32, pin_memory=on_gpu)
        self._free = [torch.cuda.Event() for _ in self._slots] if on_gpu else None
        self._arrived = torch.cuda.Event() if on_gpu else None  # a wait on it spins; blocking is not measured yet
        self._turn = 0

    def put(self, group: Any) -> None:
        """Packs a group's arrays, its attributes named as `rows`, and queues their copy. Does not wait for the copy."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self._slots)
        if self._free is not None:
            self._free[turn].synchronize()  # nearly always passed long ago
        for name, destination in self._arrays[turn].items():
            np.copyto(destination, getattr(group, name))
        if self._free is not None:
            self._buffer.copy_(self._slots[turn], non_blocking=True)
            self._free[turn].record()

    def queue_actions(self) -> None:
        """Queues the copy of `action` to the host."""
        self._actions.copy_(self.action, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait_for_actions(self) -> npt.NDArray[np.int32]:
        """Blocks until the queued actions are here. int32 [B], overwritten by the next group's. A host sync."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._actions.numpy()
