"""How the ring's cost grows: append and sample + gather against capacity and batch size.

    python -m benchmarks.replay [--device auto] [--quick] [--out benchmarks/results]

Appends are groups of 32 rows; a sample is draw, n-step return and both stacks, n = 3, uniform. Cases take turns; each
figure is a median over the turns. On CUDA every operation is a captured graph, and at batches of 256 and more a ring of
1M frames must cost at most 1.15 times one of 100k; on a CPU there is no bound.

On a CPU the times jump from 2048 transitions on: malloc keeps no block above 32 MB (see `memory.keep_freed_memory`), so
each of the two stacks, 58 MB there, is mapped afresh and touched page by page in every call.
"""

from collections.abc import Callable

import torch
from matplotlib.axes import Axes

from benchmarks.publish import arguments, keep, publish
from benchmarks.timing import device_of, ratios, seconds_a_call, spread, turns
from fastdqn.graphs import Graph
from fastdqn.machine import hardware
from fastdqn.machine.memory import free_bytes, keep_freed_memory, largest_capacity, row_bytes
from fastdqn.replay import ReplayRing
from fastdqn.screens import FRAME_SHAPE

GROUP, LANES = 32, 64
BOUND = 1.15


def make_ring(capacity: int, device: torch.device) -> ReplayRing:
    """A full ring of black frames."""
    ring = ReplayRing(
        capacity=capacity, num_envs=LANES, obs_shape=FRAME_SHAPE, obs_dtype=torch.uint8, stack=4, n_step=3, gamma=0.99,
        reward_clip=True, life_loss_terminal=True, seed=1, device=device,
    )  # fmt: skip
    ring.count.fill_(ring.lane_length)
    return ring


def appender(ring: ReplayRing, device: torch.device) -> Callable[[], object]:
    row = {
        "env_id": torch.arange(GROUP, device=device),
        "obs": torch.zeros(GROUP, *FRAME_SHAPE, dtype=torch.uint8, device=device),
        "reward": torch.zeros(GROUP, device=device),
        **{name: torch.zeros(GROUP, dtype=torch.bool, device=device) for name in ("terminated", "done", "life_lost")},
    }
    return lambda: ring.append(**row)


def main() -> None:
    parser = arguments(__doc__, device=True, out=True)
    parser.add_argument("--capacities", default="100000,1000000,4000000")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU; 0: all cores but one")
    parser.add_argument("--quick", action="store_true", help="up to 1M frames, four batch sizes, 3 turns")
    flags = parser.parse_args()
    device = device_of(flags.device)
    threads = flags.threads or hardware.thread_counts(hardware.cores(), LANES, device.type)[1]  # as a training run
    torch.set_num_threads(threads)
    keep_freed_memory()
    batches = [32, 256, 1024, 4096] if flags.quick else [32 * 2**k for k in range(8)]
    count, seconds = (3, 0.02) if flags.quick else (9, 0.1)
    torch._dynamo.config.recompile_limit = 64  # every batch size and capacity is compiled for itself
    cases: dict[tuple[int, str, int], Graph] = {}
    for capacity in map(int, flags.capacities.split(",")):
        if flags.quick and capacity > 1_000_000:
            print(f"left out: {capacity:,} frames, with --quick")
            continue
        fits = largest_capacity(free_bytes(device) - 2_000_000_000, LANES, row_bytes(FRAME_SHAPE, torch.uint8))
        if fits < capacity // LANES * LANES:
            print(f"left out: {capacity:,} frames, {fits:,} would fit")
            continue
        ring = make_ring(capacity, device)
        cases[capacity, "append", GROUP] = Graph(appender(ring, device), device)
        for batch in batches:
            if hardware.has_compiler(device):
                env_id = torch.arange(GROUP, device=device)
                ring.compile(env_id, batch)
            cases[capacity, "sample", batch] = Graph(lambda ring=ring, batch=batch: ring.sample(batch), device)
    times: dict[tuple[int, str, int], list[float]] = {case: [] for case in cases}
    for graph in cases.values():
        seconds_a_call(graph, seconds, device)  # warm-up
    name = f"replay-{device.type}"
    for case in turns(cases, count, lambda: keep(name, times, flags, flags.out / f"{name}.json")):
        times[case].append(1e6 * seconds_a_call(cases[case], seconds, device))
    capacities = sorted({case[0] for case in cases})
    print(
        f"microseconds on {device}, {threads} torch threads, {count} turns of {seconds:g} s: median (lowest to highest)"
    )
    print(f"{'rows':14}" + "".join(f"{f'{capacity:,} frames':>30}" for capacity in capacities))
    for kind, size in sorted({case[1:] for case in cases}):
        cells = [spread(times[capacity, kind, size]) for capacity in capacities]
        row = "".join(f"{'{median:,.0f} ({lowest:,.0f} to {highest:,.0f})'.format(**cell):>30}" for cell in cells)
        print(f"{kind:8}{size:6}{row}")
    results = [
        {"capacity": capacity, "operation": kind, "rows": size, "microseconds": spread(values)}
        for (capacity, kind, size), values in times.items()
    ]
    growth: dict[int, dict[str, float]] = {}
    if {100_000, 1_000_000} <= set(capacities):
        for batch in batches:
            growth[batch] = spread(ratios(times[1_000_000, "sample", batch], times[100_000, "sample", batch]))
            bound = ""
            if device.type == "cuda" and batch >= 256:
                bound = f", bound {BOUND} {'held' if growth[batch]['median'] <= BOUND else 'BROKEN'}"
            print(f"1M / 100k at batch {batch}: {growth[batch]['median']:.2f}{bound}")

    def draw(axes: Axes) -> None:
        for capacity in capacities:
            values = [spread(times[capacity, "sample", batch])["median"] for batch in batches]
            axes.plot(batches, values, marker="o", label=f"sample, {capacity:,} frames")
            append = spread(times[capacity, "append", GROUP])["median"]
            axes.plot([GROUP], [append], marker="x", linestyle="", label=f"append of {GROUP}, {capacity:,} frames")
        axes.set(xscale="log", yscale="log", xlabel="transitions in a batch", ylabel="microseconds")
        axes.set_xticks(batches, labels=[str(batch) for batch in batches])
        axes.minorticks_off()

    settings = {"threads": threads, "turns": count, "seconds": seconds, "growth_1M_100k": growth}
    publish(name, results, flags, settings, draw)


if __name__ == "__main__":
    main()
