"""What a run will take, part by part, before any of it is allocated. P parameters, N rows of an update, B of a group.

    part         where   bytes
    ring         device  `memory.required_bytes`, exact
    model        device  4 P each: weights, target, gradients, moments; 2 P for each network that is cast to bfloat16
    activations  device  N (3.5 s + 1.5 F): s of an observation, F of what a forward pass puts out; or B (2 s + F)
    graphs       device  CUDA alone: its pools hold activations of their own, and the libraries' workspaces
    staging      host    a group, on CUDA in two pinned slots
    games        host    EnvPool: a constant and 18 screens for each env
    saving       host    copies of weights, target and moments, and the largest of the three again in a file's form
    compile      host    Python modules and traces of torch.compile in this process
    compilers    host    C++ compilers beside it, while nothing is cached yet
    evaluation   host    the process that plays the periodic evaluations

On a CPU the device's parts lie in host memory too. Where the figures come from (4 cores, torch 2.13, EnvPool 1.2.5):
`python -m benchmarks.memory` measures what an env takes, and what whole runs take beside what is said here. Activations
are s, s' and the batch's passes. What resident memory grew by with the batch size was of that formula 0.92 for the Nature
network in bfloat16, 0.90 in float32, 1.00 eager, 0.87 for IQN with 8 fractions, 0.61 for IMPALA. Four compilers at once
took 371 MB. CUDA's constants have not been measured: they lie within the budgets of `benchmarks.budgets`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdqn.networks import QNetwork
from fastdqn.units import size

GAME_BYTES, TASK_BYTES, SCREENS = 850_000, 200_000, 18  # of an Atari game, of another task; observations of an env
COMPILE_BYTES, EAGER_BYTES = 150_000_000, 50_000_000  # modules, traces, kernels; without torch.compile modules alone
COMPILER_BYTES, COMPILERS = 100_000_000, 8  # of one, and how many run at once where there are as many cores
EVALUATION_BYTES = 700_000_000
CUDA_WORKSPACE_BYTES, CUDA_HOST_BYTES = 500_000_000, 1_000_000_000  # not measured
REPLAY_CHUNK_BYTES = 64 << 20  # a checkpoint with the replay: `large_tensors`


class Need(NamedTuple):
    """One part of a run's memory."""

    part: str
    nbytes: int
    on_device: bool = False


def total(table: list[Need], *, on_device: bool, cuda: bool) -> int:
    """Bytes on the device, or on the host. Without CUDA they are the same memory and all of it counts."""
    return sum(need.nbytes for need in table if not cuda or need.on_device == on_device)


def describe(table: list[Need]) -> str:
    """The parts in one line, largest first: "ring 7.06 GB, compilers 400 MB, ..."."""
    ordered = sorted(table, key=lambda need: -need.nbytes)
    return ", ".join(f"{need.part} {size(need.nbytes)}" for need in ordered)


def forward_bytes(network: QNetwork, obs_shape: tuple[int, ...]) -> int:
    """Bytes that the operations of one forward pass put out for each row: of two rows less of one. Computes nothing."""
    dtype = torch.uint8 if len(obs_shape) > 1 else torch.float32
    counted = []
    for rows in (1, 2):
        obs = torch.zeros(rows, *obs_shape, dtype=dtype, device="meta")
        draw = torch.zeros((), dtype=torch.int64, device="meta")
        with torch.no_grad(), torch.device("meta"), _Outputs() as outputs:
            network.predict(obs, draw)
        counted.append(outputs.nbytes)
    return counted[1] - counted[0]


class _Outputs(TorchDispatchMode):
    """Adds up the bytes of every operation's outputs that are no views of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        inputs = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        fresh = (tensor for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor))
        self.nbytes += sum(tensor.nbytes for tensor in fresh if _storage(tensor) not in inputs)
        return outputs


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
