"""A disk that fails: the k-th write, fsync, rename or unlink of a run, for every k, with EIO and with ENOSPC.

    python -m tests.faults.disk --every 1       one line of JSON; of every call: benchmarks/results/disk-cpu.json

Each trial forks from this process, which has imported everything and built no pool, and trains a small deterministic
run under a C library (shim.c, LD_PRELOAD) that fails one call below the run's folder, or that call and all that follow,
as a disk does that stays full. Before the first game a fault may refuse the run, in one line. After that

    a warning is printed, and training goes on to its last frame
    after each save the newest checkpoint that loads is no older than the last one that was acknowledged
    a single fault leaves weights, moments, counters and replay bit-equal to those of a run on a sound disk
    on a disk that stays full the run ends with exit code 1, or its end is on the disk
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fastdqn import checkpoint
from fastdqn.errors import UsageError
from fastdqn.machine import hardware
from fastdqn.run import Run
from fastdqn.trainer import train
from tests.faults.kill9 import config, in_child
from tests.small_runs import everything

CALLS = ("write", "fsync", "rename", "unlink")
ALL_THAT_FOLLOW = 1 << 40


def preloaded() -> ctypes.CDLL:
    """The shim, through which this process's calls pass; begins the process again with it where they do not."""
    library = os.environ.get("FASTDQN_FAULT_SHIM", "")
    if not library:
        library = str(Path(tempfile.mkdtemp()) / "shim.so")
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, str(source), "-ldl"], check=True)
        os.environ |= {"FASTDQN_FAULT_SHIM": library, "LD_PRELOAD": library}
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults.disk", *sys.argv[1:]])
    shim = ctypes.CDLL(library)
    shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_int]
    shim.fault_seen.restype = ctypes.c_long
    return shim


def faulty_training(shim: ctypes.CDLL, folder: Path, call: int, first: int, last: int, error: int) -> None:
    """Trains in `folder`, leaving `outcome.json` and `stderr.txt` beside it."""
    os.dup2(os.open(folder.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT), 2)
    save, trained, acknowledged = Run.save, [0], [0]

    def checked(run: Run) -> None:
        """Run.save, then what the disk holds against what it said."""
        save(run)
        run._saver.wait()
        acknowledged[0] = max(acknowledged[0], run._saver.saved or 0)
        assert not acknowledged[0] or checkpoint.load(run.folder.checkpoints).step >= acknowledged[0]
        trained[0] = run.clock.env_steps

    Run.save = checked  # type: ignore[method-assign]
    shim.fault_arm(str(folder).encode(), call, first, last, error)
    try:
        code = train(config(folder)).exit_code
    except UsageError as refusal:
        print(f"error: {refusal}", file=sys.stderr, flush=True)
        code = 2
    outcome = {"code": code, "trained": trained[0], "seen": [shim.fault_seen(kind) for kind in range(len(CALLS))]}
    shim.fault_arm(b"/nowhere", -1, 0, 0, 0)
    folder.with_suffix(".json").write_text(json.dumps(outcome))


def trial(shim: ctypes.CDLL, folder: Path, call: int, first: int, error: int, lasting: bool) -> dict:
    """Runs one, and returns its outcome and what it said. Raises AssertionError on a traceback."""
    last = ALL_THAT_FOLLOW if lasting else first
    child = in_child(faulty_training, shim, folder, call, first, last, error)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = folder.with_suffix(".stderr").read_text()
    assert code == 0, f"{CALLS[call]} {first}: ended with {code}\n{said}"
    assert "Traceback" not in said, f"{CALLS[call]} {first}:\n{said}"
    return {**json.loads(folder.with_suffix(".json").read_text()), "said": said}


def check(outcome: dict, folder: Path, expected: dict[str, torch.Tensor], lasting: bool) -> str:
    """Which of the allowed ends it was: "refused", "bit identical" or "end not saved"."""
    if outcome["code"] == 2:
        assert outcome["trained"] == 0 and outcome["said"].count("\n") == 1, outcome
        assert "run_dir=" in outcome["said"] and "free some space" in outcome["said"], outcome
        return "refused"
    assert outcome["trained"] == config(folder).total_env_steps, f"training did not go on: {outcome}"
    assert "warning: " in outcome["said"], outcome
    if outcome["code"] == 1:
        assert lasting, f"one fault was enough to lose the end: {outcome}"
        return "end not saved"
    found = everything(folder)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    return "bit identical"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every so many-th call only")
    flags = parser.parse_args()
    shim = preloaded()
    torch.set_num_threads(1)
    ends: dict[str, int] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        calls = trial(shim, whole, -1, 0, 0, lasting=False)["seen"]
        expected = everything(whole)
        trials = [
            (call, first, error, lasting)
            for call, number in enumerate(calls)
            for first in range(1, number + 1)
            for error in (errno.EIO, errno.ENOSPC)
            for lasting in (False, True)
        ][:: flags.every]
        for number, (call, first, error, lasting) in enumerate(trials):
            folder = Path(root) / f"trial-{number}"
            outcome = trial(shim, folder, call, first, error, lasting)
            struck = outcome["seen"][call] >= first  # else one log fewer was written in this run than in the first
            end = check(outcome, folder, expected, lasting) if struck else "no fault"
            ends[end] = ends.get(end, 0) + 1
            shutil.rmtree(folder, ignore_errors=True)
    report = {
        "harness": "disk", "calls": dict(zip(CALLS, calls, strict=True)), "trials": len(trials), **ends,
        "seconds": round(time.perf_counter() - began, 1), "environment": hardware.environment(),
    }  # fmt: skip
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
