"""EnvPool plays six games as it did when they were recorded, bit for bit: see tests/golden/make.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "envpool.json").read_text())
FIELDS = ("ram", "obs", "reward", "flags", "lives", "elapsed_step")


@pytest.fixture(scope="module")
def traces() -> dict:
    played = subprocess.run(
        [sys.executable, "-m", "tests.golden.make"], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert played.returncode == 0, played.stderr[-2000:]
    return json.loads(played.stdout)


@pytest.mark.parametrize("game", GOLDEN)
def test_a_thousand_steps_are_as_recorded(traces, game):
    recorded, played = ({field: trace[game][field].split() for field in FIELDS} for trace in (GOLDEN, traces))
    assert all(len(recorded[field]) == len(played[field]) == 10 for field in FIELDS)
    for block in range(10):
        apart = [field for field in FIELDS if recorded[field][block] != played[field][block]]
        assert not apart, f"{game}: {', '.join(apart)} first differ in steps {100 * block + 1} to {100 * block + 100}"
    assert traces[game]["happened"] == GOLDEN[game]["happened"]


def test_what_was_recorded_has_points_lost_lives_ends_and_cuts_in_it():
    games = [trace["happened"] for trace in GOLDEN.values()]
    assert len(games) == 6 and all(game["points"] for game in games)
    assert all(sum(game[event] > 0 for game in games) >= 2 for event in ("lives_lost", "terminated", "truncated"))
