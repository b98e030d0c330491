"""Whether a run fits, asked before its games are built: the parts of `footprint` for a Config, against what is free."""

import math

import torch

from fastdqn import atari, footprint, hardware
from fastdqn.config import Config
from fastdqn.footprint import Need
from fastdqn.memory import check_fits, check_host, free_bytes, required_bytes
from fastdqn.networks import QNetwork
from fastdqn.screens import Screen
from fastdqn.units import size


def row_of(config: Config, screen: Screen | None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the ring stores of an observation."""
    if screen is None:
        return (atari.vector_size(config.name.canonical),), torch.float32
    return screen.frame_shape, torch.uint8


def obs_shape_of(config: Config, screen: Screen | None) -> tuple[int, ...]:
    """Shape of one observation: frames are stacked, vectors are not."""
    shape, _ = row_of(config, screen)
    return shape if screen is None else (config.frame_stack, *shape)


def num_actions(config: Config) -> int:
    """Actions of the game or task."""
    if config.full_action_set and config.name.is_atari:
        return atari.FULL_ACTION_SET
    return atari.num_actions(config.name.game if config.name.is_atari else config.name.canonical)


def needs_of(
    config: Config, device: torch.device, screen: Screen | None, network: QNetwork, *, compile: bool
) -> list[Need]:
    """What the run of a resolved config will take, part by part. `network` is of its shape, on the meta device."""
    shape, dtype = row_of(config, screen)
    seen = shape if screen is None else (*screen.image_size, 1 if screen.grayscale else 3)
    adam, cuda = config.optimizer == "adam", device.type == "cuda"
    return footprint.needs(
        ring_bytes=required_bytes(
            config.replay_capacity, config.num_envs, shape, dtype, prioritized=config.prioritized
        ),
        network=network,
        obs_shape=obs_shape_of(config, screen),
        moments=2 if adam else 1 + config.rmsprop_centered,
        fused=adam,
        batch_size=config.batch_size,
        group_size=config.num_envs if config.deterministic else max(config.num_envs // 2, 1),
        num_envs=config.num_envs,
        screen_bytes=math.prod(seen) * dtype.itemsize,
        is_atari=config.name.is_atari,
        compiled=compile,
        cores=0 if cuda else hardware.cores(),
        saves_replay=config.checkpoint_replay == "full",
        evaluates=config.eval_period_frames > 0,
        cuda=cuda,
    )


def rest_of(table: list[Need], device: torch.device) -> int:
    """Bytes that lie beside the ring, in the same memory."""
    ring = next(need.nbytes for need in table if need.part == "ring")
    return footprint.total(table, on_device=True, cuda=device.type == "cuda") - ring


def check(
    config: Config, device: torch.device, screen: Screen | None, network: QNetwork, *, compile: bool, ranks: int = 1
) -> str:
    """The parts and what is free, in one line, if all of them fit. Raises ValueError if not: see `check_fits`.

    Args:
        config: one rank's.
        ranks: how many of them this machine's memory has to hold.
    """
    shape, dtype = row_of(config, screen)
    table = needs_of(config, device, screen, network, compile=compile)
    check_fits(
        capacity=config.replay_capacity,
        num_envs=config.num_envs,
        obs_shape=shape,
        obs_dtype=dtype,
        device=device,
        prioritized=config.prioritized,
        reserve_bytes=rest_of(table, device),
        ranks=ranks,
    )
    if device.type == "cuda":
        check_host(footprint.total(table, on_device=False, cuda=True), config.num_envs, ranks)
    return f"{footprint.describe(table)}; {size(free_bytes(device, ranks))} were free on {device}"
