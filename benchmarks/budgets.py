"""What a run may cost before and beside its work, each against its budget, in a process of its own with cold caches.

    python -m benchmarks.budgets [--device auto] [--replay-capacity 1000000] [--seconds 60] [--out benchmarks/results]

    start     seconds from the imports to the first env step, compiling not counted      15
    compile   seconds to compile and capture, nothing cached                             60
    logging   share of the loop's time                                                    1 %
    saving    seconds that a save of the learner holds the loop, 99th percentile of 300     0.05
    ring      bytes of 1M frames                                                          7.06 GB
    GPU       bytes beside the ring, Nature CNN                                           1.5 GB
    host      bytes above the imports, of a run on a GPU                                  2 GB

Exit code 1 if one is not held.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.publish import arguments, keep, write
from benchmarks.timing import device_of, last_json
from fastdqn.config import Config
from fastdqn.metrics import resident_bytes
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection, step_group


def measure(
    device: str, capacity: int, seconds: float, keep_found: Callable[[dict[str, float]], object]
) -> dict[str, float]:
    """One run, from its first line to `seconds` of learning; `keep_found` is given what is known so far."""
    imported, started = resident_bytes(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            Config(), device=device, replay_capacity=capacity, ui="quiet", run_dir=f"{folder}/run",
            learning_starts=2_000, total_frames=10**12,
        )  # fmt: skip
        run = Run(config, ["budgets"])
        run.envs.start()
        while run.clock.env_steps == 0:
            step_group(run)
        first = time.perf_counter() - started
        figures = {
            "start": first - run.pipeline.compile_seconds,
            "compile": run.pipeline.compile_seconds,
            "ring": float(run.ring.nbytes),
        }
        keep_found(figures)
        with no_garbage_collection(), run:
            run.phase.seconds.update(dict.fromkeys(run.phase.seconds, 0.0))
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or run.clock.updates == 0:
                step_group(run)
                with run.phase("log"):
                    if run.logging:
                        run.log()
            phases = run.phase.seconds
            figures["logging"] = phases["log"] / sum(phases.values())
            keep_found(figures)
            stalls = []
            for _ in range(300):
                step_group(run)
                run._saver.wait()  # as in training, where saves are minutes apart
                before = time.perf_counter()
                run.save()
                stalls.append(time.perf_counter() - before)
        figures["saving"] = statistics.quantiles(stalls, n=100)[98]
        if run.device.type == "cuda":
            figures["GPU"] = float(torch.cuda.max_memory_reserved() - run.ring.nbytes)
            figures["host"] = float(resident_bytes() - imported)
        return figures


def main() -> int:
    parser = arguments(__doc__, device=True, out=True)
    parser.add_argument("--replay-capacity", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:

        def keep_found(figures: dict[str, float]) -> None:
            found = {name: [value] for name, value in figures.items()}
            keep("budgets", found, flags, flags.out / f"budgets-{device_of(flags.device).type}.json")

        print(json.dumps(measure(flags.device, flags.replay_capacity, flags.seconds, keep_found)))
        return 0
    device = device_of(flags.device)
    with tempfile.TemporaryDirectory() as cache:
        figures = last_json(
            [sys.executable, "-m", "benchmarks.budgets", "--child", "--device", flags.device, "--seconds",
             str(flags.seconds), "--replay-capacity", str(flags.replay_capacity), "--out", str(flags.out)],
            environment={"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"},
        )  # fmt: skip
    ring = 7.06e9 * flags.replay_capacity / 1e6 * 1.005
    budgets = {"start": 15.0, "compile": 60.0, "logging": 0.01, "saving": 0.05, "ring": ring, "GPU": 1.5e9, "host": 2e9}
    rows = [{"name": name, "measured": figures[name], "budget": budget, "held": figures[name] <= budget}
            for name, budget in budgets.items() if name in figures]  # fmt: skip
    for row in rows:
        print(
            f"{row['name']:9}{row['measured']:>18,.4g}  of {row['budget']:>14,.4g}  {'held' if row['held'] else 'NOT HELD'}"
        )
    write("budgets", rows, flags, flags.out / f"budgets-{device.type}.json")
    return 0 if all(row["held"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
