"""`fastdqn record`: a video of a trained agent, from the emulator's own screens, at the game's speed."""

import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import tyro

from fastdqn import runs
from fastdqn.commands import AgentFlags, emit
from fastdqn.errors import RunError, UsageError
from fastdqn.machine.signals import StopRequest

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from fastdqn.rollout import Rollout, Scene

Picture = npt.NDArray[np.uint8]  # [H, W, 3], RGB
GIF_SECONDS, LONGEST_GIF_SECONDS = 30.0, 300.0  # Pillow holds a whole gif in memory
USUAL_SIZE, LARGEST_SIZE = 640, 4096  # of the whole picture, pixels each way
BACKGROUND, TEXT, BAR, CHOSEN = (16, 16, 24), (235, 235, 235), (110, 110, 130), (255, 170, 0)


@dataclass(frozen=True)
class Flags(AgentFlags):
    """Records games of a trained agent as H.264 mp4 or gif, in full colour and at the game's own speed."""

    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """The file, .mp4 or .gif; none: an mp4 in the run's videos/. mp4 needs pip install 'fastdqn[video]'."""
    grid: str = "1x1"
    """Games shown at once, ROWSxCOLUMNS; a game that is over holds its last picture."""
    episodes: int = 0
    """Games to play in all, one after the other in each cell of the grid; 0: one in each."""
    overlay: bool = False
    """Under each game its score, highest Q-value, and a bar per action, scaled to them all; orange: the one taken."""
    scale: int = 0
    """Each pixel of the screen becomes so many squared; 0: what brings the picture near 640x640, at least 1."""
    max_seconds: float | None = None
    """Cut the video after so long. None: 30 for a gif, not at all for an mp4."""


def main(flags: Flags) -> int:
    rows, columns = parse_grid(flags.grid)
    check(flags)
    run = runs.find(flags.run)  # a mistyped name is told before torch is loaded
    from fastdqn.rollout import Rollout

    with StopRequest() as stop:
        rollout = Rollout(run, num_envs=rows * columns, episodes=flags.episodes, **flags.playing)
        with closing(rollout):
            out = Path(flags.out) if flags.out else default_out(rollout)
            is_gif = out.suffix.lower() == ".gif"
            seconds = GIF_SECONDS if is_gif and flags.max_seconds is None else flags.max_seconds
            pictures = draw(until_stopped(rollout, seconds, stop), columns, flags.scale, overlay=flags.overlay)
            try:
                out.parent.mkdir(exist_ok=True)
                width, height = write(out, pictures, rollout.steps_per_second)
            except OSError as error:
                reason = error.strerror or error
                raise RunError(f"{out}: not written ({reason}); name another place with --out") from None
    played = len(rollout.tally.games)
    figures = {
        "out": str(out),
        "bytes": out.stat().st_size,
        "width": width,
        "height": height,
        "frames_per_second": rollout.steps_per_second,
        **rollout.figures(),
    }
    text = (
        f"{rollout.summary()}\n{out}: {figures['seconds']:.1f} s at {rollout.steps_per_second:g} pictures a second, "
        f"{width}x{height}, {figures['bytes'] / 1e6:.2f} MB"
    )
    if played < rollout.episodes:
        text += f"\ncut when {played} of {rollout.episodes} games were over"
        text += "" if stop.signal else "; --max-seconds says when"
    emit(text, figures, as_json=flags.json)
    return stop.exit_code


def parse_grid(grid: str) -> tuple[int, int]:
    """ROWSxCOLUMNS -> both, 1 to 16."""
    rows, cross, columns = grid.partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal() and 1 <= int(rows) <= 16 and 1 <= int(columns) <= 16):
        raise UsageError(f"grid={grid}: give rows and columns from 1x1 to 16x16, as in 4x4")
    return int(rows), int(columns)


def check(flags: Flags) -> None:
    """Refuses, before anything is built, what cannot be recorded."""
    suffix = Path(flags.out).suffix.lower() if flags.out else ".mp4"
    if suffix not in (".mp4", ".gif"):
        raise UsageError(f"out={flags.out}: it is neither mp4 nor gif; name a file that ends in .mp4 or .gif")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError(
            f"out={flags.out or '(mp4)'}: mp4 needs imageio-ffmpeg: pip install 'fastdqn[video]'; or use -o game.gif"
        )
    if flags.out and not Path(flags.out).absolute().parent.is_dir():
        raise UsageError(f"out={flags.out}: no such folder; make it first")
    if not 0 <= flags.scale <= 16:
        raise UsageError(f"scale={flags.scale}: give a number from 1 to 16, or 0 to have it chosen")
    longest = LONGEST_GIF_SECONDS if suffix == ".gif" else 86_400.0
    if flags.max_seconds is not None and not 0 < flags.max_seconds <= longest:
        raise UsageError(f"max_seconds={flags.max_seconds:g}: give at most {longest:g} for {suffix}, more than 0")


def default_out(rollout: "Rollout") -> Path:
    """An mp4 in the run's videos/, named after the game, the agent's age and the seed."""
    name = f"{rollout.env}__{rollout.trained_frames}__{rollout.protocol}__s{rollout.seed}.mp4"
    return rollout.run / "videos" / name


def until_stopped(rollout: "Rollout", seconds: float | None, stop: StopRequest) -> Iterator["Scene"]:
    """The scenes of `seconds` of play; fewer where the user asks to stop, but at least one."""
    limit = None if seconds is None else max(1, round(seconds * rollout.steps_per_second))
    for scene in islice(rollout, limit):
        yield scene
        if stop.requested:
            return


def draw(scenes: Iterator["Scene"], columns: int, scale: int, *, overlay: bool) -> Iterator[Picture]:
    """One picture per scene: the games in rows of `columns`, each pixel `scale` times as large, 0: chosen."""
    for scene in scenes:
        N, H, W, _ = scene.screen.shape
        rows = N // columns
        scale = scale or max(1, min(USUAL_SIZE // (rows * H), USUAL_SIZE // (columns * W)))
        cells = scene.screen.repeat(scale, axis=1).repeat(scale, axis=2)
        if overlay:
            strips = [
                strip(scene.score[i], scene.q_values[i], scene.action[i], over=scene.over[i], width=W * scale)
                for i in range(N)
            ]
            cells = np.concatenate([cells, np.stack(strips)], axis=1)
        picture = tile(cells, columns)
        if max(picture.shape) > LARGEST_SIZE:
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            raise UsageError(f"scale={scale}: the picture would have {size} pixels; use a smaller scale or grid")
        yield picture


def tile(cells: npt.NDArray[np.uint8], columns: int) -> Picture:
    """Pictures in reading order, `columns` a row. uint8 [N, H, W, 3] -> uint8 [N / columns * H, columns * W, 3]"""
    N, H, W, _ = cells.shape
    rows = N // columns
    return cells.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)


def strip(score: float, q_values: npt.NDArray[np.float32], action: int, *, over: bool, width: int) -> Picture:
    """Score and highest Q-value in words, and a bar per action. The bars reach from the lowest Q-value to the highest,
    because Q-values differ by little from action to action; the action that was chosen has a colour of its own.
    """
    from PIL import Image, ImageDraw

    size = min(max(width // 16, 10), 24)
    height, middle = 3 * size + size % 2, width // 2
    image = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    second = "game over" if over else f"Q {q_values.max():.2f}"
    pen.multiline_text((4, 2), f"score {score:g}\n{second}", TEXT, _font(size), spacing=size // 5)
    low, high = float(q_values.min()), float(q_values.max())
    bar = (middle - 4) / len(q_values)
    for index, q_value in enumerate(q_values):
        share = (float(q_value) - low) / (high - low) if high > low else 0.0
        left, top = middle + index * bar, height - 3 - share * (height - 6)
        pen.rectangle((left, top, left + max(bar - 2, 1), height - 3), CHOSEN if index == action else BAR)
    return np.asarray(image)


@cache
def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def write(path: Path, pictures: Iterator[Picture], fps: float) -> tuple[int, int]:
    """Writes the video under another name and then replaces `path` in one step. Returns its width and height.

    Raises:
        OSError: it could not be written.
    """
    first = next(pictures)
    temporary = path.with_name(f".{path.name}")
    temporary.touch()  # before the encoder starts: it tells of a read-only disk in lines of its own
    try:
        (write_gif if path.suffix.lower() == ".gif" else write_mp4)(temporary, chain([first], pictures), fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return first.shape[1], first.shape[0]


def write_gif(path: Path, pictures: Iterator[Picture], fps: float) -> None:
    """An endless gif. Its colours are exact up to 256 a picture."""
    images = gif_images(pictures, fps)
    next(images).save(path, format="GIF", save_all=True, append_images=images, loop=0)


def gif_images(pictures: Iterator[Picture], fps: float) -> Iterator["Image.Image"]:
    """The pictures, each with its duration in milliseconds.

    A gif counts in hundredths of a second, so 15 pictures a second last 7, 6, 7, 7, 6, 7 ... of them, and viewers take
    less than two for ten: what is faster loses pictures instead of its speed.
    """
    from PIL import Image

    image, begin, end = None, 0, 0
    for index, picture in enumerate(pictures):
        end = round(100 * (index + 1) / fps)
        now = round(100 * index / fps)
        if image is not None:
            if now - begin < 2:
                continue
            image.info["duration"] = 10 * (now - begin)
            yield image
        image, begin = Image.fromarray(picture), now
    if image is not None:
        image.info["duration"] = 10 * max(end - begin, 2)
        yield image


def write_mp4(path: Path, pictures: Iterator[Picture], fps: float) -> None:
    """H.264 in yuv420p, which every player knows; it halves the colours' resolution and needs even sizes."""
    from imageio_ffmpeg import get_ffmpeg_exe

    first = next(pictures)
    size, rate = f"{first.shape[1]}x{first.shape[0]}", str(Fraction(fps).limit_denominator(1000))
    command = [
        get_ffmpeg_exe(), "-y", "-v", "error",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-",
        "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p",
        "-movflags", "+faststart", "-f", "mp4", str(path.absolute()),
    ]  # fmt: skip
    # a session of its own: Ctrl-C is for us, the encoder then writes what it has to the end
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, start_new_session=True) as ffmpeg:
            assert ffmpeg.stdin is not None
            with suppress(BrokenPipeError):  # it has given up, and said why
                for picture in chain([first], pictures):
                    ffmpeg.stdin.write(np.ascontiguousarray(picture).data)
        said.seek(0)
        lines = said.read().decode(errors="replace").split("\n")
    if ffmpeg.returncode != 0:
        raise OSError(lines[0] or f"ffmpeg ended with exit code {ffmpeg.returncode}")
