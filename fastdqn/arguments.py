"""Words of a command line -> a flags dataclass: presets first, then flags; counts in human units."""

import re
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import tyro

from fastdqn.config import Config, load_preset
from fastdqn.errors import UsageError


def train_config(argv: list[str], *, prog: str, purpose: str | None = None) -> Config:
    """The config that `fastdqn train` makes of these words, not yet resolved; `purpose` is what --help says instead.

    Raises:
        UsageError: no such preset.
        SystemExit: a wrong flag; the parser has said which.
    """
    preset = load_preset(preset_of(argv))
    config = parse(Config, argv, default=preset, prog=prog, purpose=purpose)
    return replace(config, preset=preset.preset)  # a file's settings have a name, which is not its path


def preset_of(argv: list[str]) -> str:
    """The value of --preset, the last if several (as tyro does): its values are the defaults of every other flag."""
    preset = Config.preset
    for index, word in enumerate(argv):
        if word == "--preset" and index + 1 < len(argv):
            preset = argv[index + 1]
        elif word.startswith("--preset="):
            preset = word.partition("=")[2]
    return preset


def parse(kind: Any, argv: list[str], *, default: Any, prog: str, purpose: str | None = None) -> Any:
    """An instance of the dataclass `kind`; `default` gives what argv leaves out, None: the fields' own defaults.

    `purpose` is the first line of --help, None: the docstring of `kind`.
    """
    counts = {field.name.replace("_", "-") for field in fields(kind) if field.type in (int, int | None)}
    switches = {field.name.replace("_", "-") for field in fields(kind) if field.type is bool}
    for word in argv:
        flag, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and (name := flag.replace("_", "-").removeprefix("no-")) in switches:
            raise UsageError(f"{name.replace('-', '_')}={value}: a switch takes no value; use --{name} or --no-{name}")
    return tyro.cli(
        kind,
        args=expand_counts(argv, counts),
        prog=prog,
        description=purpose,
        **({} if default is None else {"default": default}),
    )


# two digits of exponent: 1e999999999 would take all memory
_COUNT = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?(?:e\d{1,2})?)([kMB]?)", re.IGNORECASE)


def expand_counts(argv: list[str], counts: set[str]) -> list[str]:
    """Writes 40M, 250k and 1e6 out in digits after the flags that count something; anything else is left as it is."""
    expanded, counting = [], False
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            counting = flag[2:].replace("_", "-") in counts
            expanded.append(f"{flag}={_digits(value)}" if counting and equals else word)
        else:
            expanded.append(_digits(word) if counting else word)
            counting = False
    return expanded


def _digits(text: str) -> str:
    match = _COUNT.fullmatch(text)
    if match is None or len(text) > 100:  # beyond 4,300 digits Python converts no number
        return text
    # a Fraction, because a float loses the last digits of a seed beyond 2^53
    value = Fraction(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()]
    return str(value.numerator) if value.denominator == 1 else text
