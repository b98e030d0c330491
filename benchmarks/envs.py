"""EnvPool alone against num_envs, batch size, threads, cores and resize: where its ceiling lies on this machine.

    python -m benchmarks.envs [--env Breakout] [--quick] [--name envs-cpu] [--out benchmarks/results]

Uniformly random actions, decisions only. From num_envs = 64 (16 per thread where that is more), groups of half, as many
threads as cores and 84x84 in EnvPool, one setting varies at a time; the cases take turns. "pinned" restricts the pool's
threads to as many cores as there are threads; EnvPool's own option, one core for each thread, is not used.
"""

import os
from dataclasses import asdict, dataclass, replace

from matplotlib.axes import Axes

from benchmarks.publish import arguments, bars, keep, publish
from benchmarks.throughput import Rung, alone, window
from benchmarks.timing import ratios, spread, turns
from fastdqn.envs import VectorEnv
from fastdqn.machine import hardware
from fastdqn.screens import FRAME_SHAPE, SCREEN_SHAPE


@dataclass(frozen=True)
class Case:
    """One setting of the pool; `share` is batch_size / num_envs."""

    num_envs: int
    share: float
    threads: int
    resize: str = "84x84"
    pinned: bool = False

    @property
    def group(self) -> int:
        """Envs received at once."""
        return max(1, int(self.num_envs * self.share))

    @property
    def label(self) -> str:
        extra = ("" if self.resize == "84x84" else ", no resize") + (", pinned" if self.pinned else "")
        return f"{self.num_envs} / {self.group} / {self.threads}{extra}"


def build(env: str, case: Case) -> tuple[VectorEnv, Rung]:
    """A started pool. Threads inherit the affinity that the process has while they are made."""
    cores = os.sched_getaffinity(0) if case.pinned else set()
    if case.pinned:
        os.sched_setaffinity(0, sorted(cores)[-case.threads :])
    try:
        envs = VectorEnv(
            env, num_envs=case.num_envs, batch_size=case.group, seed=1, num_threads=case.threads,
            image_size=FRAME_SHAPE if case.resize == "84x84" else SCREEN_SHAPE, stall_seconds=0,
        )  # fmt: skip
    finally:
        if case.pinned:
            os.sched_setaffinity(0, cores)
    return envs, alone(envs)


def main() -> None:
    parser = arguments(__doc__, out=True)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--quick", action="store_true", help="fewer cases, 2 turns of 1 s")
    parser.add_argument("--name", default="envs-cpu", help="of the files")
    flags = parser.parse_args()
    cores = hardware.cores()
    base = Case(max(64, 16 * cores), 0.5, cores)
    threads = sorted({1, max(cores // 2, 1), max(cores - 1, 1), cores, *([] if flags.quick else [2 * cores])})
    sizes = [16, 64, 256] if flags.quick else [16, 32, 64, 128, 256, 512]
    pinned = [replace(base, threads=max(cores - 1, 1), pinned=True)] if hasattr(os, "sched_setaffinity") else []
    cases = list(dict.fromkeys([
        base,
        *(replace(base, num_envs=size) for size in sizes),
        *(replace(base, share=share) for share in (0.25, 0.75, 1.0)),
        *(replace(base, threads=count) for count in threads),
        replace(base, resize="none (210x160)"),
        *pinned,
    ]))  # fmt: skip
    count, seconds = (2, 1.0) if flags.quick else (5, 3.0)
    pools = {case: build(flags.env, case) for case in cases}
    for _, rung in pools.values():
        window(rung, 0.5)
    rates: dict[Case, list[float]] = {case: [] for case in cases}
    path = flags.out / f"{flags.name}.json"
    for case in turns(cases, count, lambda: keep(flags.name, rates, flags, path)):
        rates[case].append(window(pools[case][1], seconds).env_steps)
    frame_skip = pools[base][0].frame_skip
    for envs, _ in pools.values():
        envs.close()
    print(f"{flags.env}, {count} x {seconds:g} s a case, interleaved, env steps/s; frames are {frame_skip} times that")
    print(f"{'num_envs':>8}{'group':>7}{'threads':>9}{'resize':>16}{'pinned':>8}{'median':>9}{'lowest':>9}"
          f"{'highest':>9}{'of first':>10}")  # fmt: skip
    results = []
    for case, values in rates.items():
        figures, of_first = spread(values), spread(ratios(values, rates[base]))
        results.append({**asdict(case), "env_steps_per_second": figures, "of_first": of_first})
        print(f"{case.num_envs:8}{case.group:7}{case.threads:9}{case.resize:>16}{case.pinned!s:>8}"
              f"{figures['median']:9,.0f}{figures['lowest']:9,.0f}{figures['highest']:9,.0f}"
              f"{of_first['median']:10.1%}")  # fmt: skip

    def draw(axes: Axes) -> None:
        frames = [spread([value * frame_skip for value in rates[case]]) for case in cases]
        bars(axes, [case.label for case in cases], frames)
        axes.set(xlabel=f"frames/s, {flags.env}, EnvPool alone", xlim=(0, None), ylabel="num_envs / group / threads")

    publish(flags.name, results, flags, {"turns": count, "seconds": seconds}, draw)


if __name__ == "__main__":
    main()
