"""Evaluations in the background: they score the checkpoints, keep the best agent, and never hold the loop."""

import errno
import json
import os
import signal
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
from run_by_hand import evaluation_result
from small_runs import quiet

from fastdqn import checkpoint, runs
from fastdqn.cli import main
from fastdqn.commands import eval as eval_command
from fastdqn.periodic_eval import PeriodicEval
from fastdqn.run import Run
from fastdqn.trainer import train


def test_training_leaves_an_evaluation_of_the_last_agent_and_the_best_one(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    config = quiet("catch", run, total_frames=40_000, eval_period_frames=20_000, eval_episodes=8)
    steps = train(config).summary["env_steps"]
    results = runs.evaluations(run)
    assert results[-1]["checkpoint_step"] == steps and results[-1]["episodes"] == 8
    assert {result["seed"] for result in results} == {
        0
    } and eval_command.Flags.seed != 0  # chosen and scored on other games
    best = checkpoint.load(run / "best")
    assert best.state["eval_score_mean"] == max(result["score_mean"] for result in results)
    rows = runs.metrics(run)
    assert (rows[-1]["eval/score_mean"], rows[-1]["eval/step"]) == (results[-1]["score_mean"], steps)
    capsys.readouterr()
    assert main(["eval", str(run), "--checkpoint", "best", "--episodes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint_step"] == best.step


def test_the_last_agent_is_not_played_again_where_it_has_been_played(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(quiet("catch", run, total_frames=2_000))
    evaluation = PeriodicEval(run, episodes=1)
    evaluation.start()  # of what is the newest already
    evaluation.finish(unless=lambda: False)
    assert (run / "eval" / "log.txt").read_text().count("1 games, protocol") == 1
    assert evaluation.new_scores()["eval/step"] == runs.saved_step(run)
    saved = checkpoint.load(run / "checkpoints")
    checkpoint.write(run / "checkpoints", saved.step + 1, saved.tensors, saved.state)
    evaluation.finish(unless=lambda: False)
    assert (run / "eval" / "log.txt").read_text().count("1 games, protocol") == 2
    assert evaluation.new_scores()["eval/step"] == saved.step + 1 and not evaluation.failures


def test_the_best_agent_is_kept_until_a_better_one_comes(tmp_path: Path) -> None:
    from fastdqn.checkpoint import Checkpoint
    from fastdqn.evaluation import _keep_best

    for step, score, kept in (
        (1, 5.0, 1),
        (2, 3.0, 1),
        (3, 5.5, 3),
        (4, -1.0, 3),
        (5, 5.5, 5),
        (5, 9.0, 5),
        (6, 7.0, 5),
        (4, 9.5, 4),
    ):
        saved = Checkpoint(tmp_path / f"step_{step}", step, {"model": {}}, {"env_steps": step})
        assert _keep_best(saved, {"score_mean": score, "protocol": "run", "epsilon": 0.001}, tmp_path / "best") == (
            kept == step
        )
        assert checkpoint.load(tmp_path / "best").step == kept
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_the_best_agent_outlives_a_better_one_that_cannot_be_written(tmp_path: Path, monkeypatch, capsys) -> None:
    """Also where it is the same agent, scored higher in other games."""
    from fastdqn.checkpoint import Checkpoint
    from fastdqn.evaluation import _keep_best

    saved, best = Checkpoint(tmp_path, 1, {"model": {}}, {"env_steps": 1}), tmp_path / "best"
    assert _keep_best(saved, {"score_mean": 5.0, "protocol": "run", "epsilon": 0.001}, best)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert _keep_best(saved, {"score_mean": 9.0, "protocol": "run", "epsilon": 0.001}, best) is None
    assert "not kept as best" in capsys.readouterr().err
    assert checkpoint.load(best).state["eval_score_mean"] == 5.0
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_scores_of_two_protocols_or_epsilons_are_not_held_against_each_other(tmp_path: Path, capsys) -> None:
    from fastdqn.checkpoint import Checkpoint
    from fastdqn.evaluation import _keep_best

    first, second = (Checkpoint(tmp_path, step, {"model": {}}, {"env_steps": step}) for step in (1, 2))
    assert _keep_best(first, {"score_mean": 5.0, "protocol": "run", "epsilon": 0.001}, tmp_path / "best")
    assert _keep_best(second, {"score_mean": 9.0, "protocol": "nature", "epsilon": 0.05}, tmp_path / "best") is None
    assert "scored by protocol run; evaluate with --protocol run" in capsys.readouterr().err
    assert _keep_best(second, {"score_mean": 9.0, "protocol": "run", "epsilon": 0.9}, tmp_path / "best") is None
    assert "scored by epsilon 0.001; evaluate with --epsilon 0.001" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "best").step == 1


def test_a_best_agent_that_cannot_be_read_stays_and_is_told(tmp_path: Path, capsys) -> None:
    from fastdqn.checkpoint import Checkpoint
    from fastdqn.evaluation import _keep_best

    first, second = (Checkpoint(tmp_path, step, {"model": {}}, {"env_steps": step}) for step in (1, 2))
    assert _keep_best(first, {"score_mean": 5.0, "protocol": "run", "epsilon": 0.001}, tmp_path / "best")
    state = tmp_path / "best" / "step_000000000001" / "state.json"
    state.write_text("{}")
    assert _keep_best(second, {"score_mean": 9.0, "protocol": "run", "epsilon": 0.001}, tmp_path / "best") is None
    assert "not kept as best" in capsys.readouterr().err and state.read_text() == "{}"


def test_an_evaluation_that_cannot_start_is_told_and_training_goes_on(tmp_path: Path) -> None:
    evaluation = PeriodicEval(tmp_path / "no such folder", episodes=1)
    evaluation.start()
    assert not evaluation.poll() and "not started" in evaluation.failures[0] and evaluation.new_scores() == {}


def test_a_file_that_is_no_result_is_none(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    for number, text in enumerate(["[]", "{}", '{"score_m', '{"score_mean": 1}', "7", "[" * 100_000, "\x00"]):
        (tmp_path / "eval" / f"{number}.json").write_text(text)
    (tmp_path / "eval" / "folder.json").mkdir()
    for name, value in (("score_ci95", 1), ("checkpoint_step", None), ("protocol", 3), ("score_ci95", [1, "2"])):
        (tmp_path / "eval" / f"{name}-{value}.json").write_text(json.dumps({**evaluation_result(), name: value}))
    (tmp_path / "eval" / "real.json").write_text(json.dumps(evaluation_result(2.5)))
    assert [result["score_mean"] for result in runs.evaluations(tmp_path)] == [2.5]


def test_one_that_falls_due_while_another_runs_is_left_out_and_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    evaluation = PeriodicEval(tmp_path, episodes=1)  # the folder holds no run: it will fail
    evaluation.start()
    first = evaluation._process
    evaluation.start()
    assert evaluation._process is first and evaluation.left_out == 1
    evaluation.wait()
    assert not evaluation.poll() and len(evaluation.failures) == 1 and "log.txt" in evaluation.failures[0]
    assert "holds no run" in (tmp_path / "eval" / "log.txt").read_text()
    (tmp_path / "eval" / "earlier.json").write_text(json.dumps(evaluation_result(seed=runs.SELECTION_SEED)))
    assert len(runs.evaluations(tmp_path)) == 1
    assert evaluation.new_scores() == {}  # an older result is not the failed one's


def test_only_its_own_results_are_reported_as_the_runs_scores(tmp_path: Path) -> None:
    train(quiet("catch", tmp_path / "run", total_frames=2_000))
    (tmp_path / "run" / "eval" / "by_hand.json").write_text(json.dumps(evaluation_result(checkpoint_step=10**9)))
    before = tmp_path / "run" / "eval" / "before.json"  # of a checkpoint that was damaged later
    before.write_text(json.dumps(evaluation_result(checkpoint_step=10**9, seed=runs.SELECTION_SEED)))
    os.utime(before, (0, 0))
    evaluation = PeriodicEval(tmp_path / "run", episodes=1)
    evaluation.start()
    evaluation.wait()
    reported, own = evaluation.new_scores(), runs.evaluations(tmp_path / "run")[0]
    assert reported == {"eval/score_mean": own["score_mean"], "eval/step": own["checkpoint_step"]}
    assert own["seed"] == runs.SELECTION_SEED and evaluation.new_scores() == {}  # once


def test_each_evaluation_that_falls_due_begins_once_its_checkpoint_is_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    begun = []
    monkeypatch.setattr(
        PeriodicEval, "start", lambda self: begun.append(checkpoint.load(self._run / "checkpoints").step)
    )
    train(quiet("catch", tmp_path / "run", total_frames=6_000, eval_period_frames=2_000, replay_ratio=1.0))
    assert [step // 2_000 for step in begun[:2]] == [1, 2] and begun[-1] >= 6_000 and len(begun) <= 4


def test_an_evaluation_waits_for_its_checkpoint_and_is_not_forgotten_over_the_next(tmp_path: Path, monkeypatch) -> None:
    config = quiet("catch", tmp_path / "run", checkpoint_period_frames=500, eval_period_frames=1_000)
    run, go, write = Run(config, ["test"]), threading.Event(), checkpoint.write
    run.envs.close()
    monkeypatch.setattr(checkpoint, "write", lambda *parts, **how: (go.wait(10), write(*parts, **how))[1])
    run.clock.env_steps = 1_000
    run.save()
    assert not run.eval_due()  # it is being written
    go.set()
    run.clock.env_steps = 1_500
    run.save()
    run._saver.wait()
    assert run.eval_due()
    monkeypatch.setattr(run.periodic_eval, "start", lambda: None)
    run.evaluate()
    assert not run.eval_due()


def test_a_run_that_is_told_to_stop_takes_its_evaluation_with_it(tmp_path: Path) -> None:
    config = quiet("catch", tmp_path / "run", eval_period_frames=10**9, eval_episodes=100_000)
    run = Run(config, ["test"])
    run.envs.start()
    with run:
        run.save_now()
        run.evaluate()
        assert run.periodic_eval.poll()
        process = run.periodic_eval._process
    assert process is not None and process.returncode is not None


def test_every_evaluation_that_ended_is_a_row_of_the_metrics(tmp_path: Path) -> None:
    """Also the one that was going on when training ended."""
    run = Run(quiet("catch", tmp_path / "run", total_frames=2_000, eval_period_frames=10**9, eval_episodes=1), ["test"])
    run.envs.start()
    with run:
        run.save_now()
        run.evaluate()
        run.periodic_eval.wait()  # and no row is written before the next begins
        run.clock.env_steps = 2_000
    steps = [row["eval/step"] for row in runs.metrics(tmp_path / "run") if "eval/step" in row]
    assert steps == [0, 2_000] == [result["checkpoint_step"] for result in runs.evaluations(tmp_path / "run")]


def test_a_run_stopped_in_its_last_evaluation_has_not_finished_and_resume_plays_it(tmp_path: Path) -> None:
    run = Run(quiet("catch", tmp_path / "run", total_frames=2_000, eval_period_frames=10**9, eval_episodes=1), ["test"])
    run.envs.start()
    with run:
        run.clock.env_steps, run.stop.signal = 2_000, signal.SIGINT
    assert runs.status(tmp_path / "run")["state"] == "interrupted" and runs.evaluations(tmp_path / "run") == []
    assert main(["resume", str(tmp_path / "run"), "--ui", "quiet"]) == 0
    assert runs.status(tmp_path / "run")["state"] == "finished"
    assert [result["checkpoint_step"] for result in runs.evaluations(tmp_path / "run")] == [2_000]


def test_waiting_for_the_last_evaluation_is_no_training_time(tmp_path: Path) -> None:
    config = quiet("catch", tmp_path / "run", total_frames=2_000, eval_episodes=1, eval_period_frames=10**9)
    summary = train(config).summary
    (result,) = runs.evaluations(tmp_path / "run")
    last = runs.metrics(tmp_path / "run")[-1]
    assert last["eval/step"] == result["checkpoint_step"] == summary["env_steps"]
    assert last["wall_seconds"] == pytest.approx(summary["wall_seconds"], abs=1e-3)  # it took longer to start Python
