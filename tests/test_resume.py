"""A run that was interrupted goes on: bit for bit where it promises to, and in plain words where it does not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_by_hand import write_run
from small_runs import everything

from fastdqn import checkpoint, runs
from fastdqn.cli import main
from fastdqn.config import Config, load_preset
from fastdqn.errors import UsageError
from fastdqn.graphs import preserved
from fastdqn.replay import ReplayRing
from fastdqn.run import Run
from fastdqn.trainer import step_group, train

CATCH = replace(
    load_preset("catch"), total_frames=6_000, compile=False, ui="quiet", torch_threads=1, deterministic=True,
    checkpoint_period_frames=2_000, prioritized=True,
)  # fmt: skip
BREAKOUT = replace(
    Config(), env="Breakout", num_envs=4, replay_capacity=600, batch_size=8, learning_starts=100, hidden_size=16,
    target_update_period=100, total_frames=3_600, compile=False, precision="fp32", ui="quiet", torch_threads=1,
    deterministic=True, checkpoint_period_frames=1_600, head="iqn", num_quantiles=8, noisy=True, n_step=3,
    replay_ratio=1.0, acting_ema=0.9,
)  # fmt: skip


def interrupted_at(config: Config, env_steps: int) -> None:
    """The loop of `train`, cut off without a word, as by SIGKILL, once it has come so far."""
    run = Run(config, ["test"])
    run.envs.start()
    run.__enter__()
    while run.clock.env_steps < env_steps:
        step_group(run)
        if run.checkpoint_due():
            run.save()
            run.new_epoch()
    for part in (run._logs._games, run._logs._metrics, run.envs, run.folder._lock):
        part.close()


EVALUATED = replace(CATCH, eval_period_frames=3_000, eval_episodes=1)  # an evaluation's checkpoint is one to go on from


@pytest.mark.parametrize(
    ("config", "cut"), [(CATCH, 5_000), (CATCH, 900), (BREAKOUT, 700), (EVALUATED, 3_500)],
    ids=["catch", "before its first boundary", "breakout", "evaluated"],
)  # fmt: skip
def test_a_deterministic_run_that_was_cut_off_ends_bit_identical_to_one_that_was_not(
    config: Config, cut: int, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(replace(config, run_dir=str(whole)))
    interrupted_at(replace(config, run_dir=str(broken)), cut)
    newest = checkpoint.load(broken / "checkpoints")
    assert (newest.large is None) == (newest.step == 0)  # before its first step the replay, 7 GB of it, is empty
    assert main(["resume", str(broken), "--ui", "quiet"]) == 0
    one, two = everything(whole), everything(broken)
    assert one.keys() == two.keys()
    assert {"frame", "done", "count", "model/advantage.out.weight", "random/learn_counter"} <= one.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert runs.games(whole).score.tolist() == runs.games(broken).score.tolist()


def test_a_run_resumed_without_its_replay_refills_before_it_learns_and_says_so(tmp_path: Path, capsys) -> None:
    config = replace(CATCH, deterministic=False, prioritized=False, run_dir=str(tmp_path / "run"), ui="plain")
    run = Run(config, ["test"])
    run.envs.start()
    with run:
        while run.clock.env_steps < 3_000:
            step_group(run)
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    updates, steps = saved.state["updates"], saved.state["env_steps"]
    assert capsys.readouterr().out.endswith(f"; go on with fastdqn resume {tmp_path / 'run'}\n")
    assert main(["resume", str(tmp_path / "run"), "--json"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    said = f"not saved (--checkpoint-replay full saves it): learning goes on at env step {steps + 1_000:,}"
    assert said in printed.err and "ends before that" not in printed.err
    assert summary["updates"] == updates + (summary["env_steps"] - steps - 1_000) // 8
    assert summary["env_steps"] >= 6_000 and summary["wall_seconds"] > saved.state["wall_seconds"]
    score, run = f"score {summary['score_mean_100']:.2f} over the last 100 games", str(tmp_path / "run")
    assert f"finished: {run}\n{score}, " in printed.err and printed.err.endswith(f"; next: fastdqn eval {run}\n")
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "it has finished" in capsys.readouterr().err


def test_a_finished_run_goes_on_with_a_larger_budget_which_its_folder_says(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    config = replace(CATCH, total_frames=2_000, deterministic=False, prioritized=False, run_dir=str(run))
    train(config)
    capsys.readouterr()
    for words in ([], ["--total-frames", "1k"], ["--total-frames", "2k"]):
        assert main(["resume", str(run), *words]) == 2
        assert "go on with more --total-frames" in capsys.readouterr().err
    assert Config.load(run / "config.toml") == config.resolved()[0]
    assert main(["resume", str(run), "--total-frames", "2.4k", "--ui", "plain"]) == 0
    assert "new rows; the run ends before that: give it more --total-frames\n" in capsys.readouterr().out
    assert Config.load(run / "config.toml") == replace(config, total_frames=2_400, ui="plain").resolved()[0]
    assert runs.command(run).splitlines()[1] == f"fastdqn resume {run} --ui plain --total-frames 2400"
    assert runs.status(run)["state"] == "finished" and checkpoint.load(run / "checkpoints").step >= 2_400


def test_what_moves_to_the_end_of_a_budget_is_said_to_go_on_from_elsewhere(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    falling = {"learning_rate": 1e-3, "learning_rate_end": 1e-4, "learning_starts": 1_000}
    train(replace(CATCH, total_frames=2_000, deterministic=False, run_dir=str(run), **falling))
    assert main(["resume", str(run), "--total-frames", "3k", "--ui", "plain"]) == 0
    said = capsys.readouterr().out
    assert (
        "note      the learning rate had come to 0.0001 and goes on at 0.00055: it now ends with the new budget" in said
    )
    assert "note      the importance exponent had come to 1 and goes on at 0.7: it now ends" in said
    assert "not as before" not in said
    assert main(["resume", str(run), "--total-frames", "4k", "--ui", "plain"]) == 0
    assert "learning rate had come to 0.0001 and goes on at 0.0004" in capsys.readouterr().out


def test_another_machine_or_version_is_said(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    interrupted_at(replace(CATCH, run_dir=str(run)), 2_500)
    here, at = json.loads((run / "environment.json").read_text()), checkpoint.load(run / "checkpoints").step
    (run / "environment.json").write_text(json.dumps({**here, "cores": 999, "torch": "1.0", "gone": "x"}))
    assert main(["resume", str(run)]) == 0
    said = f"note      not as before: cores 999 -> {here['cores']}, torch 1.0 -> {here['torch']}; a deterministic run has the"
    assert said in capsys.readouterr().out
    before = f"until env step {at:,}: cores 999, torch 1.0"
    assert json.loads((run / "environment.json").read_text()) == {**here, "before": before}
    assert main(["report", str(run)]) == 0 and before in (run / "report.html").read_text()


def test_a_run_remembers_every_machine_it_was_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(CATCH, total_frames=2_000, deterministic=False, run_dir=str(run)))
    here = json.loads((run / "environment.json").read_text())
    steps = []
    for frames, cores in (("2.4k", 999), ("2.8k", None), ("3.2k", 998)):
        steps.append(checkpoint.load(run / "checkpoints").step)
        there = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps({**there, "cores": cores or here["cores"]}))
        assert main(["resume", str(run), "--total-frames", frames, "--ui", "quiet"]) == 0
    before = f"until env step {steps[0]:,}: cores 999; until env step {steps[2]:,}: cores 998"
    assert json.loads((run / "environment.json").read_text()) == {**here, "before": before}


def test_a_run_goes_on_with_what_suits_another_machine(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    config = replace(CATCH, total_frames=2_000, deterministic=False, run_dir=str(run), compile=True, env_threads=2)
    train(replace(config, compile=False))
    (run / "config.toml").write_text(replace(config, device="cuda", cuda_graphs=False).to_toml())  # of a GPU
    others = ["--device", "cpu", "--precision", "fp32", "--env-threads", "1", "--torch-threads", "0", "--no-compile"]
    others += ["--replay-capacity", "6400"]
    assert main(["resume", str(run), "--total-frames", "2.4k", "--ui", "plain", *others]) == 0
    assert "note      cuda_graphs=False has no effect: cpu has none" in capsys.readouterr().out
    changed = replace(config, total_frames=2_400, device="cpu", precision="fp32", env_threads=1, torch_threads=0)
    changed = replace(changed, compile=False, cuda_graphs=False, replay_capacity=6_400, ui="plain")
    assert Config.load(run / "config.toml") == changed.resolved()[0]
    assert runs.command(run).splitlines()[1].endswith("--replay-capacity 6400 --no-compile")
    assert main(["resume", str(run), "--total-frames", "3k", "--env-threads", "-1"]) == 2
    assert "env_threads=-1: give a number from 0 to 1,024" in capsys.readouterr().err


def test_what_a_run_promises_or_has_saved_stays_on_another_machine(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    train(replace(CATCH, total_frames=2_000, run_dir=str(run)))
    assert main(["resume", str(run), "--torch-threads", "2"]) == 2
    assert "torch_threads=2: the run is deterministic" in capsys.readouterr().err
    saving = replace(Config.load(run / "config.toml"), deterministic=False, checkpoint_replay="full")
    (run / "config.toml").write_text(saving.to_toml())
    assert main(["resume", str(run), "--total-frames", "4k", "--replay-capacity", "6400"]) == 2
    assert "replay_capacity=6400: the run saves its replay" in capsys.readouterr().err


def test_a_deterministic_run_keeps_its_budget(tmp_path: Path, capsys) -> None:
    interrupted_at(replace(CATCH, run_dir=str(tmp_path / "run")), 2_500)
    before = (tmp_path / "run" / "config.toml").read_text()
    assert main(["resume", str(tmp_path / "run"), "--total-frames", "8k"]) == 2
    assert "total_frames=8000: the run is deterministic" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.toml").read_text() == before
    assert main(["resume", str(tmp_path / "run"), "--total-frames", "6k", "--ui", "quiet"]) == 0
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.endswith("frames; train a new one\n")


def test_sigterm_in_mid_epoch_keeps_the_last_boundary_and_says_what_will_be_run_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = ["train", "--preset", "catch", "--total-frames", "100M", "--no-compile", "--torch-threads", "1",
            "--deterministic", "--checkpoint-period-frames", "5000", "--ui", "plain"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "fastdqn", *argv, "--run-dir", str(run)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    while not (runs.saved_step(run) or 0) > 0:
        assert process.poll() is None, "training ended by itself"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "frames will be run again" in out
    state = checkpoint.load(run / "checkpoints").state
    assert state["frames"] % 5_000 < 16


def test_a_slow_run_is_saved_by_the_clock_unless_saving_takes_long(tmp_path: Path, monkeypatch) -> None:
    slow = replace(CATCH, deterministic=False, checkpoint_period_frames=10**9)
    for name, changes, due in (
        ("plain", {}, True), ("full", {"checkpoint_replay": "full"}, False), ("deterministic", {"deterministic": True}, False),
    ):  # fmt: skip
        run = Run(replace(slow, run_dir=str(tmp_path / name), **changes), ["test"])
        run.envs.close()
        now = time.perf_counter()
        monkeypatch.setattr("fastdqn.run.time.perf_counter", lambda now=now: now + 590)
        assert not run.checkpoint_due()
        monkeypatch.setattr("fastdqn.run.time.perf_counter", lambda now=now: now + 610)
        assert run.checkpoint_due() == due
        run.save()
        assert not run.checkpoint_due()
        monkeypatch.undo()
        run._saver.wait()


def test_a_run_without_a_checkpoint_is_told_how_to_begin_again(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run")
    assert main(["resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert "holds no checkpoint" in error and f"with the command in {run}/command.txt" in error


def test_one_line_begins_a_run_goes_on_with_it_and_leaves_a_finished_one_alone(tmp_path: Path, capsys) -> None:
    run, line = tmp_path / "run", ["train", "--preset", "catch", "--no-compile", "--total-frames", "3k", "--resume"]
    line += ["--ui", "plain", "--torch-threads", "1"]
    assert main(line) == 2
    assert "resume=True: of which run? give its folder, --run-dir" in capsys.readouterr().err
    line += ["--run-dir", str(run)]
    (run / "checkpoints" / ".tmp_step_000000000000").mkdir(parents=True)  # killed inside its first save
    begun = replace(
        load_preset("catch"), total_frames=3_000, compile=False, torch_threads=1, resume=True, run_dir=str(run)
    )
    interrupted_at(replace(begun, ui="quiet"), 900)
    assert runs.saved_step(run) == 0
    assert main(line) == 0
    assert "learning goes on" not in capsys.readouterr().out  # as if it had not been interrupted
    assert runs.command(run).splitlines()[1] == f"fastdqn resume {run} --ui plain"
    assert runs.status(run)["state"] == "finished" and runs.status(run)["frames"] >= 3_000
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([*line, "--json"]) == 0
    printed = capsys.readouterr()
    assert f"finished: {run}, nothing to do" in printed.err and json.loads(printed.out)["frames"] >= 3_000
    newest = run / "checkpoints" / f"step_{runs.saved_step(run):012d}" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert main(line) == 1 and "is intact" in capsys.readouterr().err  # there is no other; finished by its name alone
    newest.write_bytes(kept[newest])
    assert main([*line, "--dueling"]) == 2
    assert "dueling=True: the run in" in capsys.readouterr().err
    assert main([*line, "--compile"]) == 0  # as after a resume with --no-compile
    assert "compile: the run in" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    assert main([*line, "--total-frames", "5k", "--env-threads", "1"]) == 0
    assert "learning goes on at env step" in capsys.readouterr().out
    changed = Config.load(run / "config.toml")
    assert (changed.total_frames, changed.env_threads) == (5_000, 1)


def test_a_run_that_was_killed_behind_its_last_frame_is_brought_to_its_end(tmp_path: Path, capsys) -> None:
    run, line = (
        tmp_path / "run",
        ["train", "--preset", "catch", "--no-compile", "--total-frames", "2k", "--ui", "plain"],
    )
    line += ["--eval-period-frames", "2k", "--eval-episodes", "2", "--resume", "--run-dir", str(run)]
    assert main(line) == 0
    ended, results = runs.status(run), list((run / "eval").glob("*.json"))
    assert ended["state"] == "finished" and len(results) == 1
    (run / "status.json").write_text(json.dumps(ended | {"state": "running"}))  # killed in its last evaluation
    results[0].unlink()
    assert main(line) == 0
    assert "learning goes on" not in capsys.readouterr().out
    assert runs.status(run)["state"] == "finished" and runs.status(run)["frames"] == ended["frames"]
    assert list((run / "eval").glob("*.json")) == results
    assert main(line) == 0 and "nothing to do" in capsys.readouterr().out
    assert main(["resume", str(run)]) == 2
    assert "it has finished total_frames=2000" in capsys.readouterr().err


def test_what_was_killed_before_its_first_save_begins_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = replace(CATCH, deterministic=False, prioritized=False, total_frames=2_000, run_dir=str(run))
    Run(config, ["test"]).folder.release()
    (run / "checkpoints" / ".tmp_step_000000000000").mkdir(parents=True)
    assert train(config).exit_code == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000000002000"]


def test_none_valid_is_exit_code_1_and_never_a_fresh_start(tmp_path: Path, capsys) -> None:
    train(replace(CATCH, total_frames=2_000, run_dir=str(tmp_path / "run")))
    for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints"):
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    (tmp_path / "run" / "config.toml").write_text(
        (tmp_path / "run" / "config.toml").read_text().replace("total_frames = 2000", "total_frames = 9000")
    )
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert main(["resume", str(tmp_path / "run"), "--ui", "quiet"]) == 1
    assert "is intact" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_damaged_lines_of_the_logs_are_dropped_and_told(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    config = replace(CATCH, total_frames=2_000, deterministic=False, prioritized=False, run_dir=str(run))
    train(config)
    (run / "config.toml").write_text(replace(config, total_frames=2_400).resolved()[0].to_toml())
    sound = {name: (run / name).read_text() for name in ("metrics.jsonl", "episodes.csv")}
    damaged = ["xx", '{"global_step": 3}', "[]", "\0\0", "[" * 100_000, '{"global_step": "\xff"}']
    (run / "metrics.jsonl").write_text("\n".join([*damaged, sound["metrics.jsonl"]]), encoding="latin-1")
    (run / "episodes.csv").write_text(sound["episodes.csv"] + "1.0,2\n1.0,2,3,4\na,b,c,5,e,f\n")
    capsys.readouterr()
    assert main(["resume", str(run), "--ui", "plain"]) == 0
    assert "9 damaged lines of metrics.jsonl and episodes.csv were dropped" in capsys.readouterr().out
    for name, text in sound.items():
        assert (run / name).read_text().startswith(text), name
    assert runs.metrics(run) and len(runs.games(run).score)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    config = replace(CATCH, run_dir=str(tmp_path / "run"), deterministic=False)
    run = Run(config, ["test"])
    run.save_now()
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        Run(config, ["test"], checkpoint.load(tmp_path / "run" / "checkpoints"))
    run.envs.close()


def ring(**settings) -> ReplayRing:
    return ReplayRing(
        capacity=40, num_envs=2, obs_shape=(1,), obs_dtype=torch.float32, stack=1, n_step=3, gamma=0.5,
        reward_clip=False, life_loss_terminal=False, seed=0, device=torch.device("cpu"), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("priority_exponent", [None, 0.5])
def test_the_seam_is_a_truncation_no_return_or_stack_crosses_it(priority_exponent: float | None) -> None:
    """Rewards of 1 before the seam and 100 after it: a return that crossed it would show."""
    both, no = torch.arange(2), torch.zeros(2, dtype=torch.bool)
    memory = ring(priority_exponent=priority_exponent)
    for row in range(12):
        if row == 7:
            memory.seam()
        reward = torch.full((2,), 0.0 if row == 7 else 1.0 if row < 7 else 100.0)
        memory.append(both, torch.full((2, 1), float(row)), reward, no, no, no)
    assert memory.starts()[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    batch = memory.transitions(torch.zeros(3, dtype=torch.int64), torch.tensor([3, 4, 5]), torch.ones(3))
    assert batch.reward.tolist() == [1.75, 1.5, 1.0]  # 1 + 1/2 + 1/4, then cut at row 6
    assert batch.discount.tolist() == [0.125, 0.25, 0.5]  # bootstraps from row 6
    assert batch.next_obs.flatten().tolist() == [6.0, 6.0, 6.0]
    if memory.priorities is not None:
        assert torch.equal(memory.priorities.weight.view(2, 20) > 0, memory.starts())


@pytest.mark.parametrize("written", [5, 19, 20, 50])
def test_a_warm_up_that_appends_leaves_no_trace_in_a_restored_ring(written: int) -> None:
    """On a GPU the graphs are run before they are captured, and appending is one of them."""
    kept, lanes, no = ring(), torch.arange(2), torch.zeros(2, dtype=torch.bool)

    def append(value: float, action: int) -> None:
        kept.append(lanes, torch.full((2, 1), value), torch.full((2,), value), no, no, no)
        kept.record_action(lanes, torch.full((2,), action))

    for row in range(written):
        append(row + 1.0, 1)
    before = kept.storage.clone()
    with kept.upcoming_kept(3), preserved([*kept.bookkeeping().values()]):
        for _ in range(3):
            append(-1.0, 2)
        assert (kept.storage["action"] == 2).sum() == 6
    assert all(torch.equal(kept.storage[name], before[name]) for name in before.keys())  # noqa: SIM118
    assert kept.count.tolist() == [written, written]


def test_a_warm_up_that_fails_leaves_no_trace_in_a_restored_ring() -> None:
    kept, lanes, no = ring(), torch.arange(2), torch.zeros(2, dtype=torch.bool)
    for row in range(20):
        kept.append(lanes, torch.full((2, 1), float(row)), torch.ones(2), no, no, no)
    before = kept.storage.clone()
    with pytest.raises(RuntimeError, match="no capture"), kept.upcoming_kept(1):
        kept.append(lanes, torch.full((2, 1), -1.0), torch.ones(2), no, no, no)
        raise RuntimeError("no capture")
    assert torch.equal(kept.storage["frame"], before["frame"])


def test_a_seam_before_the_first_row_marks_nothing() -> None:
    memory = ring()
    memory.seam()
    assert not memory.storage["done"].any()
