"""The ladder: EnvPool alone, then with staging + append + act, then with learning, all in one interleaved run.

    python -m benchmarks.throughput [--env Breakout] [--num-envs 16,64,256] [--replay-ratio 8,4,2,1] [--quick]

Every rung plays uniformly random actions (the network runs, epsilon is 1), because the action distribution alone moves
EnvPool's rate by 20 %, and only decisions count as steps, never reset rows. Rungs take turns, forwards and backwards,
so that drift of a shared machine cancels; each figure is the median of the repeats with lowest and highest.

    (a)     EnvPool alone in exactly the training run's pool settings, driven by ready-made random actions
    (b)     EnvPool alone at 84x84 with its own area resize, one thread a core, at the best of several num_envs and
            batch sizes: the one with the highest median of three interleaved tries
    act     staging, append to the ring, stack, network, epsilon-greedy; no learning
    train   the same with updates at the replay ratio
"""

import contextlib
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.publish import arguments, keep, write
from benchmarks.timing import ratios, spread, synchronise, turns
from fastdqn.config import Config
from fastdqn.envs import VectorEnv
from fastdqn.metrics import resident_bytes
from fastdqn.parts import make_envs
from fastdqn.profiling import kernel_spans, occupancy
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group

BEST_SIZES = [16, 32, 64, 256]  # num_envs that are tried for (b)


class Rung(NamedTuple):
    """Something that plays in groups of a pool's envs."""

    group: Callable[[], tuple[int, int]]  # plays one group, returns its env steps and updates
    waiting: int  # groups that the pool steps by itself while the rung waits for its turn


class Rates(NamedTuple):
    """A second of one window."""

    env_steps: float
    updates: float


def alone(envs: VectorEnv) -> Rung:
    """EnvPool itself, without our wrapper's checks."""
    pool, draw = envs._pool, np.random.default_rng(0)
    actions = draw.integers(0, envs.num_actions, (997, envs.group_size)).astype(np.int32)
    turn = 0
    envs.start()

    def group() -> tuple[int, int]:
        nonlocal turn
        info = pool.recv()[4]
        pool.send(actions[turn % 997], info["env_id"])
        turn += 1
        return int(np.count_nonzero(info["elapsed_step"])), 0

    return Rung(group, -(-envs.num_envs // envs.group_size))


def trained(run: Run) -> Rung:
    """The training loop."""
    run.envs.start()

    def group() -> tuple[int, int]:
        env_steps, updates = run.clock.env_steps, run.clock.updates
        step_group(run)
        return run.clock.env_steps - env_steps, run.clock.updates - updates

    return Rung(group, -(-run.envs.num_envs // run.envs.group_size))


def window(rung: Rung, seconds: float) -> Rates:
    """Rates over at least `seconds` of whole groups; what was stepped while the rung waited is received before."""
    for _ in range(rung.waiting):
        rung.group()
    env_steps = updates = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        more_steps, more_updates = rung.group()
        env_steps, updates = env_steps + more_steps, updates + more_updates
    return Rates(env_steps / elapsed, updates / elapsed)


def make_run(config: Config, replay_ratio: float, folder: str) -> Run:
    """A run of the training loop at epsilon 1 that learns from the first moment on, or never."""
    rows = config.num_envs * (config.frame_stack + config.n_step + 1)
    name = f"{folder}/{config.num_envs}-{replay_ratio}"
    return Run(
        replace(config, replay_ratio=replay_ratio, learning_starts=rows, epsilon_end=1.0, run_dir=name), ["bench"]
    )


def best_alone(env: str, sizes: list[int], seconds: float) -> tuple[VectorEnv, Rung, str]:
    """EnvPool alone at 84x84 at the fastest of several settings, each tried three times, and what they are."""
    pools = [
        VectorEnv(env, num_envs=size, batch_size=size // share, seed=7, stall_seconds=0)  # a thread for each core
        for size in sizes
        for share in (2, 4)
    ]
    tries = [(pool, alone(pool), []) for pool in pools]
    for _, rung, _ in tries:
        window(rung, min(1.0, seconds))
    for _, rung, found in turns(tries, 3):
        found.append(window(rung, seconds).env_steps)
    envs, rung, _ = max(tries, key=lambda one: statistics.median(one[2]))
    for pool in pools:
        if pool is not envs:
            pool.close()
    return envs, rung, f"{envs.num_envs} envs, groups of {envs.group_size}, {envs.num_threads} threads"


def busy_fraction(rung: Rung, device: torch.device, groups: int = 50) -> float | None:
    """Share of the time from the first kernel or copy on the GPU to the last in which one ran; None: none was seen."""
    if device.type != "cuda":
        return None
    synchronise(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(groups):
            rung.group()
        synchronise(device)
    spans = kernel_spans(profiler.events() or [])
    return occupancy(spans, min(spans)[0], max(end for _, end in spans))[0] if spans else None


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


def ladder(
    config: Config,
    replay_ratios: list[float],
    seconds: float,
    repeats: int,
    sizes: list[int],
    keep_found: Callable[[dict[str, list[Rates]]], object] = lambda _: None,
) -> dict:
    """All rungs for one num_envs. Rates in env steps per second. `keep_found` is called after each turn."""
    if torch.cuda.is_available():  # the last ladder's memory is not this one's
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        started = time.perf_counter()
        act = make_run(config, 0.0, folder)
        build_seconds = time.perf_counter() - started
        runs = {"act": act}
        runs |= {f"train, replay ratio {ratio:g}": make_run(config, ratio, folder) for ratio in replay_ratios}
        bare = make_envs(act.config, act.screen, act.threads.env, epoch=1)
        best, rung_b, settings_b = best_alone(config.env, sizes, min(1.5, seconds))
        rungs = {"EnvPool alone (a)": alone(bare), "EnvPool at its best (b)": rung_b}
        rungs |= {name: trained(run) for name, run in runs.items()}
        for rung in rungs.values():
            window(rung, min(2.0, seconds))  # warm-up: games under way, learning started
        for run in runs.values():
            run.phase.seconds.update(dict.fromkeys(run.phase.seconds, 0.0))
        found: dict[str, list[Rates]] = {name: [] for name in rungs}
        for name in turns(rungs, repeats, lambda: keep_found(found)):
            # the rungs that wait keep their threads idle: no group of theirs is being stepped
            found[name].append(window(rungs[name], seconds))
        rows = rows_of(found)
        for row in rows[2:]:
            run = runs[row["rung"]]
            row["samples_per_second"] = row["updates_per_second"]["median"] * config.batch_size
            row["limit"] = limit(run.phase.seconds)
            row["gpu_busy"] = busy_fraction(rungs[row["rung"]], run.device)
        gpu_bytes = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
        for envs in (bare, best, *(run.envs for run in runs.values())):
            envs.close()  # or its watchdog keeps a whole run alive
        return {
            "num_envs": config.num_envs,
            "frames_per_env_step": act.config.action_repeat,
            "compute": next(line for line in act.plan if line.startswith("compute")),
            "settings_b": settings_b,
            "build_and_compile_seconds": build_seconds,
            "memory_bytes": resident_bytes(),
            "gpu_memory_bytes": gpu_bytes,
            "rungs": rows,
        }


def rows_of(found: dict[str, list[Rates]]) -> list[dict[str, Any]]:
    """What the windows of each rung say; the first rung is (a), the second (b)."""
    env_steps = {name: [rates.env_steps for rates in windows] for name, windows in found.items()}
    a, b = list(env_steps.values())[:2]
    return [
        {
            "rung": name,
            "env_steps_per_second": spread(values),
            "of_a": spread(ratios(values, a)),
            "of_b": spread(ratios(values, b)),
            "updates_per_second": spread([rates.updates for rates in found[name]]),
        }
        for name, values in env_steps.items()
    ]


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
        frames = [value * result["frames_per_env_step"] for value in row["env_steps_per_second"].values()]
        busy = f"{row['gpu_busy']:.0%}" if row.get("gpu_busy") is not None else "-"
        learns = " " * 22
        if "limit" in row:
            learns = f"{row['updates_per_second']['median']:11,.1f}{row['samples_per_second']:11,.0f}"
        lines.append(
            f"{row['rung']:26}{frames[0]:10,.0f}{frames[1]:9,.0f}{frames[2]:9,.0f}{row['of_a']['median']:8.1%}"
            f"{row['of_b']['median']:8.1%}{learns}{busy:>10}  {row.get('limit', '')}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, device=True)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--num-envs", default="64", help="one or several, separated by commas")
    parser.add_argument("--replay-ratio", default="8", help="one or several, separated by commas; empty for none")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--replay-capacity", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--resize", default="auto", choices=["auto", "device", "env"])
    parser.add_argument("--env-threads", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 repeats of 3 seconds, two settings tried for (b)")
    parser.add_argument("--json", type=Path, help="also write the object to this file")
    flags = parser.parse_args()
    seconds, repeats = (3.0, 3) if flags.quick else (flags.seconds, flags.repeats)
    replay_ratios = [float(ratio) for ratio in flags.replay_ratio.split(",") if ratio]
    config = replace(
        Config(), env=flags.env, device=flags.device, ui="quiet", total_frames=10**12, batch_size=flags.batch_size,
        replay_capacity=flags.replay_capacity, env_threads=flags.env_threads, torch_threads=flags.torch_threads,
        resize=flags.resize, checkpoint_period_frames=10**12,
    )  # fmt: skip
    results = []
    for num_envs in map(int, flags.num_envs.split(",")):
        sizes = [64] if flags.quick else BEST_SIZES
        with contextlib.redirect_stdout(io.StringIO()):
            result = ladder(
                replace(config, num_envs=num_envs), replay_ratios, seconds, repeats, sizes,
                lambda found: keep("throughput", found, flags, flags.json, results),
            )  # fmt: skip
        results.append(result)
        print(table(flags.env, result, seconds, repeats))
    write("throughput", results, flags, flags.json, {"seconds": seconds, "repeats": repeats})


if __name__ == "__main__":
    main()
