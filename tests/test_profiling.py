"""The profile says where the time went, and finds a wait where there is one."""

import gzip
import json
import time
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastdqn import cli
from fastdqn.profiling import Verdict, advise, capture, kernel_spans, occupancy


def test_occupancy_is_the_union_of_spans_and_gaps_are_what_it_leaves() -> None:
    busy, gaps = occupancy([(2, 4), (3, 5), (7, 8), (0, 1), (3, 4)], start=0, end=10)
    assert busy == pytest.approx((1 + 3 + 1) / 10)
    assert gaps == [2, 2, 1]  # 5 to 7, 8 to 10, 1 to 2


def test_spans_outside_the_window_do_not_count() -> None:
    assert occupancy([(-5, 1), (9, 20)], start=0, end=10) == (pytest.approx(0.2), [8])
    assert occupancy([], start=0, end=10) == (0, [10])


def verdict(**changes) -> Verdict:
    fields = {
        "device": "CPU", "iterations": 10, "wall_seconds": 1.0, "busy_fraction": None, "gaps": [], "operations": [],
        "waits": [], "phases": {"env": 0.1, "act": 0.1, "learn": 0.8, "log": 0.0},
    }  # fmt: skip
    return Verdict(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "updates are the limit"),
        ({"phases": {"env": 0.9, "learn": 0.1}}, "games are the limit"),
        ({"busy_fraction": 0.95, "phases": {"act": 1.0}}, "GPU is the limit"),
        ({"phases": {"env": 0.4, "learn": 0.4, "log": 0.2}}, "Logging"),
        ({"phases": {"env": 0.4, "learn": 0.4, "act": 0.2}}, "Nothing stands out"),
    ],
)
def test_advice_follows_from_what_was_seen(changes: dict, word: str) -> None:
    assert any(word in line for line in advise(verdict(**changes)))


def test_on_a_cpu_nothing_is_said_of_a_device_beside_it() -> None:
    games = {"phases": {"env": 0.9, "learn": 0.1}}
    for waits in ([], [("aten::_local_scalar_dense", "fastdqn/learner.py:1", 20)]):
        text = verdict(**games, waits=waits).text()
        assert "GPU" not in text and "device" not in text and "wait" not in text
        assert (
            "costs nothing on a CPU, at:\n- aten::_local_scalar_dense at fastdqn/learner.py:1, 2.0" in text
        ) == bool(waits)
        text = verdict(**games, waits=waits, device="H100", busy_fraction=0.3, gaps=[0.02]).text()
        assert "The GPU is busy 30%" in text and "the device has time" in text
        assert ("The host waits for the device at:" if waits else "No wait of the host was found.") in text


def test_a_gpu_whose_kernels_were_not_seen_is_not_called_idle() -> None:
    text = verdict(device="H100", waits=[("cudaMemcpy", "fastdqn/learner.py:1", 20)]).text()
    assert "No kernel was seen on the GPU" in text and "busy" not in text
    assert "The host waits for the device at:" in text and "updates are the limit" not in text
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(2).sum()
    assert profiler.events() and kernel_spans(profiler.events() or []) == []


def test_a_capture_leaves_its_files_and_counts_what_ran(tmp_path: Path) -> None:
    phases = {"env": 0.0, "learn": 0.0}
    a = torch.randn(64, 64)

    def step() -> None:
        torch.mm(a, a)
        torch.mm(a, a)
        time.sleep(0.002)
        phases["learn"] += 1.0

    found = capture(step, tmp_path, torch.device("cpu"), phases, iterations=5)
    assert found.phases == {"env": 0.0, "learn": 5.0}
    assert found.iterations == 5 and found.wall_seconds >= 5 * 0.002
    assert {name: calls for name, _, calls in found.operations}["aten::mm"] == 10
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "aten::mm" in (tmp_path / "kernels.txt").read_text()
    assert (tmp_path / "verdict.md").read_text() == found.text()


def test_profile_is_a_command_and_names_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["profile", "--preset", "catch", "--no-compile", "--torch-threads", "1", "--ui", "quiet", "--json"]
    assert cli.main([*argv, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["iterations"] == 10 and summary["phases"]["learn"] > 0 and summary["gpu_busy"] is None
    assert (Path(summary["profile"]) / "trace.json.gz").stat().st_size < 1_000_000
    # no sync of ours, which would name its line; on a CPU the fused optimiser reads its step counters
    assert {call for call, _, _ in summary["waits"]} <= {"aten::_local_scalar_dense"}
    assert not [place for _, place, _ in summary["waits"] if "fastdqn/" in place and "learner.py" not in place]


def test_a_profile_is_no_run_beside_the_runs_and_evaluates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [
        "profile",
        "--preset",
        "catch",
        "--no-compile",
        "--torch-threads",
        "1",
        "--eval-period-frames",
        "100",
        "--eval-episodes",
        "8",
    ]
    assert cli.main(argv) == 0
    printed = capsys.readouterr()
    (folder,) = (tmp_path / "profiles").iterdir()
    assert not (tmp_path / "runs").exists() and not list((folder / "eval").iterdir())
    assert f"profile: profiles/{folder.name}/profile" in printed.err
    assert "interrupted" not in printed.out + printed.err
