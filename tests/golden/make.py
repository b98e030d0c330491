"""Plays six games on raw EnvPool and prints the hashes of what came back, in blocks of 100 steps.

    python -m tests.golden.make > golden.json && mv golden.json tests/golden/envpool.json

EnvPool 1.2.5 and 1.2.7 print the same. Where `ram` is unchanged and only `obs` differs, the games are the same and the
pictures are not. Record anew only when EnvPool was changed on purpose, and say so: a run resumed across such a change
does not end as it would have.
"""

import hashlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import envpool
import numpy as np

from tests.contract.pools import SETTINGS

STEPS, BLOCK, NUM_ENVS, SEEDS = 1_000, 100, 2, [1, 2**31 - 1]
UNSCALED = {"img_height": 210, "img_width": 160}
GAMES = {
    "Breakout": {},
    "Pong": {"repeat_action_probability": 0.25},
    "SpaceInvaders": {"repeat_action_probability": 0.25, "max_episode_steps": 203},
    "Seaquest": {"full_action_space": True},
    "Qbert": {"max_episode_steps": 50, **UNSCALED},
    "MsPacman": {"repeat_action_probability": 0.25, "gray_scale": False, **UNSCALED},
}


def trace(game: str) -> dict:
    """{field: hashes of its blocks}, and under `happened` how often things did. Builds a pool: never fork after it.

    A hash is the first 16 digits of the sha256 of the field's bytes; the reset row belongs to the first block. Actions
    are raw PCG64 output, which NumPy keeps the same for ever, unlike what its Generator makes of it.
    """
    pool = envpool.make_gymnasium(f"{game}-v5", num_envs=NUM_ENVS, seed=SEEDS, **{**SETTINGS, **GAMES[game]})
    num_actions = int(pool.action_space.n)
    played = np.random.PCG64(0).random_raw((STEPS, NUM_ENVS)) % np.uint64(num_actions)
    happened = dict.fromkeys(("points", "lives_lost", "terminated", "truncated"), 0)
    hashes: dict[str, list[str]] = {}
    pool.async_reset()
    rows = [pool.recv()]
    lives = rows[0][4]["lives"]
    for step, action in enumerate(played.astype(np.int32), start=1):
        rows.append(pool.step(action))
        *_, terminated, truncated, info = rows[-1]
        happened["points"] += int(info["reward"].sum())
        happened["lives_lost"] += int((info["lives"] < lives).sum())
        happened["terminated"] += int(terminated.sum())
        happened["truncated"] += int(truncated.sum())
        lives = info["lives"]
        if step % BLOCK == 0:
            for field, digest in block_hashes(rows).items():
                hashes.setdefault(field, []).append(digest)
            rows = []
    return {"happened": happened, **{field: " ".join(digests) for field, digests in hashes.items()}}


def block_hashes(rows: list[tuple]) -> dict[str, str]:
    found = {name: hashlib.sha256() for name in ("ram", "obs", "reward", "flags", "lives", "elapsed_step")}
    for obs, reward, terminated, truncated, info in rows:
        found["ram"].update(info["ram"].tobytes())
        found["obs"].update(obs.tobytes())
        found["reward"].update(reward.tobytes() + info["reward"].tobytes())
        found["flags"].update(terminated.tobytes() + truncated.tobytes() + info["terminated"].tobytes())
        found["lives"].update(info["lives"].tobytes())
        found["elapsed_step"].update(info["elapsed_step"].tobytes())
    return {name: digest.hexdigest()[:16] for name, digest in found.items()}


def main() -> int:
    # Forked from a process that has imported EnvPool and built no pool: one import, and it does not hang.
    with ProcessPoolExecutor(mp_context=get_context("fork")) as workers:
        traces = dict(zip(GAMES, workers.map(trace, GAMES), strict=True))
    print(json.dumps(traces, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
