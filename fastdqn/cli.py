"""argv -> Config -> one command. No tensors here: `--help` imports neither torch nor envpool."""

import errno
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence

from fastdqn import __version__
from fastdqn.arguments import parse, train_config
from fastdqn.errors import RunError, UsageError

# what it does, an example; the flags and the code of NAME are in commands/NAME.py, the flags of train and profile in config.py
COMMANDS = {
    "train": ("train an agent", "fastdqn train --num-envs 64"),
    "resume": ("go on with a run", "fastdqn resume runs/Breakout__fast__s1__..."),
    "eval": ("play games with an agent", "fastdqn eval runs/Breakout__fast__s1__..."),
    "presets": ("named sets of defaults", "fastdqn presets rainbow"),
    "envs": ("games, actions, human scores", "fastdqn envs invaders"),
    "doctor": ("what this machine lacks", "fastdqn doctor"),
    "export": ("an agent for other programs", "fastdqn export runs/Breakout__fast__s1__..."),
    "record": ("video of an agent", "fastdqn record runs/Breakout__fast__s1__..."),
    "play": ("watch an agent in the terminal", "fastdqn play runs/Breakout__fast__s1__..."),
    "plot": ("curves, as picture or characters", "fastdqn plot runs/Breakout__* -o curves.png"),
    "compare": ("scores over seeds, with intervals", "fastdqn compare runs/Breakout__*"),
    "report": ("one page about a run", "fastdqn report runs/Breakout__fast__s1__..."),
    "profile": ("where the time goes", "fastdqn profile --num-envs 64"),
    "sweep": ("games x presets x seeds, on Ray", "fastdqn sweep --envs atari5 --presets fast,rainbow"),
}
PROFILE = "Runs the training loop of these flags for some groups under torch.profiler, and says where the time goes."
USAGE = (
    "usage: fastdqn COMMAND [flags]\n\ncommands:\n"
    + "".join(f"  {name:9}{words:34}{example}\n" for name, (words, example) in COMMANDS.items())
    + "\nfastdqn COMMAND --help lists its flags. Exit codes: 0 done, 1 failed, 2 wrong usage, "
    "130/143/129 interrupted and saved.\n"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (
            getattr(sys, name) is None
        ):  # closed by who started us: the next file would get its number, and what is printed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the locale does not have is no reason to fail
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"fastdqn {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: {command}: no such command; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        code = _run(command, rest)
        sys.stdout.flush()  # here, where what becomes of it is answered
        return code
    except (UsageError, RunError) as error:
        if os.environ.get("FASTDQN_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:  # where nothing has to be saved; training and recording answer it themselves
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        _silence_stdout()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _silence_stdout()
        print(f"error: {error.strerror}; free some space", file=sys.stderr)
        return 1


def _run(command: str, words: list[str]) -> int:
    if command in ("train", "profile"):
        return _of_a_config(command, words)
    if command not in ("plot", "compare"):
        _refuse_several_runs(command, words)
    module = importlib.import_module(f"fastdqn.commands.{command}")
    return module.main(parse(module.Flags, words, prog=f"fastdqn {command}"))


def _silence_stdout() -> None:
    """Or the interpreter would complain at its end of what is still to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_several_runs(command: str, words: list[str]) -> None:
    """For what a shell makes of runs/Breakout* once there are two."""
    begun = {
        word: os.path.getmtime(path) for word in words if os.path.isfile(path := os.path.join(word, "config.toml"))
    }
    if len(begun) > 1:
        newest = max(begun, key=lambda word: begun[word])
        raise UsageError(f"run: {command} takes one, here are {len(begun)}; use the newest, {newest}, or another")


def _one_line(message: str) -> str:
    """What was given is quoted in the message: its control characters are escaped, the middle of a long text left out."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return line if len(line) <= 1_000 else f"{line[:500]} ... {line[-500:]}"


def _of_a_config(command: str, argv: list[str]) -> int:
    """train, or profile, which takes its flags."""
    config = train_config(argv, prog=f"fastdqn {command}", purpose=PROFILE if command == "profile" else None)
    config.resolved()  # refuses before torch is imported
    words = ["fastdqn", command, *argv]
    if command == "profile":
        from fastdqn.commands import profile

        return profile.main(config, words)
    if config.resume:
        from fastdqn.commands import resume

        if (code := resume.instead_of_train(config)) is not None:
            return code
    from fastdqn.trainer import train

    result = train(config, words)
    if config.json and result.first_rank:
        print(json.dumps(result.summary))
    return result.exit_code
