"""Settings of a training run against each other, interleaved in one run: what a flag brings or costs in frames/s.

    python -m benchmarks.choices "" "--batch-size 512" "--precision fp32"        flags of `fastdqn train`, one set a rung
    python -m benchmarks.choices --base "--num-envs 128 --batch-size 512" "" "wait=block"

A switch by itself needs a space in front, " --no-compile". Each rung has the base's flags and its own; the first is what
the others are compared with, turn by turn. As in the ladder all rungs play uniformly random actions and learn from the
first moment on. On a GPU alone: `rows=eager` leaves the replay's arithmetic of rows and returns uncompiled; `wait=block`
puts the host to sleep while it waits for actions, instead of asking again and again, which takes a core from the games;
`layout=auto` leaves the convolutions' layout to torch.compile; `combo=on` has it put independent kernels into one.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from matplotlib.axes import Axes

from benchmarks.publish import publish, spread
from benchmarks.throughput import Group, make_run, rate, trained
from fastdqn import learner
from fastdqn.arguments import train_config
from fastdqn.replay import ReplayRing
from fastdqn.trainer import no_garbage_collection

GPU_SWITCHES = ("wait=block", "layout=auto", "rows=eager", "combo=on")
BASE = "--env Breakout --num-envs 64 --batch-size 256 --replay-ratio 8 --replay-capacity 200k"


def rung(base: str, words: str, folder: str) -> Group:
    """A training loop with these flags."""
    switches = {word for word in words.split() if word in GPU_SWITCHES}
    flags = [word for word in words.split() if word not in switches]
    config = train_config(
        [*base.split(), *flags, "--ui", "quiet", "--total-frames", "1000B", "--checkpoint-period-frames", "1000B"],
        prog="python -m benchmarks.choices",
    )
    if switches and (config.device == "cpu" or not torch.cuda.is_available()):
        raise SystemExit(f"{', '.join(switches)}: about a GPU; leave it out")
    with contextlib.ExitStack() as patches:
        if "layout=auto" in switches:
            patches.enter_context(patch.object(learner, "CUDA_COMPILE", {}))
        if "combo=on" in switches:
            both = {**learner.CUDA_COMPILE, "combo_kernels": True}
            patches.enter_context(patch.object(learner, "CUDA_COMPILE", both))
        if "rows=eager" in switches:
            patches.enter_context(patch.object(ReplayRing, "compile", lambda *_, **__: None))
        run = make_run(config, config.replay_ratio, folder)  # compiles and captures
    if "wait=block" in switches:
        run.staging._arrived = torch.cuda.Event(blocking=True)
    return trained(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rungs", nargs="+")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="choices")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    flags = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64  # every rung is compiled for itself
    rates: list[list[float]] = [[] for _ in flags.rungs]
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        with contextlib.redirect_stdout(io.StringIO()):
            groups = [rung(flags.base, words, f"{folder}/{turn}") for turn, words in enumerate(flags.rungs)]
        for group in groups:
            rate(group, 2.0)  # games under way, learning started
        for turn in range(flags.repeats):
            for index in range(len(groups))[:: 1 if turn % 2 == 0 else -1]:
                rates[index].append(4 * rate(groups[index], flags.seconds))
    print(f"base: {flags.base}\n{flags.repeats} x {flags.seconds:g} s a rung, interleaved, frames/s")
    print(f"{'median':>9}{'lowest':>9}{'highest':>9}{'of first':>10}  flags")
    results = []
    for words, values in zip(flags.rungs, rates, strict=True):
        figures = spread(values)
        ratio = statistics.median(value / first for value, first in zip(values, rates[0], strict=True))
        results.append({"flags": words, "frames_per_second": figures, "of_first": ratio})
        print(
            f"{figures['median']:9,.0f}{figures['lowest']:9,.0f}{figures['highest']:9,.0f}{ratio:10.1%}  {words or '-'}"
        )

    def draw(axes: Axes) -> None:
        rows = [spread(values) for values in rates]
        medians = [row["median"] for row in rows]
        lines = [[m - r["lowest"] for m, r in zip(medians, rows, strict=True)],
                 [r["highest"] - m for m, r in zip(medians, rows, strict=True)]]  # fmt: skip
        axes.barh([words or "base" for words in flags.rungs], medians, xerr=lines, capsize=3)
        axes.tick_params(axis="y", labelsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, None))
        axes.set_xlabel(f"frames/s; {flags.base}", fontsize=7)

    settings = {"base": flags.base, "seconds": flags.seconds, "repeats": flags.repeats}
    publish(flags.name, results, flags.out, settings, draw)


if __name__ == "__main__":
    main()
