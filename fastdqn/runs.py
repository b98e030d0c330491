"""Reading what runs left behind, while they are still being written too."""

import difflib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdqn.errors import RunError, UsageError

RUNS = Path("runs")
# Of the evaluations during training. `fastdqn eval` has another: an agent chosen by some games looks too good in them.
SELECTION_SEED = 0
_RESULT_NUMBERS = (
    "checkpoint_step", "sticky_actions", "epsilon", "seed", "episodes", "distinct_games", "score_mean", "score_median",
    "score_min", "score_max",
)  # fmt: skip


class Games(NamedTuple):
    """The finished games of a run, in the order in which they ended."""

    score: np.ndarray  # float64 [G], unclipped
    seconds: np.ndarray  # float64 [G], since the loop began
    env_steps: np.ndarray  # int64 [G], of the whole run when the game ended


def find(name: str) -> Path:
    """The folder of a run, given as a path or as its name under `runs/`.

    Raises:
        UsageError: there is no such run; names the nearest ones.
    """
    folder = False
    for path in (Path(name), RUNS / name):
        try:
            folder = folder or path.is_dir()
            if (path / "config.toml").is_file():
                return path
        except OSError as error:  # a name that is too long, a folder that is not ours
            raise UsageError(f"run={name}: {error.strerror}; name the folder that training printed") from None
    known = sorted(path.parent.name for path in RUNS.glob("*/config.toml"))
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "name the folder that training printed"
    problem = "holds no run (no config.toml)" if folder else f"no such folder, here or under {RUNS}/"
    raise UsageError(f"run={name}: {problem}; {hint}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that is still being written is left out.

    Raises:
        ValueError: a line is no row of metrics.
    """
    return [metrics_row(line) for line in _whole_lines(run / "metrics.jsonl")]


def metrics_row(line: str) -> dict[str, Any]:
    """A line of metrics.jsonl: numbers by tag, None for what is not one. Raises ValueError if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not all(
        _count(row.get(name)) for name in ("global_step", "frames", "wall_seconds")
    ):
        raise ValueError(f"metrics.jsonl: no row of metrics: {line[:60].rstrip()}")
    return {tag: value if _number(value) else None for tag, value in row.items()}


def evaluations(run: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """The results under eval/; the last one counts: of the newest checkpoint, made last.

    Of one checkpoint those that chose an agent come before the others. The step goes before the time, for a copied folder
    has the times of its copying. A file that is no result is left out, and so is one from before `since`, seconds of the
    epoch.
    """
    # a name that begins with a dot is a result that is still being written
    files = sorted((run / "eval").glob("[!.]*.json"), key=lambda path: (path.lstat().st_mtime_ns, path.name))
    found = (_json_object(file) for file in files if file.lstat().st_mtime >= since)
    results = [result for result in found if _is_result(result)]
    return sorted(results, key=lambda one: (one["checkpoint_step"], one["seed"] != SELECTION_SEED))


def status(run: Path) -> dict[str, Any]:
    """status.json: texts and numbers; empty where there is none.

    `state` is starting, until the first log row, then running, and in the end finished, interrupted or failed.
    """
    found = _json_object(run / "status.json")
    texts = ("state", "node", "time", "run_dir", "env", "preset")
    return {k: v for k, v in found.items() if (isinstance(v, str) if k in texts else _number(v))}


def saved_step(run: Path) -> int | None:
    """Env step of the newest checkpoint by its name, intact or not; None: there is none. Needs no torch.

    Raises:
        RunError: the folder of checkpoints is there and cannot be read.
    """
    try:
        names = os.listdir(run / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{run / 'checkpoints'}: cannot be read ({error.strerror})") from None
    steps = (name.removeprefix("step_") for name in names if name.startswith("step_"))
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def environment(run: Path) -> dict[str, Any]:
    """environment.json: versions, processor, GPU, commit, None for what was not there; empty where there is none."""
    found = _json_object(run / "environment.json")
    return {k: v for k, v in found.items() if (_number(v) if k == "cores" else v is None or isinstance(v, str))}


def command(run: Path) -> str:
    """command.txt: a line for the beginning and for each resume; empty where there is none."""
    return _text(run / "command.txt").strip()


def games(run: Path) -> Games:
    """The rows of episodes.csv; a last line that is still being written is left out.

    Raises:
        ValueError: a line is no row of it.
    """
    lines = _whole_lines(run / "episodes.csv")
    rows = [game_row(line) for line in lines if not line.startswith("r,")]  # a header, again after a resume
    score, seconds, env_steps = zip(*rows, strict=True) if rows else ((), (), ())
    return Games(np.array(score, np.float64), np.array(seconds, np.float64), np.array(env_steps, np.int64))


def game_row(line: str) -> tuple[float, float, int]:
    """A line of episodes.csv: the columns of `Games`. Raises ValueError if it is none."""
    try:
        score, length, seconds, env_steps, _, _ = line.rstrip().split(",")
        row = float(score), float(seconds), int(env_steps)
    except ValueError:
        row, length = None, ""
    if row is None or not (length.isdecimal() and _number(row[0]) and _count(row[1]) and 0 <= row[2] < 2**63):
        raise ValueError(f"episodes.csv: no row of a game: {line[:60].rstrip()}")
    return row


def _whole_lines(path: Path) -> list[str]:
    """The lines of a log; a last one that is still being written is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]


def _is_result(found: dict[str, Any]) -> bool:
    interval = found.get("score_ci95")
    return (
        isinstance(found.get("protocol"), str)
        and all(_number(found.get(name)) for name in _RESULT_NUMBERS)
        and isinstance(interval, list)
        and len(interval) == 2
        and all(map(_number, interval))
        and _number(found.get("frames", 0))
        and (found.get("human_normalized") is None or _number(found["human_normalized"]))
    )


def _number(value: Any) -> bool:
    """Whether it is one to reckon with: not NaN, not infinite, and so small that no sum or square of a few is."""
    return isinstance(value, int | float) and abs(value) < 1e100


def _count(value: Any) -> bool:
    return _number(value) and value >= 0


def _text(path: Path) -> str:
    """What a file says; "" where there is none, or none of text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _json_object(path: Path) -> dict[str, Any]:
    """What a JSON file says; {} where there is none, or none that holds an object."""
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
