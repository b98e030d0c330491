"""Whether a run fits, asked before its games are built: the parts of `footprint` for a Config, against what is free."""

import math

import torch

from fastdqn import footprint, hardware
from fastdqn.config import Config
from fastdqn.distributed import Ranks
from fastdqn.errors import UsageError
from fastdqn.footprint import Need
from fastdqn.memory import check_fits, check_host, free_bytes, required_bytes, row_bytes
from fastdqn.networks import QNetwork
from fastdqn.screens import Screen
from fastdqn.units import size


def needs_of(
    config: Config, device: torch.device, screen: Screen, network: QNetwork, *, compile: bool
) -> list[Need]:
    """The table of `footprint` for the run of a resolved config. `network` is of its shape, on the meta device."""
    is_atari, cuda = config.name.is_atari, device.type == "cuda"
    per_row = row_bytes(screen.frame_shape, screen.dtype, prioritized=config.prioritized)
    obs_shape = screen.obs_shape(config.frame_stack)
    obs_bytes, seen_bytes = (math.prod(shape) * screen.dtype.itemsize for shape in (obs_shape, screen.seen_shape))
    N, B = config.batch_size, config.num_envs if config.deterministic else max(config.num_envs // 2, 1)
    forward = footprint.forward_bytes(network, obs_shape)
    activations = max(N * (7 * obs_bytes + 3 * forward) // 2, B * (2 * obs_bytes + forward))
    P = sum(param.numel() for param in network.parameters())
    moments = 2 if config.optimizer == "adam" else 1 + config.rmsprop_centered  # tensors kept for each weight
    # Adam steps in place; RMSprop also keeps what was before a step, and the scaled gradients
    copies = 3 + moments + (0 if config.optimizer == "adam" else 2 + moments)
    casts = 2 * 2 * P if network.compute_dtype == torch.bfloat16 else 0
    kept = 4 * P * (2 + moments)  # weights, target, moments
    chunk = footprint.REPLAY_CHUNK_BYTES if config.checkpoint_replay == "full" else 0
    game = footprint.GAME_BYTES if is_atari else footprint.TASK_BYTES
    compilers = 0 if cuda or not compile else min(hardware.cores(), footprint.COMPILERS)
    compiling = footprint.COMPILE_BYTES if compile else footprint.EAGER_BYTES
    table = [
        Need("ring", required_bytes(config.replay_capacity, config.num_envs, per_row), True),
        Need("model", 4 * P * copies + casts, True),
        Need("activations", activations, True),
        Need("graphs", activations + kept + footprint.CUDA_WORKSPACE_BYTES if cuda else 0, True),
        Need("staging", B * (seen_bytes + 16) * (2 if cuda else 1)),
        Need("games", config.num_envs * (game + footprint.SCREENS * seen_bytes)),
        Need("saving", kept + 4 * P * moments + chunk),
        Need("compile", footprint.CUDA_HOST_BYTES if cuda else compiling),
        Need("compilers", footprint.COMPILER_BYTES * compilers),
        Need("evaluation", footprint.EVALUATION_BYTES if config.eval_period_frames > 0 else 0),
    ]
    return [need for need in table if need.nbytes > 0]


# the field that a part of the table grows with
_BEHIND = {"activations": "batch_size", "graphs": "batch_size", "staging": "num_envs", "games": "num_envs"}


def rest_of(table: list[Need], device: torch.device) -> int:
    """Bytes that lie beside the ring, in the same memory."""
    ring = next(need.nbytes for need in table if need.part == "ring")
    return footprint.total(table, on_device=True, cuda=device.type == "cuda") - ring


def check(
    config: Config, device: torch.device, screen: Screen, network: QNetwork, *, compile: bool, ranks: Ranks
) -> str:
    """One rank's parts and what is free for it, in one line, if all of them fit. `config` is the whole job's.

    Raises:
        ValueError: they do not fit; names what was typed, need and have.
    """
    table = needs_of(config.share(ranks.size), device, screen, network, compile=compile)
    free, beside = free_bytes(device, ranks.local_size), rest_of(table, device)
    there = [need for need in table if need.part != "ring" and (need.on_device or device.type != "cuda")]
    largest = max(there, key=lambda need: need.nbytes)
    if beside > free and (field := _BEHIND.get(largest.part)):  # whatever the ring, this one is in the way
        raise UsageError(
            f"{field}={getattr(config, field)}: {largest.part} need {size(largest.nbytes)} of {size(beside)} beside the "
            f"replay, {size(free)} are free on {device}; lower --{field.replace('_', '-')}"
        )
    check_fits(
        capacity=config.replay_capacity,
        num_envs=config.num_envs,
        per_row=row_bytes(screen.frame_shape, screen.dtype, prioritized=config.prioritized),
        device=device,
        reserve_bytes=beside,
        ranks=ranks.size,
        local_ranks=ranks.local_size,
    )
    if device.type == "cuda":
        needed = footprint.total(table, on_device=False, cuda=True)
        check_host(needed, config.num_envs, ranks.size, ranks.local_size)
    return f"{footprint.describe(table)}; {size(free)} were free on {device}"
