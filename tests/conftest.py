"""Shared settings: two torch threads, so that tests and EnvPool's threads do not wait for each other."""

import torch

torch.set_num_threads(2)
