"""What training prints before its first game."""

from dataclasses import replace
from typing import Any

import pytest

from fastdqn.config import Config, load_preset, preset_names, preset_text
from fastdqn.plan import ONE_TASK, better_preset, damped, preset_and_changes, small_ring


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"preset": "rainbow", "n_step": 5}, "rainbow, but for n_step 5"),
        ({"preset": "rainbow", "env": "ALE/Pong-v5"}, "rainbow, but for sticky_actions 0.25"),
        ({"preset": "fast", "seed": 3, "env": "CartPole-v1"}, "fast"),
        ({"preset": "mine", "double": False}, "mine (the defaults), but for double False"),
    ],
)
def test_the_plan_says_what_was_changed_of_the_preset(changes: dict[str, Any], told: str) -> None:
    preset = changes["preset"]
    config = replace(load_preset(preset) if preset in preset_names() else Config(), **changes)
    assert preset_and_changes(config.resolved()[0]) == told


@pytest.mark.parametrize(
    ("preset", "env", "device", "note"),
    [
        ("fast", "Pong", "cpu", "preset fast is made for a GPU; on a CPU --preset cpu plays more frames an hour, in half the memory"),
        ("fast", "CartPole-v1", "cpu", "preset fast is made for Atari; for CartPole-v1 take --preset cartpole"),
        ("cpu", "Catch", "cuda", "preset cpu is made for Atari; for Catch-v0 take --preset catch"),
        ("quick", "Pong", "cpu", "preset quick is made for Breakout-v5, and its network dies on Pong; for Pong-v5 take --preset cpu"),
        ("quick", "CartPole-v1", "cpu", "preset quick is made for Breakout-v5, and its network dies on Pong; for CartPole-v1 take --preset cartpole"),
        ("space-invaders-tutorial", "Pong", "cuda", "preset space-invaders-tutorial is made for SpaceInvaders-v5; for Pong-v5 take --preset fast"),
        ("cartpole", "LunarLander", "cpu", "preset cartpole is made for CartPole-v1; for LunarLander-v3 take --preset lunar-lander"),
        ("fast", "Acrobot-v1", "cpu", ""),
        ("cartpole", "Acrobot-v1", "cpu", ""),
        ("fast", "Pong", "cuda", ""),
        ("quick", "ALE/Breakout-v5", "cpu", ""),
        ("cartpole", "CartPole", "cpu", ""),
        ("btr", "Pong", "cpu", ""),
        ("mine", "Pong", "cpu", ""),
    ],
)  # fmt: skip
def test_a_preset_that_is_made_for_something_else_is_told_with_the_one_to_take(
    preset: str, env: str, device: str, note: str
) -> None:
    config = load_preset(preset) if preset in preset_names() else Config(preset=preset)
    assert better_preset(replace(config, env=env), device) == note


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (
            {"replay_capacity": 400_000, "replay_ratio": 8.0},
            "ring, Breakout stands still after some million frames; --replay-ratio 4",
        ),
        ({"replay_capacity": 150_000, "replay_ratio": 2.0}, "replay_capacity 150,000 at replay ratio 2: "),
        ({"replay_capacity": 30_000}, "--replay-ratio 0.3"),
        ({}, ""),
        ({"replay_capacity": 400_000}, ""),
        ({"replay_capacity": 300_000, "total_frames": 4_500_000}, ""),
        ({"replay_capacity": 10_000, "env": "CartPole-v1"}, ""),
        ({"preset": "breakout-tutorial"}, ""),
        ({"preset": "breakout-tutorial", "replay_capacity": 5_000}, ""),  # it does not, with 10,000
        ({"preset": "cpu", "replay_capacity": 100_000}, "--replay-ratio 1"),
    ],
)
def test_a_ring_made_too_small_for_its_replay_ratio_is_told_with_the_ratio_for_it(
    changes: dict[str, Any], remedy: str
) -> None:
    preset = load_preset(changes.get("preset", "fast"))
    told = small_ring(replace(preset, **changes).resolved()[0])
    assert remedy in told and bool(remedy) == bool(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prioritized": True}, True),
        ({"preset": "cpu", "prioritized": True, "optimizer_eps": 2e-5}, True),
        ({"preset": "cpu", "prioritized": True}, False),  # has 2e-6
        ({}, False),
        ({"prioritized": True, "optimizer_eps": 3e-6}, False),
        ({"prioritized": True, "optimizer": "rmsprop"}, False),
        ({"prioritized": True, "head": "c51", "double": False}, False),  # its gradients are far larger
        ({"preset": "prioritized"}, False),  # has its source's
        ({"preset": "quick", "prioritized": True}, False),  # 1e-8
    ],
)
def test_an_epsilon_of_adam_that_damps_prioritised_learning_is_told_with_one_for_it(
    changes: dict[str, Any], told: bool
) -> None:
    note = damped(replace(load_preset(changes.get("preset", "fast")), **changes).resolved()[0])
    assert bool(note) == told and ("--optimizer-eps 3e-6" in note) == told


def test_the_presets_of_one_task_are_those_that_name_it() -> None:
    assert {*ONE_TASK, "btr"} == {name for name in preset_names() if "\nenv = " in preset_text(name)}
