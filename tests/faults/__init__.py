"""Harnesses that break things on purpose. Each is a program that ends with one JSON line, or with the promise broken."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def report_of(harness: str, *words: str, timeout: float) -> dict:
    """What `python -m tests.faults.HARNESS` reports; an AssertionError with its own words where it failed."""
    command = [sys.executable, "-m", f"tests.faults.{harness}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
