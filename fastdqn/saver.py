"""A thread that writes checkpoints while training goes on: the loop pays for the copy alone, not for the disk."""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdqn import checkpoint


class Saver:
    """Writes one checkpoint at a time under `root`; what could not be written is a warning, and training goes on.

    Two threads may save: the loop, and whoever saves on its behalf because it did not answer a signal or a watchdog.
    """

    def __init__(self, root: Path, saved: int | None = None, keep: int = checkpoint.KEEP) -> None:
        self._root, self._keep = root, keep
        self.saved = saved  # step of the last checkpoint that is on the disk
        self._thread: threading.Thread | None = None
        self._saving = threading.Lock()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        large: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copies `tensors` now and writes them behind the loop's back, after the one before has been written.

        `large` tensors are too large to copy: with them it returns when everything is on the disk, so that no row is
        overwritten before it is saved.
        """
        with self._saving:
            self.wait()
            host = checkpoint.to_host(tensors)
            thread = threading.Thread(target=self._write, args=(step, host, state, large), name="checkpoint writer")
            thread.start()
            self._thread = thread
        if large is not None:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is left to write."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, step: int, *parts: Any) -> None:
        try:
            checkpoint.write(self._root, step, *parts, keep=self._keep)
            self.saved = step
        except checkpoint.CheckpointError as error:
            print(f"warning: {error}; training goes on", file=sys.stderr, flush=True)
