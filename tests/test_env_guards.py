"""Bad input ends in a ValueError that names the field, never in a signal.

What is wrong is tried in a child process, all cases in one: where a guard is missing EnvPool kills the process, or it
hangs, and the cases after it have no answer.
"""

import json
import subprocess
import sys

import pytest

# --- building ---------------------------------------------------------------------------------------------------------

BUILDING = {
    "num_envs": ["0", "-1", "4097", "2.0", "True"],
    "batch_size": ["0", "-1", "5", "2, synchronous=True"],
    "num_threads": ["-1", "10**6"],
    "seed": ["2**63", "1.5", "'1'", "None"],
    "noop_max": ["0", "-1", "10**9"],
    "frame_skip": ["0", "-4"],
    "max_episode_steps": ["0", "-1", "2**31", "2**40", "5, env='Catch'"],
    "image_size": ["(0, 84)", "(84, -1)", "(84,)", "(84, 84, 3)", "(84.0, 84)", "(10**6, 84)"],
    "sticky_actions": ["-0.1", "1.1", "float('nan')", "float('inf')"],
    "env": ["'Brakout'", "''", "'Pendulum-v1'", "'NoSuchTask-v0'"],
}
BUILD_CASES = [f"{field}={value}" for field, values in BUILDING.items() for value in values]

BUILD_CHILD = """
import json, sys
from fastdqn.envs import VectorEnv
for case in json.loads(sys.argv[1]):
    settings = {"env": "Breakout", "num_envs": 4, "seed": 1, **eval(f"dict({case})")}
    try:
        VectorEnv(settings.pop("env"), **settings)
        answer = "accepted"
    except ValueError as error:
        answer = str(error)
    print(json.dumps([case, answer]), flush=True)
"""


def answers(program: str, cases: list[str]) -> dict[str, str]:
    """What the child said to each case it lived to see; the last word is how it ended."""
    child = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = dict(json.loads(line) for line in child.stdout.splitlines())
    return {**said, "exit": f"{child.returncode} {child.stderr[-500:]}".strip()}


@pytest.fixture(scope="module")
def build_answers() -> dict[str, str]:
    return answers(BUILD_CHILD, BUILD_CASES)


@pytest.mark.parametrize("case", BUILD_CASES)
def test_a_bad_setting_is_refused_with_its_name_before_anything_is_built(build_answers, case):
    field = case.split("=")[0]
    assert build_answers[case].startswith(f"{field}="), build_answers["exit"]
    assert "\n" not in build_answers[case]


def test_no_bad_setting_ends_the_process(build_answers):
    assert build_answers["exit"] == "0"


# --- stepping ---------------------------------------------------------------------------------------------------------

GOOD_IDS, GOOD_ACTIONS = "np.array([0, 2], np.int32)", "np.zeros(2, np.int32)"
# (action, env_id), the field that is named. Envs 0 to 3 are waiting, 4 and 5 are in flight; actions go from 0 to 3.
STEPPING = {
    f"np.array([0, 4], np.int32), {GOOD_IDS}": "action",
    f"np.array([0, -1], np.int32), {GOOD_IDS}": "action",
    f"np.array([10**6, 0], np.int32), {GOOD_IDS}": "action",
    f"np.array([0.0, np.nan]), {GOOD_IDS}": "action",
    f"np.zeros(2, np.int64), {GOOD_IDS}": "action",
    f"np.zeros(2, np.uint32), {GOOD_IDS}": "action",
    f"np.zeros(2, np.float32), {GOOD_IDS}": "action",
    f"np.zeros(2, bool), {GOOD_IDS}": "action",
    f"np.zeros(2, '>i4'), {GOOD_IDS}": "action",
    f"np.zeros(1, np.int32), {GOOD_IDS}": "action",
    f"np.zeros(3, np.int32), {GOOD_IDS}": "action",
    f"np.zeros((2, 1), np.int32), {GOOD_IDS}": "action",
    f"np.zeros(4, np.int32)[::2], {GOOD_IDS}": "action",
    f"np.int32(0), {GOOD_IDS}": "action",
    f"np.zeros((), np.int32), {GOOD_IDS}": "action",
    f"[0, 0], {GOOD_IDS}": "action",
    f"None, {GOOD_IDS}": "action",
    f"torch.zeros(2, dtype=torch.int32), {GOOD_IDS}": "action",
    "np.zeros(0, np.int32), np.zeros(0, np.int32)": "action",
    f"{GOOD_ACTIONS}, np.array([0, 6], np.int32)": "env_id",
    f"{GOOD_ACTIONS}, np.array([-1, 0], np.int32)": "env_id",
    f"{GOOD_ACTIONS}, np.array([0, 0], np.int32)": "env_id",
    f"{GOOD_ACTIONS}, np.array([0, 4], np.int32)": "env_id",
    f"{GOOD_ACTIONS}, np.array([0, 2])": "env_id",
    f"{GOOD_ACTIONS}, np.array([0.0, 2.0])": "env_id",
    f"{GOOD_ACTIONS}, np.array([True, False])": "env_id",
    f"{GOOD_ACTIONS}, np.array([[0], [2]], np.int32)": "env_id",
    f"{GOOD_ACTIONS}, np.arange(4, dtype=np.int32)[::2]": "env_id",
    f"{GOOD_ACTIONS}, [0, 2]": "env_id",
    f"{GOOD_ACTIONS}, None": "env_id",
    f"{GOOD_ACTIONS}, 0": "env_id",
}

STEP_CHILD = """
import json, sys
import numpy as np, torch
from fastdqn.envs import VectorEnv
envs = VectorEnv("Breakout", num_envs=6, seed=1, batch_size=1, num_threads=1, stall_seconds=20)
envs.start()
rest = np.array([4, 5], np.int32)
for _ in range(6):
    envs.recv()
envs.send(np.zeros(2, np.int32), rest)
for case in json.loads(sys.argv[1]):
    try:
        envs.send(*eval(case))
        answer = "accepted"
    except ValueError as error:
        answer = str(error)
    print(json.dumps([case, answer]), flush=True)
# a refusal changed nothing: the envs in flight come back, and every env still steps
assert {int(envs.recv().env_id[0]) for _ in rest} == {4, 5}
envs.send(np.array([0, 1, 2, 3, 0, 1], np.int32), np.array([5, 4, 3, 2, 1, 0], np.int32))
assert sorted(int(envs.recv().env_id[0]) for _ in range(6)) == [0, 1, 2, 3, 4, 5]
"""


@pytest.fixture(scope="module")
def step_answers() -> dict[str, str]:
    return answers(STEP_CHILD, list(STEPPING))


@pytest.mark.parametrize("case", STEPPING)
def test_bad_actions_and_ids_are_refused_with_the_name_of_the_field(step_answers, case):
    assert step_answers[case].startswith(f"{STEPPING[case]}: "), step_answers["exit"]


def test_after_every_refusal_the_pool_goes_on_as_if_nothing_had_been_sent(step_answers):
    assert step_answers["exit"] == "0"


FUZZ_CHILD = """
import json
import numpy as np
from fastdqn.envs import VectorEnv
draw = np.random.default_rng(0)
envs = VectorEnv("CartPole", num_envs=5, seed=1, batch_size=2, num_threads=1, stall_seconds=20)
envs.start()
waiting, accepted, refused = set(), 0, 0
for _ in range(3000):
    if draw.random() < 0.3:
        try:
            waiting |= set(envs.recv().env_id.tolist())
            assert len(waiting) <= 5
        except ValueError as error:
            assert 5 - len(waiting) < 2 and str(error).startswith("recv: "), error
            refused += 1
    ids = draw.integers(-1, 6, draw.integers(0, 4))
    action = draw.integers(-1, 4, len(ids) if draw.random() < 0.9 else 1)
    good = set(ids.tolist()) <= waiting and len(set(ids.tolist())) == len(ids) == len(action) > 0
    good = good and all(0 <= a < 2 for a in action)
    try:
        envs.send(action.astype(np.int32), ids.astype(np.int32))
        assert good, (action, ids, waiting)
        waiting -= set(ids.tolist())
        accepted += 1
    except ValueError:
        assert not good, (action, ids, waiting)
        refused += 1
print(json.dumps(["accepted", str(accepted)]))
print(json.dumps(["refused", str(refused)]))
"""


def test_any_sequence_of_calls_is_answered_as_a_model_of_the_waiting_envs_says():
    said = answers(FUZZ_CHILD, [])
    assert said["exit"] == "0"
    assert int(said["accepted"]) > 100 and int(said["refused"]) > 100


# --- life cycle -------------------------------------------------------------------------------------------------------

LIFE_CHILD = """
import json, os, sys
import numpy as np
from fastdqn.envs import VectorEnv
def tell(case, call):
    try:
        answer = f"accepted {call()}"
    except ValueError as error:
        answer = str(error)
    print(json.dumps([case, answer]), flush=True)
zeros, ids = np.zeros(2, np.int32), np.arange(2, dtype=np.int32)
def build(**settings):
    return VectorEnv("Pong", num_envs=2, seed=1, num_threads=1, stall_seconds=20, **settings)
for kind in ("synchronous", "asynchronous"):
    envs = build(synchronous=kind == "synchronous", batch_size=2)
    tell(f"{kind} recv before start", envs.recv)
    tell(f"{kind} send before start", lambda: envs.send(zeros, ids))
    envs.start()
    tell(f"{kind} start twice", envs.start)
    envs.recv()
    tell(f"{kind} start while all wait", envs.start)
    tell(f"{kind} recv with nothing in flight", envs.recv)
    envs.send(zeros[:1], ids[:1])
    tell(f"{kind} recv with less than a group in flight", envs.recv)
    tell(f"{kind} send twice", lambda: envs.send(zeros[:1], ids[:1]))
child = os.fork()
if child == 0:
    tell("recv in a forked child", envs.recv)
    tell("send in a forked child", lambda: envs.send(zeros[1:], ids[1:]))
    os._exit(0)
os.waitpid(child, 0)
envs.close()
envs.close()
tell("start after close", envs.start)
tell("recv after close", envs.recv)
tell("send after close", lambda: envs.send(zeros, ids))
"""


@pytest.fixture(scope="module")
def life_answers() -> dict[str, str]:
    return answers(LIFE_CHILD, [])


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_calls_out_of_order_are_refused_where_envpool_would_block_for_ever(life_answers, kind):
    assert life_answers["exit"] == "0"
    for case in ("before start", "with nothing in flight", "with less than a group in flight"):
        assert life_answers[f"{kind} recv {case}"].startswith("recv: ")
    for case in ("send before start", "send twice"):
        assert life_answers[f"{kind} {case}"].startswith("env_id: ")
    for case in ("start twice", "start while all wait"):
        assert life_answers[f"{kind} {case}"].startswith("start: ")


@pytest.mark.parametrize("call", ["start", "recv", "send"])
def test_a_closed_pool_says_so(life_answers, call):
    assert life_answers[f"{call} after close"].startswith("VectorEnv: it is closed")


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_forked_child_is_refused_where_envpool_would_hang(life_answers, call):
    assert "forked child" in life_answers[f"{call} in a forked child"]
