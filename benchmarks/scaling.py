"""How training grows with ranks: measured on this machine, beside what its parts predict.

    python -m benchmarks.scaling [--ranks 1,2,4] [--seconds 10] [--repeats 3] [--quick] [--out benchmarks/results]

Parts, each measured alone in this run:

    e      env steps per second of one emulator thread
    a(g)   seconds of append + act for a group of g envs
    u(b)   seconds of an update of b transitions
    r(R)   seconds to average one gradient (parameters + 2 float32) over R ranks

R ranks share C cores, num_envs N, batch B at replay ratio q. A rank plays N/R envs in groups of half, learns from B/R,
and so a second of all cores holds x env steps:

    cores       x (1/e + k_a a/g) + x q/B R k_u u(B/R)  <=  C          k: threads that the part keeps busy
    each rank   x (a / (R g) + q/B (u(B/R) + r(R)))     <=  1          one thread does these in turn

Predicted is the larger x that satisfies both. Measured is the training loop in R processes of `torchrun`, random actions,
Breakout, once updates run; rates of R take turns in each round, so that drift cancels.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from benchmarks.publish import publish, spread
from benchmarks.throughput import alone, rate
from fastdqn import hardware
from fastdqn.config import Config
from fastdqn.distributed import Bucket
from fastdqn.envs import VectorEnv
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group


def config(flags: argparse.Namespace, folder: str) -> Config:
    """The whole job's, whatever the number of ranks."""
    return replace(
        Config(), env=flags.env, num_envs=flags.num_envs, batch_size=flags.batch_size, replay_ratio=flags.replay_ratio,
        replay_capacity=100_000, learning_starts=flags.num_envs * 16, epsilon_end=1.0, total_frames=10**12, ui="quiet",
        run_dir=f"{folder}/run",
    )  # fmt: skip


def child(flags: argparse.Namespace) -> None:
    """One rank: times the parts, then trains for some seconds; the first rank prints what it found."""
    if flags.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config(flags, folder), ["scaling"])
        run.envs.start()
        while run.clock.updates < 20:
            step_group(run)
        found: dict[str, float] = {}
        if flags.cores:
            found |= parts(run, flags.seconds)
        bucket = Bucket(run.learner.parameters)
        if run.ranks.size > 1:
            found["average"] = seconds_of(lambda: run.ranks.mean_(bucket.flat), 50)
        steps, started = run.clock.env_steps, time.perf_counter()
        with no_garbage_collection():
            while time.perf_counter() - started < flags.seconds or not run.ranks.first:
                step_group(run)
                if run.stopping:
                    break
        found["rate"] = (run.clock.env_steps - steps) / (time.perf_counter() - started)
        if run.ranks.first:
            print(json.dumps(found | {"envs": run.envs.num_envs, "group": run.envs.group_size, "bucket": bucket.flat.nbytes,
                                      "threads": run.threads._asdict()}))  # fmt: skip
            sys.stdout.flush()
    os._exit(0)  # the others are in mid-step: nothing is left to agree on


def parts(run: Run, seconds: float) -> dict[str, float]:
    """Seconds of the learner's and the actor's part at this run's sizes."""
    act = seconds_of(lambda: run.pipeline.append_and_act(epsilon=1.0, importance_exponent=0.0), 50)
    return {"act": act, "update": seconds_of(run.pipeline.update, max(5, int(seconds)))}


def seconds_of(call, times: int) -> float:
    """Median of so many calls, in seconds."""
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def one_thread(flags: argparse.Namespace) -> float:
    """e: env steps per second of one emulator thread."""
    envs = VectorEnv(flags.env, num_envs=16, batch_size=8, seed=1, num_threads=1, stall_seconds=0)
    group = alone(envs)
    rate(group, 1.0)
    found = rate(group, flags.seconds)
    envs.close()
    return found


def launch(ranks: int, flags: argparse.Namespace, *, share: int = 1, measure_parts: bool = False) -> dict[str, Any]:
    """A job of `ranks`, each with its part of the cores; with `share`, one process with the sizes of one of so many."""
    cores = hardware.cores() // (share if ranks == 1 else ranks)
    words = ["-m", "benchmarks.scaling", "--child", "--env", flags.env, "--num-envs", str(flags.num_envs // share),
             "--batch-size", str(flags.batch_size // share), "--replay-ratio", str(flags.replay_ratio),
             "--seconds", str(flags.seconds)]  # fmt: skip
    command = [sys.executable, *words]
    if ranks > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            *words,
        ]
    if measure_parts:
        command += ["--cores", str(cores)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"} if ranks > 1 else dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        raise SystemExit(f"{ranks} ranks left no result:\n{done.stderr}")
    return json.loads(rows[-1])


def predicted(ranks: int, e: float, one: dict[str, Any], average: float, flags: argparse.Namespace) -> float:
    """Env steps per second; `one` holds the parts of a rank alone, measured on its share of the cores."""
    per_update, group = flags.replay_ratio / flags.batch_size, one["group"]
    threads = one["threads"]
    cores = 1 / e + threads["act"] * one["act"] / group + per_update * ranks * threads["learn"] * one["update"]
    rank = one["act"] / (ranks * group) + per_update * (one["update"] + average)
    return min(hardware.cores() / cores, 1 / rank)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--replay-ratio", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 3 s: whether it runs, not what it measures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=0, help=argparse.SUPPRESS)  # time the parts on so many
    flags = parser.parse_args()
    if flags.child:
        child(flags)
    if flags.quick:
        flags.seconds, flags.repeats = 3.0, 1
    sizes = [int(word) for word in flags.ranks.split(",")]
    e = one_thread(flags)
    alone_parts = {ranks: launch(1, flags, share=ranks, measure_parts=True) for ranks in sizes}
    rounds = []
    for number in range(flags.repeats):  # forwards and backwards
        order = sizes if number % 2 == 0 else sizes[::-1]
        rounds.append({ranks: launch(ranks, flags) for ranks in order})
    rows = []
    for ranks in sizes:
        average = statistics.median(turn[ranks].get("average", 0.0) for turn in rounds)
        one = alone_parts[ranks]
        rows.append(
            {
                "ranks": ranks, "threads": one["threads"], "act_seconds": one["act"], "update_seconds": one["update"],
                "average_seconds": average, "bucket_bytes": one["bucket"],
                "predicted": predicted(ranks, e, one, average, flags),
                "measured": spread([turn[ranks]["rate"] for turn in rounds]),
                "of_one": spread([turn[ranks]["rate"] / turn[sizes[0]]["rate"] for turn in rounds]),
            }
        )  # fmt: skip
    print(f"one emulator thread: {e:,.0f} env steps/s\n")
    print("ranks  update ms  average ms  predicted  measured  lowest  highest  of the first")
    for row in rows:
        measured = row["measured"]
        print(
            f"{row['ranks']:5}  {1e3 * row['update_seconds']:9.1f}  {1e3 * row['average_seconds']:10.2f}  "
            f"{row['predicted']:9,.0f}  {measured['median']:8,.0f}  {measured['lowest']:6,.0f}  "
            f"{measured['highest']:7,.0f}  {row['of_one']['median']:12.2f}"
        )
    settings = {
        name: getattr(flags, name)
        for name in ("env", "num_envs", "batch_size", "replay_ratio", "seconds", "repeats", "quick")
    }
    publish("scaling-cpu", {"one_thread": e, "rows": rows}, flags.out, settings, lambda axes: draw(axes, rows))
    return 0


def draw(axes: Axes, rows: list[dict[str, Any]]) -> None:
    x = [row["ranks"] for row in rows]
    middle = [row["measured"]["median"] for row in rows]
    lowest, highest = ([row["measured"][end] for row in rows] for end in ("lowest", "highest"))
    axes.fill_between(x, lowest, highest, alpha=0.2)
    axes.plot(x, middle, "o-", label="measured")
    axes.plot(x, [row["predicted"] for row in rows], "s--", label="predicted from the parts")
    axes.set(xlabel="ranks, sharing the same cores", ylabel="env steps per second", xticks=x, ylim=(0, None))


if __name__ == "__main__":
    sys.exit(main())
