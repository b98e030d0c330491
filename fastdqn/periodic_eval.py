"""Evaluations while training goes on: `fastdqn eval` in a process of its own, on its own games.

The loop only starts it and looks, at most once a log period, whether it has ended. It runs on one core of the CPU at
the lowest priority: a second team of threads would hold up every barrier of the first. It reads the checkpoint from
the disk and leaves its result in the run's `eval/`; with `--keep-best` also the agent, in `best/`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdqn import runs


class PeriodicEval:
    """At most one evaluation at a time, of the checkpoint that is the newest when it begins.

    One that falls due while another runs is left out, and counted.

    Args:
        run: the run's folder.
        episodes: games of each evaluation.
    """

    def __init__(self, run: Path, *, episodes: int) -> None:
        self._run, self._episodes = run, episodes
        self._process: subprocess.Popen | None = None
        self._began = 0.0  # the last one, in seconds of the epoch
        self.unreported: list[dict[str, float]] = []
        self.failures: list[str] = []
        self.left_out = 0

    def poll(self) -> bool:
        """Whether an evaluation is going on; takes note of one that has ended."""
        if self._process is None or self._process.poll() is None:
            return self._process is not None
        if self._process.returncode != 0:
            self.failures.append(f"evaluation ended with exit code {self._process.returncode}; see {self._log}")
        elif (result := self._result()) is not None:  # else the disk did not take it
            self.unreported.append({"eval/score_mean": result["score_mean"], "eval/step": result["checkpoint_step"]})
        self._process = None
        return False

    def new_scores(self) -> dict[str, float]:
        """What the oldest evaluation not told of yet says of its agent, as metrics; one has to have ended for that."""
        self.poll()
        return self.unreported.pop(0) if self.unreported else {}

    def _result(self) -> dict[str, Any] | None:
        """What the last evaluation that was started here has found, None: nothing yet."""
        # of this one alone: a run that goes on from an older checkpoint has results of later steps already
        found = runs.evaluations(self._run, since=self._began) if self._began > 0 else []
        return next((result for result in reversed(found) if result.get("seed") == runs.SELECTION_SEED), None)

    def start(self) -> None:
        """Evaluates the newest checkpoint, unless an evaluation is going on. One that cannot start is a failure told later."""
        if self.poll():
            self.left_out += 1
            return
        command = [
            sys.executable, "-m", "fastdqn", "eval", str(self._run), "--episodes", str(self._episodes),
            "--device", "cpu", "--threads", "1", "--keep-best", "--seed", str(runs.SELECTION_SEED),
        ]  # fmt: skip
        self._began = time.time() - 1.0  # file systems' clocks are coarse
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            with self._log.open("a") as log:
                self._process = subprocess.Popen(
                    ["nice", "-n", "19", *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:  # no memory for a process, no place for its log, no program `nice`
            self.failures.append(f"evaluation not started: {error}")

    def finish(self, unless: Callable[[], bool]) -> bool:
        """Has the newest checkpoint evaluated, once what is going on has ended, as long as `unless` is false.

        Returns whether that was not cut short.
        """
        self.wait(unless)
        if not unless() and self._newest_is_due():
            self.start()
        self.wait(unless)
        return not (unless() and self._newest_is_due())

    def _newest_is_due(self) -> bool:
        result = self._result()
        return result is None or result["checkpoint_step"] != runs.saved_step(self._run)

    def wait(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Lets the evaluation that is going on come to its end, as long as `unless` is false."""
        while self.poll() and not unless():
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the evaluation that is going on: the run was told to stop."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @property
    def _log(self) -> Path:
        return self._run / "eval" / "log.txt"
