"""The resize on the device gives EnvPool's own frames; the crop is NumPy's, byte for byte."""

import numpy as np
import pytest
import torch

from fastdqn.envs import VectorEnv
from fastdqn.screens import FRAME_SHAPE, SCREEN_SHAPE, AreaResize, area_weights, crop_grey_mean


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


@pytest.mark.parametrize("game", ["SpaceInvaders", "Breakout", "Seaquest"])
def test_the_crop_is_the_rounded_mean_of_the_colours_of_real_frames(game: str) -> None:
    envs = VectorEnv(
        game, num_envs=4, seed=5, synchronous=True, stall_seconds=0.0, image_size=SCREEN_SHAPE, grayscale=False
    )
    rng = np.random.default_rng(0)
    envs.start()
    for _ in range(60):
        step = envs.recv()
        ours = crop_grey_mean(torch.from_numpy(step.obs)).numpy()
        for screen, frame in zip(step.obs, ours, strict=True):
            observation = screen.transpose(1, 2, 0)  # height, width, colour, as the emulator's users know it
            assert np.array_equal(frame, np.rint(observation[15:200, 30:125].mean(-1)))
        envs.send(rng.integers(0, envs.num_actions, 4).astype(np.int32), step.env_id)
    envs.close()
    assert ours.shape == (4, 185, 95) and np.ptp(ours) > 50 and len(np.unique(ours)) > 4


def test_every_sum_of_three_colours_is_rounded_as_numpy_does() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    screen = torch.zeros(256, 3, *SCREEN_SHAPE, dtype=torch.uint8)
    for colour, shift in enumerate((0, 1, 85)):
        screen[:, colour] = levels.roll(shift)[:, None, None]
    expected = np.rint(screen[:, :, 15, 30].numpy().astype(float).mean(1))
    assert np.array_equal(crop_grey_mean(screen)[:, 0, 0].numpy(), expected)
