"""Shared settings. Several test processes share the cores: `pytest -n auto` starts one for each.

A team of threads that spins while it waits for one that was put off takes a hundred times as long; a passive team sleeps.
oneDNN's bfloat16 kernels spin all the same: of two threads on one core they take ten times what one takes. So one thread.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported, and for every child process

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def leave_no_global_settings():
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
