"""From a Config to the parts that training and evaluation share: screen, network, optimiser, learner, device, threads."""

from typing import NamedTuple

import torch

from fastdqn import hardware
from fastdqn.config import Config, UsageError
from fastdqn.learner import Learner
from fastdqn.networks import QNetwork
from fastdqn.screens import Screen, screen_of


def resolve_device(name: str) -> torch.device:
    """auto, cpu or cuda -> a device that exists."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda: this torch has no CUDA device; use --device cpu or install a CUDA build of torch"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


class Threads(NamedTuple):
    """How many threads each part may use."""

    env: int  # EnvPool
    act: int  # torch, choosing actions
    learn: int  # torch, updating


def resolve_threads(config: Config, device: torch.device) -> Threads:
    """On a GPU torch's host side needs one thread.

    On CPU both share the cores. One core is left out of torch's team: OpenMP's barriers wait for the slowest member, so
    a single thread that loses its core to a game or to another program holds all of them up. Half the cores play: there
    the updates are the bottleneck, and fewer games stand in their way. At low replay ratios the games are still playing
    when the next group acts, and a team would wait for the cores it lost to them, so one thread acts; from 4 on the
    games are done by then and the team acts (measured, benchmarks/LOG.md).
    """
    cores = hardware.cores()
    env_threads = config.env_threads or min(config.num_envs, max(cores // 2, 1) if device.type == "cpu" else cores)
    torch_threads = config.torch_threads or (max(cores - 1, 1) if device.type == "cpu" else 1)
    return Threads(env_threads, torch_threads if config.replay_ratio >= 4 else 1, torch_threads)


def resolve_precision(config: Config, device: torch.device, notes: list[str]) -> torch.dtype:
    """The dtype in which the networks compute; adds a note where that is not what one would expect."""
    if config.precision == "tf32" and device.type != "cuda":
        raise UsageError("precision=tf32: only CUDA has it; use fp32 or auto")
    native = hardware.has_bf16(device)
    if config.encoder == "mlp" and config.precision == "auto":
        return torch.float32  # nothing to gain on small matrices, and values of many digits to lose
    if config.precision == "auto" and not native:
        notes.append(f"precision fp32: {device} has no native bfloat16")
    if config.precision == "bf16" and not native:
        notes.append(f"precision bf16 as asked, but {device} emulates it: fp32 will be faster")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and native)
    return torch.bfloat16 if bf16 else torch.float32


def resolve_compile(config: Config, device: torch.device, notes: list[str]) -> bool:
    """Whether to compile; adds a note where that was asked for and cannot be."""
    if config.compile and not hardware.has_compiler(device):
        notes.append("not compiled: no C++ compiler found; install g++ for up to twice the learning speed")
        return False
    return config.compile


def make_screen(config: Config, device: torch.device) -> Screen | None:
    """How the game's picture reaches the ring; None for a task without one."""
    if not config.name.is_atari:
        return None
    on_device = config.resize == "device" or (config.resize == "auto" and device.type == "cuda")
    return screen_of(config.observation, resize_on_device=on_device, device=device)


def make_network(
    config: Config, obs_shape: tuple[int, ...], num_actions: int, compute_dtype: torch.dtype = torch.float32
) -> QNetwork:
    """The network of a resolved config, on the CPU."""
    return QNetwork(
        obs_shape,
        num_actions,
        encoder=config.encoder,
        impala_width=config.impala_width,
        layer_norm=config.layer_norm,
        spectral_norm=config.spectral_norm and config.encoder == "impala",
        hidden_size=config.hidden_size,
        head=config.head,
        num_atoms=config.num_atoms,
        value_limit=config.value_limit,
        num_quantiles=config.num_quantiles,
        num_acting_quantiles=config.num_acting_quantiles,
        dueling=config.dueling,
        noisy=config.noisy_sigma if config.noisy else 0.0,
        seed=config.seed,
        compute_dtype=compute_dtype,
    )


def make_optimizer(config: Config, network: QNetwork, device: torch.device) -> torch.optim.Optimizer:
    """Over the network's parameters; on CUDA one that a graph can capture."""
    capturable = device.type == "cuda"
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(),
            lr=config.learning_rate,
            alpha=config.rmsprop_decay,
            eps=config.optimizer_eps,
            centered=config.rmsprop_centered,
            foreach=True,
            capturable=capturable,
        )
    return torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, eps=config.optimizer_eps, fused=True, capturable=capturable
    )


def make_learner(config: Config, network: QNetwork, device: torch.device, *, compile: bool) -> Learner:
    """The learner of a resolved config; `network` is on the device already."""
    munchausen = config.munchausen_scale, config.munchausen_temperature, config.munchausen_floor
    return Learner(
        network,
        make_optimizer(config, network, device),
        double=config.double,
        munchausen=munchausen if config.munchausen else None,
        loss="mse" if config.loss == "mse" else "huber",
        polyak=config.polyak,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        compile=compile,
    )
