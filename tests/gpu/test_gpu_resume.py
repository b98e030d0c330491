"""A run on the GPU that was cut off and resumed, replay and captured graphs included, ends bit for bit as one that was not."""

import subprocess
import sys
from pathlib import Path

import torch
from small_runs import everything

from fastdqn import checkpoint

FLAGS = [  # the ring is full when the run is cut off
    "--env", "Breakout", "--num-envs", "16", "--replay-capacity", "1600", "--batch-size", "32", "--learning-starts", "400",
    "--target-update-period", "300", "--total-frames", "12000", "--deterministic", "--checkpoint-period-frames", "4000",
    "--prioritized", "--n-step", "3", "--device", "cuda", "--ui", "quiet",
]  # fmt: skip


def fastdqn(*words: str) -> None:
    """In a process of its own: cuBLAS reads what makes it deterministic only once."""
    done = subprocess.run([sys.executable, "-m", "fastdqn", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_deterministic_run_that_was_cut_off_ends_bit_identical(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fastdqn("train", *FLAGS, "--run-dir", str(whole))
    cut = [sys.executable, "-c", CUT, str(broken), *FLAGS]
    done = subprocess.run(cut, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(broken / "checkpoints").state["frames"] < 12_000
    fastdqn("resume", str(broken), "--ui", "quiet")
    one, two = everything(whole), everything(broken)
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []


# the loop of `train`, left without a word in mid-epoch, as by SIGKILL
CUT = """
import os, sys
from fastdqn import trainer
from fastdqn.cli import main
step_group = trainer.step_group

def step_or_die(run):
    step_group(run)
    if run.clock.env_steps > 2_600:
        run._saver.wait()
        os._exit(0)

trainer.step_group = step_or_die
main(["train", *sys.argv[2:], "--run-dir", sys.argv[1]])
"""
