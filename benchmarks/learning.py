"""Learning results: what finished runs reached, kept as JSON and a picture, and the tables made of them.

    python -m benchmarks.learning add NAME RUN... [--protocol nature]    one row, its seeds together
    python -m benchmarks.learning table            writes the table between the two marks of each page
    python -m benchmarks.learning table --check    exit code 1 where a page says something else

The README has what presets reach as they are now, `benchmarks/results/learning/README.md` what other settings reached.

A row holds what the run folders say and nothing else: command, commit, hardware, status and the evaluation of each run's
last agent, by one protocol. So a number without its run's summary cannot get into the table. Runs that differ in more than
their seeds make no row.
"""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.publish import arguments
from fastdqn import atari, cli, runs
from fastdqn.arguments import train_config
from fastdqn.config import NOT_LEARNING, Config, load_preset, preset_names
from fastdqn.errors import UsageError
from fastdqn.units import cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning"
MARKS = "<!-- learning results: python -m benchmarks.learning table -->", "<!-- end -->"
HEAD = [
    "task",
    "preset",
    "random play",
    "training, last 100 games",
    "evaluation, 100 games",
    "frames",
    "games",
    "minutes",
]
# beside another program on the same cores, or on fewer of them, time says little; such rows name it in `note`
FIGURES = ("seed", "frames", "env_steps", "updates", "episodes", "score_mean_100", "wall_seconds", "compile_seconds")
EVALUATION = (
    "protocol", "episodes", "score_mean", "score_ci95", "score_median", "distinct_games", "epsilon", "checkpoint_step",
)  # fmt: skip
PREFERRED = ("nature", "run", "sticky", "noop")  # protocols; of a task that is no game there is run's alone
SAME = ("commit", "cpu", "gpu", "cores")  # of all runs of a row
# in columns of their own, or no matter of learning
ELSEWHERE = (*NOT_LEARNING, "env", "preset", "seed", "num_envs", "total_frames", "checkpoint_period_frames")


def row_of(folders: list[Path], note: str, protocol: str | None = None) -> dict[str, Any]:
    """What the run folders of one setting say; they differ in their seeds. `protocol`: see `evaluation_of`."""
    environments = [runs.environment(folder) for folder in folders]
    for field in SAME:
        the_same(field, [environment.get(field) for environment in environments])
    command = the_same("command", [command_of(folder) for folder in folders])
    learned_with = [settings(Config.load(folder / "config.toml")) for folder in folders]
    rows = []
    for folder in folders:
        status = runs.status(folder)
        figures = {key: status[key] for key in FIGURES}
        rows.append({**figures, "state": status["state"], "evaluation": evaluation_of(folder, status, protocol)})
    for field in ("protocol", "epsilon", "episodes"):
        the_same(field, [(row["evaluation"] or {}).get(field) for row in rows])
    status = runs.status(folders[0])
    return {
        "task": status["env"], "preset": status["preset"], "command": command, "note": note,
        "settings": {name: the_same(name, [one[name] for one in learned_with]) for name in learned_with[0]},
        "environment": environments[0], "runs": sorted(rows, key=lambda row: row["seed"]),
    }  # fmt: skip


def the_same(field: str, values: list[Any]) -> Any:
    """The one value that all runs have; ends the program where they have several."""
    several = sorted({str(value) for value in values})
    if len(several) > 1:
        raise SystemExit(f"{field}: the runs have several, {'; '.join(several)}; make a row of each")
    return values[0] if values else None


def command_of(folder: Path) -> str:
    """How a run was begun, whatever it was resumed with."""
    return " ".join(public(runs.command(folder).splitlines()[0].split()))


def evaluation_of(folder: Path, status: dict[str, Any], protocol: str | None) -> dict[str, Any] | None:
    """The newest evaluation of a run by `protocol`; None: the run has none.

    Without a protocol it is by the first of `PREFERRED` that there is. Evaluations during training do not count: the games
    that chose an agent flatter it.
    """
    found = {one["protocol"]: one for one in runs.evaluations(folder) if one.get("seed") != runs.SELECTION_SEED}
    if protocol is not None and protocol not in found:
        raise SystemExit(
            f"protocol={protocol}: {folder.name} has no such evaluation; run fastdqn eval, or leave it out"
        )
    if protocol is None:
        protocol = next((name for name in PREFERRED if name in found), None)
    if protocol is None:
        return None
    step = found[protocol]["checkpoint_step"]
    if step != status["env_steps"]:
        raise SystemExit(
            f"checkpoint_step={step}: the newest {protocol} evaluation of {folder.name} is not of its end at env step "
            f"{status['env_steps']}; run fastdqn eval"
        )
    return {key: found[protocol][key] for key in EVALUATION}


def public(words: list[str]) -> list[str]:
    """The command without what belongs to one machine or one seed."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--run-dir", "--seed", "--ui"):
            skip = True
        elif word != "--json" and not re.match(r"--(run-dir|seed|ui)=", word):
            kept.append(word)
    return kept


def line(row: dict[str, Any]) -> str:
    """The row of a page's table."""
    found = row["runs"]
    evaluated = [run["evaluation"] for run in found if run["evaluation"]]
    cells = [
        row["task"],
        called(row),
        random_play(row["task"]),
        scores([run["score_mean_100"] for run in found]),
        scores([one["score_mean"] for one in evaluated], [one["score_ci95"] for one in evaluated])
        + remarks(evaluated, "nature" if atari.parse_env(row["task"]).is_atari else "run"),
        span([run["frames"] for run in found], 1e6) + "M",
        span([run["episodes"] for run in found], 1),
        span([run["wall_seconds"] / 60 for run in found], 1),
    ]
    return " | ".join(cells)


def settings(config: Config) -> dict[str, Any]:
    """How it learns, by field."""
    return {name: value for name, value in asdict(config.resolved(loaded=True)[0]).items() if name not in ELSEWHERE}


def called(row: dict[str, Any]) -> str:
    """The preset that a row's runs come nearest to, as it is now, the one they were begun with first; and what they changed."""
    name, changed = min(changes(row).items(), key=lambda item: (len(item[1]), item[0] != row["preset"]))
    return f"`{name}`" + "".join(
        f", {field} {f'{value:,}' if type(value) is int else value}" for field, value in changed.items()
    )


def changes(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """In what the runs' settings differ from each preset's; what an older version did not have is the default."""
    asked = train_config(row["command"].split()[2:], prog="fastdqn train")
    given = {**settings(replace(Config(), env=asked.env, num_envs=asked.num_envs)), **row["settings"]}
    found = {}
    for name in preset_names():
        with suppress(UsageError):  # a preset that cannot play this game
            preset = settings(replace(load_preset(name), env=asked.env, num_envs=asked.num_envs))
            found[name] = {field: value for field, value in given.items() if value != preset.get(field)}
    return found


def as_shipped(row: dict[str, Any]) -> bool:
    return {} in changes(row).values()


def origin(name: str, row: dict[str, Any], link: str) -> str:
    """What was run for a row, on what, and what a reader has to know of it."""
    found, environment = row["runs"], row["environment"]
    seeds = f"{len(found)} runs, seeds {', '.join(str(run['seed']) for run in found)}" if len(found) > 1 else "1 run"
    where = environment["gpu"] or f"{cores(environment['cores'])} {environment['cpu']}"
    note = f". {row['note']}" if row["note"] else ""
    before = f" ({environment['before']})" if "before" in environment else ""
    return (
        f"`{row['command']}`, {seeds}, {where}, commit {environment['commit'][:7]}{before}: "
        f"[{name}.json]({link}{name}.json){note}"
    )


def scores(means: list[float], intervals: Sequence[Sequence[float]] | None = None) -> str:
    """Of one run its mean, with its interval; of several their median, with the lowest and the highest."""
    if not means:
        return "not evaluated"
    if len(means) > 1:
        return f"{figure(statistics.median(means))} (median of {len(means)}, {span(means, 1)})"
    interval = " to ".join(map(figure, intervals[0])) if intervals else ""
    return figure(means[0]) + (f" (95 % {interval})" if interval else "")


def figure(value: float) -> str:
    """Three digits, or all of them before the point where there are more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def remarks(evaluations: list[dict[str, Any]], usual: str) -> str:
    """Another protocol than the usual one, and how many games were distinct where some were the same game."""
    text = "".join(f"; protocol {name}" for name in {one["protocol"]: 0 for one in evaluations} if name != usual)
    if any(one["distinct_games"] < one["episodes"] for one in evaluations):
        text += f"; distinct games: {', '.join(str(one['distinct_games']) for one in evaluations)}"
    return text


def random_play(task: str) -> str:
    reference = atari.RANDOM_AND_HUMAN_SCORES.get(atari.parse_env(task).game)
    return "" if reference is None else f"{reference[0]:g}"


def span(values: Any, unit: float) -> str:
    low, high = (figure(bound(values) / unit) for bound in (min, max))
    return low if low == high else f"{low} to {high}"


def table(rows: dict[str, dict[str, Any]], link: str) -> str:
    """Rows by name, and below them where each comes from."""
    head = ["|  | " + " | ".join(HEAD) + " |", "| --- " * (len(HEAD) + 1) + "|"]
    body = [f"| {number} | {line(row)} |" for number, row in enumerate(rows.values(), 1)]
    origins = [f"{number}. {origin(name, row, link)}" for number, (name, row) in enumerate(rows.items(), 1)]
    fold = "<details><summary>How each row was made: command, machine, commit, summary</summary>"
    return "\n".join([*head, *body, "", fold, "", *origins, "", "</details>"])


def pages(results: Path) -> dict[Path, str]:
    """Each page with its table between its marks: what presets reach as they are now, and the other settings."""
    rows = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    shipped = {name: row for name, row in rows.items() if as_shipped(row)}
    others = {name: row for name, row in rows.items() if name not in shipped}
    parts = {ROOT / "README.md": (shipped, "benchmarks/results/learning/"), RESULTS / "README.md": (others, "")}
    return {page: between_marks(page, table(some, link)) for page, (some, link) in parts.items()}


def between_marks(page: Path, text: str) -> str:
    begin, end = MARKS
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page.relative_to(ROOT)} lacks {begin} or {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> int:
    parser = arguments(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add")
    add.add_argument("name")
    add.add_argument("runs", nargs="+", type=Path)
    add.add_argument(
        "--protocol", help=f"of the evaluations; by default the first that there is of {', '.join(PREFERRED)}"
    )
    add.add_argument("--note", default="", help="what a reader has to know, in a few words")
    add.add_argument("--out", type=Path, default=RESULTS)
    write = commands.add_parser("table")
    write.add_argument("--check", action="store_true")
    flags = parser.parse_args()
    if flags.command == "add":
        flags.out.mkdir(parents=True, exist_ok=True)
        row = row_of(flags.runs, flags.note, flags.protocol)
        (flags.out / f"{flags.name}.json").write_text(json.dumps(row, indent=2) + "\n")
        cli.main(["plot", *map(str, flags.runs), "--out", str(flags.out / f"{flags.name}.png")])
        return 0
    outdated = {page: text for page, text in pages(RESULTS).items() if page.read_text() != text}
    for page, text in outdated.items():
        if flags.check:
            name = page.relative_to(ROOT)
            print(f"{name} is not of benchmarks/results/learning: run the command without --check", file=sys.stderr)
        else:
            page.write_text(text)
    return int(flags.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
