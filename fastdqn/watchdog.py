"""Ends a process that is stuck in a blocking call, with stacks and a saved run instead of silence.

A blocked `recv` of EnvPool holds no Python lock, but it ignores SIGINT, and Python's own signal handlers cannot run
while it blocks. Only another thread can act.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

_SAVE_SECONDS = 30  # what on_stall may take before the process ends without it


class Watchdog:
    """A daemon thread that watches one blocking call: `with watchdog: blocking_call()`.

    After `stall_seconds` inside the block it dumps the stacks of all threads to stderr, calls `on_stall` in its own
    thread, and ends the process with exit code 1. Entering and leaving costs one attribute write each.
    """

    def __init__(self, what: str, stall_seconds: float, on_stall: Callable[[], object] | None = None) -> None:
        self._what, self._stall_seconds, self._on_stall = what, stall_seconds, on_stall
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watchdog of {what}", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._stall_seconds / 4, 1.0)):
            since = self._since
            if since is not None and time.monotonic() - since > self._stall_seconds:
                self._end()

    def _end(self) -> None:
        print(f"error: {self._what} has not answered for {self._stall_seconds:g} s; stacks follow", file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        faulthandler.dump_traceback_later(_SAVE_SECONDS, exit=True)  # in case on_stall hangs as well
        if self._on_stall is not None:
            try:
                self._on_stall()
            except Exception:
                traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
