"""Run folders whose files parse and hold what no run writes: a value is left out or one line refuses it."""

import errno
import json
import os
from pathlib import Path

import pytest
from run_by_hand import evaluation_result, log_row, write_evaluation, write_run

from fastdqn import runs
from fastdqn.cli import main

HUGE = 10**400


def read_by_every_command(run: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """Exit code 0 from the commands that look back at a run, or 2 and one line. Returns those lines."""
    refusals = []
    for argv in (
        ["compare", str(run), "--reach", "1"],
        ["report", str(run)],
        ["plot", str(run), "--ascii"],
        ["plot", str(run), "--ascii", "--x", "wall"],
        ["plot", str(run), "--ascii", "--metric", "td_loss"],
    ):
        code = main(argv)
        error = capsys.readouterr().err
        assert (code, error.count("\n")) in ((0, 0), (2, 1)), (argv, error)
        refusals += [error] if code else []
    return refusals


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [1.0] * 120, preset="fast")


def test_checkpoints_that_cannot_be_read_are_not_taken_for_none(
    run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of somebody else's folder; root, who may run this, can read those."""

    listed = os.listdir

    def listdir(path: Path) -> list[str]:
        if path == run / "checkpoints":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for command in ("resume", "eval", "export"):
        assert main([command, str(run)]) == 1
        assert capsys.readouterr().err == f"error: {run / 'checkpoints'}: cannot be read (Permission denied)\n"


@pytest.mark.parametrize("value", ["x", None, [1], {}, float("nan"), float("inf"), HUGE, 5, "<i>"])
def test_a_status_and_an_environment_are_read_without_what_cannot_be(value: object, run: Path, capsys) -> None:
    status, environment = (json.loads((run / f"{name}.json").read_text()) for name in ("status", "environment"))
    for name in ("state", "frames", "time"):
        (run / "status.json").write_text(json.dumps(status | {name: value}))
        assert read_by_every_command(run, capsys) == []
    for name in ("gpu", "cpu", "cores", "torch"):
        (run / "environment.json").write_text(json.dumps(environment | {name: value}))
        assert read_by_every_command(run, capsys) == []


@pytest.mark.parametrize("value", ["x", None, [1], {}, float("nan"), float("inf"), HUGE, 1e308])
def test_a_metric_that_is_no_number_is_left_out(value: object, run: Path, capsys) -> None:
    changes = {"losses/td_loss": value, "losses/q_values": value, "perf/env_frac": value, "perf/fps": value}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(log_row(seconds, 1.0, 4) | changes) + "\n" for seconds in (121, 122)))
    assert read_by_every_command(run, capsys) == []
    assert runs.metrics(run)[-1]["losses/td_loss"] is None


@pytest.mark.parametrize("value", ["x", None, float("nan"), float("inf"), -1, HUGE])
@pytest.mark.parametrize("name", ["global_step", "frames", "wall_seconds"])
def test_a_row_of_metrics_from_no_moment_is_refused(name: str, value: object, run: Path, capsys) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(log_row(121, 1.0, 4) | {name: value}) + "\n")
    refusals = read_by_every_command(run, capsys)
    assert len(refusals) == 5 and "no row of metrics: {" in refusals[0]


@pytest.mark.parametrize(
    "row",
    [
        "nan,9,1.0,9,0,0", "inf,9,1.0,9,0,0", "1e308,9,1.0,9,0,0", "1.0,9,nan,9,0,0", "1.0,9,inf,9,0,0",
        "1.0,9,-1.0,9,0,0", f"1.0,9,1.0,{10**30},0,0", "1.0,9,1.0,-1,0,0", "1.0,x,1.0,9,0,0",
    ],
)  # fmt: skip
def test_a_game_without_a_score_or_a_moment_is_refused(row: str, run: Path, capsys) -> None:
    with (run / "episodes.csv").open("a") as file:
        file.write(row + "\n")
    refusals = read_by_every_command(run, capsys)
    assert len(refusals) == 5 and "its logs cannot be read (" in refusals[0]


@pytest.mark.parametrize("value", ["x", [1], {}, "", float("nan"), HUGE])
@pytest.mark.parametrize("name", ["frames", "human_normalized", "score_mean", "checkpoint_step"])
def test_an_evaluation_of_wrong_values_does_not_count(name: str, value: object, run: Path, capsys) -> None:
    write_evaluation(run, 5)
    (run / "eval" / "other.json").write_text(json.dumps(evaluation_result(7.0, **{name: value})))
    (run / "eval" / "gone.json").symlink_to(run / "nowhere")
    assert read_by_every_command(run, capsys) == []
    assert [result["score_mean"] for result in runs.evaluations(run)] == [5]


def test_what_is_no_text_and_no_video_is_left_out_of_the_page(run: Path, capsys) -> None:
    (run / "videos" / "game.mp4").mkdir(parents=True)
    (run / "command.txt").write_bytes(b"\xff\xfe")
    assert read_by_every_command(run, capsys) == [] and runs.command(run) == ""
    (run / "command.txt").unlink()
    (run / "command.txt").mkdir()
    assert read_by_every_command(run, capsys) == [] and runs.command(run) == ""
