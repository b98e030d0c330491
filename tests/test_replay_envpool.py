"""The ring against EnvPool itself: the newest frame of each stack goes into the ring, the whole stack must come out."""

import envpool
import numpy as np
import torch

from fastdqn.replay import Batch, ReplayRing

NUM_ENVS, STEPS, LANE_LENGTH, GAMMA = 24, 640, 540, 0.9
SETTINGS = [  # game, cap, n_step, life_loss_terminal, reward_clip
    (game, cap, n_step, cap % 2 == 1, n_step % 2 == 1)
    for n_step, game in ((1, "Breakout-v5"), (3, "SpaceInvaders-v5"), (5, "Pong-v5"))
    for cap in (3, 40, 203, 27_000)
]


def make(game: str, cap: int):
    return envpool.make(
        game, env_type="gymnasium", num_envs=NUM_ENVS, seed=[1000 + 7 * i for i in range(NUM_ENVS)], stack_num=4,
        max_episode_steps=cap, num_threads=4,
    )  # fmt: skip


def test_a_hundred_thousand_samples_equal_envpools_stacks_and_a_naive_n_step_return() -> None:
    assert sum(compare(*setting) for setting in SETTINGS) >= 100_000


def compare(game: str, cap: int, n_step: int, life_loss: bool, clip: bool) -> int:
    """Every start of a ring that has wrapped, against the pool. Returns how many."""
    stacked = make(game, cap)
    ring = ReplayRing(
        capacity=NUM_ENVS * LANE_LENGTH, num_envs=NUM_ENVS, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=4,
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
    for _ in range(STEPS):
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
    newest = STEPS - 1
    row = newest - (newest - slots[:, 1]) % LANE_LENGTH
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
