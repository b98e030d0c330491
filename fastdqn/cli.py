"""argv -> Config -> one command. No tensors here: `--help` imports neither torch nor envpool."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from fastdqn.arguments import parse, train_config
from fastdqn.config import UsageError

# commands whose flags and code are in commands/NAME.py: what it does, an example
FURTHER = {
    "resume": ("go on with a run", "fastdqn resume runs/Breakout__fast__s1__..."),
    "presets": ("named sets of defaults", "fastdqn presets rainbow"),
    "envs": ("games, actions, human scores", "fastdqn envs invaders"),
    "doctor": ("what this machine lacks", "fastdqn doctor"),
    "export": ("an agent for other programs", "fastdqn export runs/Breakout__fast__s1__..."),
    "record": ("video of an agent", "fastdqn record runs/Breakout__fast__s1__..."),
    "play": ("watch an agent in the terminal", "fastdqn play runs/Breakout__fast__s1__..."),
    "plot": ("curves, as picture or characters", "fastdqn plot runs/Breakout__* -o curves.png"),
    "compare": ("scores over seeds, with intervals", "fastdqn compare runs/Breakout__* --group-by preset"),
    "report": ("one page about a run", "fastdqn report runs/Breakout__fast__s1__..."),
    "sweep": ("games x presets x seeds, on Ray", "fastdqn sweep --envs atari5 --presets fast,rainbow"),
}
COMMANDS = {
    "train": ("train an agent", "fastdqn train --num-envs 64"),
    "eval": ("play games with an agent", "fastdqn eval runs/Breakout__fast__s1__..."),
    "profile": ("where the time goes", "fastdqn profile --num-envs 64"),
    **FURTHER,
}
USAGE = (
    "usage: fastdqn COMMAND [flags]\n\ncommands:\n"
    + "".join(f"  {name:9}{words:34}{example}\n" for name, (words, example) in COMMANDS.items())
    + "\nfastdqn COMMAND --help lists its flags. Exit codes: 0 done, 1 failed, 2 wrong usage, "
    "130/143 interrupted and saved.\n"
)


@dataclass(frozen=True)
class EvalFlags:
    """Plays games with a trained agent under a stated protocol."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder."""
    episodes: int = 100
    """Games to count, a fixed quota per env so that short games are not favoured."""
    epsilon: float | None = None
    """Share of random actions. None: the protocol's own, 0.001 unless it says otherwise."""
    protocol: Literal["run", "sticky", "noop", "nature"] = "run"
    """run: as trained; sticky: Machado et al. 2018; noop: 30 no-ops at most; nature: Mnih et al. 2015."""
    num_envs: int = 0
    """Games played at once; 0: one per game to count, at most 64."""
    seed: int = 1
    """Seed of the games and of the exploration; never shared with training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    threads: int = 0
    """Threads of EnvPool and of torch; 0: all cores."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Which agent plays; best: the one that --keep-best kept."""
    keep_best: bool = False
    """Keep this agent in the run's best/ if none there was scored higher."""
    json: bool = False
    """End stdout with one JSON object; everything else goes to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: {command}: no such command; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        if command in FURTHER:
            module = importlib.import_module(f"fastdqn.commands.{command}")
            return module.main(parse(module.Flags, rest, default=None, prog=f"fastdqn {command}"))
        return {"train": _train, "eval": _eval, "profile": _profile}[command](rest)
    except UsageError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end
        return 141


def _one_line(message: str) -> str:
    """What was given is quoted in the message: its control characters are escaped, the middle of a long text left out."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return line if len(line) <= 1_000 else f"{line[:500]} ... {line[-500:]}"


def _train(argv: list[str]) -> int:
    config = train_config(argv, prog="fastdqn train")
    config.resolved()  # refuses before torch is imported
    from fastdqn.distributed import RankLostError
    from fastdqn.run import NotFiniteError
    from fastdqn.trainer import train

    try:
        result = train(config, ["fastdqn", "train", *argv])
    except (NotFiniteError, RankLostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if config.json and result.first_rank:
        print(json.dumps(result.summary))
    return result.exit_code


def _profile(argv: list[str]) -> int:
    config = train_config(argv, prog="fastdqn profile")
    config.resolved()  # refuses before torch is imported
    from fastdqn.commands import profile

    out, verdict = profile.run(config, ["fastdqn", "profile", *argv])
    print(verdict.text(), file=sys.stderr if config.json else sys.stdout)
    print(f"profile: {out}", file=sys.stderr)
    if config.json:
        print(json.dumps({"profile": str(out), "wall_seconds": verdict.wall_seconds, "iterations": verdict.iterations,
                          "gpu_busy": verdict.busy_fraction, "phases": verdict.phases, "waits": verdict.waits}))  # fmt: skip
    return 0


def _eval(argv: list[str]) -> int:
    flags = parse(EvalFlags, argv, default=None, prog="fastdqn eval")
    from fastdqn import runs
    from fastdqn.checkpoint import CheckpointError
    from fastdqn.evaluation import evaluate, format_result

    try:
        run = runs.find(flags.run)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        result = evaluate(
            run,
            episodes=flags.episodes,
            epsilon=flags.epsilon,
            protocol=flags.protocol,
            num_envs=flags.num_envs,
            seed=flags.seed,
            device=flags.device,
            threads=flags.threads,
            which=flags.checkpoint,
            keep_best=flags.keep_best,
        )
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_result(result), file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps(result))
    return 0
