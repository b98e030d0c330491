"""Ends a process that is stuck in a blocking call, with stacks and a saved run instead of silence.

A blocked `recv` of EnvPool holds no Python lock, but it ignores SIGINT, and Python's own signal handlers cannot run
while it blocks. Only another thread can act.
"""

import contextlib
import faulthandler
import os
import threading
import traceback
from collections.abc import Callable

_TICKS = 10  # looks per stall period
_STDERR = 2  # the descriptor: sys.stderr may be a notebook's object that faulthandler cannot write to


class Watchdog:
    """A daemon thread that watches one blocking call at a time: `with watchdog: blocking_call()`.

    After `stall_seconds` inside one block it dumps the stacks of all threads to stderr, calls `on_stall` in its own
    thread, and ends the process with exit code 1, within `grace_seconds` even if `on_stall` hangs too. Entering and
    leaving costs two attribute writes.

    Time is counted in the thread's own ticks, not read off a clock: a process that was stopped (Ctrl-Z) for an hour in
    mid-wait has not stalled.
    """

    def __init__(
        self,
        what: str,
        stall_seconds: float,
        on_stall: Callable[[], object] | None = None,
        grace_seconds: float = 60.0,
    ) -> None:
        self._what, self._stall_seconds = what, stall_seconds
        self._on_stall, self._grace_seconds = on_stall, grace_seconds
        self._waits, self._is_waiting = 0, False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name=f"watchdog of {what}", daemon=True).start()

    def __enter__(self) -> None:
        self._waits += 1  # first: the thread must never take a new wait for the last one
        self._is_waiting = True

    def __exit__(self, *_: object) -> None:
        self._is_waiting = False

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _watch(self) -> None:
        seen, ticks = -1, 0
        while not self._closed.wait(self._stall_seconds / _TICKS):
            if self._is_waiting and self._waits == seen:
                ticks += 1
                if ticks >= _TICKS:
                    self._end()
            else:
                seen, ticks = self._waits, 0

    def _end(self) -> None:
        for act in (self._report, self._on_stall):
            try:
                if act is not None:
                    act()
            except BaseException:  # a thread that died here would leave the process hanging
                with contextlib.suppress(Exception):
                    traceback.print_exc()
        os._exit(1)

    def _report(self) -> None:
        faulthandler.dump_traceback_later(self._grace_seconds, exit=True, file=_STDERR)  # a C thread, needs no GIL
        line = f"error: {self._what} has not answered for {self._stall_seconds:g} s; stacks follow\n"
        os.write(_STDERR, line.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
