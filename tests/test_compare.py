"""What compare says of groups of runs, and what it refuses to say."""

import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from run_by_hand import log_row, write_evaluation, write_run

from fastdqn.analysis.history import load
from fastdqn.atari import RANDOM_AND_HUMAN_SCORES
from fastdqn.cli import main
from fastdqn.run_folder import RunFolder, in_use
from fastdqn.runs import evaluations


def compare(capsys: pytest.CaptureFixture, *argv: str | Path) -> dict:
    assert main(["compare", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def seeds(folder: Path, name: str, levels: list[float], **changes) -> list[Path]:
    """One run per level; each scores its level in all of 150 games."""
    return [
        write_run(folder / f"{name}{seed}", [level] * 150, seed=seed, **changes)
        for seed, level in enumerate(levels, start=1)
    ]


def test_the_row_of_a_group_is_the_iqm_of_its_seeds_last_hundred_games(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / str(s), [0.0] * 50 + [float(s)] * 100, seed=s) for s in (1, 2, 3, 4, 9)]
    figures = compare(capsys, *runs)
    (row,) = figures["groups"]
    assert (row["group"], row["game"], row["seeds"], row["score_of"]) == ("catch", "Catch", 5, ["training"])
    assert row["iqm"] == 3.0 and row["mean"] == 3.8  # 1 and 9 are cut
    low, high = row["ci95"]
    assert 1 <= low < 3 < high <= 9
    assert row["human_normalized"] is None and row["frames"] == 1_200
    assert [run["value"] for run in row["runs"]] == [1, 2, 3, 4, 9]


def test_overlapping_intervals_are_not_settled_and_separate_ones_are(tmp_path: Path, capsys) -> None:
    runs = seeds(tmp_path, "a", [1, 2, 3], n_step=1) + seeds(tmp_path, "b", [2, 3, 4], n_step=2)
    runs += seeds(tmp_path, "c", [11, 12, 13], n_step=3)
    runs += seeds(tmp_path, "d", [4, 5, 6], n_step=4)  # begins where the one before ends
    notes = compare(capsys, *runs, "--group-by", "n_step")["notes"]
    assert "n_step 2 against n_step 1 on Catch: the difference is not settled, their intervals overlap" in notes
    assert "n_step 3 against n_step 1 on Catch: higher, their intervals do not overlap" in notes
    assert "n_step 4 against n_step 2 on Catch: the difference is not settled, their intervals overlap" in notes


def test_fewer_than_three_seeds_are_too_few_to_tell(tmp_path: Path, capsys) -> None:
    runs = seeds(tmp_path, "a", [1], n_step=1) + seeds(tmp_path, "b", [8, 9], n_step=2)
    assert main(["compare", *map(str, runs), "--group-by", "n_step"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:6] == ["n_step", "2", "Catch", "2", "8.5", "-"]
    figures = compare(capsys, *runs, "--group-by", "n_step")
    assert "n_step 1 on Catch: 1 seed, too few to tell; train at least 3" in figures["notes"]
    assert "n_step 2 on Catch: 2 seeds, too few to tell; train at least 3" in figures["notes"]
    assert not any("against" in note for note in figures["notes"])
    assert [row["ci95"] for row in figures["groups"]] == [None, None]  # of two seeds it would be the two


def test_games_that_chose_an_agent_do_not_count_where_others_scored_it(tmp_path: Path) -> None:
    (run,) = seeds(tmp_path, "a", [1])
    write_evaluation(run, 5)
    result = run / "eval" / "step-000000001000__run__s1.json"
    fields = json.loads(result.read_text())
    for name, changes in (("z-old", {"seed": 1}), ("a-new", {"seed": 1, "score_mean": 7.0}),
                          ("zz-select", {"seed": 0, "score_mean": 9.0, "episodes": 32})):  # fmt: skip
        (run / "eval" / f"{name}.json").write_text(json.dumps(fields | changes))
        os.utime(run / "eval" / f"{name}.json", ns=(10**18, 10**18 + len(changes)))
    result.unlink()
    assert [one["score_mean"] for one in evaluations(run)] == [9.0, 5.0, 7.0] and "_time" not in evaluations(run)[0]


def test_the_last_evaluation_made_of_the_newest_checkpoint_counts(tmp_path: Path, capsys) -> None:
    (run,) = seeds(tmp_path, "a", [1])
    names = {"sticky": 5, "nature": 6, "run": 7}
    for protocol, mean in names.items():
        write_evaluation(run, mean, protocol=protocol)
    write_evaluation(run, 9, step=900)

    def counts(*made: str) -> float:
        """The score of a run whose evaluations were made in this order."""
        for place, name in enumerate(made):
            os.utime(run / "eval" / f"step-{name}__s1.json", ns=(10**18, 10**18 + place))
        return compare(capsys, run)["groups"][0]["iqm"]

    of = {name: f"000000001000__{name}" for name in names}
    older = "000000000900__run"  # of `eval --checkpoint best`, or its copy came last
    assert counts(of["run"], of["sticky"], of["nature"], older) == 6
    assert counts(older, of["sticky"], of["nature"], of["run"]) == 7
    assert counts(of["nature"], of["run"], of["sticky"], older) == 5
    for path in (run / "eval").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    assert compare(capsys, run)["groups"][0]["iqm"] == 5  # of equal times the last by name


def test_the_newest_evaluation_counts_where_there_is_one_and_the_table_says_so(tmp_path: Path, capsys) -> None:
    runs = seeds(tmp_path, "a", [1, 2, 3])
    for run, mean in zip(runs, (5, 6, 7), strict=True):
        write_evaluation(run, 50, step=900)
        write_evaluation(run, mean, step=1_000)
    (runs[0] / "eval" / ".half.json").write_text('{"score_me')  # what a writer has begun
    (row,) = compare(capsys, *runs)["groups"]
    assert row["iqm"] == 6 and row["score_of"] == ["eval run, epsilon 0.001, 100 games"]
    (row,) = compare(capsys, *runs, "--score", "training")["groups"]
    assert row["iqm"] == 2 and row["score_of"] == ["training"]
    (runs[0] / "eval" / "step-000000001000__run__s1.json").unlink()
    (runs[0] / "eval" / "step-000000000900__run__s1.json").unlink()
    assert compare(capsys, *runs, "--score", "eval")["groups"][0]["seeds"] == 2


def test_scores_of_two_protocols_are_not_averaged(tmp_path: Path, capsys) -> None:
    runs = seeds(tmp_path, "a", [1, 2, 3])
    for run, mean in zip(runs, (5, 6, 7), strict=True):
        write_evaluation(run, mean)
    write_evaluation(runs[0], 50, step=2_000, protocol="nature")
    figures = compare(capsys, *runs)
    assert (figures["groups"][0]["iqm"], figures["groups"][0]["score_of"]) == (2, ["training"])
    kinds = "eval nature, epsilon 0.001; eval run, epsilon 0.001"
    assert figures["notes"][0].startswith(f"the runs share no protocol ({kinds}): the scores are those of training")
    assert main(["compare", *map(str, runs), "--score", "eval"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: score=eval: the runs share no protocol ({kinds}); run") and line.count("\n") == 1
    for result in (runs[0] / "eval").iterdir():
        result.unlink()
    figures = compare(capsys, *runs)  # one is not evaluated
    assert figures["groups"][0]["score_of"] == ["training"] and "(training; eval run, epsilon" in figures["notes"][0]


def test_evaluations_of_one_protocol_may_differ_in_their_games(tmp_path: Path, capsys) -> None:
    runs = seeds(tmp_path, "a", [1, 2])
    for run, mean in zip(runs, (5, 6), strict=True):
        write_evaluation(run, mean)
    (result,) = (runs[0] / "eval").iterdir()
    result.write_text(result.read_text().replace('"episodes": 100', '"episodes": 1'))
    (row,) = compare(capsys, *runs)["groups"]
    assert row["iqm"] == 5.5 and row["score_of"] == [
        f"eval run, epsilon 0.001, {games}" for games in ("1 game", "100 games")
    ]


def test_time_to_reach_a_score_is_the_median_over_seeds(tmp_path: Path, capsys) -> None:
    # 100 games of 0, then of 2: the mean of the last 100 is 1 after 50 of them; the game i ends at 8 i frames, i s
    runs = [write_run(tmp_path / "1", [0.0] * 100 + [2.0] * 100, seed=1)]
    runs += [write_run(tmp_path / "2", [2.0] * 200, seed=2), write_run(tmp_path / "3", [0.0] * 200, seed=3)]
    (row,) = compare(capsys, *runs, "--reach", "1")["groups"]
    assert (row["reached"], row["reach_frames"], row["reach_seconds"]) == ("2/3", 150 * 8, 150.0)
    (row,) = compare(capsys, *runs[1:], "--reach", "1")["groups"]
    assert (row["reached"], row["reach_frames"], row["reach_seconds"]) == ("1/2", None, None)
    assert main(["compare", str(runs[1]), "--reach", "1"]) == 0
    assert "frames to 1" in capsys.readouterr().out


def test_human_normalised_scores_are_taken_together_over_games(tmp_path: Path, capsys) -> None:
    """A preset that plays Breakout like the human and Pong like chance has 50 %, each game's seeds resampled alone."""
    runs = []
    for game, share in (("Breakout", 1.0), ("Pong", 0.0)):
        random, human = RANDOM_AND_HUMAN_SCORES[game]
        runs += seeds(tmp_path, game, [random + share * (human - random)] * 3, preset="fast", env=game)
    figures = compare(capsys, *runs)
    assert [row["human_normalized"] for row in figures["groups"]] == pytest.approx([1.0, 0.0])
    (overall,) = figures["overall"]
    assert overall["games"] == ["Breakout", "Pong"] and overall["seeds"] == 3
    assert overall["iqm"] == pytest.approx(0.5) and overall["ci95"] == pytest.approx([0.5, 0.5])
    runs += seeds(tmp_path, "other", [5.0] * 3, preset="quick", env="Pong")
    assert compare(capsys, *runs)["overall"] == []  # quick has not played Breakout


def test_a_games_human_normalised_score_is_that_of_the_iqm(tmp_path: Path, capsys) -> None:
    random, human = RANDOM_AND_HUMAN_SCORES["Breakout"]
    (row,) = compare(capsys, *seeds(tmp_path, "a", [1, 2, 3, 4, 90], preset="fast", env="Breakout"))["groups"]
    assert (row["iqm"], row["mean"]) == (3.0, 20.0)
    assert row["human_normalized"] == pytest.approx((3.0 - random) / (human - random))


def test_frames_speeds_and_times_are_medians_over_the_runs_in_emulator_frames(tmp_path: Path, capsys) -> None:
    """On Atari, where an env step is 4 of them; game i ends at env step 8 i, and the log is 10 games behind."""
    runs = []
    for games, seconds in ((100, 90.0), (110, 50.0), (200, 19.0)):
        runs.append(write_run(tmp_path / str(games), [2.0] * games, seed=games, preset="fast"))
        row = log_row(games - 10, 2.0, action_repeat=4) | {"wall_seconds": seconds}
        (runs[-1] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (row,) = compare(capsys, *runs, "--reach", "2")["groups"]
    assert row["frames"] == 110 * 8 * 4
    assert row["frames_per_second"] == 100 * 8 * 4 / 50  # of 32, 64 and 320
    assert (row["reach_frames"], row["reach_seconds"]) == (100 * 8 * 4, 100.0)


def test_a_runs_frames_are_the_most_that_any_of_its_files_knows_of(tmp_path: Path) -> None:
    """Games may be long, and the status of a run that was killed is old."""
    for number, (games, status, expected) in enumerate(((3, 0, 40), (9, 0, 72), (3, 99, 99), (0, 0, 40))):
        run = write_run(tmp_path / str(number), [1.0] * games, frames=status)
        (run / "metrics.jsonl").write_text(json.dumps(log_row(5, 1.0)) + "\n")
        assert load([str(run)])[0].frames == expected


def test_groups_that_are_not_what_they_seem_are_named(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / "1", [1.0] * 10, seed=1), write_run(tmp_path / "2", [1.0] * 20, seed=1, gamma=0.9)]
    runs += [write_run(tmp_path / "3", [1.0] * 10, seed=2, state="running")]
    notes = compare(capsys, *runs, "--group-by", "preset")["notes"]
    assert "catch on Catch has one seed twice: its runs are not independent, their mean counts once" in notes
    assert "catch on Catch mixes settings: its runs differ in gamma" in notes
    assert "the runs on Catch have trained for different numbers of frames" in notes
    assert "3 has not finished: cut off, 80 frames" in notes


def test_when_runs_save_and_are_evaluated_is_no_setting_unless_new_games_begin_then(tmp_path: Path, capsys) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"checkpoint_period_frames": 10_000, "ui": "quiet"},
        {"eval_period_frames": 5_000, "eval_episodes": 8},
    ]
    for name, deterministic in (("a", False), ("b", True)):
        runs = [
            write_run(tmp_path / f"{name}{seed}", [1.0] * 10, seed=seed, deterministic=deterministic, **some)
            for seed, some in enumerate(changes)
        ]
        mixed = [note for note in compare(capsys, *runs, "--group-by", "preset")["notes"] if "mixes settings" in note]
        expected = "catch on Catch mixes settings: its runs differ in checkpoint_period_frames, eval_period_frames"
        assert mixed == ([expected] if deterministic else [])
        assert len(compare(capsys, *runs)["groups"]) == (3 if deterministic else 1)


def test_runs_alike_in_all_but_seed_and_game_form_a_group_called_by_what_tells_it_apart(tmp_path: Path, capsys) -> None:
    changes: dict[str, dict[str, Any]] = {
        "fast": {},
        "fast, learning_rate 0.001, dueling True": {"learning_rate": 1e-3, "dueling": True},
        "fast, learning_rate 0.001": {"learning_rate": 1e-3},
        "rainbow": {"preset": "rainbow"},  # which differs from fast in much
    }
    runs = []
    for game, gamma in (("Pong", 0.9), ("Breakout", 0.99)):  # one for all runs of a game
        for number, some in enumerate(changes.values()):
            values = {"preset": "fast", "env": game, "gamma": gamma, **some}
            folder = tmp_path / f"{game}{number}"
            runs += [write_run(folder / f"s{seed}", [1.0] * 10, seed=seed, **values) for seed in (1, 2)]
    figures = compare(capsys, *runs)
    found = [(row["game"], row["group"], row["seeds"]) for row in figures["groups"]]
    assert found == [(game, label, 2) for game in ("Pong", "Breakout") for label in changes]
    assert [row["group"] for row in figures["overall"]] == list(changes)
    assert not any("mixes settings" in note for note in figures["notes"])


@pytest.mark.parametrize("status", [None, "starting", "running"])
def test_a_run_is_running_while_its_process_holds_the_folder_and_cut_off_afterwards(
    status: str | None, tmp_path: Path, capsys
) -> None:
    run = write_run(tmp_path / "run", [1.0] * 10, state=status or "")
    if status is None:
        (run / "status.json").unlink()
    folder = RunFolder(run, resumed=True)
    assert f"run has not finished: {status or 'running'}, 80 frames" in compare(capsys, run)["notes"]
    folder.release()
    assert "run has not finished: cut off, 80 frames" in compare(capsys, run)["notes"]
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "cut off"
    RunFolder(run, resumed=True).release()  # looking at it does not keep the folder
    (run / "status.json").write_text('{"state": "interrupted"}')
    assert "run has not finished: interrupted, 80 frames" in compare(capsys, run)["notes"]


def test_a_reader_that_looks_at_a_folder_does_not_keep_a_run_from_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0])
    with (run / ".lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not in_use(run)  # one reader is no run to another
        pool.submit(lambda: (time.sleep(0.01), fcntl.flock(lock, fcntl.LOCK_UN)))
        RunFolder(run, resumed=True).release()


def test_a_seed_that_ran_three_times_is_one_seed(tmp_path: Path, capsys) -> None:
    runs = []
    for game in ("Breakout", "Pong"):
        runs += [write_run(tmp_path / f"{game}{i}", [float(i)] * 10, preset="fast", env=game, seed=7) for i in range(3)]
    figures = compare(capsys, *runs)
    assert [row["seeds"] for row in figures["groups"]] == [1, 1] and len(figures["groups"][0]["runs"]) == 3
    assert figures["overall"][0]["seeds"] == 1
    assert [row["ci95"] for row in (*figures["groups"], *figures["overall"])] == [None, None, None]
    assert "fast on Pong: 1 seed, too few to tell; train at least 3" in figures["notes"]
    assert "fast on Pong has one seed twice: its runs are not independent, their mean counts once" in figures["notes"]


def test_a_seed_that_ran_again_counts_once_with_the_mean_of_its_runs(tmp_path: Path, capsys) -> None:
    once = [write_run(tmp_path / f"{s}", [float(s)] * 10, seed=s) for s in (2, 3, 5, 9)]
    again = [write_run(tmp_path / f"again{s}", [s] * 10, seed=5) for s in (4.0, 6.0)]
    (row,), (more,) = (compare(capsys, *runs)["groups"] for runs in (once, [*once, *again]))
    assert row["seeds"] == more["seeds"] == 4 and len(more["runs"]) == 6
    assert [row[name] for name in ("iqm", "mean", "ci95")] == [more[name] for name in ("iqm", "mean", "ci95")]


def test_markdown_and_text_hold_the_same_cells(tmp_path: Path, capsys) -> None:
    runs = list(map(str, seeds(tmp_path, "a", [1, 2, 3])))
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert main(["compare", *runs, "--format", "markdown"]) == 0
    markdown = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in markdown[2].strip("|").split("|")]
    assert cells == ["catch", "Catch", "3", "2", "1 to 3", "-", "1.20k", "8", "training"]
    assert set(markdown[1]) == {"|", "-", " "}
    assert text.splitlines()[1].split("  ")[0] == "catch" and "1 to 3" in text
    assert "Some CPU" in text and "Agarwal" in text


def test_a_machine_of_one_core_is_no_plural(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0])
    assert compare(capsys, run)["hardware"] == ["4 cores of Some CPU"]
    (run / "environment.json").write_text(json.dumps({"cpu": "Some CPU", "cores": 1}))
    assert compare(capsys, run)["hardware"] == ["1 core of Some CPU"]


def test_a_run_without_a_finished_game_is_left_out_and_alone_nothing_to_compare(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "begun", preset="cartpole", state="starting")
    (run / "episodes.csv").unlink()
    others = seeds(tmp_path, "a", [1, 2, 3])
    figures, without = compare(capsys, *others, run), compare(capsys, *others)
    assert figures == {**without, "notes": ["no finished game yet, left out: begun", *without["notes"]]}
    assert main(["compare", str(run), "--json"]) == 1
    assert capsys.readouterr() == ("", "error: nothing to compare: no finished game yet, left out: begun\n")


def test_a_groups_figures_are_of_the_runs_with_a_score_and_the_others_are_counted(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / f"{s}", [2.0] * 200, seed=s) for s in (1, 2, 3)]
    for run in runs[:2]:
        write_evaluation(run, 5)
    figures = compare(capsys, *runs[:2], "--score", "eval", "--reach", "2")
    (runs[2] / "episodes.csv").unlink()  # no game has ended yet
    runs.append(write_run(tmp_path / "4", [0.0] * 20, seed=3, gamma=0.9))  # and one that is not evaluated
    (runs[3] / "metrics.jsonl").write_text(json.dumps(log_row(20, 0.0) | {"wall_seconds": 2_000.0}) + "\n")
    more = compare(capsys, *runs, "--score", "eval", "--reach", "2")
    assert more["groups"] == figures["groups"] and more["groups"][0]["reached"] == "2/2"
    assert more["notes"] == ["no evaluation yet, left out: 3, 4", *figures["notes"]]


def test_json_stands_alone_on_stdout_and_a_wrong_run_is_one_line(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0] * 3)
    assert main(["compare", str(run), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["group_by"] == "settings" and "IQM" in printed.err
    assert main(["compare", str(run), str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err.startswith(f"error: run={tmp_path}/gone: no such folder")
