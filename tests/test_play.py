"""Playing in the terminal: what is drawn, at what pace, and that the terminal is left as it was found."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from run_by_hand import write_run

from fastdqn.cli import main
from fastdqn.commands import play
from fastdqn.config import load_preset
from fastdqn.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cartpole") / "run"
    config = replace(load_preset("cartpole"), run_dir=str(path), ui="quiet", compile=False, torch_threads=1)
    train(replace(config, total_frames=2_000))
    return path


def resize(terminal: int, columns: int, lines: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


class Terminal:
    """A pseudo-terminal of 60x20: `stream` is the program's side, `text` all that has been written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        resize(slave, 60, 20)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8", newline="\n")
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the program's side is closed
                return
            if not data:
                return
            self._parts.append(data)

    def text(self) -> str:
        """Closes the terminal and returns what it was sent."""
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._parts).decode()


@contextmanager
def terminal_as(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """sys.stdout or sys.stderr is a terminal."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, terminal.stream)
        yield terminal


def test_two_pixels_become_one_half_block_and_colours_are_named_where_they_change() -> None:
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    image = np.array([[red, red, blue], [blue, blue, black], [black] * 3, [red] * 3], np.uint8)
    assert play.half_blocks(image) == [
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀▀\x1b[38;2;0;0;255;48;2;0;0;0m▀\x1b[0m",
        "\x1b[38;2;0;0;0;48;2;255;0;0m▀▀▀\x1b[0m",
    ]


@pytest.mark.parametrize(("columns", "lines"), [(80, 23), (200, 60), (20, 50), (3, 1), (1, 1), (500, 300)])
def test_the_picture_fits_the_terminal_and_keeps_its_proportions(columns: int, lines: int) -> None:
    height, width, _ = play.fit(np.zeros((210, 160, 3), np.uint8), columns, lines).shape
    assert 1 <= width <= columns and 2 <= height <= 2 * lines and height % 2 == 0
    assert width >= columns - 1 or height >= 2 * lines - 1  # as large as it can be
    if lines > 1:
        assert width / height == pytest.approx(160 / 210, rel=0.15)


def test_a_ball_of_a_few_pixels_stays_visible_in_a_small_terminal() -> None:
    for place in range(0, 200, 7):
        screen = np.zeros((210, 160, 3), np.uint8)
        screen[place : place + 4, 80:82] = 255
        assert play.fit(screen, 80, 23).max() > 40


class Clock:
    """Time that passes only where it is said to."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_small_delays_do_not_add_up() -> None:
    clock = Clock()
    pace = play.Pace(15.0, lambda: clock.now, clock.sleep)
    began = []
    for index in range(900):
        assert pace.wait()
        began.append(clock.now)
        clock.now += 0.06 if index % 10 == 0 else 0.01  # work
    assert np.allclose(began, 100 + np.arange(900) / 15)


def test_late_pictures_are_left_out_but_not_more_than_three_in_a_row() -> None:
    clock = Clock()
    pace = play.Pace(10.0, lambda: clock.now, clock.sleep)
    assert pace.wait()
    clock.now += 0.95  # a slow line
    drawn = [pace.wait() for _ in range(12)]
    assert drawn == [False, False, False, True, False, False, False, True, True, True, True, True]
    assert clock.now == pytest.approx(100 + 12 / 10)  # caught up


def test_after_a_suspension_the_game_goes_on_at_its_speed_instead_of_racing() -> None:
    clock = Clock()
    pace = play.Pace(10.0, lambda: clock.now, clock.sleep)
    pace.wait()
    clock.now += 3_600
    began = []
    for _ in range(5):
        assert pace.wait()
        began.append(clock.now)
    assert np.allclose(np.diff(began), 0.1)


def test_only_lines_that_changed_are_sent_again_and_a_resize_draws_all() -> None:
    terminal = Terminal()
    sent = StringIO()
    sent.fileno = terminal.stream.fileno  # its size is the terminal's
    painter = play.Painter(sent)
    screen = np.zeros((210, 160, 3), np.uint8)

    def painted(status: str) -> list[int]:
        """The terminal's lines that were sent."""
        sent.seek(0)
        sent.truncate()
        painter.paint(screen, status)
        return [int(line) for line in re.findall(r"\x1b\[(\d+);\d+H", sent.getvalue())]

    assert painted("score 0") == list(range(1, 21))
    assert painted("score 0") == []
    assert painted("score 1") == [20]
    screen[100:104, 80:90] = 255
    assert painted("score 1") == [10]
    resize(terminal.stream.fileno(), 30, 10)
    assert painted("s" * 100) == list(range(1, 11))
    assert "\x1b[2J" in sent.getvalue() and sent.getvalue().count("s") == 29  # a full line would scroll
    assert max(line.count(play.HALF_BLOCK) for line in sent.getvalue().split("\x1b[0m")) <= 30
    terminal.text()


def test_games_are_played_to_their_end_and_the_terminal_is_given_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal_as("stdout", monkeypatch) as terminal:
        assert main(["play", str(run), "--episodes", "2", "--seed", "3"]) == 0
    text = terminal.text()
    played, summary = text.split(play.LEAVE)
    assert played.startswith(play.ENTER) and "game 1 of 2" in played and "game 2 of 2" in played
    scores = [float(score) for score in re.findall(r"scores (\d+) (\d+)", summary)[0]]
    for game, score in enumerate(scores, start=1):
        # a point per step, and each on the screen but the one that ends the game; of late ones up to three are left out
        shown = [float(one) for one in re.findall(rf"game {game} of 2  score (\d+)  Q", played)]
        assert shown[0] == (0 if game == 1 else shown[0]) and score - 4 <= max(shown) <= score
    assert "left at" not in summary and "\x1b" not in summary


def test_json_goes_to_stdout_while_the_picture_is_on_stderr(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with terminal_as("stderr", monkeypatch) as terminal:
        assert main(["play", str(run), "--json"]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed)
    assert printed.count("\n") == 1 and len(figures["games"]) == 1 and figures["env"] == "CartPole-v1"
    assert figures["env_steps"] == figures["games"][0]["length"] + 1
    assert play.HALF_BLOCK in terminal.text()


def test_ctrl_c_leaves_the_terminal_as_it_was(run: Path) -> None:
    master, slave = pty.openpty()
    resize(slave, 80, 24)
    before = termios.tcgetattr(slave)
    # it makes the terminal its own first, so that Ctrl-C reaches it
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); import fastdqn.cli as c; sys.exit(c.main())"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, "play", str(run), "--episodes", "1000"],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    received, pressed = b"", False
    while program.poll() is None or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            received += os.read(master, 65536)
        if not pressed and received.count(b"score") >= 10:
            os.write(master, b"\x03")
            pressed = True
    assert pressed and program.returncode == 130
    text = received.decode()
    assert text.count(play.ENTER) == 1 and text.count(play.LEAVE) == 1
    played, after = text.split(play.LEAVE)
    assert play.HALF_BLOCK in played and play.HALF_BLOCK not in after and "Traceback" not in after
    assert "left at" in after
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_the_terminal_is_given_back_when_playing_fails(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(RuntimeError), play.full_screen(sys.stdout):
        raise RuntimeError
    assert capsys.readouterr().out == play.ENTER + play.LEAVE


def test_without_a_terminal_it_says_so_in_one_line_and_names_record(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for words in ([], ["--json"]):
        assert main(["play", str(run), *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and f"fastdqn record {run}" in printed.err
    with terminal_as("stdout", monkeypatch) as terminal:
        monkeypatch.setenv("TERM", "dumb")
        assert main(["play", str(run)]) == 2
    assert terminal.text() == ""


def test_of_a_task_without_a_picture_eval_is_named_and_not_record(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    catch = write_run(tmp_path / "a catch")
    assert main(["play", str(catch)]) == 2
    error = capsys.readouterr().err
    assert "env=Catch-v0: EnvPool draws no picture" in error and "record" not in error
    assert f"fastdqn eval '{catch}'" in error, "a line to copy"


def test_that_is_told_before_torch_and_envpool_are_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from fastdqn.cli import main; code = main(['play', sys.argv[1]])\n"
        "assert not {'torch', 'envpool'} & set(sys.modules), 'heavy imports'; sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(write_run(tmp_path / "catch"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "draws no picture" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--episodes", "0"], "episodes=0: "), (["--epsilon", "-1"], "epsilon=-1.0: "), ([], "did you mean")],
)
def test_what_cannot_be_played_is_refused_before_the_screen_is_taken(
    run: Path, words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "CartPole__s1").mkdir(parents=True)
    (tmp_path / "runs" / "CartPole__s1" / "config.toml").touch()
    with terminal_as("stdout", monkeypatch) as terminal:
        assert main(["play", str(run) if words else "CratPole__s1", *words]) == 2
    assert terminal.text() == "" and reason in capsys.readouterr().err
