"""What every benchmark leaves: JSON, mostly with a picture beside it, and one JSON line last on stdout."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdqn.machine import hardware
from fastdqn.run_folder import replace_text
from fastdqn.units import cores

# where a file went, which would be a path of one machine, and what a benchmark tells its own child processes
NOT_RECORDED = ("out", "json", "child", "cores")


def arguments(doc: str | None, *, device: bool = False, out: bool = False) -> argparse.ArgumentParser:
    """A parser, with the flags --device and --out for the benchmarks that have them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    if out:
        parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def write(
    name: str, results: Any, flags: argparse.Namespace, path: Path | None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the report of benchmark `name` to `path`, if there is one, prints it as the last line and returns it.

    Args:
        settings: what the flags do not say: values that were derived, or that --quick put in their place.
    """
    report = _report(name, results, flags, path, settings or {}, complete=True)
    print(json.dumps(report))
    return report


def keep(
    name: str,
    found: Mapping[Any, Sequence[Any]],
    flags: argparse.Namespace,
    path: Path | None,
    done: Sequence[Any] = (),
) -> None:
    """Writes what benchmark `name` has `found` so far, the values of each case, to the `path` of its report.

    Marked as incomplete; `done` is what its results have already.
    """
    windows = [{"case": str(case), "values": list(values)} for case, values in found.items()]
    _report(name, [*done, *windows], flags, path, {}, complete=False)


def _report(
    name: str, results: Any, flags: argparse.Namespace, path: Path | None, settings: dict[str, Any], *, complete: bool
) -> dict[str, Any]:
    given = {flag: value for flag, value in vars(flags).items() if flag not in NOT_RECORDED}
    report = {"benchmark": name, "complete": complete, **settings, "flags": given, "environment": hardware.environment(),
              "results": results}  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(report, indent=2) + "\n")
    return report


def publish(
    name: str, results: Any, flags: argparse.Namespace, settings: dict[str, Any], draw: Callable[[Axes], None]
) -> None:
    """Writes `flags.out`/NAME.json and NAME.png, and prints the report as the last line."""
    environment = write(name, results, flags, flags.out / f"{name}.json", settings)["environment"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    axes.set_title(machine(environment), fontsize=9)
    figure.savefig(flags.out / f"{name}.png", dpi=120)


def machine(environment: dict[str, Any]) -> str:
    """Processor or GPU, cores, torch and commit in a line."""
    where = f"{environment['gpu'] or environment['cpu']}, {cores(environment['cores'])}"
    return f"{where}, torch {environment['torch']}, commit {environment['commit']}"


def bars(axes: Axes, labels: Sequence[str], figures: Sequence[dict[str, float]]) -> None:
    """A bar for each label, the first on top: its median, with a line from lowest to highest."""
    medians = [row["median"] for row in figures]
    below = [row["median"] - row["lowest"] for row in figures]
    above = [row["highest"] - row["median"] for row in figures]
    axes.barh(labels, medians, xerr=[below, above], capsize=3, label="median; lines from lowest to highest")
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
