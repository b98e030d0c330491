"""A disk that fails during training, briefly: each kind of call, single and lasting faults; all of them under `long`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def faults(every: int, timeout: float) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.disk", "--every", str(every)], capture_output=True, text=True,
        timeout=timeout, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_survives_a_failing_disk_with_its_checkpoints_intact() -> None:
    report = faults(79, timeout=600)
    assert report["trials"] >= 10 and report["bit identical"] >= 5 and report["end not saved"] >= 2


@pytest.mark.long
def test_training_survives_every_single_and_lasting_fault() -> None:
    report = faults(1, timeout=7_200)
    assert report["trials"] > 800 and report["refused"] > 0 and report["end not saved"] > 100
