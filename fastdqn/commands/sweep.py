"""`fastdqn sweep`: games x presets x seeds, each a run of its own, on this machine or a cluster, and their comparison."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from fastdqn.arguments import train_config
from fastdqn.atari import GAME_SETS
from fastdqn.commands import JsonFlags, emit
from fastdqn.commands.compare import table, text
from fastdqn.config import NOT_LEARNING, Config
from fastdqn.errors import UsageError
from fastdqn.sweeps.trials import Trial, due, words
from fastdqn.units import cores as cores_text
from fastdqn.units import counted, size

# flags of train that the sweep sets itself, and its own flag for each
RESERVED = {"--env": "--envs", "--preset": "--presets", "--seed": "--seeds", "--run-dir": "--out", "--ui": "--ui", "--json": "--json", "--resume": "--out"}  # fmt: skip


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Trains games x presets x seeds on Ray, tries again what failed, and compares the presets.

    Finished trials in --out are left alone, interrupted ones resumed, missing ones begun: the same line goes on with a
    sweep that was cut off. Flags of train follow a --: fastdqn sweep --envs Catch --presets catch -- --n-step 3
    """

    envs: str
    """Games or tasks, with commas; atari5, atari10, atari26 and atari57 name the standard sets."""
    train: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Behind a --: flags of train, the same for all."""
    presets: str = "fast"
    """Presets, or TOML files of settings, with commas."""
    seeds: int = 3
    """Each game and preset with the seeds 1 to this."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/sweep"
    """Folder of the runs, {game}__{preset}__s{seed}. On a cluster: on a disk that all its nodes share."""
    gpus_per_run: float | None = None
    """GPUs of each trial: 0.5 puts two on each, which share its memory unguarded. None: 1, or 0 where there is none."""
    cpus_per_run: int = 0
    """Cores of each trial. 0: the machine's, shared evenly by the trials that run at once; without a GPU each has 2."""
    address: str = ""
    """Ray cluster, HOST:6379 or auto; needs --cpus-per-run and --gpus-per-run. Empty: Ray starts here, for the sweep."""
    retries: int = 2
    """How often a trial that failed is tried again, each time from its newest checkpoint."""
    dry_run: bool = False
    """Only show the trials and their commands."""
    ui: Literal["auto", "live", "plain", "quiet"] = "auto"
    """live: a table; plain: a line for each change; quiet: the result only; auto: live on a terminal, else plain."""


class Share(NamedTuple):
    """What each trial gets, and how many trials run at once; None where only the cluster knows."""

    cpus: int
    gpus: float
    at_once: int | None
    memory: int = 0  # bytes of the host, of a trial without a GPU on this machine


def main(flags: Flags) -> int:
    from fastdqn.sweeps import scale

    cores, gpus = machine()
    for name, low, high in (("seeds", 1, 1_000), ("retries", 0, 1_000), ("cpus_per_run", 0, 10_000)):
        if not low <= getattr(flags, name) <= high:
            raise UsageError(f"{name}={getattr(flags, name)}: give a number from {low} to {high:,}")
    configs = trial_configs(flags)
    share = shares(len(configs), cores, gpus, flags)
    if not (share.gpus or flags.address):
        share = within_memory(share, *memory(configs), cores, flags)
    trials = [trial(config, preset, share, flags) for config, preset in configs]
    if flags.dry_run:
        emit(plan_text(trials, share), plan(trials, share), as_json=flags.json)
        return 0
    queue = [
        scale.Progress(one, config.total_frames, ended="finished" if due(one) == "nothing" else "")
        for one, (config, _) in zip(trials, configs, strict=True)
    ]
    stream = sys.stderr if flags.json else sys.stdout
    code = 0
    if left := [progress for progress in queue if not progress.ended]:
        board = scale.Board(flags.ui, stream)
        mark = folder(flags) / f".sweep-{os.getpid()}"
        with scale.connected(flags.address, cpus=cores, gpus=gpus, at_once=share.at_once) as ray:
            board.say(f"{len(left)} of {counted(len(queue), 'trial')} to run in {folder(flags)}, {share_text(share)}")
            try:
                folder(flags).mkdir(parents=True, exist_ok=True)
                mark.touch()
            except OSError as error:
                raise UsageError(f"out={flags.out}: {error.strerror}; name a folder that can be written") from None
            try:
                code = scale.run_all(
                    ray,
                    left,
                    mark=mark,
                    cpus=share.cpus,
                    gpus=share.gpus,
                    at_once=share.at_once,
                    retries=flags.retries,
                    board=board,
                )
            finally:
                mark.unlink(missing_ok=True)
    report(queue, code, flags)
    return code


def machine() -> tuple[int, int]:
    """Cores and GPUs that this process may use."""
    import torch

    from fastdqn.machine import hardware

    return hardware.cores(), torch.cuda.device_count() if torch.cuda.is_available() else 0


def memory(configs: Sequence[tuple[Config, str]]) -> tuple[int, int]:
    """Bytes that the largest of these trials takes on a machine without a GPU, and bytes that are free."""
    import torch

    from fastdqn.machine import preflight
    from fastdqn.machine.memory import free_bytes
    from fastdqn.parts import needs

    cpu = torch.device("cpu")
    kinds = {
        (preset, config.name.is_atari): config for config, preset in configs
    }  # games differ in their actions alone
    tables = [needs(replace(config, device="cpu").resolved()[0], cpu) for config in kinds.values()]
    return max(preflight.total(table, on_device=True, cuda=False) for table in tables), free_bytes(cpu)


def folder(flags: Flags) -> Path:
    return Path(flags.out).absolute()


def trial_configs(flags: Flags) -> list[tuple[Config, str]]:
    """The config of each trial, as `train` would resolve it, and its --preset, in the order games, presets, seeds.

    Raises:
        UsageError: an unknown name, a value that cannot work, a flag that the sweep sets, or two trials of one name.
    """
    for word in flags.train:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in RESERVED:
            raise UsageError(f"{flag} behind --: the sweep sets it for each trial; use {RESERVED[flag]} before the --")
    envs = [game for name in split(flags.envs, "envs") for game in GAME_SETS.get(name.lower(), [name])]
    presets = split(flags.presets, "presets")
    # a file by its whole path, for a trial may run elsewhere
    presets = [str(Path(name).absolute()) if name.endswith(".toml") else name for name in presets]
    base = [(train_config(["--preset", preset, *flags.train], prog="fastdqn train"), preset) for preset in presets]
    found: dict[Path, tuple[Config, str]] = {}
    for env in envs:
        for config, preset in base:
            for seed in range(1, flags.seeds + 1):
                here = replace(config, env=env, seed=seed)
                path = folder(flags) / f"{here.name.game}__{here.preset}__s{seed}"
                if path in found:
                    raise UsageError(f"envs={flags.envs}: two trials would be {path.name}; give them an --out each")
                here.resolved()  # refuses before anything has started
                found[path] = replace(here, run_dir=str(path), ui="plain"), preset
    return list(found.values())


def split(text: str, field: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{field}={text}: names none; give one or more, with commas")
    return names


def shares(trials: int, cores: int, gpus: int, flags: Flags) -> Share:
    """Cores and GPUs for each of so many trials on a machine, or as told for a cluster.

    A GPU holds floor(1 / gpus_per_run) trials. Without one as many run at once as there are cores: four of one core each
    play 1.6 times the frames of two of two (benchmarks/LOG.md, "Two runs on the same cores"). What runs at once shares the
    cores evenly.

    Raises:
        UsageError: more than there is, or a share that Ray cannot hand out.
    """
    wanted, cpus = flags.gpus_per_run, flags.cpus_per_run
    if wanted is not None and not (wanted == 0 or 0.01 <= wanted < 1 or (wanted >= 1 and wanted.is_integer())):
        raise UsageError(f"gpus_per_run={wanted:g}: give 0, a share from 0.01 to 1, or a whole number")
    if flags.address:
        if wanted is None or not cpus:
            raise UsageError(f"address={flags.address}: say --cpus-per-run and --gpus-per-run too; its nodes differ")
        return Share(cpus, wanted, None)
    if wanted is None:
        wanted = 1.0 if gpus else 0.0
    if wanted > gpus:
        raise UsageError(f"gpus_per_run={wanted:g}: torch sees {gpus} GPUs here; use at most that, or --address")
    if cpus > cores:
        raise UsageError(f"cpus_per_run={cpus}: this machine gives {cores}; use at most that, or --address")
    slots = trials
    if wanted:
        slots = gpus // int(wanted) if wanted >= 1 else gpus * int(1 / wanted + 1e-9)  # 1 / 0.1 may be 9.99...
    at_once = min(trials, slots, cores // (cpus or 1))
    return Share(cpus or cores // at_once, wanted, at_once)


def within_memory(share: Share, each: int, free: int, cores: int, flags: Flags) -> Share:
    """The share of trials of `each` bytes, no more of them at once than fit; of one that does not fit its own start tells."""
    at_once = min(share.at_once or 1, max(free // each, 1))
    return Share(flags.cpus_per_run or cores // at_once, share.gpus, at_once, each)


def trial(config: Config, preset: str, share: Share, flags: Flags) -> Trial:
    """The command of a trial: what the user said, and what fits its share where the user said nothing.

    Raises:
        UsageError: its folder holds a run of other settings.
    """
    from fastdqn.machine import hardware

    command = [
        "train", "--env", config.env, "--preset", preset, "--seed", str(config.seed),
        "--run-dir", config.run_dir, "--ui", "plain", *flags.train,
    ]  # fmt: skip
    device = ("cuda" if share.gpus else "cpu") if config.device == "auto" else config.device
    env_threads, torch_threads = hardware.thread_counts(share.cpus, config.num_envs, device)
    for field, value in (("device", device), ("env_threads", env_threads), ("torch_threads", torch_threads)):
        if getattr(config, field) in ("auto", 0):
            command += [f"--{field.replace('_', '-')}", str(value)]
    planned = Trial(Path(config.run_dir), tuple(command))
    if (planned.folder / "config.toml").exists() and due(planned) != "train":
        there, here = Config.load(planned.folder / "config.toml"), config.resolved()[0]
        for name in (field.name for field in fields(Config) if field.name not in NOT_LEARNING):
            old, new = getattr(there, name), getattr(here, name)
            if old != new:
                raise UsageError(f"out={flags.out}: {planned.name} has {name}={old}, not {new}; name another --out")
    return planned


def plan(trials: Sequence[Trial], share: Share) -> dict[str, Any]:
    """What a dry run tells programs."""
    rows = [
        {"trial": one.name, "due": due(one), "cpus": share.cpus, "gpus": share.gpus,
         "command": shlex.join(["fastdqn", *words(one)]) if words(one) else ""}
        for one in trials
    ]  # fmt: skip
    return {"trials": rows, "at_once": share.at_once}


def plan_text(trials: Sequence[Trial], share: Share) -> str:
    """What a dry run tells people."""
    rows = plan(trials, share)["trials"]
    body = [[row["trial"], row["due"], str(row["cpus"]), f"{row['gpus']:g}", row["command"] or "-"] for row in rows]
    head = ["trial", "due", "cores", "GPUs", "command"]
    return f"{table(head, body, markdown=False)}\n\n{counted(len(rows), 'trial')}, {share_text(share)}"


def share_text(share: Share) -> str:
    at_once = "as many at once as the cluster has room for" if share.at_once is None else f"{share.at_once} at once"
    taken = f"{size(share.memory)} of memory" if share.memory else counted(f"{share.gpus:g}", "GPU")
    return f"{at_once}, each with {cores_text(share.cpus)} and {taken}"


def report(queue: Sequence[Any], code: int, flags: Flags) -> None:
    """How it ended: who failed and why, the comparison, and the line that makes it again."""
    from fastdqn.analysis.comparison import compare
    from fastdqn.analysis.history import load

    rows = [progress.row() for progress in queue]
    lines = [
        f"failed: {row['trial']} after {row['tries']} tries: {row['why']}" for row in rows if row["state"] == "failed"
    ]
    figures = None
    if code >= 128:
        lines.append("interrupted; the same line goes on with it")
    elif present := [
        str(progress.trial.folder) for progress in queue if (progress.trial.folder / "config.toml").exists()
    ]:
        figures = compare(load(present), group="settings", source="auto", reach=None)
        lines += [text(figures, markdown=False), f"again: fastdqn compare {pattern(queue, flags)}"]
    emit("\n\n".join(lines), {"out": str(folder(flags)), "trials": rows, "compare": figures}, as_json=flags.json)


def pattern(queue: Sequence[Any], flags: Flags) -> str:
    """A pattern of the shell for the folders of these trials: runs/sweep/{Pong,Breakout}__fast__s{1..3}"""
    columns = zip(*(progress.trial.name.rsplit("__", 2) for progress in queue), strict=True)
    games, presets, _ = (list(dict.fromkeys(column)) for column in columns)
    sets = [names[0] if len(names) == 1 else "{" + ",".join(names) + "}" for names in (games, presets)]
    seeds = "s1" if flags.seeds == 1 else f"s{{1..{flags.seeds}}}"
    return f"{shlex.quote(flags.out)}/{'__'.join(sets)}__{seeds}"
