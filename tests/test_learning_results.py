"""The README's learning results are those of the kept JSON, and those are what the run folders say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_by_hand import evaluation_result
from small_runs import quiet

from benchmarks import learning
from fastdqn import runs
from fastdqn.config import load_preset
from fastdqn.trainer import train


def test_the_tables_are_those_of_the_kept_results() -> None:
    for page, text in learning.pages(learning.RESULTS).items():
        assert page.read_text() == text


def test_a_table_that_says_something_else_is_found_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results")
    folder_of(tmp_path / "run", evaluations=({"protocol": "nature"},))
    (tmp_path / "results").mkdir()
    for page in ("README.md", "results/README.md"):
        (tmp_path / page).write_text("before\n" + "\n".join(learning.MARKS) + "\nafter\n")

    def main(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["learning", *words])
        return learning.main()

    assert main("add", "pong", str(tmp_path / "run"), "--out", str(tmp_path / "results")) == 0
    assert main("table", "--check") == 1
    assert main("table") == 0 and main("table", "--check") == 0
    readme = tmp_path / "README.md"
    assert "| 1 | Pong-v5 | `fast` | -20.7 | 1 |" in readme.read_text() and readme.read_text().startswith("before\n")
    readme.write_text(readme.read_text().replace("| -20.7 |", "| -20.8 |"))
    assert main("table", "--check") == 1


def test_what_presets_reach_is_on_the_readme_and_other_settings_on_a_page_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ratio in (("shipped", load_preset("fast").replay_ratio), ("tried", 1.0)):
        row = learning.row_of([folder_of(tmp_path / name)], "")
        row["settings"]["replay_ratio"] = ratio
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    readme, others = learning.pages(tmp_path).values()
    assert "(benchmarks/results/learning/shipped.json)" in readme and "tried.json" not in readme
    assert "(tried.json)" in others and "shipped.json" not in others


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
        words = ["fastdqn", "train", "--preset", "catch", "--seed", str(seed), "--run-dir=x", "--json"]
        train(quiet("catch", tmp_path / str(seed), seed=seed, total_frames=2_000), words)
    row = learning.row_of([tmp_path / "2", tmp_path / "1"], "a note")
    assert row["command"] == "fastdqn train --preset catch"
    assert [run["seed"] for run in row["runs"]] == [1, 2]
    for run in row["runs"]:
        assert run["score_mean_100"] == runs.status(tmp_path / str(run["seed"]))["score_mean_100"]
    line, origin = learning.line(row), learning.origin("catch", row, "results/")
    assert "Catch-v0" in line and "`catch`" in line and "not evaluated" in line
    assert "`fastdqn train --preset catch`" in origin and "2 runs, seeds 1, 2" in origin and "a note" in origin
    one = {**row, "environment": {**row["environment"], "gpu": None, "cores": 1, "cpu": "Some CPU"}}
    assert ", 1 core Some CPU, commit" in learning.origin("catch", one, "")
    assert row["environment"]["commit"][:7] in origin and "[catch.json](results/catch.json)" in origin


def test_what_a_row_of_an_older_version_lacks_was_the_default_and_not_what_its_preset_says_now() -> None:
    row = json.loads((learning.RESULTS / "breakout-fast-lecun-5e-4.json").read_text())
    assert "learning_rate_end" not in row["settings"] and load_preset("fast").learning_rate_end > 0
    assert "learning_rate_end 0.0" in learning.called(row).split(", ")
    row = json.loads((learning.RESULTS / "cartpole.json").read_text())
    changed = {"replay_capacity": 4_000, "replay_ratio": 2.0, "dueling": True}
    cells = learning.line({**row, "settings": {**row["settings"], **changed}}).split(" | ")
    assert cells[1] == "`cartpole`, replay_capacity 4,000, replay_ratio 2.0, dueling True"
    assert learning.line(row).split(" | ")[1] == "`cartpole`"


def test_the_table_says_in_what_a_run_learned_otherwise_than_its_preset_does_now(tmp_path: Path) -> None:
    row = learning.row_of([folder_of(tmp_path / "a")], "")
    assert learning.as_shipped(row) and learning.called(row) == "`fast`"
    then = {**row, "settings": {**row["settings"], "n_step": 1}}
    assert learning.line(then).split(" | ")[1] == "`fast`, n_step 1" and not learning.as_shipped(then)


def test_the_table_names_the_preset_that_has_a_runs_settings_now(tmp_path: Path) -> None:
    row = learning.row_of([folder_of(tmp_path / "a")], "")
    then = {**row, "settings": {**row["settings"], **learning.settings(replace(load_preset("cpu"), env="Pong"))}}
    assert learning.called(then) == "`cpu`" and learning.as_shipped(then)
    then["settings"]["learning_rate"] = 2.5e-4
    assert learning.called(then) == "`cpu`, learning_rate 0.00025" and not learning.as_shipped(then)


def test_a_score_has_its_interval_and_several_have_their_median_and_range() -> None:
    assert learning.scores([]) == "not evaluated"
    assert learning.scores([1.234]) == "1.23"
    assert learning.scores([1_054.35], [[980.6, 1_126.8]]) == "1,054 (95 % 981 to 1,127)"
    assert learning.scores([3.0, 1.0, 999.6], [[0, 1]] * 3) == "3 (median of 3, 1 to 1,000)"
    assert learning.span([7_662, 12.345], 1) == "12.3 to 7,662"


def folder_of(path: Path, *, command: str = "", evaluations: tuple[dict, ...] = (), **environment: object) -> Path:
    """What a run of Pong leaves of which a row is made."""
    (path / "eval").mkdir(parents=True)
    status = dict.fromkeys(learning.FIGURES, 1) | {"state": "finished", "env": "Pong-v5", "preset": "fast"}
    (path / "status.json").write_text(json.dumps(status))
    where = {"commit": "1", "cpu": "c", "gpu": None, "cores": 4} | environment
    (path / "environment.json").write_text(json.dumps(where))
    (path / "command.txt").write_text(f"fastdqn train --env Pong --seed 1 --run-dir x {command}\n")
    (path / "config.toml").write_text(replace(load_preset("fast"), env="Pong").to_toml())
    for number, evaluation in enumerate(evaluations):
        result = evaluation_result(**{"checkpoint_step": 1, **evaluation})
        (path / "eval" / f"{number}.json").write_text(json.dumps(result))
    return path


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"commit": "2"}, "commit: the runs have several, 1; 2"),
        ({"cpu": "d"}, "cpu: the runs have several, c; d"),
        ({"gpu": "g"}, "gpu: the runs have several, None; g"),
        ({"cores": 8}, "cores: the runs have several, 4; 8"),
        ({"command": "--n-step 1"}, "command: .* --env Pong; .* --env Pong --n-step 1"),
        ({"evaluations": ({"protocol": "nature"},)}, "protocol: the runs have several, nature; run"),
        ({"evaluations": ({"epsilon": 0.05},)}, "epsilon: the runs have several, 0.001; 0.05"),
        ({"evaluations": ({"episodes": 8},)}, "episodes: the runs have several, 100; 8"),
        ({}, "protocol: the runs have several, None; run"),
    ],
)
def test_runs_that_differ_in_more_than_their_seeds_make_no_row(tmp_path: Path, other: dict, message: str) -> None:
    first = folder_of(tmp_path / "a", evaluations=({"protocol": "run"},))
    with pytest.raises(SystemExit, match=message):
        learning.row_of([first, folder_of(tmp_path / "b", **other)], "")


def test_the_row_has_the_evaluation_by_the_protocol_asked_for_and_by_natures_of_an_atari_game(tmp_path: Path) -> None:
    nature, own = {"protocol": "nature", "score_mean": 2}, {"protocol": "run", "score_mean": 3}
    selecting = {"protocol": "nature", "score_mean": 4, "seed": runs.SELECTION_SEED}
    folder = folder_of(tmp_path / "a", evaluations=(nature, own, selecting))

    def score(protocol: str | None) -> float:
        return learning.row_of([folder], "", protocol)["runs"][0]["evaluation"]["score_mean"]

    assert (score(None), score("nature"), score("run")) == (2, 2, 3)
    with pytest.raises(SystemExit, match="protocol=sticky: a has no such evaluation"):
        score("sticky")


@pytest.mark.parametrize(
    ("made", "counts"), [("sticky", "sticky"), ("noop", "noop"), ("noop sticky", "sticky"), ("sticky run", "run")]
)
def test_an_evaluation_by_whatever_protocol_counts_and_is_named(tmp_path: Path, made: str, counts: str) -> None:
    evaluations = tuple({"protocol": name, "score_mean": 4} for name in made.split())
    row = learning.row_of([folder_of(tmp_path / "a", evaluations=evaluations)], "")
    assert row["runs"][0]["evaluation"]["protocol"] == counts
    assert f"; protocol {counts}" in learning.line(row)
    nature = {**row, "runs": [{**row["runs"][0], "evaluation": {**row["runs"][0]["evaluation"], "protocol": "nature"}}]}
    assert "protocol" not in learning.line(nature)


def test_an_evaluation_of_another_agent_than_the_last_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", evaluations=({"protocol": "run", "checkpoint_step": 0},))
    with pytest.raises(
        SystemExit, match="checkpoint_step=0: the newest run evaluation of a is not of its end at env step 1"
    ):
        learning.row_of([folder], "")
