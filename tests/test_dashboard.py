"""What a person sees, rendered at two widths and read back."""

import gc
import io
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fastdqn.dashboard import Dashboard, Lasting, ending, panel, plain_line
from fastdqn.metrics import Snapshot
from fastdqn.units import clock, cores, count, duration

SNAPSHOT = Snapshot(
    env="Breakout-v5", preset="fast", frames=12_300_000, total_frames=40_000_000,
    env_steps=3_075_000, updates=768_000, target_syncs=0, episodes=1_932, wall_seconds=312.0, frames_per_second_10s=41_234.0,
    frames_per_second_60s=40_800.0, eta_seconds=678.0, score_mean_100=14.6, epsilon=0.01, loss=0.0123, q_mean=1.8312,
    phase_seconds={"env": 1.0, "act": 1.0, "append": 0.0, "learn": 7.9, "log": 0.1}, memory_bytes=3_100_000_000,
    gpu_memory_bytes=None,
)  # fmt: skip
EMPTY = Snapshot(
    env="Pong-v5", preset="fast", frames=0, total_frames=1, env_steps=0, updates=0, target_syncs=0, episodes=0,
    wall_seconds=0.0, frames_per_second_10s=0.0, frames_per_second_60s=0.0, eta_seconds=None, score_mean_100=None,
    epsilon=1.0, loss=None, q_mean=None, phase_seconds={}, memory_bytes=0, gpu_memory_bytes=8_000_000_000,
)  # fmt: skip


def rendered(snapshot: Snapshot, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(panel(snapshot, width))
    return console.export_text()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_shows_every_figure_within_its_width(width: int) -> None:
    text = rendered(SNAPSHOT, width)
    figures = " ".join(text.replace("│", " ").split())  # a line may be broken
    for figure in ("12.3M/40.0M", "30.8%", "ETA 11m18s", "41.2k", "40.8k", "14.60", "1.93k", "0.0123", "1.831", "0.010",
                   "768.0k", "learn 79%", "3.1 GB", "Breakout-v5"):  # fmt: skip
        assert figure in figures
    assert max(map(len, text.splitlines())) <= width


def test_a_run_without_figures_yet_is_drawn_too() -> None:
    text = rendered(EMPTY, 80)
    assert "score -" in text and "ETA ?" in text and "gpu 8.0 GB" in text


def test_the_plain_line_can_be_searched_by_key() -> None:
    line = plain_line(SNAPSHOT)
    values = dict(pair.split("=") for pair in line.split()[1:])
    assert line.startswith("[00:05:12] ") and "\n" not in line
    assert values["frames"] == "12.3M/40.0M" and values["fps10"] == "41.2k" and values["score100"] == "14.60"
    assert values["eta"] == "11m18s" and values["updates"] == "768.0k"


def test_plain_mode_prints_once_per_period_and_the_last_state_at_the_end() -> None:
    stream = io.StringIO()
    dashboard = Dashboard("auto", stream, plain_seconds=3600)
    assert dashboard.mode == "plain"  # a StringIO is no terminal
    dashboard.say("run x")
    for _ in range(5):
        dashboard.update(SNAPSHOT)
    assert stream.getvalue() == "run x\n"
    dashboard.close()
    assert stream.getvalue().count("frames=12.3M") == 1


def test_plain_mode_without_a_period_prints_every_update_as_one_line_however_long() -> None:
    stream = io.StringIO()
    dashboard = Dashboard("plain", stream, plain_seconds=0)
    dashboard.update(SNAPSHOT)
    dashboard.update(EMPTY)
    assert len(stream.getvalue().splitlines()) == 2


def test_the_last_line_is_not_printed_twice() -> None:
    stream = io.StringIO()
    dashboard = Dashboard("plain", stream, plain_seconds=0)
    dashboard.update(EMPTY)
    dashboard.update(SNAPSHOT)
    dashboard.close()
    assert stream.getvalue().splitlines() == [plain_line(EMPTY), plain_line(SNAPSHOT)]


def test_quiet_prints_nothing() -> None:
    stream = io.StringIO()
    dashboard = Dashboard("quiet", stream, plain_seconds=0)
    dashboard.say("run x")
    dashboard.update(SNAPSHOT)
    dashboard.close()
    assert stream.getvalue() == ""


def test_live_mode_draws_without_a_thread_of_its_own_and_leaves_one_line() -> None:
    import threading

    stream, before = io.StringIO(), threading.active_count()
    dashboard = Dashboard("live", stream, live_seconds=0)
    dashboard.update(SNAPSHOT)
    assert threading.active_count() == before
    dashboard.close()
    assert stream.getvalue().rstrip().splitlines()[-1].startswith("[00:05:12] frames=12.3M/40.0M")


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_forced_colour_does_not_draw_a_live_panel_into_a_file(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert Dashboard("auto", io.StringIO()).mode == "plain"


@pytest.mark.parametrize(("term", "mode"), [("xterm", "live"), ("dumb", "plain")])
def test_auto_is_live_on_a_terminal_that_can_move_its_cursor(
    term: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import pty

    monkeypatch.setenv("TERM", term)
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "w") as terminal:
        assert Dashboard("auto", terminal).mode == mode


def test_the_panel_keeps_its_height_at_80_columns_beside_a_large_gpu() -> None:
    large = replace(SNAPSHOT, memory_bytes=128_500_000_000, gpu_memory_bytes=139_000_000_000)
    assert len(rendered(large, 80).splitlines()) == len(rendered(SNAPSHOT, 80).splitlines())
    assert "gpu 139.0 GB" in rendered(large, 80)


def test_figures_are_short_and_unambiguous() -> None:
    assert [count(value) for value in (7, 999, 1_234, 40_000_000, 2_147_483_647)] == [
        "7",
        "999",
        "1.23k",
        "40.0M",
        "2.15B",
    ]
    assert [duration(value) for value in (42, 312, 3_720)] == ["42s", "5m12s", "1h02m"]
    assert clock(3_661) == "01:01:01"


def test_training_goes_on_when_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastdqn", "train", "--preset", "catch", "--no-compile", "--torch-threads", "1",
               "--total-frames", "4k", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "building 16 games of Catch\n"  # before the plan: it may take half a minute
    assert process.stdout.readline().startswith("fastdqn ")
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 0, said
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert said.count("this run's output cannot be written") == 1


def test_without_a_garbage_collector_a_write_that_fails_leaves_nothing_behind(capsys: pytest.CaptureFixture) -> None:
    left = []

    class FullError(OSError):
        def __init__(self, reason: str) -> None:
            super().__init__(reason)
            left.append(weakref.ref(self))

    class Disk(io.StringIO):
        def write(self, text: str) -> int:
            raise FullError("no space left")

    stream = Lasting(Disk())
    gc.disable()  # as in training
    try:
        for _ in range(3):
            stream.write("a line")
        assert [error() for error in left] == [None] * 3
    finally:
        gc.enable()
    assert capsys.readouterr().err.count("cannot be written (no space left)") == 1


def test_one_core_is_no_plural() -> None:
    assert [cores(1), cores(4), cores("?")] == ["1 core", "4 cores", "? cores"]


@pytest.mark.parametrize(
    ("state", "figures", "resumable", "said"),
    [
        ("finished", {}, True, "score 14.60 over the last 100 games, 12.3M frames, 5m12s; next: fastdqn play 'a run', or fastdqn eval 'a run'"),
        ("finished", {"env": "Catch-v0"}, True, "score 14.60 over the last 100 games, 12.3M frames, 5m12s; next: fastdqn eval 'a run'"),
        ("interrupted", {"episodes": 1}, True, "score 14.60 over the last 1 game, 12.3M frames, 5m12s; go on with fastdqn resume 'a run'"),
        ("interrupted", {"episodes": 0, "score_mean_100": None}, False, "no game has ended, 12.3M frames, 5m12s"),
    ],
)  # fmt: skip
def test_the_end_of_a_run_says_its_result_and_what_to_do_next(
    state: str, figures: dict, resumable: bool, said: str
) -> None:
    figures = {**vars(SNAPSHOT), **figures}
    assert ending(state, Path("a run"), figures, resumable=resumable) == [f"{state}: a run", said]


def test_a_run_that_failed_leaves_the_word_to_its_error() -> None:
    assert ending("failed", Path("a run"), {}, resumable=True) == ["failed: a run"]
