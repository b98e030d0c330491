"""How EnvPool answers its caller: arrays, order, memory, threads, signals, and what it dies of."""

import os
import signal
import sys
import threading
import time
from typing import Any

import envpool
import numpy as np
from envpool.atari import AtariGymnasiumEnvPool

from tests.contract.pools import SETTINGS, Row, actions, ending, make, play, same, script

HANG_SECONDS = 1.0  # a step takes a millisecond


def interface() -> dict:
    pool = make(num_envs=2)
    row, whole = play(pool, script(1, 2))[1], envpool.make_spec("Breakout-v5", full_action_space=True)
    info = {name: [str(array.dtype), list(array.shape)] for name, array in row.info.items() if name != "players"}
    return {
        "autoreset": str(pool.metadata["autoreset_mode"].value),
        "fields": [f"{array.dtype} {list(array.shape)}" for array in row[:4]],
        "info": info,
        "num_actions": [int(pool.action_space.n), int(whole.action_space.n)],
        "cap": int(pool.spec.config.max_episode_steps),
        "space": list(pool.observation_space.shape),
    }


def orders() -> dict:
    """Parts of a synchronous pool, in any order; an env named twice; recv with nothing sent."""
    pool = make(num_envs=4)
    pool.reset()
    permuted = Row(*pool.step(actions(0, 0, 0, 0), actions(2, 0, 3, 1)))
    part = Row(*pool.step(actions(0, 0), actions(3, 1)))
    rest = Row(*pool.step(actions(0, 0, 0, 0)))
    twice = Row(*pool.step(actions(0, 0), actions(2, 2)))
    return {
        "permuted": permuted.info["env_id"].tolist(),
        "part": part.info["env_id"].tolist(),
        "elapsed": rest.info["elapsed_step"].tolist(),
        "twice": twice.info["elapsed_step"].tolist(),
        "nothing_sent": list(pool.recv()[0].shape),
    }


def silent_nonsense() -> dict:
    """What EnvPool takes without a word, so that envs.py must not."""
    played = script(15)
    wanted = play(make(), played)

    def dict_of_int64(pool: Any) -> str:
        try:
            pool.step({"action": played[0].astype(np.int64), "env_id": actions(0)})
        except RuntimeError as error:
            return f"{error}"
        return "accepted"

    pool = make()
    pool.reset()
    checked = [dict_of_int64(pool), dict_of_int64(pool)]
    return {
        "more_actions_than_envs": same(wanted, play(make(), np.hstack([played, played]))),
        "fractions_are_cut_off": same(wanted, play(make(), played + 0.9)),
        "dtype_is_checked_once": checked,
        "cap_of_minus_one": [bool(row.truncated.all()) for row in play(make(max_episode_steps=-1), script(4))],
        "frame_skip_of_none": len(play(make(frame_skip=0), script(3))),
    }


def action_just_out_of_range() -> dict:
    """Undefined: EnvPool reads past its table of actions."""
    return {"rows": len(play(make(), np.array([[4], [99], [-1]], np.int32)))}


def memory() -> dict:
    """Who owns what: received arrays, sent actions, and what is left when a pool is let go of."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    played = script(40)
    wanted = play(make(stack_num=4), played)
    copies, kept, pool, action = [], [], make(stack_num=4), np.empty(1, np.int32)
    pool.async_reset()
    kept.append(Row(*pool.recv()))
    for values in played:
        copies.append(kept[-1].obs.copy())
        action[:] = values
        pool.send(action)
        action[:] = 10**6
        kept.append(Row(*pool.recv()))
    copies.append(kept[-1].obs.copy())
    scribbled = make(stack_num=4)
    scribbled.reset()
    rows = [wanted[0]]
    for values in played:
        row = Row(*scribbled.step(values))
        rows.append(Row(row.obs.copy(), *row[1:]))
        row.obs[:] = 0
    during = threads()
    pool.close()
    after_close = same([Row(*pool.step(played[0]))], [Row(*scribbled.step(played[0]))])
    pool.send(played[1])  # in flight when it goes
    del pool, scribbled
    addresses = [row.obs.ctypes.data for row in kept]
    return {
        "actions_are_copied": same(wanted, kept),
        "received_arrays_stay": all(np.array_equal(row.obs, copy) for row, copy in zip(kept, copies, strict=True)),
        "addresses_distinct": len(set(addresses)) == len(addresses),
        "aligned_to_16": all(address % 16 == 0 for address in addresses),
        "owns_its_memory": bool(kept[0].obs.flags.owndata),
        "scribbling_reaches_no_env": same(wanted, rows),
        "close_does_nothing": after_close,
        "threads_grew": during > before,
        "threads_left": threads() - before,
    }


def building_holds_the_gil() -> dict:
    """How often another thread wakes while 4 envs are built, and while this one only sleeps.

    No switch is forced for 100 s, so the other thread runs only when the builder itself lets go.
    """
    spec = envpool.make_spec("Breakout-v5", num_envs=4, **SETTINGS)
    wakes, over = 0, False

    def wake() -> None:
        nonlocal wakes
        while not over:
            time.sleep(0.001)
            wakes += 1

    threading.Thread(target=wake, daemon=True).start()
    sys.setswitchinterval(100.0)
    time.sleep(0.02)  # the thread begins, and what it asked for under the shorter interval is granted
    before = wakes
    pool = AtariGymnasiumEnvPool(spec)
    building = wakes - before
    time.sleep(0.1)
    sleeping, over = wakes - before - building, True
    return {"envs": len(pool), "wakes_while_building": building, "woke_while_sleeping": sleeping > 0}


def blocked_recv() -> None:
    """Nothing was sent. Another thread sends SIGINT, whose handler would raise, and then SIGTERM, which has none."""
    pool = make(num_envs=2, batch_size=1)

    def interrupt() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    pool.recv()


def forked_child() -> dict:
    pool = make()
    pool.reset()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            pool.step(actions(0))
        finally:
            os._exit(0)
    return {"child": ending(os.waitpid(child, 0)[1])}


# --- what it dies of ----------------------------------------------------------------------------------------------------


def action_far_out_of_range() -> None:
    play(make(), np.full((2, 1), 10**6, np.int32))


def too_few_actions() -> None:
    play(make(num_envs=2), script(2, 1))


def env_id_out_of_range() -> None:
    pool = make()
    pool.reset()
    pool.step(actions(0), actions(10**6))


def no_noops() -> None:
    play(make(noop_max=0), script(1))


def no_stack() -> None:
    play(make(stack_num=0), script(1))
