"""The viewers' files, read back with the viewers' own readers."""

import json
import shutil
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_runs import quiet

from fastdqn import checkpoint
from fastdqn.cli import main
from fastdqn.errors import UsageError
from fastdqn.tracking import Tracker
from fastdqn.trainer import train


def test_tensorboard_reads_back_every_value_at_its_env_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(quiet("catch", tmp_path / "run", total_frames=3_000, track="tensorboard"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = {"charts/episodic_return", "charts/SPS", "losses/td_loss", "losses/q_values", "charts/epsilon"}
    assert tags <= set(events.Tags()["scalars"])
    for tag in tags:
        expected = [(row["global_step"], row[tag]) for row in rows if row.get(tag) is not None]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected] and len(found) > 0
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert "env: Catch-v0" in str(events.Tensors("config/text_summary"))


def test_tensorboard_has_no_value_twice_after_a_resume_from_further_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(quiet("catch", run, total_frames=3_000, track="tensorboard", checkpoint_period_frames=1_500))
    newest, *_ = checkpoint.checkpoints(run / "checkpoints")
    shutil.rmtree(newest)  # as if it had been killed after its last row, before it was saved
    assert main(["resume", str(run), "--ui", "quiet"]) == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = [event.step for event in events.Scalars("charts/epsilon")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found == [row["global_step"] for row in rows]


needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="wandb is not installed: pip install 'fastdqn[wandb]'"
)


@needs_wandb
def test_a_wandb_run_is_written_offline_and_holds_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = Tracker("wandb", tmp_path, name="a run", config={"env": "Catch-v0"})
    tracker.write({"global_step": 10, "charts/episodic_return": 0.25, "charts/SPS": None})
    tracker.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 10
    while b"charts/episodic_return" not in (data := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)  # W&B's own process writes it, and may be a moment behind
    assert b"charts/episodic_return" in data and b"0.25" in data and b"Catch-v0" in data and b"charts/SPS" not in data


@needs_wandb
def test_wandbs_mode_is_that_of_its_own_variable_and_one_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Tracker("wandb", tmp_path, name="a run", config={}).close()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match=r"^track=wandb, WANDB_MODE=ofline: .*; WANDB_MODE=offline needs no account$"):
        Tracker("wandb", tmp_path, name="a run", config={})


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_extra_is_answered_with_the_line_that_installs_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / kind).mkdir()  # as W&B leaves it behind: no package
    with pytest.raises(UsageError, match=rf"track={kind}: .*pip install 'fastdqn\[{kind}\]'"):
        train(quiet("catch", tmp_path / "run", track=kind))
    assert not (tmp_path / "run").exists()
