"""The loop on a GPU: no hidden host sync, no copy from unpinned memory, no torn frame, graphs equal to plain calls."""

import gc
import statistics
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdqn.commands.doctor import check_cuda
from fastdqn.config import Config, load_preset
from fastdqn.metrics import resident_bytes
from fastdqn.replay import ReplayRing
from fastdqn.run import Run
from fastdqn.staging import Staging
from fastdqn.trainer import step_group, train

SMALL = replace(
    Config(), env="Breakout", num_envs=16, replay_capacity=20_000, batch_size=32, learning_starts=400,
    target_update_period=100, total_frames=100_000, device="cuda", ui="quiet",
)  # fmt: skip


@pytest.fixture(params=[True, False], ids=["graphs", "no-graphs"])
def run(tmp_path: Path, request):
    run = Run(replace(SMALL, cuda_graphs=request.param, run_dir=str(tmp_path / "run")), ["test"])
    assert run.pipeline._update.captured == request.param
    run.envs.start()
    while run.clock.updates < 5:
        step_group(run)
    yield run
    run.envs.close()


def test_the_loop_has_no_host_sync_but_the_wait_for_actions(run: Run) -> None:
    before = run.clock.updates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            step_group(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.clock.updates > before and run.clock.target_syncs > 0


def test_no_copy_touches_unpinned_memory(run: Run) -> None:
    """The sync-debug mode cannot see those: they stage and stall inside the driver."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profiler:
        for _ in range(20):
            step_group(run)
        torch.cuda.synchronize()
    copies = [event.name for event in profiler.events() or [] if event.name.startswith("Memcpy")]
    assert any("HtoD" in name for name in copies) and any("DtoH" in name for name in copies)
    assert not [name for name in copies if "Pageable" in name]


def test_doctor_finds_the_device_sound() -> None:
    assert check_cuda().state == "ok"


def test_warm_up_and_capture_leave_no_trace(tmp_path: Path) -> None:
    run = Run(replace(SMALL, run_dir=str(tmp_path / "run")), ["test"])
    assert run.pipeline._update.captured and run.pipeline._append_and_act.captured
    assert run.ring.count.sum() == 0 and run.ring.draw_counter == 0 and run.ring.failed_slots == 0
    moments = [value for state in run.learner.optimizer.state.values() for value in state.values()]
    assert moments and all((value == 0).all() for value in moments)
    for online, target in zip(run.learner.online.parameters(), run.learner.target.parameters(), strict=True):
        assert torch.equal(online, target)
    run.envs.close()


def corrupt_frames(staging: Staging, groups: int) -> int:
    """Puts groups of one colour each while the device lags behind; counts the pixels of another colour."""
    B = len(staging.rows["env_id"])
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    zeros = np.zeros(B, bool)
    for colour in range(groups):
        torch.cuda._sleep(20_000_000)  # about 10 ms: the copy that follows is late
        frame = np.full((B, 84, 84), colour % 256, np.uint8)
        staging.put(SimpleNamespace(
            env_id=np.arange(B), reward=np.zeros(B), terminated=zeros, done=zeros, life_lost=zeros, obs=frame,
        ))  # fmt: skip
        wrong += (staging.rows["obs"] != colour % 256).sum()
    return int(wrong)


def test_a_slot_is_never_overwritten_while_its_copy_reads_it(cuda: torch.device) -> None:
    staging = Staging(group_size=64, obs_shape=(84, 84), obs_dtype=torch.uint8, device=cuda)
    assert corrupt_frames(staging, 40) == 0


def test_without_its_events_the_race_is_lost(cuda: torch.device) -> None:
    staging = Staging(group_size=64, obs_shape=(84, 84), obs_dtype=torch.uint8, device=cuda)

    class Passed:
        def synchronize(self) -> None: ...
        def record(self) -> None: ...

    staging._free = [Passed() for _ in staging._slots]  # type: ignore[list-item]
    assert corrupt_frames(staging, 40) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compile", [True, False])
def test_graphed_updates_agree_with_the_cpus(precision: str, compile: bool, tmp_path: Path) -> None:
    """100 single updates, each from the reference's own state; trajectories would diverge by chaos alone.

    Rewards are drawn anew: where TD errors are near zero rounding is all that is left of them. In bfloat16 two sound
    implementations on a CPU (the bias inside or behind the convolution) differ by 2.4 % in the median, 5.8 % at most.
    In float32 the rounding of two libraries may decide the sign of a unit that is all but zero, and its whole gradient
    with it: ten of the hundred may differ by more than 1e-5. (A CPU's float32 against its float64: 1.5e-7 at most of 60.)
    """
    runs = {}
    for device, flags in {"cuda": {"compile": compile}, "cpu": {"compile": False, "resize": "device"}}.items():
        config = replace(SMALL, device=device, precision=precision, run_dir=str(tmp_path / device), **flags)
        runs[device] = Run(config, ["test"])
    graphed, cpu = runs["cuda"], runs["cpu"]
    cpu.envs.close()
    graphed.envs.start()
    while graphed.clock.updates < 2:
        step_group(graphed)
    reward = graphed.ring.storage["reward"]
    reward.copy_(2.0 * torch.randint(0, 2, reward.shape, generator=torch.Generator().manual_seed(0)) - 1)
    for name, tensor in graphed.ring.storage.items():
        cpu.ring.storage[name].copy_(tensor)
    cpu.ring.count.copy_(graphed.ring.count)
    errors = []
    for _ in range(100):
        cpu.learner.load_state(graphed.learner.state())
        cpu.ring.draw_counter.copy_(graphed.ring.draw_counter)
        graphed.pipeline.update()
        cpu.pipeline.update()
        ours, theirs = (
            torch.cat(
                [param.grad.flatten().cpu() for param in run.learner.online.parameters() if param.grad is not None]
            )
            for run in (graphed, cpu)
        )
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    if precision == "fp32":
        assert sorted(errors)[89] <= 1e-5 and max(errors) <= 1e-2, sorted(errors)
    else:
        assert statistics.median(errors) <= 5e-2 and max(errors) <= 0.2, sorted(errors)
    graphed.envs.close()


def test_memory_is_the_ring_and_little_more(tmp_path: Path) -> None:
    """A million frames are 7.06 GB; everything else together stays below 1.5 GB."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    images = torch.zeros(2, 3, 8, 8, device="cuda")  # loads the libraries, if no test has yet
    torch.nn.functional.conv2d(images, images).flatten(1).matmul(torch.ones(2, 2, device="cuda"))
    before = torch.cuda.memory_reserved()  # by other tests
    host = resident_bytes()
    run = Run(replace(Config(), device="cuda", ui="quiet", run_dir=str(tmp_path / "run")), ["test"])
    assert 7.0e9 < run.ring.nbytes < 7.1e9
    assert torch.cuda.max_memory_reserved() - before - run.ring.nbytes <= 1.5e9
    assert resident_bytes() - host <= 2e9
    run.envs.close()


@pytest.mark.parametrize("deterministic", [False, True])
def test_frames_beyond_two_and_four_gigabytes_are_those_that_were_written(
    cuda: torch.device, deterministic: bool
) -> None:
    """Row 304,347 of 84 x 84 bytes begins below byte 2^31 and ends behind it, row 608,696 below and behind 2^32."""
    ring = ReplayRing(
        capacity=700_000, num_envs=1, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=4, n_step=1, gamma=0.99,
        reward_clip=True, life_loss_terminal=True, seed=0, device=cuda,
    )  # fmt: skip
    lane, zero, no = (torch.zeros(1, dtype=kind, device=cuda) for kind in (torch.int64, torch.float32, torch.bool))
    torch.use_deterministic_algorithms(deterministic)
    try:
        for middle in (304_347, 608_696):
            ring.count.fill_(middle - 4)
            for value in range(1, 9):
                ring.append(lane, torch.full((1, 84, 84), value, dtype=torch.uint8, device=cuda), zero, no, no, no)
            assert ring.latest(lane).view(4, -1).unique(dim=1).flatten().tolist() == [5, 6, 7, 8]
            batch = ring.transitions(lane, torch.tensor([middle], device=cuda), zero)
            assert batch.obs.view(4, -1).unique(dim=1).flatten().tolist() == [2, 3, 4, 5]
            assert batch.next_obs.view(4, -1).unique(dim=1).flatten().tolist() == [3, 4, 5, 6]
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_capture_that_fails_says_why_and_leaves_the_stream_as_it_was() -> None:
    """In a process of its own, whose allocator does not recover from it."""
    code = """
        import torch
        from fastdqn.graphs import Graph
        value, before = torch.zeros((), device="cuda"), torch.cuda.current_stream()
        try:
            Graph(value.item, torch.device("cuda"))
        except RuntimeError as error:
            assert torch.cuda.current_stream() == before
            print(error)
    """
    printed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "not permitted when stream is capturing" in printed.stdout, printed.stdout + printed.stderr


def test_catch_is_learned_on_the_gpu(tmp_path: Path) -> None:
    config = replace(load_preset("catch"), device="cuda", ui="quiet", run_dir=str(tmp_path / "run"))
    assert train(config).summary["score_mean_100"] >= 0.9
