"""The device side of the loop on a CPU: what is stored, what is sent, and in which order."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import TINY, quiet

from fastdqn import pipeline
from fastdqn.errors import UsageError
from fastdqn.run import Run
from fastdqn.trainer import step_group


@pytest.fixture
def run(tmp_path: Path):
    run = Run(replace(TINY, run_dir=str(tmp_path / "run")), ["test"])
    run.envs.start()
    yield run
    run.envs.close()


def test_a_group_is_stored_as_it_was_staged_with_the_actions_that_were_sent(run: Run) -> None:
    for _ in range(40):
        step_group(run)
        rows, ring = run.staging.rows, run.ring
        lane = rows["env_id"]
        newest = (ring.count[lane] - 1) % ring.lane_length
        assert torch.equal(ring.storage["frame"][lane, newest], rows["obs"])
        for name in ("reward", "terminated", "done", "life_lost"):
            assert torch.equal(ring.storage[name][lane, newest], rows[name]), name
        assert ring.storage["action"][lane, newest].tolist() == run.staging.wait_for_actions().tolist()


def test_epsilon_reaches_the_choice_of_actions(run: Run) -> None:
    """At epsilon 0 the actions are greedy; at 1 they are not, nearly always."""
    step_group(run)
    rows = run.staging.rows
    greedy = run.learner.online(run.ring.latest(rows["env_id"])).argmax(1)
    choices = []
    for epsilon in (0.0, 1.0):
        for _ in range(20):
            run.pipeline.append_and_act(epsilon=epsilon, importance_exponent=0.4, learning_rate=1e-3)
            choices.append(run.staging.wait_for_actions().copy())
            greedy = run.learner.online(run.ring.latest(rows["env_id"])).argmax(1)
            if epsilon == 0 and not rows["life_lost"].any():
                assert choices[-1].tolist() == greedy.tolist()
    assert len({tuple(choice) for choice in choices[20:]}) > 3


@pytest.mark.parametrize(("replay_ratio", "threads_to_act"), [(8.0, 2), (2.0, 1)])
def test_on_a_cpu_the_games_are_under_way_before_an_update_runs_and_acting_takes_its_threads(
    replay_ratio: float, threads_to_act: int, tmp_path: Path
) -> None:
    run = Run(replace(TINY, replay_ratio=replay_ratio, torch_threads=2, run_dir=str(tmp_path / "run")), ["test"])
    run.envs.start()
    while run.clock.updates == 0:
        step_group(run)
    in_flight, threads, act_threads = [], [], []
    update, act = run.learner.update, run.learner.act
    run.learner.update = lambda *batch: (in_flight.append(run.envs._in_flight), threads.append(torch.get_num_threads()), update(*batch))[2]  # type: ignore[method-assign]  # fmt: skip
    run.learner.act = lambda obs: (act_threads.append(torch.get_num_threads()), act(obs))[1]  # type: ignore[method-assign]
    for _ in range(40):
        step_group(run)
    assert set(in_flight) == {4} and len(in_flight) > 5
    assert set(threads) == {2} and set(act_threads) == {threads_to_act}
    run.envs.close()


def test_building_the_pipeline_leaves_ring_optimiser_and_target_untouched(run: Run) -> None:
    assert run.ring.count.sum() == 0 and run.ring.draw_counter == 0 and run.ring.failed_slots == 0
    moments = [value for state in run.learner.optimizer.state.values() for value in state.values()]
    assert moments and all((value == 0).all() for value in moments)
    pairs = zip(run.learner.online.parameters(), run.learner.target.parameters(), strict=True)
    assert all(torch.equal(online, target) for online, target in pairs)
    assert run.learner.explore_counter == run.learner.learn_counter == 0 and run.learner.read_metrics() == ({}, 0, 0)


def test_what_cannot_be_captured_is_refused_with_what_does_without(tmp_path: Path, monkeypatch) -> None:
    def invalid(function, device: torch.device, *, capture: bool):
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(pipeline, "Graph", invalid)
    with pytest.raises(UsageError, match="not permitted when stream is capturing") as refused:
        Run(replace(TINY, run_dir=str(tmp_path / "run")), ["test"])
    assert str(refused.value).startswith("cuda_graphs=True: ") and "--no-cuda-graphs" in str(refused.value)


@pytest.fixture
def forgotten():
    """No other test meets these variants: eight of a function are torch's limit."""
    yield
    torch._dynamo.reset()


def test_one_process_trains_with_more_settings_than_torch_compiles_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # quick, and traced alike
    monkeypatch.setattr("fastdqn.machine.hardware.has_compiler", lambda device: True)
    for hidden_size in range(8, 18):
        config = quiet("catch", tmp_path / str(hidden_size), hidden_size=hidden_size, total_frames=100)
        run = Run(replace(config, compile=True), ["test"])
        assert run.learner.compiled
        run.envs.close()
