"""What a run is about to do, in words: printed before its first game, in env steps and frames, with all that was derived."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from fastdqn import __version__
from fastdqn.config import NOT_LEARNING, Config, load_preset, preset_names, unchanged
from fastdqn.machine import hardware
from fastdqn.parts import Parts
from fastdqn.schedules import LearningSchedule
from fastdqn.units import cores

# presets made for the one task that they name; btr names one for its sticky actions
ONE_TASK = ("breakout-tutorial", "cartpole", "catch", "lunar-lander", "quick", "space-invaders-tutorial")

DRAWN = 100_000  # frames of a ring for each time that a transition is drawn; with fewer see `small_ring`


def plan(config: Config, parts: Parts, schedule: LearningSchedule, folder: Path, notes: Sequence[str]) -> list[str]:
    """One line for each thing that a user may want to check before hours are spent; `notes` come last."""
    envs, ring, device = parts.envs, parts.ring, parts.device
    updates = float(schedule.updates_per_step)
    parameters = sum(param.numel() for param in parts.learner.online.parameters())
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else hardware.cpu_name()
    groups = "synchronous" if envs.synchronous else f"asynchronous groups of {envs.group_size}"
    fire = "" if parts.fire_action is None else ", FIRE after a lost life"
    cap = "no step cap" if envs.max_episode_steps is None else f"at most {envs.max_episode_steps:,} env steps a game"
    target = f"target copied every {config.target_update_period:,} env steps"
    if config.polyak > 0:
        target = f"target follows by {config.polyak:g} per update"
    falling = f", falling to {config.learning_rate_end:g}" if config.learning_rate_end > 0 else ""
    averaged = f"; weights averaged, decay {config.acting_ema:g}" if config.acting_ema > 0 else ""
    arithmetic = str(parts.learner.online.compute_dtype).removeprefix("torch.")
    kernels = "compiled" if parts.learner.compiled else "eager"
    if device.type == "cuda":
        kernels += ", CUDA graphs" if config.cuda_graphs else ", no CUDA graphs"
    lines = [
        f"fastdqn {__version__} · torch {torch.__version__} · {gpu}, {cores(hardware.cores())}",
        f"run       {folder}",
        f"preset    {preset_and_changes(config)}",
        f"env       {envs.env}: {envs.num_actions} actions, sticky {config.sticky_actions:g}, {cap}{fire}",
        f"budget    {config.total_frames:,} frames = {config.total_env_steps:,} env steps of {config.action_repeat}",
        f"replay    {ring.num_envs * ring.lane_length:,} frames in {ring.num_envs} lanes of {ring.lane_length:,}",
        f"memory    {parts.memory}",
        f"learning  from env step {config.learning_starts:,}: replay ratio {config.replay_ratio:g} = {updates:.4g} "
        f"updates of {config.batch_size} per env step, {target}",
        f"algorithm {config.algorithm}, learning rate {config.learning_rate:g}{falling}",
        f"explore   epsilon 1 until learning starts, then to {config.epsilon_end:g} over "
        f"{config.epsilon_decay_steps:,} env steps{averaged}",
        f"compute   {parameters:,} parameters, {arithmetic}, {kernels}; "
        f"{parts.threads.learn} torch and {envs.num_threads} EnvPool threads, {groups}"
        f"{', ' + parts.screen.on_device if parts.screen.on_device else ''}",
    ]
    more = [hardware.nvidia_without_cuda(), better_preset(config, device.type), small_ring(config), damped(config)]
    return lines + [f"note      {note}" for note in [*notes, *filter(None, more)]]


def small_ring(config: Config) -> str:
    """Whether fast's or cpu's ring was made too small to be drawn from that often; "" if not.

    Measured on Breakout at a constant learning rate: with 400,000 frames and ratio 8 it stands still from 6M frames on, at 4
    and 2 it does not, nor at 8 with a million (benchmarks/LOG.md, "The default and its ring").
    """
    most = config.replay_capacity / DRAWN
    given = config.replay_capacity < unchanged(config).replay_capacity and config.replay_ratio > most
    if not given or config.preset not in ("fast", "cpu") or not config.name.is_atari:
        return ""
    if config.total_env_steps < 4 * config.replay_capacity:
        return ""
    return (
        f"replay_capacity {config.replay_capacity:,} at replay ratio {config.replay_ratio:g}: drawn that often from so small a "
        f"ring, Breakout stands still after some million frames; --replay-ratio {most:.1g}"
    )


def damped(config: Config) -> str:
    """Whether fast's or cpu's steps of Adam were made small by importance weights; "" if not.

    Divided by the largest they leave a tenth of the gradient, and beside that `optimizer_eps` is no longer small: in the
    hidden layer steps are a third of plain DQN's. Measured on Breakout (benchmarks/LOG.md, "Why prioritised was behind").
    """
    added = config.prioritized and not unchanged(config).prioritized and config.preset in ("fast", "cpu")
    if not added or config.optimizer != "adam" or config.head != "q" or config.optimizer_eps < 1e-5:
        return ""
    return (
        f"prioritized True: importance weights make gradients small beside optimizer_eps {config.optimizer_eps:g}; on "
        "Breakout it learns sooner with --optimizer-eps 3e-6"
    )


def preset_and_changes(config: Config) -> str:
    """The preset, and what flags and a file changed of it."""
    before, shown = unchanged(config), {"env", "preset", "seed", *NOT_LEARNING}
    names = [field.name for field in fields(config) if field.name not in shown]
    changed = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(before, name)]
    base = "" if config.preset in preset_names() else " (the defaults)"
    return f"{config.preset}{base}{', but for ' if changed else ''}{', '.join(changed)}"


def better_preset(config: Config, device: str) -> str:
    """Which preset this task and device would rather have; "" if this one."""
    preset, env, is_atari = config.preset, config.name.canonical, config.name.is_atari
    tasks = {name: load_preset(name).name.canonical for name in ONE_TASK}
    own = "" if is_atari else next((name for name, task in tasks.items() if task == env), "")
    if preset in ("fast", "cpu") and own:
        return f"preset {preset} is made for Atari; for {env} take --preset {own}"
    if preset == "fast" and is_atari and device == "cpu" and config.replay_ratio == load_preset("fast").replay_ratio:
        return "preset fast is made for a GPU; on a CPU --preset cpu plays more frames an hour, in half the memory"
    better = own or ("" if not is_atari else "cpu" if device == "cpu" else "fast")
    if tasks.get(preset, env) == env or not better:
        return ""
    dies = ", and its network dies on Pong" if preset == "quick" and config.weight_init == "torch" else ""
    return f"preset {preset} is made for {tasks[preset]}{dies}; for {env} take --preset {better}"
