"""The GPU suite's bookkeeping: stages are recorded, stopped in time, and carried from machine to machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_suite
from benchmarks.gpu_suite import LEAST, RESERVE_SECONDS, Stage, pack, pieces_of, run, stages, unpack

ROOT = Path(__file__).parents[1]


def python(code: str, **options) -> Stage:
    return Stage("stage", 1.0, [sys.executable, "-c", code], **options)


def over_when(monkeypatch: pytest.MonkeyPatch, ready: Path) -> None:
    """A stage's time is over when a file is there, however slow the machine is."""
    ended = gpu_suite.ended

    def ended_when(process: subprocess.Popen, end: float, *of_the_stage: Callable) -> bool:
        if not of_the_stage:  # the time of grace
            return ended(process, end)
        wait_for(lambda: ready.exists() or process.poll() is not None)
        return ended(process, 0.0)

    monkeypatch.setattr(gpu_suite, "ended", ended_when)


def wait_for(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there and more than an entry of the table that nobody has read."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


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
    assert pieces == pieces_of(tmp_path / "results.tar.gz")
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


def test_there_is_a_whole_archive_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "PIECE_BYTES", 1_000)
    archive, moments = tmp_path / "results.tar.gz", []
    (tmp_path / "out").mkdir()

    def watched(change: Callable) -> Callable:
        def changed(path: Path, *values):
            result = change(path, *values)
            if path.name.startswith(archive.name):
                moments.append(b"".join(piece.read_bytes() for piece in pieces_of(archive)))
            return result

        return changed

    wholes = []
    for turn in range(3):
        (tmp_path / "out" / "random.txt").write_bytes(os.urandom(3_500 - 1_000 * turn))
        with monkeypatch.context() as patches:
            for name in ("write_bytes", "replace", "unlink"):
                patches.setattr(Path, name, watched(getattr(Path, name)))
            wholes.append(b"".join(piece.read_bytes() for piece in pack(tmp_path / "out", archive, set())))
        assert moments and set(moments) <= {b"" if turn == 0 else wholes[-2], wholes[-1]}
        moments.clear()


def test_an_archive_that_was_cut_off_is_passed_over_and_then_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "PIECE_BYTES", 1_000)
    out, archive = tmp_path / "out", tmp_path / "results.tar.gz"
    out.mkdir()
    (out / "random.txt").write_bytes(os.urandom(2_500))
    whole = pack(out, archive, set())
    (tmp_path / "results.tar.gz.0002.00-of-02").write_bytes(b"the first of two")
    (tmp_path / "results.tar.gz.0002.01-of-02.part").write_bytes(b"half of the seco")
    assert pieces_of(archive) == whole
    after = pack(out, archive, set())
    assert sorted(tmp_path.glob("results*")) == after == pieces_of(archive)


def test_of_the_compile_cache_graphs_are_packed_after_the_results_and_no_more_than_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for name in ("cache/aa/kernel.so", "cache/aotautograd/x/first", "cache/fxgraph/x/second", "results.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(os.urandom(200_000))
    results = {"results.json"}
    for limit, names in (10**6, results | {"first", "second"}), (300_000, results | {"first"}), (0, results):
        monkeypatch.setattr(gpu_suite, "ARCHIVE_BYTES", limit)
        pack(out, tmp_path / "results.tar.gz", set())
        unpack(tmp_path / "results.tar.gz", tmp_path / str(limit))
        found = {path.name for path in (tmp_path / str(limit)).rglob("*") if path.is_file()}
        assert found == names


def test_a_timed_stage_is_told_to_stop_and_counts_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over_when(monkeypatch, tmp_path / "ready")
    ready = f"import pathlib, signal, sys, time; ready = pathlib.Path({str(tmp_path / 'ready')!r}).touch; "
    code = "signal.signal(signal.SIGTERM, lambda *_: (print('{}'), sys.exit(143))); ready(); time.sleep(60)"
    record = run(python(ready + code, timed=True), tmp_path, 60)
    assert record["stopped"] and record["exit_code"] == 143 and record["state"] == "done"
    assert run(python(ready + code), tmp_path, 60)["state"] == "failed"  # only a timed stage may be cut short


def test_a_stage_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", 0.1)
    over_when(monkeypatch, tmp_path / "ready")
    code = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    stage = python(code)
    stage.command.append(str(tmp_path / "ready"))
    assert run(stage, tmp_path, 60)["exit_code"] == -signal.SIGKILL


# starts a child that heeds no SIGTERM and shares its stdout, and writes the child's process number to a file
PARENT = """
import subprocess, sys, time
code = "import os, pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); path = pathlib.Path(sys.argv[1]);"
code += "path.with_suffix('.new').write_text(str(os.getpid())); path.with_suffix('.new').rename(path); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], stdout=eval(sys.argv[2]))
if sys.argv[3] == "wait":
    child.communicate()
while not __import__("pathlib").Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""


@pytest.mark.parametrize("stdout", ["None", "subprocess.PIPE"])
@pytest.mark.parametrize("parent", ["wait", "end"])
def test_nothing_that_a_stage_started_outlives_it(
    stdout: str, parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE_SECONDS", 0.1)
    over_when(monkeypatch, tmp_path / "child")
    stage = Stage("stage", 1.0, [sys.executable, "-c", PARENT, str(tmp_path / "child"), stdout, parent])
    if parent == "end":
        monkeypatch.setattr(gpu_suite, "ended", lambda process, *_: process.wait() == 0)
    assert run(stage, tmp_path, 60)["state"] == ("done" if parent == "end" else "failed")
    assert not alive(int((tmp_path / "child").read_text()))


def test_a_benchmark_that_was_cut_off_with_figures_is_tried_again_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ready, tries = tmp_path / "out", tmp_path / "ready", tmp_path / "tries"
    code = f"""
import argparse, pathlib, time
from benchmarks.publish import keep
keep("some", {{"case": [1.0]}}, argparse.Namespace(), pathlib.Path({str(out)!r}, "some.json"))
pathlib.Path({str(tries)!r}).open("a").write("1")
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""
    over_when(monkeypatch, ready)
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: [python(code)])
    for flags, runs in (([], "1"), ([], "1"), (["--retry"], "11")):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(out), "--minutes", "9", *flags])
        assert gpu_suite.main() == 0
        assert json.loads((out / "state.json").read_text())["stage"]["state"] == "cut"
        assert tries.read_text() == runs
        ready.unlink(missing_ok=True)


def test_no_stage_has_more_time_than_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def noted(stage: Stage, out: Path, seconds: float, **_) -> dict:
        given[stage.name] = seconds
        return {"state": "done", "seconds": 0, "last_line": ""}

    names = {"short": 1.0, "bounded": 9.0 / LEAST - 2, "none": 9.0 / LEAST}
    plan = [Stage(name, minutes, []) for name, minutes in names.items()]
    monkeypatch.setattr(gpu_suite, "run", noted)
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path), "--minutes", "9"])
    gpu_suite.main()
    assert given.keys() == {"short", "bounded"}
    assert given["short"] == 60 and given["bounded"] <= 9 * 60 - RESERVE_SECONDS


def test_the_stages_of_a_gpu_are_in_the_order_of_need_and_each_has_room_in_a_call(tmp_path: Path) -> None:
    plan = stages(tmp_path, "cuda", False)
    names = [stage.name for stage in plan]
    assert names[:6] == ["tests-core", "ladder-64", "profile", "learn-Breakout", "choices", "tests-presets"]
    assert len(set(names)) == len(names)
    assert all(60 * stage.minutes < 9 * 60 - RESERVE_SECONDS for stage in plan)
    files = {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    core, presets = (" ".join(plan[names.index(name)].command) for name in ("tests-core", "tests-presets"))
    assert {name for name in files if name in core} == {
        name for name in files if f"--ignore=tests/gpu/{name}" in presets
    }


# a call of the suite with two stages: one that ends, and one that starts a child and goes on until it is stopped
CALL = """
import sys
from pathlib import Path
from benchmarks import gpu_suite
out, child, parent = sys.argv[2], sys.argv.pop(), sys.argv.pop()
checkpoint = Path(out, "learn", "checkpoints", "step_000000000001")
learn = f"import pathlib; p = pathlib.Path({str(checkpoint)!r}); p.mkdir(parents=True); (p / 'model.safetensors').touch();"
gpu_suite.ARCHIVE_SECONDS, gpu_suite.GRACE_SECONDS = 0.1, 0.5
gpu_suite.stages = lambda *_: [
    gpu_suite.Stage("first", 0.1, [sys.executable, "-c", "print('{}')"]),
    gpu_suite.Stage("learn", 5.0, [sys.executable, "-c", learn + parent, child, "None", "wait"], timed=True,
                    resume=(sys.executable, "-c", "print('resumed')")),
]
sys.exit(gpu_suite.main())
"""


def call(tmp_path: Path) -> subprocess.Popen:
    flags = ["--out", str(tmp_path / "out"), "--archive", str(tmp_path / "results.tar.gz")]
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *flags, PARENT, str(tmp_path / "child")], cwd=ROOT, process_group=0
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_suite_stops_its_stage_and_leaves_an_archive(number: int, tmp_path: Path) -> None:
    suite, child = call(tmp_path), tmp_path / "child"
    wait_for(lambda: child.exists() or suite.poll() is not None)
    suite.send_signal(number)
    assert suite.wait(60) == 128 + number
    assert not alive(int(child.read_text()))
    unpack(tmp_path / "results.tar.gz", tmp_path / "other")
    state = json.loads((tmp_path / "other" / "state.json").read_text())
    assert state["first"]["state"] == "done" and state["learn"]["state"] in ("stopped", "interrupted")


def test_a_suite_that_was_killed_goes_on_elsewhere_from_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, archive, child, other = call(tmp_path), tmp_path / "results.tar.gz", tmp_path / "child", tmp_path / "other"

    def archived() -> bool:
        with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
            unpack(archive, tmp_path / "seen")
        return any((tmp_path / "seen").glob("learn/checkpoints/*/*")) and child.exists()

    wait_for(lambda: (pieces_of(archive) and archived()) or suite.poll() is not None)
    suite.kill()
    suite.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(int(child.read_text())), signal.SIGKILL)
    plan = [Stage("first", 0.1, ["not run again"]), Stage("last", 0.1, [sys.executable, "-c", "print('last')"]),
            Stage("learn", 5.0, ["not begun again"], timed=True, resume=(sys.executable, "-c", "print('resumed')"))]  # fmt: skip
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(other), "--archive", str(archive)])
    assert gpu_suite.main() == 0
    state = json.loads((other / "state.json").read_text())
    assert [state[name]["state"] for name in ("first", "learn", "last")] == ["done"] * 3
    assert state["learn"]["last_line"] == "resumed"


def test_a_stage_without_a_checkpoint_begins_anew_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "learn").mkdir()
    (tmp_path / "learn" / "config.toml").touch()
    (tmp_path / "state.json").write_text('{"learn": {"state": "interrupted"}}')
    code = f"import pathlib; assert not pathlib.Path({str(tmp_path / 'learn')!r}).exists()"
    plan = [Stage("learn", 1.0, [sys.executable, "-c", code], timed=True, resume=("not resumed",))]
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path)])
    gpu_suite.main()
    assert json.loads((tmp_path / "state.json").read_text())["learn"]["state"] == "done"


def test_a_learning_run_that_was_stopped_is_resumed_after_every_other_stage_had_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = tmp_path / "marks"
    mark = f"import pathlib, sys; pathlib.Path({str(marks)!r}).open('a').write(sys.argv[1]); "
    save = f"pathlib.Path({str(tmp_path / 'out/learn/checkpoints/step_000000000001')!r}).mkdir(parents=True); "
    plan = [
        Stage("too long for any of these calls", 100.0, [sys.executable, "-c", mark, "e"]),
        Stage("learn", 1.0, [sys.executable, "-c", mark + save + "sys.exit(143)", "a"], timed=True,
              resume=(sys.executable, "-c", mark + "sys.exit(0)", "b")),
        Stage("eval", 1.0, [sys.executable, "-c", mark, "d"], after="learn"),
        Stage("other", 1.0, [sys.executable, "-c", mark, "c"]),
    ]  # fmt: skip
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    for _ in range(4):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path / "out"), "--minutes", "5"])
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
        Stage("good", 1.0, [sys.executable, "-c", count]),
        Stage("bad", 1.0, [sys.executable, "-c", count + "; sys.exit(1)"]),
    ]
    monkeypatch.setattr(gpu_suite, "stages", lambda *_: plan)
    for flags, runs in (([], 2), ([], 2), (["--retry"], 3)):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path / "out"), "--minutes", "5", *flags])
        gpu_suite.main()
        assert len(list(marks.iterdir())) == runs
    assert "not done: bad" in capsys.readouterr().out
