"""The kill harness, briefly: the long figures are in the notes of a release."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def kill(trials: int, timeout: float) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill9", "--trials", str(trials)], capture_output=True, text=True,
        timeout=timeout, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_fifty_kills_lose_no_acknowledged_checkpoint_and_every_resumed_run_ends_bit_identical() -> None:
    report = kill(50, timeout=600)
    assert report["trials"] == 50 and report["killed"] > 15 and report["killed_inside_a_save"] > 5
    assert report["resumed_bit_identical"] > 15 and report["lost"] == 0


@pytest.mark.long
def test_a_thousand_kills() -> None:
    report = kill(1_000, timeout=7_200)
    assert report["trials"] == 1_000 and report["lost"] == 0
