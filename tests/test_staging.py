"""Staging: one group in, static views out, aligned; actions back."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdqn.staging import ALIGNMENT, Staging

CPU = torch.device("cpu")


def group(B: int, value: int, shape: tuple[int, ...] = (84, 84)) -> SimpleNamespace:
    flags = (np.arange(B) + value) % 2 == 0
    return SimpleNamespace(
        env_id=(np.arange(B, dtype=np.int32) + value)[::-1],
        reward=np.linspace(-1, 1, B, dtype=np.float32) * value,
        terminated=flags,
        done=~flags,
        life_lost=flags & (np.arange(B) > 2),
        obs=np.full((B, *shape), value % 256, np.uint8),
    )


@pytest.mark.parametrize("B", [1, 5, 32])
def test_rows_hold_the_group_that_was_put_last_at_addresses_that_never_change(B: int) -> None:
    staging = Staging(group_size=B, obs_shape=(84, 84), obs_dtype=torch.uint8, device=CPU)
    addresses = {name: row.data_ptr() for name, row in staging.rows.items()}
    for value in (3, 250, 7):
        arrays = group(B, value)
        staging.put(arrays)
        for name, array in vars(arrays).items():
            assert np.array_equal(staging.rows[name].numpy(), array), name
    assert addresses == {name: row.data_ptr() for name, row in staging.rows.items()}
    assert staging.rows["env_id"].dtype == torch.int64  # EnvPool's are int32; the ring's arithmetic needs 64 bits


def test_every_field_is_aligned_for_vector_loads_and_none_overlaps() -> None:
    staging = Staging(group_size=7, obs_shape=(84, 84), obs_dtype=torch.uint8, device=CPU)
    spans = sorted((row.data_ptr(), row.data_ptr() + row.nbytes) for row in staging.rows.values())
    assert all(start % ALIGNMENT == spans[0][0] % ALIGNMENT for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_missing_field_is_an_error_and_not_last_groups_value() -> None:
    staging = Staging(group_size=2, obs_shape=(84, 84), obs_dtype=torch.uint8, device=CPU)
    arrays = group(2, 1)
    del arrays.reward
    with pytest.raises(AttributeError, match="reward"):
        staging.put(arrays)


def test_vectors_are_staged_as_floats_and_actions_come_back_as_int32() -> None:
    staging = Staging(group_size=3, obs_shape=(4,), obs_dtype=torch.float32, device=CPU)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    arrays = group(3, 1)
    arrays.obs = obs
    staging.put(arrays)
    assert np.array_equal(staging.rows["obs"].numpy(), obs)
    staging.action.copy_(torch.tensor([2, 0, 1]))
    staging.queue_actions()
    actions = staging.wait_for_actions()
    assert actions.dtype == np.int32 and actions.flags.c_contiguous and actions.tolist() == [2, 0, 1]
