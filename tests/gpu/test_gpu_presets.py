"""Every preset inside the captured graphs: no host sync, no shape change, no Python branch per update."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdqn.config import load_preset, preset_names
from fastdqn.run import Run
from fastdqn.trainer import step_group


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in preset_names()), ("fast", {"acting_ema": 0.5})])
def test_a_preset_learns_without_a_host_sync_and_changes_what_acts_at_every_replay(
    name: str, changes: dict, tmp_path: Path
) -> None:
    config = replace(load_preset(name), **changes)
    starts = 32 * (config.frame_stack + config.n_step + 2)
    copies = {} if config.polyak else {"target_update_period": 64}
    config = replace(
        config, num_envs=32, replay_capacity=8_000, learning_starts=starts, replay_ratio=config.batch_size / 16,
        device="cuda", ui="quiet", run_dir=str(tmp_path / "run"), **copies,
    )  # fmt: skip
    run = Run(config, ["test"])
    run.envs.start()
    while run.clock.updates < 3:
        step_group(run)
    assert run.pipeline._update.captured and run.pipeline._append_and_act.captured
    weights = [param.clone() for param in run.learner.acting.parameters()]
    before = run.clock.updates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            step_group(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics, *_ = run.learner.read_metrics()
    assert run.clock.updates >= before + 20 and all(math.isfinite(value) for value in metrics.values())
    moved = sum(not torch.equal(a, b) for a, b in zip(weights, run.learner.acting.parameters(), strict=True))
    assert moved >= len(weights) - 1
    run.envs.close()


def test_priorities_are_the_same_on_both_devices() -> None:
    from fastdqn.priorities import Priorities

    both = [Priorities(10_000, exponent=0.6, seed=1, device=torch.device(name)) for name in ("cpu", "cuda")]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        row = torch.randint(0, 10_000, (512,), generator=generator)
        error, drawn = torch.rand(512, generator=generator) * 3, torch.rand(512, generator=generator) < 0.9
        draws = []
        for priorities in both:
            device = priorities.weight.device
            # the same whole weight for every copy of a row: the larger of two that differ by rounding could differ
            priorities.update(row.to(device), error.to(device), drawn.to(device))
            draws.append(priorities.draw(256)[0].cpu())
        difference = (both[0].weight - both[1].weight.cpu()).abs().max()
        assert difference <= 1  # the last bit of a float64 power
        both[1].weight.copy_(both[0].weight)
        assert torch.equal(*[priorities.draw(256)[0].cpu() for priorities in both])
