"""What training prints before its first game."""

from dataclasses import replace
from typing import Any

import pytest

from fastdqn.config import Config, load_preset, preset_names, preset_text
from fastdqn.plan import ONE_TASK, better_preset, preset_and_changes


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
        ("fast", "Pong", "cpu", "preset fast is made for a GPU; on a CPU --preset cpu learns sooner"),
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
    assert better_preset(replace(Config(), preset=preset, env=env), device) == note


def test_the_presets_of_one_task_are_those_that_name_it() -> None:
    assert {*ONE_TASK, "btr"} == {name for name in preset_names() if "\nenv = " in preset_text(name)}
