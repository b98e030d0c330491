"""What an update reaches: samples/s and FLOP/s against batch size and precision, beside what the device can do.

    python -m benchmarks.learner [--device auto] [--quick] [--out benchmarks/results]
    python -m benchmarks.learner --parts        what each part of the DQN family costs beside plain DQN, at batch 256

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
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import nn

from benchmarks.publish import publish, spread
from fastdqn import hardware
from fastdqn.config import Config, load_preset
from fastdqn.graphs import Graph, preserved
from fastdqn.learner import Learner
from fastdqn.memory import keep_freed_memory
from fastdqn.networks import QNetwork
from fastdqn.parts import make_learner, make_network
from fastdqn.priorities import Priorities
from fastdqn.screens import CROP_SHAPE, FRAME_SHAPE

ACTIONS, OBS = 4, (4, 84, 84)
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


def make_update(batch: int, precision: str, device: torch.device, threads: int) -> Graph:
    """One update on a fixed batch of random screens, captured on CUDA."""
    torch.manual_seed(0)
    network = QNetwork(OBS, ACTIONS, compute_dtype=DTYPES[precision]).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda")
    learner = Learner(
        network, optimizer, double=True, loss="huber", max_grad_norm=10.0, seed=1,
        compile=hardware.has_compiler(device),
    )  # fmt: skip
    obs, next_obs = torch.randint(0, 256, (2, batch, *OBS), dtype=torch.uint8, device=device).unbind()
    action = torch.randint(0, ACTIONS, (batch,), device=device)
    reward, discount, weight = (torch.rand(batch, device=device) for _ in range(3))
    learner.warm_up(obs.clone(), batch, learn_threads=threads)
    obs, next_obs = obs.clone(), next_obs.clone()
    with preserved(learner.tensors()):
        return Graph(lambda: learner.update(obs, action, reward, discount, next_obs, weight), device)


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
    cases |= {f"preset {name}": replace(load_preset(name), batch_size=256).resolved()[0] for name in ("rainbow", "btr")}
    return {name: case for name, case in cases.items() if not names or name in names}


def make_part(config: Config, device: torch.device, threads: int) -> Graph:
    """One update as `config` describes it on a fixed batch of 256, its prioritised draw from 1M rows included."""
    torch.manual_seed(0)
    batch, shape = 256, (config.frame_stack, *(CROP_SHAPE if config.observation == "crop" else FRAME_SHAPE))
    dtype = torch.bfloat16 if hardware.has_bf16(device) else torch.float32
    network = make_network(config, shape, ACTIONS, dtype).to(device)
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
    drawn = [] if priorities is None else [priorities.weight, priorities.draw_counter]
    with preserved([*learner.tensors(), *drawn]):
        return Graph(update, device)


def price_parts(
    device: torch.device, threads: int, turns: int, calls: int, names: list[str], out: Path, title: str
) -> None:
    """Times each part in turn with plain DQN and prints what it costs."""
    configs = part_cases(names)
    torch._dynamo.config.recompile_limit = 4 * len(configs) + 8
    cases = {name: make_part(config, device, threads) for name, config in configs.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            value = seconds_a_call(cases[name], calls, device)
            if turn > 0:
                times[name].append(value)
    plain = times["plain DQN"]
    print(f"updates of 256 on {device}, {threads} torch threads, {turns} turns of {calls} calls, interleaved")
    print(f"{'part':24}{'samples/s':>11}{'lowest':>9}{'highest':>10}{'ms':>9}{'of plain':>10}{'added ms':>10}")
    results = []
    for name, values in times.items():
        figures = spread(values)
        ratio = statistics.median(base / value for base, value in zip(plain, values, strict=True))
        added = statistics.median(value - base for base, value in zip(plain, values, strict=True))
        results.append({"part": name, "seconds": figures, "samples_per_second": 256 / figures["median"],
                        "of_plain": ratio, "added_seconds": added})  # fmt: skip
        print(f"{name:24}{256 / figures['median']:11,.0f}{256 / figures['highest']:9,.0f}{256 / figures['lowest']:10,.0f}"
              f"{figures['median'] * 1e3:9.2f}{ratio:10.1%}{added * 1e3:10.2f}")  # fmt: skip

    def draw(axes: Axes) -> None:
        names = [row["part"] for row in results][::-1]
        axes.barh(names, [row["of_plain"] for row in results][::-1], color="tab:blue")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel="samples learned per second, as a share of plain DQN's")

    publish(f"{title}-{device.type}", results, out, {"threads": threads, "turns": turns, "batch_size": 256}, draw)


def seconds_a_call(function: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU; 0: all cores but one")
    parser.add_argument("--quick", action="store_true", help="three batch sizes, 3 turns")
    parser.add_argument("--parts", action="store_true", help="time the parts of the DQN family instead")
    parser.add_argument("--only", default="", help="with --parts: some of them, separated by semicolons")
    parser.add_argument("--name", default="parts", help="with --parts: of the files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    flags = parser.parse_args()
    device = torch.device("cuda" if flags.device != "cpu" and torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    threads = flags.threads or (1 if cuda else max(hardware.cores() - 1, 1))
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if flags.parts:
        wanted = ["plain DQN", *flags.only.split(";")] if flags.only else []
        price_parts(device, threads, 3 if flags.quick else 7, 30 if cuda else 4, wanted, flags.out, flags.name)
        return
    turns, batches = (3, [64, 256, 512]) if flags.quick else (7, [32 * 2**k for k in range(6)])
    size = 8192 if cuda else 2048
    calls = 30 if cuda else 5
    # every case is a compilation of the same two functions; more than 8 would be refused
    torch._dynamo.config.recompile_limit = 2 * len(DTYPES) * len(batches)
    cases: dict[tuple[str, int | str], Callable[[], object]] = {}
    for precision, dtype in DTYPES.items():
        cases |= {(precision, way): product for way, product in products(size, dtype, device).items()}
        for batch in batches:
            cases[precision, batch] = make_update(batch, precision, device, threads)
    source = torch.ones(1 << (28 if cuda else 26), device=device)
    destination = torch.empty_like(source)
    cases["fp32", "copy"] = lambda: destination.copy_(source)
    times: dict[tuple[str, int | str], list[float]] = {case: [] for case in cases}
    for turn in range(turns + 1):
        for case in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            value = seconds_a_call(cases[case], calls, device)
            if turn > 0:
                times[case].append(value)
    work, outputs = work_per_sample()
    bandwidth = 2 * source.nbytes / statistics.median(times["fp32", "copy"])
    parameters = sum(param.numel() for param in QNetwork(OBS, ACTIONS).parameters())
    print(f"{device}, {threads} torch threads, {turns} turns of {calls} calls, interleaved")
    print(f"{work / 1e6:.1f} MFLOP a transition; a copy moves {bandwidth / 1e9:,.0f} GB/s, read and written")
    ways = list(products(1, torch.float32, device))
    for precision in DTYPES:
        rates = {way: 2 * size**3 / statistics.median(times[precision, way]) / 1e9 for way in ways}
        print(f"{precision} {size}x{size}: " + ", ".join(f"{way} {rate:,.0f} GFLOP/s" for way, rate in rates.items()))
    print(f"{'precision':10}{'batch':>6}{'samples/s':>11}{'lowest':>9}{'highest':>10}{'ms':>9}{'GFLOP/s':>10}"
          f"{'of product':>12}{'GB/s':>8}{'of copy':>9}")  # fmt: skip
    results = []
    for precision, dtype in DTYPES.items():
        matmul = max(2 * size**3 / statistics.median(times[precision, way]) for way in ways)
        for batch in batches:
            figures = spread(times[precision, batch])
            seconds = figures["median"]
            moved = 28 * parameters + batch * (10 * outputs * dtype.itemsize + 4 * math.prod(OBS))
            row = {
                "precision": precision,
                "batch_size": batch,
                "seconds": figures,
                "samples_per_second": batch / seconds,
                "flop_per_second": batch * work / seconds,
                "of_matmul_rate": batch * work / seconds / matmul,
                "matmul_flop_per_second": matmul,
                "bytes_per_second": moved / seconds,
                "of_copy_rate": moved / seconds / bandwidth,
            }
            results.append(row)
            print(f"{precision:10}{batch:6}{row['samples_per_second']:11,.0f}{batch / figures['highest']:9,.0f}"
                  f"{batch / figures['lowest']:10,.0f}{seconds * 1e3:9.2f}{row['flop_per_second'] / 1e9:10,.0f}"
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

    settings = {"threads": threads, "turns": turns, "flop_per_sample": work, "copy_bytes_per_second": bandwidth}
    publish(f"learner-{device.type}", results, flags.out, settings, draw)


if __name__ == "__main__":
    main()
