"""Whatever is typed or stands in a config.toml: the command starts, or says in a line what is wrong and what to do.

A generated case runs the real command as far as its first game, where `FirstGame` ends it: everything that is refused
without one has been asked by then, the memory of an Atari ring included. What lies behind, network, optimiser, ring and
run folder, is the sample's that really trains. Bytes of a checkpoint are in test_checkpoint.py, the rest of the hostile
run folders in test_hostile_folders.py.
"""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from functools import reduce
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from fastdqn import envs
from fastdqn.cli import main
from fastdqn.config import _RANGES, Config, load_preset, preset_names
from fastdqn.trainer import train

FIELDS = {field.name: field.type for field in fields(Config)}
REMEDY = re.compile(
    r"\b(give|use|name|nearest|did you mean|that fits|lower|see fastdqn|correct it|leave it out|train a new)\b"
)
TEXTS = [
    "", " ", "-", "--", "--json", "nan", "inf", "-inf", "0", "-1", "1_0", "1e99", "1e400", "1e-400", "0x10", "40M", "9e9B",
    str(2**31), str(2**63), "9" * 5_000, "٣", "None", "True", "auto", "../../etc/passwd", "/proc/x", "a=b", "a\nb", "\0",
    "\udcff", "\x1b[31m", "[/bold]", "{x}", "%s", "'", '"', "\\", "é", "😀", "\u202e", "x" * 10_000,
]  # fmt: skip
LITERALS = [
    "", "true", "0", "-1", "1.5", "nan", "-inf", "1e999", "9" * 5_000, "1" + "0" * 400, "0x" + "f" * 5_000, "1979-05-27",
    '""', '"auto"', '"../../etc/passwd"', '"\\u0000"', '"a\\nb"', f'"{"x" * 10_000}"', "[]", "[1, 2]", "{a = {b = 1}}",
    "[" * 2_000, "[" * 90 + "]" * 90, "[0x" + "f" * 5_000 + "]", "]",
]  # fmt: skip


class FirstGame(BaseException):
    """The command has come as far as its first game."""


def first_game(*_: object, **__: object) -> None:
    raise FirstGame


@pytest.fixture
def no_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends every command where it asks EnvPool for its games."""

    monkeypatch.setattr(envs.envpool, "make", first_game)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CartPole that can be resumed, played and exported."""
    path = tmp_path_factory.mktemp("cartpole") / "run"
    config = replace(load_preset("cartpole"), total_frames=64, run_dir=str(path), ui="quiet", compile=False)
    train(config)
    (path / "config.toml").write_text(replace(config, total_frames=10_000).resolved()[0].to_toml())
    return path


def refusal(argv: list[str], terminal: TextIO | None = None) -> str:
    """Runs a command, on a terminal if one is given; "" if it came to its first game, else the line on stderr, or the words of the parser's box.

    Raises:
        AssertionError: any other end, any other output.
    """
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(terminal or out), redirect_stderr(err):
            code = main(argv)
    except FirstGame:
        return ""
    except SystemExit as stopped:
        assert stopped.code == 2 and out.getvalue() == ""
        box = re.sub(r"[│\s]", "", err.getvalue())  # words are broken where the box ends
        assert f"fastdqn{argv[0]}--help" in box, box
        return box
    line = err.getvalue()
    assert code == 2 and out.getvalue() == "", (code, line, out.getvalue())
    assert line.startswith("error: ") and line.endswith("\n") and line[:-1].isprintable() and len(line) < 1_100, line
    assert REMEDY.search(line), line
    return line


def bounds_of(field: str) -> list[str]:
    """The least and the greatest value, and what is beyond; or each of its choices."""
    if field in _RANGES:
        return [str(bound + step) for bound in _RANGES[field] for step in (-1, 0, 1)]
    return [str(choice) for choice in getattr(FIELDS[field], "__args__", ())]


@st.composite
def flags(draw: st.DrawFn) -> list[str]:
    """`--field value` for one to three fields, and now and then a word that belongs nowhere."""
    argv = []
    for field in draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3, unique=True)):
        flag = f"--{field.replace('_', '-')}"
        texts = [st.sampled_from(bounds_of(field) or preset_names()), st.sampled_from(TEXTS), st.text(max_size=8)]
        value = draw(st.one_of(*texts, st.floats().map(repr), st.integers().map(str)))
        if FIELDS[field] is bool:
            argv += draw(st.sampled_from([[flag], [f"--no-{flag[2:]}"], [f"{flag}={value}"]]))
        else:
            argv += draw(st.sampled_from([[f"{flag}={value}"], [flag, value]]))
    return argv + draw(st.sampled_from([[]] * 9 + [["stray"]]))


def each_of(cases: list[dict[str, Any]]) -> Callable[[Any], Any]:
    """An `example` for each, tried before any generated one."""
    return lambda test: reduce(lambda inner, case: example(**case)(inner), cases, test)


def starts_or_names_the_flag(argv: list[str]) -> None:
    line = refusal(["train", *argv])
    if not line:
        for field, value in re.findall(r"--([a-z-]+)[=\0](-?[\d.]+e?-?\d*|nan|-?inf)(?=\0|$)", "\0".join(argv)):
            number = int(value) if value.removeprefix("-").isdecimal() else float(value)
            low, high = _RANGES.get(field.replace("-", "_"), (-math.inf, math.inf))
            assert field.replace("-", "_") not in _RANGES or low <= number <= high, f"{field}={value} was accepted"
    words = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if line.startswith("error: "):
        named = re.match(r"error: (\w+)=", line)
        assert named is not None and named[1] in FIELDS, line
        given = {word[2:].removeprefix("no-").replace("-", "_") for word in words}
        # what a preset or a game asks for may clash with another field, what the games ask for with the ring
        assert given & {"env", "preset"} or named[1] in given | {"learning_starts", "replay_capacity"}, line
    elif line:
        named = [*words, *(re.sub(r"\s", "", word)[:20] for word in argv)]
        assert any(word and word in line for word in named), line


# what once ended in a traceback, in two lines, or without a remedy
FLAGS_OF_BEFORE = [["--env="], ["--seed", "9" * 5_000], ["--env=a\nb"], ["--life-loss-terminal=x"], ["--gamma=nan"]]
CHANGES_OF_BEFORE = [
    [("gamma", b"1" + b"0" * 400)], [("seed", b"9" * 5_000)], [("seed", b"0x" + b"f" * 5_000)],
    [("gamma", b"[" * 2_000)], [("frame_skip", b"0")], [("unknown", b"")], [("replace", b"")],
]  # fmt: skip
CASES = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=500, **CASES)
@given(argv=flags())
@each_of([{"argv": argv} for argv in FLAGS_OF_BEFORE])
def test_five_hundred_sets_of_flags_start_or_are_refused_by_name(no_games: None, argv: list[str]) -> None:
    starts_or_names_the_flag(argv)


@pytest.mark.long
@settings(max_examples=5_000, database=None, **CASES)
@given(argv=flags())
def test_five_thousand_sets_of_flags_start_or_are_refused_by_name(no_games: None, argv: list[str]) -> None:
    starts_or_names_the_flag(argv)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """One to three changes of a config.toml: (field, what stands behind its =), or (kind of damage, bytes)."""
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["field"] * 6 + ["without", "twice", "unknown", "cut", "insert", "replace"]))
        if kind == "field":
            kind = draw(st.sampled_from(sorted(FIELDS)))
            bounds = [text if kind in _RANGES else f'"{text}"' for text in bounds_of(kind)] or ["true", "false"]
            changes.append((kind, draw(st.sampled_from(bounds) | st.sampled_from(LITERALS)).encode()))
        else:
            changes.append((kind, draw(st.binary(max_size=12))))
    return changes


def damaged(config: bytes, damage: bytes, kind: str) -> bytes:
    lines, place = config.splitlines(keepends=True), sum(damage) * 31
    row = place % max(len(lines), 1)
    if kind in FIELDS:
        kept = [line for line in lines if line.split(b" ")[0] != kind.encode()]
        return b"".join(kept) + kind.encode() + b" = " + damage + b"\n"
    if kind in ("without", "twice"):
        return b"".join([*lines[:row], *(lines[row : row + 1] * (2 if kind == "twice" else 0)), *lines[row + 1 :]])
    if kind == "unknown":
        return config + b'"' + damage.hex().encode() + b'\\n" = 1\n'
    if kind == "replace":
        return damage
    place %= len(config) + 1
    return config[:place] + (b"" if kind == "cut" else damage + config[place:])


@pytest.fixture(scope="module")
def terminal() -> Iterator[TextIO]:
    """A terminal, which `play` asks for."""
    master, slave = os.openpty()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(slave, "w") as stream:
        patch.setenv("TERM", "xterm-256color")
        yield stream
    os.close(master)


COMMANDS = {
    "resume": ["--ui", "quiet"],
    "eval": ["--episodes", "1"],
    "export": [],
    "record": ["-o", "game.gif"],
    "play": [],
}


def starts_or_names_the_file(run: Path, terminal: TextIO, command: str, changes: list[tuple[str, bytes]]) -> None:
    path = run / "config.toml"
    sound = path.read_bytes()
    try:
        config = sound
        for kind, damage in changes:
            config = damaged(config, damage, kind)
        path.write_bytes(config)
        line = refusal([command, str(run), *COMMANDS[command]], terminal if command == "play" else None)
    finally:
        path.write_bytes(sound)
    # only what depends on the machine, the run's progress or the task is not the file's
    assert (
        not line
        or str(path) in line
        or re.match(r"error: (run|device|precision|cuda_graphs|replay_capacity|batch_size|num_envs|env|max_\w+)=", line)
    ), line


@settings(max_examples=500, **CASES)
@given(command=st.sampled_from(sorted(COMMANDS)), changes=damages())
@each_of([{"command": command, "changes": changes} for command in COMMANDS for changes in CHANGES_OF_BEFORE])
def test_five_hundred_damaged_configs_start_or_are_refused_by_name(
    run: Path, no_games: None, terminal: TextIO, command: str, changes: list[tuple[str, bytes]]
) -> None:
    starts_or_names_the_file(run, terminal, command, changes)


@pytest.mark.long
@settings(max_examples=5_000, database=None, **CASES)
@given(command=st.sampled_from(sorted(COMMANDS)), changes=damages())
def test_five_thousand_damaged_configs_start_or_are_refused_by_name(
    run: Path, no_games: None, terminal: TextIO, command: str, changes: list[tuple[str, bytes]]
) -> None:
    starts_or_names_the_file(run, terminal, command, changes)


TINY = {
    "num_envs": "2", "total_frames": "400", "learning_starts": "60", "replay_capacity": "400", "batch_size": "4",
    "replay_ratio": "0.5", "hidden_size": "8", "torch_threads": "1", "env_threads": "1", "ui": "quiet",
}  # fmt: skip
# fields with a least and a greatest value that a second on a small machine allows
SMALL = {
    "num_envs": (1, 5), "total_frames": (1, 300), "learning_starts": (120, 200), "replay_capacity": (200, 1_000),
    "batch_size": (1, 16), "replay_ratio": (0, 1), "n_step": (1, 15), "num_atoms": (2, 9), "num_quantiles": (1, 9),
    "num_acting_quantiles": (1, 9), "impala_width": (1, 2), "hidden_size": (1, 16), "torch_threads": (1, 2),
    "env_threads": (0, 3), "checkpoint_period_frames": (40, 10**12),
}  # fmt: skip
FREE = sorted((_RANGES.keys() | {name for name, kind in FIELDS.items() if kind is bool}) - {
    "eval_period_frames", "eval_episodes", "compile", "json", "max_episode_steps", "sticky_actions",
})  # fmt: skip
KINDS = [
    "", "--head=c51", "--head=qrdqn", "--head=iqn", "--prioritized", "--munchausen", "--noisy", "--deterministic",
    "--optimizer=rmsprop", "--loss=mse", "--precision=bf16", "--checkpoint-replay=full", "--track=tensorboard",
]  # fmt: skip


@st.composite
def small_runs(draw: st.DrawFn) -> list[str]:
    """Flags of a run of a second: any task, any kind of agent, one to four fields at either end of what they may be."""
    values = dict(TINY)
    for field in draw(st.lists(st.sampled_from(FREE), min_size=1, max_size=4, unique=True)):
        if FIELDS[field] is bool:
            values[field] = draw(st.sampled_from(["yes", "no"]))
        else:
            values[field] = str(draw(st.sampled_from(SMALL.get(field, _RANGES[field]))))
    flags = [
        "--no-compile",
        f"--env={draw(st.sampled_from(['Catch', 'CartPole', 'LunarLander', 'Pong', 'ALE/Breakout-v5']))}",
    ]
    for field, value in values.items():
        flag = field.replace("_", "-")
        flags.append({"yes": f"--{flag}", "no": f"--no-{flag}"}.get(value, f"--{flag}={value}"))
    return flags + [kind for kind in [draw(st.sampled_from(KINDS))] if kind]


def what_is_accepted_trains(argv: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(envs.envpool, "make", first_game)
        if refusal(["train", *argv]):
            reject()
    shutil.rmtree(folder, ignore_errors=True)
    assert main(["train", *argv, f"--run-dir={folder}"]) == 0
    assert list((folder / "checkpoints").glob("step_*"))


@settings(max_examples=10, derandomize=True, **CASES)
@given(argv=small_runs())
def test_ten_accepted_configs_train_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    what_is_accepted_trains(argv, tmp_path / "run", monkeypatch)


@pytest.mark.long
@settings(max_examples=200, database=None, **CASES)
@given(argv=small_runs())
def test_two_hundred_accepted_configs_train_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    what_is_accepted_trains(argv, tmp_path / "run", monkeypatch)
