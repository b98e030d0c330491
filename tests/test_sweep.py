"""What a sweep plans and what each folder still needs; with Ray, that trials which were killed are resumed and compared."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_by_hand import write_run

from fastdqn import checkpoint, runs
from fastdqn.arguments import train_config
from fastdqn.atari import GAME_SETS, GAMES
from fastdqn.cli import main
from fastdqn.commands.sweep import Flags, Share, memory, shares, trial_configs, within_memory
from fastdqn.machine import preflight
from fastdqn.parts import needs
from fastdqn.run_folder import RunFolder
from fastdqn.sweeps import scale, trials
from fastdqn.sweeps.trials import Trial

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; pip install 'fastdqn[scale]'")
CATCH = ["--envs", "Catch", "--presets", "catch,cartpole", "--seeds", "2"]
SMALL = ["--", "--total-frames", "30k", "--checkpoint-period-frames", "3k", "--no-compile", "--torch-threads", "1"]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what `import ray` finds where it is not installed


def dry_run(capsys: pytest.CaptureFixture, *argv: str | Path) -> dict:
    assert main(["sweep", "--dry-run", "--json", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_sweep_over_a_file_of_settings_names_it_by_its_whole_path(tmp_path: Path, capsys, monkeypatch) -> None:
    """A trial may run in another folder, or on another machine that shares the disk."""
    (tmp_path / "mine.toml").write_text("n_step = 5\n")
    monkeypatch.chdir(tmp_path)
    (row,) = dry_run(capsys, "--envs", "Pong", "--presets", "mine.toml", "--seeds", "1", "-o", "out")["trials"]
    assert row["trial"] == "Pong__mine__s1"
    config = train_config(shlex.split(row["command"])[2:], prog="fastdqn train")
    assert config.n_step == 5 and str(tmp_path / "mine.toml") in row["command"]


def test_the_standard_sets_have_their_sizes_and_hold_each_other() -> None:
    sets = {name: set(games) for name, games in GAME_SETS.items()}
    assert [len(GAME_SETS[name]) for name in ("atari5", "atari10", "atari26", "atari57")] == [5, 10, 26, 57]
    assert [len(games) for games in sets.values()] == [5, 10, 26, 57]  # none twice
    added = {"Amidar", "Bowling", "Frostbite", "KungFuMaster", "Riverraid"}
    assert sets["atari10"] - sets["atari5"] == added
    assert sets["atari5"] < sets["atari10"] < sets["atari57"] < set(GAMES) and sets["atari26"] < sets["atari57"]


def test_a_dry_run_plans_every_trial_and_needs_no_ray(tmp_path: Path, capsys, no_ray) -> None:
    planned = dry_run(capsys, "--envs", "atari5,Pong", "--presets", "fast,rainbow", "--seeds", "2", "-o", tmp_path)
    names = [row["trial"] for row in planned["trials"]]
    assert len(names) == 6 * 2 * 2 and names[:3] == ["BattleZone__fast__s1", "BattleZone__fast__s2", "BattleZone__rainbow__s1"]  # fmt: skip
    assert {row["due"] for row in planned["trials"]} == {"train"} and list(tmp_path.iterdir()) == []
    assert main(["sweep", *CATCH, "--dry-run", "-o", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Catch__cartpole__s2" in text and "fastdqn train --env Catch" in text and "4 trials, " in text
    assert main(["sweep", "--envs", "Catch", "--presets", "catch", "--seeds", "1", "--dry-run"]) == 0
    assert "1 trial, " in capsys.readouterr().out


def test_a_command_is_what_the_user_said_with_threads_that_fit_its_cores(tmp_path: Path, capsys) -> None:
    (row,) = dry_run(capsys, "--envs", "ALE/Pong", "--seeds", "1", "--cpus-per-run", "1", "--gpus-per-run", "0", "-o", tmp_path,
                     "--", "--n-step", "5", "--total-frames", "2M")["trials"]  # fmt: skip
    config = train_config(shlex.split(row["command"])[2:], prog="test")
    assert (config.env, config.preset, config.seed, config.run_dir) == ("ALE/Pong", "fast", 1, f"{tmp_path}/Pong__fast__s1")  # fmt: skip
    assert (config.n_step, config.total_frames, config.device) == (5, 2_000_000, "cpu")
    assert (config.env_threads, config.torch_threads, row["cpus"], row["gpus"]) == (1, 1, 1, 0)
    (row,) = dry_run(capsys, "--envs", "Pong", "--seeds", "1", "-o", tmp_path, "--address", "auto", "--cpus-per-run", "6",
                     "--gpus-per-run", "0.5", "--", "--env-threads", "3")["trials"]  # fmt: skip
    config = train_config(shlex.split(row["command"])[2:], prog="test")
    assert (config.env_threads, config.torch_threads, config.device, row["gpus"]) == (3, 1, "cuda", 0.5)


@pytest.mark.parametrize(
    ("trials", "cores", "gpus", "flags", "share"),
    [
        (9, 8, 0, {}, Share(1, 0, 8)),
        (2, 8, 0, {}, Share(4, 0, 2)),
        (9, 1, 0, {}, Share(1, 0, 1)),
        (9, 8, 0, {"cpus_per_run": 3}, Share(3, 0, 2)),
        (9, 16, 2, {}, Share(8, 1, 2)),
        (9, 16, 2, {"gpus_per_run": 0.5}, Share(4, 0.5, 4)),
        (99, 64, 2, {"gpus_per_run": 0.1}, Share(3, 0.1, 20)),
        (9, 16, 4, {"gpus_per_run": 2.0, "cpus_per_run": 5}, Share(5, 2, 2)),
        (9, 2, 2, {"gpus_per_run": 0.25}, Share(1, 0.25, 2)),
        (9, 16, 2, {"gpus_per_run": 0.0}, Share(1, 0, 9)),
        (9, 4, 0, {"address": "auto", "cpus_per_run": 9, "gpus_per_run": 3.0}, Share(9, 3, None)),
    ],
)
def test_what_runs_at_once_shares_the_machine(trials: int, cores: int, gpus: int, flags: dict, share: Share) -> None:
    assert shares(trials, cores, gpus, Flags(envs="Pong", **flags)) == share


@pytest.mark.parametrize(
    ("free", "flags", "share"),
    [
        (32, {}, Share(1, 0, 4, 7)),
        (20, {}, Share(2, 0, 2, 7)),
        (20, {"cpus_per_run": 1}, Share(1, 0, 2, 7)),
        (6, {}, Share(4, 0, 1, 7)),  # does not fit alone either, as its own start will say
    ],
)
def test_no_more_run_at_once_than_memory_holds_and_those_get_the_cores(free: int, flags: dict, share: Share) -> None:
    words = Flags(envs="Pong", **flags)
    assert within_memory(shares(9, 4, 0, words), 7, free, 4, words) == share


def test_a_trial_takes_of_memory_what_its_own_start_will_ask_for(tmp_path: Path, capsys) -> None:
    configs = trial_configs(Flags(envs="Pong,Catch", presets="cpu,catch", seeds=2, out=str(tmp_path)))
    each, free = memory(configs)
    assert each == max(
        preflight.total(needs(config.resolved()[0], torch.device("cpu")), on_device=True, cuda=False)
        for config, _ in configs
    )
    assert 2.8e9 < each < 6e9 and free > 0
    assert (
        main(["sweep", "--envs", "Pong", "--presets", "cpu", "--seeds", "1", "--dry-run", "--gpus-per-run", "0"]) == 0
    )
    assert " GB of memory\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--envs", "Pog"], "error: env=Pog: no such game; the nearest are Pong"),
        (["--envs", "Pong", "--presets", "fats"], "error: preset=fats: no such preset; the nearest are fast"),
        (["--envs", " ,"], "error: envs= ,: names none"),
        (["--envs", "Pong,ALE/Pong"], "error: envs=Pong,ALE/Pong: two trials would be Pong__fast__s1"),
        (["--envs", "Pong", "--seeds", "0"], "error: seeds=0: give a number from 1"),
        (["--envs", "Pong", "--gpus-per-run", "1.5"], "error: gpus_per_run=1.5: give 0, a share"),
        (["--envs", "Pong", "--gpus-per-run", "nan"], "error: gpus_per_run=nan: give 0, a share"),
        (["--envs", "Pong", "--gpus-per-run", "512"], "error: gpus_per_run=512: torch sees"),
        (["--envs", "Pong", "--cpus-per-run", "9999"], "error: cpus_per_run=9999: this machine gives"),
        (["--envs", "Pong", "--address", "auto"], "error: address=auto: say --cpus-per-run and --gpus-per-run"),
        (
            ["--envs", "Pong", "--", "--seed=7"],
            "error: --seed behind --: the sweep sets it for each trial; use --seeds",
        ),
        (["--envs", "Pong", "--", "--learning-starts", "9"], "error: learning_starts=9: 64 envs need"),
    ],
)
def test_what_cannot_work_is_refused_before_any_trial(
    argv: list[str], message: str, tmp_path: Path, capsys, no_ray
) -> None:
    assert main(["sweep", "-o", str(tmp_path / "out"), *argv]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_missing_ray_is_one_line_with_the_remedy(tmp_path: Path, capsys, no_ray) -> None:
    assert main(["sweep", *CATCH, "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: sweep: Ray is not installed; pip install 'fastdqn[scale]'\n"


def test_an_address_where_nobody_listens_is_told_at_once(tmp_path: Path, capsys, no_ray) -> None:
    argv = ["--address", "127.0.0.1:1", "--cpus-per-run", "1", "--gpus-per-run", "0", "-o", str(tmp_path)]
    assert main(["sweep", *CATCH, *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: address=127.0.0.1:1: Ray does not answer (") and message.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_wrong_usage_and_what_goes_wrong_later_is_not(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(scale, "connected", lambda *_, **__: nullcontext())
    (tmp_path / "file").touch()
    assert main(["sweep", *CATCH, "-o", str(tmp_path / "file" / "out")]) == 2
    assert f"error: out={tmp_path}/file/out: Not a directory; name a folder" in capsys.readouterr().err

    def with_a_bug(*_, **__) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(scale, "run_all", with_a_bug)
    with pytest.raises(ValueError, match="a bug"):
        main(["sweep", *CATCH, "-o", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_imports_neither_ray_nor_torch() -> None:
    script = (
        "import sys\nfrom fastdqn.cli import main\n"
        "try:\n    main(['sweep', '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'ray', 'torch', 'envpool'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "--gpus-per-run" in done.stdout, done.stderr


def test_a_finished_sweep_is_only_compared_and_says_how_to_again(tmp_path: Path, capsys, no_ray) -> None:
    for preset, level in (("catch", 1.0), ("cartpole", 0.5)):
        for seed in (1, 2):
            write_run(tmp_path / f"Catch__{preset}__s{seed}", [level] * 9, preset=preset, seed=seed, env="Catch")
    assert main(["sweep", *CATCH, "-o", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert [(row["group"], row["seeds"], row["iqm"]) for row in figures["compare"]["groups"]] == [("catch", 2, 1), ("cartpole", 2, 0.5)]  # fmt: skip
    assert {row["state"] for row in figures["trials"]} == {"finished"} and figures["trials"][0]["tries"] == 0
    again = printed.err.split("again: fastdqn compare ")[1].strip()
    folders = subprocess.run(["bash", "-c", f"echo {again}"], capture_output=True, text=True).stdout.split()
    assert sorted(folders) == sorted(str(path) for path in tmp_path.iterdir())


def test_a_folder_says_what_its_trial_still_needs_and_other_settings_are_refused(
    tmp_path: Path, capsys, no_ray
) -> None:
    def now_due() -> tuple[str, str]:
        (row,) = dry_run(capsys, "--envs", "Catch", "--presets", "catch", "--seeds", "1", "-o", tmp_path)["trials"]
        return row["due"], row["command"]

    run = write_run(tmp_path / "Catch__catch__s1", state="interrupted", env="Catch")
    assert now_due()[0] == "train"  # logs, and no checkpoint to go on from
    (run / "checkpoints" / "step_000000059999").mkdir(parents=True)
    (run / "checkpoints" / ".tmp_step_000000060000").mkdir()
    (run / "checkpoints" / "step_by_hand").mkdir()
    assert now_due() == ("resume", f"fastdqn resume {run} --ui plain")
    other = ["sweep", "--envs", "Catch", "--presets", "catch", "-o", str(tmp_path), "--", "--gamma", "0.9"]
    assert main(other) == 2
    assert "Catch__catch__s1 has gamma=0.99, not 0.9; name another --out" in capsys.readouterr().err
    (
        run / "checkpoints" / "step_000000060000"
    ).mkdir()  # the last one, and then the process was killed: its end is missing
    assert now_due()[0] == "resume"
    (run / "status.json").write_text('{"state": "finished"}')
    assert now_due() == ("nothing", "")


def failing(folder: Path) -> Trial:
    return Trial(folder, ("train", "--preset", "nope", "--run-dir", str(folder)))


def test_a_try_that_fails_says_why_and_logs_without_a_checkpoint_are_set_aside(tmp_path: Path) -> None:
    run = write_run(tmp_path / "Catch__catch__s1", [1.0] * 3, state="running")
    ending = trials.run(failing(run), tmp_path)
    assert ending.code == trials.WRONG_USAGE and ending.why.startswith("preset=nope: no such preset")
    assert str(run / "train.log") in ending.why and runs.status(run)["state"] == "starting"
    (aside,) = (path for path in tmp_path.iterdir() if path != run)
    assert aside.name.startswith(".Catch__catch__s1__") and len(runs.games(aside).score) == 3
    assert not (run / "config.toml").exists()


def test_a_node_without_the_sweeps_disk_and_a_folder_in_use_are_told(tmp_path: Path, monkeypatch) -> None:
    ending = trials.run(failing(tmp_path / "run"), tmp_path / "out" / ".sweep-1")
    assert ending.code == trials.WRONG_USAGE and f"does not see {tmp_path}/out: name an --out" in ending.why
    monkeypatch.setattr(trials, "LOCK_SECONDS", 0.0)
    held = RunFolder(tmp_path / "run")
    assert trials.run(failing(tmp_path / "run"), tmp_path) == (1, f"run_dir={tmp_path}/run: in use by process {os.getpid()}; end it first")  # fmt: skip
    held.release()


def test_a_folder_that_no_waiting_would_free_is_told_at_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval").symlink_to(tmp_path)
    monkeypatch.setattr(trials.time, "sleep", lambda _: pytest.fail("it waits"))
    code, why = trials.run(failing(tmp_path / "run"), tmp_path)
    assert code == 1 and "its eval is a symlink" in why


def test_the_table_shows_who_runs_first_and_plain_lines_only_what_changed(tmp_path: Path) -> None:
    queue = [scale.Progress(failing(tmp_path / name), 2_000) for name in ("a", "b", "c")]
    stream = io.StringIO()
    board = scale.Board("auto", stream)
    board.update([progress.row() for progress in queue])
    assert stream.getvalue() == ""  # all wait
    write_run(tmp_path / "b", state="running", frames=1_000)
    queue[2].tries, queue[2].ended = 3, "failed"
    rows = [progress.row() for progress in queue]
    board.update(rows)
    board.update(rows)
    lines = stream.getvalue().splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "b running frames=1.00k/2.00k fps=- score100=- node=-", "c failed frames=0/2.00k fps=- score100=- node=-",
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(scale.table(rows))
    drawn = [line for line in capture.get().splitlines() if "2.00k" in line]
    assert ["running" in drawn[0], "failed, try 3" in drawn[1], "waiting" in drawn[2]] == [True] * 3
    queue[1].before = runs.status(tmp_path / "b")  # it is queued again, and nobody has touched it yet
    assert queue[1].row()["state"] == "waiting"


def until(found: Callable[[], object], seconds: float = 240) -> object:
    """The first true value that `found` returns."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def training(out: Path) -> list[Path]:
    """Folders whose training is in its loop and has a checkpoint."""
    folders = [path.parent for path in out.glob("*/status.json")]
    return [path for path in folders if runs.status(path)["state"] == "running" and runs.saved_step(path)]


def sweep(out: Path, *more: str) -> subprocess.Popen:
    argv = [sys.executable, "-m", "fastdqn", "sweep", *CATCH, "-o", str(out), "--json", *more, *SMALL]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@needs_ray
@pytest.mark.long
def test_of_four_trials_on_ray_those_that_are_killed_are_resumed_and_all_are_compared(tmp_path: Path) -> None:
    process = sweep(tmp_path)
    first = until(lambda: training(tmp_path))[0]  # type: ignore[index]
    os.kill(runs.status(first)["pid"], signal.SIGKILL)
    second = until(lambda: [path for path in training(tmp_path) if path != first])[0]  # type: ignore[index]
    stat = Path(f"/proc/{runs.status(second)['pid']}/stat").read_text()
    os.kill(int(stat.rsplit(")", 1)[1].split()[1]), signal.SIGKILL)  # its parent, Ray's worker
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    figures = json.loads(out)  # and nothing else on stdout
    killed = {first.name, second.name}
    assert {row["trial"]: (row["state"], row["tries"]) for row in figures["trials"]} == {
        name: ("finished", 2 if name in killed else 1)
        for name in (f"Catch__{preset}__s{seed}" for preset in ("catch", "cartpole") for seed in (1, 2))
    }
    assert f"{first.name}: ended by signal 9" in err and "retry 1 of 2" in err
    assert f"{second.name}: Ray: WorkerCrashedError" in err
    for path in (first, second):
        commands = (path / "command.txt").read_text().splitlines()
        assert [line.split()[1] for line in commands] == ["train", "resume"]
        steps = [row["global_step"] for row in runs.metrics(path)]
        assert steps == sorted(steps)
    assert all(row["frames"] == 30_000 for row in figures["trials"])
    assert [(row["group"], row["seeds"]) for row in figures["compare"]["groups"]] == [("catch", 2), ("cartpole", 2)]
    assert not any("has not finished" in note for note in figures["compare"]["notes"])
    assert list(tmp_path.glob(".*")) == []  # nothing was set aside, the sweep's own mark is gone


@needs_ray
@pytest.mark.long
def test_ctrl_c_saves_every_trial_and_the_same_line_goes_on(tmp_path: Path) -> None:
    process = sweep(tmp_path, "--cpus-per-run", "1")
    until(lambda: training(tmp_path))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["compare"] is None
    begun = [path for path in tmp_path.iterdir() if (path / "config.toml").exists()]
    assert begun and {runs.status(path)["state"] for path in begun} <= {"interrupted", "finished"}
    steps = {path: checkpoint.load(path / "checkpoints").step for path in begun}
    out, err = sweep(tmp_path).communicate(timeout=300)
    assert {row["state"] for row in json.loads(out)["trials"]} == {"finished"}, err
    resumed = [path for path in begun if steps[path] < 30_000]
    assert resumed and all("resume" in (path / "command.txt").read_text() for path in resumed)


@pytest.mark.long
def test_a_trial_whose_worker_is_killed_saves_and_lets_go_of_its_folder(tmp_path: Path) -> None:
    """A worker has threads, and that is what made the kernel's own parent-death signal come more than once."""
    run = tmp_path / "run"
    words = ("train", "--preset", "catch", "--run-dir", str(run), "--total-frames", "100M", *SMALL[5:])
    script = (
        "import threading, time\nfrom pathlib import Path, PosixPath\nfrom fastdqn.sweeps import trials\n"
        "for _ in range(8):\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        f"trials.run(trials.{Trial(run, words)!r}, Path({str(tmp_path)!r}))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: runs.status(run).get("state") == "running")
    worker.kill()
    worker.wait()
    until(lambda: runs.status(run)["state"] != "running", seconds=30)
    assert runs.status(run)["state"] == "interrupted" and runs.saved_step(run) == runs.status(run)["env_steps"]
    trials._opened(run).release()  # as a retry does: the process lets go a moment after it has written its status
