"""The logs of a run on a disk that does not take them."""

import gc
import weakref
from pathlib import Path

import pytest

from fastdqn.logs import Logs
from fastdqn.metrics import EpisodeTracker
from fastdqn.run_folder import RunFolder

ROW = {"frames": 4, "perf/fps": 1.0, "charts/episodic_return": None}


def test_logs_with_a_gap_are_one_warning_until_the_disk_takes_them_again_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    left = []

    class FullError(OSError):
        def __init__(self, reason: str) -> None:
            super().__init__(reason)
            left.append(weakref.ref(self))

    def full(*_: object, **__: object) -> None:
        raise FullError("no space left")

    folder = RunFolder(tmp_path / "run")
    logs = Logs(folder, EpisodeTracker(1), None)

    gc.disable()  # as in training
    try:
        for _ in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(folder, "status", full)
                for _ in range(3):
                    logs.write(ROW)
            logs.write(ROW)
        assert [error() for error in left] == [None] * 6
    finally:
        gc.enable()
    logs.close("finished")
    folder.release()
    assert capsys.readouterr().err.count("the logs have a gap: no space left; training goes on") == 2
    assert (folder.path / "metrics.jsonl").read_text().count("\n") == 8


def test_games_are_written_once_under_one_header_also_at_the_end_and_never_after_it(tmp_path: Path) -> None:
    for part in (1, 2):  # the second as after a resume
        folder, games = RunFolder(tmp_path / "run", resumed=part == 2), EpisodeTracker(1)
        logs = Logs(folder, games, None)
        for write in (logs.write_games, lambda logs=logs: logs.write(ROW), lambda logs=logs: logs.close("finished")):
            games.take([[part, 5, 0.25, 40, 0, False]])
            write()
        games.take([[99, 5, 0.25, 40, 0, False]])
        logs.write_games()  # on behalf of a loop that hung
        folder.release()
    header, *rows = (tmp_path / "run" / "episodes.csv").read_text().splitlines()
    assert header == "r,l,t,env_steps,env_id,truncated"
    assert rows == ["1.0,5,0.25,40,0,0"] * 3 + ["2.0,5,0.25,40,0,0"] * 3
