"""Reading what runs left behind, while they are still being written too."""

import csv
import difflib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdqn.errors import UsageError

RUNS = Path("runs")
# of the evaluations during training; not `fastdqn eval`'s own: games that chose an agent flatter it when they score it
SELECTION_SEED = 0


class Games(NamedTuple):
    """The finished games of a run, in the order in which they ended."""

    score: np.ndarray  # float64 [G], unclipped
    length: np.ndarray  # int64 [G], env steps
    seconds: np.ndarray  # float64 [G], since the loop began
    env_steps: np.ndarray  # int64 [G], of the whole run when the game ended
    truncated: np.ndarray  # bool [G]


def find(name: str) -> Path:
    """The folder of a run, given as a path or as its name under `runs/`.

    Raises:
        UsageError: there is no such run; names the nearest ones.
    """
    for path in (Path(name), RUNS / name):
        try:
            if (path / "config.toml").is_file():
                return path
        except OSError as error:  # a name that is too long, a folder that is not ours
            raise UsageError(f"run={name}: {error.strerror}; name the folder that training printed") from None
    known = sorted(path.parent.name for path in RUNS.glob("*/config.toml"))
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "name the folder that training printed"
    raise UsageError(f"run={name}: holds no run (no config.toml); {hint}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that is still being written is left out."""
    return _json_lines(run / "metrics.jsonl")


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The results under eval/, oldest first: by checkpoint step, protocol and time; those that chose an agent before others."""
    # a name that begins with a dot is a result that is still being written
    files = sorted((run / "eval").glob("[!.]*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    results = [json.loads(path.read_text()) for path in files]
    return sorted(
        results,
        key=lambda one: (
            one.get("checkpoint_step", 0),
            one.get("protocol", ""),
            one.get("seed") != SELECTION_SEED,
        ),
    )


def status(run: Path) -> dict[str, Any]:
    """status.json: `state` is running, finished, interrupted or failed, starting in a sweep; empty before the first."""
    try:
        return json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {}


def saved_step(run: Path) -> int | None:
    """Env step of the newest checkpoint by its name, intact or not; None: there is none. Needs no torch."""
    names = (path.name.removeprefix("step_") for path in (run / "checkpoints").glob("step_*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def environment(run: Path) -> dict[str, Any]:
    """environment.json: versions, processor, GPU, commit."""
    try:
        return json.loads((run / "environment.json").read_text())
    except FileNotFoundError:
        return {}


def games(run: Path) -> Games:
    """The rows of episodes.csv; a last line that is still being written is left out."""
    path = run / "episodes.csv"
    text = path.read_text() if path.exists() else ""
    rows = [
        (float(row[0]), int(row[1]), float(row[2]), int(row[3]), row[5] == "1")
        for row in csv.reader(text[: text.rfind("\n") + 1].splitlines())
        if row and row[0] != "r"  # a header, written again where a run was resumed
    ]
    score, length, seconds, env_steps, truncated = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Games(
        np.array(score, np.float64),
        np.array(length, np.int64),
        np.array(seconds, np.float64),
        np.array(env_steps, np.int64),
        np.array(truncated, np.bool_),
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line]
