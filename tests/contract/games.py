"""How a game goes: its end, its rewards and lives, its seeds, its pictures; and the tasks that are no Atari games."""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import envpool
import numpy as np
from envpool.registration import registry

from tests.contract.pools import Row, actions, facts, first_end, make, play, same, script, task

BREAKOUT_FRAME_COUNTER = 90  # the byte of its memory that goes up by one every emulator frame
NOOP, FIRE, RIGHT, LEFT = range(4)  # of Breakout


# --- the end of a game ------------------------------------------------------------------------------------------------


def end_of_a_game() -> dict:
    """One game of Breakout whole, cut at the step that brings its last point, and cut exactly where it ends."""
    played = script(240)
    whole = play(make(stack_num=4), played)
    end = first_end(whole)
    point = max(index for index, row in enumerate(whole[:end]) if row.reward[0] > 0)
    cut = play(make(stack_num=4, max_episode_steps=point), played[: point + 1])
    at_the_end = play(make(max_episode_steps=end), played[:end])
    first, last, next_row = whole[0], whole[end], whole[end + 1]
    return {
        "end": end,
        "last": facts(last),
        "frame_changed_before": float((last.obs[0, -1] != whole[end - 1].obs[0, -1]).mean()),
        "frame_changed_after": float((last.obs[0, -1] != next_row.obs[0, -1]).mean()),
        "next": facts(next_row),
        "next_but_one": facts(whole[end + 2]),
        "point": point,
        "cut": facts(cut[point]),
        "lives_before_the_cut": int(cut[point - 1].info["lives"][0]),
        "cut_shows_the_frame_of_the_uncut_game": bool(np.array_equal(cut[point].obs, whole[point].obs)),
        "after_the_cut": facts(cut[point + 1]),
        "game_over_at_the_cap": facts(at_the_end[end]),
        "planes_that_repeat_the_reset_frame": [
            int(sum(np.array_equal(plane, row.obs[0, -1]) for plane in row.obs[0]))
            for row in (first, next_row, cut[point + 1])
        ],
        "stack_of_one_is_the_newest_plane": all(
            np.array_equal(one.obs[:, 0], four.obs[:, -1]) for one, four in zip(at_the_end, whole, strict=False)
        ),
    }


def action_of_the_last_row() -> dict:
    """Games cut after 9 steps, so that every tenth action is one of a done row; these are replaced, and others."""
    played = np.full((50, 1), LEFT, np.int32)
    of_done_rows, of_others = played.copy(), played.copy()
    of_done_rows[9::10], of_others[8::10] = RIGHT, RIGHT
    rows, ignored, counted = (play(make(max_episode_steps=9), each) for each in (played, of_done_rows, of_others))
    ends = sum(int(row.truncated[0]) for row in rows)
    return {"ends": ends, "ignored": same(rows, ignored), "others_count": not same(rows, counted)}


def before_the_first_action() -> dict:
    """`async_reset` then recv, as envs.py starts; and a step without any reset."""
    pool = make()
    pool.async_reset()
    reset, unreset = Row(*pool.recv()), Row(*make().step(actions(RIGHT)))
    return {
        "reset": facts(reset),
        "step_without_reset": facts(unreset),
        "same_frame": bool(np.array_equal(reset.obs, unreset.obs)),
    }


def points_and_lives() -> dict:
    played = script(120, 1, 9)
    clipped, raw = (play(make("MsPacman", reward_clip=clip), played) for clip in (True, False))
    breakout, pong = play(make(), script(500)), play(make("Pong"), script(30))
    inside = [(before, after) for before, after in pairwise(breakout) if not before.terminated[0]]
    return {
        "clipped": sorted({float(reward) for row in clipped for reward in row.reward}),
        "points_beside_clipped": sorted({float(points) for row in clipped for points in row.info["reward"]}),
        "reward_is_points": all(np.array_equal(row.reward, row.info["reward"]) for row in raw),
        "points_are_the_same": all(
            np.array_equal(a.info["reward"], b.info["reward"]) for a, b in zip(clipped, raw, strict=True)
        ),
        "losses": sorted({int(before.info["lives"][0] - after.info["lives"][0]) for before, after in inside}),
        "lives_at_the_ends": [int(row.info["lives"][0]) for row in breakout if row.terminated[0]],
        "ends_without_game_over": sum(bool(row.terminated[0] > row.info["terminated"][0]) for row in breakout),
        "lives_of_pong": sorted({int(row.info["lives"][0]) for row in pong}),
    }


def episodic_life() -> dict:
    """What `episodic_life=True` does when a life is lost: why envs.py leaves it off."""
    rows = play(make(num_envs=2, stack_num=4, episodic_life=True), script(400, 2))
    found: dict[str, list] = {"hidden_frames": [], "steps_counted": [], "stack_shifted": [], "game_over": []}
    for before, after in pairwise(rows):
        for env in np.flatnonzero(before.terminated & (before.info["lives"] > 0)):
            counter = after.info["ram"].astype(int) - before.info["ram"]
            found["hidden_frames"].append(int(counter[env, BREAKOUT_FRAME_COUNTER] % 256))
            found["steps_counted"].append(int(after.info["elapsed_step"][env] - before.info["elapsed_step"][env]))
            found["stack_shifted"].append(bool(np.array_equal(after.obs[env, :3], before.obs[env, 1:])))
            found["game_over"].append(int(before.info["terminated"][env]))
    return found


def fire() -> dict:
    """Breakout without FIRE: the reset presses it once, nothing presses it after a life is lost."""
    idle = np.zeros((150, 1), np.int32)
    pool, unfired = make(), play(make(use_fire_reset=False), idle)
    fired = play(pool, idle)
    still = [row.obs.tobytes() for row in fired[100:]]
    lives = [int(pool.step(actions(FIRE))[4]["lives"][0]) for _ in range(60)]
    return {
        "lives_without_fire": [int(fired[0].info["lives"][0]), int(fired[-1].info["lives"][0])],
        "lives_without_a_fired_reset": int(unfired[-1].info["lives"][0]),
        "frames_after_the_loss": len(set(still)),
        "lives_with_fire": lives[-1],
    }


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds() -> dict:
    """Sticky actions, so that games of different seeds are different games."""
    played = script(25, 2)
    sticky: Any = {"repeat_action_probability": 0.25}
    listed, numbered = (play(make(num_envs=2, seed=seed, **sticky), played) for seed in ([7, 8], 7))
    neighbour, again = play(make(seed=8, **sticky), played[:, 1:]), make(seed=7, **sticky)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again.reset(seed=99)
    last = [again.step(action) for action in played[:, :1]][-1]
    return {
        "a_number_is_a_list_that_counts_up": same(numbered, listed),
        "neighbours_share_a_game": all(
            np.array_equal(a.obs[1], b.obs[0]) for a, b in zip(numbered, neighbour, strict=True)
        ),
        "and_not_the_other": not np.array_equal(numbered[-1].obs[0], neighbour[-1].obs[0]),
        "seed_of_reset_is_ignored": bool(np.array_equal(last[0][0], numbered[-1].obs[0])),
        "and_warned_of": [str(warning.message).split(".")[0] for warning in said],
    }


def variety() -> dict:
    """Envs of different seeds under one sequence of actions: how many starts and games are distinct?"""

    def distinct(num_envs: int, **settings) -> dict:
        rows = play(make(num_envs=num_envs, **settings), np.repeat(script(40), num_envs, 1))
        games = {b"".join(row.obs[env].tobytes() for row in rows) for env in range(num_envs)}
        return {"starts": len({ram.tobytes() for ram in rows[0].info["ram"]}), "games": len(games)}

    return {
        "plain": distinct(9),
        "noop_max_1": distinct(2, noop_max=1),
        "sticky": distinct(4, repeat_action_probability=0.25),
    }


def determinism() -> dict:
    """Streams of every env: synchronous with 1 and 3 threads, and asynchronous in groups of two."""
    played = script(40, 3)
    sticky: Any = {"num_envs": 3, "repeat_action_probability": 0.25, "max_episode_steps": 15}
    one, three = play(make(**sticky), played), play(make(**sticky, num_threads=3), played)
    pool, streams, groups = make(**sticky, num_threads=3, batch_size=2), [[] for _ in range(3)], []
    pool.async_reset()
    while min(map(len, streams)) < len(one):
        row = Row(*pool.recv())
        groups.append(row.info["env_id"].tolist())
        for lane, env in enumerate(groups[-1]):
            streams[env].append((row.obs[lane].tobytes(), float(row.reward[lane]), bool(row.truncated[lane])))
        at = [min(len(streams[env]), len(played)) - 1 for env in groups[-1]]
        pool.send(played[at, groups[-1]], row.info["env_id"])
    wanted = [
        [(row.obs[env].tobytes(), float(row.reward[env]), bool(row.truncated[env])) for row in one] for env in range(3)
    ]
    return {
        "threads_do_not_matter": same(one, three),
        "order_does_not_matter": [stream[: len(one)] for stream in streams] == wanted,
        "group_sizes": sorted({len(group) for group in groups}),
        "groups_are_distinct_envs": all(len(set(group)) == 2 for group in groups),
        "synchronous_order": sorted({tuple(row.info["env_id"].tolist()) for row in three}),
    }


# --- pictures, other tasks, what is shipped ---------------------------------------------------------------------------


def screens() -> dict:
    """84x84 against the area mean of 210x160: 2.5 rows and 40/21 columns to a pixel, halves to even."""
    played = script(40)
    size: Any = {"img_height": 210, "img_width": 160}
    small, large = play(make(), played), play(make(**size), played)
    fine = np.stack([row.obs[0, 0] for row in large[::4]]).astype(np.uint16).repeat(2, 1).repeat(21, 2)
    mean = np.rint(fine.reshape(-1, 84, 5, 84, 40).sum((2, 4)) / 200)
    colour = play(make("SpaceInvaders", gray_scale=False, **size), played)
    pool = make("SpaceInvaders", gray_scale=False, frame_skip=1, render_mode="rgb_array", **size)
    drawn, rendered = [], []
    pool.reset()
    for action in played:
        drawn.append(Row(*pool.step(action)))
        rendered.append(pool.render(env_ids=actions(0)))
    undrawn = play(make("SpaceInvaders", gray_scale=False, frame_skip=1, **size), played)[1:]
    return {
        "shapes": [list(rows[0].obs.shape) for rows in (small, large, colour)],
        "pixels_off_the_area_mean": int((mean != np.stack([row.obs[0, 0] for row in small[::4]])).sum()),
        "frames_vary": len({row.obs.tobytes() for row in small}) > 20,
        "colours": max(len(np.unique(row.obs[0].reshape(3, -1), axis=1).T) for row in colour),
        "rendered_shape": list(rendered[0].shape),
        "rendered_is_the_screen": all(
            np.array_equal(picture[0], row.obs[0].transpose(1, 2, 0))
            for picture, row in zip(rendered, drawn, strict=True)
        ),
        "drawing_changes_nothing": same(drawn, undrawn),
    }


def other_tasks() -> dict:
    """Info beside what every task has, the cap, and the size of the picture."""
    found: dict[str, dict] = {}
    for name in ("Acrobot-v1", "CartPole-v1", "Catch-v0", "LunarLander-v3", "MountainCar-v0"):
        pool = task(name, render_mode="rgb_array")
        pool.reset()
        row = Row(*pool.step(actions(0, 0)))
        try:
            picture = list(pool.render(env_ids=actions(0, 1)).shape)
        except RuntimeError as error:
            picture = str(error)
        found[name] = {
            "obs": f"{row.obs.dtype} {list(row.obs.shape)}",
            "atari_info": sorted({"reward", "terminated", "lives"} & set(row.info)),
            "cap": int(pool.spec.config.max_episode_steps),
            "picture": picture,
        }
    return found


def short_tasks() -> dict:
    """CartPole and Catch with a cap of 5, a row for each step of the first env."""

    def flags(name: str, steps: int) -> list[str]:
        rows = play(task(name, max_episode_steps=5), np.zeros((steps, 2), np.int32))[1:]
        ends = {(0, 0): "", (1, 0): " terminated", (0, 1): " truncated"}
        return [f"{row.info['elapsed_step'][0]}{ends[int(row.terminated[0]), int(row.truncated[0])]}" for row in rows]

    return {"CartPole": flags("CartPole-v1", 7), "Catch": flags("Catch-v0", 11)}


def shipped() -> dict:
    atari = [registry.specs[name] for name in envpool.list_all_envs() if registry.specs[name][0] == "envpool.atari"]
    tasks = [(where["task"], Path(where["base_path"], "atari", "roms", f"{where['task']}.bin")) for *_, where in atari]
    return {"games": len(atari), "without_rom": [name for name, rom in tasks if not rom.is_file()]}
