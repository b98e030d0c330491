"""A profile of a few iterations: trace, kernel table, and a verdict in words."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# calls on which the host waits for the device, and the ATen operations that hide one
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "aten::_local_scalar_dense",
    "aten::nonzero",
)


_ITERATION = "fastdqn iteration"


@dataclass(frozen=True)
class Verdict:
    """What a capture says. Times in seconds."""

    device: str
    iterations: int
    wall_seconds: float
    busy_fraction: float | None  # of the wall time; None on a CPU, and where no kernel was seen
    gaps: list[float]  # idle stretches of the GPU, longest first
    operations: list[tuple[str, float, int]]  # name, seconds on the device, calls; longest first
    waits: list[tuple[str, str, int]]  # call, file:line, count
    phases: dict[str, float]

    def text(self) -> str:
        """The verdict in Markdown."""
        per = self.wall_seconds / self.iterations
        lines = [f"{self.iterations} iterations on {self.device}, {per * 1e3:.2f} ms each.", ""]
        total = sum(self.phases.values()) or 1.0
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.phases.items())
        lines.append(f"The host's time: {shares}.")
        waits = "The host waits for the device at:" if self.waits else "No wait of the host was found."
        if self.device == "CPU":
            waits = "Values of tensors are read, which costs nothing on a CPU, at:" if self.waits else ""
        elif self.busy_fraction is None:
            lines.append("No kernel was seen on the GPU: a container may forbid what the profiler needs.")
        else:
            lines.append(f"The GPU is busy {self.busy_fraction:.0%} of the time.")
            if self.gaps:
                lines.append(
                    f"{len(self.gaps)} gaps, {sum(self.gaps) / self.iterations * 1e3:.2f} ms an iteration, the longest "
                    f"{self.gaps[0] * 1e3:.2f} ms."
                )
        lines += ["", "| operation | ms an iteration | calls an iteration |", "| --- | ---: | ---: |"]
        lines += [
            f"| `{name[:70]}` | {seconds / self.iterations * 1e3:.3f} | {calls / self.iterations:.1f} |"
            for name, seconds, calls in self.operations[:15]
        ]
        lines += ["", waits] if waits else []
        lines += [
            f"- {call} at {place}, {count / self.iterations:.1f} an iteration" for call, place, count in self.waits
        ]
        return "\n".join([*lines, "", *(f"- {line}" for line in advise(self)), ""])


def capture(
    step: Callable[[], None], out: Path, device: torch.device, phase_seconds: dict[str, float], iterations: int = 10
) -> Verdict:
    """Profiles `iterations` calls of `step`; leaves trace.json.gz, kernels.txt, verdict.md and, on CUDA, memory.snapshot.

    `step` is warm already: compiled, captured, learning. `phase_seconds` is the host's running account of its phases.
    The trace opens in https://ui.perfetto.dev. A second, shorter pass records stacks, which would swell the trace.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    out.mkdir(parents=True, exist_ok=True)
    if cuda:
        torch.cuda.memory._record_memory_history(max_entries=100_000)
    schedule = torch.profiler.schedule(wait=0, warmup=3, active=iterations, repeat=1)
    with profile(activities=activities, schedule=schedule, acc_events=True) as profiler:
        for turn in range(3 + iterations):
            if turn == 3:
                before = dict(phase_seconds)
            with torch.profiler.record_function(_ITERATION):
                step()
            if cuda and turn == 2 + iterations:
                torch.cuda.synchronize(device)
            profiler.step()
    phases = {name: phase_seconds[name] - before[name] for name in phase_seconds}
    profiler.export_chrome_trace(str(out / "trace.json.gz"))
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    averages = profiler.key_averages()
    (out / "kernels.txt").write_text(
        averages.table(sort_by=key, row_limit=50, max_name_column_width=80), encoding="utf-8"
    )
    if cuda:
        torch.cuda.memory._dump_snapshot(str(out / "memory.snapshot"))
        torch.cuda.memory._record_memory_history(enabled=None)
    events = list(profiler.events() or [])
    steps = [event.time_range for event in events if event.name == _ITERATION]
    start, end = min(span.start for span in steps), max(span.end for span in steps)
    spans = kernel_spans(events)
    busy, gaps = occupancy(spans, start, end) if spans else (None, [])
    operations = [
        (row.key, getattr(row, key) / 1e6, row.count)
        for row in sorted(averages, key=lambda row: -getattr(row, key))
        # of an operation that launched kernels the time on the device is theirs, which have rows of their own
        if row.key != _ITERATION
        and not row.key.startswith("ProfilerStep")
        and (not cuda or (row.device_type == DeviceType.CUDA and not row.is_user_annotation))
    ]
    verdict = Verdict(
        device=torch.cuda.get_device_name(device) if cuda else "CPU",
        iterations=iterations,
        wall_seconds=(end - start) / 1e6,
        busy_fraction=busy,
        gaps=[gap / 1e6 for gap in gaps],
        operations=operations,
        waits=_waits(step, activities, iterations),
        phases=phases,
    )
    (out / "verdict.md").write_text(verdict.text(), encoding="utf-8")
    return verdict


def kernel_spans(events: Iterable[Any]) -> list[tuple[float, float]]:
    """When kernels and copies ran on a GPU; empty on a CPU, or where a container forbids what the profiler needs."""
    kernels = (e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
    return [(kernel.time_range.start, kernel.time_range.end) for kernel in kernels]


def occupancy(spans: Iterable[tuple[float, float]], start: float, end: float) -> tuple[float, list[float]]:
    """Share of [start, end] covered by the union of `spans`, and the stretches it leaves, longest first."""
    covered, gaps, reached = 0.0, [], start
    for left, right in sorted(spans):
        left, right = max(left, reached), min(right, end)
        if right <= left:
            continue
        if left > reached:
            gaps.append(left - reached)
        covered, reached = covered + right - left, right
    if end > reached:
        gaps.append(end - reached)
    return covered / (end - start), sorted(gaps, reverse=True)


def advise(verdict: Verdict) -> list[str]:
    """What to try, from what was seen."""
    total = sum(verdict.phases.values()) or 1.0
    share = {name: seconds / total for name, seconds in verdict.phases.items()}
    advice = []
    if share.get("env", 0) > 0.5:
        idle = "" if verdict.busy_fraction is None else "; the device has time for a higher replay ratio"
        advice.append(f"The games are the limit: more cores or --env-threads{idle}.")
    if verdict.busy_fraction is not None and verdict.busy_fraction > 0.9:
        advice.append(
            "The GPU is the limit: a larger --batch-size at the same replay ratio costs fewer kernels a sample."
        )
    if verdict.device == "CPU" and share.get("learn", 0) > 0.5:
        advice.append("The updates are the limit: a lower --replay-ratio, a larger --batch-size, or a GPU.")
    if share.get("act", 0) > 0.3:
        advice.append("Acting takes long: more --num-envs spread its fixed cost over larger groups.")
    if share.get("log", 0) > 0.01:
        advice.append(f"Logging takes {share['log']:.1%} of the loop; it should stay below 1 %.")
    return advice or ["Nothing stands out."]


def _waits(step: Callable[[], None], activities: list[Any], iterations: int) -> list[tuple[str, str, int]]:
    verbose = _ExperimentalConfig(verbose=True)  # without it torch 2.11 leaves events without their stacks
    with profile(activities=activities, with_stack=True, acc_events=True, experimental_config=verbose) as profiler:
        for _ in range(iterations):
            step()
    places: Counter[tuple[str, str]] = Counter()
    for event in profiler.events() or []:
        if event.name in WAITS and not (place := _place(event)).startswith(
            "fastdqn/profiling.py"
        ):  # the profiler's own
            places[event.name, place] += 1
    return [(name, place, count) for (name, place), count in places.most_common()]


def _place(event: Any) -> str:
    """file:line of the innermost frame of ours around an event."""
    frames = list(event.stack or [])
    while event is not None:
        frames.append(event.name)
        event = event.cpu_parent
    for name in frames:
        if "fastdqn/" in name and "): " in name:  # python frames are named path(line): function
            return "fastdqn/" + name.rsplit("fastdqn/", 1)[1].replace("(", ":", 1).replace("): ", " in ", 1)
    return "a place without a stack"
