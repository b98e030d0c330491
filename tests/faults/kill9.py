"""SIGKILL at random moments, also inside a save: what was acknowledged loads, and a resumed run ends bit for bit.

    python -m tests.faults.kill9 --trials 50        one line of JSON; a thousand: benchmarks/results/kill9-cpu.json

Each trial forks from this process, which has imported everything and built no pool, since EnvPool hangs in a child of
a process that has. One child trains a deterministic run and is killed: after a random time, or at the k-th call below
checkpoints/ of a function that a save is made of (write, fsync, rename, unlink, rmdir), before the call or after it, or
in mid-write. Every checkpoint of which `save` returned is reported through a pipe, so it was acknowledged. Then

    the newest checkpoint is intact and no older than the last acknowledged one
    a second child resumes and ends with the weights, moments, counters and replay of a run that was never killed
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from fastdqn import checkpoint
from fastdqn.config import Config
from fastdqn.machine import hardware
from fastdqn.run import Run
from fastdqn.trainer import train
from tests.small_runs import everything, quiet

# what a save is made of, and how many of each a run makes
CALLS = {"write": 150, "fsync": 70, "rename": 8, "unlink": 42, "rmdir": 6}


def config(folder: Path) -> Config:
    """A second of Catch with a checkpoint every 150 env steps."""
    return quiet(
        "catch", folder, total_frames=1_200, num_envs=8, learning_starts=200, replay_capacity=800, batch_size=8,
        replay_ratio=1.0, hidden_size=8, target_update_period=50, env_threads=1, deterministic=True,
        checkpoint_period_frames=150, prioritized=True,
    )  # fmt: skip


def in_child(work, *arguments) -> int:
    """Runs `work` in a forked child and returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(*arguments)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def acknowledged_training(folder: Path, pipe: int, moment: tuple[str, int, bool] | None) -> None:
    """Trains; reports each saved step through `pipe`; kills itself at `moment`: (call, number of it, before or after)."""
    save = Run.save

    def report(run: Run) -> None:
        save(run)
        run._saver.wait()
        os.write(pipe, f"{run.clock.env_steps}\n".encode())

    Run.save = report  # type: ignore[method-assign]
    if moment is not None:
        arm(*moment)
    train(config(folder))


def arm(name: str, number: int, before: bool) -> None:
    """Has this process kill itself at the `number`-th of the calls `name` below a folder of checkpoints."""
    seen, opens = 0, io.open

    def deadly(call, place, half=lambda *_: None):
        def counted(*arguments, **keywords):
            nonlocal seen
            strikes = "checkpoints" in place(*arguments, **keywords) and (seen := seen + 1) == number
            if strikes and before:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **keywords)
            if strikes:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    def place(path, *_, dir_fd=None):
        """Of what a call is given: a name, a name in an open folder (as rmtree does), or a descriptor."""
        descriptor = path if isinstance(path, int) else dir_fd
        return str(path) if descriptor is None else os.readlink(f"/proc/self/fd/{descriptor}")

    def opened(path, *arguments, **keywords):
        file = opens(path, *arguments, **keywords)
        if file.writable():
            write = file.write
            file.write = deadly(
                write, lambda data: str(path), lambda data: (write(data[: len(data) // 2]), file.flush())
            )
        return file

    if name == "write":
        io.open = opened  # which Path.open calls
    else:
        setattr(os, name, deadly(getattr(os, name), place))


def resumed_training(folder: Path) -> None:
    saved = checkpoint.load(folder / "checkpoints")
    if saved.state["env_steps"] < config(folder).total_env_steps:
        train(config(folder), saved=saved)


def trial(number: int, folder: Path, expected: dict[str, torch.Tensor], seconds: float) -> dict:
    """One killed run and its resumption. Raises AssertionError on a promise that was broken."""
    draw = random.Random(number)
    moment = None
    if draw.random() < 0.5:
        call = draw.choice([*CALLS])
        moment = call, draw.randint(1, CALLS[call]), draw.random() < 0.5
    reader, writer = os.pipe()
    pid = in_child(acknowledged_training, folder, writer, moment)
    os.close(writer)
    if moment is None:
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status)
    at = moment[0] if moment and killed else None
    assert killed or os.WEXITSTATUS(status) == 0, f"trial {number}: training failed by itself"
    with os.fdopen(reader) as pipe:
        saved = [int(line) for line in pipe.read().splitlines()]
    present = checkpoint.checkpoints(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    if not saved and not present:
        return {"killed": killed, "saved": 0, "resumed": False, "at": at}
    newest = checkpoint.read(present[0])  # the newest by name, not the newest that is good: it must be both
    assert not saved or newest.step >= saved[-1], f"trial {number}: step {saved[-1]} was acknowledged and is lost"
    child = in_child(resumed_training, folder)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"trial {number}: the resumed run failed"
    found = everything(folder)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different and expected.keys() == found.keys(), f"trial {number}: {different} differ after resuming"
    return {"killed": killed, "saved": len(saved), "resumed": True, "at": at}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        started = time.perf_counter()
        assert os.waitstatus_to_exitcode(os.waitpid(in_child(train, config(whole)), 0)[1]) == 0
        seconds = time.perf_counter() - started
        expected = everything(whole)
        for number in range(flags.first, flags.first + flags.trials):
            folder = Path(root) / f"trial-{number}"
            results.append(trial(number, folder, expected, seconds))
            shutil.rmtree(folder, ignore_errors=True)
    report = {
        "harness": "kill9",
        "trials": len(results),
        "killed": sum(result["killed"] for result in results),
        "killed_inside_a_save": sum(result["at"] is not None for result in results),
        "at": {call: sum(result["at"] == call for result in results) for call in CALLS},
        "resumed_bit_identical": sum(result["resumed"] for result in results),
        "acknowledged": sum(result["saved"] for result in results),
        "lost": 0,  # a lost one ends the harness
        "seconds": round(time.perf_counter() - began, 1),
        "environment": hardware.environment(),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
