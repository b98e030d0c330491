"""The resize on the device gives EnvPool's own frames, so that moving it changes speed and nothing else."""

import numpy as np
import pytest
import torch

from fastdqn.envs import VectorEnv
from fastdqn.resize import FRAME_SHAPE, SCREEN_SHAPE, AreaResize, area_weights


def test_weights_are_the_overlaps_of_pixels_in_whole_units() -> None:
    rows, columns = area_weights(210, 84), area_weights(160, 84)
    assert rows[0, :6].tolist() == [2, 2, 1, 0, 0, 0] and rows[1, :6].tolist() == [0, 0, 1, 2, 2, 0]
    assert columns[0, :3].tolist() == [21, 19, 0] and columns[1, :5].tolist() == [0, 2, 21, 17, 0]
    assert set(rows.sum(1).tolist()) == {5} and set(columns.sum(1).tolist()) == {40}
    assert set(rows.sum(0).tolist()) == {2} and set(columns.sum(0).tolist()) == {21}


def test_halves_go_to_the_even_neighbour() -> None:
    resize = AreaResize(torch.device("cpu"))
    screen = torch.zeros(2, *SCREEN_SHAPE, dtype=torch.uint8)
    screen[0, :2, :1], screen[1, :2, :1] = 25, 75  # the first pixel's sum is 25 * 4 * 21 = 2100, 75 * 84 = 6300
    assert resize(screen)[:, 0, 0].tolist() == [10, 32]  # 10.5 and 31.5


@pytest.mark.parametrize(("game", "share"), [("Breakout", 1.0), ("SpaceInvaders", 0.9999), ("Seaquest", 0.9999)])
def test_it_equals_envpools_own_frames(game: str, share: float) -> None:
    settings = {"num_envs": 8, "seed": 3, "synchronous": True, "stall_seconds": 0.0}
    small, large = (
        VectorEnv(game, image_size=FRAME_SHAPE, **settings),
        VectorEnv(game, image_size=SCREEN_SHAPE, **settings),
    )
    resize, rng = AreaResize(torch.device("cpu")), np.random.default_rng(0)
    equal = total = 0
    small.start()
    large.start()
    for _ in range(150):
        frame, screen = small.recv(), large.recv()
        ours = resize(torch.from_numpy(screen.obs)).numpy().astype(int)
        assert np.abs(ours - frame.obs).max() <= 1
        equal, total = equal + np.count_nonzero(ours == frame.obs), total + ours.size
        action = rng.integers(0, small.num_actions, 8).astype(np.int32)
        small.send(action, frame.env_id)
        large.send(action, screen.env_id)
    small.close()
    large.close()
    assert equal >= share * total
    assert np.ptp(ours) > 50, "the screens are not empty"
