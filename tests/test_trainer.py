"""The loop itself: it learns, it is deterministic when asked, it counts exactly, and it stops when told to."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import TINY, quiet, reaches, until_first_row

from fastdqn import checkpoint, losses, runs
from fastdqn.cli import main
from fastdqn.distributed import Agreed, RankLostError, Ranks
from fastdqn.errors import UsageError
from fastdqn.parts import build
from fastdqn.progress import NotFiniteError
from fastdqn.run import Run
from fastdqn.run_folder import RunFolder
from fastdqn.trainer import step_group, train


def test_catch_is_learned(tmp_path) -> None:
    """Within 60,000 env steps, the preset's budget."""
    assert reaches(quiet("catch", tmp_path / "run", total_frames=60_000), 0.9)


def test_a_broken_target_fails_the_catch_gate(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate can fail: bootstrapping from the worst next action instead of the best does not learn Catch."""

    best = losses.greedy
    monkeypatch.setattr(losses, "greedy", lambda q: best(-q))
    # in one order of the games, for in some it gets there by chance
    assert not reaches(quiet("catch", tmp_path / "run", total_frames=60_000, deterministic=True), 0.9)


def test_cartpole_is_learned(tmp_path) -> None:
    """Within the preset's budget to 195, where CartPole-v0 counts as solved; at random 22. To 500: benchmarks/results."""
    assert reaches(quiet("cartpole", tmp_path / "run", total_frames=200_000), 195)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints").tensors["model"]


def test_deterministic_runs_with_one_seed_end_bit_identical_and_another_seed_does_not(tmp_path) -> None:
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(replace(TINY, total_frames=2_400, deterministic=True, seed=seed, run_dir=str(tmp_path / name)))
        runs[name] = final_weights(tmp_path / name)
    assert all(torch.equal(runs["a"][key], runs["b"][key]) for key in runs["a"])
    assert not all(torch.equal(runs["a"][key], runs["c"][key]) for key in runs["a"])


def test_a_run_of_a_game_ends_at_its_emulator_frames(tmp_path) -> None:
    summary = train(replace(TINY, total_frames=1_003, run_dir=str(tmp_path / "run"))).summary
    assert 1_003 <= summary["frames"] == 4 * summary["env_steps"] < 1_003 + 4 * TINY.num_envs


@pytest.mark.parametrize("num_envs", [1, 3, 16, 100, 257])
def test_updates_and_syncs_are_functions_of_env_steps_for_every_num_envs(num_envs: int, tmp_path) -> None:
    config = quiet("catch", tmp_path / "run", num_envs=num_envs, total_frames=4_000, learning_starts=1_600,
                   replay_ratio=0.7, batch_size=16, target_update_period=130)  # fmt: skip
    summary = train(config).summary
    steps = summary["env_steps"]
    assert 4_000 <= steps < 4_000 + num_envs
    assert summary["updates"] == (steps - 1_600) * 7 // 160
    assert summary["target_syncs"] == (steps - 1_600) // 130
    assert summary["frames"] == steps


def test_the_loop_runs_events_in_the_order_of_a_scalar_simulation(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdqn.learner import Learner

    events: list[str] = []
    monkeypatch.setattr(Learner, "update", lambda self, *batch: (events.append("update"), batch[2])[1])
    monkeypatch.setattr(Learner, "sync_target", lambda self: events.append("sync"))
    config = quiet("catch", tmp_path / "run", num_envs=33, total_frames=3_000, learning_starts=1_000, replay_ratio=1.0,
                   batch_size=10, target_update_period=25)  # fmt: skip
    end = train(config).summary["env_steps"]
    scalar = []
    for step in range(1, end - 1_000 + 1):
        scalar += ["update"] * (step % 10 == 0) + ["sync"] * (step % 25 == 0)
    assert events == scalar and len(events) > 200


def test_only_decisions_count_as_env_steps(tmp_path) -> None:
    """Reset rows are no env steps: finished games of 9 decisions account for all steps but the unfinished ones."""
    config = quiet("catch", tmp_path / "run", num_envs=8, total_frames=2_000, learning_starts=1_000)
    summary = train(config).summary
    lengths = [int(line.split(",")[1]) for line in (tmp_path / "run" / "episodes.csv").read_text().splitlines()[1:]]
    assert set(lengths) == {9}
    assert 0 <= summary["env_steps"] - sum(lengths) < 8 * 9


def test_fire_is_executed_and_stored_after_a_lost_life(tmp_path) -> None:
    rings = {}
    for mode in ("auto", "off"):
        run = Run(replace(TINY, fire_after_life_loss=mode, replay_ratio=0.0, run_dir=str(tmp_path / mode)), ["test"])
        run.envs.start()
        for _ in range(600):
            step_group(run)
            lost = run.staging.rows["life_lost"].numpy()
            assert mode == "off" or (run.staging.wait_for_actions()[lost] == 1).all()  # what was sent
        rings[mode] = run.ring.storage
        run.envs.close()
    stored = {mode: ring["action"][ring["life_lost"]] for mode, ring in rings.items()}
    assert len(stored["auto"]) > 4 and (stored["auto"] == 1).all()
    assert len(stored["off"]) > 4 and not (stored["off"] == 1).all()


def test_epsilon_is_one_until_learning_starts_then_falls_linearly_to_its_end(tmp_path) -> None:
    changes = {"learning_starts": 1_000, "epsilon_decay_steps": 2_000, "epsilon_end": 0.1, "total_frames": 8_000}
    run = Run(quiet("catch", tmp_path / "run", **changes), ["test"])
    run.envs.close()
    epsilon = []
    for run.clock.env_steps in (0, 1_000, 2_000, 3_000, 9_990):
        epsilon.append(run.epsilon())
    assert epsilon == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(("end", "expected"), [(1.0, [0.4, 0.4, 0.7, 1.0, 1.0]), (0.4, [0.4] * 5)])
def test_beta_goes_in_a_straight_line_from_the_learning_start_to_the_end(end: float, expected: list, tmp_path) -> None:
    changes = {"prioritized": True, "importance_exponent_end": end, "total_frames": 3_000, "learning_starts": 1_000}
    run = Run(quiet("catch", tmp_path / "run", **changes), ["test"])
    run.envs.close()
    beta = []
    for run.clock.env_steps in (0, 1_000, 2_000, 3_000, 3_010):
        beta.append(run.importance_exponent())
    assert beta == pytest.approx(expected)


def test_a_target_that_follows_is_never_copied(tmp_path) -> None:
    for polyak, copies in ((0.0, 2), (0.005, 0)):
        config = quiet("catch", tmp_path / str(polyak), total_frames=2_000, learning_starts=1_000, polyak=polyak)
        summary = train(config).summary
        assert summary["updates"] > 100 and summary["target_syncs"] == copies


@pytest.mark.parametrize("changes", [{"resize": "env"}, {"resize": "device", "optimizer": "rmsprop"}])
def test_nothing_is_compiled_again_once_the_loop_runs(changes: dict, tmp_path) -> None:
    """`train` forbids recompiles: a run over learning, target copies and logging would raise."""
    config = replace(TINY, total_frames=2_800, compile=True, **changes, run_dir=str(tmp_path / "run"))
    summary = train(config).summary
    assert summary["updates"] > 50 and summary["target_syncs"] > 1


def test_the_learned_frames_do_not_depend_on_where_they_are_resized(tmp_path) -> None:
    frames = {}
    for resize in ("env", "device"):
        config = replace(TINY, resize=resize, deterministic=True, total_frames=1_400, run_dir=str(tmp_path / resize))
        run = Run(config, ["test"])
        run.envs.start()
        while run.clock.env_steps < 300:  # epsilon is 1: the same actions in both
            step_group(run)
        frames[resize] = run.ring.storage["frame"].clone()
        run.envs.close()
    assert torch.equal(frames["env"], frames["device"])


def test_cycles_that_a_save_leaves_are_gone_after_the_next(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        """Refers to itself, as json's encoder does."""

        def __init__(self) -> None:
            self.itself = self

    left, alive, write = [], [], checkpoint.write

    def watched(*parts, **how):
        alive.append(sum(node() is not None for node in left))
        left.append(weakref.ref(Node()))
        return write(*parts, **how)

    monkeypatch.setattr(checkpoint, "write", watched)
    train(quiet("catch", tmp_path / "run", total_frames=6_000, checkpoint_period_frames=1_000))
    assert len(alive) >= 6 and max(alive) <= 1


def test_a_run_that_cannot_start_is_refused_before_it_leaves_a_folder(tmp_path) -> None:
    with pytest.raises(UsageError, match="replay_capacity="):
        train(replace(TINY, replay_capacity=5_000_000_000, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("other", ["ended", "running"])
def test_a_folder_that_another_run_has_is_refused_before_a_game_is_built_and_stays_as_it_is(
    other: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    if other == "ended":
        (tmp_path / "config.toml").write_text("")
        folder.release()
    before = contents(tmp_path)
    monkeypatch.setattr("fastdqn.run.build", lambda *_: pytest.fail("games were built"))
    message = {
        "ended": "already holds a run; it saved nothing to go on from: move it away",
        "running": f"in use by process {os.getpid()}",
    }[other]
    with pytest.raises(UsageError, match=message):
        train(replace(TINY, run_dir=str(tmp_path)))
    assert contents(tmp_path) == before
    folder.release()


def test_a_folder_that_another_run_takes_meanwhile_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, held = tmp_path / "run", []
    monkeypatch.setattr("fastdqn.run.build", lambda *given: (held.append(RunFolder(run)), build(*given))[1])
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        train(replace(TINY, run_dir=str(run)))
    assert not (run / "config.toml").exists()
    held[0].release()


def test_cuda_graphs_are_not_switched_off_where_there_are_none(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"cuda_graphs=False: only CUDA"):
        train(replace(TINY, cuda_graphs=False, device="cpu", run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_log_periods_rows_carry_cleanrls_tags(tmp_path) -> None:
    train(replace(TINY, run_dir=str(tmp_path / "run")))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    tags = {"global_step", "charts/episodic_return", "charts/SPS", "losses/td_loss", "losses/q_values"}
    assert tags <= row.keys()
    assert row["frames"] == 4 * row["global_step"] and row["losses/td_loss"] >= 0


def test_training_whose_numbers_are_no_longer_finite_ends_with_a_checkpoint_and_a_reason(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("fastdqn.run.LOG_PERIOD_SECONDS", 0.2)
    target = losses.td_target
    monkeypatch.setattr(losses, "td_target", lambda reward, *rest: target(reward / 0, *rest))
    argv = ["train", "--preset", "catch", "--no-compile", "--torch-threads", "1", "--run-dir", str(tmp_path / "run"),
            "--ui", "quiet", "--total-frames", "10M"]  # fmt: skip
    assert main(argv) == 1
    assert "updates had a loss or gradient that was not finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    saved = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors["model"].values())


def test_it_takes_a_hundred_updates_in_a_row_that_were_not_finite_to_end_a_run(tmp_path) -> None:
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.close()
    run.progress.refused, run.progress._refused_in_a_row = 10_000, 99
    run.progress.check_finite()
    run.progress._refused_in_a_row = 100
    with pytest.raises(NotFiniteError, match="the last 100 updates"):
        run.progress.check_finite()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_exits_with_its_signals_code(number: int, exit_code: int, tmp_path) -> None:
    run = tmp_path / "run"
    argv = ["train", "--preset", "catch", "--total-frames", "100M", "--no-compile", "--torch-threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastdqn", *argv, "--run-dir", str(run), "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    until_first_row(run, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code
    summary = json.loads(out.splitlines()[-1])
    assert checkpoint.load(run / "checkpoints").state["env_steps"] == summary["env_steps"] > 0
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_a_device_that_fails_leaves_the_run_failed_and_its_folder_free(tmp_path, monkeypatch) -> None:
    """As a CUDA fault does: after it nothing on the device can be read, the weights for a checkpoint neither."""
    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.start()
    with pytest.raises(RuntimeError, match="CUDA error"), run:
        monkeypatch.setattr(run.learner, "state", fault)
        fault()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    RunFolder(tmp_path / "run", resumed=True).release()
    with pytest.raises(ValueError, match="closed"):
        run.envs.recv()


def fault() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_rank_that_is_lost_in_mid_iteration_leaves_the_others_run_failed_and_its_folder_free(tmp_path) -> None:
    class Lost(Ranks):
        def gather(self, rows, width):
            raise RankLostError("gone")

    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.start()
    with pytest.raises(RankLostError, match="in an update"), run:
        run.logging = True  # agreed on, and then the update that comes before the log finds the other rank gone
        run.ranks = Lost()
        raise RankLostError("in an update")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    Run(run.config, ["test"], checkpoint.load(tmp_path / "run" / "checkpoints")).envs.close()


def test_a_rank_lost_on_cuda_ends_the_others_without_a_read_of_the_device_whose_queue_waits_for_it(
    tmp_path, monkeypatch, capsys
) -> None:
    run = Run(replace(quiet("catch", tmp_path / "run"), ui="plain"), ["test"])
    run.envs.start()
    with pytest.raises(RankLostError, match="in an update"), run:
        run.clock.env_steps = 100
        run.device = torch.device("cuda")
        monkeypatch.setattr(run.learner, "state", fault)
        monkeypatch.setattr(run, "summary", fault)
        monkeypatch.setattr(run, "_log_row", fault)
        raise RankLostError("in an update")
    assert "the last checkpoint is that of env step 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    Run(replace(run.config, device="cpu"), ["test"], checkpoint.load(tmp_path / "run" / "checkpoints")).envs.close()


def test_a_period_is_logged_once_though_several_ranks_agree_on_it_a_group_later(tmp_path, monkeypatch) -> None:
    class Lagging(Ranks):
        said = Agreed(0, stop=False, log=False)

        def agree(self, decisions, *, stop, log):
            answer, self.said = self.said, Agreed(decisions, stop, log)
            return answer

    run = Run(quiet("catch", tmp_path / "run"), ["test"])
    run.envs.close()
    run.ranks, run._logged, logged = Lagging(), 0.0, []
    for group in range(1, 21):
        monkeypatch.setattr("fastdqn.run.time.perf_counter", lambda seconds=group / 2: seconds)
        run.advance(1)
        logged += [group] * run.logging
    assert logged == [5, 9, 13, 17]  # every two seconds, and a group later


@pytest.mark.parametrize(("spread", "q", "told"), [(3.6e-6, -1.39, True), (1.05e-4, 0.152, False), (0.0, 0.0, True)])
def test_a_spread_that_is_nothing_beside_q_is_a_dead_network(
    spread: float, q: float, told: bool, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of a run of Pong that never learned, and of one of Breakout that did 800 updates later."""
    run = Run(replace(quiet("catch", tmp_path / "run"), ui="plain"), ["test"])
    losses = {"losses/td_loss": 0.03, "losses/q_values": q, "losses/q_spread": spread, "losses/grad_norm": 0.2}
    monkeypatch.setattr(run.learner, "read_metrics", lambda: (losses, 0, 0))
    run.clock.updates = 999
    run.log()
    assert "units are dead" not in capsys.readouterr().out
    run.clock.updates = 1_000
    run.log()
    assert ("units are dead" in capsys.readouterr().out) == told
    run.envs.close()


@pytest.mark.parametrize(
    ("waited", "threads", "seconds", "told"), [(0.3, 3, 130, 1), (0.1, 3, 130, 0), (0.3, 1, 130, 0), (0.3, 3, 100, 0)]
)
def test_a_team_of_threads_without_cores_of_its_own_is_told_once(
    waited: float, threads: int, seconds: int, told: int, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(quiet("catch", tmp_path / "run", total_frames=3_000), ui="plain", torch_threads=threads)
    run = Run(config, ["test"])
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("fastdqn.progress.core_wait_seconds", lambda: waited * clock[0])
    run.progress.begin()
    for clock[0] in (seconds, seconds + 1.0):
        run.log()
    assert capsys.readouterr().out.count("other programs held this run's cores for 30%") == told
    assert runs.metrics(tmp_path / "run")[-1]["system/core_wait_frac"] == pytest.approx(waited)
    run.envs.close()


@pytest.mark.parametrize("dead", [False, True])
def test_a_network_whose_units_are_dead_is_told_once(
    dead: bool, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdqn.progress.DEAD_AFTER", 20)
    monkeypatch.setattr("fastdqn.run.LOG_PERIOD_SECONDS", 0.02)
    run = Run(replace(quiet("catch", tmp_path / "run", total_frames=3_000), ui="plain"), ["test"])
    if dead:
        for network in (run.learner.online, run.learner.target):
            torch.nn.init.constant_(dict(network.named_parameters())["encoder.1.bias"], -1e3)
    run.envs.start()
    with run:
        while run.clock.env_steps < 3_000:
            step_group(run)
            if run.logging:
                run.log()
    assert capsys.readouterr().out.count("units are dead") == dead
    spread = runs.metrics(tmp_path / "run")[-1]["losses/q_spread"]
    assert (spread == 0) == dead
