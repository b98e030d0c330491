"""`fastdqn play`: a trained agent plays in the terminal, over SSH too."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import numpy.typing as npt

from fastdqn import runs
from fastdqn.atari import steps_per_second
from fastdqn.commands import AgentFlags, emit
from fastdqn.config import Config
from fastdqn.errors import UsageError
from fastdqn.machine.signals import StopRequest

HALF_BLOCK = "▀"  # its upper half in the foreground's colour, its lower in the background's: two pixels a character
ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # alternate screen, no cursor, cleared
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
GIVE_UP_SECONDS = 1.0  # what is later than this is not made up for


@dataclass(frozen=True, kw_only=True)
class Flags(AgentFlags):
    """Plays games with a trained agent in the terminal, which has to know 24-bit colour."""

    episodes: int = 1
    """Games to play."""
    json: bool = False
    """End stdout with one JSON object; everything else, the picture too, goes to stderr."""


def main(flags: Flags) -> int:
    run = runs.find(flags.run)  # a mistyped name is told before torch is loaded
    config, named = Config.load(run / "config.toml"), shlex.quote(flags.run)
    if steps_per_second(config.name, config.frame_skip) is None:
        task = config.name.canonical
        raise UsageError(f"env={task}: EnvPool draws no picture of it; fastdqn eval {named} tells its scores")
    stream = sys.stderr if flags.json else sys.stdout
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        name = "stderr" if flags.json else "stdout"
        raise UsageError(f"{name}: no terminal to play in; use fastdqn record {named} -o game.gif")
    if flags.episodes < 1:
        raise UsageError(f"episodes={flags.episodes}: give a number from 1 to 100000")
    from fastdqn.rollout import Rollout

    with StopRequest() as stop:
        rollout = Rollout(run, episodes=flags.episodes, **flags.playing)
        with closing(rollout), full_screen(stream):
            painter, pace = Painter(stream), Pace(rollout.steps_per_second)
            for scene in rollout:
                if pace.wait() or scene.over[0]:
                    game = min(len(rollout.tally.games) + 1, rollout.episodes)
                    status = (
                        f"{rollout.env}  game {game} of {rollout.episodes}  score {scene.score[0]:g}  "
                        f"Q {scene.q_values[0].max():.2f}  Ctrl-C ends"
                    )
                    painter.paint(scene.screen[0], status)
                if stop.requested:
                    break
    emit(rollout.summary(), rollout.figures(), as_json=flags.json)
    return stop.exit_code


@contextmanager
def full_screen(stream: TextIO) -> Iterator[None]:
    """The terminal's alternate screen without a cursor; however the block ends, both are as before."""
    try:
        print(ENTER, end="", file=stream, flush=True)
        yield
    finally:
        print(LEAVE, end="", file=stream, flush=True)


class Painter:
    """Paints pictures as large as the terminal is, sending only the lines that changed: an SSH line may be slow."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._size, self._status = (0, 0), ""
        self._shown: npt.NDArray[np.uint8] | None = None

    def paint(self, screen: npt.NDArray[np.uint8], status: str) -> None:
        """The screen, uint8 [H, W, 3], centred, and a line of text below."""
        columns, lines = size = terminal_size(self._stream)
        if size != self._size:
            self._size, self._status, self._shown = size, "", None
            self._stream.write("\x1b[0m\x1b[2J")
        image = fit(screen, columns, lines - 1)
        pairs = image.reshape(-1, 2, image.shape[1], 3)  # two rows of pixels are a line of text
        left = (columns - image.shape[1]) // 2 + 1
        for line, pair in enumerate(pairs):
            if self._shown is None or (pair != self._shown[line]).any():
                self._stream.write(f"\x1b[{line + 1};{left}H{half_blocks(pair)[0]}")
        status = status[: columns - 1]  # a full line would wrap, and the terminal scroll
        if status != self._status:
            self._stream.write(f"\x1b[{len(pairs) + 1};1H\x1b[2K{status}")
        self._shown, self._status = pairs, status
        self._stream.flush()


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines; 80 and 24 where the terminal does not know."""
    columns, lines = os.get_terminal_size(stream.fileno())
    return columns or 80, lines or 24


def fit(screen: npt.NDArray[np.uint8], columns: int, lines: int) -> npt.NDArray[np.uint8]:
    """The screen in its proportions, as large as `lines` of half blocks hold. uint8 [H, W, 3] -> [2 lines', W', 3]

    Pixels are averaged where several share a place: a ball of one pixel is to stay visible.
    """
    from PIL import Image

    H, W, _ = screen.shape
    scale = min(columns / W, 2 * lines / H)
    size = max(1, int(W * scale)), max(2, int(H * scale) // 2 * 2)
    return np.asarray(Image.fromarray(screen).resize(size, Image.Resampling.BOX))


def half_blocks(image: npt.NDArray[np.uint8]) -> list[str]:
    """Lines of text that look like the image in a terminal. RGB, uint8 [2 L, W, 3] -> L strings

    Colours are named only where they change, and reset at the end of a line.
    """
    lines = []
    for top, bottom in zip(image[0::2].tolist(), image[1::2].tolist(), strict=True):
        parts, colours = [], None
        for upper, lower in zip(top, bottom, strict=True):
            if (upper, lower) != colours:
                colours = upper, lower
                parts.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*upper, *lower))
            parts.append(HALF_BLOCK)
        lines.append("".join(parts) + "\x1b[0m")
    return lines


class Pace:
    """Steps at a steady rate. Each is due by its number, so that small delays do not add up."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period, self._clock, self._sleep = 1 / per_second, clock, sleep
        self._due = -float("inf")
        self._left_out = 0

    def wait(self) -> bool:
        """Until the next step is due; at once if it is late. False: so late that its picture should be left out.

        Never more than three in a row are left out. A second behind (the process was stopped, the machine is too slow),
        the steps are counted afresh.
        """
        now = self._clock()
        if now - self._due > GIVE_UP_SECONDS:
            self._due = now
        late = now - self._due
        if late < 0:
            self._sleep(-late)
        self._due += self._period
        self._left_out = 0 if late <= self._period or self._left_out == 3 else self._left_out + 1
        return self._left_out == 0
