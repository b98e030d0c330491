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
    logs = Logs(folder, EpisodeTracker(1, folder.path / "episodes.csv"), None)

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
