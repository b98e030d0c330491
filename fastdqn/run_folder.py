"""The folder a run leaves behind: config, command, environment, status. The README names all it holds."""

import fcntl
import json
import os
import platform
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from fastdqn.runs import saved_step


class RunFolder:
    """Makes and fills the folder of one run.

    Raises:
        ValueError: the folder already holds a run, is in use, cannot be made, or holds a symlink.
    """

    def __init__(self, run_dir: str | Path, *, resumed: bool = False) -> None:
        self.path = Path(run_dir)
        check_free(run_dir, resumed=resumed)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run_dir={run_dir}: {error.strerror}; name a folder that can be written") from error
        self._lock = _locked(self.path)
        self.checkpoints = self.path / "checkpoints"
        for folder in (self.checkpoints, self.path / "eval", self.path / "videos"):
            folder.mkdir(exist_ok=True)

    def describe(self, config_toml: str, command: Sequence[str], environment: dict[str, Any]) -> None:
        """Writes what was asked for, with which words, and on what."""
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:  # one line for each beginning and resume
            file.write(shlex.join(command) + "\n")
        replace_text(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
        replace_text(self.path / "config.toml", config_toml)

    def release(self) -> None:
        """Lets another process have the folder."""
        self._lock.close()

    def status(self, state: str, **figures: Any) -> None:
        """Replaces status.json."""
        row = {
            "state": state,
            "pid": os.getpid(),
            "node": platform.node(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **figures,
        }
        replace_text(self.path / "status.json", json.dumps(row) + "\n")


def check_free(run_dir: str | Path, *, resumed: bool) -> None:
    """Refuses a folder that is no place for a run; writes nothing. Where it is "", a new one will be named.

    Asked before the games are built, for that takes long, and again when the folder is taken.

    Raises:
        ValueError: the folder already holds a run, holds a symlink, or is in use.
    """
    if run_dir == "":
        return
    path = Path(run_dir)
    if (path / "config.toml").exists() and not resumed and not _never_ran(path):
        on = "fastdqn resume goes on with it" if _saved(path) else "it saved nothing to go on from: move it away"
        raise ValueError(f"run_dir={run_dir}: already holds a run; {on}, or name a new folder")
    if links := sorted(entry.name for entry in path.glob("*") if entry.is_symlink()):  # even of the lock
        raise ValueError(f"run_dir={run_dir}: its {links[0]} is a symlink, which would be written through; remove it")
    if process := in_use(path):
        raise ValueError(f"run_dir={run_dir}: in use by process {process}; end it first")


def _never_ran(path: Path) -> bool:
    """Whether what was begun here ended before its first row, as when the compiler fails: nothing is lost with it."""
    rows = path / "metrics.jsonl"
    return (path / "environment.json").exists() and not _saved(path) and not (rows.exists() and rows.stat().st_size)


def _saved(path: Path) -> bool:
    return saved_step(path) is not None  # what a save that was killed leaves behind is no checkpoint


def _locked(path: Path) -> IO[str]:
    """Holds the folder for this process until it ends, however it ends: a lock of the kernel, not a file left behind."""
    lock = (path / ".lock").open("a+")
    for again in (True, False):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if again:
                time.sleep(0.05)  # `in_use` holds it for a moment
                continue
            raise ValueError(f"run_dir={path}: in use by process {in_use(path) or '?'}; end it first") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def in_use(path: Path) -> str:
    """The process that holds the folder, "" where none does. Writes nothing: the folder may be read-only."""
    try:
        with open(os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK)) as lock:  # of a pipe it waits for no writer
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: readers do not take each other for the run
            except BlockingIOError:
                return lock.read().strip() or "?"
    except OSError:  # no lock: a copy of a run
        pass
    return ""


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with a text."""
    replace_file(path, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file in one step: who reads it meanwhile sees the old one or the new one, never a half.

    What is no file, a pipe or a device such as /dev/stdout, is written to: root would replace it.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half of it, on a full disk


def trim(path: Path, keep: Callable[[str], bool]) -> int:
    """Drops half lines, lines that `keep` refuses, and damaged ones, on which it raises. Returns how many were damaged."""
    kept, damaged = [], 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            if line.endswith(b"\n") and keep(line.decode()):
                kept.append(line)
        except (ValueError, LookupError, TypeError, RecursionError):  # it would stop every later reader
            damaged += 1
    if len(kept) < len(lines):
        replace_text(path, b"".join(kept).decode())
    return damaged


def default_path(game: str, preset: str, seed: int, *, under: str = "runs") -> Path:
    """`runs/{game}__{preset}__s{seed}__{time}`; two runs that start in one second get two folders."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path(under) / re.sub(r"[^A-Za-z0-9._-]", "-", f"{game}__{preset}__s{seed}__{stamp}")
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
