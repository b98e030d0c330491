"""The autoreset contract on real games, groups, seeds, and the tasks that are no Atari games."""

from collections import defaultdict
from typing import Any

import envpool
import numpy as np
import pytest

from fastdqn.atari import VECTOR_TASKS
from fastdqn.envs import EnvStep, VectorEnv, env_seeds


def build(
    env: str = "Breakout", num_envs: int = 4, *, synchronous: bool = True, seed: int = 1, **settings
) -> VectorEnv:
    settings = {"num_threads": 2, **settings}
    return VectorEnv(env, num_envs=num_envs, seed=seed, synchronous=synchronous, **settings)


_SCRIPT = np.random.default_rng(0).integers(0, 2**20, (64, 4096))


def scripted(env_id: np.ndarray, row: np.ndarray, num_actions: int) -> np.ndarray:
    """An action that depends on the env and on how many rows it has had, and on nothing else. int32 [B]"""
    return (_SCRIPT[env_id, row] % num_actions).astype(np.int32)


def histories(envs: VectorEnv, rows: int, *, ignored_action: int | None = None) -> tuple[dict, list[EnvStep]]:
    """Plays until every env has had `rows` rows: each env's own first `rows` rows, and all groups as they came.

    `ignored_action` replaces the actions of done rows.
    """
    row_N = np.zeros(envs.num_envs, np.int64)
    rows_of, groups = defaultdict(list), []
    envs.start()
    while row_N.min() < rows:
        step = envs.recv()
        groups.append(step)
        for lane, env in enumerate(step.env_id.tolist()):
            if row_N[env] < rows:
                fields = (np.asarray(field[lane]) for field in step)
                rows_of[env].append(tuple(field.tobytes() for field in fields))
        action = scripted(step.env_id, row_N[step.env_id], envs.num_actions)
        if ignored_action is not None:
            action[step.done] = ignored_action
        row_N[step.env_id] += 1
        envs.send(action, step.env_id)
    envs.close()
    return dict(rows_of), groups


# --- the contract -----------------------------------------------------------------------------------------------------


def play_one_game(cap: int | None = None, seed: int = 3) -> list[EnvStep]:
    """The rows of one game of Breakout, cut after `cap` steps."""
    envs = build(num_envs=1, seed=seed, max_episode_steps=cap)
    envs.start()
    steps = [envs.recv()]
    while not steps[-1].done[0]:
        envs.send(scripted(np.zeros(1, np.int64), np.array([len(steps)]), envs.num_actions), steps[-1].env_id)
        steps.append(envs.recv())
    return steps


def test_a_game_over_exactly_at_the_step_cap_is_terminated_and_not_truncated():
    whole = play_one_game()
    length = len(whole) - 1
    assert whole[-1].terminated[0] and not whole[-1].truncated[0]

    capped = play_one_game(cap=length)  # EnvPool itself calls this a truncation: test_envpool_contract.py
    assert len(capped) == len(whole)
    assert capped[-1].terminated[0] and not capped[-1].truncated[0]


def test_a_game_cut_before_its_end_is_truncated_and_shows_the_true_frame():
    whole = play_one_game()
    for cap in (1, 7, len(whole) - 2):
        cut = play_one_game(cap=cap)
        assert len(cut) == cap + 1
        assert cut[-1].truncated[0] and not cut[-1].terminated[0]
        np.testing.assert_array_equal(cut[-1].obs, whole[cap].obs)
        assert cut[-1].reward[0] == whole[cap].reward[0]


@pytest.fixture(scope="module")
def breakout_games() -> list[EnvStep]:
    """Synchronous rows of 8 envs, games cut at 180 steps: some end by game over, some by the cap."""
    return histories(build(num_envs=8, max_episode_steps=180), 800)[1]


def test_first_rows_are_the_very_first_and_those_after_a_done_row_and_carry_nothing(breakout_games):
    expected = np.ones(8, np.bool_)
    for step in breakout_games:
        np.testing.assert_array_equal(step.first, expected)
        for field in (step.reward, step.score, step.terminated, step.truncated, step.life_lost):
            assert not field[step.first].any()
        expected = step.done
    assert sum(step.truncated.sum() for step in breakout_games) > 8
    assert sum(step.terminated.sum() for step in breakout_games) > 8
    assert not any((step.terminated & step.truncated).any() for step in breakout_games)


def test_every_whole_game_of_breakout_loses_four_lives_inside_and_the_fifth_ends_it(breakout_games):
    lost_N, whole_games = np.zeros(8, np.int64), 0
    for step in breakout_games:
        assert not step.life_lost[step.first | step.terminated].any()
        lost_N += step.life_lost
        assert (lost_N[step.terminated] == 4).all()
        assert (lost_N[step.truncated] <= 4).all()
        whole_games += int(step.terminated.sum())
        lost_N[step.done] = 0
    assert whole_games > 8


def test_extra_lives_won_before_a_cut_are_not_lost_by_the_reset():
    """A game cut with more lives than it began with: the reset frame shows fewer, and no life was lost."""
    envs = build(num_envs=2, max_episode_steps=5)
    envs.start()
    for _ in range(6):
        step = envs.recv()
        envs.send(np.zeros(2, np.int32), step.env_id)
    assert step.truncated.all()
    envs._lives_N += 3  # as if won on the way
    reset = envs.recv()
    assert reset.first.all() and not reset.life_lost.any()


def test_a_life_is_also_lost_on_the_step_that_cuts_the_game():
    envs = build(num_envs=2, max_episode_steps=5)
    envs.start()
    for _ in range(5):
        envs.send(np.zeros(2, np.int32), envs.recv().env_id)
    envs._lives_N += 1  # as if the next row had one less
    cut = envs.recv()
    assert cut.truncated.all() and cut.life_lost.all()


def test_games_without_lives_never_lose_one():
    _, groups = histories(build("Pong", 2, max_episode_steps=50), 150)
    assert not any(step.life_lost.any() for step in groups)


def test_the_action_of_a_done_row_is_never_executed():
    one, _ = histories(build(num_envs=2, max_episode_steps=20), 150, ignored_action=1)
    other, _ = histories(build(num_envs=2, max_episode_steps=20), 150, ignored_action=3)
    assert one == other


def test_the_score_is_the_games_own_points_unclipped():
    rows, num_envs = 500, 2
    _, groups = histories(build("MsPacman", num_envs), rows)
    clipped_pool = envpool.make_gymnasium(
        "MsPacman-v5", num_envs=num_envs, seed=env_seeds(1, 0, "train", num_envs), stack_num=1, reward_clip=True
    )
    clipped_pool.reset()
    ids, points, clipped = np.arange(num_envs), np.zeros(num_envs), np.zeros(num_envs)
    for row in range(rows - 1):
        _, reward, *_, info = clipped_pool.step(scripted(ids, np.full(num_envs, row), 9))
        points, clipped = points + info["reward"], clipped + reward
    np.testing.assert_array_equal(sum(step.score for step in groups), points)
    np.testing.assert_array_equal(sum(step.reward for step in groups), points)
    assert (points > clipped).all()


def test_received_arrays_are_the_callers_to_keep():
    envs = build(num_envs=2)
    envs.start()
    step = envs.recv()
    kept = [np.copy(field) for field in step]
    for _ in range(60):
        envs.send(np.ones(2, np.int32), step.env_id)
        envs.recv()
    envs.send(np.ones(2, np.int32), step.env_id)
    envs.close()  # with a group in flight
    for field, copy in zip(step, kept, strict=True):
        np.testing.assert_array_equal(field, copy)


def test_the_action_buffer_may_be_reused_at_once():
    def frames(spoil: bool) -> bytes:
        envs = build(num_envs=2)
        envs.start()
        action, seen = np.empty(2, np.int32), b""
        for row in range(40):
            step = envs.recv()
            seen += step.obs.tobytes()
            action[:] = scripted(step.env_id, np.full(2, row), 4)
            envs.send(action, step.env_id)
            if spoil:
                action[:] = 10**6
        return seen

    assert frames(spoil=True) == frames(spoil=False)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_synchronous_pool_comes_back_in_env_order_and_is_bit_identical_twice():
    (one, groups), (two, _) = (histories(build("Pong", 5, num_threads=threads), 120) for threads in (1, 3))
    assert one == two
    for step in groups:
        np.testing.assert_array_equal(step.env_id, np.arange(5))


@pytest.mark.parametrize(("num_envs", "batch_size", "group"), [(6, None, 3), (5, 2, 2), (7, None, 3), (1, None, 1)])
def test_asynchronous_groups_are_distinct_envs_and_each_env_has_its_own_stream(num_envs, batch_size, group):
    envs = build("Breakout", num_envs, synchronous=False, batch_size=batch_size, num_threads=3, max_episode_steps=40)
    assert envs.group_size == group
    asynchronous, groups = histories(envs, 120)
    for step in groups:
        assert all(len(field) == group for field in step)
        assert len(set(step.env_id.tolist())) == group
    synchronous, _ = histories(build("Breakout", num_envs, max_episode_steps=40), 120)
    assert asynchronous == synchronous


def test_groups_may_be_sent_back_in_parts():
    envs = build("CartPole", 6, synchronous=False)
    envs.start()
    first, second = envs.recv(), envs.recv()
    assert sorted([*first.env_id.tolist(), *second.env_id.tolist()]) == list(range(6))
    envs.send(np.zeros(1, np.int32), first.env_id[:1])
    envs.send(np.zeros(2, np.int32), second.env_id[1:].copy())
    assert set(envs.recv().env_id.tolist()) == {first.env_id[0], *second.env_id[1:].tolist()}


# --- seeds and settings -----------------------------------------------------------------------------------------------


def test_seeds_of_different_runs_epochs_and_roles_are_disjoint():
    lists = [env_seeds(run, epoch, role, 64) for run in range(20) for epoch in range(2) for role in ("train", "eval")]
    seeds = [seed for one in lists for seed in one]
    assert len(set(seeds)) == len(seeds) == 20 * 2 * 2 * 64
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_do_not_depend_on_how_many_envs_there_are_and_are_distinct_in_a_pool():
    assert env_seeds(1, 0, "train", 64) == env_seeds(1, 0, "train", 100_000)[:64]
    assert len(set(env_seeds(1, 0, "train", 100_000))) == 100_000  # some of these hashes do collide
    four, _ = histories(build(num_envs=4), 60)
    two, _ = histories(build(num_envs=2), 60)
    assert {env: four[env] for env in (0, 1)} == two


def test_another_seed_role_or_epoch_plays_other_games():
    variants: tuple[dict[str, Any], ...] = ({}, {"seed": 2}, {"role": "eval"}, {"epoch": 1})
    streams = [histories(build(num_envs=2, sticky_actions=0.25, **variant), 100)[0] for variant in variants]
    assert len({str(stream) for stream in streams}) == len(variants)


def test_sticky_actions_reach_the_emulator():
    """With probability 1 the emulator repeats its first action for ever, so what is sent makes no difference."""

    def frames(action: int, sticky: float) -> bytes:
        envs = build("Pong", 1, sticky_actions=sticky)
        envs.start()
        seen = b""
        for _ in range(60):
            step = envs.recv()
            seen += step.obs.tobytes()
            envs.send(np.array([action], np.int32), step.env_id)
        return seen

    assert frames(2, sticky=1.0) == frames(3, sticky=1.0)
    assert frames(2, sticky=0.0) != frames(3, sticky=0.0)


def test_every_setting_reaches_envpool():
    envs = build(
        num_envs=3, noop_max=5, frame_skip=2, max_episode_steps=99, full_action_set=True, image_size=(40, 60), seed=9
    )
    wanted = {
        "noop_max": 5,
        "frame_skip": 2,
        "max_episode_steps": 99,
        "full_action_space": True,
        "img_height": 40,
        "img_width": 60,
        "env_seed": env_seeds(9, 0, "train", 3),
        "stack_num": 1,
        "episodic_life": False,
        "reward_clip": False,
        "use_fire_reset": True,
        "use_inter_area_resize": True,
        "gray_scale": True,
        "num_threads": 2,
    }
    assert {name: getattr(envs._pool.spec.config, name) for name in wanted} == wanted
    assert (envs.num_actions, envs.fire_action, envs.frame_skip, envs.max_episode_steps) == (18, 1, 2, 99)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (84, 84)),
        ({"image_size": (210, 160)}, (210, 160)),
        ({"image_size": (1, 1024)}, (1, 1024)),
        ({"image_size": (210, 160), "grayscale": False}, (3, 210, 160)),
    ],
)
def test_images_have_the_shape_that_was_announced(settings, shape):
    envs = build("Pong", 2, **settings)
    envs.start()
    obs = envs.recv().obs
    assert envs.obs_shape == shape and obs.shape == (2, *shape)
    assert envs.obs_dtype == obs.dtype == np.uint8
    assert obs.flags.c_contiguous
    assert obs.any()


def test_defaults_are_the_field_standard():
    envs = VectorEnv("ms_pacman", num_envs=4, seed=0)
    assert (envs.env, envs.game, envs.is_atari, envs.group_size) == ("MsPacman-v5", "MsPacman", True, 2)
    assert (envs.num_actions, envs.fire_action, envs.frame_skip, envs.max_episode_steps) == (9, None, 4, 27_000)
    assert build().fire_action == 1


# --- other tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VECTOR_TASKS)
def test_vector_tasks_keep_the_same_contract_with_float_rows(task):
    envs = build(task, 4)
    assert (envs.fire_action, envs.frame_skip, envs.is_atari) == (None, 1, False)
    (size,) = envs.obs_shape
    expected, ended = np.ones(4, np.bool_), 0
    _, groups = histories(envs, 1_200)
    for step in groups:
        assert step.obs.shape == (4, size) and step.obs.dtype == envs.obs_dtype == np.float32
        np.testing.assert_array_equal(step.score, step.reward)
        np.testing.assert_array_equal(step.first, expected)
        assert not step.life_lost.any() and not step.reward[step.first].any()
        expected, ended = step.done, ended + int(step.done.sum())
    assert ended >= 4


def test_catch_ends_every_game_after_nine_steps_with_plus_or_minus_one():
    _, groups = histories(build("Catch", 3), 101)
    for row, step in enumerate(groups):
        assert (step.terminated == (row % 10 == 9)).all() and not step.truncated.any()
        assert (np.abs(step.reward) == step.terminated).all()


def test_a_pole_that_falls_is_terminated_and_one_that_is_cut_is_truncated():
    _, groups = histories(build("CartPole", 4, max_episode_steps=5), 61)
    assert all(
        (step.truncated == (row % 6 == 5)).all() and not step.terminated.any() for row, step in enumerate(groups)
    )
    _, groups = histories(build("CartPole", 4), 300)
    assert sum(step.terminated.sum() for step in groups) > 8
    assert not any(step.truncated.any() for step in groups)
