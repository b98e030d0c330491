"""Many trials on Ray: queue them, watch their folders, try again, stop them. Ray places; the folders hold the state.

Every trial is one task. Ray runs as many as there are cores and GPUs for, and counts shares of a GPU without enforcing
them. Ray's own retries are off: a trial that failed goes back into the queue here, and resumes from its checkpoint.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from fastdqn import runs
from fastdqn.dashboard import Display
from fastdqn.errors import UsageError
from fastdqn.machine.signals import StopRequest
from fastdqn.sweeps import trials
from fastdqn.sweeps.trials import Ending, Trial
from fastdqn.units import clock, count, counted, or_dash

OBJECT_STORE_BYTES = 100_000_000  # trials exchange nothing, and Ray would reserve a third of the memory
ORDER = ("running", "starting", "failed", "interrupted", "waiting", "finished")  # of the table, from the top


@dataclass
class Progress:
    """A trial as the sweep sees it."""

    trial: Trial
    total_frames: int
    tries: int = 0
    ended: str = ""  # "finished", "failed" or "interrupted" once it has; the folder says what it does until then
    why: str = ""  # how the last try went wrong
    before: dict[str, Any] = field(default_factory=dict)  # its status when it was queued

    def row(self) -> dict[str, Any]:
        """Its figures, from status.json."""
        status = runs.status(self.trial.folder)
        state = "waiting" if status == self.before else status.get("state", "starting")
        figures = {key: status.get(key) for key in ("frames", "frames_per_second", "score_mean_100", "node")}
        return {
            "trial": self.trial.name, "state": self.ended or state, "tries": self.tries,
            "total_frames": self.total_frames, **figures, "why": self.why,
        }  # fmt: skip


@contextmanager
def connected(address: str, *, cpus: int, gpus: int, at_once: int | None) -> Iterator[Any]:
    """The module ray, connected to the cluster at `address`, or, where that is empty, to one on this machine alone.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    here["resources"] = {"trial": at_once}
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray = import_module("ray")
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else here))
    except ImportError:
        raise UsageError("sweep: Ray is not installed; pip install 'fastdqn[scale]'") from None
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "see that it runs (ray start --head) and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are its own"
        raise UsageError(f"address={address or 'local'}: Ray does not answer ({reason}); {remedy}") from error
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died; stdout may have to end in JSON alone
            yield ray
    finally:
        ray.shutdown()


def run_all(
    ray: Any, queue: Sequence[Progress], *, mark: Path, cpus: int, gpus: float, at_once: int | None, retries: int,
    board: "Board",
) -> int:  # fmt: skip
    """Runs every trial to its end, or until Ctrl-C or SIGTERM, on which each of them saves.

    Args:
        mark: see `trials.run`.
        cpus, gpus: what each trial takes.
        at_once: how many run at most; None: as many as the cluster has room for.
        retries: how often a trial that failed is tried again.

    Returns:
        0; 1 if a trial failed for good; 130, 143 or 129 if stopped.
    """
    slot = {} if at_once is None else {"trial": 1}
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, resources=slot, max_retries=0)(trials.run)

    def queued(progress: Progress) -> Any:
        progress.tries, progress.before = progress.tries + 1, runs.status(progress.trial.folder)
        return task.remote(progress.trial, mark)

    # Ray has taken SIGTERM for itself, so only from here on are signals ours
    with StopRequest() as stop, closing(board):
        pending = {queued(progress): progress for progress in queue}
        stopping = False
        while pending:
            if stop.requested and not stopping:
                stopping = True
                board.say("stopping: each trial saves; once more ends them at once")
                for reference in pending:
                    ray.cancel(reference)
            for reference in ray.wait(list(pending), timeout=0.5)[0]:
                progress = pending.pop(reference)
                code, progress.why = result(ray, reference)
                if code == 0:
                    progress.ended = "finished"
                elif stopping:
                    progress.ended, progress.why = "interrupted", ""
                elif code == trials.WRONG_USAGE or progress.tries > retries:
                    progress.ended = "failed"
                    board.say(f"{progress.trial.name} failed: {progress.why}")
                else:
                    board.say(f"{progress.trial.name}: {progress.why}; retry {progress.tries} of {retries}")
                    pending[queued(progress)] = progress
            board.update([progress.row() for progress in queue])
    return stop.exit_code or int(any(progress.ended == "failed" for progress in queue))


def result(ray: Any, reference: Any) -> Ending:
    """How a try ended, also where the worker or its whole node is gone."""
    try:
        return Ending(*ray.get(reference))
    except ray.exceptions.RayError as error:
        text = str(error).strip().splitlines() or [""]
        return Ending(1, f"Ray: {type(error).__name__}, {text[-1].strip()}")


class Board(Display):
    """Shows all trials: a live table on a terminal, else a line for each change and now and then one for who runs.

    The arguments are those of `Display`.
    """

    def __init__(self, mode: str, stream: TextIO) -> None:
        super().__init__(mode, stream, live_seconds=1.0, plain_seconds=60.0)
        self._states: dict[str, str] = {}
        self._started = time.monotonic()

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Draws, if the last drawing is long enough ago; a change of state is a line at once."""
        due = self.due()
        if self.mode == "live" and due:
            self.draw(table(rows))
        if self.mode == "plain":
            for row in rows:
                if self._states.get(row["trial"], "waiting") != row["state"] or (due and row["state"] == "running"):
                    self.say(f"[{clock(time.monotonic() - self._started)}] {line(row)}")
        self._states = {row["trial"]: row["state"] for row in rows}


def cells(row: dict[str, Any]) -> list[str]:
    """Frames, frames per second, score and node, in words."""
    fps = row["frames_per_second"] if row["state"] in ("running", "finished") else None
    return [
        f"{count(row['frames'] or 0)}/{count(row['total_frames'])}",
        or_dash(fps, count),
        or_dash(row["score_mean_100"], ".2f"),
        row["node"] or "-",
    ]


def line(row: dict[str, Any]) -> str:
    """`Pong__fast__s1 running frames=1.20M/40.0M fps=9.1k score100=-20.31 node=a`"""
    names = ("frames", "fps", "score100", "node")
    figures = " ".join(f"{name}={cell}" for name, cell in zip(names, cells(row), strict=True))
    return f"{row['trial']} {row['state']} {figures}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The live view: who runs first, so that a small terminal cuts off what waits and what is done."""
    done = sum(row["state"] == "finished" for row in rows)
    title = f"{done} of {counted(len(rows), 'trial')} finished"
    drawn = Table(title=title, caption="score: mean of the last 100 games")
    for name in ("trial", "state", "frames", "frames/s", "score", "node"):
        drawn.add_column(name, justify="right" if name in ("frames", "frames/s", "score") else "left", no_wrap=True)
    for row in sorted(rows, key=lambda row: ORDER.index(row["state"])):
        state = row["state"] + (f", try {row['tries']}" if row["tries"] > 1 else "")
        drawn.add_row(row["trial"], state, *cells(row))
    return drawn
