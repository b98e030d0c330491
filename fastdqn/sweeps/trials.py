"""One trial of a sweep: a run folder, what it still needs, and the process that does it.

    folder                              what is due       what `run` starts
    none, or no checkpoint in it        train             fastdqn train ...    (logs without a checkpoint are set aside)
    a checkpoint before the last step   resume            fastdqn resume FOLDER
    the last step, or state finished    nothing           -

So a first try, a retry and the same sweep once more are one and the same call. EnvPool hangs in a forked child and holds
the GIL, so a trial is a process of its own below the worker that calls `run`. It ends with the worker, however that
dies: it gets a SIGTERM, saves, and lets go of its folder.
"""

import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastdqn import runs
from fastdqn.run_folder import RunFolder, in_use

LOG = "train.log"  # in the run's folder: what training printed, of all tries
LOCK_SECONDS = 30.0  # how long the process of a worker that died may take to save and let go of the folder
WRONG_USAGE = 2  # exit code: trying again would not help

# `python -m fastdqn` that gets one SIGTERM when the pipe at its stdin closes, which is when the worker has died. Not the
# kernel's PR_SET_PDEATHSIG: that comes once for each thread of the worker that dies last, and the second SIGTERM would
# end a run unsaved. os.read, because a buffered reader's lock would stop the interpreter at its end.
_LAUNCH = """
import os, signal, sys, threading
def end_with_the_worker():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_the_worker, daemon=True).start()
from fastdqn.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    folder: Path  # absolute
    train: tuple[str, ...]  # the words behind `fastdqn`, when it starts from nothing

    @property
    def name(self) -> str:
        return self.folder.name


class Ending(NamedTuple):
    """How a try ended: the process's exit code, minus the signal where one ended it, and why, "" if all is well."""

    code: int
    why: str


def due(trial: Trial) -> str:
    """What the folder still needs: "train", "resume", or "nothing"."""
    if runs.status(trial.folder).get("state") == "finished":
        return "nothing"
    return "resume" if runs.saved_step(trial.folder) else "train"  # at step 0 there is nothing to go on with


def words(trial: Trial) -> tuple[str, ...]:
    """The words behind `fastdqn` that bring the trial to its end; none if it is there."""
    resume = ("resume", str(trial.folder), "--ui", "plain")
    return {"train": trial.train, "resume": resume, "nothing": ()}[due(trial)]


def run(trial: Trial, mark: Path) -> Ending:
    """Brings a trial to its end, in a process below this one that ends with it.

    Args:
        mark: a file that the sweep made; a node that does not see it does not share the sweep's disk.
    """
    node = platform.node()
    if not mark.exists():
        return Ending(
            WRONG_USAGE, f"node {node} does not see {mark.parent}: name an --out on a disk that all nodes share"
        )
    if due(trial) == "nothing":
        return Ending(0, "")
    try:
        _claim(trial)
    except ValueError as error:
        return Ending(1, str(error))
    command = [sys.executable, "-c", _LAUNCH, *words(trial)]
    with (trial.folder / LOG).open("a+", encoding="utf-8", errors="replace") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C goes to the sweep alone, which tells the trials
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.2)  # not wait(): Ray's request to stop is a KeyboardInterrupt between two instructions
        except BaseException:
            process.terminate()
            process.wait()
            raise
        log.seek(begin)
        return Ending(process.returncode, _why(process.returncode, log.read(), node, trial.folder / LOG))


def _claim(trial: Trial) -> None:
    """Waits for the folder's last process, sets a folder aside that has logs but no checkpoint, and writes a status.

    Raises:
        ValueError: the folder is still in use, or no place for a run.
    """
    folder = _opened(trial.folder)
    if due(trial) == "train" and (trial.folder / "config.toml").exists():
        trial.folder.rename(trial.folder.with_name(f".{trial.name}__{time.strftime('%Y%m%d-%H%M%S')}"))
        folder.release()
        folder = _opened(trial.folder)
    before = runs.status(trial.folder)
    folder.status("starting", **{key: before[key] for key in ("frames", "score_mean_100") if key in before})
    folder.release()


def _opened(path: Path) -> RunFolder:
    deadline = time.monotonic() + LOCK_SECONDS
    while in_use(path) and time.monotonic() < deadline:
        time.sleep(0.2)
    return RunFolder(path, resumed=True)


def _why(code: int, log: str, node: str, path: Path) -> str:
    if code == 0:
        return ""
    errors = [line.removeprefix("error: ") for line in log.splitlines() if line.startswith("error: ")]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{errors[-1] if errors else ended} (on {node}; see {path})"
