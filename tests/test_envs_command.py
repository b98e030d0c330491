"""`fastdqn envs`: what it says of the games is what EnvPool says."""

import json
import subprocess
import sys

import envpool
import pytest

from fastdqn.atari import GAMES, VECTOR_TASKS
from fastdqn.cli import main
from fastdqn.commands.envs import describe, matching


def test_every_game_and_task_is_listed_with_the_actions_that_envpool_gives_it() -> None:
    rows = [describe(name) for name in matching("")]
    assert [row["game"] for row in rows] == [*GAMES, *VECTOR_TASKS]
    actions = {row["env"]: int(envpool.make_spec(row["env"]).action_space.n) for row in rows}
    assert {row["env"]: row["actions"] for row in rows} == actions


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("invaders", ["SpaceInvaders"]),
        ("PAC", ["MsPacman", "Pacman", "SpaceInvaders", "SpaceWar"]),
        ("-v", [*VECTOR_TASKS]),
        ("space_invaders", ["SpaceInvaders"]),
        ("ALE/Breakout-v5", ["Breakout"]),
        ("PongNoFrameskip-v4", ["Pong"]),
    ],
)
def test_a_filter_is_a_part_of_the_name_in_any_case_or_another_spelling_of_it(part: str, names: list[str]) -> None:
    assert matching(part) == names


def test_the_table_has_actions_and_both_scores(capsys: pytest.CaptureFixture) -> None:
    assert main(["envs", "breakout"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["Breakout", "4", "1.7", "30.5"]
    assert main(["envs", "adventure"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["Adventure", "18", "-", "-"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("Brakout", "error: env=Brakout: no such game; the nearest are Breakout, "),
        ("Pendulum-v1", "error: env=Pendulum-v1: it has continuous actions"),
    ],
)
def test_a_filter_that_matches_nothing_is_answered_with_the_nearest_names(
    part: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["envs", part]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.err.count("\n") == 1 and not printed.out


def test_the_json_line_is_one_object_and_names_cost_no_heavy_import() -> None:
    script = (
        "import sys\nfrom fastdqn.cli import main\ncode = main(['envs', 'pong', '--json'])\n"
        "assert not {'torch', 'envpool', 'numpy'} & set(sys.modules), 'heavy imports'\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Pong" in done.stderr, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {
        "envs": [{"env": "Pong-v5", "game": "Pong", "atari": True, "actions": 6, "random_score": -20.7, "human_score": 14.6}]
    }  # fmt: skip
