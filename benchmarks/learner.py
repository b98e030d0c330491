"""What an update reaches: samples/s and FLOP/s against batch size and precision, beside what the device can do.

    python -m benchmarks.learner [--device auto] [--seconds 0.5] [--quick] [--out benchmarks/results]
    python -m benchmarks.learner --parts        what each part of the DQN family costs beside plain DQN, at batch 256

Windows of the cases take turns, forwards and backwards; each of a part lies between two of plain DQN, to whose mean it is
compared.

The ceilings are measured in the same run: a large square matrix product in the same precision, and a large copy. On a
CPU the product is also tried as a convolution of 1x1, and the faster counts: PyTorch gives float32 products and float32
convolutions to two libraries, and on an AMD processor the first reached half to two thirds of the other's rate.

Work of one transition, in floating-point operations (a multiply-add is two), F being the forward pass of the network:

    3 F        online(s), online(s'), target(s')
    2 F - f1   backward: gradients of weights and of inputs, but none of the first convolution's input (f1)

Bytes of one update that moves each layer's tensors once, P parameters in float32 and A outputs of layers a transition:

    28 P       Adam: reads weight, gradient and two moments, writes three of them
    10 A       an output is written and read in three forward passes, read again in the backward pass, and its gradient
               written and read twice; in the precision of the arithmetic
    4 screens  of bytes: s forward and for its weight gradient, s' in both networks
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch._dynamo.config
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import nn

from benchmarks.publish import arguments, bars, keep, publish
from benchmarks.timing import device_of, ratios, seconds_a_call, spread, turns
from fastdqn.config import Config, load_preset
from fastdqn.graphs import Graph, preserved
from fastdqn.machine import hardware
from fastdqn.machine.memory import keep_freed_memory
from fastdqn.networks import QNetwork
from fastdqn.parts import make_learner, make_network
from fastdqn.priorities import Priorities
from fastdqn.screens import CROP_SHAPE, FRAME_SHAPE

ACTIONS, OBS, BATCH = 4, (4, 84, 84), 256  # BATCH: of the parts
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def work_per_sample() -> tuple[float, int]:
    """Operations and layers' outputs of one transition in one update, counted from the layers."""
    network, works, outputs = QNetwork(OBS, ACTIONS), [], []

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        works.append(2.0 * weight[0].numel() * output[0].numel())
        outputs.append(output[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(1, *OBS, dtype=torch.uint8))
    return 5 * sum(works) - works[0], sum(outputs)


def products(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    """The product of two square matrices, in the ways worth trying on the device."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    ways: dict[str, Callable[[], object]] = {"product": lambda: a @ b}
    if device.type == "cpu":
        ways["product as convolution"] = lambda: F.conv2d(b.view(1, size, 1, size), a.view(size, size, 1, 1))
    return ways


PARTS: dict[str, dict[str, Any]] = {
    "plain DQN": {},
    "Double": {"double": True},
    "Munchausen": {"munchausen": True},
    "MSE loss": {"loss": "mse"},
    "RMSprop": {"optimizer": "rmsprop"},
    "Polyak target": {"polyak": 0.005},
    "prioritised, 1M rows": {"prioritized": True},
    "dueling": {"dueling": True},
    "noisy layers": {"noisy": True},
    "C51": {"head": "c51"},
    "QR-DQN, 200": {"head": "qrdqn"},
    "IQN, 64": {"head": "iqn", "num_quantiles": 64},
    "IQN, 8": {"head": "iqn", "num_quantiles": 8, "num_acting_quantiles": 8},
    "layer norm": {"layer_norm": True},
    "wide, cropped screen": {"encoder": "wide", "observation": "crop", "frame_stack": 3},
    "IMPALA": {"encoder": "impala"},
    "IMPALA x2": {"encoder": "impala", "impala_width": 2},
    "IMPALA x2, spectral": {"encoder": "impala", "impala_width": 2, "spectral_norm": True},
}


def part_cases(names: list[str]) -> dict[str, Config]:
    """The parts to time, and two presets that have many of them."""
    base = replace(Config(), double=False)
    cases = {name: replace(base, **changes).resolved()[0] for name, changes in PARTS.items()}
    cases |= {f"preset {name}": load_preset(name).resolved()[0] for name in ("rainbow", "btr")}
    return {name: case for name, case in cases.items() if not names or name in names}


def make_update(config: Config, batch: int, precision: str, device: torch.device, threads: int) -> Graph:
    """One update of a resolved config on a fixed batch of random screens, its prioritised draw from 1M rows included."""
    torch.manual_seed(0)
    shape = (config.frame_stack, *(CROP_SHAPE if config.observation == "crop" else FRAME_SHAPE))
    network = make_network(config, shape, ACTIONS, DTYPES[precision]).to(device)
    learner = make_learner(config, network, device, compile=hardware.has_compiler(device))
    data = torch.randint(0, 256, (2, batch, *shape), dtype=torch.uint8, device=device)
    obs, next_obs = data[0].clone(), data[1].clone()
    action = torch.randint(0, ACTIONS, (batch,), device=device)
    reward, discount, weight = (torch.rand(batch, device=device) for _ in range(3))
    priorities = None
    if config.prioritized:
        priorities = Priorities(1_000_000, exponent=config.priority_exponent, seed=1, device=device)
        priorities.weight.random_(1, 1 << 21)
        priorities.importance_exponent.fill_(0.5)

    def update() -> None:
        if priorities is None:
            learner.update(obs, action, reward, discount, next_obs, weight)
            return
        row, importance = priorities.draw(batch)
        size = learner.update(obs, action, reward, discount, next_obs, importance)
        priorities.update(row, size, importance > 0)

    learner.warm_up(obs.clone(), batch, learn_threads=threads)
    drawn = [] if priorities is None else [priorities.weight, priorities.largest, priorities.draw_counter]
    with preserved([*learner.tensors(), *drawn]):
        return Graph(update, device)


def price_parts(flags: argparse.Namespace, device: torch.device, threads: int, count: int, seconds: float) -> None:
    """Times each part between two windows of plain DQN and prints what it costs."""
    configs = part_cases(["plain DQN", *flags.only.split(";")] if flags.only else [])
    torch._dynamo.config.recompile_limit = 4 * len(configs) + 8
    precision = "bf16" if hardware.has_bf16(device) else "fp32"
    cases = {name: make_update(config, BATCH, precision, device, threads) for name, config in configs.items()}
    plain = cases.pop("plain DQN")

    def seconds_of(update: Graph) -> float:
        return seconds_a_call(update, seconds, device)

    for update in (plain, *cases.values()):
        seconds_of(update)  # warm-up
    before = seconds_of(plain)
    times: dict[str, list[float]] = {"plain DQN": [before], **{name: [] for name in cases}}
    around: dict[str, list[float]] = {name: [] for name in cases}  # mean of plain DQN's windows before and after
    title = f"{flags.name}-{device.type}"
    for name in turns(cases, count, lambda: keep(title, times, flags, flags.out / f"{title}.json")):
        times[name].append(seconds_of(cases[name]))
        after = seconds_of(plain)
        times["plain DQN"].append(after)
        around[name].append((before + after) / 2)
        before = after
    print(
        f"updates of {BATCH} on {device}, {threads} torch threads, {count} turns of {seconds:g} s, plain DQN in between"
    )
    print(f"{'part':24}{'samples/s':>11}{'lowest':>9}{'highest':>10}{'ms':>9}{'of plain':>10}{'lowest':>8}{'highest':>9}"
          f"{'added ms':>10}")  # fmt: skip
    results = []
    for name, values in times.items():
        bases = around.get(name, values)
        figures, of_plain = spread(values), spread(ratios(bases, values))
        added = spread([value - base for value, base in zip(values, bases, strict=True)])
        results.append({"part": name, "seconds": figures, "samples_per_second": BATCH / figures["median"],
                        "of_plain": of_plain, "added_seconds": added})  # fmt: skip
        print(f"{name:24}{BATCH / figures['median']:11,.0f}{BATCH / figures['highest']:9,.0f}"
              f"{BATCH / figures['lowest']:10,.0f}{figures['median'] * 1e3:9.2f}{of_plain['median']:10.1%}"
              f"{of_plain['lowest']:8.1%}{of_plain['highest']:9.1%}{added['median'] * 1e3:10.2f}")  # fmt: skip

    def draw(axes: Axes) -> None:
        bars(axes, [row["part"] for row in results], [row["of_plain"] for row in results])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel="samples learned per second, as a share of plain DQN's")

    settings = {"threads": threads, "turns": count, "seconds": seconds, "precision": precision, "batch_size": BATCH}
    publish(title, results, flags, settings, draw)


def main() -> None:
    parser = arguments(__doc__, device=True, out=True)
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU; 0: all cores but one")
    parser.add_argument("--seconds", type=float, default=0.5, help="the least length of a window")
    parser.add_argument("--quick", action="store_true", help="three batch sizes, 3 turns of 0.1 s")
    parser.add_argument("--parts", action="store_true", help="time the parts of the DQN family instead")
    parser.add_argument("--only", default="", help="with --parts: some of them, separated by semicolons")
    parser.add_argument("--name", default="parts", help="with --parts: of the files")
    flags = parser.parse_args()
    device = device_of(flags.device)
    cuda = device.type == "cuda"
    threads = flags.threads or hardware.thread_counts(hardware.cores(), 1, device.type)[1]
    count, seconds = (3, 0.1) if flags.quick else (7, flags.seconds)
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if flags.parts:
        price_parts(flags, device, threads, count, seconds)
        return
    batches = [64, 256, 512] if flags.quick else [32 * 2**k for k in range(6)]
    size = 8192 if cuda else 2048
    # every case is a compilation of the same two functions; more than 8 would be refused
    torch._dynamo.config.recompile_limit = 2 * len(DTYPES) * len(batches)
    config = Config().resolved()[0]
    cases: dict[tuple[str, int | str], Callable[[], object]] = {}
    for precision, dtype in DTYPES.items():
        cases |= {(precision, way): product for way, product in products(size, dtype, device).items()}
        for batch in batches:
            cases[precision, batch] = make_update(config, batch, precision, device, threads)
    source = torch.ones(1 << (28 if cuda else 26), device=device)
    destination = torch.empty_like(source)
    cases["fp32", "copy"] = lambda: destination.copy_(source)
    times: dict[tuple[str, int | str], list[float]] = {case: [] for case in cases}
    for case in cases.values():
        seconds_a_call(case, seconds, device)  # warm-up
    name = f"learner-{device.type}"
    for case in turns(cases, count, lambda: keep(name, times, flags, flags.out / f"{name}.json")):
        times[case].append(seconds_a_call(cases[case], seconds, device))
    figures = {case: spread(values) for case, values in times.items()}
    work, outputs = work_per_sample()
    bandwidth = 2 * source.nbytes / figures["fp32", "copy"]["median"]
    parameters = sum(param.numel() for param in QNetwork(OBS, ACTIONS).parameters())
    print(f"{device}, {threads} torch threads, {count} turns of {seconds:g} s, interleaved")
    print(f"{work / 1e6:.1f} MFLOP a transition; a copy moves {bandwidth / 1e9:,.0f} GB/s, read and written")
    ways = list(products(1, torch.float32, device))
    for precision in DTYPES:
        rates = {way: 2 * size**3 / figures[precision, way]["median"] / 1e9 for way in ways}
        print(f"{precision} {size}x{size}: " + ", ".join(f"{way} {rate:,.0f} GFLOP/s" for way, rate in rates.items()))
    print(f"{'precision':10}{'batch':>6}{'samples/s':>11}{'lowest':>9}{'highest':>10}{'ms':>9}{'GFLOP/s':>10}"
          f"{'of product':>12}{'GB/s':>8}{'of copy':>9}")  # fmt: skip
    results = []
    for precision, dtype in DTYPES.items():
        matmul = max(2 * size**3 / figures[precision, way]["median"] for way in ways)
        for batch in batches:
            update = figures[precision, batch]
            median = update["median"]
            moved = 28 * parameters + batch * (10 * outputs * dtype.itemsize + 4 * math.prod(OBS))
            row = {
                "precision": precision,
                "batch_size": batch,
                "seconds": update,
                "samples_per_second": batch / median,
                "flop_per_second": batch * work / median,
                "of_matmul_rate": batch * work / median / matmul,
                "matmul_flop_per_second": matmul,
                "bytes_per_second": moved / median,
                "of_copy_rate": moved / median / bandwidth,
            }
            results.append(row)
            print(f"{precision:10}{batch:6}{row['samples_per_second']:11,.0f}{batch / update['highest']:9,.0f}"
                  f"{batch / update['lowest']:10,.0f}{median * 1e3:9.2f}{row['flop_per_second'] / 1e9:10,.0f}"
                  f"{row['of_matmul_rate']:12.1%}{row['bytes_per_second'] / 1e9:8,.1f}"
                  f"{row['of_copy_rate']:9.1%}")  # fmt: skip

    def draw(axes: Axes) -> None:
        for precision in DTYPES:
            rows = [row for row in results if row["precision"] == precision]
            best = max(row["of_matmul_rate"] for row in rows)
            axes.plot([row["batch_size"] for row in rows], [row["samples_per_second"] for row in rows], marker="o",
                      label=f"{precision}, up to {best:.0%} of the product's rate")  # fmt: skip
        axes.set(xscale="log", xlabel="transitions in a batch", ylabel="transitions learned per second", ylim=(0, None))
        axes.set_xticks(batches, labels=[str(batch) for batch in batches])
        axes.minorticks_off()

    settings = {"threads": threads, "turns": count, "seconds": seconds, "flop_per_sample": work,
                "copy_bytes_per_second": bandwidth}  # fmt: skip
    publish(name, results, flags, settings, draw)


if __name__ == "__main__":
    main()
