"""The GPU suite's bookkeeping: stages are recorded, stopped in time, and carried from machine to machine."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import Stage, pack, run, unpack


def python(code: str, **options) -> Stage:
    return Stage("stage", 1.0, [sys.executable, "-c", code], **options)


def test_results_survive_the_way_through_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "PIECE_BYTES", 1_000)
    out, other = tmp_path / "out", tmp_path / "other"
    files = {
        "state.json": b"{}",
        "stopped/checkpoints/step_000000000002/model.safetensors": os.urandom(5_000),
        "stopped/checkpoints/step_000000000002/optimizer.safetensors": os.urandom(5_000),
        "done/checkpoints/step_000000000003/model.safetensors": os.urandom(5_000),
        "done/metrics.jsonl": b"1\n",
    }
    left_out = {
        "stopped/checkpoints/step_000000000001/model.safetensors": b"older",
        "done/checkpoints/step_000000000003/optimizer.safetensors": b"of no use any more",
        "done/.lock": b"",
    }
    for name, data in (files | left_out).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    pieces = pack(out, tmp_path / "results.tar.gz", {"done"})
    assert len(pieces) > 4 and all(piece.stat().st_size <= 1_000 for piece in pieces)
    unpack(tmp_path / "results.tar.gz", other)
    assert {
        path.relative_to(other).as_posix(): path.read_bytes() for path in other.rglob("*") if path.is_file()
    } == files


def test_a_stage_leaves_its_last_json_line_and_its_record(tmp_path: Path) -> None:
    record = run(python("print('table'); print('{\"fps\": 3}')"), tmp_path, 30)
    assert record["state"] == "done" and record["exit_code"] == 0
    assert json.loads((tmp_path / "stage-summary.json").read_text()) == {"fps": 3}
    assert "table" in (tmp_path / "stage.txt").read_text()


def test_a_failing_stage_is_recorded_as_failed(tmp_path: Path) -> None:
    record = run(python("import sys; print('half'); sys.exit(3)"), tmp_path, 30)
    assert record["state"] == "failed" and record["exit_code"] == 3


def test_a_timed_stage_is_told_to_stop_and_counts_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", 5)
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('{}'), sys.exit(143))); time.sleep(60)"
    record = run(python(code, timed=True), tmp_path, 7)
    assert record["stopped"] and record["exit_code"] == 143 and record["state"] == "done"
    assert run(python(code), tmp_path, 2)["state"] == "failed"  # only a timed stage may be cut short


def test_a_learning_run_that_was_stopped_is_resumed_after_every_other_stage_had_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "marks"
    mark = f"import pathlib, sys; pathlib.Path({str(marks)!r}).open('a').write(sys.argv[1]); "
    plan = [
        Stage("too long for any of these calls", 100.0, [sys.executable, "-c", mark, "e"]),
        Stage("learn", 0.01, [sys.executable, "-c", mark + "sys.exit(143)", "a"], timed=True,
              resume=(sys.executable, "-c", mark + "sys.exit(0)", "b")),
        Stage("eval", 0.01, [sys.executable, "-c", mark, "d"], after="learn"),
        Stage("other", 0.01, [sys.executable, "-c", mark, "c"]),
    ]  # fmt: skip
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", -20)
    for _ in range(4):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path / "out"), "--minutes", "1"])
        gpu_suite.main()
    assert marks.read_text() == "acbd"
    assert capsys.readouterr().out.count("not done: too long for any of these calls\n") == 2


def test_done_stages_are_not_run_again_and_failed_ones_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    count = f"import pathlib, sys; p = pathlib.Path({str(marks)!r}); n = len(list(p.iterdir())); (p / str(n)).touch()"
    plan = [
        Stage("good", 0.1, [sys.executable, "-c", count]),
        Stage("bad", 0.1, [sys.executable, "-c", count + "; sys.exit(1)"]),
    ]
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    for flags, runs in (([], 2), ([], 2), (["--retry"], 3)):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path / "out"), "--minutes", "1", *flags])
        gpu_suite.main()
        assert len(list(marks.iterdir())) == runs
    assert "not done: bad" in capsys.readouterr().out
