"""How every benchmark measures: cases in turns, calls in windows, processes of their own, figures with their spread."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from fastdqn.errors import UsageError
from fastdqn.machine import hardware

Case = TypeVar("Case")


def turns(cases: Iterable[Case], count: int, keep: Callable[[], object] = lambda: None) -> Iterator[Case]:
    """Every case once a turn, forwards and backwards in alternation, so that drift of a shared machine cancels.

    After each turn it calls `keep`, for what would be lost if the program were cut off, see `publish.keep`.
    """
    forwards = list(cases)
    for turn in range(count):
        yield from forwards if turn % 2 == 0 else reversed(forwards)
        keep()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with lowest and highest, because these machines are shared."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Each value to the base of its own turn, so that what slows a whole turn down cancels."""
    return [value / base for value, base in zip(values, bases, strict=True)]


def synchronise(device: torch.device) -> None:
    """Waits until everything queued on a GPU has run; a CPU queues nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(function: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Mean time of a call over a window of at least `seconds`."""
    calls, batch = 0, 1
    synchronise(device)
    started = time.perf_counter()
    while True:
        for _ in range(batch):
            function()
        synchronise(device)
        calls, elapsed = calls + batch, time.perf_counter() - started
        if elapsed >= seconds:
            return elapsed / calls
        batch = calls  # doubled, so that hardly any call is followed by a wait for the device


def last_json(
    command: Sequence[str], *, environment: Mapping[str, str] = {}, timeout: float | None = None
) -> dict[str, Any]:
    """The last JSON object on the stdout of a child process; ends the program where there is none.

    However the child ends: what was measured by then counts.
    """
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"no result after {timeout:.0f} s of {' '.join(command)}") from None
    objects = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if not objects:
        raise SystemExit(f"exit code {child.returncode} and no result of {' '.join(command)}\n{child.stderr}".strip())
    return json.loads(objects[-1])


def device_of(name: str) -> torch.device:
    """auto, cpu or cuda -> the device; ends the program in one line where there is none of that name."""
    try:
        return hardware.resolve_device(name)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
