"""Settings of a training run against each other, interleaved in one run: what a flag brings or costs in frames/s.

    python -m benchmarks.choices "" "--batch-size 512" "--precision fp32"        flags of `fastdqn train`, one set a rung
    python -m benchmarks.choices --base "--num-envs 128 --batch-size 512" "" "wait=block"

A switch by itself needs a space in front, " --no-compile". Each rung has the base's flags and its own; the first is what
the others are compared with, turn by turn. As in the ladder all rungs play uniformly random actions and learn from the
first moment on. On a GPU alone: `rows=eager` leaves the replay's arithmetic of rows and returns uncompiled; `wait=block`
puts the host to sleep while it waits for actions, instead of asking again and again, which takes a core from the games;
`layout=auto` leaves the convolutions' layout to torch.compile; `combo=on` has it put independent kernels into one;
`asserts=off` has it leave out the checks that indices are within bounds; `cudnn=benchmark` has cuDNN time its algorithms
for each convolution, where it would choose by rule.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.axes import Axes

from benchmarks.publish import arguments, bars, keep, publish
from benchmarks.throughput import make_run, trained, window
from benchmarks.timing import ratios, spread, turns
from fastdqn import learner
from fastdqn.arguments import train_config
from fastdqn.replay import ReplayRing
from fastdqn.run import Run
from fastdqn.trainer import no_garbage_collection

GPU_SWITCHES = ("wait=block", "layout=auto", "rows=eager", "combo=on", "cudnn=benchmark", "asserts=off")
BASE = "--env Breakout --num-envs 64 --batch-size 256 --replay-ratio 8 --replay-capacity 200k"


def without_asserts(compile: Callable) -> Callable:
    """torch.compile with the option; set for the whole process, it would take what an equal rung has compiled with them."""

    def compiled(*args: Any, options: dict[str, Any] | None = None, **flags: Any) -> Any:
        return compile(*args, options={**(options or {}), "assert_indirect_indexing": False}, **flags)

    return compiled


def build(base: str, words: str, folder: str) -> Run:
    """A run of the training loop with these flags."""
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
        if "asserts=off" in switches:
            patches.enter_context(patch.object(torch, "compile", without_asserts(torch.compile)))
        if "cudnn=benchmark" in switches:  # what it chooses in the warm-up is captured
            patches.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = True
        run = make_run(config, config.replay_ratio, folder)  # compiles and captures
    if "wait=block" in switches:
        run.staging._arrived = torch.cuda.Event(blocking=True)
    return run


def main() -> None:
    parser = arguments(__doc__, out=True)
    parser.add_argument("rungs", nargs="+")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="choices")
    flags = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64  # every rung is compiled for itself
    rates: list[list[float]] = [[] for _ in flags.rungs]  # frames/s
    with tempfile.TemporaryDirectory() as folder, no_garbage_collection():
        with contextlib.redirect_stdout(io.StringIO()):
            runs = [build(flags.base, words, f"{folder}/{index}") for index, words in enumerate(flags.rungs)]
        rungs = [trained(run) for run in runs]
        for rung in rungs:
            window(rung, min(2.0, flags.seconds))  # games under way, learning started
        found = {f"{index}: {words}": rates[index] for index, words in enumerate(flags.rungs)}
        path = flags.out / f"{flags.name}.json"
        for index in turns(range(len(rungs)), flags.repeats, lambda: keep(flags.name, found, flags, path)):
            rates[index].append(runs[index].config.action_repeat * window(rungs[index], flags.seconds).env_steps)
    print(f"base: {flags.base}\n{flags.repeats} x {flags.seconds:g} s a rung, interleaved, frames/s")
    print(f"{'median':>9}{'lowest':>9}{'highest':>9}{'of first':>10}  flags")
    results = []
    for words, values in zip(flags.rungs, rates, strict=True):
        figures, of_first = spread(values), spread(ratios(values, rates[0]))
        results.append({"flags": words, "frames_per_second": figures, "of_first": of_first})
        print(f"{figures['median']:9,.0f}{figures['lowest']:9,.0f}{figures['highest']:9,.0f}"
              f"{of_first['median']:10.1%}  {words or '-'}")  # fmt: skip

    def draw(axes: Axes) -> None:
        bars(axes, [words or "base" for words in flags.rungs], [spread(values) for values in rates])
        axes.set(xlim=(0, None))
        axes.set_xlabel(f"frames/s; {flags.base}", fontsize=7)

    publish(flags.name, results, flags, {}, draw)


if __name__ == "__main__":
    main()
