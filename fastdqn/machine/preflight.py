"""Whether a run fits: what it will take, part by part, before any of it is allocated, against what is free.

P parameters, N rows of an update, B of a group:

    part         where   bytes
    ring         device  `memory.required_bytes`, exact
    model        device  4 P each: weights, target, gradients, moments, average; 2 P for each network that is cast to bfloat16
    activations  device  N (3.5 s + 1.5 F): s of an observation, F of what a forward pass puts out; or B (2 s + F)
    graphs       device  CUDA alone: its pools hold activations of their own, and the libraries' workspaces
    staging      host    a group, on CUDA in two pinned slots
    games        host    EnvPool: a constant and 18 screens for each env
    saving       host    copies of weights, target and moments, and the chunk that is being written
    compile      host    Python modules and traces of torch.compile in this process
    compilers    host    C++ compilers beside it, while nothing is cached yet
    evaluation   host    the process that plays the periodic evaluations

On a CPU the device's parts lie in host memory too. Where the figures come from (4 cores, torch 2.13, EnvPool 1.2.5):
`python -m benchmarks.memory` measures what an env takes, and what whole runs take beside what is said here. Activations
are s, s' and the batch's passes. What resident memory grew by with the batch size was of that formula 0.92 for the Nature
network in bfloat16, 0.90 in float32, 1.00 eager, 0.87 for IQN with 8 fractions, 0.61 for IMPALA. Four compilers at once
took 371 MB. CUDA's constants have not been measured: they lie within the budgets of `benchmarks.budgets`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdqn import large_tensors
from fastdqn.config import Config
from fastdqn.distributed import Ranks
from fastdqn.errors import UsageError
from fastdqn.machine import hardware
from fastdqn.machine.memory import free_bytes, largest_capacity, required_bytes, row_bytes
from fastdqn.networks import QNetwork
from fastdqn.screens import Screen
from fastdqn.units import size

GAME_BYTES, TASK_BYTES, SCREENS = 850_000, 200_000, 18  # of an Atari game, of another task; observations of an env
COMPILE_BYTES, EAGER_BYTES = 150_000_000, 50_000_000  # modules, traces, kernels; without torch.compile modules alone
COMPILER_BYTES, COMPILERS = 100_000_000, 8  # of one, and how many run at once where there are as many cores
EVALUATION_BYTES = 700_000_000
CUDA_WORKSPACE_BYTES, CUDA_HOST_BYTES = 1_000_000_000, 1_000_000_000  # not measured; libraries load kernels as they go


class Need(NamedTuple):
    """One part of a run's memory."""

    part: str
    nbytes: int
    on_device: bool = False
    grows_with: str | None = None  # a field of the config: what to lower


def check(config: Config, device: torch.device, screen: Screen, table: list[Need], ranks: Ranks) -> str:
    """One rank's parts, `table`, and what is free for it, in one line, if all of them fit.

    `config` is the whole job's, as it was typed; its ranks share envs and capacity out equally.

    Raises:
        UsageError: they do not fit; names what was typed, need and have.
    """
    free, beside = free_bytes(device, ranks.local_size), rest_of(table, device)
    each = f", for each of {ranks.size} ranks" if ranks.size > 1 else ""
    there = [need for need in table if need.part != "ring" and (need.on_device or device.type != "cuda")]
    largest = max(there, key=lambda need: need.nbytes)
    if beside > free and (field := largest.grows_with):  # whatever the ring, this one is in the way
        raise UsageError(
            f"{field}={getattr(config, field)}: {largest.part} need {size(largest.nbytes)} of {size(beside)} beside the "
            f"replay, {size(free)} are free on {device}; lower --{field.replace('_', '-')}"
        )
    if (ring := ring_of(table)) > free - beside:
        per_row = row_bytes(screen.frame_shape, screen.dtype, prioritized=config.prioritized)
        fits = largest_capacity(free - beside, config.num_envs // ranks.size, per_row) * ranks.size
        remedy = "no ring fits: end other programs, or lower --num-envs and --batch-size"
        raise UsageError(
            f"replay_capacity={config.replay_capacity}: needs {ring / 1e9:.2f} GB on {device}, "
            f"{max(free - beside, 0) / 1e9:.2f} GB are free beside {beside / 1e9:.2f} GB for the rest{each}; "
            f"{f'the largest that fits is --replay-capacity {fits}' if fits else remedy}"
        )
    if device.type == "cuda":
        needed, host = total(table, on_device=False, cuda=True), free_bytes(torch.device("cpu"), ranks.local_size)
        if needed > host:
            raise UsageError(
                f"num_envs={config.num_envs}: games, staging and the rest need {needed / 1e9:.2f} GB of host memory, "
                f"{host / 1e9:.2f} GB are free{each}; end other programs, or lower --num-envs"
            )
    return f"{describe(table)}; {size(free)} were free on {device}"


def needs_of(config: Config, device: torch.device, screen: Screen, network: QNetwork, *, compile: bool) -> list[Need]:
    """The table above for the run of a resolved config. `network` is of its shape, on the meta device."""
    cuda = device.type == "cuda"
    per_row = row_bytes(screen.frame_shape, screen.dtype, prioritized=config.prioritized)
    obs_shape = screen.obs_shape(config.frame_stack)
    obs_bytes, seen_bytes = (math.prod(shape) * screen.dtype.itemsize for shape in (obs_shape, screen.seen_shape))
    N, B = config.batch_size, config.num_envs if config.deterministic else max(config.num_envs // 2, 1)
    forward = forward_bytes(network, obs_shape)
    updating, acting = N * (7 * obs_bytes + 3 * forward) // 2, B * (2 * obs_bytes + forward)
    activations, larger = max((updating, "batch_size"), (acting, "num_envs"))
    P = sum(param.numel() for param in network.parameters())
    moments = 2 if config.optimizer == "adam" else 1 + config.rmsprop_centered  # tensors kept for each weight
    # Adam steps in place; RMSprop also keeps what was before a step, and the scaled gradients
    copies = 3 + moments + (0 if config.optimizer == "adam" else 2 + moments)
    averages = int(config.acting_ema > 0)
    casts = (2 + averages) * 2 * P if network.compute_dtype == torch.bfloat16 else 0
    kept = 4 * P * (2 + averages + moments)  # weights, target, what acts, moments
    chunk = large_tensors.CHUNK_BYTES if config.checkpoint_replay == "full" else min(4 * P, large_tensors.CHUNK_BYTES)
    game = GAME_BYTES if config.name.is_atari else TASK_BYTES
    compilers = 0 if cuda or not compile else min(hardware.cores(), COMPILERS)
    compiling = COMPILE_BYTES if compile else EAGER_BYTES
    table = [
        Need("ring", required_bytes(config.replay_capacity, config.num_envs, per_row), True),
        Need("model", 4 * P * (copies + averages) + casts, True),
        Need("activations", activations, True, larger),
        Need("graphs", activations + kept + CUDA_WORKSPACE_BYTES if cuda else 0, True, larger),
        Need("staging", B * (seen_bytes + 16) * (2 if cuda else 1), False, "num_envs"),
        Need("games", config.num_envs * (game + SCREENS * seen_bytes), False, "num_envs"),
        Need("saving", kept + chunk),
        Need("compile", CUDA_HOST_BYTES if cuda else compiling),
        Need("compilers", COMPILER_BYTES * compilers),
        Need("evaluation", EVALUATION_BYTES if config.eval_period_frames > 0 else 0),
    ]
    return [need for need in table if need.nbytes > 0]


def rest_of(table: list[Need], device: torch.device) -> int:
    """Bytes that lie beside the ring, in the same memory."""
    return total(table, on_device=True, cuda=device.type == "cuda") - ring_of(table)


def ring_of(table: list[Need]) -> int:
    """Bytes of the ring."""
    return next(need.nbytes for need in table if need.part == "ring")


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
