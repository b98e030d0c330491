"""Draws a run's learning curve: every game's score, and the mean of the last 100.

python -m benchmarks.learning_curve RUN -o curve.png
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fastdqn.atari import RANDOM_AND_HUMAN_SCORES
from fastdqn.config import Config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    flags = parser.parse_args()
    config = Config.load(flags.run / "config.toml")
    environment = json.loads((flags.run / "environment.json").read_text())
    games = list(csv.DictReader((flags.run / "episodes.csv").open()))
    frames = np.array([int(game["env_steps"]) for game in games]) * config.action_repeat / 1e6
    scores = np.array([float(game["r"]) for game in games])
    mean_100 = np.convolve(scores, np.ones(100) / 100, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=130)
    axes.plot(frames, scores, ".", markersize=2, color="#b8c4d6", label="one game")
    axes.plot(frames[99:], mean_100, color="#1f4e9c", linewidth=2, label="mean of the last 100 games")
    random, _ = RANDOM_AND_HUMAN_SCORES[config.name.game]
    axes.axhline(random, color="#999999", linestyle="--", linewidth=1, label=f"random play ({random})")
    axes.set(xlabel="million frames", ylabel="score (unclipped)", xlim=(0, None), ylim=(0, None))
    minutes = float(games[-1]["t"]) / 60
    axes.set_title(
        f"{config.name.game}, preset {config.preset}, seed {config.seed}: {minutes:.1f} minutes on "
        f"{environment['cores']} cores of {environment['cpu']}",
        fontsize=8,
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(flags.out)


if __name__ == "__main__":
    main()
