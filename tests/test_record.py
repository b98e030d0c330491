"""Recording: the games that evaluation counts, in the emulator's own colours, at the game's speed."""

import itertools
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from fastdqn.cli import main
from fastdqn.commands import record
from fastdqn.config import Config
from fastdqn.envs import VectorEnv
from fastdqn.evaluation import evaluate
from fastdqn.machine.signals import StopRequest
from fastdqn.rollout import Rollout, Scene
from fastdqn.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("breakout") / "run"
    train(
        replace(Config(), run_dir=str(path), num_envs=4, replay_capacity=2_000, batch_size=8, learning_starts=200,
                hidden_size=16, total_frames=1_200, compile=False, ui="quiet", torch_threads=1)
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def scenes(run: Path) -> list[Scene]:
    """Two cells of one random game each."""
    with closing(Rollout(run, num_envs=2, epsilon=1.0)) as rollout:
        return list(rollout)


def frames_of(path: Path) -> tuple[list[np.ndarray], int]:
    """The pictures of a gif, RGB, and how long they last together in milliseconds."""
    with Image.open(path) as gif:
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
    return [picture for picture, _ in frames], sum(duration for _, duration in frames)


def test_the_recorded_games_are_the_ones_that_evaluation_counts(run: Path) -> None:
    counted = evaluate(run, episodes=3, num_envs=2, epsilon=0.9, protocol="noop", seed=5)
    with closing(Rollout(run, num_envs=2, episodes=3, epsilon=0.9, protocol="noop", seed=5)) as rollout:
        shown = list(rollout)
    games = rollout.tally.games
    assert np.mean([game.score for game in games]) == counted["score_mean"] > 0
    assert np.mean([game.length for game in games]) == counted["length_mean"]
    assert sorted(game.env for game in games) == [0, 0, 1]
    assert max(scene.score.max() for scene in shown) == counted["score_max"]


def test_the_picture_is_the_emulators_own_in_colour_and_full_size() -> None:
    envs = VectorEnv(
        "Breakout", num_envs=2, seed=1, synchronous=True, image_size=(210, 160), grayscale=False, render=True
    )
    envs.start()
    for _ in range(30):
        step = envs.recv()
        picture = envs.render()
        assert picture.shape == (2, 210, 160, 3) and picture.dtype == np.uint8
        # what is observed is the maximum of two emulator frames, so the ball and the paddle may differ
        assert (picture == step.obs.transpose(0, 2, 3, 1)).all(axis=3).mean() > 0.995
        envs.send(np.ones(2, np.int32), step.env_id)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 8
    envs.close()


def test_a_task_without_a_picture_is_said_to_have_none() -> None:
    with pytest.raises(ValueError, match="env=Catch-v0: EnvPool draws no picture"):
        VectorEnv("Catch", num_envs=1, seed=1, render=True)


@pytest.mark.parametrize(
    ("env", "rate", "size"),
    [
        ("Pong", 15, (210, 160)),
        ("CartPole", 50, (400, 600)),
        ("LunarLander", 50, (400, 600)),
        ("Acrobot", 15, (500, 500)),
        ("MountainCar", 30, (400, 600)),
    ],
)
def test_every_other_task_has_a_picture_and_a_speed(env: str, rate: int, size: tuple[int, int]) -> None:
    envs = VectorEnv(env, num_envs=1, seed=1, synchronous=True, render=True)
    envs.start()
    envs.recv()
    picture = envs.render()
    assert picture.shape == (1, *size, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2
    assert envs.steps_per_second == rate
    envs.close()


def test_no_picture_is_made_of_a_game_that_is_being_stepped_or_was_not_to_be_seen() -> None:
    unseen = VectorEnv("CartPole", num_envs=2, seed=1, synchronous=True)
    unseen.start()
    unseen.recv()
    with pytest.raises(ValueError, match="render=True"):
        unseen.render()
    envs = VectorEnv("CartPole", num_envs=2, seed=1, synchronous=True, render=True)
    with pytest.raises(ValueError, match="being stepped"):
        envs.render()
    envs.start()
    step = envs.recv()
    envs.send(np.zeros(1, np.int32), step.env_id[:1])
    with pytest.raises(ValueError, match="being stepped"):
        envs.render()


def test_a_game_that_is_over_holds_its_last_picture_and_score_until_the_others_are(scenes: list[Scene]) -> None:
    over = np.array([scene.over for scene in scenes])
    early = int(over.sum(axis=0).argmax())
    end = int(over[:, early].argmax())
    assert not over[0].any() and over[-1].all() and end < len(scenes) - 1
    assert not scenes[0].score.any() and scenes[-1].score.any()  # of each moment
    for scene in scenes[end + 1 :]:
        assert np.array_equal(scene.screen[early], scenes[end].screen[early])
        assert scene.score[early] == scenes[end].score[early] and scene.over[early]
        assert np.array_equal(scene.q_values[early], scenes[end].q_values[early])
    late = [scene.screen[1 - early] for scene in scenes[end:]]
    assert any((one != two).any() for one, two in itertools.pairwise(late))


def test_a_gif_has_the_exact_colours_and_the_games_speed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "game.gif"
    words = ["record", str(run), "-o", str(out), "--grid", "1x2", "--scale", "1", "--epsilon", "1.0"]
    assert main([*words, "--max-seconds", "3", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    assert len(printed.out.splitlines()) == 1 and "cut when 0 of 2 games were over" in printed.err
    assert (figures["width"], figures["height"], figures["env_steps"]) == (320, 210, 45)
    assert figures["games"] == [] and len(figures["unfinished_scores"]) == 2
    pictures, milliseconds = frames_of(out)
    assert milliseconds == 3_000
    with closing(Rollout(run, num_envs=2, epsilon=1.0)) as rollout:
        wanted = list(record.draw(record.until_stopped(rollout, 3, StopRequest()), 2, 1, overlay=False))
    distinct = [picture for i, picture in enumerate(wanted) if i == 0 or (picture != wanted[i - 1]).any()]
    assert len(pictures) == len(distinct) > 20
    assert all(np.array_equal(one, two) for one, two in zip(pictures, distinct, strict=True))


def stripes(count: int, height: int = 8, width: int = 8) -> Iterator[np.ndarray]:
    """Pictures that all differ."""
    for index in range(count):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, index % width], picture[0, 0] = 255, index
        yield picture


@pytest.mark.parametrize(("fps", "least"), [(15.0, 60), (50.0, 20), (60.0, 20), (60 / 7, 110)])
def test_a_gif_keeps_its_speed_at_every_rate_and_no_delay_is_one_that_viewers_stretch(fps: float, least: int) -> None:
    durations = [image.info["duration"] for image in record.gif_images(stripes(120), fps)]
    assert sum(durations) == 10 * round(100 * 120 / fps) and min(durations) >= least
    assert len(durations) == 120 or fps > 50


def test_an_mp4_is_h264_in_yuv420p_at_the_games_speed(run: Path, capsys: pytest.CaptureFixture) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert main(["record", str(run), "--overlay", "--epsilon", "1", "--max-seconds", "2", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    assert figures["out"] == str(run / "videos" / "Breakout-v5__1200__run__s1.mp4")
    reader = ffmpeg.read_frames(figures["out"])
    meta = next(reader)
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 15
    assert meta["size"] == (figures["width"], figures["height"]) == (480, 630 + 72)
    pictures = [np.frombuffer(data, np.uint8).reshape(702, 480, 3) for data in reader]
    assert len(pictures) == 30 == figures["env_steps"]
    with closing(Rollout(run, epsilon=1.0)) as rollout:
        first = next(iter(rollout)).screen[0].repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(pictures[0][:630].astype(int) - first).mean() < 3  # lossy


def test_odd_sizes_are_made_even_for_mp4(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    record.write_mp4(tmp_path / "odd.mp4", stripes(4, 21, 33), 60 / 7)
    meta = next(ffmpeg.read_frames(str(tmp_path / "odd.mp4")))
    assert meta["size"] == (34, 22) and meta["fps"] == pytest.approx(8.57, abs=0.01)


def test_without_the_extra_mp4_names_it_and_gif_works(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for words in ([], ["-o", str(tmp_path / "game.mp4")]):
        assert main(["record", str(run), *words]) == 2
        printed = capsys.readouterr()
        assert "pip install 'fastdqn[video]'" in printed.err and printed.err.count("\n") == 1
    assert main(["record", str(run), "-o", str(tmp_path / "game.gif"), "--max-seconds", "0.2"]) == 0
    assert len(frames_of(tmp_path / "game.gif")[0]) >= 1


def test_the_overlay_leaves_the_game_as_it_is_and_marks_the_chosen_action(scenes: list[Scene]) -> None:
    (plain,) = record.draw(iter(scenes[40:41]), 2, 2, overlay=False)
    (drawn,) = record.draw(iter(scenes[40:41]), 2, 2, overlay=True)
    assert np.array_equal(drawn[:420], plain) and drawn.shape[0] % 2 == 0 and drawn.shape[0] > 440
    q_values = np.array([0.0, 3.0, 1.0, 2.0], np.float32)
    strips = {action: record.strip(12.0, q_values, action, over=False, width=320).astype(int) for action in range(4)}
    for action, strip in strips.items():
        marked = (strip == record.CHOSEN).all(axis=2)
        heights = [int((strip[:, 160 + 39 * i + 15] != record.BACKGROUND).any(axis=1).sum()) for i in range(4)]
        assert heights[0] < heights[2] < heights[3] < heights[1]  # in the order of the values
        assert marked[:, 160 + 39 * action + 15].sum() == heights[action] and marked.any(axis=0).sum() <= 39
    over = record.strip(12.0, q_values, 0, over=True, width=320)
    assert (over[:, :160] != strips[0][:, :160]).any()


def test_games_are_tiled_in_reading_order() -> None:
    cells = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(2, 1).repeat(2, 2).repeat(3, 3)
    assert record.tile(cells, 3)[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_stop_is_answered_after_the_scene_and_what_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    with closing(Rollout(run)) as rollout:
        pictures = record.draw(record.until_stopped(rollout, None, stop), 1, 1, overlay=False)

        def interrupted() -> Iterator[np.ndarray]:
            for index, picture in enumerate(pictures):
                if index == 10:
                    stop.signal = signal.SIGINT
                yield picture

        record.write(tmp_path / "game.gif", interrupted(), 15)
    assert rollout.steps == 11 and frames_of(tmp_path / "game.gif")[1] == 730


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_recording_that_fails_leaves_the_file_of_before(kind: str, tmp_path: Path) -> None:
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / f"game.{kind}"
    out.write_bytes(b"before")

    def failing() -> Iterator[np.ndarray]:
        yield from stripes(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        record.write(out, failing(), 15)
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]


def test_what_the_encoder_says_is_the_reason_and_nothing_beside_it(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(OSError, match=r"^[^\n]*No such file or directory$"):
        record.write_mp4(tmp_path / "missing" / "video.mp4", stripes(200), 15)
    assert capfd.readouterr().err == ""
    with pytest.raises(FileNotFoundError):  # and where it is the folder, nothing has been encoded
        record.write(tmp_path / "missing" / "video.mp4", stripes(3), 15)
    assert capfd.readouterr().err == ""


def test_a_run_that_takes_no_video_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("imageio_ffmpeg")
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("videos"))
    (copy / "videos").touch()
    assert main(["record", str(copy), "--max-seconds", "0.2"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {copy}/videos/") and printed.endswith(
        ": not written (File exists); name another place with --out\n"
    )


def test_a_run_that_is_still_being_written_is_recorded_from_its_newest_whole_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (whole,) = (copy / "checkpoints").iterdir()
    (copy / "checkpoints" / ".tmp_step_000000999999").mkdir()
    torn = shutil.copytree(whole, copy / "checkpoints" / "step_000000888888")
    (torn / "model.safetensors").write_bytes(b"")
    assert main(["record", str(copy), "-o", str(tmp_path / "a.gif"), "--max-seconds", "0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint"] == whole.name


def test_a_run_without_a_checkpoint_is_an_error_of_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(run / "config.toml", tmp_path)
    assert main(["record", str(tmp_path), "-o", str(tmp_path / "a.gif")]) == 1
    printed = capsys.readouterr()
    assert "holds no checkpoint" in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_a_misspelt_run_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "Breakout__fast__s1").mkdir(parents=True)
    (tmp_path / "runs" / "Breakout__fast__s1" / "config.toml").touch()
    assert main(["record", "Braekout__fast__s1", "-o", "a.gif"]) == 2
    assert "did you mean Breakout__fast__s1?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-o", "game.avi"], "out=game.avi: .*mp4 or .gif"),
        (["-o", "nowhere/game.gif"], "out=nowhere/game.gif: no such folder"),
        (["-o", "a.gif", "--grid", "4"], "grid=4: "),
        (["-o", "a.gif", "--grid", "0x4"], "grid=0x4: "),
        (["-o", "a.gif", "--grid", "17x1"], "grid=17x1: "),
        (["-o", "a.gif", "--scale", "17"], "scale=17: "),
        (["-o", "a.gif", "--scale", "16", "--grid", "1x2"], "scale=16: the picture would have 5120x3360"),
        (["-o", "a.gif", "--max-seconds", "0"], "max_seconds=0: "),
        (["-o", "a.gif", "--max-seconds", "301"], "max_seconds=301: .*at most 300 for .gif"),
        (["-o", "a.gif", "--grid", "1x2", "--episodes", "1"], "episodes=1: .*from 2"),
        (["-o", "a.gif", "--epsilon", "2"], "epsilon=2.0: "),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    run: Path, words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["record", str(run), *words]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.search(reason, printed)
    assert list(tmp_path.iterdir()) == []
