"""Metrics for other people's viewers: TensorBoard event files, or Weights & Biases.

The tags are those of metrics.jsonl, and every value stands at its env step. Nothing goes over the network unless W&B's own
variable WANDB_MODE says so: a W&B run is written in its offline form, and `wandb sync` uploads it where its owner wants that.
To W&B a resumed run is a further one of the same name: of two offline runs with one id, `wandb sync` would keep the later.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from fastdqn.errors import in_a_line
from fastdqn.machine import version


def check_installed(kind: str) -> None:
    """Raises ValueError with the line that installs the extra `kind`, where it is missing."""
    if version(kind) is None:
        raise ValueError(f"track={kind}: {kind} is not installed; pip install 'fastdqn[{kind}]'")


class Tracker:
    """Writes each row of metrics to a viewer's own files below the run's folder.

    Args:
        kind: "tensorboard" (extra `tensorboard`, files under `tensorboard/`) or "wandb" (extra `wandb`, under `wandb/`).
        config: what the viewer shows as the run's settings.
        begin: env step from which the run goes on; TensorBoard hides what a process that was killed wrote beyond it.

    Raises:
        ValueError: W&B cannot begin in the mode that WANDB_MODE asks for.
    """

    def __init__(self, kind: str, folder: Path, *, name: str, config: dict[str, Any], begin: int = 0) -> None:
        self._board = self._wandb = None
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10, purge_step=begin + 1)
            lines = "".join(f"{key}: {value}  \n" for key, value in config.items())  # two spaces: a break in Markdown
            self._board.add_text("config", lines)
        else:
            wandb, mode = import_module("wandb"), os.environ.get("WANDB_MODE", "offline")
            try:
                self._wandb = wandb.init(
                    project="fastdqn", name=name, dir=str(folder), config=config, mode=mode,
                    settings={"console": "off", "silent": True},
                )  # fmt: skip
            except (wandb.Error, ValueError) as error:  # no account, no network, no such mode
                raise ValueError(
                    f"track=wandb, WANDB_MODE={mode}: {in_a_line(error)}; WANDB_MODE=offline needs no account"
                ) from error

    def write(self, row: dict[str, Any]) -> None:
        """One row of metrics; `global_step` is its place on the x axis, missing values are left out."""
        step = row["global_step"]
        values = {tag: value for tag, value in row.items() if value is not None and tag != "global_step"}
        if self._board is not None:
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
