"""Checkpoints: bit-equal round trips, and nothing but an intact one is ever loaded."""

import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import put, reseal
from torch import Tensor

from fastdqn import checkpoint
from fastdqn.checkpoint import CheckpointError


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(3, 5, generator=generator), "bias": torch.randn(3, generator=generator)},
        "random": {"counter": torch.tensor(step)},
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    as_bytes = [t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


def assert_holds(loaded: checkpoint.Checkpoint, step: int) -> None:
    assert loaded.step == step and loaded.state == {"env_steps": step}
    expected = tensors_of(step)
    assert loaded.tensors.keys() == expected.keys()
    for group, named in expected.items():
        assert loaded.tensors[group].keys() == named.keys()
        assert all(same_bits(loaded.tensors[group][name], value) for name, value in named.items())


def save(root: Path, *steps: int, keep: int = checkpoint.KEEP) -> Path:
    for step in steps:
        replay = {"frame": torch.full((5, 7), step % 256, dtype=torch.uint8)}
        path = checkpoint.write(root, step, tensors_of(step), {"env_steps": step}, replay, keep=keep)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Holds the intact checkpoints 1 and 2; the tests damage 2."""
    save(tmp_path / "checkpoints", 1, 2)
    return tmp_path / "checkpoints"


def newest(root: Path) -> Path:
    return root / "step_000000000002"


def assert_falls_back(root: Path, capsys: pytest.CaptureFixture[str], reason: str) -> None:
    """2 is refused with a line that names it and says why, and 1 is loaded."""
    assert_holds(checkpoint.load(root), 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(newest(root)) in lines[0] and reason in lines[0], lines


# ---------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
)
def test_tensors_of_every_kind_come_back_bit_equal(tmp_path: Path, device: str) -> None:
    base = torch.randn(4, 6, device=device)
    named = {
        "float32": torch.tensor([0.1, -0.0, torch.inf, torch.nan, 1e-45], device=device),
        "bfloat16": torch.randn(7, device=device).bfloat16(),
        "int64": torch.tensor([2**63 - 1, -(2**63)], device=device),
        "uint8": torch.arange(256, device=device).to(torch.uint8),
        "bool": torch.tensor([True, False], device=device),
        "scalar": torch.tensor(2**53 + 1, device=device),
        "empty": torch.empty(0, 3, device=device),
        "transposed": base.T,
        "shared_row": base[1],
        "same_again": base,
        "strided": base[::2, 1::3],
        "expanded": torch.ones(1, device=device).expand(5),
        "channels_last": torch.randn(8, 4, 3, 3, device=device).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3, device=device)),
    }
    checkpoint.write(tmp_path, 7, checkpoint.to_host({"kinds": named, "nothing": {}}), {})
    loaded = checkpoint.load(tmp_path)
    assert loaded.tensors.keys() == {"kinds", "nothing"} and loaded.tensors["kinds"].keys() == named.keys()
    for name, value in named.items():
        back = loaded.tensors["kinds"][name]
        assert same_bits(back, value.detach()), name
        assert back.device.type == "cpu" and not back.requires_grad


def test_state_comes_back_equal(tmp_path: Path) -> None:
    state = {"frames": 2**62, "epsilon": 0.1, "obs_shape": [4, 84, 84], "nested": {"none": None, "text": "é\n"}}
    checkpoint.write(tmp_path, 0, {}, state)
    assert checkpoint.load(tmp_path).state == state


def test_host_copies_do_not_follow_the_originals() -> None:
    weight = torch.zeros(4)
    host = checkpoint.to_host({"model": {"weight": weight, "part": weight[:2]}})
    weight.fill_(1)
    host["model"]["weight"].add_(5)
    assert host["model"]["weight"].tolist() == [5] * 4 and host["model"]["part"].tolist() == [0, 0]


def test_host_copies_are_contiguous_whatever_the_layout_on_the_device() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    copy = checkpoint.to_host({"model": {"weight": weight}})["model"]["weight"]
    assert copy.is_contiguous() and torch.equal(copy, weight)


# ------------------------------------------------------------------------------------------- which are kept, which goes


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 10)
    assert sorted(os.listdir(tmp_path)) == ["step_000000000003", "step_000000000010"]
    assert_holds(checkpoint.load(tmp_path), 10)


def test_a_damaged_older_one_does_not_count_as_the_one_to_fall_back_to(root: Path) -> None:
    (newest(root) / "state.json").unlink()
    save(root, 3)
    assert [path.name[-1] for path in checkpoint.checkpoints(root)] == ["3", "1"]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4, 5, 6]), (4, [3, 4, 5, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_as_many_as_asked_for_are_kept_and_each_is_read_by_its_step(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, *range(1, 7), keep=keep)
    assert sorted(checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)) == left
    for step in left:
        assert_holds(checkpoint.load(tmp_path, step), step)
    with pytest.raises(CheckpointError, match="holds no checkpoint of env step 7, but of 6, 5, "):
        checkpoint.load(tmp_path, 7)


def test_a_damaged_checkpoint_that_was_asked_for_is_refused_and_no_other_one_taken(root: Path) -> None:
    damaged = newest(root)
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has 0 bytes"):
        checkpoint.load(root, checkpoint.step_of(damaged))


def test_a_step_that_is_already_saved_and_intact_is_not_written_again(root: Path) -> None:
    before = (newest(root) / "manifest.json").stat().st_mtime_ns
    assert save(root, 2) == newest(root)
    assert (newest(root) / "manifest.json").stat().st_mtime_ns == before


def test_a_step_that_is_already_saved_but_damaged_is_replaced(root: Path) -> None:
    (newest(root) / "state.json").write_text("{}")
    save(root, 2)
    assert_holds(checkpoint.load(root), 2)


def test_leftovers_of_crashed_saves_are_never_loaded_and_go_at_the_next_save(root: Path) -> None:
    shutil.copytree(newest(root), root / ".tmp_step_000000000009")
    shutil.copytree(newest(root), root / ".tmp_old_step_000000000000")
    (root / ".tmp_step_000000000008").symlink_to(newest(root))
    assert_holds(checkpoint.load(root), 2)
    save(root, 3)
    assert sorted(os.listdir(root)) == ["step_000000000002", "step_000000000003"]


def test_other_files_beside_the_checkpoints_are_left_alone(root: Path) -> None:
    for name in ("notes.txt", "step_12", "step_000000000099.bak", "checkpoint_temp"):
        (root / name).mkdir()
    save(root, 3)
    assert_holds(checkpoint.load(root), 3)
    assert {"notes.txt", "step_12", "step_000000000099.bak", "checkpoint_temp"} < set(os.listdir(root))


# ----------------------------------------------------------------------------------------------------------- refusals


def files_of_a_checkpoint() -> list[str]:
    return ["manifest.json", "model.safetensors", "random.safetensors", "replay.safetensors", "state.json"]


@pytest.mark.parametrize("file", files_of_a_checkpoint())
def test_one_flipped_bit_in_any_file_is_detected(root: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    path = newest(root) / file
    data = path.read_bytes()
    draw = random.Random(file)
    for bit in [0, 8 * len(data) - 1, *(draw.randrange(8 * len(data)) for _ in range(40))]:
        path.write_bytes(flipped(data, bit))
        assert_falls_back(root, capsys, "")
    path.write_bytes(data)
    assert_holds(checkpoint.load(root), 2)


@pytest.mark.long
def test_ten_thousand_random_flipped_bits_are_all_detected(root: Path) -> None:
    draw = random.Random(0)
    for _ in range(10_000):
        path = newest(root) / draw.choice(files_of_a_checkpoint())
        data = path.read_bytes()
        path.write_bytes(flipped(data, draw.randrange(8 * len(data))))
        with pytest.raises(CheckpointError):
            checkpoint.read(newest(root))
        path.write_bytes(data)
    assert_holds(checkpoint.read(newest(root)), 2)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("file", files_of_a_checkpoint())
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_truncated_file_is_detected(root: Path, capsys: pytest.CaptureFixture[str], file: str, keep: int) -> None:
    path = newest(root) / file
    path.write_bytes(path.read_bytes()[:keep])
    if file != "manifest.json":
        assert_falls_back(root, capsys, f"{file} has")
    else:
        assert_falls_back(root, capsys, "its own hash" if keep == -1 else "cannot be parsed")


@pytest.mark.parametrize("file", files_of_a_checkpoint())
def test_a_file_that_grew_is_detected(root: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    with (newest(root) / file).open("ab") as opened:
        opened.write(b"\n")
    assert_falls_back(root, capsys, file)


@pytest.mark.parametrize("file", files_of_a_checkpoint())
def test_a_missing_file_is_detected(root: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (newest(root) / file).unlink()
    assert_falls_back(root, capsys, f"{file} is missing" if file != "manifest.json" else "manifest.json cannot be read")


def test_a_foreign_file_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (newest(root) / "extra.safetensors").write_bytes(b"")
    assert_falls_back(root, capsys, "'extra.safetensors' is not in manifest.json")


@pytest.mark.parametrize("file", files_of_a_checkpoint())
def test_a_symlinked_file_is_refused(root: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    outside = root.parent / file
    (newest(root) / file).rename(outside)
    (newest(root) / file).symlink_to(outside)
    assert_falls_back(root, capsys, "symlink")


def test_a_symlinked_checkpoint_folder_is_refused_and_never_followed_by_a_save(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = root.parent / "outside"
    newest(root).rename(outside)
    newest(root).symlink_to(outside)
    assert_falls_back(root, capsys, "symlink")
    save(root, 2, 3, 4)
    assert len(os.listdir(outside)) == len(files_of_a_checkpoint())
    assert_holds(checkpoint.load(root), 4)


def test_a_pipe_in_place_of_a_file_does_not_block(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (newest(root) / "state.json").unlink()
    os.mkfifo(newest(root) / "state.json")
    assert_falls_back(root, capsys, "state.json is no regular file")


def test_a_file_in_place_of_the_folder_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(newest(root))
    newest(root).write_bytes(b"")
    assert_falls_back(root, capsys, "no folder")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "evil.pkl"])
def test_a_manifest_cannot_name_files_outside_the_folder(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    target = newest(root) / name
    if name.startswith("..") and name != "..":
        target.write_bytes(b"")
    reseal(newest(root), lambda manifest: manifest["files"].update({name: manifest["files"]["state.json"]}))
    assert_falls_back(root, capsys, f"names {name!r}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest.update(format=2), "format 2"),
        (lambda manifest: manifest.update(step=3), "is of step 3"),
        (lambda manifest: manifest.pop("files"), "cannot be parsed"),
        (lambda manifest: manifest.update(files=[1]), "cannot be parsed"),
        (lambda manifest: manifest["files"].update({"state.json": None}), "cannot be parsed"),
        (lambda manifest: manifest["files"].pop("state.json"), "'state.json' is not in manifest.json"),
    ],
)
def test_a_manifest_that_was_rewritten_and_resealed_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    reseal(newest(root), change)
    assert_falls_back(root, capsys, reason)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
@pytest.mark.parametrize(
    "payload", [b"", b"\x80\x04cos\nsystem\n", b"\xff" * 64, b"[" * 100_000, b"\xff\xff\xff\x7f\0\0\0\0{}"]
)
def test_a_hostile_file_under_a_valid_manifest_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], file: str, payload: bytes
) -> None:
    put(newest(root), file, payload)
    assert_falls_back(root, capsys, "cannot be parsed")


def test_a_huge_manifest_is_not_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(newest(root) / "manifest.json", 1 << 40)
    assert_falls_back(root, capsys, "cannot be parsed")


def test_no_checkpoint_gives_a_clear_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=f"{root}: holds no checkpoint"):
            checkpoint.load(root)


def test_no_intact_checkpoint_gives_a_clear_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in checkpoint.checkpoints(root):
        (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is intact"):
        checkpoint.load(root)
    assert len(capsys.readouterr().err.splitlines()) == 2


# -------------------------------------------------------------------------------------------------- faults and kills

DURABLE = ["open", "fsync", "rename", "unlink", "rmdir", "mkdir"]  # what a save asks of the operating system


def test_a_failing_system_call_leaves_the_older_ones_intact(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the k-th call with ENOSPC, for every k until a save makes fewer calls than that."""
    failed = calls = k = 0
    while calls >= k:
        k += 1
        step, calls = 2 + k, 0

        def failing(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == k:  # noqa: B023
                    raise OSError(28, "No space left on device")
                return original(*args, **kwargs)

            return call

        older = checkpoint.load(root).step
        with monkeypatch.context() as patch:
            for name in DURABLE:
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                save(root, step)
                saved = True
            except CheckpointError as error:
                saved = False
                assert "No space left on device" in str(error)
        loaded = checkpoint.load(root).step
        assert loaded == step if saved else loaded in (older, step)  # a save may fail after its rename
        assert_holds(checkpoint.load(root), loaded)
        failed += not saved
    assert failed >= 10


def test_every_file_is_on_the_disk_before_the_name_is_and_the_name_before_the_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes what is only in the page cache; no kill shows that, so the calls are looked at."""
    calls, fsync, rename = [], os.fsync, os.rename

    def seen(descriptor: int) -> None:
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "rename", lambda *names: (calls.append("rename"), rename(*names)))
    save(tmp_path / "root", 1)
    *files, folder, renamed, parent = calls
    assert sorted(files) == files_of_a_checkpoint()
    assert (folder, renamed, parent) == (".tmp_step_000000000001", "rename", "root")


def test_what_the_disk_holds_is_read_back_before_an_older_one_is_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.large_tensors.write

    def worn(path: Path, tensors: Any) -> Any:
        line = write(path, tensors)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return line

    monkeypatch.setattr(checkpoint.large_tensors, "write", worn)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its hash; older ones are intact"):
        save(root, 3)
    assert sorted(os.listdir(root)) == ["step_000000000001", "step_000000000002"]


def test_an_interrupted_save_leaves_no_trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        save(root, 3)
    assert sorted(os.listdir(root)) == ["step_000000000001", "step_000000000002"]


# One process forks a saver per trial, because importing torch anew for each would take the time of a hundred saves.
KILLER = textwrap.dedent("""
    import os, random, shutil, signal, sys, time
    from pathlib import Path
    import torch
    from fastdqn import checkpoint

    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    DURABLE = sys.argv[2].split(",")

    def saver(acks, first, kill_at):
        calls = 0
        def dying(original):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)
            return call
        for name in DURABLE if kill_at else ():
            setattr(os, name, dying(getattr(os, name)))
        for step in range(first, first + 1000):
            checkpoint.write(root, step, {"model": {"w": torch.full((50_000,), float(step))}}, {"env_steps": step})
            os.write(acks, step.to_bytes(8, "little"))
            if kill_at and step == first + 2:
                os._exit(0)

    def trial(kill_at, seconds):
        loaded = checkpoint.load(root) if checkpoint.checkpoints(root) else None
        first = loaded.step + 1 if loaded else 1
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            saver(write_end, first, kill_at)
        os.close(write_end)
        if seconds:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        acked = [first - 1]
        while word := os.read(read_end, 8):
            acked.append(int.from_bytes(word, "little"))
        os.close(read_end)
        if acked[-1] == 0 and not checkpoint.checkpoints(root):
            return os.WIFSIGNALED(status)
        loaded = checkpoint.load(root)
        assert acked[-1] <= loaded.step <= acked[-1] + 1, (acked[-1], loaded.step)
        assert loaded.state == {"env_steps": loaded.step}
        assert bool((loaded.tensors["model"]["w"] == loaded.step).all())
        return os.WIFSIGNALED(status)

    kills = 0
    if sys.argv[3] == "calls":
        while trial(kills + 1, 0):
            kills += 1
    else:
        draw = random.Random(0)
        for _ in range(int(sys.argv[3])):
            kills += trial(0, draw.uniform(0.0, 0.05))
    print(kills)
""")


def run_killer(root: Path, kills: str) -> tuple[int, str]:
    """Returns how many savers were killed, and what `load` had to say on stderr meanwhile."""
    command = [sys.executable, "-c", KILLER, str(root), ",".join(DURABLE), kills]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


def test_kill_9_before_each_system_call_of_a_save_never_loses_the_newest_acknowledged(tmp_path: Path) -> None:
    kills, complaints = run_killer(tmp_path, "calls")
    assert kills >= 30  # three saves and their removals lie before the last kill
    assert complaints == ""  # the newest was intact each time, never merely the one before it


def test_kill_9_at_random_moments_never_loses_the_newest_acknowledged(tmp_path: Path) -> None:
    kills, complaints = run_killer(tmp_path, "24")
    assert kills == 24 and complaints == ""


@pytest.mark.long
def test_a_thousand_random_kills_never_lose_the_newest_acknowledged(tmp_path: Path) -> None:
    kills, complaints = run_killer(tmp_path, "1000")
    assert kills == 1000 and complaints == ""
