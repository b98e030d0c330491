"""The ring against EnvPool itself: the newest frame of each stack goes into the ring, the whole stack must come out."""

import envpool
import numpy as np
import pytest
import torch

from fastdqn.replay import Batch, ReplayRing

NUM_ENVS, GAMMA = 12, 0.9


def make(game: str, cap: int):
    """Where games lose lives and end by themselves, at the usual frame skip; elsewhere it would be the emulator's work alone."""
    return envpool.make(
        game, env_type="gymnasium", num_envs=NUM_ENVS, seed=[1000 + 7 * i for i in range(NUM_ENVS)], stack_num=4,
        max_episode_steps=cap, num_threads=2, frame_skip=4 if cap > 40 else 1,
    )  # fmt: skip


@pytest.mark.parametrize(("game", "n_step"), [("Breakout-v5", 1), ("SpaceInvaders-v5", 3), ("Pong-v5", 5)])
def test_a_hundred_thousand_samples_of_three_games_equal_envpools_stacks_and_a_naive_return(
    game: str, n_step: int
) -> None:
    torch.set_num_threads(1)  # a team for a copy of 12 frames costs more than the copy
    caps = (3, 40, 203, 27_000)
    assert sum(compare(game, cap, n_step, cap % 2 == 1, n_step % 2 == 1) for cap in caps) >= 34_000


def compare(game: str, cap: int, n_step: int, life_loss: bool, clip: bool) -> int:
    """Every start of a ring that has wrapped, against the pool. Returns how many."""
    stacked = make(game, cap)
    steps, lane_length = (320, 270) if cap == 3 else (1_280, 1_080)  # a reset costs as much as a dozen steps
    ring = ReplayRing(
        capacity=NUM_ENVS * lane_length, num_envs=NUM_ENVS, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=4,
        n_step=n_step, gamma=GAMMA, reward_clip=clip, life_loss_terminal=life_loss, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    draw = np.random.default_rng(cap + n_step)
    env_id = torch.arange(NUM_ENVS)
    obs, info = stacked.reset()
    rewards = np.zeros(NUM_ENVS, np.float32)
    term = trunc = np.zeros(NUM_ENVS, bool)
    lives = info["lives"].copy()
    lost = np.zeros(NUM_ENVS, bool)
    frame = obs[:, -1]
    log: list[tuple] = []
    for _ in range(steps):
        action = draw.integers(0, stacked.action_space.n, NUM_ENVS).astype(np.int32)
        rows = (frame, rewards, term, term | trunc, lost)
        ring.append(env_id, *(torch.from_numpy(np.ascontiguousarray(row)) for row in rows))
        ring.record_action(env_id, torch.from_numpy(action).long())
        log.append((obs, rewards, term, trunc, lost, action))
        was_done = term | trunc
        obs, _, term, trunc, info = stacked.step(action)
        over = info["terminated"].astype(bool)
        term, trunc = term | (trunc & over), trunc & ~over
        rewards = info["reward"]
        lost = (info["lives"] < lives) & ~was_done & ~term
        lives, frame = info["lives"].copy(), obs[:, -1]

    slots = ring.starts().nonzero()
    lane = slots[:, 0]
    newest = steps - 1
    row = newest - (newest - slots[:, 1]) % lane_length
    for part in torch.arange(len(lane)).split(2_000):
        found = torch.ones(len(part), dtype=torch.bool)
        batch = Batch(*(tensor.numpy() for tensor in ring.transitions(lane[part], row[part], found)))  # type: ignore[arg-type]
        for i, (env, start) in enumerate(zip(lane[part].tolist(), row[part].tolist(), strict=True)):
            total, power, bootstrap, last = 0.0, 1.0, 1.0, start
            for _ in range(n_step):
                last += 1
                _, reward, ended, cut, life, _ = log[last]
                total += power * (
                    float(np.sign(reward[env]) * min(abs(reward[env]), 1)) if clip else float(reward[env])
                )
                power *= GAMMA
                if ended[env] or (life_loss and life[env]):
                    bootstrap = 0.0
                    break
                if cut[env]:
                    break
            assert not (log[start][2][env] or log[start][3][env]), "a dummy row is no start"
            assert np.array_equal(batch.obs[i], log[start][0][env])
            assert np.array_equal(batch.next_obs[i], log[last][0][env])
            assert int(batch.action[i]) == log[start][5][env]
            assert abs(float(batch.reward[i]) - total) <= 1e-5 * max(abs(total), 1.0)
            assert abs(float(batch.discount[i]) - bootstrap * power) <= 1e-6
    return len(lane)
