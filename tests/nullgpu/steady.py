"""CUDA calls per group of games in steady state: run.sh python tests/nullgpu/steady.py PRESET [field=value ...].

With NULLGPU_STEADY_TRACE=FILE every call of two more groups is written there, in order.
"""

import ast
import ctypes
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from fastdqn.config import load_preset
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group

GROUPS = 200
NULL = ctypes.CDLL(os.path.join(os.environ["NULLGPU"], "libnullgpu.so"))


def counted() -> Counter[str]:
    """Calls so far, by name."""
    buffer = ctypes.create_string_buffer(1 << 16)
    NULL.nullgpu_counters(buffer, ctypes.c_size_t(len(buffer)))
    counts: Counter[str] = Counter()
    for line in buffer.value.decode().splitlines():
        name, n = line.rsplit(" ", 1)
        counts[name] += int(n)
    return counts


def value(text: str) -> Any:
    """A field's value: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main(preset: str, *fields: str) -> None:
    """Trains until updates are routine, then counts."""
    changes = {name: value(text) for name, _, text in (field.partition("=") for field in fields)}
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        config = replace(load_preset(preset), device="cuda", ui="quiet", run_dir=f"{folder}/run")
        run = Run(replace(config, **changes), ["steady"])
        run.envs.start()
        while run.clock.updates < 50:
            step_group(run)
        before, clock = counted(), replace(run.clock)
        device_bytes, allocations = torch.cuda.memory_allocated(), torch.cuda.memory_stats()["allocation.all.allocated"]
        for _ in range(GROUPS):
            step_group(run)
        calls = counted() - before
        more = torch.cuda.memory_stats()["allocation.all.allocated"] - allocations
        print(f"{GROUPS} groups, {run.clock.updates - clock.updates} updates", end=", ")
        print(f"{run.clock.target_syncs - clock.target_syncs} copies to the target network;", end=" ")
        print(f"device memory +{torch.cuda.memory_allocated() - device_bytes} bytes, {more} allocations")
        for name in sorted(calls):
            print(f"  {name:34} {calls[name] / GROUPS:9.3f} per group")
        if path := os.environ.get("NULLGPU_STEADY_TRACE"):
            NULL.nullgpu_trace(path.encode())
            for _ in range(2):
                NULL.nullgpu_note(b"group")
                step_group(run)
            NULL.nullgpu_trace(None)
        run.envs.close()
        run.folder.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
