"""Curves of runs: what is drawn, in which groups, and from files that are half written."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from matplotlib.image import imread
from run_by_hand import write_run

from fastdqn.analysis import history
from fastdqn.analysis.charts import Line, Panel, ascii_chart, limits, svg_chart, ticks
from fastdqn.analysis.statistics import Curve, mean_curve
from fastdqn.cli import main
from fastdqn.units import short


def panel_of(*values: list[float], levels: dict[str, float] | None = None) -> Panel:
    curves = [Curve(np.arange(float(len(one))), np.array(one, np.float64)) for one in values]
    return Panel("Game", "frames", "score", [Line("group", curves, mean_curve(curves))], levels or {})


def printed_json(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_two_presets_are_two_curves_with_bands_and_a_picture_with_colours(tmp_path: Path, capsys) -> None:
    runs = [
        write_run(tmp_path / f"{preset}{seed}", [level + seed] * 120, preset=preset, seed=seed)
        for preset, level in (("catch", 0.0), ("cartpole", 10.0))
        for seed in (1, 2, 3)
    ]
    argv = ["plot", *map(str, runs), "--json", "-o", str(tmp_path / "out.png")]
    assert main(argv) == 0
    figures = printed_json(capsys)
    assert [panel["title"] for panel in figures["panels"]] == ["Catch", "CartPole"]
    catch = figures["panels"][0]["groups"][0]
    assert catch == {"label": "catch (mean of 3 seeds)", "seeds": 3, "x": 960.0, "mean": 2.0, "ci95": [1.0, 3.0]}
    pixels = imread(tmp_path / "out.png")[..., :3].reshape(-1, 3)
    assert len(np.unique(pixels.round(2), axis=0)) > 50
    blue = np.abs(pixels - np.array([0, 0x72 / 255, 0xB2 / 255])).max(axis=1) < 0.02
    assert blue.sum() > 500  # the mean of the first group


def test_groups_form_by_any_field_and_share_a_panel(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / str(n), [1.0] * 10, n_step=n) for n in (1, 3, 5)]
    assert main(["plot", *map(str, runs), "--group-by", "n-step", "--ascii", "--json"]) == 0
    (panel,) = printed_json(capsys)["panels"]
    assert [group["label"] for group in panel["groups"]] == [f"n_step {n} (1 seed)" for n in (1, 3, 5)]


def test_a_group_has_one_mark_in_the_panels_of_all_games(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / "a", [1.0] * 10, env="Pong", preset="fast")]
    runs += [write_run(tmp_path / game, [1.0] * 10, env=game, preset="rainbow") for game in ("Pong", "Breakout")]
    assert main(["plot", *map(str, runs), "--ascii"]) == 0
    pong, breakout = capsys.readouterr().out.split("Breakout\n", 1)
    assert "* fast" in pong and "o rainbow" in pong and "o rainbow" in breakout and "* " not in breakout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", "xx\n"),
        ("metrics.jsonl", '{"global_step": 1}\n'),
        ("metrics.jsonl", "[]\n"),
        ("episodes.csv", "1.0\n"),
        ("episodes.csv", "a,b,c,d,e,f\n"),
    ],
)
def test_a_damaged_log_is_one_line_and_a_damaged_status_is_none(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = write_run(tmp_path / "run", [1.0] * 10)
    for other in ("status.json", "environment.json"):
        (run / other).write_text('{"state": "fin')
    for command in ("plot", "compare", "report"):
        out = (
            []
            if command == "compare"
            else ["-o", str(tmp_path / f"{command}.{'svg' if command == 'plot' else 'html'}")]
        )
        assert main([command, str(run), *out]) == 0
        whole = (run / name).read_text()
        (run / name).write_text(whole + text)
        capsys.readouterr()
        assert main([command, str(run), *out]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: run={run}: its logs cannot be read (") and line.count("\n") == 1
        (run / name).write_text(whole)


@pytest.mark.parametrize(("axis", "last"), [("frames", 4 * 960), ("steps", 960), ("wall", 2.0)])
def test_x_is_frames_or_env_steps_or_minutes(axis: str, last: float, tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0] * 120, preset="fast")
    assert main(["plot", str(run), "--x", axis, "--ascii", "--json"]) == 0
    assert printed_json(capsys)["panels"][0]["groups"][0]["x"] == last


@pytest.mark.parametrize(("preset", "label"), [("fast", "emulator frames"), ("catch", "env steps")])
def test_only_an_atari_game_has_emulator_frames(preset: str, label: str, tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0] * 20, preset=preset)
    assert main(["plot", str(run), "--ascii"]) == 0
    assert label in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert f">{label}<" in (run / "report.html").read_text()


def test_the_score_is_the_mean_of_the_last_hundred_games(tmp_path: Path) -> None:
    (one,) = history.load([str(write_run(tmp_path / "run", list(range(150))))])
    curve = history.score_curve(one, "steps")
    assert curve.y[-1] == np.mean(range(50, 150)) and curve.y[9] == np.mean(range(10))


def test_a_metric_lies_along_frames_env_steps_or_minutes_as_the_mean_of_its_last_rows(tmp_path: Path) -> None:
    """On Atari: row k, counted from 0, is of second 1 + 10 k, env step 8 (1 + 10 k) and four times as many frames."""
    (one,) = history.load([str(write_run(tmp_path / "run", [float(i) for i in range(40)], preset="fast"))])
    seconds = np.array([1.0, 11.0, 21.0, 31.0])
    for axis, x in (("frames", 32 * seconds), ("steps", 8 * seconds), ("wall", seconds / 60)):
        curve = history.metric_curve(one, "losses/q_values", axis, window=2)
        assert curve.x.tolist() == x.tolist()
        assert curve.y.tolist() == [0.0, 5.0, 15.0, 25.0]


def test_a_metric_is_found_by_its_short_name_and_a_wrong_one_names_the_nearest(tmp_path: Path, capsys) -> None:
    run = str(write_run(tmp_path / "run", [1.0] * 40))
    assert main(["plot", run, "--metric", "td_loss", "--window", "1", "--ascii", "--json"]) == 0
    assert printed_json(capsys)["panels"][0]["groups"][0]["mean"] == pytest.approx(1 / 31)
    assert main(["plot", run, "--metric", "td_los"]) == 2
    assert "error: metric=td_los: these runs logged no such metric; did you mean td_loss" in capsys.readouterr().err


def test_a_metric_is_found_though_the_last_row_does_not_have_it(tmp_path: Path, capsys) -> None:
    """As the score of an evaluation while training goes on, or the loss while a resumed run refills its replay."""
    run = write_run(tmp_path / "run", [1.0] * 40)
    *rows, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rows[1]["eval/score_mean"] = 7.0
    del last["losses/td_loss"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, last)))
    for name, mean in (("eval/score_mean", 7.0), ("score_mean", 7.0), ("td_loss", 1 / 21)):
        assert main(["plot", str(run), "--metric", name, "--window", "1", "--ascii", "--json"]) == 0
        assert printed_json(capsys)["panels"][0]["groups"][0]["mean"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plot"], "error: runs=: no run given"),
        (["plot", "runn"], "error: run=runn: no such folder, here or under runs/; did you mean run1"),
        (
            ["plot", "run1", "--group-by", "presett"],
            "error: group_by=presett: a config has no such field; did you mean",
        ),
        (["plot", "run1", "-o", "curve.bmp"], "error: out=curve.bmp: no such picture; end its name in .png"),
        (["plot", "run1", "-o", "no/such/curve.png"], "error: out=no/such/curve.png: cannot be written"),
        (["plot", "run1", "--window", "-1"], "error: window=-1: give a number from 1"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(argv, message, tmp_path: Path, monkeypatch, capsys) -> None:
    write_run(tmp_path / "runs" / "run1", [1.0])
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch, capsys) -> None:
    run, out = write_run(tmp_path / "run", [1.0] * 10), tmp_path / "p.png"
    out.write_bytes(b"before")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert main(["plot", str(run), "-o", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err and out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["p.png"]


def test_help_of_the_commands_that_look_back_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom fastdqn.cli import main\n"
        "for command in ('plot', 'compare', 'report'):\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit as e:\n        assert e.code == 0\n"
        "assert not {'torch', 'envpool', 'matplotlib'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--group-by" in done.stdout and "-o STR" in done.stdout


def test_a_name_with_dollars_is_written_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0] * 10)
    (run / "config.toml").write_text(
        (run / "config.toml").read_text().replace('preset = "catch"', "preset = '$x$ $\\frac$'")
    )
    assert main(["plot", str(run), "-o", str(tmp_path / "out.svg")]) == 0


def test_of_a_run_that_has_just_begun_nothing_is_drawn(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run")
    for name in ("episodes.csv", "metrics.jsonl", "status.json", "environment.json", "command.txt"):
        (run / name).unlink()
    words = {"score": "no game of these runs has ended yet", "td_loss": "these runs have not logged it yet"}
    for metric, missing in words.items():
        argv = ["plot", str(run), "--metric", metric, "--ascii", "-o", str(tmp_path / "out.png")]
        assert main(argv) == 1
        assert capsys.readouterr() == ("", f"error: metric={metric}: nothing to draw; {missing}\n")
    assert not (tmp_path / "out.png").exists()
    other = str(write_run(tmp_path / "other", [1.0] * 9, env="Breakout", preset="fast"))
    assert main(["plot", str(run), other, "--ascii"]) == 0
    assert "Catch\n  nothing to draw yet" in capsys.readouterr().out


def test_every_prefix_of_the_files_of_a_run_can_be_read(tmp_path: Path) -> None:
    """A reader may come at any moment: the last line can end anywhere."""
    run = write_run(tmp_path / "run", [1.0, -2.5, 3.0], games_per_row=1)
    texts = {name: (run / name).read_text() for name in ("episodes.csv", "metrics.jsonl")}
    for name, text in texts.items():
        for length in range(len(text)):
            (run / name).write_text(text[:length])
            (one,) = history.load([str(run)])
            whole = text[:length].count("\n")
            assert len(one.games.score if name == "episodes.csv" else one.rows) == max(
                whole - (name == "episodes.csv"), 0
            )
        (run / name).write_text(text)


def test_a_seed_without_a_game_is_not_in_the_mean(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / "1", [4.0] * 9, seed=1), write_run(tmp_path / "2", seed=2, state="running")]
    assert main(["plot", *map(str, runs), "--ascii", "--json"]) == 0
    (group,) = printed_json(capsys)["panels"][0]["groups"]
    assert (group["seeds"], group["mean"]) == (1, 4.0)


def test_the_mean_of_runs_that_differ_in_length_is_said_with_the_place_where_the_shortest_ends(
    tmp_path: Path, capsys
) -> None:
    one, like, longer = (
        str(write_run(tmp_path / str(seed), [float(seed)] * games, preset="fast", seed=seed))
        for seed, games in ((1, 200), (3, 202), (5, 400))
    )
    score = "score, mean of the last 100 games is"
    assert main(["plot", one, like, "--ascii"]) == 0
    assert f"(mean of 2 seeds): {score} 2 at the end\n" in capsys.readouterr().out
    assert main(["plot", one, longer, "--ascii"]) == 0
    where = "at 6.40k frames, where the shortest run ends"
    assert f"(mean of 2 seeds): {score} 3 {where}\n" in capsys.readouterr().out
    assert main(["plot", one, like, longer, "--ascii"]) == 0
    assert f"(mean of 3 seeds): {score} 3 {where} (95 % interval 1 to 5)" in capsys.readouterr().out
    assert main(["plot", longer, "--ascii"]) == 0
    assert f"(1 seed): {score} 5 at the end\n" in capsys.readouterr().out


def test_one_seed_twice_is_two_runs_and_not_two_seeds(tmp_path: Path, capsys) -> None:
    runs = [write_run(tmp_path / str(place), [1.0] * 10, seed=seed) for place, seed in enumerate((1, 1, 2))]
    assert main(["plot", *map(str, runs), "--ascii", "--json"]) == 0
    (group,) = printed_json(capsys)["panels"][0]["groups"]
    assert (group["label"], group["seeds"], group["ci95"]) == ("catch (mean of 3 runs)", 2, None)


def test_one_run_under_two_names_is_one(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0] * 10)
    (tmp_path / "again").symlink_to(run)
    assert main(["plot", str(run), str(tmp_path / "again"), "--ascii", "--json"]) == 0
    (group,) = printed_json(capsys)["panels"][0]["groups"]
    assert group["label"] == "catch (1 seed)"


def test_a_group_that_mixes_settings_says_so_beside_the_picture_and_in_it(tmp_path: Path, capsys) -> None:
    runs = [str(write_run(tmp_path / str(s), [1.0] * 10, seed=s, learning_rate=s / 1e4)) for s in (1, 2)]
    note = "catch on Catch mixes settings: its runs differ in learning_rate"
    assert main(["plot", *runs, "-o", str(tmp_path / "out.svg"), "--group-by", "preset", "--json"]) == 0
    printed = capsys.readouterr()
    assert f"note: {note}\n" in printed.err and json.loads(printed.out)["notes"] == [note]
    assert f"<!-- note: {note} -->" in (tmp_path / "out.svg").read_text()
    assert main(["compare", *runs, "--group-by", "preset", "--json"]) == 0
    assert note in printed_json(capsys)["notes"]
    for field in ("learning_rate", "settings"):
        assert main(["plot", *runs, "-o", str(tmp_path / "out.svg"), "--group-by", field, "--json"]) == 0
        printed = capsys.readouterr()
        assert "note" not in printed.err and json.loads(printed.out)["notes"] == []


def test_ascii_draws_the_mean_the_seeds_and_the_levels_where_they_are() -> None:
    rows = ascii_chart(panel_of([0, 10], [0, 20], levels={"random play": 0.0}), width=60, height=11).splitlines()
    assert rows[0] == "Game" and "* group" in rows[-1] and "- random play 0" in rows[-1]
    body = [row.split("|", 1)[1] for row in rows[1:12]]
    assert all(row.isascii() for row in rows)
    assert body[0].strip() == "" or set(body[0].strip()) == {"."}  # the higher seed alone reaches the top
    highest_mean = next(index for index, row in enumerate(body) if "*" in row)
    assert 2 <= highest_mean <= 4 and body[highest_mean].rindex("*") > 50  # 15 of 20, at the right end
    assert body[-1].count("-") > 30


def test_a_far_level_does_not_press_the_curves_into_a_line() -> None:
    near, far = (limits(panel_of([0.0, 2.0], levels={"human": level})) for level in (3.0, 300.0))
    assert near is not None and near.y[1] > 3 and near.levels == {"human": 3.0}
    assert far is not None and far.y[1] < 3 and far.levels == {}
    assert "human 300 (above)" in ascii_chart(panel_of([0.0, 2.0], levels={"human": 300.0}))


@pytest.mark.parametrize("value", [0.0, 5e-324, -1e99])
def test_there_are_axes_around_a_single_value(value: float) -> None:
    curve = Curve(np.array([abs(value)]), np.array([value]))
    found = limits(Panel("", "", "", [Line("", [curve], None)]))
    assert found is not None and found.x[0] < found.x[1] and found.y[0] < value < found.y[1]
    assert ticks(*found.x, 6) and ticks(*found.y, 6)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10, 6) == [0, 2, 4, 6, 8, 10]
    assert ticks(-21, 21, 5) == [-20, -10, 0, 10, 20]
    assert [short(tick) for tick in ticks(0, 40e6, 6)] == ["0", "10M", "20M", "30M", "40M"]
    for low, high in ((0, 0.003), (-1, 1), (17, 1234), (5e7, 6e7)):
        found = ticks(low, high, 6)
        assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high * (1 + 1e-12)


def test_svg_text_is_escaped() -> None:
    panel = Panel("", "<b>x", 'a"b', panel_of([0, 1]).lines, {"<i>": 0.5})
    drawing = svg_chart(panel)
    assert "<b>" not in drawing and "<i>" not in drawing and "&lt;b&gt;x" in drawing
