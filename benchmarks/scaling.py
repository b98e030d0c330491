"""How training grows with ranks: measured on this machine, beside what its parts predict.

    python -m benchmarks.scaling [--ranks 1,2,4] [--seconds 10] [--repeats 3] [--quick] [--name scaling-cpu]
        [--out benchmarks/results]

Parts, each measured alone, in every round:

    e      env steps per second of one emulator thread
    a(g)   seconds of append + act for a group of g envs
    u(b)   seconds of an update of b transitions
    r(R)   seconds to average one gradient (parameters + 2 float32) over R ranks

R ranks share C cores, num_envs N, batch B at replay ratio q. A rank plays N/R envs in groups of half, learns from B/R,
and so a second of all cores holds x env steps:

    cores       x (1/e + k_a a/g) + x q/B R k_u u(B/R)  <=  C          k: threads that the part keeps busy
    each rank   x (a / (R g) + q/B (u(B/R) + r(R)))     <=  1          one thread does these in turn

Predicted is the largest x that satisfies both, with the parts of the same round. Measured is the training loop in R
processes of `torchrun`, random actions, Breakout, once updates run; the R take turns in each round, so that drift cancels.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from matplotlib.axes import Axes

from benchmarks.publish import arguments, publish
from benchmarks.throughput import alone, window
from benchmarks.timing import last_json, ratios, spread, synchronise, turns
from fastdqn.config import Config
from fastdqn.distributed import Bucket
from fastdqn.envs import VectorEnv
from fastdqn.machine import hardware
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group

CALLS = 50  # of a part in a round
WARM_UP_UPDATES = 20
FIGURES = ["one_thread", "act_seconds", "update_seconds", "average_seconds", "predicted", "rate"]


def config(flags: argparse.Namespace, folder: str) -> Config:
    """The whole job's, whatever the number of ranks."""
    return replace(
        Config(), env=flags.env, num_envs=flags.num_envs, batch_size=flags.batch_size, replay_ratio=flags.replay_ratio,
        replay_capacity=100_000, learning_starts=flags.num_envs * 16, epsilon_end=1.0, total_frames=10**12, ui="quiet",
        run_dir=f"{folder}/run",
    )  # fmt: skip


def child(flags: argparse.Namespace) -> NoReturn:
    """One rank: times its parts or trains for some seconds; the first rank prints what it found."""
    if flags.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config(flags, folder), ["scaling"])
        run.envs.start()
        while run.clock.updates < WARM_UP_UPDATES:
            step_group(run)
        found = parts(run) if flags.cores else trained(run, flags.seconds)
        if run.ranks.first:
            print(json.dumps(found), flush=True)
    os._exit(0)  # the others are in mid-step: nothing is left to agree on


def parts(run: Run) -> dict[str, Any]:
    """Seconds of the learner's and the actor's part at this run's sizes."""
    scheduled = {"epsilon": 1.0, "importance_exponent": 0.0, "learning_rate": run.config.learning_rate}
    act = seconds_of(lambda: run.pipeline.append_and_act(**scheduled), run.device)
    update = seconds_of(run.pipeline.update, run.device)
    return {
        "act_seconds": act,
        "update_seconds": update,
        "group": run.envs.group_size,
        "threads": run.threads._asdict(),
    }


def trained(run: Run, seconds: float) -> dict[str, float]:
    """Env steps per second of all ranks together, and seconds to average a gradient; 0 for one rank."""
    bucket = Bucket(run.learner.parameters)
    average = 0.0 if run.ranks.size == 1 else seconds_of(lambda: run.ranks.mean_(bucket.flat), run.device)
    steps, started = run.clock.env_steps, time.perf_counter()
    with no_garbage_collection():
        while time.perf_counter() - started < seconds or not run.ranks.first:
            step_group(run)
            if run.stopping:
                break
    rate = (run.clock.env_steps - steps) / (time.perf_counter() - started)
    return {"rate": rate, "average_seconds": average, "bucket_bytes": bucket.flat.nbytes}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median of CALLS calls, in seconds."""
    durations = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        synchronise(device)
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def one_thread(flags: argparse.Namespace) -> float:
    """e: env steps per second of one emulator thread."""
    envs = VectorEnv(flags.env, num_envs=16, batch_size=8, seed=1, num_threads=1, stall_seconds=0)
    rung = alone(envs)
    window(rung, 1.0)
    found = window(rung, flags.seconds).env_steps
    envs.close()
    return found


def job(ranks: int, flags: argparse.Namespace) -> dict[str, Any]:
    """What the first of so many ranks found, each with its part of the cores."""
    words = child_command(flags, share=1)
    if ranks == 1:
        return last_json([sys.executable, *words])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return last_json([sys.executable, *torchrun, *words], environment={"OMP_WAIT_POLICY": "passive"})


def parts_of_one(ranks: int, flags: argparse.Namespace) -> dict[str, Any]:
    """The parts of one of so many ranks, alone on its share of the cores."""
    cores = str(max(hardware.cores() // ranks, 1))
    return last_json([sys.executable, *child_command(flags, share=ranks), "--cores", cores])


def child_command(flags: argparse.Namespace, share: int) -> list[str]:
    return ["-m", "benchmarks.scaling", "--child", "--env", flags.env, "--num-envs", str(flags.num_envs // share),
            "--batch-size", str(flags.batch_size // share), "--replay-ratio", str(flags.replay_ratio),
            "--seconds", str(flags.seconds)]  # fmt: skip


def measured(ranks: int, flags: argparse.Namespace) -> dict[str, Any]:
    """The parts, what they predict, and the rate, one right after the other."""
    found = {"one_thread": one_thread(flags), **parts_of_one(ranks, flags), **job(ranks, flags)}
    return {**found, "predicted": predicted(ranks, found, flags)}


def predicted(ranks: int, found: dict[str, Any], flags: argparse.Namespace) -> float:
    """Env steps per second."""
    per_update, group, threads = flags.replay_ratio / flags.batch_size, found["group"], found["threads"]
    act, update = found["act_seconds"], found["update_seconds"]
    cores = 1 / found["one_thread"] + threads["act"] * act / group + per_update * ranks * threads["learn"] * update
    rank = act / (ranks * group) + per_update * (update + found["average_seconds"])
    return min(hardware.cores() / cores, 1 / rank)


def main() -> int:
    parser = arguments(__doc__, out=True)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--replay-ratio", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 3 s: whether it runs, not what it measures")
    parser.add_argument("--name", default="scaling-cpu", help="of the files")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=0, help=argparse.SUPPRESS)  # time the parts on so many
    flags = parser.parse_args()
    if flags.child:
        return child(flags)
    if flags.quick:
        flags.seconds, flags.repeats = 3.0, 1
    sizes = [int(word) for word in flags.ranks.split(",")]
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in sizes}
    for ranks in turns(sizes, flags.repeats):
        found[ranks].append(measured(ranks, flags))
    first = [one["rate"] for one in found[sizes[0]]]
    rows = []
    for ranks, rounds in found.items():
        figures = {name: spread([one[name] for one in rounds]) for name in FIGURES}
        of_first = spread(ratios([one["rate"] for one in rounds], first))
        rows.append({"ranks": ranks, "threads": rounds[0]["threads"], "bucket_bytes": rounds[0]["bucket_bytes"],
                     **figures, "of_first": of_first})  # fmt: skip
    print("ranks  one thread  update ms  average ms  predicted  measured  lowest  highest  of the first")
    for row in rows:
        e, _, update, average, expected, _ = (row[name]["median"] for name in FIGURES)
        print(
            f"{row['ranks']:5}  {e:10,.0f}  {1e3 * update:9.1f}  {1e3 * average:10.2f}  {expected:9,.0f}  "
            f"{row['rate']['median']:8,.0f}  {row['rate']['lowest']:6,.0f}  {row['rate']['highest']:7,.0f}  "
            f"{row['of_first']['median']:12.2f}"
        )
    settings = {"seconds": flags.seconds, "repeats": flags.repeats, "calls": CALLS}
    publish(flags.name, rows, flags, settings, lambda axes: draw(axes, rows))
    return 0


def draw(axes: Axes, rows: list[dict[str, Any]]) -> None:
    x = [row["ranks"] for row in rows]
    for name, style, label in (("rate", "o-", "measured"), ("predicted", "s--", "predicted from the parts")):
        median, lowest, highest = ([row[name][of] for row in rows] for of in ("median", "lowest", "highest"))
        axes.fill_between(x, lowest, highest, alpha=0.2)
        axes.plot(x, median, style, label=label)
    axes.set(xlabel="ranks, sharing the same cores", ylabel="env steps per second", xticks=x, ylim=(0, None))


if __name__ == "__main__":
    sys.exit(main())
