"""What this machine is and can do: device, bf16, compiler, cores. Nothing here decides silently; the plan prints it."""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch

from fastdqn.errors import UsageError
from fastdqn.machine import version
from fastdqn.machine.control_groups import core_limit


def cores() -> int:
    """Cores this process may run on, and whose time its control groups allow: more threads would be held up."""
    seen, limit = len(os.sched_getaffinity(0)), core_limit()
    return seen if limit is None else max(min(seen, int(limit)), 1)


def thread_counts(cores: int, num_envs: int, device: str) -> tuple[int, int]:
    """EnvPool's and torch's threads on so many cores; `device` is "cpu" or "cuda".

    On a GPU torch's host side needs one thread.

    On a CPU both share the cores. One core is left out of torch's team: OpenMP's barriers wait for the slowest member,
    so a single thread that loses its core to a game or to another program holds all of them up. Half the cores play:
    there the updates are the bottleneck, and fewer games stand in their way (measured, benchmarks/LOG.md).
    """
    if device == "cpu":
        return min(num_envs, max(cores // 2, 1)), max(cores - 1, 1)
    return min(num_envs, cores), 1


def resolve_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """auto, cpu or cuda -> a device that exists; of several ranks on a machine each has a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda: this torch has no CUDA device; use --device cpu or install a CUDA build of torch"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"nproc-per-node: rank {local_rank} finds {torch.cuda.device_count()} GPUs; start one process for each"
        )
    if local_rank == 0:
        return torch.device("cuda")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def use_tf32(on: bool) -> None:
    """Whether CUDA's float32 products and convolutions round their factors to 11 bits. Torch's convolutions do by default.

    Products of bfloat16 sum up in float32 either way; by default the parts of a long sum may be added in bfloat16.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def cpu_name() -> str:
    """The processor's own name for itself, with the marks of the instruction sets that matter here."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    marks = _bf16_flags()
    return f"{name} ({', '.join(marks)})" if marks else name


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native on the device; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(_bf16_flags())


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can build its kernels: a compiler, for CUDA of C, which Triton calls, with Python's headers."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return False
    variable, *names = ("CC", "gcc", "clang") if device.type == "cuda" else ("CXX", "g++", "clang++", "c++")
    return any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name)


def nvidia_without_cuda() -> str | None:
    """One line when the machine has an NVIDIA device that this torch cannot use, else None."""
    seen = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    if not seen or torch.cuda.is_available():
        return None
    build = "is a CPU build" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
    return f"this machine has an NVIDIA device, but torch {torch.__version__} {build}; training on the CPU"


def driver() -> str | None:
    """Version of the NVIDIA driver; None where none is loaded."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found and found[0]


def environment() -> dict[str, Any]:
    """Versions, processor, GPU and commit: what environment.json records."""
    packages = ("torch", "envpool", "numpy", "tensordict", "fastdqn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "commit": commit(),
        **{name: version(name) for name in packages},
    }


def commit() -> str | None:
    """The commit of this checkout, marked `+changes` when files differ; FASTDQN_COMMIT where there is no .git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return os.environ.get("FASTDQN_COMMIT")
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FASTDQN_COMMIT")
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _bf16_flags() -> list[str]:
    """The instruction sets of this processor that compute in bfloat16."""
    flags = _cpuinfo("flags").split()
    return [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]


def _cpuinfo(field: str) -> str:
    """What the kernel says of the first processor; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
