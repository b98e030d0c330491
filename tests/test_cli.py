"""The command line as a user meets it: exit codes, messages, units, and what `--help` imports."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdqn import __version__
from fastdqn.arguments import expand_counts, preset_of, train_config
from fastdqn.checkpoint import load
from fastdqn.cli import main
from fastdqn.config import SECTIONS, Config, load_preset


def fastdqn(*argv: str, timeout: float = 180) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "fastdqn", *argv], capture_output=True, text=True, timeout=timeout)


def test_help_lists_every_flag_and_imports_neither_torch_nor_envpool() -> None:
    script = (
        "import sys\nfrom fastdqn.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'envpool', 'numpy'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in Config.__dataclass_fields__:
        assert f"--{flag.replace('_', '-')}" in done.stdout
    assert "Rainbow" in done.stdout and "[γ]" in done.stdout
    sections = dict(re.findall(r"─ (\w+) options ─+╮\n(.*?)╰", done.stdout, re.DOTALL))
    assert list(sections) == [*SECTIONS.values()]
    for title, flag in {
        "replay": "--prioritized",
        "network": "--head",
        "games": "--sticky-actions",
        "output": "--ui",
    }.items():
        assert f"│ {flag}" in sections[title]
    assert "config.toml, whose run_dir" in done.stdout  # two lines of the source, one paragraph here


def test_no_command_and_help_print_the_commands(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert "train" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdqn {__version__}\n"


def test_an_ascii_stdout_gets_the_help_with_what_it_can_show() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fastdqn", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "factor [?]" in done.stdout, done.stderr


def test_ctrl_c_where_nothing_has_to_be_saved_is_one_word_and_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from fastdqn import evaluation\n"
        "from fastdqn.cli import main\n"
        "evaluation.set_up = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['eval', sys.argv[1]]))"
    )
    (tmp_path / "config.toml").write_text("")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_mistyped_run_is_told_before_torch_is_loaded() -> None:
    for words in (["eval"], ["resume"], ["play"], ["export"], ["record", "-o", "game.gif"]):
        script = f"import sys; from fastdqn.cli import main; main({words!r} + ['nothing']); assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0 and "no such folder" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--env", ""], "error: env=: names no game; give Breakout, or another that fastdqn envs lists"),
        (["train", "--env", "Pog"], "error: env=Pog: no such game; the nearest are Pong"),
        (["train", "--preset", "fasst"], "error: preset=fasst: no such preset; the nearest are fast"),
        (["train", "--gamma", "1.5"], "error: gamma=1.5: give a number from 0 to 1"),
        (
            ["train", "--preset", "fast", "--learning-rate", "1e-5"],
            "error: learning_rate_end=2e-05: is above learning_rate=1e-05, which would rise; give less, or 0",
        ),
        (["train", "--preset", "tests"], "error: preset=tests: no such preset; a file of settings, as a run's config"),
        (["train", "--learning-starts", "100"], "error: learning_starts=100: 64 envs need 8 rows each"),
        (["train", "--replay-capacity", "9B"], "error: replay_capacity=9000000000: needs"),
        (["train", "--env", "CartPole-v1", "--fire-after-life-loss", "on"], "error: fire_after_life_loss=on"),
        (
            ["train", "--env", "CartPole-v1", "--sticky-actions", "0.25"],
            "error: sticky_actions=0.25: CartPole-v1 is no Atari",
        ),
        (
            ["train", "--env", "CartPole-v1", "--full-action-set"],
            "error: full_action_set=True: CartPole-v1 is no Atari",
        ),
        (
            ["train", "--eval-episodes", "500"],
            "error: eval_episodes=500: nothing is evaluated; give --eval-period-frames",
        ),
        (["train", "--lr", "1e-3"], "error: --lr: no such flag; use --learning-rate\n"),
        (["profile", "--game=Pong"], "error: --game: no such flag; use --env\n"),
        (
            ["train", "--prioritized", "True"],
            "error: prioritized=True: a switch takes no value; use --prioritized or --no-",
        ),
        (
            ["train", "--no_double", "false"],
            "error: double=false: a switch takes no value; use --double or --no-double\n",
        ),
        (
            ["train", "--total-frames", "40X"],
            "error: total_frames=40X: give a whole number, as 40M, 250k, 1e6 or 5000\n",
        ),
        (["eval", "run", "--episodes=ten"], "error: episodes=ten: give a whole number"),
        (
            ["train", "--polyak", "0.01", "--target-update-period", "500"],
            "error: target_update_period=500: has no effect",
        ),
        (["train", "--device", "cuda"], "error: device=cuda"),
        (["eval", "no/such/run"], "error: run=no/such/run: no such folder, here or under runs/"),
        (["trian"], "error: trian: no such command"),
    ],
)
def test_a_wrong_value_is_one_line_on_stderr_and_exit_code_2(argv: list[str], message: str, capsys) -> None:
    import torch

    if "cuda" in argv and torch.cuda.is_available():
        argv, message = ["train", "--gamma", "7"], "error: gamma=7"
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err


def test_a_capacity_that_does_not_fit_names_one_that_does(capsys: pytest.CaptureFixture) -> None:
    main(["train", "--replay-capacity", "9B"])
    message = capsys.readouterr().err
    assert "GB on cpu" in message or "GB on cuda" in message
    largest = int(message.split("--replay-capacity ")[1])
    assert 0 < largest < 9_000_000_000 and largest % 64 == 0


def test_a_wrong_flag_gives_the_parsers_message_and_exit_code_2() -> None:
    done = fastdqn("train", "--num-env", "64")
    assert done.returncode == 2 and "num-env" in done.stderr and "Traceback" not in done.stderr


def test_counts_take_human_units_after_count_flags_only() -> None:
    counts = {"total-frames", "replay-capacity"}
    argv = [
        "--total-frames",
        "40M",
        "--replay_capacity=1e6",
        "--run-dir",
        "40M",
        "--total-frames",
        "2.5k",
        "--seed",
        "1k",
    ]
    assert expand_counts(argv, counts) == [
        "--total-frames", "40000000", "--replay_capacity=1000000", "--run-dir", "40M", "--total-frames", "2500",
        "--seed", "1k",
    ]  # fmt: skip
    assert expand_counts(["--seed", "-1", "--max-episode-steps=None"], {"seed", "max-episode-steps"}) == [
        "--seed", "-1", "--max-episode-steps=None",
    ]  # fmt: skip


def test_a_count_keeps_every_digit() -> None:
    for seed in ("9007199254740993", "9223372036854775807"):  # beyond 2^53 a float would change them
        assert expand_counts(["--seed", seed], {"seed"}) == ["--seed", seed]
    assert expand_counts(["--seed", "1.5e6"], {"seed"}) == ["--seed", "1500000"]


@pytest.mark.parametrize("text", ["1_000_", "1__0", "1e400", "1.5"])
def test_what_is_no_whole_count_is_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--total-frames", text]) == 2
    assert capsys.readouterr().err.startswith(f"error: total_frames={text}: give a whole number")


def test_of_two_presets_the_last_gives_the_values_too() -> None:
    argv = ["--preset", "quick", "--preset=catch"]
    assert preset_of(argv) == "catch"
    assert train_config(argv, prog="fastdqn train") == load_preset("catch")


def test_fastdqn_train_with_nothing_else_trains_breakout_to_its_first_updates(tmp_path) -> None:
    """`fastdqn train --num-envs 64` at full size: the 7 GB ring, the compiled network, preset fast."""
    run = tmp_path / "run"
    done = fastdqn("train", "--num-envs", "64", "--total-frames", "84k", "--run-dir", str(run), "--json", timeout=420)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    expected = {"run_dir", "frames", "env_steps", "updates", "episodes", "score_mean_100", "frames_per_second"}
    assert expected | {"wall_seconds"} <= summary.keys()
    assert summary["env_steps"] >= 21_000 and summary["frames"] == 4 * summary["env_steps"]
    assert summary["updates"] == (summary["env_steps"] - 20_000) * 4 // 256 > 0  # at replay ratio 4
    assert summary["failed_slots"] == 0
    assert "7.06 GB" in done.stderr and "Breakout-v5: 4 actions" in done.stderr and "eta=" in done.stderr
    assert load(run / "checkpoints").state["updates"] == summary["updates"]
    for name in ("config.toml", "command.txt", "environment.json", "metrics.jsonl", "episodes.csv", "status.json"):
        assert (run / name).stat().st_size > 0
    again = fastdqn("train", "--run-dir", str(run))
    assert again.returncode == 2 and "already holds a run" in again.stderr


def test_ctrl_c_while_compiling_is_an_interruption_though_it_ends_the_compiler_too(tmp_path: Path) -> None:
    dying, called = tmp_path / "g++", tmp_path / "called"
    dying.write_text(f"#!/bin/sh\ntouch {called}\nsleep 1\nexit 1\n")
    dying.chmod(0o755)
    command = [sys.executable, "-m", "fastdqn", "train", "--preset", "catch", "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "CXX": str(dying), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not called.exists():
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "error:" not in err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "starting"
    resumed = fastdqn("resume", str(tmp_path / "run"))
    assert resumed.returncode == 1 and "ended before its first save: begin again" in resumed.stderr


def test_an_error_is_one_line_and_on_demand_shows_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["eval", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    monkeypatch.setenv("FASTDQN_TRACEBACK", "1")
    assert main(["eval", str(tmp_path / "none")]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last == line


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with (tmp_path / "full").open("w") as full:
        command = [sys.executable, "-B", "-m", "fastdqn", "presets"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, preexec_fn=no_room)
    assert (ended.returncode, ended.stderr) == (1, "error: File too large; free some space\n")


def test_closed_standard_streams_change_nothing_and_no_file_gets_their_numbers(tmp_path: Path) -> None:
    """As some supervisors start programs: no input, no output, no place for errors."""
    said = tmp_path / "said"
    script = f"""import os, sys
from fastdqn.cli import main
code = main(["presets"])
with open({str(said)!r}, "w") as file:
    file.write(f"{{code}} {{file.fileno() > 2}}")"""
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", script]
    assert subprocess.run(command, timeout=60).returncode == 0
    assert said.read_text() == "0 True"


def test_help_is_a_word_too(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert main(["help"]) == 0 and capsys.readouterr().out == usage
    with pytest.raises(SystemExit) as ended:
        main(["help", "eval"])
    assert ended.value.code == 0 and "--protocol" in capsys.readouterr().out


def test_several_runs_where_one_is_meant_are_refused_with_the_newest(tmp_path: Path, capsys) -> None:
    for age, name in ((200, "a"), (100, "b"), (300, "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("")
        os.utime(tmp_path / name / "config.toml", (10_000 - age, 10_000 - age))
    assert main(["eval", *(str(tmp_path / name) for name in "abc"), "--episodes", "3"]) == 2
    assert f"eval takes one, here are 3; use the newest, {tmp_path / 'b'}," in capsys.readouterr().err


def test_a_compiler_that_fails_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    false = tmp_path / "g++"
    false.write_text("#!/bin/sh\necho 'fatal error: Python.h' >&2\nexit 1\n")
    false.chmod(0o755)
    command = [sys.executable, "-m", "fastdqn", "train", "--preset", "catch", "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "CXX": str(false), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run([*command, "--ui", "quiet"], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert (
        "compile=True" in line and "fastdqn doctor" in line and "--no-compile" in line and "at learner.py, line" in line
    )
    taken = [*command, "--no-compile", "--total-frames", "2k", "--ui", "quiet", "--torch-threads", "1"]
    again = subprocess.run(taken, capture_output=True, text=True, timeout=120)  # the way out works with the same folder
    assert again.returncode == 0, again.stderr
    lost = subprocess.run(taken, capture_output=True, text=True, timeout=120)
    assert lost.returncode == 2 and "already holds a run; fastdqn resume goes on with it" in lost.stderr
