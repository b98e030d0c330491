"""How EnvPool itself behaves, row by row: an upgrade that changes one of these fails by its name.

fastdqn/envs.py and the replay are built on every one of them. tests/contract/probes.py asks raw EnvPool, in processes
of its own. Elsewhere, because they hold more than EnvPool: the names of the games (test_atari.py), our resize against
EnvPool's frames (test_screens.py), a hundred thousand stacks (test_replay_envpool.py), whole traces (test_golden.py),
and what envs.py refuses so that none of the deaths below can happen (test_env_guards.py).
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEATHS = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"}


@pytest.fixture(scope="module")
def answers() -> dict:
    """{probe: what it found, or in one word how it ended}"""
    asked = subprocess.run(
        [sys.executable, "-m", "tests.contract.probes"], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    return json.loads(asked.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured(answers) -> Callable[[str], dict]:
    def found(probe: str) -> dict:
        assert isinstance(answers[probe], dict), f"{probe} ended with {answers[probe]}"
        return answers[probe]

    return found


# --- the end of a game ------------------------------------------------------------------------------------------------

RESET = {
    "reward": 0,
    "points": 0,
    "terminated": False,
    "truncated": False,
    "game_over": 0,
    "elapsed_step": 0,
    "lives": 5,
}


def test_it_says_that_it_resets_on_the_next_step(measured):
    assert measured("interface")["autoreset"] == "NextStep"


def test_the_step_that_ends_a_game_shows_its_last_frame_and_not_the_next_games_first(measured):
    game = measured("end_of_a_game")
    assert game["last"]["lives"] == 0 and game["last"]["elapsed_step"] == game["end"]
    assert game["frame_changed_before"] < 0.01 < 0.02 < game["frame_changed_after"]


def test_the_step_that_cuts_a_game_brings_the_frame_and_the_reward_of_the_uncut_game(measured):
    game, cut = measured("end_of_a_game"), measured("end_of_a_game")["cut"]
    assert game["cut_shows_the_frame_of_the_uncut_game"]
    assert cut["reward"] == cut["points"] == 1
    assert cut["elapsed_step"] == game["point"] and cut["lives"] == game["lives_before_the_cut"] < 5


def test_the_step_after_an_end_is_a_reset_row_with_no_reward_and_no_flags(measured):
    game = measured("end_of_a_game")
    assert game["next"] == game["after_the_cut"] == RESET
    assert game["next_but_one"] == {**RESET, "elapsed_step": 1}


def test_the_step_after_an_end_ignores_its_action(measured):
    found = measured("action_of_the_last_row")
    assert found["ends"] == 5 and found["ignored"]
    assert found["others_count"], "the action of another row must make a difference"


def test_a_game_over_is_terminated_and_not_truncated(measured):
    last = measured("end_of_a_game")["last"]
    assert (last["terminated"], last["truncated"], last["game_over"]) == (True, False, 1)


def test_a_cut_is_truncated_and_not_terminated(measured):
    cut = measured("end_of_a_game")["cut"]
    assert (cut["terminated"], cut["truncated"], cut["game_over"]) == (False, True, 0)


def test_a_game_over_exactly_at_the_cap_is_called_truncated_and_only_info_knows_better(measured):
    game = measured("end_of_a_game")
    last = game["game_over_at_the_cap"]
    assert (last["terminated"], last["truncated"], last["game_over"]) == (False, True, 1)
    assert last["elapsed_step"] == game["end"] and last["lives"] == 0


def test_the_first_row_after_async_reset_is_a_reset_row(measured):
    assert measured("before_the_first_action")["reset"] == RESET


def test_a_step_without_a_reset_is_one(measured):
    found = measured("before_the_first_action")
    assert found["step_without_reset"] == RESET and found["same_frame"]


# --- rewards and lives ------------------------------------------------------------------------------------------------


def test_info_has_the_unclipped_points_beside_clipped_rewards(measured):
    found = measured("points_and_lives")
    assert found["clipped"] == [0, 1] and found["points_beside_clipped"] == [0, 10]
    assert found["points_are_the_same"]


def test_rewards_that_are_not_clipped_are_the_points(measured):
    assert measured("points_and_lives")["reward_is_points"]


def test_lives_go_down_one_at_a_time_never_up_and_reach_zero_only_at_game_over(measured):
    found = measured("points_and_lives")
    assert found["losses"] == [0, 1]
    assert found["lives_at_the_ends"] == [0, 0]


def test_a_lost_life_ends_nothing(measured):
    assert measured("points_and_lives")["ends_without_game_over"] == 0


def test_pong_has_no_lives(measured):
    assert measured("points_and_lives")["lives_of_pong"] == [0]


def test_episodic_life_calls_a_lost_life_terminated_and_only_info_knows_better(measured):
    found = measured("episodic_life")["game_over"]
    assert len(found) > 10 and set(found) == {0}


def test_episodic_life_hides_up_to_thirty_frames_in_mid_game(measured):
    hidden = measured("episodic_life")["hidden_frames"]
    assert min(hidden) >= 1 and 20 < max(hidden) <= 30 and len(set(hidden)) > 5


def test_episodic_life_does_not_count_the_step_that_hides_them(measured):
    assert set(measured("episodic_life")["steps_counted"]) == {0}


def test_episodic_life_does_not_clear_its_stack(measured):
    assert set(measured("episodic_life")["stack_shifted"]) == {True}


def test_the_reset_of_breakout_presses_fire_and_without_that_no_ball_is_played(measured):
    found = measured("fire")
    assert found["lives_without_fire"] == [5, 4]
    assert found["lives_without_a_fired_reset"] == 5


def test_after_a_lost_life_the_game_stands_still_until_fire_is_pressed(measured):
    found = measured("fire")
    assert found["frames_after_the_loss"] == 1
    assert found["lives_with_fire"] < 4


# --- stacks and screens -----------------------------------------------------------------------------------------------


def test_a_stack_of_one_is_the_newest_plane_of_a_stack_of_four(measured):
    assert measured("end_of_a_game")["stack_of_one_is_the_newest_plane"]


def test_after_every_reset_all_planes_repeat_the_first_frame(measured):
    assert measured("end_of_a_game")["planes_that_repeat_the_reset_frame"] == [4, 4, 4]


def test_the_small_screen_is_the_rounded_area_mean_of_the_large_one(measured):
    found = measured("screens")
    assert found["pixels_off_the_area_mean"] == 0 and found["frames_vary"]


def test_the_large_screen_comes_unscaled_in_grey_and_in_colour(measured):
    found = measured("screens")
    assert found["shapes"] == [[1, 1, 84, 84], [1, 1, 210, 160], [1, 3, 210, 160]]
    assert found["colours"] == 7, "a resize would mix new colours"


def test_what_is_rendered_is_the_emulators_screen_and_changes_nothing(measured):
    found = measured("screens")
    assert found["rendered_shape"] == [1, 210, 160, 3]
    assert found["rendered_is_the_screen"] and found["drawing_changes_nothing"]


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_env_i_plays_with_seed_plus_i_so_neighbouring_seeds_share_games(measured):
    found = measured("seeds")
    assert found["a_number_is_a_list_that_counts_up"]
    assert found["neighbours_share_a_game"] and found["and_not_the_other"]


def test_the_seed_of_reset_is_ignored_with_a_warning(measured):
    found = measured("seeds")
    assert found["seed_of_reset_is_ignored"]
    assert found["and_warned_of"] == ["EnvPool seeds are fixed when the environment is created"]


def test_without_sticky_actions_few_games_are_distinct(measured):
    found = measured("variety")
    assert found["plain"]["starts"] > 6 > found["plain"]["games"], "of nine"
    assert found["noop_max_1"] == {"starts": 1, "games": 1}


def test_with_sticky_actions_all_are_distinct(measured):
    assert measured("variety")["sticky"]["games"] == 4


def test_the_games_do_not_depend_on_the_number_of_threads(measured):
    assert measured("determinism")["threads_do_not_matter"]


def test_the_games_do_not_depend_on_the_order_in_which_an_asynchronous_pool_brings_them(measured):
    assert measured("determinism")["order_does_not_matter"]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_an_asynchronous_pool_brings_groups_of_distinct_envs(measured):
    found = measured("determinism")
    assert found["group_sizes"] == [2] and found["groups_are_distinct_envs"]


def test_a_synchronous_pool_brings_its_envs_in_the_order_in_which_they_were_sent(measured):
    assert measured("determinism")["synchronous_order"] == [[0, 1, 2]]
    assert measured("orders")["permuted"] == [2, 0, 3, 1]


def test_a_part_of_a_synchronous_pool_can_be_stepped_alone(measured):
    found = measured("orders")
    assert found["part"] == [3, 1] and found["elapsed"] == [2, 3, 2, 3]


def test_the_arrays_have_the_dtypes_and_shapes_that_envs_py_reads(measured):
    found = measured("interface")
    assert found["fields"] == ["uint8 [2, 1, 84, 84]", "float32 [2]", "bool [2]", "bool [2]"]
    assert found["info"] == {
        "env_id": ["int32", [2]],
        "lives": ["int32", [2]],
        "reward": ["float32", [2]],
        "terminated": ["int32", [2]],
        "ram": ["uint8", [2, 128]],
        "elapsed_step": ["int32", [2]],
    }


def test_the_spaces_and_the_cap_are_told_as_envs_py_reads_them(measured):
    found = measured("interface")
    assert (found["num_actions"], found["space"], found["cap"]) == ([4, 18], [1, 84, 84], 27_000)


# --- memory, threads, signals -----------------------------------------------------------------------------------------


def test_every_recv_brings_fresh_memory_that_stays_even_when_the_pool_is_gone(measured):
    found = measured("memory")
    assert found["received_arrays_stay"] and found["addresses_distinct"] and not found["owns_its_memory"]


def test_received_frames_are_aligned_to_16_bytes(measured):
    assert measured("memory")["aligned_to_16"]


def test_writing_into_a_received_array_reaches_no_env(measured):
    assert measured("memory")["scribbling_reaches_no_env"]


def test_sent_actions_are_copied(measured):
    assert measured("memory")["actions_are_copied"]


def test_close_does_nothing_and_letting_go_of_the_pool_ends_its_threads(measured):
    found = measured("memory")
    assert found["close_does_nothing"] and found["threads_grew"] and found["threads_left"] == 0


def test_building_a_pool_lets_no_other_thread_run(measured):
    found = measured("building_holds_the_gil")
    assert found["envs"] == 4 and found["wakes_while_building"] == 0
    assert found["woke_while_sleeping"], "the other thread must run when it can"


def test_a_blocked_recv_ignores_sigint_and_lets_other_threads_run(answers):
    assert answers["blocked_recv"] == "SIGTERM"  # sent by another thread, after a SIGINT


def test_a_pool_hangs_in_a_forked_child(measured):
    assert measured("forked_child")["child"] == "SIGALRM"  # the alarm of who waited long enough


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "probe", ["action_far_out_of_range", "too_few_actions", "env_id_out_of_range", "no_noops", "no_stack"]
)
def test_bad_input_kills_the_process(answers, probe):
    assert answers[probe] in DEATHS


def test_an_action_just_out_of_range_is_no_error(answers):
    found = answers["action_just_out_of_range"]  # it reads past its memory, so it may also die of it
    assert found == {"rows": 4} or found in DEATHS


def test_surplus_actions_are_dropped_and_fractions_cut_off_without_a_word(measured):
    found = measured("silent_nonsense")
    assert found["more_actions_than_envs"] and found["fractions_are_cut_off"]


def test_the_dtype_of_actions_is_checked_only_once(measured):
    first, second = measured("silent_nonsense")["dtype_is_checked_once"]
    assert "int64" in first and second == "accepted"


def test_an_env_that_is_named_twice_steps_twice(measured):
    assert measured("orders")["twice"] == [3, 4]


def test_a_synchronous_recv_of_nothing_is_empty(measured):
    assert measured("orders")["nothing_sent"] == [0, 1, 84, 84]


def test_a_cap_below_one_cuts_every_step_and_a_frame_skip_of_none_is_taken(measured):
    found = measured("silent_nonsense")
    assert found["cap_of_minus_one"] == [False, True, False, True, False]
    assert found["frame_skip_of_none"] == 4


# --- other tasks, and what is shipped ---------------------------------------------------------------------------------

TASKS = {  # obs of two envs, the task's own cap, its picture
    "Acrobot-v1": ("float32 [2, 6]", 500, [2, 500, 500, 3]),
    "CartPole-v1": ("float32 [2, 4]", 500, [2, 400, 600, 3]),
    "Catch-v0": ("float32 [2, 10, 5]", 2**31 - 1, "render not implemented for this environment"),
    "LunarLander-v3": ("float32 [2, 8]", 1_000, [2, 400, 600, 3]),
    "MountainCar-v0": ("float32 [2, 2]", 200, [2, 400, 600, 3]),
}


@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_have_no_points_lives_or_game_over_in_info(measured, task):
    assert measured("other_tasks")[task]["atari_info"] == []


@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_bring_floats_their_own_cap_and_where_there_is_one_a_picture(measured, task):
    found = measured("other_tasks")[task]
    assert (found["obs"], found["cap"], found["picture"]) == TASKS[task]


def test_a_cut_pole_is_truncated_and_resets_on_the_next_step(measured):
    assert measured("short_tasks")["CartPole"] == ["1", "2", "3", "4", "5 truncated", "0", "1"]


def test_catch_is_not_cut_but_its_end_past_a_cap_is_called_truncated(measured):
    assert measured("short_tasks")["Catch"] == [*map(str, range(1, 9)), "9 truncated", "0", "1"]


def test_the_roms_of_all_104_games_are_on_disk(measured):
    assert measured("shipped") == {"games": 104, "without_rom": []}


def test_pythons_that_would_get_an_old_envpool_are_refused():
    """pip gives Python 3.10 EnvPool 0.8.4 without a word."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"
