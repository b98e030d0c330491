"""The folder a run leaves behind: config, command, environment, status. DESIGN of its names: see the README."""

import json
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class RunFolder:
    """Makes and fills `runs/{game}__{preset}__s{seed}__{time}/`, or the folder the user named.

    Raises:
        ValueError: the folder already holds a run.
    """

    def __init__(self, run_dir: str, *, game: str, preset: str, seed: int) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        safe = re.sub(r"[^A-Za-z0-9._-]", "-", f"{game}__{preset}__s{seed}__{stamp}")
        self.path = Path(run_dir) if run_dir else _unused(Path("runs") / safe)
        if (self.path / "config.toml").exists():
            raise ValueError(f"run_dir={run_dir}: already holds a run; name a new folder or leave run_dir out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run_dir={run_dir}: {error.strerror}; name a folder that can be written") from error
        self.checkpoints = self.path / "checkpoints"
        for folder in (self.checkpoints, self.path / "eval", self.path / "videos"):
            folder.mkdir(exist_ok=True)

    def describe(self, config_toml: str, command: Sequence[str], environment: dict[str, Any]) -> None:
        """Writes what was asked for, with which words, and on what."""
        (self.path / "command.txt").write_text(shlex.join(command) + "\n")
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
        (self.path / "config.toml").write_text(config_toml)

    def status(self, state: str, **figures: Any) -> None:
        """Replaces status.json in one step, so that a reader never sees half of it."""
        row = {"state": state, "pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **figures}
        temporary = self.path / ".status.json"
        temporary.write_text(json.dumps(row) + "\n")
        temporary.replace(self.path / "status.json")


def _unused(path: Path) -> Path:
    """Two runs started in one second get two folders."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
