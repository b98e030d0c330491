"""Shared settings. Several test processes share the cores: `pytest -n auto` starts one for each.

A team of threads that spins while it waits for one that was put off takes a hundred times as long; a passive team sleeps.
oneDNN's bfloat16 kernels spin all the same: of two threads on one core they take ten times what one takes. So one thread.
"""

import faulthandler
import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported, and for every child process

import pytest
import torch

torch.set_num_threads(1)

PATIENCE_SECONDS = 600  # ten times what the slowest test takes on four busy cores


@pytest.fixture(autouse=True)
def leave_no_global_settings():
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_waits_for_good(request: pytest.FixtureRequest):
    """A test that waits for what never comes fails at the line it waits in, and does not hold up all the others.

    The alarm is answered by Python; where a call into C keeps it from that, the process ends with every thread's stack
    (unless a run in this process has set that timer for itself since: its own watchdog then does the same, sooner).
    """
    if request.node.get_closest_marker("long"):
        yield
        return

    def late(*_):
        raise TimeoutError(f"the test has not ended within {PATIENCE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_SECONDS)
    faulthandler.dump_traceback_later(PATIENCE_SECONDS + 60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
