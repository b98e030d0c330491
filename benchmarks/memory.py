"""What a run takes against what the preflight says of it before, and what an EnvPool env takes.

    python -m benchmarks.memory [--only runs|games] [--cold] [--name memory-cpu] [--out benchmarks/results]

Every case has a process of its own. Of a run: resident memory before anything is built, plus the parts that
`fastdqn.machine.preflight` names, against the kernel's high-water mark (VmHWM) after a few thousand env steps with updates, a
log and a checkpoint. Compilers and evaluations are processes beside it and are left out on both sides; `--cold` gives
each run an empty cache, so that everything is compiled. Of an env: what resident memory grows by from before the pool to
after 400 steps of every env, per env; one pool has come and gone before, so that the library's own share is not in it.

Exit code 1 if a run took more than was said, or what was said is more than 15 % above it.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.publish import arguments, write
from benchmarks.timing import last_json
from fastdqn import parts
from fastdqn.config import load_preset
from fastdqn.envs import VectorEnv
from fastdqn.machine import preflight
from fastdqn.machine.memory import keep_freed_memory
from fastdqn.metrics import resident_bytes
from fastdqn.trainer import train
from fastdqn.units import size

BESIDE = ("compilers", "evaluation")  # processes of their own
MARGIN = 0.15
RUNS: dict[str, dict[str, Any]] = {
    "breakout": {
        "preset": "fast", "num_envs": 64, "replay_capacity": 100_000, "learning_starts": 2_000, "total_frames": 20_000,
    },
    "cartpole": {"preset": "cartpole", "total_frames": 6_000},
}  # fmt: skip
GAMES: list[tuple[str, int, dict[str, Any]]] = [
    ("Breakout", 64, {}),
    ("Breakout", 256, {}),
    ("SpaceInvaders", 64, {}),
    ("Pitfall", 64, {}),
    ("Breakout", 64, {"image_size": [210, 160]}),
    ("Breakout", 64, {"image_size": [210, 160], "grayscale": False}),
    ("CartPole-v1", 256, {}),
    ("LunarLander-v3", 256, {}),
]


def measure_run(name: str) -> dict[str, Any]:
    """Predicted and measured bytes of one of RUNS, in this process."""
    changes = dict(RUNS[name])
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            load_preset(changes.pop("preset")), **changes, device="cpu", ui="quiet", run_dir=f"{folder}/run"
        )
        table = parts.needs(config.resolved()[0], torch.device("cpu"))
        before = resident_bytes()
        result = train(config)
    own = [need for need in table if need.part not in BESIDE]
    return {
        "run": name,
        "before": before,
        "parts": {need.part: need.nbytes for need in own},
        "predicted": before + sum(need.nbytes for need in own),
        "measured": peak_resident_bytes(),
        "updates": result.summary["updates"],
    }


def measure_games(env: str, num_envs: int, options: dict[str, Any]) -> dict[str, Any]:
    """Bytes per env of one of GAMES, in this process."""
    keep_freed_memory()
    play(VectorEnv("Pong", num_envs=2, seed=1, num_threads=2), 4)
    before = resident_bytes()
    envs = VectorEnv(env, num_envs=num_envs, seed=1, num_threads=2, **options)
    play(envs, 800)
    per_env = (resident_bytes() - before) / num_envs
    screen = int(np.prod(envs.obs_shape)) * envs.obs_dtype.itemsize
    constant = preflight.GAME_BYTES if envs.is_atari else preflight.TASK_BYTES
    stated = constant + preflight.SCREENS * screen
    return {"env": env, "num_envs": num_envs, **options, "bytes_per_env": round(per_env), "stated": stated}


def play(envs: VectorEnv, groups: int) -> None:
    """Random actions for so many groups."""
    draw = np.random.default_rng(1)
    envs.start()
    for _ in range(groups):
        step = envs.recv()
        envs.send(draw.integers(0, envs.num_actions, len(step.env_id), np.int32), step.env_id)


def peak_resident_bytes() -> int:
    """The kernel's high-water mark of this process (unlike ru_maxrss, not inherited from the process before exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def in_process(kind: str, *arguments: Any, cold: bool = False) -> dict[str, Any]:
    """A measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps([kind, *arguments])]
    with tempfile.TemporaryDirectory() as empty:
        return last_json(command, environment={"TORCHINDUCTOR_CACHE_DIR": empty} if cold else {})


def main() -> int:
    parser = arguments(__doc__, out=True)
    parser.add_argument("--only", choices=["runs", "games"])
    parser.add_argument("--cold", action="store_true", help="compile everything")
    parser.add_argument("--name", default="memory-cpu", help="of the file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        kind, *case = json.loads(flags.child)
        print(json.dumps({"run": measure_run, "games": measure_games}[kind](*case)))
        return 0
    runs = [] if flags.only == "games" else [in_process("run", name, cold=flags.cold) for name in RUNS]
    for run in runs:
        run["held"] = run["measured"] <= run["predicted"] <= (1 + MARGIN) * run["measured"]
        words = ", ".join(f"{part} {size(nbytes)}" for part, nbytes in run["parts"].items())
        print(f"{run['run']:10} predicted {size(run['predicted'])}, measured {size(run['measured'])}"
              f" ({run['predicted'] / run['measured'] - 1:+.1%}) {'held' if run['held'] else 'NOT HELD'}: "
              f"{size(run['before'])} before, {words}", flush=True)  # fmt: skip
    games = [] if flags.only == "runs" else [in_process("games", *case) for case in GAMES]
    for row in games:
        print(
            f"{row['env']:16}{row['num_envs']:5} envs {row.get('image_size', '')!s:12}"
            f"{row['bytes_per_env']:>12,} bytes an env, {row['stated']:>10,} stated"
        )
    write("memory", {"runs": runs, "games": games}, flags, flags.out / f"{flags.name}.json")
    return 0 if all(run["held"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
