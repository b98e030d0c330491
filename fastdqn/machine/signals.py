"""Ctrl-C, SIGTERM and a terminal that goes away: a request that the loop answers between two groups, or that is
answered for it.

Python runs a signal's handler between two of its own instructions, so never while EnvPool's `recv` or a compiler holds
the main thread. The kernel's handler, though, writes the signal's number into a pipe at once (`signal.set_wakeup_fd`),
and a thread reads it.
"""

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_RESORT_SECONDS = 6.0  # for saving on behalf of a loop that does not answer


class StopRequest:
    """While active, the first SIGINT, SIGTERM or SIGHUP is remembered; a second one acts as it would have before.

    SIGHUP comes when the terminal is closed or its connection drops, from the shell and from the kernel: after a first
    signal it is ignored. Under nohup it is ignored from the beginning.

    Args:
        grace_seconds: how long the loop may take to ask `requested`. After that `on_ignored` is called in a thread of
            its own, and the process ends with 128 + the signal.
    """

    def __init__(self, grace_seconds: float = 3.0) -> None:
        self.signal: int | None = None
        self.on_ignored: Callable[[], object] | None = None
        self.saving: Callable[[], bool] = lambda: False  # while it is true a loop that does not answer is waited for
        self.signs_of_life = 0  # counted up by a loop amid work that takes long; it is not stuck then
        self._grace_seconds = grace_seconds
        self._answered = threading.Event()
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop; to ask is to answer."""
        if self.signal is None:
            return False
        self._answered.set()
        return True

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._remember)
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._answered.set()
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)  # ends the thread
        _handle(self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        _handle({**self._previous, signal.SIGHUP: signal.SIG_IGN})

    def _watch(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in SIGNALS:
                    self._wait(number[0])  # a second one's is over at once

    def _wait(self, number: int) -> None:
        """Until the loop answers, or shows neither a sign of life nor a save for a whole grace period."""
        seen, saved = self.signs_of_life, False
        while not self._answered.wait(self._grace_seconds):
            saving = self.saving()
            if not (saving or saved or self.signs_of_life != seen):
                self._end(number)
            seen, saved = self.signs_of_life, saving

    def _end(self, number: int) -> None:
        threading.Timer(LAST_RESORT_SECONDS, os._exit, (128 + number,)).start()
        if self.on_ignored is None:
            with contextlib.suppress(OSError):
                os.write(2, b"interrupted\n")
        else:
            try:
                self.on_ignored()
            except BaseException:
                with contextlib.suppress(Exception):
                    traceback.print_exc()
        os._exit(128 + number)


def _handle(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():  # amid this a second signal may come, and do the same
        if handler is not None:  # one that was not set from Python cannot be set again
            signal.signal(number, handler)
