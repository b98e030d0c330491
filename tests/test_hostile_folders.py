"""Run folders that mean harm, are in use, cannot be written or are on a full disk, under the whole command."""

import errno
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import put, quiet

from fastdqn import checkpoint
from fastdqn.cli import main
from fastdqn.run import Run
from fastdqn.run_folder import RunFolder, default_path
from fastdqn.trainer import train

TRAIN = [
    "train", "--preset", "catch", "--total-frames", "300", "--num-envs", "4", "--learning-starts", "100", "--batch-size",
    "8", "--hidden-size", "8", "--no-compile", "--ui", "quiet", "--torch-threads", "1", "--replay-capacity", "400",
]  # fmt: skip
RESUME = ["resume", "--ui", "quiet"]  # else it says what it builds before it looks into the folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deterministic run, so one with its replay, that has 300 frames to go."""
    path = tmp_path_factory.mktemp("catch") / "run"
    config = quiet(
        "catch", path, total_frames=300, num_envs=4, learning_starts=100, batch_size=8, hidden_size=8, replay_capacity=400,
        deterministic=True,
    )  # fmt: skip
    train(config)
    (path / "config.toml").write_text(replace(config, total_frames=600).resolved()[0].to_toml())
    return path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "run")


def newest(run: Path) -> Path:
    return checkpoint.checkpoints(run / "checkpoints")[0]


def last_line(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says at its end, which is one line on stderr behind warnings of one line each."""
    assert main(argv) == code
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and all(line.startswith("warning: ") for line in lines[:-1]), printed
    assert lines[-1].startswith("error: "), printed
    return lines[-1]


def test_the_run_that_the_others_damage_is_resumed_to_its_end(run: Path) -> None:
    assert main(["resume", str(run), "--ui", "quiet"]) == 0
    assert checkpoint.load(run / "checkpoints").state["frames"] >= 600


# -------------------------------------------------------------------------------------------------- paths and names


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--preset", "../../etc/passwd"], "preset=../../etc/passwd: no such preset"),
        (["train", "--env", "../../etc/passwd"], "env=../../etc/passwd: no such game"),
        (["presets", "../../../etc/passwd"], "preset=../../../etc/passwd: no such preset"),
        (["eval", "../../etc/passwd"], "run=../../etc/passwd: no such folder"),
        (["resume", "/etc"], "run=/etc: holds no run"),
        (["record", "x" * 300, "-o", "game.gif"], "run=" + "x" * 300 + ": File name too long"),
        (["export", "\udcff\n"], r"run=\udcff\n: no such folder"),
        ([*TRAIN, "--run-dir", "a\0b"], r"run_dir=a\x00b: is not Unicode text"),
        ([*TRAIN, "--run-dir=~/run"], "run_dir=~/run: ~ means home to the shell alone; give the whole path"),
        (
            [*TRAIN, "--run-dir", "/proc/nothing/run"],
            "run_dir=/proc/nothing/run: No such file or directory; name a folder",
        ),
        ([*TRAIN, "--run-dir", "/dev/full"], "run_dir=/dev/full: File exists; name a folder"),
        ([*TRAIN, "--run-dir", "/dev/null/run"], "run_dir=/dev/null/run: Not a directory; name a folder"),
        ([*TRAIN, "--run-dir", "y" * 300], "File name too long"),
        (["eval", "RUN", "--threads", "99999999999"], "threads=99999999999: give a number from 1 to 1024"),
        (["eval", "RUN", "--seed", str(2**63)], f"seed={2**63}: give a number from 0 to"),
        (["export", "RUN", "-o", "/proc/nothing/a.pt2"], "out=/proc/nothing/a.pt2: no such folder; make it first"),
    ],
)
def test_a_name_that_leads_nowhere_good_is_refused(
    argv: list[str], message: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert message in last_line([str(run) if word == "RUN" else word for word in argv], 2, capsys)


def test_a_run_dir_with_dots_is_that_folder_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert main([*TRAIN, "--run-dir", "../../x"]) == 0
    assert (tmp_path / "x" / "config.toml").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "x"] and not any(Path().iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a\0b\n", "a/../../b"])
def test_a_default_folder_stays_under_runs_whatever_game_and_preset_are_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(default_path(name, name, 1))
    assert folder.path.parent == Path("runs") and folder.path.resolve().parent == tmp_path / "runs"
    folder.release()


# ----------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("command", ["resume", "eval", "export"])
def test_a_symlinked_checkpoint_is_not_followed(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = newest(run)
    path.symlink_to(path.rename(tmp_path / "outside"))
    assert "none of 1 checkpoints is intact" in last_line([command, str(run)], 1, capsys)


@pytest.mark.parametrize("command", ["resume", "eval", "export"])
def test_a_symlinked_folder_of_checkpoints_is_not_followed(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    outside = (run / "checkpoints").rename(tmp_path / "outside")
    before = sorted(outside.rglob("*"))
    (run / "checkpoints").symlink_to(outside)
    assert "is a symlink, which is not followed" in last_line([command, str(run)], 1, capsys)
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("name", [".lock", "config.toml", "metrics.jsonl", "eval"])
def test_nothing_is_written_through_a_symlink_in_a_run_folder(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    outside = (run / name).rename(tmp_path / "outside")
    before = None if outside.is_dir() else outside.read_bytes()
    (run / name).symlink_to(outside)
    assert f"run_dir={run}: its {name} is a symlink" in last_line([*RESUME, str(run)], 2, capsys)
    assert (not any(outside.iterdir())) if before is None else outside.read_bytes() == before


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(run: Path) -> None:
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    command = [sys.executable, "-m", "fastdqn", *RESUME, str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------------ hostile checkpoints


def header(length: int, text: bytes, payload: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + text + payload


def described(**tensors: Any) -> bytes:
    text = json.dumps(
        {name: {"dtype": "F32", "shape": s, "data_offsets": o} for name, (s, o) in tensors.items()}
    ).encode()
    return header(len(text), text, bytes(16))


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


HEADERS = {
    "a header of 2^63 bytes": header(2**63, b"{}"),
    "a header of 2^64 - 1 bytes": header(2**64 - 1, b"{}"),
    "a header of a terabyte": header(1 << 40, b"{}"),
    "brackets in brackets": header(200_000, b"[" * 200_000),
    "objects in objects": header(600_000, b'{"a":' * 120_000),
    "overlapping tensors": described(a=([4], [0, 16]), b=([4], [0, 16])),
    "a tensor beyond the end": described(a=([1 << 40], [0, 1 << 42])),
    "a tensor that ends before it begins": described(a=([4], [16, 0])),
    "a shape that overflows": described(a=([1 << 62, 1 << 62], [0, 16])),
    "no tensors": header(2, b"{}"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_absurd_header_under_a_valid_seal_is_refused_by_every_command(
    kind: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    put(newest(run), "model.safetensors", HEADERS[kind])
    for command in (RESUME, ["eval"], ["export"]):
        code = 2 if command == RESUME and kind == "no tensors" else 1  # well-formed, but of another network
        line = last_line([*command, str(run)], code, capsys)
        assert "is intact" in line or "config.toml" in line, line


@pytest.mark.parametrize("kind", HEADERS)
def test_an_absurd_header_of_the_replay_is_refused(kind: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    put(newest(run), "replay.safetensors", HEADERS[kind])
    assert "replay.safetensors" in last_line([*RESUME, str(run)], 2, capsys)


def test_a_renamed_pickle_is_refused_and_never_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bait = pickle.dumps(Canary(tmp_path / "ran"))
    for name in ("replay.safetensors", "state.json", "model.safetensors", "optimizer.safetensors"):
        kept = (newest(run) / name).read_bytes()
        put(newest(run), name, bait)
        for command in (RESUME, ["eval"], ["export"]):
            if name != "replay.safetensors" or command == RESUME:
                last_line([*command, str(run)], 2 if name == "replay.safetensors" else 1, capsys)
        put(newest(run), name, kept)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bait)  # the bait is a real one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.clear(), "its state.json has no env_steps"),
        (lambda state: state.pop("epoch"), "its state.json has no epoch"),
        (lambda state: state.update(env_steps="3"), "is intact"),
        (lambda state: state.update(wall_seconds=None), "is intact"),
        (lambda state: state.update(obs_shape=5), "is intact"),
        (lambda state: state.update(last_100=["a"]), "is intact"),
        (lambda state: state.update(last_100=[[1]]), "is intact"),
        (lambda state: state.update(wall_seconds=math.nan), "is intact"),
        (lambda state: state.update(episodes=10**400), "is intact"),
        (lambda state: state.update(score_mean_100="a"), "is intact"),
    ],
)
def test_a_state_that_is_not_a_runs_is_refused(
    change: Callable[[dict], None], message: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    state = json.loads((newest(run) / "state.json").read_text())
    change(state)
    put(newest(run), "state.json", json.dumps(state).encode())
    assert message in last_line(["resume", str(run)], 1, capsys)


@pytest.mark.parametrize("line", ["hidden_size = 9", 'optimizer = "rmsprop"', 'env = "CartPole-v1"', 'head = "iqn"'])
def test_a_config_of_another_agent_is_not_resumed(line: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    name = line.split()[0]
    lines = [line if old.split()[0] == name else old for old in (run / "config.toml").read_text().splitlines()]
    (run / "config.toml").write_text("\n".join(lines))
    log = (run / "metrics.jsonl").read_bytes()
    assert "not what this checkpoint was trained with" in last_line([*RESUME, str(run)], 2, capsys)
    assert (run / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("damage", ["folder", "missing", "link to itself", "pipe", "huge"])
@pytest.mark.parametrize("command", ["resume", "eval", "export"])
def test_a_config_that_is_no_file_of_a_run_is_refused(
    damage: str, command: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    path = run / "config.toml"
    if damage == "huge":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
        {"folder": path.mkdir, "missing": lambda: None, "link to itself": lambda: path.symlink_to(path),
         "pipe": lambda: os.mkfifo(path)}[damage]()  # fmt: skip
    line = last_line([command, str(run)], 2, capsys)
    assert ("has more than 16,384 bytes" if damage == "huge" else "holds no run") in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma" + ".a" * 1_200 + " = 1", "gamma={'a': {'a': "),
        ("gamma = " + "[" * 9_000, "config.toml: not TOML (maximum recursion depth exceeded"),
    ],
)
def test_a_config_nested_without_end_is_refused(
    text: str, message: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    (run / "config.toml").write_text(text)
    assert message in last_line([*RESUME, str(run)], 2, capsys)


def test_what_a_config_leaves_out_is_derived_by_eval_as_by_train(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('encoder = "mlp"\n', ""))
    assert main(["eval", str(run), "--episodes", "1"]) == 0


# -------------------------------------------------------------------------------------- in use, read-only, full disk


def test_a_run_folder_in_use_by_another_process_is_refused_and_free_once_that_is_dead(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from fastdqn.run_folder import RunFolder, default_path\n"
         "held = [RunFolder(path, resumed=True) for path in sys.argv[1:]]\n"
         "print('held', flush=True); time.sleep(99)", str(run), str(tmp_path / "new")], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for argv in ([*RESUME, str(run)], [*TRAIN, "--run-dir", str(tmp_path / "new")]):
            assert f"in use by process {holder.pid}; end it first" in last_line(argv, 2, capsys)
        assert main(["eval", str(run), "--episodes", "1"]) == 0  # reading is free
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert main(["resume", str(run), "--ui", "quiet"]) == 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory; the test is left out where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_is_refused_to_training_and_open_to_reading(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        run = shutil.copytree(sound, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "Read-only file system" in last_line([*TRAIN, "--run-dir", str(disk / "new")], 2, capsys)
        assert "Read-only file system" in last_line([*RESUME, str(run)], 2, capsys)
        assert "out=" in last_line(["export", str(run)], 2, capsys)
        assert main(["eval", str(run), "--episodes", "2"]) == 0
        printed = capsys.readouterr()
        assert "2 games" in printed.out and "warning: result not saved" in printed.err


def test_a_run_whose_folder_is_moved_away_says_so_and_begins_no_other_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = quiet("catch", tmp_path / "run", total_frames=2_000)
    run = Run(config, ["test"])
    run.envs.start()
    with run:
        (tmp_path / "run").rename(tmp_path / "moved")
        run.clock.env_steps = 2_000
    assert run.unsaved and not (tmp_path / "run").exists()
    assert "checkpoint of step 2000 not saved" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "moved" / "checkpoints").step == 0


def test_a_disk_that_is_full_at_the_start_refuses_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(OSError) as full, (disk / "filler").open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(bytes(4096))
        assert full.value.errno == errno.ENOSPC
        line = last_line([*TRAIN, "--run-dir", str(disk / "run")], 2, capsys)
        assert "run_dir=" in line and "No space left on device" in line


def test_a_disk_that_fills_up_ends_with_exit_code_1_after_the_last_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By the limit of a file's size, which needs no rights: of the files of this run only the weights exceed it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, before[1]))
    try:
        code = main([*TRAIN, "--hidden-size", "64", "--run-dir", str(tmp_path / "run")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capsys.readouterr()
    assert code == 1 and "File too large" in printed.err and "Traceback" not in printed.err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["frames"] >= 300
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
