"""The README's learning results are those of the kept JSON, and those are what the run folders say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import learning
from fastdqn import runs
from fastdqn.config import load_preset
from fastdqn.trainer import train


def test_the_readmes_table_is_the_one_of_the_kept_results() -> None:
    readme = (learning.ROOT / "README.md").read_text()
    assert readme == learning.with_table(readme, learning.RESULTS)
    changed = readme.replace("M frames, ", "9M frames, ", 1)
    assert changed != readme and learning.with_table(changed, learning.RESULTS) == readme


def test_every_kept_result_has_its_command_commit_hardware_and_picture() -> None:
    results = sorted(learning.RESULTS.glob("*.json"))
    assert len(results) >= 3
    for path in results:
        row = json.loads(path.read_text())
        assert row["command"].startswith("fastdqn train") and row["environment"]["commit"] and row["environment"]["cpu"]
        assert path.with_suffix(".png").exists()
        assert all(run["frames"] > 0 and run["wall_seconds"] > 0 for run in row["runs"])


def test_a_row_says_what_its_runs_say(tmp_path: Path) -> None:
    for seed in (1, 2):
        config = replace(
            load_preset("catch"), seed=seed, total_frames=2_000, compile=False, ui="quiet", torch_threads=1
        )
        words = ["fastdqn", "train", "--preset", "catch", "--seed", str(seed), "--run-dir=x", "--json"]
        train(replace(config, run_dir=str(tmp_path / str(seed))), words)
    row = learning.row_of([tmp_path / "2", tmp_path / "1"], "a note")
    assert row["command"] == "fastdqn train --preset catch"
    assert [run["seed"] for run in row["runs"]] == [1, 2]
    for run in row["runs"]:
        assert run["score_mean_100"] == runs.status(tmp_path / str(run["seed"]))["score_mean_100"]
    line = learning.line("catch", row)
    assert "Catch-v0" in line and "2 runs, seeds 1, 2; a note" in line and "not evaluated" in line


def test_runs_of_several_commits_make_no_row(tmp_path: Path) -> None:
    for name, commit in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        status = dict.fromkeys(learning.FIGURES, 1) | {"state": "finished", "env": "Catch-v0", "preset": "catch"}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
        (tmp_path / name / "environment.json").write_text(json.dumps({"commit": commit}))
    with pytest.raises(SystemExit, match="several commits: 1, 2"):
        learning.row_of([tmp_path / "a", tmp_path / "b"], "")
