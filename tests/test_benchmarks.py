"""How the benchmarks measure and what they leave, without measuring anything."""

import argparse
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from benchmarks import budgets, choices, envs, learner, peers, replay, throughput
from benchmarks.publish import bars, keep, publish, write
from benchmarks.throughput import Rates, Rung, alone, rows_of, window
from benchmarks.timing import device_of, last_json, ratios, seconds_a_call, spread, turns
from fastdqn.envs import VectorEnv


def test_turns_go_forwards_and_backwards() -> None:
    assert list(turns("abc", 3)) == list("abccbaabc")


def test_after_each_turn_what_was_found_is_kept() -> None:
    seen: list[str] = []
    cases = turns("ab", 3, lambda: seen.append("|"))
    for case in cases:
        seen += case
    assert "".join(seen) == "ab|ba|ab|"


def test_a_ratio_is_of_one_turn() -> None:
    assert spread(ratios([2.0, 30.0, 12.0], [1.0, 10.0, 3.0])) == {"median": 3.0, "lowest": 2.0, "highest": 4.0}


def test_a_window_of_calls_is_no_shorter_than_asked_for() -> None:
    calls = []
    started = time.perf_counter()
    seconds = seconds_a_call(lambda: calls.append(time.sleep(0.001)), 0.05, torch.device("cpu"))
    assert time.perf_counter() - started >= seconds * len(calls) >= 0.05


def test_what_was_stepped_before_a_window_is_no_part_of_it() -> None:
    groups = []

    def group() -> tuple[int, int]:
        groups.append(1000 if len(groups) < 2 else 10)
        time.sleep(0.01)
        return groups[-1], 1

    rates = window(Rung(group, waiting=2), 0.05)
    assert groups[:2] == [1000, 1000]
    assert rates.env_steps == pytest.approx(10 * rates.updates)
    assert rates.updates <= 100  # 10 ms each


@pytest.mark.parametrize(("batch_size", "groups"), [(2, 4), (4, 2), (8, 1)])
def test_all_groups_of_a_pool_are_received_before_a_window(batch_size: int, groups: int) -> None:
    envs = VectorEnv("CartPole", num_envs=8, batch_size=batch_size, seed=1, num_threads=1, stall_seconds=0)
    rung = alone(envs)
    env_steps, updates = np.sum([rung.group() for _ in range(groups + 1)], axis=0)
    envs.close()
    assert rung.waiting == groups
    assert env_steps <= batch_size and updates == 0  # of the first groups all rows are resets


def test_a_rungs_shares_are_of_each_round() -> None:
    found = {"a": [Rates(1, 0), Rates(10, 0)], "b": [Rates(2, 0), Rates(20, 0)], "train": [Rates(1, 3), Rates(5, 1)]}
    row = rows_of(found)[2]
    assert row["of_a"] == {"median": 0.75, "lowest": 0.5, "highest": 1.0}
    assert row["of_b"]["median"] == 0.375 and row["updates_per_second"]["median"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(SystemExit, match="error: device=cuda"):
        device_of("cuda")
    assert device_of("auto") == torch.device("cpu")


def test_a_report_records_its_flags_and_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = argparse.Namespace(quick=True, seconds=2.0, out=tmp_path, json=tmp_path / "x", child=None)
    report = write("some", [1], flags, tmp_path / "new" / "some.json", {"turns": 3})
    assert report["flags"] == {"quick": True, "seconds": 2.0} and report["turns"] == 3
    assert str(tmp_path) not in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "some.json").read_text()) == report


def test_a_report_is_incomplete_until_the_end(tmp_path: Path) -> None:
    flags, path = argparse.Namespace(quick=True), tmp_path / "new" / "some.json"
    keep("some", {("bf16", 64): [1.0, 2.0]}, flags, path, [{"earlier": 3}])
    kept = json.loads(path.read_text())
    assert not kept["complete"] and kept["flags"] == {"quick": True}
    assert kept["results"] == [{"earlier": 3}, {"case": "('bf16', 64)", "values": [1.0, 2.0]}]
    assert write("some", [], flags, path)["complete"] and json.loads(path.read_text())["complete"]


class CutOffError(Exception):
    """In the place of the signal that ends a benchmark."""


CUT_OFF: dict[ModuleType, tuple[list[str], str, Any, dict[str, Any]]] = {
    # flags, what measures, what it finds, and what takes the place of all the other work
    choices: (["", "wait=block", "--name", "some"], "window", Rates(1.0, 0.0), {
        "build": lambda *_: SimpleNamespace(config=SimpleNamespace(action_repeat=4)), "trained": lambda run: run,
    }),
    envs: (["--quick", "--name", "some"], "window", Rates(1.0, 0.0), {"build": lambda *_: (None, None)}),
    replay: (["--device", "cpu", "--quick", "--capacities", "100000"], "seconds_a_call", 1.0, {
        "make_ring": lambda *_: SimpleNamespace(compile=lambda *_: None), "appender": lambda *_: None,
        "Graph": lambda *_: None, "free_bytes": lambda _: 10**10,  # whatever else this machine runs
    }),
    learner: (["--device", "cpu", "--quick"], "seconds_a_call", 1.0, {
        "make_update": lambda *_: None, "products": lambda *_: {"product": None},
    }),
}  # fmt: skip


@pytest.mark.parametrize(("module", "more"), [*((module, []) for module in CUT_OFF), (learner, ["--parts"])])
def test_a_benchmark_that_is_cut_off_leaves_the_turns_that_it_had(
    module: ModuleType, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, measure, value, others = CUT_OFF[module]

    def measured(*_: Any) -> Any:
        if any(tmp_path.glob("*.json")):  # after the first turn
            raise CutOffError
        return value

    for name, replacement in {**others, measure: measured}.items():
        monkeypatch.setattr(module, name, replacement)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags, *more, "--out", str(tmp_path)])
    with pytest.raises(CutOffError):
        module.main()
    (path,) = tmp_path.glob("*.json")
    report = json.loads(path.read_text())
    assert not report["complete"] and len(report["results"]) >= 2 and all(row["values"] for row in report["results"])


def test_a_ladder_that_is_cut_off_leaves_the_turns_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*parts: Any) -> dict:
        parts[-1]({"act": [Rates(1.0, 2.0)]})
        raise CutOffError

    monkeypatch.setattr(throughput, "ladder", cut_off)
    monkeypatch.setattr(sys, "argv", ["throughput", "--json", str(tmp_path / "some.json")])
    with pytest.raises(CutOffError):
        throughput.main()
    report = json.loads((tmp_path / "some.json").read_text())
    assert not report["complete"] and report["results"] == [{"case": "act", "values": [[1.0, 2.0]]}]


def test_budgets_that_are_cut_off_leave_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*parts: Any) -> dict:
        parts[-1]({"start": 1.0})
        raise CutOffError

    monkeypatch.setattr(budgets, "measure", cut_off)
    monkeypatch.setattr(sys, "argv", ["budgets", "--child", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(CutOffError):
        budgets.main()
    report = json.loads((tmp_path / "budgets-cpu.json").read_text())
    assert not report["complete"] and report["results"] == [{"case": "start", "values": [1.0]}]


@pytest.mark.parametrize("switch", ["", "cudnn=benchmark", "asserts=off"])
def test_a_switch_of_torch_holds_while_the_run_is_built(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(*_: Any, options: dict[str, Any] | None = None) -> dict[str, Any] | None:
        return options

    def built(*_: Any) -> tuple[bool, Any, Any]:
        return torch.backends.cudnn.benchmark, torch.compile(print), torch.compile(print, options={"other": 1})

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choices, "make_run", built)
    benchmark, plain, with_options = choices.build("--env Breakout --device cuda", switch, str(tmp_path))  # type: ignore[misc]
    assert benchmark == (switch == "cudnn=benchmark")
    without = {"assert_indirect_indexing": False} if switch == "asserts=off" else {}
    assert (plain or {}) == without and with_options == {"other": 1, **without}
    assert built() == (False, None, {"other": 1})


def test_a_report_has_its_picture_beside_it(tmp_path: Path) -> None:
    flags = argparse.Namespace(out=tmp_path)
    publish("some", [1], flags, {}, lambda axes: bars(axes, ["a"], [spread([1.0, 2.0])]))
    assert imread(tmp_path / "some.png").shape[:2] == (600, 960) and (tmp_path / "some.json").exists()


def test_what_a_child_measured_is_its_last_json_object_however_it_ends() -> None:
    code = "import os, sys; print('{}'); print('{\"a\": ' + os.environ['A'] + '}'); print('bye'); sys.exit(3)"
    assert last_json([sys.executable, "-c", code], environment={"A": "2"}) == {"a": 2}


@pytest.mark.parametrize(
    ("code", "message"),
    [("print(1); raise OSError('why')", r"exit code 1 and no result of (.|\n)*\nOSError: why$"),
     ("import time; time.sleep(60)", "no result after 1 s of ")],
)  # fmt: skip
def test_a_child_without_a_result_ends_the_program_with_the_reason(code: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        last_json([sys.executable, "-c", code], timeout=1.0 if "sleep" in code else None)


def test_a_peer_that_fails_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_, **__) -> dict:
        raise SystemExit("exit code 1 and no result of x\nTraceback\nValueError: why")

    monkeypatch.setattr(peers, "last_json", failing)
    task = peers.Task("torchrl", "Breakout", 64, 256, 8.0, 50_000, 2, 3, "cpu", 1.0)
    assert peers.in_own_process(task) == {"error": "ValueError: why"}


def test_the_parts_are_timed_beside_plain_dqn() -> None:
    cases = learner.part_cases(["plain DQN", "C51"])
    assert cases["plain DQN"].head == "q" and not cases["plain DQN"].double and cases["C51"].head == "c51"


def test_the_peers_table_shows_batch_and_threads_of_each_row() -> None:
    own = peers.Task("fastdqn", "Breakout", 64, 256, 8.0, 50_000, 2, 3, "cpu", 1.0)
    window = {"env_steps": 100, "updates": 10, "seconds": 1.0, "torch_threads": 3, "other_cores": 0.0}
    tasks = {
        "ours": (own, "2/3"),
        "tianshou": (peers.replace(own, library="tianshou", batch_size=32, env_threads=0), "own/3"),
        "sb3": (peers.replace(own, library="stable-baselines3", batch_size=32), "1/3"),
    }
    rows = [peers.row(name, task, [window], [{**window, "env_steps": 200}]) for name, (task, _) in tasks.items()]
    lines = peers.table("title", rows, []).splitlines()[3:]
    for line, (task, threads) in zip(lines, tasks.values(), strict=True):
        assert line.split()[1:4] == ["64", str(task.batch_size), threads] and line.endswith("2.00 (2.00 to 2.00)")
