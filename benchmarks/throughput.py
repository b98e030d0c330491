"""The ladder: EnvPool alone, then with staging + append + act, then with learning, all in one interleaved run.

    python -m benchmarks.throughput [--env Breakout] [--num-envs 16,64,256] [--replay-ratio 8,4,2,1] [--quick]

Every rung plays uniformly random actions (the network runs, epsilon is 1), because the action distribution alone moves
EnvPool's rate by 20 %, and only decisions count as steps, never reset rows. Rungs take turns, forwards and backwards,
so that drift of a shared machine cancels; each figure is the median of the repeats with lowest and highest.

    (a)     EnvPool alone in exactly the training run's pool settings, driven by ready-made random actions
    (b)     EnvPool alone at 84x84 with its own area resize, at its best of several num_envs, batch sizes and threads
    act     staging, append to the ring, stack, network, epsilon-greedy; no learning
    train   the same with updates at the replay ratio
"""

import argparse
import contextlib
import gc
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastdqn import hardware
from fastdqn.config import Config
from fastdqn.envs import VectorEnv
from fastdqn.metrics import resident_bytes
from fastdqn.run import Run
from fastdqn.screens import FRAME_SHAPE, SCREEN_SHAPE
from fastdqn.trainer import no_garbage_collection, step_group

Group = Callable[[], int]  # plays one group, returns the env steps it took


def alone(envs: VectorEnv) -> Group:
    """EnvPool itself, without our wrapper's checks."""
    pool, draw = envs._pool, np.random.default_rng(0)
    actions = draw.integers(0, envs.num_actions, (997, envs.group_size)).astype(np.int32)
    turn = 0
    envs.start()

    def group() -> int:
        nonlocal turn
        info = pool.recv()[4]
        pool.send(actions[turn % 997], info["env_id"])
        turn += 1
        return int(np.count_nonzero(info["elapsed_step"]))

    return group


def trained(run: Run) -> Group:
    """The training loop."""
    run.envs.start()

    def group() -> int:
        before = run.clock.env_steps
        step_group(run)
        return run.clock.env_steps - before

    return group


def rate(group: Group, seconds: float) -> float:
    """Env steps per second over a window of whole groups."""
    started, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        steps += group()
    return steps / elapsed


def make_run(config: Config, replay_ratio: float, folder: str) -> Run:
    """A run of the training loop at epsilon 1 that learns from the first moment on, or never."""
    rows = config.num_envs * (config.frame_stack + config.n_step + 1)
    name = f"{folder}/{config.num_envs}-{replay_ratio}"
    return Run(
        replace(config, replay_ratio=replay_ratio, learning_starts=rows, epsilon_end=1.0, run_dir=name), ["bench"]
    )


def best_alone(env: str, sizes: list[int], seconds: float) -> tuple[VectorEnv, Group, str]:
    """EnvPool alone at 84x84 at the fastest of several settings, each tried for `seconds`, and what they are."""
    cores, best = hardware.cores(), None
    for num_envs in sizes:
        for share in (2, 4):
            envs = VectorEnv(
                env, num_envs=num_envs, batch_size=num_envs // share, seed=7, num_threads=cores, stall_seconds=0
            )
            group = alone(envs)
            rate(group, 1.0)
            found = rate(group, seconds), envs, group, f"{num_envs} envs, groups of {envs.group_size}, {cores} threads"
            if best is None or found[0] > best[0]:
                best, found = found, best
            if found is not None:
                found[1].close()
    assert best is not None, "at least one size is tried"
    return best[1:]


def busy_fraction(group: Group, groups: int = 50) -> float | None:
    """Share of the wall time in which a kernel or copy ran on the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        for _ in range(groups):
            group()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return sum(event.device_time for event in profiler.events() or []) / 1e6 / seconds  # one stream: nothing overlaps


def limit(phase_seconds: dict[str, float]) -> str:
    """The phase that took most of the loop's time, in words."""
    words = {
        "env": "the games: the loop waits for EnvPool",
        "append": "staging: packing groups on the host",
        "act": "acting: choosing the actions",
        "learn": "learning: the updates",
        "log": "logging",
    }
    longest = max(phase_seconds, key=lambda name: phase_seconds[name])
    return f"{words[longest]} ({phase_seconds[longest] / sum(phase_seconds.values()):.0%} of the loop)"


def ladder(config: Config, ratios: list[float], seconds: float, repeats: int, sizes: list[int]) -> dict:
    """All rungs for one num_envs. Rates in env steps per second."""
    if torch.cuda.is_available():  # the last ladder's memory is not this one's
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        started = time.perf_counter()
        runs = {"act": make_run(config, 0.0, folder)}
        build_seconds = time.perf_counter() - started
        runs |= {f"train, replay ratio {ratio:g}": make_run(config, ratio, folder) for ratio in ratios}
        settings = runs["act"].envs
        bare = VectorEnv(
            config.env, num_envs=config.num_envs, seed=7, num_threads=settings.num_threads, stall_seconds=0,
            image_size=SCREEN_SHAPE if settings.obs_shape == SCREEN_SHAPE else FRAME_SHAPE,
        )  # fmt: skip
        best, group_b, settings_b = best_alone(config.env, sizes, min(1.5, seconds))
        rungs = {"EnvPool alone (a)": alone(bare), "EnvPool at its best (b)": group_b}
        rungs |= {name: trained(run) for name, run in runs.items()}
        for group in rungs.values():
            rate(group, min(2.0, seconds))  # warm-up: games under way, learning started
        for run in runs.values():
            run.phase.seconds.update(dict.fromkeys(run.phase.seconds, 0.0))
        updates = {name: run.clock.updates for name, run in runs.items()}
        rates: dict[str, list[float]] = {name: [] for name in rungs}
        for turn in range(repeats):
            for name in list(rungs)[:: 1 if turn % 2 == 0 else -1]:
                # the rungs that wait keep their threads idle: no group of theirs is being stepped
                rates[name].append(rate(rungs[name], seconds))
        a, b = (rates[name] for name in list(rungs)[:2])
        rows = []
        for name, values in rates.items():
            row: dict = {
                "rung": name,
                "env_steps_per_second": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
                "of_a": statistics.median(value / base for value, base in zip(values, a, strict=True)),
                "of_b": statistics.median(value / base for value, base in zip(values, b, strict=True)),
            }
            if name in runs:
                per_second = (runs[name].clock.updates - updates[name]) / (seconds * repeats)
                row |= {
                    "updates_per_second": per_second,
                    "samples_per_second": per_second * config.batch_size,
                    "gpu_busy": busy_fraction(rungs[name]),
                    "limit": limit(runs[name].phase.seconds),
                }
            rows.append(row)
        gpu_bytes = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
        for envs in (bare, best, *(run.envs for run in runs.values())):
            envs.close()  # or its watchdog keeps a whole run alive
        return {
            "num_envs": config.num_envs,
            "compute": next(line for line in runs["act"].plan if line.startswith("compute")),
            "settings_b": settings_b,
            "build_and_compile_seconds": build_seconds,
            "memory_bytes": resident_bytes(),
            "gpu_memory_bytes": gpu_bytes,
            "rungs": rows,
        }


def table(env: str, result: dict, seconds: float, repeats: int) -> str:
    """One ladder for people."""
    memory = f"{result['memory_bytes'] / 1e9:.1f} GB of host memory for all rungs together"
    if result["gpu_memory_bytes"]:
        memory += f", {result['gpu_memory_bytes'] / 1e9:.1f} GB of GPU memory"
    lines = [
        f"\n{env}, {result['num_envs']} envs, {repeats} x {seconds:g} s a rung, interleaved",
        result["compute"],
        f"(b)       {result['settings_b']}",
        f"excluded  {result['build_and_compile_seconds']:.1f} s to build and compile one run; 2 s warm-up a rung",
        f"memory    {memory}",
        f"{'rung':26}{'frames/s':>10}{'lowest':>9}{'highest':>9}{'of (a)':>8}{'of (b)':>8}"
        f"{'updates/s':>11}{'samples/s':>11}{'GPU busy':>10}  limited by",
    ]
    for row in result["rungs"]:
        busy = f"{row['gpu_busy']:.0%}" if row.get("gpu_busy") is not None else "-"
        learns = f"{row['updates_per_second']:11,.1f}{row['samples_per_second']:11,.0f}" if "limit" in row else " " * 22
        lines.append(
            f"{row['rung']:26}{row['env_steps_per_second'] * 4:10,.0f}{row['lowest'] * 4:9,.0f}"
            f"{row['highest'] * 4:9,.0f}{row['of_a']:8.1%}{row['of_b']:8.1%}{learns}{busy:>10}  {row.get('limit', '')}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--num-envs", default="64", help="one or several, separated by commas")
    parser.add_argument("--replay-ratio", default="8", help="one or several, separated by commas; empty for none")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--replay-capacity", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--resize", default="auto", choices=["auto", "device", "env"])
    parser.add_argument("--env-threads", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 repeats of 3 seconds, two settings tried for (b)")
    parser.add_argument("--json", type=Path, help="also write the object to this file")
    flags = parser.parse_args()
    seconds, repeats = (3.0, 3) if flags.quick else (flags.seconds, flags.repeats)
    ratios = [float(ratio) for ratio in flags.replay_ratio.split(",") if ratio]
    config = replace(
        Config(), env=flags.env, device=flags.device, ui="quiet", total_frames=10**12, batch_size=flags.batch_size,
        replay_capacity=flags.replay_capacity, env_threads=flags.env_threads, torch_threads=flags.torch_threads,
        resize=flags.resize, checkpoint_period_frames=10**12,
    )  # fmt: skip
    results = []
    for num_envs in map(int, flags.num_envs.split(",")):
        sizes = [64] if flags.quick else [64, 128, 256]
        with contextlib.redirect_stdout(io.StringIO()):
            result = ladder(replace(config, num_envs=num_envs), ratios, seconds, repeats, sizes)
        results.append(result)
        print(table(flags.env, result, seconds, repeats))
    report = {"benchmark": "throughput", "env": flags.env, "seconds": seconds, "repeats": repeats,
              "environment": hardware.environment(), "results": results}  # fmt: skip
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
