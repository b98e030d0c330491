"""What every benchmark leaves: JSON, mostly with a picture beside it, and one JSON line last on stdout."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fastdqn.machine import hardware

# where a file went, which would be a path of one machine, and what a benchmark tells its own child processes
NOT_RECORDED = ("out", "json", "child", "cores")


def write(
    name: str, results: Any, flags: argparse.Namespace, path: Path | None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the report of benchmark `name` to `path`, if there is one, prints it as the last line and returns it.

    Args:
        settings: what the flags do not say: values that were derived, or that --quick put in their place.
    """
    given = {flag: value for flag, value in vars(flags).items() if flag not in NOT_RECORDED}
    report = {"benchmark": name, **(settings or {}), "flags": given, "environment": hardware.environment(),
              "results": results}  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return report


def publish(
    name: str, results: Any, flags: argparse.Namespace, settings: dict[str, Any], draw: Callable[[Axes], None]
) -> None:
    """Writes `flags.out`/NAME.json and NAME.png, and prints the report as the last line."""
    environment = write(name, results, flags, flags.out / f"{name}.json", settings)["environment"]
    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    draw(axes)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    where = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    axes.set_title(f"{where}, torch {environment['torch']}, commit {environment['commit']}", fontsize=9)
    figure.savefig(flags.out / f"{name}.png", dpi=120)
    plt.close(figure)


def bars(axes: Axes, labels: Sequence[str], figures: Sequence[dict[str, float]]) -> None:
    """A bar for each label, the first on top: its median, with a line from lowest to highest."""
    medians = [row["median"] for row in figures]
    below = [row["median"] - row["lowest"] for row in figures]
    above = [row["highest"] - row["median"] for row in figures]
    axes.barh(labels, medians, xerr=[below, above], capsize=3, label="median; lines from lowest to highest")
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
