"""From a Config to the parts of a run: device, threads, screen, games, ring, network, optimiser, learner."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fastdqn.atari import num_actions, vector_size
from fastdqn.config import Config
from fastdqn.distributed import Ranks
from fastdqn.envs import VectorEnv
from fastdqn.errors import UsageError
from fastdqn.learner import Learner
from fastdqn.machine import hardware, preflight
from fastdqn.machine.memory import keep_freed_memory
from fastdqn.networks import QNetwork, lecun_init
from fastdqn.replay import ReplayRing
from fastdqn.screens import Screen, screen_of
from fastdqn.staging import Staging


class Threads(NamedTuple):
    """How many threads each part may use."""

    env: int  # EnvPool
    act: int  # torch, choosing actions
    learn: int  # torch, updating


@dataclass(frozen=True)
class Parts:
    """What a training run is made of, before its pipeline is compiled."""

    device: torch.device
    threads: Threads
    screen: Screen
    envs: VectorEnv
    fire_action: int | None  # pressed after a lost life
    ring: ReplayRing
    learner: Learner
    staging: Staging
    memory: str  # what all of it takes of what was free, part by part


def build(
    config: Config,
    notes: list[str],
    ranks: Ranks,
    epoch: int = 0,
    say: Callable[[str], None] = lambda _: None,
    on_stall: Callable[[], object] | None = None,
) -> Parts:
    """Builds one rank's parts of a resolved config, and sets torch's global switches; adds to `notes` what was derived.

    Calls `say` with a line before what takes long; `on_stall` is the games'.

    Raises:
        ValueError: a value that cannot work on this machine, before anything large has been allocated.
    """
    whole, config = config, config.share(ranks.size)
    device = hardware.resolve_device(config.device, ranks.local_rank)
    if not config.cuda_graphs and device.type != "cuda":
        if epoch == 0:
            raise UsageError("cuda_graphs=False: only CUDA has them; leave it out")
        notes.append(f"cuda_graphs=False has no effect: {device} has none")  # resumed, perhaps from a GPU
    dtype, compile = resolve_precision(config, device, notes), resolve_compile(config, device, notes)
    threads = resolve_threads(config, device, ranks.local_size)
    torch.set_num_threads(threads.learn)
    keep_freed_memory()
    hardware.use_tf32(config.precision == "tf32")
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # the compiler advises against our choice
    if config.deterministic and device.type == "cuda":  # read by cuBLAS when it makes its first handle
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    # a debugging aid that costs a kernel per new tensor
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (typed as read-only)
    screen = make_screen(config, device)
    memory = preflight.check(whole, device, screen, needs(config, device), ranks)
    say(f"building {whole.num_envs} game{'s' * (whole.num_envs != 1)} of {config.name.game}")
    envs = training_envs(whole, ranks, screen, threads, epoch, on_stall)
    ring = ReplayRing(
        capacity=config.replay_capacity,
        num_envs=config.num_envs,
        obs_shape=screen.frame_shape,
        obs_dtype=screen.dtype,
        stack=config.frame_stack,
        n_step=config.n_step,
        gamma=config.gamma,
        reward_clip=config.reward_clip,
        life_loss_terminal=config.life_loss_terminal,
        priority_exponent=config.priority_exponent if config.prioritized else None,
        seed=ranks.seed(config.seed),
        device=device,
    )
    torch.manual_seed(config.seed)
    own = replace(config, seed=ranks.seed(config.seed))
    network = make_network(own, screen.obs_shape(config.frame_stack), envs.num_actions, dtype)
    if config.weight_init == "lecun":
        lecun_init(network)
    network = network.to(device)
    learner = make_learner(own, network, device, compile=compile)
    ranks.share_(learner.shared())
    staging = Staging(group_size=envs.group_size, obs_shape=envs.obs_shape, obs_dtype=screen.dtype, device=device)
    fire_action = None if config.fire_after_life_loss == "off" else envs.fire_action
    return Parts(device, threads, screen, envs, fire_action, ring, learner, staging, memory)


def needs(config: Config, device: torch.device) -> list[preflight.Need]:
    """What the run of a resolved config takes of memory, part by part; of one rank's share, what that rank takes."""
    screen, dtype = make_screen(config, device), resolve_precision(config, device, [])
    network = meta_network(config, screen, dtype)
    return preflight.needs_of(config, device, screen, network, compile=resolve_compile(config, device, []))


def training_envs(
    config: Config, ranks: Ranks, screen: Screen, threads: Threads, epoch: int, on_stall: Callable[[], object] | None
) -> VectorEnv:
    """One rank's games of an epoch of training."""
    share = config.share(ranks.size)
    first_env = ranks.rank * share.num_envs
    return make_envs(share, screen, threads.env, epoch=epoch, first_env=first_env, on_stall=on_stall)


def make_envs(config: Config, screen: Screen, num_threads: int, **options: Any) -> VectorEnv:
    """The games of a config; `options` are `VectorEnv`'s: role, epoch, first_env, render, on_stall."""
    return VectorEnv(
        config.env,
        **screen.asked(),
        **options,
        num_envs=config.num_envs,
        seed=config.seed,
        synchronous=config.deterministic,
        num_threads=num_threads,
        sticky_actions=config.sticky_actions or 0.0,
        full_action_set=config.full_action_set,
        noop_max=config.noop_max,
        max_episode_steps=config.max_episode_steps,
        frame_skip=config.frame_skip,
    )


def resolve_threads(config: Config, device: torch.device, ranks: int = 1) -> Threads:
    """What the config asks for, else what suits the cores of this process; a machine's ranks share them equally.

    At low replay ratios the games are still playing when the next group acts, and a team would wait for the cores it
    lost to them, so one thread acts; from 4 on the games are done by then and the team acts (benchmarks/LOG.md).
    """
    env_threads, torch_threads = hardware.thread_counts(max(hardware.cores() // ranks, 1), config.num_envs, device.type)
    env_threads, torch_threads = config.env_threads or env_threads, config.torch_threads or torch_threads
    # on CUDA nothing is computed with them, but what is compiled is held to the number it met
    team_acts = config.replay_ratio >= 4 or device.type == "cuda"
    return Threads(env_threads, torch_threads if team_acts else 1, torch_threads)


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
        notes.append(
            "not compiled: no C++ compiler with Python.h; install g++ python3-dev for up to twice the learning speed"
        )
        return False
    return config.compile


def make_screen(config: Config, device: torch.device) -> Screen:
    """How observations reach the ring."""
    if not config.name.is_atari:
        vector = (vector_size(config.name.canonical),)
        return Screen(vector, vector, torch.float32)
    on_device = config.resize == "device" or (config.resize == "auto" and device.type == "cuda")
    return screen_of(config.observation, resize_on_device=on_device, device=device)


# all that a network is made of, besides the shapes it meets: what an exported one is built from again
NETWORK_FIELDS = (
    "encoder", "impala_width", "layer_norm", "spectral_norm", "hidden_size", "head", "num_atoms", "value_limit",
    "num_quantiles", "num_acting_quantiles", "dueling", "noisy", "noisy_sigma", "seed",
)  # fmt: skip


def make_network(
    config: Config, obs_shape: tuple[int, ...], num_actions: int, compute_dtype: torch.dtype = torch.float32
) -> QNetwork:
    """The network of a resolved config, on the CPU."""
    fields = {field: getattr(config, field) for field in NETWORK_FIELDS}
    sigma = fields.pop("noisy_sigma")
    fields["noisy"] = sigma if config.noisy else 0.0
    return QNetwork(obs_shape, num_actions, **fields, compute_dtype=compute_dtype)


def meta_network(config: Config, screen: Screen, compute_dtype: torch.dtype) -> QNetwork:
    """The network of a resolved config without its memory, for the preflight to measure."""
    actions = num_actions(config.name, full_action_set=config.full_action_set)
    with torch.device("meta"):
        return make_network(config, screen.obs_shape(config.frame_stack), actions, compute_dtype)


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
        acting_ema=config.acting_ema,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        compile=compile,
    )
