"""Everything a GPU is needed for, in stages that continue where the last call stopped.

    python -m benchmarks.gpu_suite --out DIR --minutes 9 [--archive FILE] [--device cpu --quick] [--retry]

Each call runs the stages that are left and still fit the given minutes, later ones too where an earlier one does not;
a stage leaves its JSON in DIR at once and prints one line. `--archive FILE` ends each call with one tar of all results, cut into FILE.000, FILE.001, ... of at
most 8 MB; where DIR is empty and such pieces are there, the call begins by unpacking them, so that a new machine goes on
where the last one stopped. A stage that fails is recorded and passed over; `--retry` runs the failed ones again. A learning
run that was stopped in mid-way is resumed from its checkpoint once every other stage has had its turn.

It needs what fastdqn needs and pytest. The commit comes from FASTDQN_COMMIT where there is no .git.
"""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.learner import PARTS
from benchmarks.publish import arguments
from fastdqn.machine import hardware

PIECE_BYTES = 8_000_000
KEPT = (".json", ".jsonl", ".csv", ".png", ".md", ".txt", ".toml", ".gz", ".safetensors")
GRACE_SECONDS = 40  # for a run that was told to stop: it saves and ends


@dataclass(frozen=True)
class Stage:
    """One command. `minutes` is what it takes at most; a `timed` one is stopped when they are over, and counts as done.

    `stopped_by` is the signal for that. `resume` goes on with one that was stopped. It waits until stage `after` is done.
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
            name, 2.0 if quick else 6.0,  # of which windows of 3 s take one and a half; the rest builds, tries and warms up
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
        "choices-more": ["", "--batch-size 1024", "--env-threads 14", "--env-threads 12", "layout=auto", "rows=eager", "combo=on"],
    }  # fmt: skip
    if device == "cpu":
        choices = {"choices": ["", "--batch-size 128"]}
    large = [name for name, changes in PARTS.items() if "encoder" in changes] + ["preset btr"]
    parts = {
        "parts": ["Double", "prioritised, 1M rows"]
        if quick
        else [*(name for name in PARTS if name not in large), "preset rainbow"],
        "parts-large": ["wide, cropped screen"] if quick else large,
    }
    # a line for each test as it ends, and SIGINT: pytest then tells what failed until it was cut off
    tests = ["-m", "gpu", "tests/gpu"] if device == "cuda" else ["tests/test_graphs.py", "tests/test_staging.py"]
    tests += ["-vv", "--tb=short", "--show-capture=no", *(["-n", "4"] if find_spec("xdist") else [])]
    return [
        # four processes that compile at once; each would start a compiler for every core
        Stage("tests", 8.5, ["env", "TORCHINDUCTOR_COMPILE_THREADS=4", *python, "pytest", *tests],
              stopped_by=signal.SIGINT),
        ladder("ladder-64", "--num-envs", "64", "--replay-ratio", "8" if quick else "8,4,2,1"),
        Stage(
            "profile", 2.0,
            [*python, "fastdqn", "profile", "--device", device, "--ui", "quiet", "--json", "--run-dir",
             str(out / "profile-run"), *(["--replay-capacity", "50000", "--batch-size", "64"] if quick else [])],
        ),
        learning("Breakout"),
        *(Stage(name, 8.5, [*python, "benchmarks.choices", *rungs, "--name", name, "--out", str(out),
                            *(["--seconds", "2", "--repeats", "2"] if device == "cpu" else ["--seconds", "3"])])
          for name, rungs in choices.items()),
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


def run(stage: Stage, out: Path, seconds: float, *, resume: bool = False) -> dict:
    """Runs one stage within `seconds`; its output goes to DIR/NAME.txt. Returns its record."""
    started = time.perf_counter()
    command = list(stage.resume) if resume else stage.command
    with (out / f"{stage.name}.txt").open("a" if resume else "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        stopped = False
        try:
            output, _ = process.communicate(timeout=max(seconds - GRACE_SECONDS, 1) if stage.timed else seconds)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(stage.stopped_by)
            try:
                output, _ = process.communicate(timeout=GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        log.write(output)
    lines = output.strip().splitlines()
    cut = stage.timed and process.returncode == 128 + signal.SIGTERM
    state = "done" if process.returncode == 0 or (cut and not stage.resume) else "stopped" if cut else "failed"
    record = {
        "state": state,
        "exit_code": process.returncode,
        "stopped": stopped,
        "seconds": round(time.perf_counter() - started, 1),
        "last_line": lines[-1][:300] if lines else "",
        "command": " ".join(command if command[0] == "env" else ["python", *command[1:]]),
        "commit": hardware.commit(),
    }
    if lines and lines[-1].startswith("{"):
        (out / f"{stage.name}-summary.json").write_text(json.dumps(json.loads(lines[-1]), indent=2) + "\n")
    return record


def packed(out: Path, done: set[str]) -> list[Path]:
    """What goes into the archive: of checkpoints the newest of a run, and of a run that is `done` its network alone."""
    newest = {folder.parent: folder for folder in sorted(out.glob("*/checkpoints/*")) if folder.is_dir()}
    files = []
    for path in sorted(out.rglob("*")):
        run, _, inside = path.relative_to(out).as_posix().partition("/")
        if inside.startswith("checkpoints/") and (
            path.parent not in newest.values() or (run in done and path.name != "model.safetensors")
        ):
            continue
        if path.is_file() and path.suffix in KEPT:
            files.append(path)
    return files


def pack(out: Path, archive: Path, done: set[str]) -> list[Path]:
    """Writes DIR's results as one compressed tar, cut into pieces."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in packed(out, done):
            tar.add(path, path.relative_to(out).as_posix())
    for old in pieces_of(archive):
        old.unlink()
    data, pieces = buffer.getvalue(), []
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        pieces.append(archive.with_name(f"{archive.name}.{number:03}"))
        pieces[-1].write_bytes(data[start : start + PIECE_BYTES])
    return pieces


def unpack(archive: Path, out: Path) -> None:
    """Restores what `pack` wrote."""
    data = b"".join(piece.read_bytes() for piece in pieces_of(archive))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        tar.extractall(out, filter="data")


def pieces_of(archive: Path) -> list[Path]:
    return sorted(archive.parent.glob(f"{archive.name}.[0-9][0-9][0-9]"))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="this call's time")
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--retry", action="store_true", help="run failed stages again")
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
    states = {stage.name: state.get(stage.name, {}).get("state") for stage in wanted}
    for stage in sorted(wanted, key=lambda stage: states[stage.name] == "stopped"):  # those come last
        known = states[stage.name]
        if known == "done" or (known == "failed" and not flags.retry):
            continue
        if stage.after and state.get(stage.after, {}).get("state") != "done":
            continue
        minutes = (deadline - time.perf_counter()) / 60
        if minutes < stage.minutes:
            print(f"{stage.name}: {stage.minutes:g} minutes needed, {minutes:.1f} left; for the next call")
            continue
        state[stage.name] = run(stage, flags.out, 60 * stage.minutes, resume=known == "stopped")
        state_file.write_text(json.dumps(state, indent=2) + "\n")
        record = state[stage.name]
        print(f"{stage.name}: {record['state']} in {record['seconds']:.0f} s; {record['last_line'][:160]}", flush=True)
    left = [stage.name for stage in wanted if state.get(stage.name, {}).get("state") != "done"]
    print(f"not done: {', '.join(left)}" if left else "all stages are done")
    if flags.archive:
        pieces = pack(flags.out, flags.archive, {name for name in state if state[name]["state"] == "done"})
        print(f"archive: {len(pieces)} pieces, {sum(piece.stat().st_size for piece in pieces) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
