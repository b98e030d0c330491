"""What training prints before its first game."""

from dataclasses import replace
from typing import Any

import pytest

from fastdqn.config import Config, load_preset, preset_names
from fastdqn.plan import preset_and_changes


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
