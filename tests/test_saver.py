"""Saving behind the loop's back: what was handed over is what is written, one at a time, and nothing is lost."""

import errno
import os
import threading
import weakref
from pathlib import Path

import pytest
import torch

from fastdqn import checkpoint
from fastdqn.saver import Saver
from fastdqn.trainer import no_garbage_collection


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch):
    """Holds every write until the test lets it go."""
    go, write = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *parts, **how: (go.wait(10), write(*parts, **how))[1])
    yield go
    go.set()


def test_the_loop_goes_on_and_what_it_changes_meanwhile_is_not_what_is_saved(tmp_path: Path, held) -> None:
    saver, weight = Saver(tmp_path), torch.zeros(3)
    saver.save(1, {"model": {"weight": weight}}, {"frames": 4})
    weight.fill_(7)
    assert saver.busy and checkpoint.checkpoints(tmp_path) == []
    held.set()
    saver.wait()
    assert not saver.busy
    saved = checkpoint.load(tmp_path)
    assert saved.step == 1 and saved.tensors["model"]["weight"].tolist() == [0, 0, 0]


def test_large_tensors_are_on_the_disk_when_save_returns(tmp_path: Path) -> None:
    saver, frames = Saver(tmp_path), torch.arange(10, dtype=torch.uint8).view(2, 5)
    saver.save(1, {"model": {}}, {}, {"frame": frames})
    assert not saver.busy and checkpoint.load(tmp_path).large is not None


def test_a_second_save_waits_for_the_first(tmp_path: Path, held) -> None:
    saver = Saver(tmp_path)
    saver.save(1, {"model": {"w": torch.ones(1)}}, {})
    threading.Timer(0.2, held.set).start()
    saver.save(2, {"model": {"w": torch.ones(1)}}, {})
    assert checkpoint.checkpoints(tmp_path)[-1].name.endswith("1"), "the first is whole before the second begins"
    saver.wait()
    assert checkpoint.load(tmp_path).step == 2


def test_a_full_disk_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    saver = Saver(tmp_path / "file" / "checkpoints")
    saver.save(1, {"model": {}}, {})
    saver.wait()
    assert "training goes on" in capsys.readouterr().err


def test_two_threads_that_save_at_once_write_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saver, errors = Saver(tmp_path), []

    def save_often(first: int) -> None:
        try:
            for step in range(first, first + 40, 2):
                saver.save(step, {"model": {"w": torch.full((100,), float(step))}}, {})
                saver.wait()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save_often, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and capsys.readouterr().err == ""
    assert saver.saved in (38, 39) and not saver.busy
    assert checkpoint.load(tmp_path).step in (38, 39)


@pytest.mark.parametrize("disk", ["new", "damaged", "full"])
def test_without_a_garbage_collector_the_copies_go_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, disk: str
) -> None:
    copies, to_host = [], checkpoint.to_host

    def watched(tensors):
        host = to_host(tensors)
        copies.extend(weakref.ref(one) for named in host.values() for one in named.values())
        return host

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = Saver(tmp_path)
    tensors = {"model": {"w": torch.ones(9), "b": torch.ones(9)}, "target": {"w": torch.ones(9)}}
    monkeypatch.setattr(checkpoint, "to_host", watched)
    if disk == "full":
        monkeypatch.setattr(os, "fsync", full)
    with no_garbage_collection():  # as in training, where a cycle that holds a copy holds it to the end
        for step in range(4):
            if disk == "damaged":
                (tmp_path / f"step_{step:012d}").mkdir()
                (tmp_path / f"step_{step:012d}" / "manifest.json").write_text("no JSON")
            saver.save(step, tensors, {})
            saver.wait()
        alive = sum(copy() is not None for copy in copies)
    assert len(copies) == 12 and alive == 0
    assert saver.saved == (None if disk == "full" else 3)
    assert ("training goes on" in capsys.readouterr().err) == (disk == "full")
