import subprocess
import sys

import envpool
import numpy as np
import pytest
from envpool.registration import registry

from fastdqn.atari import (
    GAMES,
    RANDOM_AND_HUMAN_SCORES,
    VECTOR_TASKS,
    fire_action,
    human_normalized_score,
    num_actions,
    parse_env,
)


def test_the_list_of_games_is_exactly_what_envpool_ships():
    atari = {name for name in envpool.list_all_envs() if registry.specs[name][0] == "envpool.atari"}
    assert {f"{game}-v5" for game in GAMES} == atari
    assert len(GAMES) == 104


@pytest.mark.parametrize("task", VECTOR_TASKS)
def test_every_vector_task_exists_and_has_discrete_actions_and_float_observations(task):
    spec = envpool.make_spec(task)
    assert spec.action_space.n >= 2
    assert spec.observation_space.dtype == np.float32


@pytest.mark.parametrize("game", GAMES)
def test_every_spelling_of_a_game_is_understood(game):
    rom = registry.specs[f"{game}-v5"][2]["task"]  # space_invaders
    spellings = [game, game.lower(), game.upper(), f"{game}-v5", f"{game}-v4", f"{game}NoFrameskip-v4", rom]
    for spelling in (*spellings, f"{game}Deterministic-v4", rom.replace("_", " "), rom.replace("_", "-")):
        assert parse_env(spelling) == (f"{game}-v5", game, True, None, ""), spelling


@pytest.mark.parametrize("spelling", ["ALE/Breakout-v5", "Breakout-v0", "BreakoutNoFrameskip-v0"])
def test_the_spellings_that_imply_sticky_actions_say_so(spelling):
    name = parse_env(spelling)
    assert (name.canonical, name.game, name.sticky_actions) == ("Breakout-v5", "Breakout", 0.25)
    assert "0.25" in name.note and spelling in name.note


@pytest.mark.parametrize("spelling", ["CartPole-v1", "cartpole", "CartPole"])
def test_vector_tasks_are_understood_with_and_without_their_version(spelling):
    assert parse_env(spelling) == ("CartPole-v1", "CartPole", False, None, "")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("Brakout", "Breakout"), ("spaceinvader", "SpaceInvaders"), ("ALE/Pongg-v5", "Pong"), ("cartpol", "CartPole-v1")],
)
def test_an_unknown_name_is_answered_with_the_three_nearest(wrong, meant):
    with pytest.raises(ValueError, match=f"^env={wrong}: ") as error:
        parse_env(wrong)
    nearest = str(error.value).split("nearest are ")[1].split(", ")
    assert len(nearest) == 3
    assert nearest[0] == meant


@pytest.mark.parametrize(
    "wrong", ["Blackjack-v1", "Pong-v3", "ALE/PongNoFrameskip-v4", "ALE/CartPole-v1", "Pong-v5-v5"]
)
def test_a_name_that_means_something_else_is_not_taken_for_a_game(wrong):
    with pytest.raises(ValueError, match="no such game"):
        parse_env(wrong)


@pytest.mark.parametrize("task", ["Pendulum-v1", "LunarLanderContinuous-v3", "carracing-v3"])
def test_continuous_actions_are_refused_by_name(task):
    assert task.lower() in {name.lower() for name in envpool.list_all_envs()}
    with pytest.raises(ValueError, match=f"^env={task}: it has continuous actions"):
        parse_env(task)


@pytest.mark.parametrize("game", ["Breakout", "Pong", "SpaceInvaders", "Carnival", "Backgammon", "VideoCheckers"])
def test_fire_is_the_one_action_that_does_what_fire_of_the_full_action_set_does(game):
    num_actions = envpool.make_spec(f"{game}-v5").action_space.n

    def memories(actions: list[int], full: bool) -> list[bytes]:
        """The console's RAM over 60 steps, for each action held down from the same start."""
        pool = envpool.make_gymnasium(
            f"{game}-v5", num_envs=len(actions), seed=[5] * len(actions), noop_max=1, full_action_space=full
        )
        pool.reset()
        rams = [pool.step(np.array(actions, np.int32))[4]["ram"] for _ in range(60)]
        return [np.stack(rams)[:, env].tobytes() for env in range(len(actions))]

    (fire,) = memories([1], full=True)
    same = [action for action, ram in enumerate(memories(list(range(num_actions)), full=False)) if ram == fire]
    assert same == [fire_action(game, full_action_set=False)]


def test_fire_is_within_every_games_action_set():
    fires = {game: fire_action(game, full_action_set=False) for game in GAMES}
    for game, fire in fires.items():
        num_actions = envpool.make_spec(f"{game}-v5").action_space.n
        assert fire is None or fire < num_actions
        if num_actions == 18:
            assert fire == 1 == fire_action(game, full_action_set=True)
    assert sum(fire is None for fire in fires.values()) == 13


def test_the_full_action_set_has_as_many_actions_as_envpools_and_fire_second_where_it_has_all():
    for game in GAMES:
        name = parse_env(game)
        full = envpool.make_spec(name.canonical, full_action_space=True).action_space.n
        assert num_actions(name, full_action_set=True) == full, game
        assert fire_action(game, full_action_set=True) == (1 if full == 18 else None), game


def test_human_normalized_score_is_0_for_random_play_and_1_for_the_human():
    assert len(RANDOM_AND_HUMAN_SCORES) == 57
    assert set(RANDOM_AND_HUMAN_SCORES) <= set(GAMES)
    for game, (random, human) in RANDOM_AND_HUMAN_SCORES.items():
        assert random < human
        assert human_normalized_score(game, random) == 0.0
        assert human_normalized_score(game, human) == 1.0
    assert human_normalized_score("Breakout", 31.94) == pytest.approx(1.05)  # 1.7 + 1.05 * (30.5 - 1.7)
    assert human_normalized_score("Adventure", 1.0) is None
    assert human_normalized_score("CartPole", 500.0) is None


def test_names_cost_no_import_of_envpool_or_torch():
    check = "import sys, fastdqn.atari; sys.exit(bool({'envpool', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
