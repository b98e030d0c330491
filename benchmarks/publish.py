"""What every benchmark leaves: JSON and a picture beside it, and one JSON line last on stdout."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fastdqn import hardware


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with lowest and highest, because these machines are shared."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def publish(name: str, results: Any, out: Path, settings: dict[str, Any], draw: Callable[[Axes], None]) -> None:
    """Writes OUT/NAME.json and OUT/NAME.png, and prints the report as the last line."""
    environment = hardware.environment()
    report = {"benchmark": name, **settings, "environment": environment, "results": results}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    figure, axes = plt.subplots(figsize=(8, 5), constrained_layout=True)
    draw(axes)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    where = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    axes.set_title(f"{where}, torch {environment['torch']}, commit {environment['commit']}", fontsize=9)
    figure.savefig(out / f"{name}.png", dpi=120)
    plt.close(figure)
    print(json.dumps(report))
