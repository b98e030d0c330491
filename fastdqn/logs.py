"""What a run writes while it trains: metrics.jsonl, episodes.csv, status.json and a viewer's files.

A disk that does not take them is no reason to lose hours of training: it is a warning, and the rows are left out.
"""

import csv
import json
import sys
from types import TracebackType
from typing import Any

from fastdqn.metrics import EpisodeTracker
from fastdqn.run_folder import RunFolder
from fastdqn.tracking import Tracker


class Logs:
    """The open logs of `folder`.

    Raises:
        OSError: they cannot be opened; only here.
    """

    def __init__(self, folder: RunFolder, episodes: EpisodeTracker, tracker: Tracker | None) -> None:
        self._folder, self._episodes, self._tracker = folder, episodes, tracker
        self._metrics = (folder.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._games = (folder.path / "episodes.csv").open("a", newline="")
        self._training_goes_on = TrainingGoesOn()
        if self._games.tell() == 0:
            csv.writer(self._games).writerow(["r", "l", "t", "env_steps", "env_id", "truncated"])

    def write(self, row: dict[str, Any]) -> None:
        """A row of metrics, the games since the last one, and the run's status."""
        with self._training_goes_on:
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
            if self._tracker is not None:
                self._tracker.write(row)
            self._flush_games()
            self._folder.status(
                "running", frames=row["frames"], frames_per_second=row["perf/fps"],
                score_mean_100=row["charts/episodic_return"],
            )  # fmt: skip

    def write_games(self) -> None:
        """The games since the last row of metrics."""
        with self._training_goes_on:
            self._flush_games()

    def close(self, state: str, **figures: Any) -> None:
        """The last games and the last status."""
        self.write_games()
        with self._training_goes_on:
            self._folder.status(state, **figures)
        for log in (self._games, self._metrics, self._tracker):
            with self._training_goes_on:
                if log is not None:
                    log.close()

    def _flush_games(self) -> None:
        if not self._games.closed:  # a save on behalf of a loop that hangs may come after its end
            csv.writer(self._games).writerows(self._episodes.taken())
            self._games.flush()


class TrainingGoesOn:
    """Makes an error of the disk a warning: one, until the disk takes the logs again.

    No context manager made of a generator: see `checkpoint._refusal`.
    """

    def __init__(self) -> None:
        self._failing = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        refused = isinstance(error, OSError)
        if refused and not self._failing:
            print(f"warning: the logs have a gap: {error}; training goes on", file=sys.stderr, flush=True)
        self._failing = refused
        return refused
