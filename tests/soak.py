"""A training run at full speed for half an hour, watched from outside: nothing that it holds may grow.

    python -m tests.soak --minutes 30 --out DIR

`fastdqn train` in a process of its own: Breakout, 64 envs, replay ratio 8, a ring that is overwritten many times, a
checkpoint every 30,000 frames. Every 10 s its resident memory, threads and descriptors are read from /proc; the figures
that only the run knows come from its metrics.jsonl. At the end it is interrupted, as with Ctrl-C. The first third is
left out: buffers reach their size there. Then the median of the last third is held against that of the middle third:

    resident memory        grows by at most 0.5 %, which after 30 minutes is a slope of 3 % an hour
    threads, descriptors   do not grow
    compiled graphs        not one since the first log, so nothing was compiled again
    refused updates        none
    frames/s               fall by at most 10 %: a quiet machine is needed
    failed slots           none in the whole run
    the ring               was filled at least three times over
    the run                ends with exit code 130, interrupted and saved

Exit code 0 if all of it holds, else 1. Leaves DIR/soak.json, DIR/soak.png and the run itself.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdqn.analysis.charts import Line, Panel
from fastdqn.analysis.figures import draw, save
from fastdqn.analysis.statistics import Band, Curve
from fastdqn.machine import hardware

CAPACITY = 20_000
TRAIN = [
    "train", "--num-envs", "64", "--replay-ratio", "8", "--replay-capacity", str(CAPACITY), "--learning-starts", "2000",
    "--checkpoint-period-frames", "30000", "--total-frames", "1000000000000", "--ui", "quiet", "--json",
]  # fmt: skip
START_SECONDS = 300  # to the first row of the log: imports, games, compiling
END_SECONDS = 120


class Series(NamedTuple):
    """One quantity over the seconds of the run."""

    seconds: Sequence[float]
    values: Sequence[float]


class Verdict(NamedTuple):
    """What became of one quantity, in words."""

    name: str
    held: bool
    says: str


def sample(pid: int) -> dict[str, float]:
    """What the process holds at this moment. OSError: it has ended."""
    process = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return {
        "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "descriptors": sum(1 for _ in (process / "fd").iterdir()),
    }


def thirds(series: Series) -> tuple[float, float, float]:
    """Median of the middle third, of the last third, and the slope between them per hour. By time, not by count.

    Raises:
        ValueError: a third without a value.
    """
    seconds, values = np.asarray(series.seconds, float), np.asarray(series.values, float)
    part = (seconds[-1] - seconds[0]) / 3 if len(seconds) else 0.0
    middle = (seconds >= seconds[0] + part) & (seconds < seconds[0] + 2 * part) if len(seconds) else seconds > 0
    last = seconds >= seconds[0] + 2 * part if len(seconds) else middle
    if part == 0 or not middle.any() or not last.any():
        raise ValueError(f"{len(seconds)} values do not fill three thirds: let it run longer")
    before, after = float(np.median(values[middle])), float(np.median(values[last]))
    return before, after, (after - before) / part * 3600


def no_growth(name: str, series: Series, allowed: float = 0.0, unit: float = 1.0, suffix: str = "") -> Verdict:
    """Flat if the last third exceeds the middle one by no more than the share `allowed`."""
    before, after, slope = thirds(series)
    held = after <= before * (1 + allowed)
    word = "flat" if held else "GROWS"
    change = f"{before / unit:,.4g} -> {after / unit:,.4g}{suffix}, {slope / unit:+,.3g}{suffix} an hour"
    return Verdict(name, held, f"{word}: {change}")


def no_fall(name: str, series: Series, allowed: float) -> Verdict:
    """Steady if the last third falls below the middle one by no more than the share `allowed`."""
    before, after, _ = thirds(series)
    held = after >= before * (1 - allowed)
    return Verdict(name, held, f"{'steady' if held else 'FALLS'}: {before:,.0f} -> {after:,.0f}")


def unchanged(name: str, values: Sequence[float], wanted: float | None = None) -> Verdict:
    """Every value is the first one, or `wanted`."""
    held = len(values) > 0 and set(values) == {values[0] if wanted is None else wanted}
    return Verdict(name, held, f"{values[0]:g} -> {values[-1]:g}" if len(values) else "no values")


def judge(samples: Sequence[dict[str, float]], rows: Sequence[dict[str, Any]], ended: dict[str, Any]) -> list[Verdict]:
    """All rules. `samples` from /proc with their `seconds`, `rows` of metrics.jsonl, `ended`: exit code and summary."""
    held, logged = (lambda key: Series([one["seconds"] for one in samples], [one[key] for one in samples])), rows[1:]
    written, summary = rows[-1]["global_step"] if rows else 0, ended["summary"]
    return [
        no_growth("resident memory", held("resident_bytes"), allowed=0.005, unit=1e6, suffix=" MB"),
        no_growth("threads", held("threads")),
        no_growth("descriptors", held("descriptors")),
        unchanged("compiled graphs", [row["system/compiled_graphs"] for row in rows]),
        unchanged("refused updates", [row["charts/refused_updates"] for row in rows], 0),
        no_fall("frames/s", Series([row["wall_seconds"] for row in logged], [row["perf/fps"] for row in logged]), 0.1),
        unchanged("failed slots", [summary["failed_slots"]] if summary else [], 0),
        Verdict("ring", written >= 3 * CAPACITY, f"filled {written / CAPACITY:.1f} times over"),
        Verdict("the run", ended["exit_code"] == 130, f"ended with exit code {ended['exit_code']}"),
    ]


def watch(folder: Path, seconds: float, period: float) -> tuple[list[dict[str, float]], list[dict], dict[str, Any]]:
    """Trains for so long after the first log row and samples; interrupts, and returns what `judge` takes."""
    log, samples = folder / "run" / "metrics.jsonl", []
    command = [sys.executable, "-m", "fastdqn", *TRAIN, "--run-dir", str(folder / "run")]
    with (folder / "stderr.txt").open("w") as stderr:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            wait_for(lambda: (log.exists() and log.stat().st_size > 0) or run.poll() is not None, START_SECONDS)
            started = time.monotonic()
            while run.poll() is None and time.monotonic() - started < seconds:
                samples.append({"seconds": time.monotonic() - started, **sample(run.pid)})
                time.sleep(period)
            if run.poll() is None:
                run.send_signal(signal.SIGINT)
            stdout, _ = run.communicate(timeout=END_SECONDS)
        finally:
            run.kill()
    lines = stdout.splitlines()
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return samples, rows, {"exit_code": run.returncode, "summary": json.loads(lines[-1]) if lines else {}}


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError if it has not come true by then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing was logged within {seconds} s; see stderr.txt")
        time.sleep(0.2)


def panels(samples: Sequence[dict[str, float]], rows: Sequence[dict], verdicts: Sequence[Verdict]) -> list[Panel]:
    """One for each quantity that has a course, with its verdict as the title."""
    minutes = np.array([one["seconds"] for one in samples]) / 60
    logged = np.array([row["wall_seconds"] for row in rows[1:]]) / 60
    says = {verdict.name: verdict.says for verdict in verdicts}
    courses = [
        ("resident memory", "MB", Curve(minutes, np.array([one["resident_bytes"] / 1e6 for one in samples]))),
        ("threads", "threads", Curve(minutes, np.array([one["threads"] for one in samples], float))),
        ("descriptors", "descriptors", Curve(minutes, np.array([one["descriptors"] for one in samples], float))),
        ("compiled graphs", "graphs", Curve(logged, np.array([row["system/compiled_graphs"] for row in rows[1:]], float))),
        ("refused updates", "updates", Curve(logged, np.array([row["charts/refused_updates"] for row in rows[1:]], float))),
        ("frames/s", "frames/s", Curve(logged, np.array([row["perf/fps"] for row in rows[1:]], float))),
    ]  # fmt: skip
    return [
        Panel(f"{name}\n{says[name]}", "minutes", unit, [Line(name, [curve], Band(curve.x, curve.y, None))],
              {"zero": 0.0})
        for name, unit, curve in courses
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="from the first row of the run's log on")
    parser.add_argument("--period", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True)
    samples, rows, ended = watch(flags.out, flags.minutes * 60, flags.period)
    try:
        verdicts = judge(samples, rows, ended)
    except ValueError as error:
        print(f"error: {error}; exit code {ended['exit_code']}, see {flags.out / 'stderr.txt'}", file=sys.stderr)
        return 1
    for name, held, says in verdicts:
        print(f"{'held' if held else 'NOT HELD':9} {name:16} {says}")
    environment = hardware.environment()
    held = all(verdict.held for verdict in verdicts)
    report = {
        "soak": "fastdqn " + " ".join(TRAIN), "minutes": flags.minutes, "held": held, "environment": environment,
        "verdicts": [verdict._asdict() for verdict in verdicts], "summary": ended["summary"], "samples": samples,
        "log": [{key: row[key] for key in ("wall_seconds", "perf/fps", "system/compiled_graphs")} for row in rows],
    }  # fmt: skip
    (flags.out / "soak.json").write_text(json.dumps(report) + "\n")
    where = f"{environment['cpu']}, {environment['cores']} cores, torch {environment['torch']}"
    save(
        draw(panels(samples, rows, verdicts), footnote=f"{where}, commit {environment['commit']}"),
        flags.out / "soak.png",
    )
    print(json.dumps({"held": held, "not_held": [verdict.name for verdict in verdicts if not verdict.held]}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
