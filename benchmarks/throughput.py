"""The ladder: EnvPool alone, then with staging + append + act, then with learning, all in one interleaved run.

    python -m benchmarks.throughput [--env Breakout] [--num-envs 64] [--replay-ratio 8] [--seconds 10] [--repeats 5]

Every rung plays uniformly random actions (the network runs, epsilon is 1), because the action distribution alone moves
EnvPool's rate by 20 %, and only decisions count as steps, never reset rows. Rungs take turns, forwards and backwards,
so that drift of a shared machine cancels; each figure is the median of the repeats with lowest and highest.

    alone   EnvPool in exactly the training run's pool settings, driven by ready-made random actions: the ceiling (a)
    act     staging, append to the ring, stack, network, epsilon-greedy; no learning
    train   the same with updates at the replay ratio
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastdqn import hardware
from fastdqn.config import Config
from fastdqn.envs import VectorEnv
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group


def alone(envs: VectorEnv) -> Callable[[], int]:
    """One group of EnvPool itself, without our wrapper's checks. Returns the env steps it took."""
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


def trained(run: Run) -> Callable[[], int]:
    """One group of the training loop. Returns the env steps it took."""
    run.envs.start()

    def group() -> int:
        before = run.clock.env_steps
        step_group(run)
        return run.clock.env_steps - before

    return group


def rate(group: Callable[[], int], seconds: float) -> float:
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


def ladder(config: Config, ratios: list[float], seconds: float, repeats: int) -> dict:
    """All rungs for one num_envs. Rates in env steps per second."""
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        runs = {"act": make_run(config, 0.0, folder)}
        runs |= {f"train, replay ratio {ratio:g}": make_run(config, ratio, folder) for ratio in ratios}
        settings = runs["act"].envs
        bare = VectorEnv(
            config.env, num_envs=config.num_envs, seed=7, num_threads=settings.num_threads, stall_seconds=0
        )
        rungs = {"alone": alone(bare)} | {name: trained(run) for name, run in runs.items()}
        for group in rungs.values():
            rate(group, min(2.0, seconds))  # warm-up: games under way, learning started
        rates: dict[str, list[float]] = {name: [] for name in rungs}
        for turn in range(repeats):
            for name in list(rungs)[:: 1 if turn % 2 == 0 else -1]:
                # the rungs that wait keep their threads idle: no group of theirs is being stepped
                rates[name].append(rate(rungs[name], seconds))
        ceiling = statistics.median(rates["alone"])
        rows = [
            {
                "rung": name,
                "env_steps_per_second": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
                "of_alone": statistics.median(value / base for value, base in zip(values, rates["alone"], strict=True)),
            }
            for name, values in rates.items()
        ]
        compute = runs["act"].plan()[7]
    return {"num_envs": config.num_envs, "ceiling_a": ceiling, "rungs": rows, "compute": compute}


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
    parser.add_argument("--env-threads", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 repeats of 3 seconds")
    parser.add_argument("--json", type=Path, help="also write the object to this file")
    flags = parser.parse_args()
    seconds, repeats = (3.0, 2) if flags.quick else (flags.seconds, flags.repeats)
    ratios = [float(ratio) for ratio in flags.replay_ratio.split(",") if ratio]
    config = replace(
        Config(), env=flags.env, device=flags.device, ui="quiet", total_frames=10**12, batch_size=flags.batch_size,
        replay_capacity=flags.replay_capacity, env_threads=flags.env_threads, torch_threads=flags.torch_threads,
        checkpoint_period_frames=10**12,
    )  # fmt: skip
    results = []
    for num_envs in map(int, flags.num_envs.split(",")):
        with contextlib.redirect_stdout(io.StringIO()):
            result = ladder(replace(config, num_envs=num_envs), ratios, seconds, repeats)
        results.append(result)
        print(f"\n{flags.env}, {num_envs} envs, {repeats} x {seconds:g} s a rung, interleaved")
        print(result["compute"])
        print(f"{'rung':28}{'env steps/s':>12}{'frames/s':>10}{'lowest':>9}{'highest':>9}{'of alone':>10}")
        for row in result["rungs"]:
            steps = row["env_steps_per_second"]
            print(f"{row['rung']:28}{steps:12,.0f}{steps * 4:10,.0f}{row['lowest']:9,.0f}{row['highest']:9,.0f}"
                  f"{row['of_alone']:10.1%}")  # fmt: skip
    report = {"benchmark": "throughput", "env": flags.env, "seconds": seconds, "repeats": repeats,
              "environment": hardware.environment(), "results": results}  # fmt: skip
    line = json.dumps(report)
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=2) + "\n")
    print(line)


if __name__ == "__main__":
    main()
