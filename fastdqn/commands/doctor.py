"""`fastdqn doctor`: can this machine train? Every check does the thing itself where that takes seconds.

A check that raises has failed: its exception is the finding. So nothing that may be broken is imported up here.
"""

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from fastdqn.atari import GAMES, num_actions
from fastdqn.commands import JsonFlags, emit
from fastdqn.config import Config
from fastdqn.machine import version

FRAME = (84, 84)
DISK_BYTES = 1_000_000_000  # two checkpoints of the largest preset, logs and videos, with room
EXTRAS = {
    "tensorboard": ("tensorboard", "--track tensorboard"),
    "wandb": ("wandb", "--track wandb"),
    "video": ("imageio-ffmpeg", "fastdqn record -o agent.mp4"),
    "scale": ("ray", "fastdqn sweep"),
}


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Checks what training needs on this machine, and says how to get what is missing. Exit code 1: training would fail."""


class Finding(NamedTuple):
    """What a check found: warning is slower or less, failed is no training."""

    state: Literal["ok", "warning", "failed"]
    says: str
    remedy: str = ""


def main(flags: Flags) -> int:
    found = {}
    for name, (check, remedy) in CHECKS.items():
        found[name] = examine(check, remedy)
        # one by one, so that a crash below Python shows where
        print(line(name, found[name]), file=sys.stderr if flags.json else sys.stdout, flush=True)
    failed = [name for name, finding in found.items() if finding.state == "failed"]
    text = f"\nnot ready to train: {', '.join(failed)}" if failed else "\nready to train"
    checks = [{"check": name, **finding._asdict()} for name, finding in found.items()]
    emit(text, {"ready": not failed, "failed": failed, "checks": checks}, as_json=flags.json)
    return 1 if failed else 0


def examine(check: Callable[[], Finding], remedy: str) -> Finding:
    """The check's finding; a failure with `remedy` where it raises."""
    try:
        return check()
    except Exception as error:  # whatever is broken here is what one wants to know
        reason = str(error).strip().splitlines() or [""]
        return Finding("failed", f"{type(error).__name__}: {reason[0]}", remedy)


def line(name: str, finding: Finding) -> str:
    """The finding for people; the remedy on a line of its own, to copy."""
    text = f"{finding.state:9}{name:13}{finding.says}"
    return f"{text}\n{'':22}-> {finding.remedy}" if finding.remedy else text


def check_python() -> Finding:
    return Finding("ok", f"{platform.python_version()}, {sys.executable}")


def check_torch() -> Finding:
    import torch

    enough = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
    return Finding("ok" if enough else "failed", torch.__version__, "" if enough else "pip install 'torch>=2.10'")


def check_cuda() -> Finding:
    import torch

    from fastdqn.graphs import Graph
    from fastdqn.machine import hardware

    unusable = hardware.nvidia_without_cuda()
    if unusable is not None and torch.version.cuda is None:
        return Finding("warning", unusable, "pip install --force-reinstall torch, without a CPU index")
    if unusable is not None:
        seen = f"{unusable} (driver {hardware.driver() or 'unknown'})"
        return Finding("warning", seen, "update the NVIDIA driver, or install a torch for an older CUDA: pytorch.org")
    if not torch.cuda.is_available():
        return Finding("ok", "no NVIDIA device: training runs on the CPU")
    ones = torch.ones(256, 256, device="cuda")
    if (ones @ ones).sum().item() != 256**3:
        return Finding("failed", "a matrix product on the device came out wrong", "fastdqn train --device cpu")
    total = torch.zeros((), device="cuda")
    graph = Graph(lambda: total.add_(1), total.device)
    total.zero_()
    graph()
    if total.item() != 1:
        return Finding("failed", "a captured CUDA graph did something else", "fastdqn train --no-cuda-graphs")
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    says = f"{torch.cuda.get_device_name()}, {memory:.0f} GB, CUDA {torch.version.cuda}, driver {hardware.driver()}"
    return Finding("ok", says)


def check_envpool() -> Finding:
    """Steps a real game."""
    import numpy as np

    from fastdqn.envs import VectorEnv

    envs = VectorEnv("Breakout", num_envs=2, seed=1, synchronous=True, num_threads=1)
    try:
        envs.start()
        for _ in range(4):
            step = envs.recv()
            envs.send(np.ones(2, np.int32), step.env_id)
        frame = envs.recv().obs[0]
    finally:
        envs.close()
    if frame.shape != FRAME or frame.min() == frame.max():
        return Finding("failed", "Breakout came back without a picture", "pip install --force-reinstall envpool")
    missing = sorted(set(GAMES) - {"".join(map(str.capitalize, rom.split("_"))) for rom in roms()})
    says = f"envpool {version('envpool')}: Breakout stepped, {len(GAMES) - len(missing)} ROMs of {len(GAMES)}"
    if missing:
        return Finding("warning", f"{says}, no {missing[0]}", "pip install --force-reinstall envpool envpool-assets")
    return Finding("ok", says)


def roms() -> set[str]:
    """The ROMs that EnvPool finds, in its own spelling ("space_invaders")."""
    packages = (importlib.util.find_spec(name) for name in ("envpool", "envpool_assets"))
    roots = [folder for package in packages if package for folder in package.submodule_search_locations or ()]
    if override := os.environ.get("ENVPOOL_ASSETS_PATH"):
        roots = [override]
    return {path.stem for root in roots for path in Path(root, "atari", "roms").glob("*.bin")}


def check_compiler() -> Finding:
    """Compiles and runs a new kernel."""
    import torch

    from fastdqn.machine import hardware

    device = hardware.resolve_device()
    if not hardware.has_compiler(device):
        return Finding(
            "warning", "no C++ compiler with Python.h: half the learning speed", "apt install g++ python3-dev"
        )
    factor = time.time_ns() % 1_000_003 + 2.0  # part of the kernel's source, so that no cached one answers
    started = time.perf_counter()
    result = torch.compile(lambda x: x * factor + 1, dynamic=False)(torch.ones(64, device=device))
    seconds = time.perf_counter() - started
    if not torch.equal(result.cpu(), torch.ones(64) * factor + 1):
        return Finding("failed", "a compiled kernel computes something else", "fastdqn train --no-compile")
    return Finding("ok", f"torch.compile built a kernel for {device} in {seconds:.1f} s")


def check_bf16() -> Finding:
    from fastdqn.machine import hardware

    device = hardware.resolve_device()
    name = hardware.cpu_name() if device.type == "cpu" else str(device)
    if hardware.has_bf16(device):
        return Finding("ok", f"native on {name}")
    remedy = "nothing to install: a CPU with AVX512-BF16 or AMX has it, and NVIDIA since Ampere"
    return Finding("warning", f"not native on {name}: networks compute in float32, more slowly", remedy)


def check_memory() -> Finding:
    """The largest ring of standard frames, with room for the rest of training."""
    from fastdqn.machine import hardware
    from fastdqn.machine.memory import free_bytes

    device, wanted = hardware.resolve_device(), Config.replay_capacity
    fits, rest = largest_ring(free := free_bytes(device))
    says = f"{free / 1e9:.1f} GB free on {device}, a ring of {fits:,} frames fits (default {wanted:,})"
    if fits >= wanted:
        return Finding("ok", says)
    if fits == 0:
        return Finding("failed", says, f"end other programs: training needs {rest / 1e9:.2f} GB beside the ring")
    return Finding("warning", says, f"fastdqn train --replay-capacity {fits}, or end other programs")


def largest_ring(free: int) -> tuple[int, int]:
    """Frames of the largest ring that `fastdqn train` accepts in `free` bytes, and the bytes that it keeps for the rest."""
    import torch

    from fastdqn.machine import hardware, preflight
    from fastdqn.machine.memory import largest_capacity, row_bytes
    from fastdqn.networks import QNetwork
    from fastdqn.screens import screen_of

    # not parts.needs: that imports EnvPool, which may be what is broken here
    device, config = hardware.resolve_device(), Config().resolved()[0]
    screen = screen_of(config.observation, resize_on_device=device.type == "cuda", device=device)
    dtype = torch.bfloat16 if hardware.has_bf16(device) else torch.float32
    with torch.device("meta"):
        network = QNetwork(screen.obs_shape(config.frame_stack), num_actions(config.name), compute_dtype=dtype)
    rest = preflight.rest_of(preflight.needs_of(config, device, screen, network, compile=True), device)
    return largest_capacity(free - rest, config.num_envs, row_bytes(FRAME, torch.uint8)), rest


def check_cores() -> Finding:
    from fastdqn.machine import hardware
    from fastdqn.machine.control_groups import core_limit

    here, machine, limit = hardware.cores(), os.cpu_count() or 1, core_limit()
    says = f"{here} of the machine's {machine}"
    if limit is None:
        return Finding("ok", says + ", no limit by a control group")
    says += f", the control group allows the time of {limit:g}"
    # one core has to play, learn and emulate in turn
    return Finding("warning", says, "raise the limit (docker --cpus)") if limit < 2 else Finding("ok", says)


def check_disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    says, remedy = f"{free / 1e9:.1f} GB free in {here}", "change the folder, or fastdqn train --run-dir ELSEWHERE"
    if not os.access(here, os.W_OK):
        return Finding("failed", f"{here} cannot be written", remedy)
    return Finding("ok", says) if free >= DISK_BYTES else Finding("warning", says, remedy)


def check_extra(name: str) -> Finding:
    package, purpose = EXTRAS[name]
    if found := version(package):
        return Finding("ok", f"{package} {found}")
    return Finding("warning", f"not installed; {purpose} needs it", f"pip install 'fastdqn[{name}]'")


# what to check, and the remedy where the check itself breaks
CHECKS: dict[str, tuple[Callable[[], Finding], str]] = {
    "python": (check_python, "reinstall Python"),
    "torch": (check_torch, "pip install --force-reinstall torch"),
    "cuda": (check_cuda, "fastdqn train --device cpu, or update the NVIDIA driver"),
    "envpool": (check_envpool, "pip install --force-reinstall envpool"),
    "compiler": (check_compiler, "apt install g++ python3-dev, or fastdqn train --no-compile"),
    "bf16": (check_bf16, "pip install --force-reinstall torch"),
    "memory": (check_memory, "pip install --force-reinstall torch"),
    "cores": (check_cores, "pip install --force-reinstall torch"),
    "disk": (check_disk, "change to a folder that exists"),
    **{name: (partial(check_extra, name), f"pip install 'fastdqn[{name}]'") for name in EXTRAS},
}
