"""Everything a GPU is needed for, in stages that continue where the last call stopped.

    python -m benchmarks.gpu_suite --out DIR --minutes 9 [--archive FILE] [--device cpu --quick] [--retry]

Each call runs the stages that are left and have room in the given minutes, later ones too where an earlier one has none;
a stage leaves its JSON in DIR at once and prints one line. It is told to stop before its minutes or the call's are over,
then killed with everything that it started, so that nothing runs beside the next one, and the call ends in its time. The
stages are in the order of need, for calls of 9 minutes on a machine that is lent for some minutes: the first call tests
the training loop, then measures and profiles it; the second learns Breakout; the third compares settings and tests the
presets; what follows fills the room that these leave.

`--archive FILE` keeps one tar of all results, whole at any moment, even if the call is killed: it is written anew after each
stage, and each minute of a learning run. It is cut into pieces of at most 16 MB, FILE.0001.00-of-02 and so on, the first
number counting the archives; `cat` puts them together. Where DIR is empty and such pieces are there, the call begins by
unpacking them, so that a new machine goes on where the last one stopped. Compiled graphs lie in DIR/cache and, as far as
they fit, in the archive, so that they are not compiled again there.

A stage is done, failed, or cut: out of time, but its JSON has what it had measured, with "complete": false. `--retry` runs
those that failed and were cut again. One that was interrupted, because its call was, begins anew in the next call. A
learning run that was stopped or interrupted is resumed from its checkpoint once every other stage has had its turn.

It needs what fastdqn needs and pytest; with pytest-xdist tests run in parallel. The commit comes from FASTDQN_COMMIT
where there is no .git.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.learner import PARTS
from benchmarks.publish import arguments
from fastdqn.machine import hardware
from fastdqn.machine.signals import StopRequest
from fastdqn.run_folder import replace_text

PIECE_BYTES = 16_000_000
ARCHIVE_BYTES = 40_000_000  # beyond it nothing more of the compile cache is packed
GRAPHS = ("aotautograd/", "fxgraph/")
KEPT = (".json", ".jsonl", ".csv", ".png", ".md", ".txt", ".toml", ".gz", ".safetensors")
GRACE_SECONDS = 20.0  # of a stage's time: from being told to stop, so that it saves and ends, to being killed
GONE_SECONDS = 5.0  # for what was killed to be gone, and its GPU memory with it
RESERVE_SECONDS = 20.0  # of a call's time: what is killed goes, the archive is written
ARCHIVE_SECONDS = 60.0  # between two archives of a learning run
LEAST = 0.7  # of its minutes, which are what a stage takes at most: with less left it is not begun


@dataclass(frozen=True)
class Stage:
    """One command. `minutes` is what it takes at most; a `timed` one takes all of them, and counts as done then.

    `stopped_by` is the signal that stops it. `resume` goes on with one that was stopped. It waits until stage `after` is
    done. A folder DIR/`name` is its own: where it begins anew it is removed before.
    """

    name: str
    minutes: float
    command: list[str]
    timed: bool = False
    resume: tuple[str, ...] = ()
    after: str = ""
    stopped_by: signal.Signals = signal.SIGTERM


def stages(out: Path, device: str, quick: bool) -> list[Stage]:
    """In order of need. With `quick` every stage is cut to what shows that it works."""
    python, small = [sys.executable, "-m"], ["--quick"] if quick else []

    def ladder(name: str, *flags: str) -> Stage:
        capacity = "50000" if quick else "1000000"
        return Stage(
            name, 2.0 if quick else 5.0,  # of which windows of 3 s take one and a half; the rest builds, tries and warms up
            [*python, "benchmarks.throughput", "--device", device, "--replay-capacity", capacity,
             "--json", str(out / f"{name}.json"), *flags, *(small or ["--seconds", "3"])],
        )  # fmt: skip

    def learning(game: str) -> Stage:
        frames = "60000" if quick else "40000000"
        changes = ["--learning-starts", "2000", "--replay-capacity", "50000"] if quick else []
        return Stage(
            f"learn-{game}", 1.5 if quick else 8.5,
            [*python, "fastdqn", "train", "--env", game, "--device", device, "--total-frames", frames, "--json",
             "--ui", "plain", "--run-dir", str(out / f"learn-{game}"), *changes],
            timed=True,
            resume=(*python, "fastdqn", "resume", str(out / f"learn-{game}"), "--ui", "plain", "--json"),
        )  # fmt: skip

    def evaluation(game: str) -> Stage:
        run_dir, episodes = str(out / f"learn-{game}"), "8" if quick else "100"
        return Stage(
            f"eval-{game}", 3.0, [*python, "fastdqn", "eval", run_dir, "--protocol", "nature", "--episodes", episodes,
             "--device", device, "--json"],
            after=f"learn-{game}",
        )  # fmt: skip

    # in two stages, for each of these is a run that compiles first
    choices = {
        "choices": ["", "wait=block", "--precision tf32", "--precision fp32", "--batch-size 512", "--resize env", " --no-cuda-graphs"],
        "choices-more": ["", "--batch-size 1024", "--env-threads 14", "--env-threads 12", "layout=auto", "rows=eager", "combo=on",
                         "cudnn=benchmark", "asserts=off"],
    }  # fmt: skip
    if device == "cpu":
        choices = {"choices": ["", "--batch-size 128"]}
    comparisons = [
        Stage(name, 8.5, [*python, "benchmarks.choices", *rungs, "--name", name, "--out", str(out),
                          *(["--seconds", "2", "--repeats", "2"] if device == "cpu" else ["--seconds", "3"])])
        for name, rungs in choices.items()
    ]  # fmt: skip
    large = [name for name, changes in PARTS.items() if "encoder" in changes] + ["preset btr"]
    parts = {
        "parts": ["Double", "prioritised, 1M rows"]
        if quick
        else [*(name for name in PARTS if name not in large), "preset rainbow"],
        "parts-large": ["wide, cropped screen"] if quick else large,
    }
    core, others = ["tests/test_graphs.py"], ["tests/test_staging.py"]
    if device == "cuda":
        # the longest first: three runs one after the other, each compiling
        core = ["tests/gpu/test_gpu_resume.py", "tests/gpu/test_gpu_pipeline.py"]
        others = ["tests/gpu", *(f"--ignore={path}" for path in core)]

    def tests(name: str, minutes: float, paths: list[str]) -> Stage:
        return Stage(
            name, minutes,
            # four processes that compile at once; each would start a compiler for every core
            ["env", "TORCHINDUCTOR_COMPILE_THREADS=4", *python, "pytest", *(["-m", "gpu"] if device == "cuda" else []), *paths,
             "-vv", "--tb=short", "--show-capture=no", *(["-n", "4"] if find_spec("xdist") else [])],
            stopped_by=signal.SIGINT,  # pytest then tells what failed until it was cut off; a line tells of each test
        )  # fmt: skip

    return [
        tests("tests-core", 3.0, core),
        ladder("ladder-64", "--num-envs", "64", "--replay-ratio", "8" if quick else "8,4,2,1"),
        Stage(
            "profile", 2.0,
            [*python, "fastdqn", "profile", "--device", device, "--ui", "quiet", "--json", "--run-dir",
             str(out / "profile"), *(["--replay-capacity", "50000", "--batch-size", "64"] if quick else [])],
        ),
        learning("Breakout"),
        comparisons[0],
        tests("tests-presets", 4.5, others),
        *comparisons[1:],
        Stage(
            "budgets", 5.0,
            [*python, "benchmarks.budgets", "--device", device, "--out", str(out),
             *(["--seconds", "10", "--replay-capacity", "50000"] if quick else [])],
        ),
        ladder("ladder-batch-512", "--num-envs", "128", "--replay-ratio", "8", "--batch-size", "512"),
        # a process for each: what was profiled at its end would run slower
        *(ladder(f"ladder-{size}", "--num-envs", size, "--replay-ratio", "8") for size in (["32"] if quick else ["16", "128", "256"])),
        Stage("learner", 7.0, [*python, "benchmarks.learner", "--device", device, "--out", str(out), *small]),
        *(Stage(name, 8.5, [*python, "benchmarks.learner", "--parts", "--device", device, "--out", str(out),
                            "--name", name, "--only", ";".join(names), "--seconds", "0.25", *small])
          for name, names in parts.items()),
        Stage("replay", 4.0, [*python, "benchmarks.replay", "--device", device, "--out", str(out), *small]),
        Stage("envs", 6.0, [*python, "benchmarks.envs", "--out", str(out), "--name", f"envs-{device}-host", *small]),
        learning("Pong"),
        learning("SpaceInvaders"),
        *map(evaluation, ("Breakout", "Pong", "SpaceInvaders")),
    ]  # fmt: skip


def run(
    stage: Stage,
    out: Path,
    seconds: float,
    *,
    resume: bool = False,
    requested: Callable[[], bool] = lambda: False,
    keep: Callable[[], object] = lambda: None,
) -> dict:
    """Runs one stage within `seconds`, or until a stop is `requested`. Returns its record.

    What it prints goes to DIR/NAME.txt and DIR/NAME.stderr.txt. While a `timed` one runs, `keep` is called each minute.
    """
    begun, started = time.time(), time.perf_counter()
    command, mode = (list(stage.resume), "ab") if resume else (stage.command, "wb")
    if not resume:
        shutil.rmtree(out / stage.name, ignore_errors=True)
    cache = out.absolute() / "cache"
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": f"{cache}/triton",
                   "PYTHONUNBUFFERED": "1"}  # fmt: skip
    printed = out / f"{stage.name}.txt"
    # files, for a pipe stays open as long as anything that the stage started; a group of its own, to be stopped as one,
    # but in the session of this call: who ends that ends the stage too
    with printed.open(mode) as stdout, (out / f"{stage.name}.stderr.txt").open(mode) as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, process_group=0
        )
    try:
        end = started + max(seconds - GRACE_SECONDS, 1)
        stopped = not ended(process, end, requested, keep if stage.timed else lambda: None)
        if stopped:
            send(process.pid, stage.stopped_by)
            ended(process, time.perf_counter() + GRACE_SECONDS)
    finally:
        send(process.pid, signal.SIGKILL)  # the rest of the group, also of a stage that has ended by itself
        gone = time.perf_counter() + GONE_SECONDS
        while (process.poll() is None or send(process.pid, 0)) and time.perf_counter() < gone:
            time.sleep(0.05)
    lines = printed.read_text(errors="replace").strip().splitlines()
    code, told = process.poll(), process.returncode == 128 + signal.SIGTERM
    if code == 0 or (stage.timed and told and not stage.resume and not requested()):
        state = "done"
    elif stage.timed and (stopped or told) and resumable(stage, out):
        state = "stopped"
    elif requested():
        state = "interrupted"
    else:
        state = "cut" if stopped and has_figures(out, begun) else "failed"
    if lines and lines[-1].startswith("{"):
        with contextlib.suppress(ValueError):  # half a line of one that was killed
            (out / f"{stage.name}-summary.json").write_text(json.dumps(json.loads(lines[-1]), indent=2) + "\n")
    return {
        "state": state,
        "exit_code": code,
        "stopped": stopped,
        "seconds": round(time.perf_counter() - started, 1),
        "last_line": lines[-1][:300] if lines else "",
        "command": " ".join(command if command[0] == "env" else ["python", *command[1:]]),
        "commit": hardware.commit(),
    }


def ended(
    process: subprocess.Popen,
    end: float,
    requested: Callable[[], bool] = lambda: False,
    keep: Callable[[], object] = lambda: None,
) -> bool:
    """Waits for a process; False if the time is over, or a stop is `requested`, before."""
    kept = time.perf_counter()
    while process.poll() is None:
        now = time.perf_counter()
        if now >= end or requested():
            return False
        if now - kept >= ARCHIVE_SECONDS:
            keep()
            kept = time.perf_counter()
        time.sleep(0.1)
    return True


def send(group: int, number: int) -> bool:
    """Sends a signal to a process group; False if nothing is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False


def resumable(stage: Stage, out: Path) -> bool:
    return bool(stage.resume) and any((out / stage.name / "checkpoints").glob("step_*"))


def has_figures(out: Path, since: float) -> bool:
    """Whether a benchmark that was cut off left what it had measured, see `publish.keep`."""
    reports = [path for path in out.glob("*.json") if path.stat().st_mtime >= since]
    return any('"complete": false' in path.read_text() for path in reports)


def packed(out: Path, done: set[str]) -> list[Path]:
    """What goes into the archive: of checkpoints the newest of a run, and of a run that is `done` its network alone.

    Of the compile cache, which comes last, what stands for whole graphs: their kernels are in there too.
    """
    newest = {folder.parent: folder for folder in sorted(out.glob("*/checkpoints/step_*"))}
    results, graphs = [], []
    for folder, _, names in os.walk(out):  # unlike glob it goes on where a folder vanishes meanwhile
        for path in (Path(folder, name) for name in names):
            run, _, inside = path.relative_to(out).as_posix().partition("/")
            if run == "cache":
                if inside.startswith(GRAPHS):
                    graphs.append(path)
            elif inside.startswith("checkpoints/") and (
                path.parent not in newest.values() or (run in done and path.name != "model.safetensors")
            ):
                continue
            elif path.suffix in KEPT:
                results.append(path)
    return [*sorted(results), *sorted(graphs)]


def pack(out: Path, archive: Path, done: set[str]) -> list[Path]:
    """Writes DIR's results as one compressed tar, cut into pieces; the archive before goes when they are all there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in packed(out, done):
            name = path.relative_to(out).as_posix()
            if name.startswith("cache/") and buffer.tell() > ARCHIVE_BYTES:
                break
            with contextlib.suppress(FileNotFoundError):  # a stage may be at work
                data = path.read_bytes()  # at once: a log that grows has one size here
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), int(path.stat().st_mtime)
                tar.addfile(info, io.BytesIO(data))
    data, pieces = buffer.getvalue(), []
    before = sorted(archive.parent.glob(f"{archive.name}.[0-9]*-of-*"))  # also what was cut off
    number = 1 + int(before[-1].name.removeprefix(f"{archive.name}.")[:4] if before else 0)
    starts = range(0, len(data), PIECE_BYTES)
    for index, start in enumerate(starts):
        pieces.append(archive.with_name(f"{archive.name}.{number:04}.{index:02}-of-{len(starts):02}"))
        part = pieces[-1].with_name(f"{pieces[-1].name}.part")
        part.write_bytes(data[start : start + PIECE_BYTES])
        part.replace(pieces[-1])
    for old in before:
        old.unlink()
    return pieces


def unpack(archive: Path, out: Path) -> None:
    """Restores what `pack` wrote."""
    data = b"".join(piece.read_bytes() for piece in pieces_of(archive))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        tar.extractall(out, filter="data")


def pieces_of(archive: Path) -> list[Path]:
    """Those of the newest archive that is whole: a call may have been killed while it wrote one."""
    archives: dict[str, list[Path]] = {}
    for piece in sorted(archive.parent.glob(f"{archive.name}.*.[0-9][0-9]-of-[0-9][0-9]")):
        archives.setdefault(piece.name.rpartition(".")[0], []).append(piece)
    whole = [pieces for pieces in archives.values() if len(pieces) == int(pieces[0].name[-2:])]
    return whole[-1] if whole else []


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="this call's time")
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--retry", action="store_true", help="run stages again that failed or were cut")
    parser.add_argument("--only", default="", help="stages to run, separated by commas")
    flags = parser.parse_args()
    deadline = time.perf_counter() + 60 * flags.minutes
    flags.out.mkdir(parents=True, exist_ok=True)
    if flags.archive and not any(flags.out.iterdir()) and pieces_of(flags.archive):
        unpack(flags.archive, flags.out)
    state_file = flags.out / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    (flags.out / "environment.json").write_text(json.dumps(hardware.environment(), indent=2) + "\n")
    wanted = [stage for stage in stages(flags.out, flags.device, flags.quick)
              if not flags.only or stage.name in flags.only.split(",")]  # fmt: skip

    def state_of(name: str) -> str:
        return state.get(name, {}).get("state", "")

    def record(stage: Stage, entry: dict) -> None:
        state[stage.name] = entry
        replace_text(state_file, json.dumps(state, indent=2) + "\n")

    def keep() -> None:
        if flags.archive:
            pack(flags.out, flags.archive, {name for name in state if state_of(name) == "done"})

    stopped = {stage.name for stage in wanted
               if state_of(stage.name) in ("stopped", "interrupted") and resumable(stage, flags.out)}  # fmt: skip
    with StopRequest(grace_seconds=60) as stop:  # while it packs it does not ask
        keep()
        for stage in sorted(wanted, key=lambda stage: stage.name in stopped):  # those come last
            known = state_of(stage.name)
            if known == "done" or (known in ("failed", "cut") and not flags.retry):
                continue
            if stage.after and state_of(stage.after) != "done":
                continue
            seconds = deadline - time.perf_counter() - RESERVE_SECONDS
            if seconds < LEAST * 60 * stage.minutes:
                print(f"{stage.name}: {stage.minutes:g} minutes, {seconds / 60:.1f} left; for the next call")
                continue
            record(stage, {"state": "interrupted"})  # this call may be killed
            entry = run(stage, flags.out, min(60 * stage.minutes, seconds), resume=stage.name in stopped,
                        requested=lambda: stop.requested, keep=keep)  # fmt: skip
            record(stage, entry)
            print(f"{stage.name}: {entry['state']} in {entry['seconds']:.0f} s; {entry['last_line'][:160]}", flush=True)
            keep()
            if stop.requested:
                break
    left = [stage.name for stage in wanted if state_of(stage.name) != "done"]
    print(f"not done: {', '.join(left)}" if left else "all stages are done")
    if flags.archive:
        pieces = pieces_of(flags.archive)
        print(f"archive: {len(pieces)} pieces, {sum(piece.stat().st_size for piece in pieces) / 1e6:.1f} MB")
    return stop.exit_code


if __name__ == "__main__":
    sys.exit(main())
