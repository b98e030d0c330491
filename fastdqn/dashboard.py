"""What a person sees of a run: a live panel on a terminal, one greppable line every 10 s without.

The training loop itself calls `update`; there is no refresh thread, because one refresh costs 9 ms of the GIL and the
emulator's host thread would pay for it at random moments.
"""

import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastdqn.atari import parse_env, steps_per_second
from fastdqn.metrics import Snapshot
from fastdqn.units import clock, count, duration, or_dash


class Display:
    """Lines that are said, and on a terminal a picture below them.

    Args:
        mode: "live", "plain", "quiet", or "auto": live on a terminal, else plain.
        stream: where to; None: stdout.
        live_seconds, plain_seconds: shortest time between two pictures, two lines that stand for them.
    """

    def __init__(self, mode: str, stream: TextIO | None, *, live_seconds: float, plain_seconds: float) -> None:
        output = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        self._console = Console(file=cast(TextIO, Lasting(output)), highlight=False)
        # isatty, not rich's is_terminal: FORCE_COLOR, common in CI, would draw the picture into a log file
        can_redraw = self._console.file.isatty() and not self._console.is_dumb_terminal
        self.mode = ("live" if can_redraw else "plain") if mode == "auto" else mode
        self._period = live_seconds if self.mode == "live" else plain_seconds
        self._drawn = time.monotonic()
        self._live: Live | None = None

    def say(self, *lines: str) -> None:
        """Prints lines, above the picture where there is one."""
        if self.mode != "quiet":
            for line in lines:
                self._console.print(Text(line), soft_wrap=True)

    def due(self) -> bool:
        """Whether the last drawing is long enough ago; the next period then begins."""
        now = time.monotonic()
        if now - self._drawn < self._period:
            return False
        self._drawn = now
        return True

    def draw(self, picture: RenderableType) -> None:
        """Draws the picture anew."""
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(picture, refresh=True)

    def close(self) -> None:
        """Takes the picture away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Dashboard(Display):
    """Draws snapshots of a run; the arguments are those of `Display`."""

    def __init__(
        self, mode: str, stream: TextIO | None = None, *, live_seconds: float = 1.0, plain_seconds: float = 10.0
    ) -> None:
        super().__init__(mode, stream, live_seconds=live_seconds, plain_seconds=plain_seconds)
        self._last: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Draws, if the last drawing is long enough ago."""
        self._last = snapshot
        if self.mode == "quiet" or not self.due():
            return
        if self.mode == "live":
            self.draw(panel(snapshot, self._console.width))
        else:
            self.say(plain_line(snapshot))
            self._last = None  # it need not be said again at the end

    def close(self) -> None:
        """Takes the panel away and leaves its figures as one line."""
        super().close()
        if self._last is not None:
            self.say(plain_line(self._last))
            self._last = None


class Lasting:
    """A stream that may fail: its reader, `head` or a terminal, goes away, or the disk it is written to is full.

    rich would end the process, with no word and in the middle of training. Here it is one warning.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._warned = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._attempt(self._stream.write, text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[..., object], *given: str) -> None:
        """Does it, or warns. No context manager made of a generator: see `checkpoint._refusal`."""
        try:
            act(*given)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if error.errno in (errno.EPIPE, errno.EIO):  # for good: what is still buffered would fail again at the end
                os.dup2(nowhere, self._stream.fileno())
            try:
                if not self._warned:
                    print(f"warning: this run's output cannot be written ({error}); training goes on", file=sys.stderr)
            except OSError:
                os.dup2(nowhere, 2)
            os.close(nowhere)
            self._warned = True


def plain_line(s: Snapshot) -> str:
    """`[00:05:12] frames=12.3M/40.0M fps10=41.2k ...`"""
    eta = "?" if s.eta_seconds is None else duration(s.eta_seconds)
    gpu = "" if s.gpu_memory_bytes is None else f" gpu={s.gpu_memory_bytes / 1e9:.1f}G"
    return (
        f"[{clock(s.wall_seconds)}] frames={count(s.frames)}/{count(s.total_frames)}"
        f" fps10={count(s.frames_per_second_10s)} fps60={count(s.frames_per_second_60s)} score100={or_dash(s.score_mean_100, '.2f')} eps={s.epsilon:.3f}"
        f" loss={or_dash(s.loss, '.4f')} q={or_dash(s.q_mean, '.3f')} updates={count(s.updates)} episodes={count(s.episodes)}"
        f" mem={s.memory_bytes / 1e9:.1f}G{gpu} eta={eta}"
    )


def ending(state: str, folder: Path, figures: Mapping[str, Any], *, resumable: bool) -> list[str]:
    """How a run ended: its state and folder, and unless it failed, its result and what to do with it next."""
    if state == "failed":
        return [f"{state}: {folder}"]
    run, score, games = shlex.quote(str(folder)), figures["score_mean_100"], min(figures["episodes"], 100)
    result = (
        "no game has ended" if score is None else f"score {score:.2f} over the last {games} game{'s' * (games != 1)}"
    )
    result += f", {count(figures['frames'])} frames, {duration(figures['wall_seconds'])}"
    if state == "finished":
        pictured = steps_per_second(parse_env(figures["env"]), 1) is not None
        result += f"; next: {f'fastdqn play {run}, or ' * pictured}fastdqn eval {run}"
    elif resumable:
        result += f"; go on with fastdqn resume {run}"
    return [f"{state}: {folder}", result]


def panel(s: Snapshot, width: int) -> Panel:
    """The live view for a terminal of `width` columns: two rows of figures, or four."""
    share = s.frames / max(s.total_frames, 1)
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(no_wrap=True, justify="right")
    eta = "?" if s.eta_seconds is None else duration(s.eta_seconds)
    progress.add_row(
        f"{count(s.frames)}/{count(s.total_frames)} frames",
        ProgressBar(total=1.0, completed=min(share, 1.0)),
        f"{share:.1%}  ETA {eta}",
    )
    words = (
        f"frames/s {count(s.frames_per_second_10s)}",
        f"60 s {count(s.frames_per_second_60s)}",
        f"score {or_dash(s.score_mean_100, '.2f')}",
        f"games {count(s.episodes)}",
        f"loss {or_dash(s.loss, '.4f')}",
        f"Q {or_dash(s.q_mean, '.3f')}",
        f"epsilon {s.epsilon:.3f}",
        f"updates {count(s.updates)}",
    )
    figures, columns = Table.grid(padding=(0, 2), expand=True), 4 if width >= 76 else 2
    for _ in range(columns):
        figures.add_column(no_wrap=True, ratio=1)
    for begin in range(0, len(words), columns):
        figures.add_row(*words[begin : begin + columns])
    gpu = "" if s.gpu_memory_bytes is None else f"  gpu {s.gpu_memory_bytes / 1e9:.1f} GB"
    total = sum(s.phase_seconds.values()) or 1.0
    phases = " ".join(f"{name} {seconds / total:.0%}" for name, seconds in s.phase_seconds.items())
    footer = Text(f"time {phases}  mem {s.memory_bytes / 1e9:.1f} GB{gpu}", style="dim")
    title = f"{s.env} · {s.preset} · {clock(s.wall_seconds)}"
    return Panel(
        Group(progress, figures, footer), title=title, subtitle="score: mean of the last 100 games", padding=(0, 1)
    )
